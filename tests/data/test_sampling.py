"""Frame indices against the published protocol, and against PyTorchVideo's samplers where they mean
the same.
"""

import numpy as np
import pytest
from golden_weights import load

from hiera_video.data.sampling import (
    pytorchvideo_clips,
    random_clip,
    segment_clips,
    sliding_windows,
    uniform_clips,
)
from hiera_video.data.transforms import crop_boxes

VIEWS = load("views.json")


def test_uniform_clips_are_the_published_ones():
    for case in VIEWS["temporal"]:
        arguments = {k: case[k] for k in ("num_frames", "sampling_rate", "num_clips", "target_fps")}
        clips = uniform_clips(case["num_frames_in_video"], case["fps"], **arguments)
        assert clips.dtype == np.int64 and clips.shape == (case["num_clips"], case["num_frames"])
        assert clips[case["clip"]].tolist() == case["indices"], case


def test_crops_are_the_published_ones():
    for case in VIEWS["spatial"]:
        size, corners = crop_boxes(
            case["height"], case["width"], short_side=case["short_side"], size=case["crop"]
        )
        assert list(size) == case["resized"]
        assert corners[case["index"]] == (case["top"], case["left"]), case
        assert crop_boxes(
            case["height"],
            case["width"],
            short_side=case["short_side"],
            size=case["crop"],
            num_crops=1,
        ) == (
            size,
            [corners[1]],
        )


def test_random_clip_stays_inside_and_reaches_both_ends():
    starts = set()
    for seed in range(300):
        clip = random_clip(80, 30.0, 16, 4, rng=np.random.default_rng(seed))
        assert clip.shape == (1, 16) and clip.min() >= 0 and clip.max() <= 79
        starts.add(int(clip[0, 0]))
    assert starts == set(range(16))


@pytest.mark.parametrize("count", [1, 5, 63])
def test_short_videos_repeat_their_last_frame(count):
    for clips in (
        uniform_clips(count, 30.0),
        random_clip(count, 30.0, rng=np.random.default_rng(0)),
    ):
        assert clips.min() == 0 and clips.max() == count - 1
        assert (np.diff(clips) >= 0).all()


def test_segments():
    middle = segment_clips(161, 16)
    assert middle.shape == (1, 16) and middle[0, :3].tolist() == [5, 15, 25]
    first, second = segment_clips(161, 16, 2)
    assert (first != second).all(), "two temporal views must differ"
    drawn = np.concatenate(
        [segment_clips(161, 16, rng=np.random.default_rng(s)) for s in range(200)]
    )
    assert (drawn >= 10 * np.arange(16)).all() and (drawn <= 10 * np.arange(1, 17)).all()
    assert set(drawn[:, 3]) == set(range(30, 41)), "inclusive, as published"


def test_sliding_windows_cover_the_video():
    windows = sliding_windows(300, 30.0, 16, 4)
    assert windows[:, 0].tolist() == [0, 64, 128, 192, 236]
    assert windows[-1, -1] == 299
    assert sliding_windows(128, 30.0, 16, 4)[:, 0].tolist() == [0, 64]
    assert sliding_windows(300, 30.0, 16, 4, hop_s=1.0)[:3, 0].tolist() == [0, 30, 60]
    assert sliding_windows(10, 30.0, 16, 4).shape == (1, 16)


def test_pytorchvideo_uniform_sampler_means_sliding_windows():
    data = pytest.importorskip("pytorchvideo.data")
    sampler = data.make_clip_sampler("uniform", 64 / 30)
    theirs = pytorchvideo_clips(sampler, 325, 30.0, 16, rng=np.random.default_rng(0))
    ours = sliding_windows(325, 30.0, 16, 4)
    assert theirs.tolist() == ours[:-1].tolist(), "all but the last window, which theirs leaves out"
    assert ours[-1, -1] == 324


def test_pytorchvideo_random_sampler_takes_the_same_frames():
    data = pytest.importorskip("pytorchvideo.data")
    sampler = data.make_clip_sampler("random", 64 / 30)
    for seed in range(20):
        theirs = pytorchvideo_clips(sampler, 300, 30.0, 16, rng=np.random.default_rng(seed))
        start = theirs[0, 0]
        assert theirs[0].tolist() == np.linspace(start, start + 63, 16).astype(int).tolist()
    again = pytorchvideo_clips(sampler, 300, 30.0, 16, rng=np.random.default_rng(seed))
    assert again.tolist() == theirs.tolist(), "seeded"


def test_pytorchvideo_constant_clips_and_multi():
    data = pytest.importorskip("pytorchvideo.data")
    constant = data.make_clip_sampler("constant_clips_per_video", 64 / 30, 5)
    clips = pytorchvideo_clips(constant, 300, 30.0, 16, rng=np.random.default_rng(0))
    assert clips.shape == (5, 16)
    # The first clip is the protocol's; the released sampler divides by n and not n - 1, so the last
    # ends early.
    assert clips[0].tolist() == uniform_clips(300, 30.0)[0].tolist() and clips[-1, -1] < 299
    multi = data.make_clip_sampler("random_multi", 64 / 30, 3)
    assert pytorchvideo_clips(multi, 300, 30.0, 16, rng=np.random.default_rng(0)).shape == (3, 16)


def test_impossible_requests_are_refused():
    with pytest.raises(ValueError, match="num_clips=0"):
        uniform_clips(300, 30.0, num_clips=0)
    with pytest.raises(ValueError, match="num_crops=2"):
        crop_boxes(256, 340, num_crops=2)
    with pytest.raises(ValueError, match="does not fit"):
        crop_boxes(256, 340, short_side=200, size=224)
