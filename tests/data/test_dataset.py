"""Samples, substitutes and order: what makes runs repeatable and evaluation honest."""

import numpy as np
import pytest
import torch

from hiera_video.data.dataset import (
    ClipDataset,
    Key,
    collate,
)
from hiera_video.data.decode.process import DecodeProcess
from hiera_video.data.decode.source import VideoSource
from hiera_video.data.lists import read_videos
from hiera_video.data.loading import (
    Parts,
    Prefetch,
    Shuffled,
    StepBatches,
    TrainingOrder,
    make_loader,
    test_batches,
)
from hiera_video.data.sampling import random_clip, uniform_clips
from hiera_video.data.transforms import EvalCrops, TrainCrop

rows_of = test_batches  # pytest would take the imported name for a test
del test_batches


def draw(count, fps, rng):
    return random_clip(count, fps, 8, 2, rng=rng)


def spread(count, fps, rng):
    return uniform_clips(count, fps, 8, 2, num_clips=5)


def training_set(root, repeats=1, source="train.csv", same_frames=False):
    transform = TrainCrop(size=64, flip=0.5, magnitude=7.0, erase=0.5)
    videos = read_videos(source, root=root)
    return ClipDataset(
        videos,
        sample=draw,
        transform=transform,
        source=VideoSource(),
        repeats=repeats,
        same_frames=same_frames,
        seed=3,
        substitute=True,
    )


def held_out_set(videos, crops):
    transform = EvalCrops(64, 64, crops)
    return ClipDataset(videos, sample=spread, transform=transform, source=VideoSource())


def batches(root, workers, world=1, rank=0, first_step=0, part=8):
    order = TrainingOrder(
        Shuffled(32, seed=3),
        batch_size=8,
        steps=9,
        first_step=first_step,
        rank=rank,
        world=world,
    )
    parts = Parts(order, part)
    dataset = training_set(root, repeats=2)
    loader = make_loader(dataset, parts, num_workers=workers, pin_memory=False)
    return list(StepBatches(loader, parts, torch.device("cpu")))


def equal(a, b):
    tensors = ("clip", "label", "index", "row", "seed", "erase")
    times = zip(a["times"], b["times"], strict=True)
    return (
        all(torch.equal(a[k], b[k]) for k in tensors)
        and all(np.array_equal(x, y) for x, y in times)
        and a["requested"] == b["requested"]
    )


def test_what_workers_hold_ready_is_bounded_by_bytes():
    """Batches of a masked autoencoder of Kinetics on 8 ranks, of small clips, and of huge ones."""
    clip = 3 * 16 * 224 * 224
    large = Prefetch.make(64, 4 * clip, num_workers=8, limit_gib=1)
    assert large.bytes <= 2**30 < 64 * 4 * clip * 8 and large.ahead > 1
    small = Prefetch.make(64, 3 * 8 * 32 * 32, num_workers=8, limit_gib=1)
    assert small.part == 64, "a batch is one piece of work where there is room"
    huge = Prefetch.make(64, 2**31, num_workers=2, limit_gib=1)
    assert (huge.part, huge.ahead) == (1, 1)


def test_repeats_are_clips_of_their_own_or_of_the_same_frames(shapes):
    for same_frames in (False, True):
        sample = training_set(shapes, repeats=2, same_frames=same_frames)[Key(0, 4)]
        assert np.array_equal(*sample["times"]) == same_frames
        assert not torch.equal(*sample["clip"]), "their crops differ all the same"


def test_a_sample_depends_on_seed_epoch_and_index_alone(shapes):
    here = batches(shapes, 0)
    for workers, part in ((1, 8), (2, 3), (4, 1)):
        there = batches(shapes, workers, part=part)
        assert all(equal(a, b) for a, b in zip(here, there, strict=True)), (workers, part)
    assert here[0]["clip"].shape == (8, 2, 3, 8, 64, 64)
    for a, b in zip(here[5:], batches(shapes, 0, first_step=5), strict=True):
        assert equal(a, b), "a restart goes on with the same samples"
    halves = [batches(shapes, 0, world=2, rank=r) for r in range(2)]
    for whole, first, second in zip(here, *halves, strict=True):
        assert torch.equal(whole["clip"], torch.cat([first["clip"], second["clip"]])), (
            "ranks share the same batch"
        )
    epochs = [training_set(shapes)[Key(epoch, 4)]["clip"] for epoch in range(3)]
    assert not torch.equal(epochs[0], epochs[1])


