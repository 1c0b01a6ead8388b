"""What a run would do and cost, without doing it: lists, decoders, memory, time.

Steps are timed with one video and with some; memory and time of the rank's whole batch follow as a
straight line through both.
"""

import os
import platform
import tempfile
import time
from dataclasses import replace
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from hiera_video import build, build_training
from hiera_video.config import Config
from hiera_video.config.sections import DECODERS
from hiera_video.data.dataset import Key, collate
from hiera_video.data.decode.readers import missing_decoder
from hiera_video.data.lists import VideoList
from hiera_video.data.loading import to_device
from hiera_video.models.baselines import PYTORCHVIDEO_MODELS
from hiera_video.models.mvit_arguments import MVITV2, MViTTrunkArgs
from hiera_video.stages.inputs import read_inputs
from hiera_video.stages.train import TrainStage
from hiera_video.system.devices import device_name, exact_float32
from hiera_video.system.distributed import World, join_world
from hiera_video.system.errors import UserError
from hiera_video.system.files import exists
from hiera_video.system.memory import (
    free_gib,
    gpu_limit,
    peak_gib,
    reset_peak,
    shared_free_gib,
)
from hiera_video.training.loop import accumulate_gradients

LOOKED_UP = 200  # files of a list that are looked for
SLOW_S = 1.0  # a step of one video above which two are enough
DECODED = 8  # videos that are decoded


class StepCost(NamedTuple):
    """Of a forward and backward pass on one rank."""

    seconds: float
    gib: float  # above what was held before


def dry_run(config: Config, *, ranks: int) -> None:
    """Prints the report. ranks: how many the run will have. Raises UserError."""
    batch_size = config.train.batch_size
    if batch_size % ranks:
        raise UserError(f"train.batch_size={batch_size} does not divide by {ranks} ranks")
    with (
        tempfile.TemporaryDirectory() as folder,
        gpu_limit(),
        join_world(config.device) as world,
        exact_float32(world.device),
    ):
        config = replace(config, output=folder)  # nothing is left behind
        say("machine", f"{platform.node()}, {os.cpu_count()} CPUs, {describe_device(world)}")
        say("versions", ", ".join(f"{p} {version(p)}" for p in ("torch", "torchvision", "av")))
        say("decoders", ", ".join(f"{d}: {missing_decoder(d) or 'here'}" for d in DECODERS[1:]))
        describe_model(config)
        inputs = read_inputs(config)
        if "train" in config.stages:
            stage = TrainStage(config, world, inputs)
            describe_training(stage, ranks)
            estimate_cost(stage, ranks)
        for key in ("data.test", "features.videos"):
            if key in inputs:
                say(key, describe_list(inputs[key].videos))


def describe_model(config: Config) -> None:
    """The model is tried before lists are looked for; of MViTv2, what its step sets."""
    if config.model.name in PYTORCHVIDEO_MODELS:
        return
    with torch.device("meta"):
        spec = build.model_spec(config, config.model.num_classes)
        model: Any = build.build_model(spec, seed=config.seed)
    if isinstance(model.args, MViTTrunkArgs):
        given = {name: getattr(model.args, name) for name in (*MVITV2, "kv_stride")}
        values = ", ".join(f"{name} {value}" for name, value in given.items())
        say("step", f"{model.args.step}: {values}")


def describe_training(stage: TrainStage, ranks: int) -> None:
    config = stage.config
    plan = stage.plan
    say("data.train", describe_list(stage.videos))
    parameters = sum(p.numel() for p in stage.model.parameters()) / 1e6
    weights = config.init.weights
    say("model", f"{config.model.name}, {parameters:.1f}M parameters; init.weights={weights}")
    if stage.init_report is not None:
        say("weights", str(stage.init_report))
    videos = config.train.batch_size
    clips = config.train.repeats
    say("plan", f"{plan.steps} steps of {videos} videos x {clips} clips over {ranks} rank(s)")
    epoch = f"{plan.steps_per_epoch:.4g} steps an effective epoch"
    say("", f"{epoch}, a checkpoint every {plan.save_steps} steps")
    say("rate", stage.describe_learning_rate())


