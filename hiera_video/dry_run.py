"""What a run would do and cost, without doing it: lists, decoders, one batch through the model, memory, time.

Steps are timed with one video and with some; memory and time of the rank's whole batch follow as a straight line through both.
"""

import os
import platform
import tempfile
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch
from tqdm import tqdm

from hiera_video import build
from hiera_video.config import Config
from hiera_video.data.annotations import VideoList
from hiera_video.data.dataset import Key, collate
from hiera_video.data.video import DECODERS, missing_decoder
from hiera_video.distributed import World, join_world
from hiera_video.errors import UserError
from hiera_video.files import exists
from hiera_video.train import accumulate_gradients, to_device
from hiera_video.train_stage import TrainStage

LOOKED_UP = 200  # files of a list that are looked for
SLOW_S = 1.0  # a step of one video above which two are enough
DECODED = 8  # videos that are decoded


def dry_run(config: Config, *, ranks: int) -> None:
    """Prints the report. ranks: how many the run will have. Raises UserError."""
    if config.train.batch_size % ranks:
        raise UserError(f"train.batch_size={config.train.batch_size} does not divide by {ranks} ranks")
    with tempfile.TemporaryDirectory() as folder, join_world(config.device) as world:
        config = replace(config, output=folder)  # nothing is left behind
        say("machine", f"{platform.node()}, {os.cpu_count()} CPUs, {describe_device(world)}")
        say("versions", ", ".join(f"{p} {version(p)}" for p in ("torch", "torchvision", "av")))
        say("decoders", ", ".join(f"{d}: {missing_decoder(d) or 'here'}" for d in DECODERS[1:]))
        if "train" in config.stages:
            dry_train(config, world, ranks)
        for key in ("data.test", "features.videos"):
            if key.removeprefix("data.").removesuffix(".videos") in config.stages:
                say(key, describe_list(build.build_videos(config, key)))


def dry_train(config: Config, world: World, ranks: int) -> None:
    stage = TrainStage(config, world)
    plan, share = stage.plan, config.train.batch_size // ranks
    say("data.train", describe_list(stage.videos))
    parameters = sum(p.numel() for p in stage.model.parameters()) / 1e6
    say("model", f"{config.model.name}, {parameters:.1f}M parameters; init.weights={config.init.weights}")
    if stage.init_report is not None:
        say("weights", str(stage.init_report))
    say(
        "plan",
        f"{plan.steps} steps of {config.train.batch_size} videos x {config.train.repeats} clips over {ranks} rank(s)",
    )
    say("", f"{plan.steps_per_epoch:.4g} steps an effective epoch, a checkpoint every {plan.save_steps} steps")
    say("rate", stage.describe_learning_rate())

    sample_s, bad = time_decoding(config, stage, world)
    for path, reason in bad:
        say("bad video", f"{path}: {reason}")
    workers = max(config.data.num_workers, 1)
    say("data", f"{sample_s * 1e3:.0f} ms a video, so {1 / sample_s * workers:.1f} videos/s with {workers} worker(s)")

    one = measure_step(config, stage, world, 1)
    several = min(share, 2 if one[0] > SLOW_S else 8)
    many = measure_step(config, stage, world, several) if several > 1 else one
    a_video = [(m - o) / max(several - 1, 1) for o, m in zip(one, many)]  # seconds, GiB
    step_s = max(one[0] + (share - 1) * a_video[0], one[0])
    gib = max(one[1] + (share / config.train.accumulate - 1) * a_video[1], one[1])
    held = sum(t.numel() * t.element_size() for t in stage.task.state_dict().values()) / 2**30
    say("memory", f"about {gib + 4 * held:.1f} GiB a rank: {gib:.1f} for {share} videos, {4 * held:.1f} for the rest")
    data_s = share * sample_s / workers
    slower = "the model" if step_s >= data_s else "data: raise data.num_workers or re-encode the videos"
    say("step", f"model {step_s:.3g} s, data {data_s:.3g} s for {share} videos a rank; the limit is {slower}")
    total = plan.steps * max(step_s, data_s)
    say(
        "whole run",
        f"{plan.steps} steps, about {tqdm.format_interval(total)} (h:mm:ss), evaluation and start not counted",
    )


