"""A run: the stages of a config, in order, in one folder that tells what was done.

output/  config.yaml run.json log.txt metrics.jsonl tb/ checkpoints/ test/ features/ report.html
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from hiera_video.config import Config
from hiera_video.data.decode.readers import missing_decoder
from hiera_video.stages.features import WHOLE_LIST, FeaturesStage, Shard
from hiera_video.stages.folder import claim_folder, open_run_folder
from hiera_video.stages.inputs import Input, read_inputs
from hiera_video.stages.report import write_report
from hiera_video.stages.test import TestStage
from hiera_video.stages.train import TrainStage
from hiera_video.system.devices import exact_float32, lacks_bfloat16
from hiera_video.system.distributed import World, join_world
from hiera_video.system.errors import RunStopped
from hiera_video.system.log import RunLog
from hiera_video.system.memory import gpu_limit
from hiera_video.system.signals import StopSignals
from hiera_video.system.storage import storage_limit


class Stage(Protocol):
    """Does its work, unless that is done already."""

    def run(self, log: RunLog) -> None: ...


def run(config: Config) -> None:
    """Runs every stage that is not finished. Raises UserError, RunStopped."""
    with gpu_limit(), join(config) as world, exact_float32(world.device):
        # What can be wrong is found here, with nothing written.
        inputs = read_inputs(config)
        stages = [make_stage(name, config, world, inputs) for name in config.stages]
        log = open_run_folder(config, world, inputs)
        try:
            missing = missing_decoder(config.data.decoder)
            if missing:
                log.say(f"{missing}: every file is decoded with PyAV")
            if lacks_bfloat16(world.device):
                for key, value in (("train", config.train), ("test", config.test)):
                    if value.precision == "bfloat16":
                        log.say(
                            f"WARNING: {key}.precision=bfloat16, which this device only emulates: "
                            "float32 may be faster"
                        )
            with storage_limit():
                with StopSignals(), gpu_limit():
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


def join(config: Config) -> AbstractContextManager[World]:
    return join_world(
        config.device, wait_s=config.join_timeout_s, step_wait_s=config.step_timeout_s
    )


def make_stage(name: str, config: Config, world: World, inputs: Mapping[str, Input]) -> Stage:
    """Raises UserError."""
    if name == "train":
        return TrainStage(config, world, inputs)
    if name == "test":
        return TestStage(config, world, inputs["data.test"])
    folder = Path(config.output) / "features"
    return FeaturesStage(config, world, inputs["features.videos"], folder)


def extract_features(config: Config, *, shard: Shard = WHOLE_LIST) -> None:
    """Features alone, into `config.output` itself. Raises UserError, RunStopped."""
    with gpu_limit(), join(config) as world, storage_limit():
        output = Path(config.output)
        inputs = read_inputs(config)
        stage = FeaturesStage(config, world, inputs["features.videos"], output, shard=shard)
        folder = output if shard == WHOLE_LIST else shard.folder(output)
        notes = []
        if folder != output:  # jobs that share a list must make the same of it
            notes = world.on_main(lambda: claim_folder(output, config))
        log = open_run_folder(config, world, inputs, folder=folder)
        for note in notes:
            log.say(note)
        try:
            with StopSignals():
                stage.run(log)
            world.barrier()
        finally:
            log.close()
