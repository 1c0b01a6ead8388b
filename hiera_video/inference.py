"""From a weight file to a model with its classes and clip format; from a video to what it says.

    model = load("runs/hiera_b_16x4")
    model.predict("dog.mp4", top=5)              # names and scores
    model.features("long.mp4", hop_s=0.5)        # vectors of windows over the whole video
    model.timeline("long.mp4")                   # scores of windows over the whole video

Legend: W windows, dim channels of a feature, N frames.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from hiera_video.config.sections import DEVICES
from hiera_video.data.dataset import ClipDataset, Key, why_nothing
from hiera_video.data.decode.source import VideoSource
from hiera_video.data.format import ClipFormat
from hiera_video.data.lists import VideoList
from hiera_video.data.sampling import ClipSampler
from hiera_video.data.transforms import normalise
from hiera_video.evaluation.loop import (
    ALL_UNITS,
    Forward,
    Predict,
    predict_features,
    predict_logits,
)
from hiera_video.evaluation.multilabel import thresholds_of
from hiera_video.evaluation.scores import class_name
from hiera_video.models.mae import MaskedAutoencoder
from hiera_video.models.onnx_model import SUFFIX as ONNX_SUFFIX
from hiera_video.models.onnx_model import OnnxModel
from hiera_video.models.published import pixel_statistics
from hiera_video.models.token_dial import KEEP_BY, TokenDial, has_dial
from hiera_video.models.weights import (
    classes_of,
    is_autoencoder,
    load_weights,
    read_weights,
    weights_file,
)
from hiera_video.models.zoo import create_model, encoder_arguments, list_all_models, model_arguments
from hiera_video.system.devices import PRECISIONS
from hiera_video.system.errors import VideoError
from hiera_video.system.files import join

# Arguments that files which state all of theirs may lack.
CAME_LATER = {
    "pos_init",
    "abs_win_pos_embed",
    "global_pos_size",
    "use_expand_proj",
    "multi_scale",
    "masking",
    "target",
}


class UnnamedModel(ValueError):
    """A weight file does not say what model it belongs to, and nobody else does."""


@dataclass(frozen=True)
class Prediction:
    label: str  # name of the class, or its number where it has none
    score: float  # probability
    index: int  # number of the class
    # Of several labels a video: whether it reaches its threshold.
    is_chosen: bool | None = None


class VideoFeatures(NamedTuple):
    features: Tensor  # float32 [W, dim]
    times: np.ndarray  # float64 [W, 2], seconds


class VideoTimeline(NamedTuple):
    scores: Tensor  # float32 [W, classes], probabilities
    times: np.ndarray  # float64 [W, 2], seconds


class VideoModel:
    """A model that takes videos. `model(clip)` is the module itself, on a normalised clip.

    module: any model of models/zoo.py. classes: one name a class, or none. format: default the
    published one. encoder: what gives the features, where that is not the module. dial: the mask
    units of a Hiera that are computed. thresholds: [classes], of a model of several labels a video:
    then each class has a probability of its own.

    A video that cannot be read raises VideoError; wrong arguments raise ValueError.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        classes: Sequence[str] = (),
        format: ClipFormat | None = None,
        source: VideoSource | None = None,
        encoder: nn.Module | None = None,
        device: str = "auto",
        precision: str = "float32",
        dial: TokenDial = ALL_UNITS,
        thresholds: Tensor | None = None,
    ):
        if precision not in PRECISIONS:
            raise ValueError(f"precision={precision!r} must be one of {', '.join(PRECISIONS)}")
        place = torch.device(_device(device))
        self.module = module.to(place).eval()
        self.classes = list(classes)
        self.format = format or ClipFormat()
        # One view at a time: the memory of one.
        self._forward = Forward(
            place, self.format.mean, self.format.std, precision, views_per_forward=1
        )
        self._dial = dial
        self.thresholds = thresholds
        self._source = source or VideoSource(timeout_s=60.0)
        self.encoder = self.module if encoder is None else encoder.to(place).eval()

    @property
    def device(self) -> torch.device:
        return self._forward.device

    def __call__(self, clip: Tensor) -> Any:
        """clip: float [B, 3, T, S, S], normalised (images: [B, 3, S, S]) -> logits [B, classes]"""
        return self.module(clip)

    def predict(
        self, video: str | Path, *, top: int = 5, clips: int = 5, crops: int = 3
    ) -> list[Prediction]:
        """The best classes of a video, by the mean over clips x crops views."""
        if top < 1:
            raise ValueError(f"top={top} must be > 0")
        return self._best(self.scores(video, clips=clips, crops=crops), top)

    def predict_views(self, views: Tensor, *, top: int = 5) -> list[Prediction]:
        """The same of views that are there: uint8 [V, 3, T, S, S], cropped and not normalised."""
        self._check_classifier()
        seeds = torch.zeros(len(views), dtype=torch.int64)
        return self._best(self._scores_of(views, seeds).mean(0), top)

    def _best(self, scores: Tensor, top: int) -> list[Prediction]:
        best = scores.argsort(descending=True, stable=True)[:top].tolist()
        chosen = {}
        if self.thresholds is not None:
            chosen = {c: bool(scores[c] >= self.thresholds[c]) for c in best}
        return [Prediction(self.name_of(c), float(scores[c]), c, chosen.get(c)) for c in best]

    def scores(self, video: str | Path, *, clips: int = 5, crops: int = 3) -> Tensor:
        """Probabilities (softmax, or sigmoid), averaged over the views: float32 [classes]."""
        if clips < 1 or crops not in (1, 3):
            raise ValueError(f"clips={clips} must be > 0, and crops={crops} 1 or 3")
        self._check_classifier()
        sample = self._dataset(video, self.format.uniform(clips), crops)[Key(0, 0)]
        if "clip" not in sample:
            raise VideoError(why_nothing(sample))
        return self._scores_of(sample["clip"], sample["seed"]).mean(0)

    def features(self, video: str | Path, *, hop_s: float | None = None) -> VideoFeatures:
        """Vectors of windows over the whole video, end to end or every `hop_s` seconds.

        Of a masked autoencoder, its encoder's.
        """
        predict = predict_features(self.encoder, dial=self._dial)
        parts, times = self._over_windows(
            video, hop_s, lambda clips, seeds: self._run(predict, clips, seeds)["features"]
        )
        return VideoFeatures(parts, times)

    def timeline(self, video: str | Path, *, hop_s: float | None = None) -> VideoTimeline:
        """Scores of windows over the whole video, end to end or every `hop_s` seconds."""
        self._check_classifier()
        return VideoTimeline(*self._over_windows(video, hop_s, self._scores_of))

    def clips(self, video: str | Path, count: int) -> Tensor:
        """Clips evenly over the video, cropped and not normalised: uint8 [count, 3, T, S, S]."""
        sample = self._dataset(video, self.format.uniform(count), crops=1)[Key(0, 0)]
        if "clip" not in sample:
            raise VideoError(why_nothing(sample))
        return sample["clip"]

    def middle_clip(self, video: str | Path) -> Tensor:
        """One normalised clip from the middle of the video: float [1, 3, T, S, S]."""
        clip = self.clips(video, 1).to(self.device)
        return normalise(clip, self.format.mean, self.format.std)

    def name_of(self, index: int) -> str:
        return class_name(self.classes, index)

    def open(self, video: str | Path) -> Any:
        """The video's frames, in the process that can be killed (a context manager)."""
        return self._source.open(join(Path.cwd(), video))

    def close(self) -> None:
        """Ends the decoding process; the next call starts another one."""
        self._source.close()

    @property
    def is_classifier(self) -> bool:
        """Else it is a masked autoencoder's encoder."""
        if isinstance(self.module, OnnxModel):
            return "logits" in self.module.outputs
        return not isinstance(self.module, MaskedAutoencoder)

    @property
    def takes_video(self) -> bool:
        """Else it is a model of images, and `model(image)` is all that it can do."""
        return len(getattr(self.module, "input_size", (1, 1, 1))) == 3

    def _check_classifier(self) -> None:
        if not self.is_classifier:
            raise ValueError("a masked autoencoder knows no classes; fine-tune it first")

    def _dataset(self, video: str | Path, sample: ClipSampler, crops: int) -> ClipDataset:
        if not self.takes_video:
            raise ValueError("the model takes images, not video")
        videos = VideoList([join(Path.cwd(), video)], [-1])
        return ClipDataset(
            videos, sample=sample, transform=self.format.crops(crops), source=self._source
        )

    @torch.inference_mode()
    def _run(self, predict: Predict, clips: Tensor, seeds: Tensor) -> dict[str, Tensor]:
        """clips: uint8 [N, 3, T, S, S], a seed of each -> outputs [N, ..] on the host"""
        return self._forward(predict, clips, seeds)

    def _scores_of(self, clips: Tensor, seeds: Tensor) -> Tensor:
        """clips: uint8 [N, 3, T, S, S], a seed of each -> float32 [N, classes]"""
        predict = predict_logits(self.module, self._dial)
        logits = self._run(predict, clips, seeds)["logits"]
        return logits.softmax(-1) if self.thresholds is None else logits.sigmoid()

    def _over_windows(
        self, video: str | Path, hop_s: float | None, work: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[Tensor, np.ndarray]:
        """(what `work` makes of all windows, times [W, 2])"""
        if hop_s is not None and not hop_s > 0:
            raise ValueError(f"hop_s={hop_s} must be > 0")
        parts = []
        times = []
        dataset = self._dataset(video, self.format.windows(hop_s), crops=1)
        for batch in dataset.chunks(0, 0):
            if batch["clip"] is None:
                raise VideoError(why_nothing(batch))
            parts.append(work(batch["clip"][0], batch["seed"][0]))
            times.append(batch["times"][0])
        return torch.cat(parts), np.concatenate(times)


def load(
    weights: str | Path,
    *,
    model: str | None = None,
    classes: Sequence[str] | None = None,
    device: str = "auto",
    precision: str = "float32",
    timeout_s: float = 60.0,
    keep_units: float = 1.0,
    keep_units_by: str = "random",
) -> VideoModel:
    """The model of a weight file, step folder, run folder, published name or Hugging Face folder.

    model, classes: its name and its classes' names, where the file does not say them (published
    files do not). device: auto, cpu or cuda. timeout_s: for decoding one video; one that takes
    longer is not tried again by this model. keep_units: share of a Hiera's mask units that are
    computed, for less cost; keep_units_by: `random`, or `motion` (where pixels change most). Raises
    ValueError.
    """
    if not timeout_s > 0:
        raise ValueError(f"timeout_s={timeout_s} must be > 0")
    if not 0 < keep_units <= 1 or keep_units_by not in KEEP_BY:
        raise ValueError(
            f"keep_units={keep_units} must be above 0 and at most 1, and "
            f"keep_units_by={keep_units_by!r} one of {', '.join(KEEP_BY)}"
        )
    _device(device)  # tried first, for its error
    if str(weights).endswith(ONNX_SUFFIX):
        if keep_units < 1 or precision != "float32":
            raise ValueError(
                f"keep_units={keep_units}, precision={precision}: {weights} has its own"
            )
        return _load_onnx(weights, model, classes, device=device, timeout_s=timeout_s)
    state, metadata = read_weights(weights)
    is_mae = is_autoencoder(state)
    stored = metadata.get("model", {})
    name = model or stored.get("name")
    if name is None:
        raise UnnamedModel(f"{weights} does not say what model it belongs to; name it with model=")
    if is_mae and not name.startswith("mae_"):
        name = f"mae_{name}"
    arguments = dict(stored.get("arguments", {})) if name == stored.get("name") else {}
    count = classes_of(state)
    if count is not None:
        arguments.setdefault("num_classes", count)
    try:
        module = create_model(name, **arguments)
    except ValueError as e:
        raise ValueError(f"model: {e}") from e
    if model is not None and len(getattr(module, "input_size", (1, 1, 1))) != 3:
        raise ValueError(f"model: {name} takes images, not video")
    if keep_units < 1 and not has_dial(name):
        raise ValueError(f"keep_units={keep_units}: only a Hiera or a ViT leaves units out")
    load_weights(module, weights, strict=True)
    if "mean" not in metadata and name in list_all_models(ours=True):
        metadata = {**metadata, **pixel_statistics(model_arguments(name, **arguments))}
    names = list(metadata.get("classes", []) if classes is None else classes)
    count = arguments.get("num_classes")
    if names and count and len(names) != count:
        raise ValueError(f"classes: {len(names)} names, but the model has {count} classes")
    return VideoModel(
        module,
        classes=names,
        format=ClipFormat.from_metadata(metadata),
        source=VideoSource(timeout_s=timeout_s),
        encoder=_encoder_of(name, arguments, weights) if is_mae else None,
        device=device,
        precision=precision,
        dial=TokenDial(keep_units, keep_units_by),
        thresholds=_thresholds(metadata, count),
    )


def _load_onnx(
    file: str | Path,
    model: str | None,
    classes: Sequence[str] | None,
    *,
    device: str,
    timeout_s: float,
) -> VideoModel:
    """What `hiera-video export --to onnx` wrote. Raises ValueError."""
    module = OnnxModel(weights_file(file), device=_device(device))
    stored = module.metadata.get("model", {}).get("name")
    if model is not None and model != stored:
        raise ValueError(f"model: {file} is of {stored}, not of {model}")
    names = list(module.metadata.get("classes", []) if classes is None else classes)
    if names and module.num_classes not in (None, len(names)):
        raise ValueError(
            f"classes: {len(names)} names, but the model has {module.num_classes} classes"
        )
    return VideoModel(
        module,
        classes=names,
        format=ClipFormat.from_metadata(module.metadata),
        source=VideoSource(timeout_s=timeout_s),
        device=device,
        thresholds=_thresholds(module.metadata, module.num_classes),
    )


def _thresholds(metadata: dict[str, Any], count: int | None) -> Tensor | None:
    if not metadata.get("multilabel") or count is None:
        return None
    return thresholds_of(metadata, count)


def _encoder_of(name: str, arguments: dict[str, Any], weights: str | Path) -> nn.Module:
    """The classifier whose encoder is the masked autoencoder's; its head is of no use."""
    kept = encoder_arguments(name, arguments)
    if set(model_arguments(name)) - CAME_LATER <= set(arguments):
        # A converted file states defaults, too: the autoencoder pools twice, a classifier thrice.
        kept.pop("q_pool")
    encoder = create_model(name.removeprefix("mae_"), **{**kept, "num_classes": 1})
    load_weights(encoder, weights, strict=False)
    return encoder


def _device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind = device.split(":")[0]  # cuda:1 names one of several
    if kind not in DEVICES:
        raise ValueError(f"device: {device!r} must be one of {', '.join(DEVICES)}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: {device!r}, but torch sees no GPU here")
    return device
