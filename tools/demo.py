"""The whole path on a laptop core, from drawn videos to features. `make demo` runs it.

What pretraining is worth stands in the last lines: the same autoencoder before its first step is
fine-tuned and tested in the same way. What is finished is not done again; delete runs/demo to start
over.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for every run")
    overrides = parser.parse_args().overrides
    start = time.monotonic()
    step("MovingShapes: 1,920 small videos", "datasets/moving_shapes.py", DATA)
    step("Masked-autoencoder pretraining", "tools/run_net.py", "--cfg", PRETRAIN, *overrides)
    step("Fine-tuning, then 5 clips x 3 crops", "tools/run_net.py", "--cfg", FINETUNE, *overrides)
    write_same_start(overrides)
    step(
        "The same without pretraining, from the autoencoder's first weights",
        *("tools/run_net.py", "--cfg", FINETUNE, *overrides),
        *(f"init.weights={RUNS}/start.safetensors", f"output={RUNS}/without"),
    )
    step(
        "Features of every validation video",
        *("tools/extract_features.py", "--cfg", FINETUNE, "--weights", f"{RUNS}/finetune"),
        *("--videos", f"{DATA}/val.csv", "--output", f"{RUNS}/features"),
    )
    print(summary(time.monotonic() - start))


def write_same_start(overrides: list[str]) -> None:
    # Imported here, after the arguments were read: torch takes seconds.
    from hiera_video.config import load_config
    from hiera_video.study.runner import write_start

    write_start(load_config(ROOT / PRETRAIN, overrides), ROOT / RUNS / "start.safetensors")


def tested(run: str) -> dict[str, Any]:
    return json.loads((ROOT / RUNS / run / "test/metrics.json").read_text())


def summary(seconds: float) -> str:
    rows = (ROOT / RUNS / "pretrain/metrics.jsonl").read_text().splitlines()
    losses = [row["loss"] for row in map(json.loads, rows) if row["split"] == "train"]
    test = tested("finetune")
    clips, crops = test["views"]
    return f"""
Done in {seconds:.0f} s.
pretraining  {RUNS}/pretrain     loss {losses[0]:.3f} -> {losses[-1]:.3f}
fine-tuning  {RUNS}/finetune     weights in checkpoints/latest, curves in tb/ and metrics.jsonl
test         {RUNS}/finetune/test/metrics.json, predictions.csv
features     {RUNS}/features/manifest.csv
top-1 {test["top1"]:.2f} over {clips} clips x {crops} crops of {test["videos"]} of \
{test["videos_expected"]} validation videos
pretrained {test["top1"]:.1f}, same start without pretraining {tested("without")["top1"]:.1f}

Look first at, in a browser:
  {RUNS}/pretrain/report.html   what the autoencoder sees and predicts
  {RUNS}/finetune/report.html   curves, accuracy by class, confusions, best and worst videos
Then:
  python tools/predict.py {DATA}/val/closed_open_wide --weights {RUNS}/finetune"""


if __name__ == "__main__":
    main()
