"""The folder of a run: claimed by one run at a time, and what tells where its results came from."""

import json
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hiera_video.config import (
    MAY_CHANGE,
    MAY_CHANGE_BEFORE_TEST,
    Config,
    changed_keys,
    changes,
    to_yaml,
)
from hiera_video.stages.inputs import Input
from hiera_video.system.devices import device_name
from hiera_video.system.distributed import World
from hiera_video.system.errors import UserError
from hiera_video.system.files import write_json, written_whole
from hiera_video.system.lock import FolderLock
from hiera_video.system.log import RunLog

PACKAGES = (
    "torch",
    "torchvision",
    "pytorchvideo",
    "decord",
    "av",
    "omegaconf",
    "safetensors",
    "numpy",
)
CODE = Path(__file__).resolve().parents[1]  # the package
Inputs = Mapping[str, Input]  # by their keys in the config


def open_run_folder(
    config: Config, world: World, inputs: Inputs, *, folder: Path | None = None
) -> RunLog:
    """Makes and locks the folder, or takes up an earlier run of the same config and lists.

    folder: default `config.output`. Raises UserError if the config or a list has changed.
    """
    folder = folder or Path(config.output)
    locks = []
    notes = []

    def claim() -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FolderLock(folder)
            locks.append(lock)
            if lock.missing:
                notes.append(
                    f"WARNING: the file system of {folder} does not lock files ({lock.missing}): "
                    "nothing keeps a second run out of it"
                )
            notes.extend(claim_folder(folder, config))
            card = run_card(config, world, inputs)
            card["lists"] = earlier_lists(folder, card["lists"]) | card["lists"]
            write_json(folder / "run.json", card)
        except OSError as e:
            raise UserError(f"output: cannot make the folder {folder}: {e.strerror}") from e

    world.on_main(claim)
    log = RunLog(folder if world.is_main else None, lock=locks[0] if locks else None)
    log.say(f"run folder {folder}, {world.size} rank(s) on {world.device.type}")
    for note in notes:
        log.say(note)
    return log


def claim_folder(folder: Path, config: Config) -> list[str]:
    """Writes config.yaml. Returns a line for each key that has changed and may.

    Raises UserError if others have changed.
    """
    stored = folder / "config.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    notes = []
    if stored.exists():
        may_change = list(MAY_CHANGE)
        if not (folder / "test").exists():
            may_change += MAY_CHANGE_BEFORE_TEST
        changed = changed_keys(config, stored.read_text(), may_change=may_change)
        if changed:
            raise UserError(
                f"{folder} holds a run of another config; these keys differ: {', '.join(changed)}; "
                "set output to a new folder, or use the config of that run"
            )
        for key, (before, now) in changes(config, stored.read_text()).items():
            notes.append(f"config: {key} was {before}, is {now}")
    with written_whole(stored, shared=True) as temporary:
        temporary.write_text(to_yaml(config))
    return notes


def earlier_lists(folder: Path, lists: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of the folder's run.json. Raises UserError if one of `lists` has other rows now."""
    try:
        before = json.loads((folder / "run.json").read_text())["lists"]
    except (OSError, ValueError):
        return {}
    for key, now in lists.items():
        then = before.get(key, now)
        if then["sha256"] != now["sha256"]:
            raise UserError(
                f"{key}: {now['source']} has changed since {folder} began "
                f"({then['videos']} rows then, {now['videos']} now); "
                "put it back, or set output to a new folder"
            )
    return before


def run_card(config: Config, world: World, inputs: Inputs) -> dict[str, Any]:
    """Where a result came from."""
    versions = {package: _version(package) for package in ("hiera_video", *PACKAGES)}
    hashes = {}
    for key, given in inputs.items():
        videos = given.videos
        listed = {"source": videos.source, "videos": len(videos), "sha256": videos.sha256()}
        hashes[key] = listed
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "code": str(CODE.parent),
        "git": _git_state(),
        "packages": versions,
        "python": sys.version.split()[0],
        "lists": hashes,
        "seed": config.seed,
        "world_size": world.size,
        "device": world.device.type,
        "device_name": device_name(world.device),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_state() -> dict[str, Any] | None:
    """Commit of the code, and whether it was changed since; None outside a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(CODE), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return {"commit": commit, "changed_files": git("status", "--porcelain").splitlines()}
    except (OSError, subprocess.CalledProcessError):
        return None
