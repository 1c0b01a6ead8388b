"""Averages the scores of several tests of the same list, and writes the file that Something-Something's test server takes.

    python tools/combine_scores.py runs/a/test runs/b/test --output runs/a_and_b
    python tools/combine_scores.py runs/ssv2/test --server ssv2_test.csv

Each input is a folder with scores.safetensors and predictions.csv. Only videos that all of them scored are counted, the
others are named. --weights gives each its share. Writes scores.safetensors, predictions.csv and metrics.json to --output;
without labels its accuracy is null. --server: a line a video, `id;class;class;class;class;class`, best first; the id is
the file's name without its ending (the format of the data set's own baseline code). Every listed video must have a score for
it.
"""

import argparse
import csv
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a plain checkout works without installing it

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hiera_video.data.annotations import VideoList
from hiera_video.errors import UserError, run_command
from hiera_video.scores import hits, ranked, write_json, write_predictions

Test = dict[str, tuple[int, Tensor]]  # path -> label, scores [classes]


def read_test(folder: Path) -> Test:
    """Raises UserError."""
    try:
        scores = load_file(folder / "scores.safetensors")["scores"]
        with open(folder / "predictions.csv", newline="", errors="surrogateescape") as f:
            rows = list(csv.DictReader(f))
        labels = {row["path"]: int(row["label"]) for row in rows}
    except (OSError, SafetensorError, KeyError, ValueError) as e:
        raise UserError(f"{folder} is not the folder of a test: {e}") from e
    if len(rows) != len(scores):
        raise UserError(f"{folder}: {len(rows)} rows in predictions.csv, {len(scores)} in scores.safetensors")
    if len(labels) != len(rows):
        raise UserError(f"{folder}: a video stands twice in predictions.csv")
    return {path: (label, score) for (path, label), score in zip(labels.items(), scores)}


def missing_in(folder: Path) -> list[str]:
    """Videos that the test could not score."""
    try:
        return json.loads((folder / "metrics.json").read_text()).get("missing", [])
    except (OSError, ValueError) as e:
        raise UserError(f"{folder} is not the folder of a finished test: {e}") from e


def combine(tests: list[Test], weights: list[float]) -> Test:
    """The weighted mean over the videos that all have, in the order of the first. Raises UserError."""
    common = [path for path in tests[0] if all(path in test for test in tests)]
    if not common:
        raise UserError("no video was scored by all of these tests; are they of the same list?")
    combined = {}
    for path in common:
        labels, scores = zip(*(test[path] for test in tests))
        if len(set(labels)) > 1 or len({len(s) for s in scores}) > 1:
            raise UserError(f"{path} has other labels or another number of classes in one of these tests")
        combined[path] = labels[0], sum(w * s for w, s in zip(weights, scores)) / sum(weights)
    return combined


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "tests", nargs="+", type=Path, metavar="FOLDER", help="runs/../test, or the output of this tool"
    )
    parser.add_argument("--weights", type=float, nargs="+", help="one a folder; default equal")
    parser.add_argument("--output", type=Path, help="folder for the combined scores")
    parser.add_argument("--server", type=Path, help="file for the test server")
    args = parser.parse_args()
    weights = args.weights or [1.0] * len(args.tests)
    if len(weights) != len(args.tests) or min(weights) < 0 or not sum(weights):
        raise UserError(f"--weights {weights}: {len(args.tests)} of them, none negative, not all 0")
    if not args.output and not args.server:
        raise UserError("give --output, --server or both")
    tests = [read_test(folder) for folder in args.tests]
    combined = combine(tests, weights)
    listed = {path for folder, test in zip(args.tests, tests) for path in [*test, *missing_in(folder)]}
    lacking = sorted(listed - set(combined))
    if args.server and lacking:
        raise UserError(
            f"--server: {len(lacking)} of {len(listed)} listed videos have no score ({', '.join(lacking[:5])}); mend them and "
            "run the test again: the same command tries them again with test.min_coverage=1"
        )
    for folder, test in zip(args.tests, tests):
        left_out = [path for path in test if path not in combined]
        if left_out:
            print(f"left out, not in all: {len(left_out)} of {folder}: {', '.join(left_out[:5])}", file=sys.stderr)
    paths, labels = list(combined), torch.tensor([label for label, _ in combined.values()])
    scores = torch.stack([score for _, score in combined.values()])
    known = labels >= 0
    metrics = {"top1": None, "top5": None} if not known.any() else hits(ranked(scores[known]), labels[known])
    print(f"{len(paths)} videos of {len(tests)} test(s): top-1 {metrics['top1']}, top-5 {metrics['top5']}")
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        videos = VideoList(paths, labels.tolist())
        write_predictions(args.output / "predictions.csv", videos, range(len(paths)), scores)
        save_file({"scores": scores, "index": torch.arange(len(paths))}, args.output / "scores.safetensors")
        sources = {str(folder): weight for folder, weight in zip(args.tests, weights)}
        metrics |= {"videos": len(paths), "videos_expected": len(listed), "missing": lacking, "tests": sources}
        write_json(args.output / "metrics.json", metrics)
    if args.server:
        args.server.parent.mkdir(parents=True, exist_ok=True)
        lines = [";".join(map(str, [Path(p).stem, *top])) for p, top in zip(paths, ranked(scores).tolist())]
        args.server.write_text("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    run_command(main)
