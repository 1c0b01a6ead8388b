"""Every key of a config: its type, its default, its meaning, and what values it takes.

The comment above a field is its entry in docs/configuration.md (see reference.py). Checks stand
with the section they belong to and raise UserError; what concerns two sections is in Config.
"""

from dataclasses import dataclass, field

from hiera_video.config.checks import (
    KEEP_UNITS_BY,
    PRECISIONS,
    require_coverage,
    require_not_negative,
    require_one_of,
    require_positive,
    require_share,
)
from hiera_video.config.model import ModelConfig
from hiera_video.config.training import ClassifyConfig, MAEConfig, OptimConfig, TrainConfig
from hiera_video.system.errors import UserError

STAGES = ("train", "test", "features")
TASKS = ("pretrain", "classify")
DEVICES = ("auto", "cpu", "cuda")
DECODERS = ("auto", "decord", "pyav", "torchcodec")
DTYPES = ("float32", "float16")
LAYOUTS = ("files", "packed", "actionformer", "opentad")
TRAIN_SAMPLERS = ("random", "segments", "pytorchvideo.random")
TEST_SAMPLERS = (None, "pytorchvideo.uniform", "pytorchvideo.constant_clips_per_video")


RANDOM = "none"  # says of init.weights that random ones are meant


@dataclass(frozen=True)
class InitConfig:
    """What training starts from."""

    # A weight file, step folder, run folder or published name. Default, and `none`: random weights.
    weights: str | None = None

    @property
    def file(self) -> str | None:
        """None: random weights."""
        return None if self.weights == RANDOM else self.weights


@dataclass(frozen=True)
class DataConfig:
    """Videos, and how clips are taken from them."""

    # Folder that relative paths, of lists and in them, are under.
    root: str | None = None
    # Folder of videos that are fetched from https://, s3:// and the like. Default: one in the
    # machine's temporary folder, of all runs.
    remote_cache: str | None = None
    # About how large it may grow, in GiB.
    remote_cache_gib: float = 20.0
    # Modules that register iopath handlers, for other remote paths.
    path_handlers: tuple[str, ...] = ()
    # Training list, or a folder of class folders.
    train: str = "train.csv"
    # Validation list.
    val: str = "val.csv"
    # Test list. Default: data.val.
    test: str | None = None
    # File with one class name a line.
    classes: str | None = None
    # Left and right matter: clips are never flipped, in pretraining either.
    directional: bool = False
    # Frames of a clip.
    num_frames: int = 16
    # Frames of a 30 fps video from one frame of a clip to the next.
    sampling_rate: int = 4
    # Frame rate that sampling_rate counts in.
    target_fps: float = 30.0
    # Of training: random, segments or pytorchvideo.random. Testing is then uniform, or segments.
    clip_sampler: str = "random"
    # Training: share of a clip that lies in the segment of its row, at least; at 0.5 its middle
    # does, as is asked of windows over a whole video.
    segment_share: float = 1.0
    # Rows that are added to a training table with segments, of what lies between them, as a share
    # of its rows.
    background_share: float = 0.0
    # Class of these rows. Default: none, which only several labels a video allow.
    background_class: str | None = None
    # Seconds that they stay away from segments; below 0, that they may reach into them, so that
    # what is seen in part alone is background.
    background_distance_s: float = 0.5
    # Frames of every clip in a random order, in testing too: a control of what order is worth.
    shuffle_frames: bool = False
    # Side of the crop, in pixels.
    crop_size: int = 224
    # Frames are resized to squares whatever their shape, so that nothing of a wide one is cut off.
    squash: bool = False
    # Mean and standard deviation (0 to 1) that the pixels of every clip are brought to, each clip
    # by itself: for videos whose light differs. Default: as they are.
    levels: tuple[float, float] | None = None
    # Training: share of the area that a crop takes.
    crop_scale: tuple[float, float] = (0.5, 1.0)
    # Training: ratio of a crop's width and height.
    crop_aspect: tuple[float, float] = (0.75, 1.3333)
    # Training: probability of a flip. Default: 0.5, or 0 where directional.
    flip: float | None = None
    # Training: magnitude of RandAugment, 0 to 10; 0 is off.
    rand_augment: float = 0.0
    # Training: operations that RandAugment draws for a clip.
    rand_augment_ops: int = 2
    # Training: standard deviation of the magnitude.
    rand_augment_std: float = 0.5
    # Training: probability that a box is erased.
    erase: float = 0.0
    # Mean of the pixels' values (0 to 1), by channel.
    mean: tuple[float, float, float] = (0.45, 0.45, 0.45)
    # Standard deviation of the pixels' values, by channel.
    std: tuple[float, float, float] = (0.225, 0.225, 0.225)
    # auto (PyAV), decord, pyav or torchcodec; files that it reads wrongly are read with PyAV.
    decoder: str = "auto"
    # Seconds for one request to a decoder, which is then killed; one that goes on reading has more.
    decode_timeout_s: float = 30.0
    # File on a disk of the machine that keeps what is known of each video's packets. Default: one
    # for all runs, in the temporary folder.
    manifest: str | None = None
    # File that names videos that hung or crashed a decoder. Default: quarantine.csv in output.
    quarantine: str | None = None
    # Folder that keeps the frames of small videos, decoded once; runs may share it.
    frame_cache: str | None = None
    # About how large it may grow, in GiB.
    frame_cache_gib: float = 8.0
    # Data-loading processes of a rank.
    num_workers: int = 2
    # Samples that they hold ready in shared memory, a rank, in GiB; at least one each.
    prefetch_gib: float = 1.0
    # Share of the training list that may be unreadable; above it the run stops.
    max_bad_fraction: float = 0.1

    def __post_init__(self) -> None:
        require_one_of("data.decoder", self.decoder, DECODERS)
        require_one_of("data.clip_sampler", self.clip_sampler, TRAIN_SAMPLERS)
        require_positive(
            "data",
            self,
            "num_frames sampling_rate target_fps crop_size decode_timeout_s frame_cache_gib "
            "prefetch_gib remote_cache_gib",
        )
        require_not_negative("data", self, "num_workers background_share")
        require_share("data", self, "segment_share")
        if self.levels is not None and not (0 <= self.levels[0] <= 1 and 0 < self.levels[1] <= 1):
            raise UserError(
                f"data.levels={list(self.levels)} must be a mean from 0 to 1 and a standard "
                "deviation above 0 and at most 1"
            )
        if self.directional and self.flip:
            raise UserError(
                f"data.flip={self.flip} with data.directional=true: this data set tells left from "
                "right, so its videos are never mirrored; set data.flip=0"
            )


