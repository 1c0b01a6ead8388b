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
    step(
        "Masked-autoencoder pretraining", "tools/run_net.py", "--cfg", "configs/demo/pretrain.yaml"
    )
    step(
        "Fine-tuning, then 5 clips x 3 crops",
        "tools/run_net.py",
        "--cfg",
        "configs/demo/finetune.yaml",
    )
    step(
        "Features of every validation video",
        *(
            "tools/extract_features.py",
            "--cfg",
            "configs/demo/finetune.yaml",
            "--weights",
            f"{RUNS}/finetune",
        ),
        *("--videos", f"{DATA}/val.csv", "--output", f"{RUNS}/features"),
    )
    rows = (ROOT / RUNS / "pretrain/metrics.jsonl").read_text().splitlines()
    losses = [row["loss"] for row in map(json.loads, rows) if row["split"] == "train"]
    test = json.loads((ROOT / RUNS / "finetune/test/metrics.json").read_text())
    print(
        f"\nDone in {time.monotonic() - start:.0f} s.\n"
        f"pretraining  {RUNS}/pretrain     loss {losses[0]:.3f} -> {losses[-1]:.3f}\n"
        f"fine-tuning  {RUNS}/finetune     weights in checkpoints/latest, curves in tb/ and "
        "metrics.jsonl\n"
        f"test         {RUNS}/finetune/test/metrics.json, predictions.csv\n"
        f"report       {RUNS}/finetune/report.html, {RUNS}/pretrain/report.html: open them in a "
        "browser\n"
        f"features     {RUNS}/features/manifest.csv\n"
        f"top-1 {test['top1']:.2f} over {test['views'][0]} clips x {test['views'][1]} crops of "
        f"{test['videos']} of {test['videos_expected']} validation videos"
    )


if __name__ == "__main__":
    main()
