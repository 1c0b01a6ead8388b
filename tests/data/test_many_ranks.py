"""A list of Kinetics-700's size on 64 ranks: what each needs before its first sample."""

import time
from itertools import chain, islice
from pathlib import Path

import pytest
from conftest import ROOT
from forked import FORKS

ROWS = 650_000
RANKS = 64
KEYS = 100


def private_bytes():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def draw(folder, file, rank, together, found):
    import torch

    from hiera_video import build_training
    from hiera_video.config import load_config
    from hiera_video.data.lists import read_videos
    from hiera_video.system.distributed import World

    cfg = ROOT / "configs/K400/hiera_b_16x4_mae.yaml"
    config = load_config(cfg, [f"data.root={folder}", f"output={folder}/run"])
    memory = private_bytes()
    cpu = time.process_time()
    videos = read_videos(file, root=folder)
    world = World(rank, RANKS, torch.device("cpu"))
    batches = build_training.train_batches(config, videos, steps=1000, first_step=0, world=world)
    keys = list(islice(chain.from_iterable(batches.parts.order), KEYS))
    cpu = time.process_time() - cpu
    together.wait()  # the memory of all at once
    found.put((cpu, private_bytes() - memory, [(key.epoch, key.index) for key in keys]))
    together.wait()


@pytest.mark.trial
@pytest.mark.parametrize("tars", [False, True])
def test_start_of_64_ranks(tmp_path, tars):
    """Less than 3 s of a core and 150 MB a rank, on a plain list and one of tars; no key twice."""
    with open(tmp_path / "list.csv", "w") as file:
        if tars:
            file.write("path,label,shard,offset,length\n")
        for row in range(ROWS):
            name = f"some class name {row % 700}/abcdefghijk_{row:06d}_{row + 10:06d}.mp4"
            place = f",{row // 1000:05d}.tar,{row % 1000 * 1_000_000 + 512},999424" if tars else ""
            file.write(f"{name},{row % 700}{place}\n" if tars else f"{name} {row % 700}\n")
    together = FORKS.Barrier(RANKS)
    found = FORKS.Queue()
    ranks = [
        FORKS.Process(target=draw, args=(tmp_path, "list.csv", rank, together, found))
        for rank in range(RANKS)
    ]
    for rank in ranks:
        rank.start()
    drawn = [found.get(timeout=600) for _ in ranks]
    for rank in ranks:
        rank.join()
    seconds, memory, keys = zip(*drawn)
    print(f"at most {max(seconds):.2f} s of a core and {max(memory) / 1e6:.0f} MB a rank")
    assert max(seconds) < 3 and max(memory) < 150e6
    every = list(chain.from_iterable(keys))
    assert len(set(every)) == len(every) == RANKS * KEYS
