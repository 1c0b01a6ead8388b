"""The whole path on a laptop core, from drawn videos to features. `make demo` runs it.

What is finished is not done again; delete runs/demo to start over.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = "data/moving_shapes"
RUNS = "runs/demo"
PRETRAIN = "configs/demo/pretrain.yaml"
FINETUNE = "configs/demo/finetune.yaml"


def step(title: str, *command: str) -> None:
    print(f"\n== {title}\n   python {' '.join(command)}", flush=True)
    done = subprocess.run([sys.executable, *command], cwd=ROOT)
    if done.returncode:
        sys.exit(done.returncode)


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    start = time.monotonic()
    step("MovingShapes: 960 small videos", "datasets/moving_shapes.py", DATA)
    step("Masked-autoencoder pretraining", "tools/run_net.py", "--cfg", PRETRAIN)
    step("Fine-tuning, then 5 clips x 3 crops", "tools/run_net.py", "--cfg", FINETUNE)
    step(
        "Features of every validation video",
        *("tools/extract_features.py", "--cfg", FINETUNE, "--weights", f"{RUNS}/finetune"),
        *("--videos", f"{DATA}/val.csv", "--output", f"{RUNS}/features"),
    )
    print(summary(time.monotonic() - start))


def summary(seconds: float) -> str:
    rows = (ROOT / RUNS / "pretrain/metrics.jsonl").read_text().splitlines()
    losses = [row["loss"] for row in map(json.loads, rows) if row["split"] == "train"]
    test = json.loads((ROOT / RUNS / "finetune/test/metrics.json").read_text())
    clips, crops = test["views"]
    return f"""
Done in {seconds:.0f} s.
pretraining  {RUNS}/pretrain     loss {losses[0]:.3f} -> {losses[-1]:.3f}
fine-tuning  {RUNS}/finetune     weights in checkpoints/latest, curves in tb/ and metrics.jsonl
test         {RUNS}/finetune/test/metrics.json, predictions.csv
features     {RUNS}/features/manifest.csv
top-1 {test["top1"]:.2f} over {clips} clips x {crops} crops of {test["videos"]} of \
{test["videos_expected"]} validation videos

Look first at, in a browser:
  {RUNS}/pretrain/report.html   what the autoencoder sees and predicts
  {RUNS}/finetune/report.html   curves, accuracy by class, confusions, best and worst videos
Then:
  python tools/predict.py {DATA}/val/disc_moving_left --weights {RUNS}/finetune"""


if __name__ == "__main__":
    main()