def test_every_video_once_a_pass_and_none_dropped():
    order = TrainingOrder(Shuffled(13, seed=0), batch_size=4, steps=13)
    keys = [key for batch in order for key in batch]
    for epoch in range(4):
        assert sorted(k.index for k in keys if k.epoch == epoch) == list(range(13))
    shuffles = [[k.index for k in keys if k.epoch == e] for e in range(2)]
    assert shuffles[0] != shuffles[1]
    assert [order.order.key(p) for p in (40, 3, 40)] == [keys[40], keys[3], keys[40]]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_takes_every_row_once(world):
    rows = [
        k.index
        for r in range(world)
        for b in rows_of(range(7), batch_size=2, rank=r, world=world)
        for k in b
    ]
    assert sorted(rows) == list(range(7))


def test_all_views_come_from_one_decode(shapes, monkeypatch):
    """15 views of a video: one open, one read of the sorted union of their frames."""
    opened = []
    calls = []
    really_open = DecodeProcess.open
    parts = DecodeProcess.parts
    monkeypatch.setattr(
        DecodeProcess, "open", lambda self, *a: opened.append(a) or really_open(self, *a)
    )
    monkeypatch.setattr(
        DecodeProcess, "parts", lambda self, i: calls.append(list(i)) or parts(self, i)
    )
    videos = read_videos("val.csv", root=shapes)
    sample = held_out_set(videos, crops=3)[Key(0, 0)]
    assert sample["clip"].shape == (15, 3, 8, 64, 64)
    assert (
        len(opened) == len(calls) == 1 and calls[0] == sorted(set(calls[0])) and len(calls[0]) <= 24
    )
    # Clip-major: the three crops of a clip follow each other.
    monkeypatch.undo()
    one_crop = held_out_set(videos, crops=1)[Key(0, 0)]
    assert torch.equal(one_crop["clip"], sample["clip"][1::3])
    np.testing.assert_allclose(sample["times"][0], [0, 16 / 30], atol=1e-6)


@pytest.fixture
def damaged(shapes, tmp_path):
    """A list whose rows 1, 2 and 4 (the last) cannot be read."""
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video")
    good = [
        shapes / line.rsplit(" ", 1)[0]
        for line in (shapes / "val.csv").read_text().splitlines()[:2]
    ]
    lines = [f"{good[0]} 0", "empty.mp4 1", "text.mp4 2", f"{good[1]} 3", "gone.mp4 4"]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    return tmp_path


def test_training_substitutes_the_next_good_row(damaged):
    dataset = training_set(damaged, source="list.csv")
    sample = dataset[Key(0, 1)]
    assert sample["label"] == 3 and [row for row, _ in sample["bad"]] == [1, 2]
    wrapped = dataset[Key(0, 4)]
    assert (
        wrapped["label"] == 0
        and wrapped["bad"][0][0] == 4
        and "No such file" in wrapped["bad"][0][1]
    )
    assert dataset[Key(0, 3)]["bad"] == []


def test_evaluation_never_substitutes(damaged):
    videos = read_videos("list.csv", root=damaged)
    dataset = held_out_set(videos, crops=3)
    batch = collate([dataset[Key(0, i)] for i in range(5)])
    assert batch["index"].tolist() == [0, 3] and batch["label"].tolist() == [0, 3]
    assert [row for row, _ in batch["bad"]] == [1, 2, 4]
    assert collate([dataset[Key(0, 1)]])["clip"] is None


def test_shuffled_frames_are_the_same_frames(shapes):
    """The control of what order is worth: drawn by the sample's seed, in every clip anew."""
    videos = read_videos("val.csv", root=shapes)
    crop = EvalCrops(64, 64, 1)
    plain = ClipDataset(videos, sample=spread, transform=crop, source=VideoSource())
    mixed = ClipDataset(
        videos, sample=spread, transform=crop, source=VideoSource(), shuffle_frames=True
    )
    ordered = plain[Key(0, 0)]["clip"]
    shuffled = mixed[Key(0, 0)]["clip"]
    assert torch.equal(shuffled, mixed[Key(0, 0)]["clip"])
    for a, b in zip(ordered, shuffled):
        assert not torch.equal(a, b)
        frames = [frame.numpy().tobytes() for frame in a.transpose(0, 1)]
        assert sorted(frames) == sorted(f.numpy().tobytes() for f in b.transpose(0, 1))
