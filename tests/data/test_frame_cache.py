"""Frames decoded once: the same samples, from fewer decodes, whatever becomes of the folder."""

import os

import numpy as np
import pytest
import torch

from hiera_video.data.dataset import ClipDataset, Key
from hiera_video.data.decode.frame_cache import FrameCache
from hiera_video.data.decode.process import DecodeFailure, DecodeProcess
from hiera_video.data.decode.source import VideoSource
from hiera_video.data.lists import read_videos
from hiera_video.data.sampling import ClipShape, RandomClip
from hiera_video.data.transforms import EvalCrops, TrainCrop


def samples(shapes, cache, rows=range(6)):
    data = ClipDataset(
        read_videos("train.csv", root=shapes),
        sample=RandomClip(ClipShape(8, 2, 30)),
        transform=TrainCrop(size=32, flip=0.5),
        source=VideoSource(cache=cache),
        repeats=2,
        seed=1,
    )
    found = [data[Key(epoch, row)]["clip"] for epoch in range(2) for row in rows]
    data.source.close()
    return torch.stack(found)


@pytest.fixture
def opened(monkeypatch):
    """Paths that a decoding process was asked to open."""
    paths = []
    really = DecodeProcess.open
    monkeypatch.setattr(DecodeProcess, "open", lambda s, p, d: paths.append(p) or really(s, p, d))
    return paths


def test_the_same_samples_from_one_decode_a_video(shapes, tmp_path, opened):
    plain = samples(shapes, None)
    opened.clear()
    assert torch.equal(samples(shapes, FrameCache(tmp_path, limit_gib=1)), plain)
    assert len(opened) == 6
    # Another process, or a later run.
    assert torch.equal(samples(shapes, FrameCache(tmp_path, limit_gib=1)), plain)
    assert len(opened) == 6


def test_a_video_that_has_changed_is_decoded_again(shapes, tmp_path, opened):
    samples(shapes, FrameCache(tmp_path, limit_gib=1), rows=[0])
    path = opened[0]
    stat = os.stat(path)
    os.utime(path, (stat.st_atime, stat.st_mtime + 5))
    samples(shapes, FrameCache(tmp_path, limit_gib=1), rows=[0])
    assert opened == [path, path]


def test_what_is_wrong_with_the_folder_is_of_no_matter(shapes, tmp_path, opened):
    plain = samples(shapes, None, rows=[0])
    samples(shapes, FrameCache(tmp_path, limit_gib=1), rows=[0])
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(samples(shapes, FrameCache(tmp_path, limit_gib=1), rows=[0]), plain)
    (tmp_path / "file").touch()
    below = FrameCache(tmp_path / "file" / "below", limit_gib=1)
    assert torch.equal(samples(shapes, below, rows=[0]), plain)


def test_it_grows_no_larger_than_it_may(shapes, tmp_path):
    one = 28 * 64 * 96 * 3 / 2**30  # GiB of a video's frames
    samples(shapes, FrameCache(tmp_path, limit_gib=2.5 * one))
    assert len(list(tmp_path.iterdir())) == 2
    samples(shapes, FrameCache(tmp_path, limit_gib=2.5 * one))
    assert len(list(tmp_path.iterdir())) == 2


def test_squashed_frames_lose_nothing():
    frames = torch.zeros(2, 3, 64, 96, dtype=torch.uint8)
    frames[..., :8] = 255  # the left edge
    frames[..., -8:] = 255
    cropped = EvalCrops(32, 32, 1)(frames).clips
    squashed = EvalCrops(32, 32, 1, squash=True)(frames).clips
    assert squashed.shape == cropped.shape == (1, 3, 2, 32, 32)
    assert (
        not cropped.any() and (squashed[..., 0] == 255).all() and (squashed[..., -1] == 255).all()
    )
    whole = TrainCrop(size=32, scale=(1, 1), aspect=(1, 1), squash=True)
    assert torch.equal(whole(frames, np.random.default_rng(0)).clips, squashed)


def test_a_decoder_that_dies_while_the_cache_is_filled_harms_no_sample(
    shapes, tmp_path, monkeypatch
):
    """A whole video takes longer than a clip of it: the cache gives up, the sample is read."""
    plain = samples(shapes, None, rows=[0])
    really = DecodeProcess.frames

    def slow(self, indices):
        if len(indices) == 28:
            self._kill()
            raise DecodeFailure("timeout", "decoding took more than 1 s")
        return really(self, indices)

    monkeypatch.setattr(DecodeProcess, "frames", slow)
    cache = FrameCache(tmp_path, limit_gib=1)
    assert torch.equal(samples(shapes, cache, rows=[0]), plain)
    assert not list(tmp_path.iterdir())


def test_the_limit_holds_for_all_processes_together(shapes, tmp_path):
    one = 28 * 64 * 96 * 3 / 2**30
    for rows in ([0], [1], [2]):
        samples(shapes, FrameCache(tmp_path, limit_gib=1.5 * one), rows=rows)
    assert len(list(tmp_path.iterdir())) == 1