def estimate_cost(stage: TrainStage, ranks: int) -> None:
    """Decodes some videos and takes some steps."""
    config = stage.config
    sample_s, bad = time_decoding(stage)
    for path, reason in bad:
        say("bad video", f"{path}: {reason}")
    workers = max(config.data.num_workers, 1)
    speed = workers / sample_s
    ms = sample_s * 1e3
    say("data", f"{ms:.0f} ms a video, so {speed:.1f} videos/s with {workers} worker(s)")

    share = config.train.batch_size // ranks
    free = free_gib(stage.world.device)  # before the allocator takes its part
    step = step_cost(stage, share)
    held = sum(t.numel() * t.element_size() for t in stage.task.state_dict().values()) / 2**30
    trained = sum(p.numel() * p.element_size() for p in stage.model.parameters() if p.requires_grad)
    # Weights, the gradients and two moments of those that are trained, an average.
    rest = held + 3 * trained / 2**30 + (held if config.train.ema else 0)
    total_gib = step.gib + rest
    at_once = -(-share // config.train.accumulate)
    place = "the GPU" if stage.world.device.type == "cuda" else "the machine"
    say(
        "memory",
        f"about {total_gib:.1f} GiB a rank: {step.gib:.1f} for {at_once} videos at once, "
        f"{rest:.1f} for the rest",
    )
    compare(total_gib, free, place, "raise train.accumulate")
    describe_loader(stage, ranks)
    data_s = share * sample_s / workers
    limit = "the model"
    if step.seconds < data_s:
        limit = "data: raise data.num_workers or re-encode the videos"
    say(
        "step",
        f"model {step.seconds:.3g} s, data {data_s:.3g} s for {share} videos a rank; "
        f"the limit is {limit}",
    )
    left = tqdm.format_interval(stage.plan.steps * max(step.seconds, data_s))
    say(
        "whole run",
        f"{stage.plan.steps} steps, about {left} (h:mm:ss), evaluation and start not counted",
    )


def describe_loader(stage: TrainStage, ranks: int) -> None:
    """What the workers hold ready lies in shared memory, of which a container may have little."""
    prefetch = build_training.training_prefetch(stage.config, ranks)
    ready_gib = prefetch.bytes / 2**30
    here = min(ranks, max(torch.cuda.device_count(), 1))
    say("loader", f"{prefetch.num_workers} worker(s) a rank hold up to {ready_gib:.2f} GiB ready")
    what = f"shared memory, for {here} rank(s),"
    compare(here * ready_gib, shared_free_gib(), what, "lower data.prefetch_gib")


def compare(needed: float, free: float | None, what: str, advice: str) -> None:
    """GiB that are needed, and those that there are."""
    if free is None:
        return
    text = f"{what} has {free:.1f} GiB free"
    if needed > free:
        text = f"WARNING: {text}, less than {needed:.1f}: {advice}"
    say("", text)


def say(what: str, text: str) -> None:
    first, *rest = text.splitlines()
    print(f"{what:14}{first}")
    for line in rest:
        print(f"{'':14}{line.strip()}")


def describe_device(world: World) -> str:
    if world.device.type == "cpu":
        return f"no GPU used, torch on {torch.get_num_threads()} threads"
    memory = torch.cuda.get_device_properties(world.device).total_memory / 2**30
    return f"{device_name(world.device)} with {memory:.0f} GiB"


def describe_list(videos: VideoList) -> str:
    looked = range(0, len(videos), max(len(videos) // LOOKED_UP, 1))
    there = sum(exists(videos.path(i)) for i in looked)
    labels = videos.labels[videos.labels >= 0]
    seen = "no labels"
    if len(labels):
        kinds = len(set(labels.tolist()))
        seen = f"labels {labels.min()} to {labels.max()}, {kinds} of them"
    return (
        f"{videos.source}: {len(videos)} videos, {seen}; "
        f"{there} of {len(looked)} files looked for are there"
    )


def time_decoding(stage: TrainStage) -> tuple[float, list[tuple[str, str]]]:
    """(seconds a video, [(path, reason)] of those that cannot be read), without workers."""
    config = replace(
        stage.config,
        data=replace(stage.config.data, num_workers=0),
        train=replace(stage.config.train, batch_size=1),
    )
    batches = build_training.train_batches(
        config, stage.videos, steps=DECODED + 1, first_step=0, world=stage.world
    )
    bad = []
    began = 0.0
    for k, batch in enumerate(batches):
        bad += [(stage.videos.written(row), reason) for row, reason in batch["bad"]]
        if batch["unavailable"]:
            bad.append(("storage", batch["unavailable"]))
        if k == 0:  # starts the decoding process
            began = time.perf_counter()
    return (time.perf_counter() - began) / DECODED, bad


def step_cost(stage: TrainStage, share: int) -> StepCost:
    """Of `share` videos, from steps of one and of some."""
    one = measure_step(stage, 1)
    several = min(share, 2 if one.seconds > SLOW_S else 8)
    if several == 1:
        return one
    many = measure_step(stage, several)
    video_s = (many.seconds - one.seconds) / (several - 1)
    video_gib = (many.gib - one.gib) / (several - 1)
    at_once = share / stage.config.train.accumulate
    return StepCost(
        max(one.seconds + (share - 1) * video_s, one.seconds),
        max(one.gib + (at_once - 1) * video_gib, one.gib),
    )


def measure_step(stage: TrainStage, videos: int) -> StepCost:
    """Raises UserError where no video can be read."""
    world = stage.world
    dataset = build_training.training_set(stage.config, stage.videos)
    batch = collate([dataset[Key(0, k % len(stage.videos))] for k in range(videos)])
    dataset.source.close()
    if batch["clip"] is None:
        raise UserError(f"data.train: none of the first videos can be read: {batch['bad'][-1][1]}")
    task = stage.task.to(world.device).train()
    train = replace(stage.config.train, accumulate=1)
    seconds = []
    gib = 0.0
    for k in range(4):  # the first one warms up
        before = reset_peak(world.device)
        began = time.perf_counter()
        accumulate_gradients(task, to_device(batch, world.device), train, world)
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)
        seconds.append(time.perf_counter() - began)
        if k == 0:
            gib = peak_gib(world.device) - before
        task.zero_grad(set_to_none=True)
    return StepCost(min(seconds[1:]), gib)
