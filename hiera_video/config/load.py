"""Reads configs strictly, and compares them. The only file that imports OmegaConf.

An unknown key, a wrong type or a key given twice in a file is a UserError that names the key and
the nearest valid one. A file may begin with `base: other.yaml`, a path relative to itself, whose
keys it overrides; a base may have a base.
"""

import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hiera_video.config.sections import RANDOM, Config
from hiera_video.system.errors import UserError

BASE = "base"
# Keys that define no experiment. What they change is rounding or, like train.accumulate with
# mixing or drop path, other random draws. They may change between two runs in one folder.
MAY_CHANGE = (
    "output",
    "stages",
    "device",
    "join_timeout_s",
    "step_timeout_s",
    "data.num_workers",
    "data.prefetch_gib",
    "data.decode_timeout_s",
    "data.manifest",
    "data.quarantine",
    "data.frame_cache",
    "data.frame_cache_gib",
    "data.remote_cache",
    "data.remote_cache_gib",
    "data.max_bad_fraction",
    "train.accumulate",
    "train.parallel",
    "train.compile",
    "train.recompute_stages",
    "train.max_skipped",
    "train.log_every",
    "train.save_every",
    "train.keep",
    "train.keep_every",
    "mae.probe",
    "test.views_per_forward",
    "test.compile",
    "test.save_every_s",
    "test.min_coverage",
    "features.min_coverage",
    "features.pack_mib",
)
# These too, as long as the test has not begun: its parts say how its videos were batched.
MAY_CHANGE_BEFORE_TEST = ("test.batch_size",)


def load_config(file: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file and its bases, and `key=value` overrides on top. Raises UserError."""
    file = Path(file)
    files = _with_bases(file)
    for override in overrides:
        if "=" not in override:
            raise UserError(f"override {override!r} must have the form key=value")
    sources = [(str(path), part) for path, part in reversed(files.items())]
    sources += [(f"override {o!r}", OmegaConf.from_dotlist([o])) for o in overrides]

    tree: Any = OmegaConf.structured(Config)
    OmegaConf.set_readonly(tree, False)
    for source, part in sources:
        _check_keys(_container(part), source)
        try:
            tree = OmegaConf.merge(tree, part)
        except OmegaConfBaseException as e:
            raise UserError(f"{source}: {_message(e)}") from e
    config = OmegaConf.to_object(tree)
    assert isinstance(config, Config)
    if not config.output:
        config = dataclasses.replace(config, output=_default_output(list(files)))
    return config


def valid_keys() -> list[str]:
    """Every key, with dots, in the order of the sections."""
    return list(flatten(dataclasses.asdict(Config())))


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def to_yaml(config: Config) -> str:
    """The whole config, defaults and bases resolved."""
    return OmegaConf.to_yaml(OmegaConf.create(_plain(dataclasses.asdict(config))))


def changes(config: Config, stored_yaml: str) -> dict[str, tuple[Any, Any]]:
    """Key -> (before, now), of the keys whose value differs from a stored config's."""
    now = flatten(_plain(dataclasses.asdict(config)))
    before = flatten(_container(OmegaConf.create(stored_yaml)))
    # A stored config of an older version does not have every key.
    default = flatten(_plain(dataclasses.asdict(Config())))
    found = {}
    for key in {**now, **before}:
        was = before.get(key, default.get(key))
        if _meant(key, now.get(key)) != _meant(key, was):
            found[key] = (was, now.get(key))
    return found


def _meant(key: str, value: Any) -> Any:
    """Random weights have two names."""
    return None if key == "init.weights" and value == RANDOM else value


def changed_keys(
    config: Config, stored_yaml: str, *, may_change: Sequence[str] = MAY_CHANGE
) -> list[str]:
    """Keys whose value differs from a stored config's, without those that may change."""
    return [key for key in changes(config, stored_yaml) if key not in may_change]


def _with_bases(file: Path) -> dict[Path, DictConfig]:
    """The file's own content, then its base's, and so on. Raises UserError."""
    contents: dict[Path, DictConfig] = {}
    asked_by = "--cfg"
    while True:
        if file.resolve() in (path.resolve() for path in contents):
            raise UserError(f"{asked_by}: {file} is a base of itself")
        content = _read(file, asked_by)
        base = content.pop(BASE, None)
        contents[file] = content
        if base is None:
            return contents
        if not isinstance(base, str):
            raise UserError(f"{file}: base={base!r} must be the path of a config file")
        asked_by = f"{file}: base"
        file = file.parent / base


def _read(file: Path, asked_by: str) -> DictConfig:
    """asked_by: what named the file, for the message."""
    if not file.is_file():
        raise UserError(f"{asked_by}: there is no config file {file}")
    try:
        content = OmegaConf.load(file)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as e:
        mark = getattr(e, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        problem = getattr(e, "problem", None) or str(e).splitlines()[0]
        raise UserError(f"{file}{where}: {problem}") from e
    if not isinstance(content, DictConfig):
        raise UserError(f"{file}: a config is a mapping of keys to values")
    return content


def _container(part: Any) -> dict[str, Any]:
    content = OmegaConf.to_container(part)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def _default_output(files: list[Path]) -> str:
    """files: a config, then its bases. A base of the same name would have the same output."""
    file, *bases = files
    if any(base.stem == file.stem for base in bases):
        return f"runs/{file.resolve().parent.name}_{file.stem}"
    return f"runs/{file.stem}"


def _message(error: OmegaConfBaseException) -> str:
    key = getattr(error, "full_key", None)
    text = str(error).splitlines()[0]
    # OmegaConf leaves its placeholders in this one message.
    text = text.replace("'$VALUE' of type '$VALUE_TYPE'", "in a list")
    if "is not a ListConfig" in text:
        text = "a list is needed, such as [1,4,4]"
    return f"{key}: {text}" if key else text


def _plain(value: Any) -> Any:
    """Tuples as lists, at any depth: what YAML knows."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def _check_keys(given: dict[str, Any], source: str) -> None:
    valid = valid_keys()
    sections = {key.split(".")[0] for key in valid if "." in key}
    for key in flatten(given):
        is_empty_section = key in sections and given[key] in (None, {})
        if key not in valid and not is_empty_section:
            same_name = [k for k in valid if k.split(".")[-1] == key.split(".")[-1]]
            nearest = same_name or difflib.get_close_matches(key, valid, n=1, cutoff=0.0)
            raise UserError(f"{source}: there is no key {key!r}; the nearest is {nearest[0]!r}")
