"""The config: one tree of frozen dataclasses, each owned by the module that it configures, loaded strictly.

    config = load_config("configs/K400/hiera_b_16x4.yaml", ["data.root=/k400", "train.epochs=3"])

An unknown key, a wrong type or a key given twice in a file is a UserError that names the key and the nearest valid one.
OmegaConf stays inside this file.
"""

import dataclasses
import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hiera_video.data.video import DECODERS
from hiera_video.distributed import PARALLELS
from hiera_video.errors import UserError
from hiera_video.evaluate import FeaturesConfig, TestConfig
from hiera_video.models.pytorchvideo_models import PYTORCHVIDEO_MODELS
from hiera_video.optim import OptimConfig
from hiera_video.tasks import PRECISIONS, ClassifyConfig, MAEConfig
from hiera_video.train import TrainConfig

STAGES = ("train", "test", "features")
TASKS = ("pretrain", "classify")
CLIP_SAMPLERS = ("random", "segments", "pytorchvideo.random")  # training
TEST_SAMPLERS = (None, "pytorchvideo.uniform", "pytorchvideo.constant_clips_per_video")
MAY_CHANGE = (
    "output",
    "stages",
    "device",
    "join_timeout_s",
    "data.num_workers",
    "data.decode_timeout_s",
    "data.manifest",
    "data.quarantine",
    "test.save_every_s",
    "test.min_coverage",
)  # between two runs in one folder


@dataclass(frozen=True)
class ModelConfig:
    """`name`, and constructor arguments under their official names; those left out keep the named model's values."""

    name: str = "hiera_base_16x224"
    input_size: list[int] | None = None  # default: data.num_frames x data.crop_size x data.crop_size
    in_chans: int | None = None
    embed_dim: int | None = None
    num_heads: int | None = None
    num_classes: int | None = None  # default: the number of names in data.classes
    stages: list[int] | None = None
    q_pool: int | None = None
    q_stride: list[int] | None = None
    mask_unit_size: list[int] | None = None
    mask_unit_attn: list[bool] | None = None
    dim_mul: float | None = None
    head_mul: float | None = None
    patch_kernel: list[int] | None = None
    patch_stride: list[int] | None = None
    patch_padding: list[int] | None = None
    mlp_ratio: float | None = None
    drop_path_rate: float | None = None
    head_dropout: float | None = None
    head_init_scale: float | None = None
    sep_pos_embed: bool | None = None
    decoder_embed_dim: int | None = None  # pretraining, here and below
    decoder_depth: int | None = None
    decoder_num_heads: int | None = None


@dataclass(frozen=True)
class InitConfig:
    weights: str | None = None  # a weight file, a step folder or a run folder


@dataclass(frozen=True)
class DataConfig:
    root: str | None = None  # relative paths, of lists and in them, are under it
    path_handlers: tuple[str, ...] = ()  # modules that register iopath handlers for paths like s3://..; see files.py
    train: str = "train.csv"  # a list, or a folder of class folders
    val: str = "val.csv"
    test: str | None = None  # default: data.val
    classes: str | None = None  # a file with one class name a line
    directional: bool = False  # left and right matter: never flipped, in pretraining either
    num_frames: int = 16
    sampling_rate: int = 4  # frames of a 30 fps video from one frame of a clip to the next
    target_fps: float = 30.0
    clip_sampler: str = "random"  # random (test: uniform) | segments (both) | pytorchvideo.random (test: uniform)
    crop_size: int = 224
    crop_scale: tuple[float, float] = (0.5, 1.0)  # training: share of the area
    crop_aspect: tuple[float, float] = (0.75, 1.3333)
    flip: float | None = None  # training; default 0.5, or 0 where directional
    rand_augment: float = 0.0  # magnitude; 0 is off
    rand_augment_ops: int = 2
    rand_augment_std: float = 0.5
    erase: float = 0.0  # probability
    mean: tuple[float, float, float] = (0.45, 0.45, 0.45)
    std: tuple[float, float, float] = (0.225, 0.225, 0.225)
    decoder: str = "auto"
    decode_timeout_s: float = 30.0  # of one video; a decoder that takes longer is killed
    manifest: str | None = None  # what is known of each video's packets; default: manifest.sqlite in `output`
    quarantine: str | None = None  # videos that hung or crashed a decoder; default: quarantine.csv in `output`
    num_workers: int = 2  # per rank
    max_bad_fraction: float = 0.1  # of the training list; above it the run stops


@dataclass(frozen=True)
class Config:
    task: str = "classify"
    stages: tuple[str, ...] = ("train", "test")
    output: str = ""  # default: runs/<name of the config file>
    seed: int = 0
    device: str = "auto"  # auto | cpu | cuda
    join_timeout_s: float = 300.0  # for the ranks of a run to find each other, and for one that waits in a step
    model: ModelConfig = field(default_factory=ModelConfig)
    init: InitConfig = field(default_factory=InitConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    classify: ClassifyConfig = field(default_factory=ClassifyConfig)
    mae: MAEConfig = field(default_factory=MAEConfig)
    test: TestConfig = field(default_factory=TestConfig)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)


