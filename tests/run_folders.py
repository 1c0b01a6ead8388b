"""What runs of the main job leave, and runs in processes of their own."""

import contextlib
import json
import time
from pathlib import Path

from conftest import FINETUNE
from forked import Script


def state(folder):
    """Bytes of the newest checkpoint."""
    last = (folder / "checkpoints/latest").resolve()
    return {
        name: (last / name).read_bytes()
        for name in ("model.safetensors", "train_state.pt", "checksums.json")
    }


def outcome(folder):
    """Bytes of the newest checkpoint and of what a test has found."""
    last = (folder / "checkpoints/latest").resolve()
    files = [last / "model.safetensors", last / "train_state.pt"]
    files += [
        folder / "test" / n
        for n in ("metrics.json", "predictions.csv")
        if (folder / "test").exists()
    ]
    return {f.name: f.read_bytes() for f in files}


def rows(folder, split="train"):
    found = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row for row in found if row["split"] == split]


def launch(*overrides, cfg=FINETUNE):
    return Script("tools/run_net.py", "--cfg", cfg, *overrides)


def wait_for_step(folder, step, process):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.at_work:
        if (
            (folder / "metrics.jsonl").exists()
            and (found := rows(folder))
            and found[-1]["step"] >= step
        ):
            return
        time.sleep(0.01)
    raise AssertionError(f"it never came to step {step}: {process.wait(1)}")


def memory_of_group(group):
    """Bytes of all processes of a process group; what several share counts once."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            if int((folder / "stat").read_text().rsplit(")", 1)[1].split()[2]) == group:
                pss = next(
                    line
                    for line in (folder / "smaps_rollup").read_text().splitlines()
                    if line.startswith("Pss:")
                )
                total += int(pss.split()[1]) * 1024
    return total
