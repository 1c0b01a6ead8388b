"""What a run reads before its stages begin: lists, the names of classes, the weights to test."""

from dataclasses import dataclass
from pathlib import Path

from hiera_video.config import Config
from hiera_video.data.background import with_background
from hiera_video.data.classes import check_labels, read_class_names
from hiera_video.data.lists import VideoList, read_lists, read_videos
from hiera_video.models.weights import weights_file
from hiera_video.system.errors import UserError
from hiera_video.system.stores import register_handlers


@dataclass(frozen=True)
class Classes:
    """What a classifier tells apart. Names of another number than the classes are left out."""

    names: list[str]
    count: int | None  # None where there are none, or nobody asks


NO_CLASSES = Classes([], None)


@dataclass(frozen=True)
class Input:
    """A list that a stage works on, and the classes that its labels are of."""

    videos: VideoList
    classes: Classes


def read_inputs(config: Config) -> dict[str, Input]:
    """The lists of all stages of the config, by their keys. Raises UserError.

    What can be wrong is found here: labels, and weights to test that must be there already.
    """
    sources = _sources(config)
    _register_handlers(config.data.path_handlers)
    _check_weights(config)
    lists = read_lists(sources, root=config.data.root or "")
    if "data.train" in lists:
        lists["data.train"] = _with_background(config, lists["data.train"])
    lists = _numbered(config, lists)
    inputs: dict[str, Input] = {}
    for key, videos in lists.items():
        if key == "features.videos":
            classes = NO_CLASSES  # the model's are told by its weights
        elif key == "data.val":
            classes = inputs["data.train"].classes
        else:
            classes = build_classes(config, videos)
        inputs[key] = Input(videos, classes)
    for key, given in inputs.items():
        if given.videos.has_label_sets:
            continue  # checked when they were made
        # A list to test may leave all labels out; then there is no accuracy, but scores.
        labelled = key != "data.test" or (given.videos.labels >= 0).any()
        if labelled and given.classes.count is not None:
            check_labels(given.videos, given.classes.count, key=key)
    return inputs


def _sources(config: Config) -> dict[str, str]:
    """Key -> list, of the lists that the stages read."""
    data = config.data
    test = data.test or data.val
    sources = {}
    if "train" in config.stages:
        sources["data.train"] = data.train
        if config.train.val_every:
            sources["data.val"] = data.val
            if config.task == "pretrain" and config.mae.probe:
                sources["mae.probe"] = config.mae.probe
    if "test" in config.stages:
        sources["data.test"] = test
    if "features" in config.stages:
        sources["features.videos"] = config.features.videos or test
    return sources


def _numbered(config: Config, lists: dict[str, VideoList]) -> dict[str, VideoList]:
    """Labels that lists name, as numbers that mean the same in all of them.

    Those of data.classes or else of the training list, which is read for it; pretraining has no
    classes, and all names of its lists count. Raises UserError.
    """
    if config.task == "classify" and config.classify.multilabel:
        return _with_label_sets(config, lists)
    tables = {}
    for key, videos in lists.items():
        if videos.header is not None and key != "features.videos":  # nobody asks for its labels
            tables[key] = videos
    if not any(videos.classes for videos in tables.values()):
        return lists
    tables = {key: videos.by_name() for key, videos in tables.items()}
    data = config.data
    root = data.root or ""
    if config.task == "pretrain":
        names = sorted({name for videos in tables.values() for name in videos.classes})
    elif data.classes is not None:
        names = read_class_names(data.classes, root=root, key="data.classes")
    elif "data.train" in lists:
        names = list(tables.get("data.train", lists["data.train"]).classes)
    else:
        train = _with_background(config, read_videos(data.train, root=root))
        names = list(train.by_name().classes)
    renumbered = {key: videos.numbered_by(names, key=key) for key, videos in tables.items()}
    return lists | renumbered


def _with_background(config: Config, videos: VideoList) -> VideoList:
    """Raises UserError."""
    data = config.data
    if not data.background_share:
        return videos
    return with_background(
        videos,
        data.background_share,
        label=data.background_class or "",
        distance_s=data.background_distance_s,
        least_s=data.segment_share * data.num_frames * data.sampling_rate / data.target_fps,
        key="data.train",
    )


def _with_label_sets(config: Config, lists: dict[str, VideoList]) -> dict[str, VideoList]:
    """Labels as sets, of the classes of data.classes or else of the training list.

    Raises UserError.
    """
    data = config.data
    root = data.root or ""
    if data.classes is not None:
        names = read_class_names(data.classes, root=root, key="data.classes")
    else:
        train = lists.get("data.train") or _with_background(
            config, read_videos(data.train, root=root)
        )
        names = train.label_names()
    count = config.model.num_classes or len(names)
    if not count:
        raise UserError(
            "model.num_classes: set it, or data.classes to a file with one class name a line"
        )
    sets = {}
    for key, videos in lists.items():
        if key == "features.videos":
            sets[key] = videos
            continue
        sets[key] = videos.with_label_sets(names, count, key=key)
        sets[key].classes = tuple(names)
    return sets


def read_list(config: Config, key: str) -> VideoList:
    """One list alone, `data.train` or `data.test`; labels are not checked. Raises UserError."""
    data = config.data
    source = data.train if key == "data.train" else data.test or data.val
    _register_handlers(data.path_handlers)
    return _numbered(config, read_lists({key: source}, root=data.root or ""))[key]


def build_classes(config: Config, videos: VideoList) -> Classes:
    """Of the model that the config means. Raises UserError."""
    if config.task == "pretrain":
        return NO_CLASSES
    names = class_names(config, videos)
    count = config.model.num_classes or len(names)
    if not count:
        raise UserError(
            "model.num_classes: set it, or data.classes to a file with one class name a line"
        )
    return Classes(names if len(names) == count else [], count)


def class_names(config: Config, videos: VideoList) -> list[str]:
    """Of data.classes, or of the class folders; empty if nothing names them. Raises UserError."""
    file = config.data.classes
    if file is None:
        return list(videos.classes)
    return read_class_names(file, root=config.data.root or "", key="data.classes")


def weights_to_use(config: Config) -> Path:
    """Weights for test and features: test.weights, or the run's last. Raises UserError."""
    try:
        return weights_file(config.test.weights or config.output)
    except ValueError as e:
        raise UserError(f"test.weights: {e}; train first, or set test.weights") from e


def _check_weights(config: Config) -> None:
    """Raises UserError for weights to test that must be there before the run, and are not."""
    uses = "test" in config.stages or "features" in config.stages
    if uses and (config.test.weights or "train" not in config.stages):
        weights_to_use(config)


def _register_handlers(modules: tuple[str, ...]) -> None:
    """Of remote paths. Raises UserError."""
    try:
        register_handlers(modules)
    except ImportError as e:
        raise UserError(f"data.path_handlers: {e}") from e
