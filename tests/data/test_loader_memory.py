"""What a rank's loader takes, at the size of the real recipes."""

import subprocess
import sys
import time

import pytest
from conftest import ROOT
from run_folders import memory_of_group

# Takes four batches as the training loop does, which holds one at a time.
PROGRAM = """
import sys
import torch
from hiera_video import build, build_training
from hiera_video.config import load_config
from hiera_video.data.lists import read_videos
from hiera_video.system.distributed import World

config = load_config("configs/K400/hiera_b_16x4_mae.yaml", sys.argv[2:])
videos = read_videos("list.csv", root=sys.argv[1])
world = World(0, 8, torch.device("cpu"))
batches = iter(build_training.train_batches(config, videos, steps=4, first_step=0, world=world))
print("ready", flush=True)
input()
for _ in range(4):
    batch = next(batches)
    assert batch["clip"].shape == (64, 4, 3, 16, 224, 224)
    del batch
"""


@pytest.mark.trial
def test_a_rank_of_eight_in_pretraining(tmp_path, clips):
    """Kinetics as configured: 64 videos a rank, four clips each, eight workers; below 3 GiB."""
    (tmp_path / "list.csv").write_text(f"{clips / 'kinetics_like.mp4'} 0\n" * 1000)
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, tmp_path, f"output={tmp_path / 'run'}"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    before = memory_of_group(process.pid)
    process.stdin.write("\n")
    process.stdin.flush()
    peak = 0
    while process.poll() is None:
        peak = max(peak, memory_of_group(process.pid) - before)
        time.sleep(0.2)
    print(f"loader of a rank: {peak / 2**30:.2f} GiB")
    assert process.returncode == 0 and peak < 3 * 2**30
