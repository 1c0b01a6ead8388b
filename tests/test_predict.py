"""tools/predict.py: names and probabilities of one's own videos."""

import csv
import shutil

import moving_shapes
import numpy as np
import pytest
import torch
from conftest import FINETUNE, ROOT, SHORT, start
from PIL import Image

from hiera_video.data.decode.readers import open_video
from hiera_video.data.transforms import EvalCrops, normalise
from hiera_video.models import create_hiera, load_weights


@pytest.fixture(scope="module")
def trained(shapes, tmp_path_factory):
    out = tmp_path_factory.mktemp("predict") / "run"
    start(f"data.root={shapes}", f"output={out}", "init.weights=null", *SHORT, cfg=FINETUNE)
    return out


def test_the_same_as_the_test_stage(trained, shapes, tmp_path, tool):
    """Class names and clip format from the weights; scores as in predictions.csv."""
    folder = tmp_path / "mine" / "deep"
    folder.mkdir(parents=True)
    with open(trained / "test/predictions.csv") as f:
        expected = list(csv.DictReader(f))[:2]
    for k, row in enumerate(expected):
        shutil.copy(shapes / row["path"], folder / f"{k}.mp4")
    lines = tool("tools/predict.py", tmp_path / "mine", "--weights", trained).stdout.splitlines()
    names = (shapes / "classes.txt").read_text().splitlines()
    for k, row in enumerate(expected):
        assert lines[6 * k] == str(folder / f"{k}.mp4")
        for rank in range(5):
            score, name = lines[6 * k + 1 + rank].strip().split("  ", 1)
            assert names.index(name) == int(row[f"top{rank + 1}_class"])
            assert float(score.rstrip("%")) / 100 == pytest.approx(
                float(row[f"top{rank + 1}_score"]), abs=1e-4
            )


def test_published_weights_need_a_name(shapes, tmp_path, tool):
    torch.manual_seed(0)
    state = create_hiera("hiera_tiny_16x224").state_dict()
    torch.save({"model_state": state}, tmp_path / "hiera_tiny_16x224.pth")
    video = sorted(shapes.rglob("*.mp4"))[0]
    args = (video, "--weights", tmp_path / "hiera_tiny_16x224.pth", "--clips", "1", "--crops", "1")
    assert "give --model" in tool("tools/predict.py", *args, check=2).stderr
    out = tool(
        "tools/predict.py",
        *args,
        "--model",
        "hiera_tiny_16x224",
        "--classes",
        "datasets/labels/k400.txt",
    ).stdout
    known = (ROOT / "datasets/labels/k400.txt").read_text().splitlines()
    assert all(line.split("  ")[-1] in known for line in out.splitlines()[1:6])
    out = tool("tools/predict.py", *args, "--model", "hiera_tiny_16x224").stdout
    assert "class " in out
    assert (
        "takes images"
        in tool("tools/predict.py", *args, "--model", "hiera_tiny_224", check=2).stderr
    )
    wrong = ("--model", "hiera_tiny_16x224", "--classes", "datasets/labels/k600.txt")
    assert (
        "600 names, but the model has 400"
        in tool("tools/predict.py", *args, *wrong, check=2).stderr
    )


def test_wrong_input(trained, shapes, tmp_path, tool):
    (tmp_path / "text.mp4").write_text("no video")
    good = sorted(shapes.rglob("*.mp4"))[0]
    done = tool("tools/predict.py", tmp_path / "text.mp4", good, "--weights", trained, check=2)
    assert (
        str(good) in done.stdout
        and "text.mp4: Invalid data" in done.stderr
        and "1 of 2 videos" in done.stderr
    )
    assert (
        "no video gone.mp4"
        in tool("tools/predict.py", "gone.mp4", "--weights", trained, check=2).stderr
    )
    assert "no weights at" in tool("tools/predict.py", good, "--weights", tmp_path, check=2).stderr
    (tmp_path / "empty").mkdir()
    assert (
        "holds no video"
        in tool("tools/predict.py", tmp_path / "empty", "--weights", trained, check=2).stderr
    )


def test_nothing_is_drawn_over_a_video(trained, shapes, tmp_path, tool):
    shutil.copy(sorted(shapes.rglob("*.mp4"))[0], tmp_path / "a.mp4")
    before = (tmp_path / "a.mp4").read_bytes()
    more = ("--weights", trained, "--clips", "1", "--crops", "1", "--draw", tmp_path)
    tool("tools/predict.py", tmp_path / "a.mp4", *more)
    assert (tmp_path / "a.mp4").read_bytes() == before and (tmp_path / "a.drawn.mp4").exists()
    assert (
        "a.drawn.mp4 is one of the videos"
        in tool("tools/predict.py", tmp_path, *more, check=2).stderr
    )


def test_what_happens_when(trained, tmp_path, tool):
    """Every window's scores are the model's, on a video that is made of several; the drawn video
    has all frames.
    """
    # an odd side
    frames = np.concatenate([moving_shapes.draw_video(k, k) for k in range(8)])[:, :, :95]
    wide = np.repeat(np.repeat(frames, 2, axis=1), 2, axis=2)
    moving_shapes.write_video(tmp_path / "long.mp4", wide[:, :, :-2])
    out = tmp_path / "out"
    more = ("--clips", "1", "--timeline", out, "--draw", out, "--hop-s", "0.5")
    said = tool("tools/predict.py", tmp_path / "long.mp4", "--weights", trained, *more).stdout
    assert all(
        str(out / f"long.{ending}") in said
        for ending in ("timeline.csv", "timeline.png", "drawn.mp4")
    )
    rows = list(csv.DictReader((out / "long.timeline.csv").open()))
    starts = [float(row["start_s"]) for row in rows]
    assert starts[:3] == [0.0, 0.5, 1.0] and float(rows[-1]["end_s"]) == pytest.approx(
        8 * moving_shapes.NUM_FRAMES / 30, abs=1e-3
    )

    model = create_hiera(
        "hiera_tiny_16x224",
        input_size=(8, 64, 64),
        embed_dim=16,
        stages=(1, 1, 1, 1),
        num_classes=8,
    )
    load_weights(model, trained)
    with open_video(tmp_path / "long.mp4", "pyav") as video:
        for row, first in ((rows[0], 0), (rows[2], 30)):
            window = torch.from_numpy(
                video.get(np.linspace(first, first + 15, 8).astype(int))
            ).permute(0, 3, 1, 2)
            clip = normalise(EvalCrops(64, 64, 1)(window).clips, (0.45,) * 3, (0.225,) * 3)
            with torch.inference_mode():
                score = model.eval()(clip).softmax(-1)[0]
            assert int(row["top1_class"]) == score.argmax()
            assert float(row["top1_score"]) == pytest.approx(float(score.max()), abs=1e-4)
        count = video.info.num_frames
    with open_video(out / "long.drawn.mp4", "pyav") as drawn:
        assert drawn.info.num_frames == count == 8 * moving_shapes.NUM_FRAMES
        dark = drawn.get([100])[0][-10:].mean(), drawn.get([100])[0][:64].mean()
    assert dark[0] != pytest.approx(dark[1], abs=2), "something is written at the bottom"
    assert np.asarray(Image.open(out / "long.timeline.png")).std() > 5
