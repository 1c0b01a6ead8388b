"""The demo: its last lines, and that pretraining pays in it."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT


def worth(*arguments: object) -> tuple[float, float]:
    """Runs the demo; accuracy with and without pretraining, as its last lines say."""
    command = [sys.executable, "tools/demo.py", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    said = re.search(
        r"pretrained (.*), same start without pretraining (.*) \(one seed\)", done.stdout
    )
    return float(said[1]), float(said[2])


def test_the_demo_in_short(shapes, tmp_path):
    short = [
        "train.epochs=1",
        "test.clips=2",
        "test.crops=1",
        "mae.probe_videos=8",
        f"data.frame_cache={tmp_path}/frames",
    ]
    found = worth("--data", shapes, "--output", tmp_path, *short)
    assert all(0 <= top1 <= 100 for top1 in found)
    for file in ("pretrain/report.html", "finetune/report.html", "features/manifest.csv"):
        assert (tmp_path / file).exists()


@pytest.mark.trial
@pytest.mark.parametrize("seed", range(5))
def test_pretraining_pays(tmp_path, seed):
    """By 10 points and more; and the log has no warning, which it has where it does not pay."""
    pretrained, same_start = worth("--output", tmp_path, f"seed={seed}")
    assert pretrained >= same_start + 10
    assert "WARNING" not in (tmp_path / "pretrain/log.txt").read_text()