@dataclass(frozen=True)
class TestConfig:
    """Testing with several clips and crops of each video."""

    __test__ = False  # not a test case, whatever its name

    # Clips of a video.
    clips: int = 5
    # Crops of a clip, 1 or 3.
    crops: int = 3
    # Short side that frames are resized to, in pixels. Default: data.crop_size.
    short_side: int | None = None
    # Videos that are decoded together.
    batch_size: int = 1
    # Views in one forward pass; memory grows with it.
    views_per_forward: int = 15
    # float32, or bfloat16 (autocast).
    precision: str = "float32"
    # torch.compile, for the features too.
    compile: bool = False
    # Share of the mask units (of a ViT: tokens) that are computed, in validation, testing and
    # features.
    keep_units: float = 1.0
    # Which ones: random (by seed) or motion (where pixels change most).
    keep_units_by: str = "random"
    # Other shares that the same test is scored at, for the curve of accuracy against cost.
    keep_units_too: tuple[float, ...] = ()
    # Weights to test. Default: the run's last checkpoint.
    weights: str | None = None
    # Share of the videos that must be scored; below it the exit status is 3.
    min_coverage: float = 0.99
    # Seconds after which finished videos are kept on the disk, and not scored again after a kill.
    save_every_s: float = 30.0
    # pytorchvideo.uniform or pytorchvideo.constant_clips_per_video. Default: by data.clip_sampler.
    clip_sampler: str | None = None
    # What follows the clip duration in the constructor of PyTorchVideo's sampler.
    clip_sampler_args: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        require_one_of("test.precision", self.precision, PRECISIONS)
        require_one_of("test.clip_sampler", self.clip_sampler, TEST_SAMPLERS)
        require_one_of("test.crops", self.crops, (1, 3))
        require_positive("test", self, "clips batch_size views_per_forward")
        require_share("test", self, "keep_units")
        require_one_of("test.keep_units_by", self.keep_units_by, KEEP_UNITS_BY)
        for share in self.keep_units_too:
            if not 0 < share <= 1:
                raise UserError(f"test.keep_units_too: {share} must be above 0 and at most 1")
        require_coverage("test.min_coverage", self.min_coverage)
        if self.clip_sampler and self.batch_size > 1:
            raise UserError(
                "test.batch_size must be 1 with a test.clip_sampler: "
                "its videos may differ in their clips"
            )


