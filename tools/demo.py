"""The whole path on a laptop core, from drawn videos to features. `make demo` runs it.

What pretraining is worth stands in the last lines: the same autoencoder before its first step is
fine-tuned and tested in the same way. What is finished is not done again; delete runs/demo to start
over.
    python tools/demo.py
    python tools/demo.py seed=1 --output runs/demo_1
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
PRETRAIN = "configs/demo/pretrain.yaml"
FINETUNE = "configs/demo/finetune.yaml"


# glibc gives large buffers back to the system and takes them anew in every step of a small model.
KEEP_BUFFERS = {
    "MALLOC_MMAP_THRESHOLD_": "2000000000",
    "MALLOC_TRIM_THRESHOLD_": "4000000000",
}


def step(title: str, *command: str) -> None:
    print(f"\n== {title}\n   python {' '.join(command)}", flush=True)
    environment = {**KEEP_BUFFERS, **os.environ}
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment)
    if done.returncode:
        sys.exit(done.returncode)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for every run")
    parser.add_argument("--data", default="data/moving_shapes", help="folder of the videos")
    parser.add_argument("--output", default="runs/demo", help="folder of the runs")
    args = parser.parse_args()
    out = args.output
    overrides = [*args.overrides, f"data.root={args.data}"]
    run = ("tools/run_net.py", "--cfg")
    start = time.monotonic()
    step("MovingShapes: 1,920 small videos", "datasets/moving_shapes.py", args.data)
    step(
        "Masked-autoencoder pretraining",
        *(*run, PRETRAIN, *overrides, f"output={out}/pretrain"),
    )
    step(
        "Fine-tuning, then 5 clips x 3 crops",
        *(*run, FINETUNE, *overrides),
        *(f"init.weights={out}/pretrain", f"output={out}/finetune"),
    )
    write_same_start(overrides, ROOT / out / "start.safetensors")
    step(
        "The same without pretraining, from the autoencoder's first weights",
        *(*run, FINETUNE, *overrides),
        *(f"init.weights={out}/start.safetensors", f"output={out}/without"),
    )
    step(
        "Features of every validation video",
        *("tools/extract_features.py", "--cfg", FINETUNE, "--weights", f"{out}/finetune"),
        *("--videos", f"{args.data}/val.csv", "--output", f"{out}/features", *overrides),
    )
    print(summary(args.data, out, time.monotonic() - start))


def write_same_start(overrides: list[str], file: Path) -> None:
    # Imported here, after the arguments were read: torch takes seconds.
    from hiera_video.config import load_config
    from hiera_video.study.runner import write_start

    write_start(load_config(ROOT / PRETRAIN, overrides), file)


def tested(run: str) -> dict[str, Any]:
    return json.loads((ROOT / run / "test/metrics.json").read_text())


def summary(data: str, out: str, seconds: float) -> str:
    rows = (ROOT / out / "pretrain/metrics.jsonl").read_text().splitlines()
    losses = [row["loss"] for row in map(json.loads, rows) if row["split"] == "train"]
    test = tested(f"{out}/finetune")
    without = tested(f"{out}/without")
    clips, crops = test["views"]
    return f"""
Done in {seconds:.0f} s.
pretraining  {out}/pretrain     loss {losses[0]:.3f} -> {losses[-1]:.3f}
fine-tuning  {out}/finetune     weights in checkpoints/latest, curves in tb/ and metrics.jsonl
test         {out}/finetune/test/metrics.json, predictions.csv
features     {out}/features/manifest.csv
top-1 {test["top1"]:.2f} over {clips} clips x {crops} crops of {test["videos"]} of \
{test["videos_expected"]} validation videos
pretrained {test["top1"]:.1f}, same start without pretraining {without["top1"]:.1f} (one seed)

Look first at, in a browser:
  {out}/pretrain/report.html   what the autoencoder sees and predicts
  {out}/finetune/report.html   curves, accuracy by class, confusions, best and worst videos
Then, with the environment active (. .venv/bin/activate):
  python tools/predict.py {data}/val/closed_open_wide --weights {out}/finetune"""


if __name__ == "__main__":
    main()
