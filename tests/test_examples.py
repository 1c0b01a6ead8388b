"""The examples run, on a small data set and a small model, and say what they promise."""

import subprocess
import sys

import moving_shapes
import pytest
from conftest import ROOT

SCRIPTS = sorted(p.name for p in (ROOT / "examples").glob("*.py"))


def run(script, *arguments):
    command = [sys.executable, str(ROOT / "examples" / script), *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_every_example_is_tested():
    assert SCRIPTS == ["draw_sampling.py", "nearest_videos.py", "own_loop.py", "predict.py"]


def test_predict(weights, shapes):
    video = sorted((shapes / "val").rglob("*.mp4"))[0]
    lines = run("predict.py", weights, video).splitlines()
    assert lines[0].split("%  ")[1] in moving_shapes.CLASSES
    assert " to " in lines[3] and lines[-1].startswith("no_such_video.mp4: ")


def test_draw_sampling(tmp_path):
    from PIL import Image

    assert "5 samplers" in run("draw_sampling.py", tmp_path / "s.png")
    with Image.open(tmp_path / "s.png") as image:
        assert image.width > 1000


def test_nearest_videos(weights, shapes):
    lines = run("nearest_videos.py", weights, shapes / "val").splitlines()
    assert lines[0].startswith("nearest to") and len(lines) == 4


@pytest.mark.parametrize("steps", [6])
def test_own_loop(shapes, steps):
    lines = run("own_loop.py", shapes, steps).splitlines()
    assert [line.split(" loss ")[0] for line in lines] == ["step 0", "step 5"]