def say(what: str, text: str) -> None:
    first, *rest = text.splitlines()
    print(f"{what:14}{first}")
    for line in rest:
        print(f"{'':14}{line.strip()}")


def describe_device(world: World) -> str:
    if world.device.type == "cpu":
        return f"no GPU used, torch on {torch.get_num_threads()} threads"
    memory = torch.cuda.get_device_properties(world.device).total_memory / 2**30
    return f"{torch.cuda.get_device_name(world.device)} with {memory:.0f} GiB"


def describe_list(videos: VideoList) -> str:
    looked = range(0, len(videos), max(len(videos) // LOOKED_UP, 1))
    there = sum(exists(videos.path(i)) for i in looked)
    labels = videos.labels[videos.labels >= 0]
    seen = (
        f"labels {labels.min()} to {labels.max()}, {len(set(labels.tolist()))} of them" if len(labels) else "no labels"
    )
    return f"{videos.source}: {len(videos)} videos, {seen}; {there} of {len(looked)} files looked for are there"


def time_decoding(config: Config, stage: TrainStage, world: World) -> tuple[float, list[tuple[str, str]]]:
    """(seconds a video, [(path, reason)] of those that could not be read), one after the other in this process."""
    loader = build.train_batches(
        replace(config, data=replace(config.data, num_workers=0), train=replace(config.train, batch_size=1)),
        stage.videos,
        steps=DECODED + 1,
        first_step=0,
        world=world,
        num_classes=stage.num_classes,
    )
    bad, began, count = [], 0.0, 0
    for k, batch in enumerate(loader):
        bad += [(stage.videos.written(row), reason) for row, reason in batch["bad"]]
        if k == 0:  # starts the decoding process
            began = time.perf_counter()
        else:
            count += 1
    return (time.perf_counter() - began) / count, bad


def measure_step(config: Config, stage: TrainStage, world: World, videos: int) -> tuple[float, float]:
    """(seconds, GiB above what was held before) of a forward and backward pass over a batch of `videos`."""
    dataset = build.training_set(config, stage.videos)
    samples = [dataset[Key(0, k % len(stage.videos))] for k in range(videos)]
    batch = collate(samples)
    dataset.decoding.close()
    if batch["clip"] is None:
        raise UserError(f"data.train: none of the first videos can be read: {batch['bad'][-1][1]}")
    task, train = stage.task.to(world.device).train(), replace(config.train, accumulate=1)
    seconds = []
    for k in range(4):  # the first one warms up
        before = reset_peak(world)
        began = time.perf_counter()
        accumulate_gradients(task, to_device(batch, world.device), train, world)
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)
        seconds.append(time.perf_counter() - began)
        if k == 0:
            memory = peak_gib(world) - before
        task.zero_grad(set_to_none=True)
    return min(seconds[1:]), memory


def reset_peak(world: World) -> float:
    """Forgets the highest use of memory so far; returns what is in use now, GiB."""
    if world.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(world.device)
        return torch.cuda.memory_allocated(world.device) / 2**30
    if os.access("/proc/self/clear_refs", os.W_OK):
        Path("/proc/self/clear_refs").write_text("5")
    return _resident("VmRSS")


def peak_gib(world: World) -> float:
    return torch.cuda.max_memory_allocated(world.device) / 2**30 if world.device.type == "cuda" else _resident("VmHWM")


def _resident(field: str) -> float:
    """Of this process, GiB; 0 where the system does not tell."""
    try:
        with open("/proc/self/status") as f:
            return next(int(line.split()[1]) for line in f if line.startswith(f"{field}:")) / 2**20
    except (OSError, StopIteration):
        return 0.0
