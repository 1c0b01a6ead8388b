"""A run: the stages of a config, in order, in one folder that tells what was done and lets it go on.

output/config.yaml run.json log.txt metrics.jsonl tb/ checkpoints/ test/ features/ report.html
"""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol

from hiera_video.config import Config, changed_keys, to_yaml
from hiera_video.data.annotations import VideoList
from hiera_video.data.video import missing_decoder
from hiera_video.distributed import World, join_world
from hiera_video.errors import RunStopped, UserError
from hiera_video.eval_stages import FeaturesStage, TestStage, shard_folder
from hiera_video.files import written_whole
from hiera_video.lock import FolderLock
from hiera_video.log import RunLog
from hiera_video.report import write_report
from hiera_video.scores import write_json
from hiera_video.train_stage import TrainStage

PACKAGES = ("torch", "torchvision", "pytorchvideo", "decord", "av", "omegaconf", "safetensors", "numpy")


class Stage(Protocol):
    """A stage reads its lists when it is made, and does its work, unless that is done already, in `run`."""

    lists: dict[str, VideoList]  # by key

    def run(self, log: RunLog) -> None: ...


def run(config: Config) -> None:
    """Runs every stage that is not finished. Raises UserError, RunStopped."""
    with join_world(config.device, wait_s=config.join_timeout_s) as world:
        stages: dict[str, Callable[[], Stage]] = {
            "train": lambda: TrainStage(config, world),
            "test": lambda: TestStage(config, world),
            "features": lambda: FeaturesStage(config, world, Path(config.output) / "features"),
        }
        prepared = [stages[name]() for name in config.stages]  # reads lists: wrong input ends here, nothing written
        log = open_run_folder(config, world, {key: videos for s in prepared for key, videos in s.lists.items()})
        try:
            if missing_decoder(config.data.decoder):
                log.say(f"{missing_decoder(config.data.decoder)}: every file is decoded with PyAV")
            for stage in prepared:
                stage.run(log)
                world.barrier()
            world.on_main(lambda: log.say(f"report: {write_report(config, Path(config.output))}"))
        except RunStopped as e:
            log.say(f"stopped: {e}")
            raise
        finally:
            log.close()


def extract_features(config: Config, *, shard: tuple[int, int] = (0, 1)) -> None:
    """Features alone, into `config.output` itself; with shard=(k, n), of every n-th video from the k-th on.

    Raises UserError, RunStopped.
    """
    with join_world(config.device, wait_s=config.join_timeout_s) as world:
        output = Path(config.output)
        stage = FeaturesStage(config, world, output, shard=shard)
        folder = output if shard == (0, 1) else shard_folder(output, *shard)
        if folder != output:  # jobs that share a list must make the same of it
            world.on_main(lambda: claim_folder(output, config))
        log = open_run_folder(config, world, stage.lists, folder=folder)
        try:
            stage.run(log)
            world.barrier()
        finally:
            log.close()


def open_run_folder(config: Config, world: World, lists: dict[str, VideoList], *, folder: Path | None = None) -> RunLog:
    """Makes and locks the folder, or takes up an earlier run of the same config and lists. Raises UserError if they changed."""
    folder, held = folder or Path(config.output), []

    def claim() -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.append(FolderLock(folder))
            claim_folder(folder, config)
            card = run_card(config, world, lists)
            card["lists"] = earlier_lists(folder, card["lists"]) | card["lists"]
            write_json(folder / "run.json", card)
        except OSError as e:
            raise UserError(f"output: cannot make the folder {folder}: {e.strerror}") from e

    world.on_main(claim)
    log = RunLog(folder if world.is_main else None, lock=held[0] if held else None)
    log.say(f"run folder {folder}, {world.size} rank(s) on {world.device.type}")
    return log


def claim_folder(folder: Path, config: Config) -> None:
    """Writes config.yaml. Raises UserError if there is one that differs."""
    stored = folder / "config.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    if stored.exists():
        changed = changed_keys(config, stored.read_text())
        if changed:
            raise UserError(
                f"{folder} holds a run of another config; these keys differ: {', '.join(changed)}; "
                "set output to a new folder, or use the config of that run"
            )
    with written_whole(stored, shared=True) as temporary:
        temporary.write_text(to_yaml(config))


def earlier_lists(folder: Path, lists: dict[str, dict]) -> dict[str, dict]:
    """Of the folder's run.json. Raises UserError if one of `lists` has other rows than it had then."""
    try:
        before = json.loads((folder / "run.json").read_text())["lists"]
    except (OSError, ValueError):
        return {}
    for key, now in lists.items():
        then = before.get(key, now)
        if then["sha256"] != now["sha256"]:
            raise UserError(
                f"{key}: {now['source']} has changed since {folder} began ({then['videos']} rows then, {now['videos']} now); "
                "put it back, or set output to a new folder"
            )
    return before


def run_card(config: Config, world: World, lists: dict[str, VideoList]) -> dict:
    """Where a result came from."""
    versions = {}
    for package in ("hiera_video", *PACKAGES):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    hashes = {key: {"source": v.source, "videos": len(v), "sha256": v.sha256()} for key, v in lists.items()}
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "code": str(Path(__file__).resolve().parents[1]),
        "git": _git_state(),
        "packages": versions,
        "python": sys.version.split()[0],
        "lists": hashes,
        "seed": config.seed,
        "world_size": world.size,
        "device": world.device.type,
    }


def _git_state() -> dict | None:
    """Commit of the code, and whether it was changed since; None outside a checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed_files": git("status", "--porcelain").splitlines()}
    except (OSError, subprocess.CalledProcessError):
        return None