@dataclass(frozen=True)
class FeaturesConfig:
    """Clip features: windows over the whole of each video."""

    # A list. Default: data.test.
    videos: str | None = None
    # Seconds from window to window. Default: end to end.
    hop_s: float | None = None
    # So many clips of each video, as testing takes them, in place of windows over the whole.
    clips: int | None = None
    # Frames of the file from window to window, whose own frames follow each other there.
    stride_frames: int | None = None
    # files (a safetensors file a video), packed (many videos a file), or what action detectors
    # read: actionformer, opentad (npy).
    layout: str = "files"
    # MiB of a packed file, about.
    pack_mib: int = 256
    # Stages, of 1 to 4, whose maps are kept too.
    stages: tuple[int, ...] = ()
    # The mean of each map in place of the whole.
    pool_maps: bool = False
    # One row a video, the mean of its windows.
    average: bool = False
    # Of the numbers in the files: float32 or float16.
    dtype: str = "float32"
    # Share of the videos that must have features; below it the exit status is 3.
    min_coverage: float = 0.0

    def __post_init__(self) -> None:
        require_coverage("features.min_coverage", self.min_coverage)
        require_one_of("features.dtype", self.dtype, DTYPES)
        require_positive("features", self, "hop_s clips stride_frames pack_mib")
        require_one_of("features.layout", self.layout, LAYOUTS)
        spacings = {"hop_s": self.hop_s, "clips": self.clips, "stride_frames": self.stride_frames}
        given = [f"features.{name}" for name, value in spacings.items() if value is not None]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)}: set one of them")
        if self.layout in ("actionformer", "opentad"):
            if self.stride_frames is None:
                raise UserError(f"features.layout={self.layout} needs features.stride_frames")
            if self.average or self.stages or self.dtype != "float32":
                raise UserError(
                    f"features.layout={self.layout} holds one vector a window, in float32: leave "
                    "features.average, features.stages and features.dtype alone"
                )
        if not set(self.stages) <= {1, 2, 3, 4}:
            raise UserError(f"features.stages={list(self.stages)} must be among 1, 2, 3, 4")


@dataclass(frozen=True)
class Config:
    """What runs, where its results go, and its seed."""

    # pretrain or classify.
    task: str = "classify"
    # Of train, test and features, in order.
    stages: tuple[str, ...] = ("train", "test")
    # Folder of the run. Default: `runs/NAME` of NAME.yaml; `runs/FOLDER_NAME` for one that has a
    # base of the same name.
    output: str = ""
    # Of weights, samples, masks and dropout.
    seed: int = 0
    # auto, cpu or cuda.
    device: str = "auto"
    # Seconds for the ranks of a run to find each other.
    join_timeout_s: float = 300.0
    # Seconds that a rank waits for the others in a step, whose videos may lie on a slow disk.
    step_timeout_s: float = 1800.0
    model: ModelConfig = field(default_factory=ModelConfig)
    init: InitConfig = field(default_factory=InitConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    classify: ClassifyConfig = field(default_factory=ClassifyConfig)
    mae: MAEConfig = field(default_factory=MAEConfig)
    test: TestConfig = field(default_factory=TestConfig)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)

    def __post_init__(self) -> None:
        require_one_of("task", self.task, TASKS)
        require_one_of("device", self.device, DEVICES)
        for k, stage in enumerate(self.stages):
            require_one_of(f"stages[{k}]", stage, STAGES)
        if not self.stages:
            raise UserError(f"stages is empty: list some of {', '.join(STAGES)}")
        if self.seed < 0:
            raise UserError(f"seed={self.seed} must be >= 0")
        short_side = self.test.short_side
        if short_side is not None and short_side < self.data.crop_size:
            raise UserError(
                f"test.short_side={short_side} is less than data.crop_size={self.data.crop_size}"
            )
        if self.test.keep_units < 1 and "features" in self.stages and self.features.stages:
            raise UserError(
                f"features.stages={list(self.features.stages)} with test.keep_units="
                f"{self.test.keep_units}: a map needs all units; set test.keep_units=1"
            )
        share = self.data.background_share
        if share and self.data.background_class is None and not self.classify.multilabel:
            raise UserError(
                f"data.background_share={share}: name its class, data.background_class, or set "
                "classify.multilabel=true for rows without a label"
            )
        if self.classify.multilabel and self.test.keep_units_too:
            raise UserError("test.keep_units_too: not of several labels a video")
        if self.task == "pretrain" and self.train.patience:
            raise UserError("train.patience: pretraining has no figure that it could end by")
        if self.task == "pretrain" and "test" in self.stages:
            raise UserError(
                "stages: a masked autoencoder (task=pretrain) has no classes to test; "
                "fine-tune its weights first"
            )
