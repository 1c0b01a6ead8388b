"""A run: the stages of a config, in order, in one folder that tells what was done.

output/  config.yaml run.json log.txt metrics.jsonl tb/ checkpoints/ test/ features/ report.html
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from hiera_video.config import Config
from hiera_video.data.decode.readers import missing_decoder
from hiera_video.stages.features import WHOLE_LIST, FeaturesStage, Shard
from hiera_video.stages.folder import Lists, claim_folder, open_run_folder
from hiera_video.stages.report import write_report
from hiera_video.stages.test import TestStage
from hiera_video.stages.train import TrainStage
from hiera_video.system.distributed import World, join_world
from hiera_video.system.errors import RunStopped
from hiera_video.system.log import RunLog


class Stage(Protocol):
    """Reads its lists when it is made; does its work, unless that is done already, in `run`."""

    lists: Lists

    def run(self, log: RunLog) -> None: ...


STAGES: dict[str, Callable[[Config, World], Stage]] = {
    "train": TrainStage,
    "test": TestStage,
    "features": lambda config, world: FeaturesStage(
        config, world, Path(config.output) / "features"
    ),
}


def run(config: Config) -> None:
    """Runs every stage that is not finished. Raises UserError, RunStopped."""
    with join_world(config.device, wait_s=config.join_timeout_s) as world:
        # All lists are read first: wrong input ends here, with nothing written.
        stages = [STAGES[name](config, world) for name in config.stages]
        lists: Lists = {}
        for stage in stages:
            lists |= stage.lists
        log = open_run_folder(config, world, lists)
        try:
            missing = missing_decoder(config.data.decoder)
            if missing:
                log.say(f"{missing}: every file is decoded with PyAV")
            for stage in stages:
                stage.run(log)
                world.barrier()
            output = Path(config.output)
            world.on_main(lambda: log.say(f"report: {write_report(config, output)}"))
        except RunStopped as e:
            log.say(f"stopped: {e}")
            raise
        finally:
            log.close()


def extract_features(config: Config, *, shard: Shard = WHOLE_LIST) -> None:
    """Features alone, into `config.output` itself. Raises UserError, RunStopped."""
    with join_world(config.device, wait_s=config.join_timeout_s) as world:
        output = Path(config.output)
        stage = FeaturesStage(config, world, output, shard=shard)
        folder = output if shard == WHOLE_LIST else shard.folder(output)
        if folder != output:  # jobs that share a list must make the same of it
            world.on_main(lambda: claim_folder(output, config))
        log = open_run_folder(config, world, stage.lists, folder=folder)
        try:
            stage.run(log)
            world.barrier()
        finally:
            log.close()
