"""What the pipeline makes of a video, against a few lines that take no short cut and share only the
model with it.
"""

import csv
import math
from functools import partial

import av
import moving_shapes
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import FINETUNE, start
from forked import run_forked
from golden_weights import load
from safetensors.torch import load_file, save_file
from torchvision.transforms.v2.functional import resize as torchvision_resize

from hiera_video.models import create_hiera

GOLDEN = load("views.json")
HEIGHT = 256
WIDTH = 340
FRAMES = (65, 300, 305)
SMALL = dict(embed_dim=16, num_heads=1, stages=(1, 1, 1, 1), num_classes=8)


def drawn(label, count):
    """A bright square that crosses a dark ground, `label` + 1 pixels a frame."""
    rng = np.random.default_rng(label)
    frames = np.empty((count, HEIGHT, WIDTH, 3), np.uint8)
    frames[:] = rng.integers(30, 50, 3)
    colour = rng.integers(180, 250, 3)
    for t in range(count):
        left = 40 + (label + 1) * t % (WIDTH - 120)
        frames[t, 80:170, left : left + 80] = colour
    return frames


def golden_clips(count):
    """The frames of five 16 x 4 clips of a video at 30 frames/s, as tests/golden has them; it
    leaves one of the five out.
    """
    length = 64.0
    start = [k * math.floor(max(count - length, 0) / 4) for k in range(5)]
    clips = [
        np.clip(np.linspace(s, s + length - 1, 16), 0, count - 1).astype(int).tolist()
        for s in start
    ]
    known = [
        case
        for case in GOLDEN["temporal"]
        if (case["num_frames_in_video"], case["fps"], case["num_clips"]) == (count, 30.0, 5)
        and (case["num_frames"], case["sampling_rate"]) == (16, 4)
    ]
    assert len(known) == 4 and all(clips[case["clip"]] == case["indices"] for case in known)
    return clips


def golden_crops():
    """(height, width) after resizing, and (top, left) of the three crops."""
    known = [
        c
        for c in GOLDEN["spatial"]
        if (c["height"], c["width"], c["short_side"]) == (HEIGHT, WIDTH, 224)
    ]
    (height, width) = known[0]["resized"]
    corners = [(0, 0), (0, math.ceil((297 - 224) / 2)), (0, 297 - 224)]
    assert len(known) == 2 and all(corners[c["index"]] == (c["top"], c["left"]) for c in known)
    return (height, width), corners


@torch.inference_mode()
def score_by_hand(file, model, resize):
    """Softmax, averaged over the golden views: [classes]"""
    with av.open(str(file)) as container:
        frames = [torch.from_numpy(f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
    size, corners = golden_crops()
    total = torch.zeros(8, dtype=torch.float64)
    for indices in golden_clips(len(frames)):
        for top, left in corners:
            view = torch.stack([frames[i] for i in indices]).permute(0, 3, 1, 2)
            view = resize(view, size).float()
            view = (view[..., top : top + 224, left : left + 224] / 255 - 0.45) / 0.225
            total += model(view.permute(1, 0, 2, 3)[None]).double().softmax(-1)[0] / 15
    return total.float()


@pytest.fixture(scope="module")
def model():
    """Weights that tell views apart, and no training."""
    torch.manual_seed(0)
    model = create_hiera("hiera_tiny_16x224", **SMALL, head_init_scale=1.0).eval()
    with torch.no_grad():
        model.head.projection.weight.mul_(20)
    return model


def test_five_by_three_by_hand(tmp_path, model):
    lines = []
    for k, count in enumerate(FRAMES):
        moving_shapes.write_video(tmp_path / f"{k}.mp4", drawn(k, count))
        lines.append(f"{k}.mp4 {k}\n")
    (tmp_path / "list.csv").write_text("".join(lines))
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    start(
        *(
            f"data.root={tmp_path}",
            "data.test=list.csv",
            "model.num_classes=8",
            f"output={tmp_path / 'run'}",
        ),
        *(
            "model.name=hiera_tiny_16x224",
            "model.embed_dim=16",
            "model.stages=[1,1,1,1]",
            "data.num_workers=0",
        ),
        *(
            "stages=[test]",
            f"test.weights={tmp_path / 'weights.safetensors'}",
            "test.precision=float32",
        ),
        cfg="configs/K400/hiera_b_16x4.yaml",
    )
    scores = load_file(tmp_path / "run/test/scores.safetensors")["scores"]
    with open(tmp_path / "run/test/predictions.csv") as f:
        predictions = [int(row["prediction"]) for row in csv.DictReader(f)]
    for k in range(len(FRAMES)):
        by_hand = score_by_hand(
            tmp_path / f"{k}.mp4", model, partial(torchvision_resize, antialias=False)
        )
        torch.testing.assert_close(scores[k], by_hand, rtol=0, atol=1e-5)
        assert predictions[k] == by_hand.argmax()
        # PySlowFast resizes floats; 8 bits between resizing and normalisation move a score by this
        # much at most.
        in_floats = score_by_hand(
            tmp_path / f"{k}.mp4",
            model,
            lambda v, size: F.interpolate(v.float(), size, mode="bilinear"),
        )
        torch.testing.assert_close(scores[k], in_floats, rtol=0, atol=5e-4)
    assert scores.std(0).max() > 1e-3, "the videos must differ, or this says nothing"


def test_stage_maps_line_up_with_the_video(tmp_path):
    """A grey video, and the same with a bright square for some frames: that is where the maps
    differ most.
    """
    torch.manual_seed(0)
    small = create_hiera("hiera_tiny_16x224", input_size=(8, 64, 64), **SMALL)
    save_file(small.state_dict(), tmp_path / "weights.safetensors")
    grey = np.full((15, 64, 64, 3), 90, np.uint8)  # one window of 8 frames, one every 2
    square = grey.copy()
    # frames 3 to 5 of the clip, all that token 2 sees; rows 36 to 43, columns 20 to 27
    frames = slice(6, 11)
    top = 36
    left = 20
    square[frames, top : top + 8, left : left + 8] = 250
    for name, video in (("grey", grey), ("square", square)):
        moving_shapes.write_video(tmp_path / f"{name}.mp4", video)
    (tmp_path / "list.csv").write_text("grey.mp4\nsquare.mp4\n")
    command = ["tools/extract_features.py", "--cfg", FINETUNE, "--videos", tmp_path / "list.csv"]
    command += ["--weights", tmp_path / "weights.safetensors", "--output", tmp_path / "out"]
    command += [
        f"data.root={tmp_path}",
        "data.classes=null",
        "model.num_classes=8",
        "model.embed_dim=16",
    ]
    run_forked(
        *command, "model.stages=[1,1,1,1]", "features.stages=[1,2,3,4]", "data.num_workers=0"
    )
    files = [
        load_file(tmp_path / "out" / f"{k:06d}_{name}.safetensors")
        for k, name in enumerate(("grey", "square"))
    ]
    for stage in (1, 2, 3, 4):
        maps = [f[f"stage{stage}"][0] for f in files]  # [t, h, w, C]
        t, h, w, _ = maps[0].shape
        place = np.unravel_index(int((maps[1] - maps[0]).norm(dim=-1).argmax()), (t, h, w))
        cell = 64 // h
        assert place[0] == 2, "tokens of 2 frames"
        assert place[1] * cell <= top + 7 and top < (place[1] + 1) * cell
        assert place[2] * cell <= left + 7 and left < (place[2] + 1) * cell
