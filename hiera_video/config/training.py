"""Sections of a config that training alone reads."""

from dataclasses import dataclass

from hiera_video.config.checks import (
    KEEP_UNITS_BY,
    PRECISIONS,
    require_not_negative,
    require_one_of,
    require_positive,
    require_share,
)
from hiera_video.system.errors import UserError

PARALLELS = ("ddp", "fsdp")
OPTIMIZERS = ("adamw", "sgd")
SAMPLERS = ("shuffle", "balanced")
MULTILABEL_LOSSES = ("bce", "focal", "asymmetric")
CLASS_WEIGHTS = ("none", "inverse", "inverse_sqrt", "effective")
MASKS = ("random", "tube")
DECODER_KEEP_BY = ("random", "running_cell")


@dataclass(frozen=True)
class TrainConfig:
    """The training loop."""

    # Effective epochs: how often a video is seen in all, its repeats counted (the paper's way).
    epochs: float = 100
    # Videos of an optimizer step, over all ranks; with repeats, that many times the clips.
    batch_size: int = 256
    # shuffle (every video once an epoch) or balanced (every class as often as the others).
    sampler: str = "shuffle"
    # Clips from one decode of a video.
    repeats: int = 1
    # They are all of the same frames (as in PySlowFast), and differ in crop and augmentation alone.
    same_frames: bool = False
    # Forward and backward passes of an optimizer step: less memory, the same batch.
    accumulate: int = 1
    # float32, bfloat16 (autocast), or auto: bfloat16 where the device computes it, else float32.
    precision: str = "float32"
    # Over ranks: ddp, or fsdp (each rank holds its share of the parameters).
    parallel: str = "ddp"
    # torch.compile: minutes at the start, faster steps.
    compile: bool = False
    # Stages (1 to 4, of a ViT 1; 5: the decoder) that save memory by computing twice.
    recompute_stages: tuple[int, ...] = ()
    # First stages (0 to 4; of a ViT 0 or 1) that are not trained, and the embeddings with them; 0:
    # all is trained.
    freeze_stages: int = 0
    # Rank of LoRA in the blocks that are not frozen, whose own weights then stay as they are; 0 is
    # off. Checkpoints hold the merged weights. Not for PyTorchVideo's models.
    lora_rank: int = 0
    # LoRA's product is scaled by lora_alpha / lora_rank.
    lora_alpha: float = 16.0
    # Decay of an average of the weights, which is then kept and tested; 0 is off.
    ema: float = 0.0
    # Steps in a row whose gradients are not finite, at which the run stops; they reach no weights.
    max_skipped: int = 3
    # Steps from one line of the log to the next.
    log_every: int = 10
    # Effective epochs from one checkpoint to the next.
    save_every: float = 1
    # Newest checkpoints that stay on the disk.
    keep: int = 2
    # Effective epochs between checkpoints that stay for good; 0 is off.
    keep_every: float = 0
    # Effective epochs between looks at data.val: validation, or the probe; 0 is off. Not less than
    # save_every, it is rounded to checkpoints.
    val_every: float = 0
    # Looks in a row at data.val without a better top-1 (of several labels: mAP) after which
    # training ends; 0: never.
    patience: int = 0

    def __post_init__(self) -> None:
        require_one_of("train.precision", self.precision, (*PRECISIONS, "auto"))
        require_one_of("train.sampler", self.sampler, SAMPLERS)
        require_one_of("train.parallel", self.parallel, PARALLELS)
        require_positive("train", self, "epochs batch_size repeats accumulate max_skipped")
        require_positive("train", self, "log_every save_every keep lora_alpha")
        require_not_negative("train", self, "val_every keep_every freeze_stages lora_rank")
        require_not_negative("train", self, "patience")
        if self.patience and not self.val_every:
            raise UserError(f"train.patience={self.patience} needs train.val_every")
        if not 0 <= self.ema < 1:
            raise UserError(f"train.ema={self.ema} must be at least 0 and less than 1")


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer and learning rate: linear warm-up, then half a cosine."""

    # adamw or sgd.
    name: str = "adamw"
    # Learning rate at the end of the warm-up.
    lr: float = 8e-4
    # Learning rate at the start of the warm-up.
    start_lr: float = 0.0
    # Learning rate at the end.
    end_lr: float = 0.0
    # Effective epochs of warm-up.
    warmup_epochs: float = 0.0
    # Of adamw.
    betas: tuple[float, float] = (0.9, 0.999)
    # Of sgd.
    momentum: float = 0.9
    # Of sgd.
    nesterov: bool = True
    # Biases, norms and position embeddings are never decayed.
    weight_decay: float = 0.05
    # Each block's rate is this factor times the next one's; 1 is off.
    layer_decay: float = 1.0
    # The train.batch_size that the rates are for; they scale with the real one. 0: as they are.
    reference_batch: int = 0
    # Largest L2 norm of all gradients; 0 is off.
    clip_grad: float = 0.0

    def __post_init__(self) -> None:
        require_one_of("optim.name", self.name, OPTIMIZERS)
        require_not_negative("optim", self, "reference_batch")


@dataclass(frozen=True)
class ClassifyConfig:
    """The loss of task=classify: cross-entropy with soft labels, or multilabel."""

    # A video has any number of labels: a probability for each, and no softmax over all.
    multilabel: bool = False
    # Of multilabel: bce (binary cross-entropy), focal (Lin et al., 2017) or asymmetric (Ridnik et
    # al., 2021).
    multilabel_loss: str = "bce"
    # Of focal: the power by which labels that are well predicted count less.
    focal_gamma: float = 2.0
    # Of asymmetric: the same for labels that are there, and for those that are not.
    asymmetric_gammas: tuple[float, float] = (0.0, 4.0)
    # Of asymmetric: probability up to which a label that is not there is right.
    asymmetric_margin: float = 0.05
    # Labels of two clips that are mixed, multilabel: mix (by their shares) or max (all of both).
    mix_targets: str = "mix"
    # Share of the training videos that choose each class's threshold, multilabel, and are not
    # trained on; 0: a threshold of 0.5.
    threshold_share: float = 0.1
    # Weights of the classes in the loss: none, inverse (of their numbers of examples), inverse_sqrt
    # or effective (number of examples; Cui et al., 2019).
    class_weights: str = "none"
    # Of effective: near 1 it is inverse, near 0 none.
    effective_beta: float = 0.999
    # Share of a label that is spread over all classes.
    label_smoothing: float = 0.0
    # Alpha of mixup's Beta distribution; 0 is off.
    mixup: float = 0.0
    # Alpha of cutmix's Beta distribution; 0 is off.
    cutmix: float = 0.0
    # Share of the batches that are mixed.
    mix_prob: float = 1.0
    # Share of the mixed batches that are cut and not blended, where both are on.
    switch_prob: float = 0.5
    # Share of the mask units (of a ViT: tokens) that are computed.
    keep_units: float = 1.0
    # Which ones: random (by seed) or motion (where pixels change most).
    keep_units_by: str = "random"

    def __post_init__(self) -> None:
        require_share("classify", self, "keep_units")
        require_one_of("classify.multilabel_loss", self.multilabel_loss, MULTILABEL_LOSSES)
        require_one_of("classify.mix_targets", self.mix_targets, ("mix", "max"))
        require_one_of("classify.class_weights", self.class_weights, CLASS_WEIGHTS)
        require_not_negative("classify", self, "focal_gamma asymmetric_margin threshold_share")
        if min(self.asymmetric_gammas) < 0:
            raise UserError(f"classify.asymmetric_gammas={list(self.asymmetric_gammas)}: both >= 0")
        for name in ("threshold_share", "asymmetric_margin", "effective_beta"):
            if not 0 <= getattr(self, name) < 1:
                value = getattr(self, name)
                raise UserError(f"classify.{name}={value} must be at least 0 and less than 1")
        require_one_of("classify.keep_units_by", self.keep_units_by, KEEP_UNITS_BY)


@dataclass(frozen=True)
class MAEConfig:
    """Masked-autoencoder pretraining, task=pretrain."""

    # Share of the mask units that are hidden.
    mask_ratio: float = 0.9
    # Which ones: random, or tube (the same places at all times; VideoMAE).
    mask: str = "random"
    # Share of the hidden patches that the decoder sees and predicts. The decoder is most of the
    # cost.
    decoder_keep: float = 1.0
    # Which ones: random (by seed), or running_cell (VideoMAE V2), the same of each 2 x 2 patches.
    decoder_keep_by: str = "random"
    # Labelled list whose features the probes learn from. Default: data.train.
    probe: str | None = None
    # Videos of each list that the probes and the other measures of pretraining take.
    probe_videos: int = 1000

    def __post_init__(self) -> None:
        require_share("mae", self, "decoder_keep")
        require_one_of("mae.mask", self.mask, MASKS)
        require_one_of("mae.decoder_keep_by", self.decoder_keep_by, DECODER_KEEP_BY)
        if self.decoder_keep == 1 and self.decoder_keep_by != DECODER_KEEP_BY[0]:
            raise UserError(
                f"mae.decoder_keep_by={self.decoder_keep_by} needs mae.decoder_keep below 1"
            )