def load_config(file: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Reads a YAML file and `key=value` overrides on top of the defaults. Raises UserError."""
    file = Path(file)
    if not file.is_file():
        raise UserError(f"--cfg: there is no config file {file}")
    try:
        given = OmegaConf.load(file)
    except (yaml.YAMLError, OmegaConfBaseException) as e:
        mark = getattr(e, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"{file}{where}: {getattr(e, 'problem', None) or str(e).splitlines()[0]}") from e
    if not OmegaConf.is_dict(given):
        raise UserError(f"{file}: a config is a mapping of keys to values")
    for override in overrides:
        if "=" not in override:
            raise UserError(f"override {override!r} must have the form key=value")
    sources = [(str(file), given)] + [(f"override {o!r}", OmegaConf.from_dotlist([o])) for o in overrides]
    tree = OmegaConf.structured(Config)
    OmegaConf.set_readonly(tree, False)
    for source, part in sources:
        _check_keys(OmegaConf.to_container(part), source)
        try:
            tree = OmegaConf.merge(tree, part)
        except OmegaConfBaseException as e:
            key = getattr(e, "full_key", None)
            message = str(e).splitlines()[0].replace("'$VALUE' of type '$VALUE_TYPE'", "in a list")  # its own slip
            raise UserError(f"{source}: {f'{key}: ' if key else ''}{message}") from e
    config: Config = OmegaConf.to_object(tree)
    if not config.output:
        config = dataclasses.replace(config, output=f"runs/{file.stem}")
    _check_values(config)
    return config


def valid_keys() -> list[str]:
    return list(flatten(dataclasses.asdict(Config())))


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


def to_yaml(config: Config) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(_plain(dataclasses.asdict(config))))


def changed_keys(config: Config, stored_yaml: str) -> list[str]:
    """Keys whose value differs from a stored config's, except those that may change between two runs."""
    now = flatten(_plain(dataclasses.asdict(config)))
    before = flatten(OmegaConf.to_container(OmegaConf.create(stored_yaml)))
    default = flatten(_plain(dataclasses.asdict(Config())))  # of a key that the stored config's version did not have
    keys = [k for k in {**now, **before} if now.get(k) != before.get(k, default.get(k))]
    return [k for k in keys if k not in MAY_CHANGE]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _check_keys(given: dict[str, Any], source: str) -> None:
    valid = valid_keys()
    sections = {k.split(".")[0] for k in valid if "." in k}
    for key in flatten(given):
        if key not in valid and not (key in sections and given[key] in (None, {})):
            near = difflib.get_close_matches(key, valid, n=1, cutoff=0.0)
            same_name = [k for k in valid if k.split(".")[-1] == key.split(".")[-1]]
            raise UserError(f"{source}: there is no key {key!r}; the nearest is {(same_name or near)[0]!r}")


def _check_values(config: Config) -> None:
    choices = {
        "task": (config.task, TASKS),
        "device": (config.device, ("auto", "cpu", "cuda")),
        "data.decoder": (config.data.decoder, DECODERS),
        "train.precision": (config.train.precision, tuple(PRECISIONS)),
        "train.parallel": (config.train.parallel, PARALLELS),
        "features.dtype": (config.features.dtype, ("float32", "float16")),
        "test.precision": (config.test.precision, tuple(PRECISIONS)),
        "data.clip_sampler": (config.data.clip_sampler, CLIP_SAMPLERS),
        "test.clip_sampler": (config.test.clip_sampler, TEST_SAMPLERS),
        "test.crops": (config.test.crops, (1, 3)),
        "optim.name": (config.optim.name, ("adamw", "sgd")),
    }
    for k, stage in enumerate(config.stages):
        choices[f"stages[{k}]"] = (stage, STAGES)
    for key, (value, allowed) in choices.items():
        if value not in allowed:
            raise UserError(f"{key}={value!r} must be one of {', '.join(map(str, allowed))}")
    positive = (
        "data.num_frames data.sampling_rate data.target_fps data.crop_size data.decode_timeout_s "
        "train.epochs train.batch_size train.repeats train.accumulate "
        "train.log_every train.save_every train.keep test.clips test.batch_size test.views_per_forward features.hop_s"
    )
    flat = flatten(dataclasses.asdict(config))
    for key in positive.split():
        if flat[key] is not None and not flat[key] > 0:
            raise UserError(f"{key}={flat[key]} must be > 0")
    for key in ("data.num_workers", "train.val_every", "train.keep_every", "optim.reference_batch", "seed"):
        if flat[key] < 0:
            raise UserError(f"{key}={flat[key]} must be >= 0")
    if not 0 <= config.train.ema < 1:
        raise UserError(f"train.ema={config.train.ema} must be at least 0 and less than 1")
    if not 0 <= config.test.min_coverage <= 1:
        raise UserError(f"test.min_coverage={config.test.min_coverage} must be from 0 to 1")
    if not set(config.features.stages) <= {1, 2, 3, 4}:
        raise UserError(f"features.stages={list(config.features.stages)} must be among 1, 2, 3, 4")
    if config.features.stages and config.model.name in PYTORCHVIDEO_MODELS:
        raise UserError(f"features.stages={list(config.features.stages)}: only a Hiera has stages")
    if config.test.clip_sampler and config.test.batch_size > 1:
        raise UserError("test.batch_size must be 1 with a test.clip_sampler: its videos may differ in their clips")
    if not config.stages:
        raise UserError(f"stages is empty: list some of {', '.join(STAGES)}")
    if config.test.short_side is not None and config.test.short_side < config.data.crop_size:
        raise UserError(f"test.short_side={config.test.short_side} is less than data.crop_size={config.data.crop_size}")
    if config.data.directional and config.data.flip:
        raise UserError(
            f"data.flip={config.data.flip} with data.directional=true: this data set tells left from right, so its videos "
            "are never mirrored; set data.flip=0"
        )
    if config.task == "pretrain" and "test" in config.stages:
        raise UserError(
            "stages: a masked autoencoder (task=pretrain) has no classes to test; fine-tune its weights first"
        )
