"""Averages the scores of several tests of one list, and writes the file of SSv2's test server.

    hiera-video combine-scores runs/a/test runs/b/test --output runs/a_and_b
    hiera-video combine-scores runs/ssv2/test --server ssv2_test.csv

Each input is a folder with scores.safetensors and predictions.csv. Only videos that all of them
scored are counted, the others are named. --weights gives each its share. Writes scores.safetensors,
predictions.csv and metrics.json to --output; without labels its accuracy is null.

--server: a line a video, `id;class;class;class;class;class`, best first; the id is the file's name
without its ending (the format of Something-Something's own baseline code). Every listed video must
have a score for it.
"""

import argparse
import csv
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hiera_video.commands.arguments import make_parser
from hiera_video.data.lists import VideoList
from hiera_video.evaluation.score_files import write_predictions, write_scores
from hiera_video.evaluation.scores import hits, ranked
from hiera_video.system.errors import UserError
from hiera_video.system.files import write_json

Test = dict[str, tuple[int, Tensor]]  # path -> label, scores [classes]
NAMED = 5  # videos named in a message


def parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument(
        "tests",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help="runs/../test, or the output of this command",
    )
    parser.add_argument("--weights", type=float, nargs="+", help="one a folder; default equal")
    parser.add_argument("--output", type=Path, help="folder for the combined scores")
    parser.add_argument("--server", type=Path, help="file for the test server")
    return parser


def main(args: argparse.Namespace) -> None:
    shares = args.weights or [1.0] * len(args.tests)
    if len(shares) != len(args.tests) or min(shares) < 0 or not sum(shares):
        raise UserError(f"--weights {shares}: {len(args.tests)} of them, none negative, not all 0")
    if not args.output and not args.server:
        raise UserError("give --output, --server or both")
    tests = {folder: read_test(folder) for folder in args.tests}
    combined = combine(list(tests.values()), shares)
    listed = {path for folder, test in tests.items() for path in [*test, *missing_in(folder)]}
    lacking = sorted(listed - set(combined))
    if args.server and lacking:
        raise UserError(
            f"--server: {len(lacking)} of {len(listed)} listed videos have no score "
            f"({', '.join(lacking[:NAMED])}); mend them and run the test again: "
            "the same command tries them again with test.min_coverage=1"
        )
    for folder, test in tests.items():
        left_out = [path for path in test if path not in combined]
        if left_out:
            shown = ", ".join(left_out[:NAMED])
            print(f"left out, not in all: {len(left_out)} of {folder}: {shown}", file=sys.stderr)
    metrics = accuracy(combined)
    print(
        f"{len(combined)} videos of {len(tests)} test(s): "
        f"top-1 {metrics['top1']}, top-5 {metrics['top5']}"
    )
    if args.output:
        write(args.output, combined)
        counts = {"videos": len(combined), "videos_expected": len(listed), "missing": lacking}
        sources = {str(folder): share for folder, share in zip(tests, shares)}
        write_json(args.output / "metrics.json", {**metrics, **counts, "tests": sources})
    if args.server:
        write_server_file(args.server, combined)


def read_test(folder: Path) -> Test:
    """Raises UserError."""
    try:
        scores = load_file(folder / "scores.safetensors")["scores"]
        with open(folder / "predictions.csv", newline="", errors="surrogateescape") as f:
            rows = list(csv.DictReader(f))
        labels = {_name(row): int(row["label"]) for row in rows}
    except (OSError, SafetensorError, KeyError, ValueError) as e:
        raise UserError(f"{folder} is not the folder of a test: {e}") from e
    if len(rows) != len(scores):
        raise UserError(
            f"{folder}: {len(rows)} rows in predictions.csv, {len(scores)} in scores.safetensors"
        )
    if len(labels) != len(rows):
        raise UserError(f"{folder}: a video stands twice in predictions.csv")
    return {path: (label, score) for (path, label), score in zip(labels.items(), scores)}


def _name(row: dict[str, str]) -> str:
    """The path, and of a segment its place: `a.mp4#t=2.0,4.5` (W3C Media Fragments)."""
    if not row.get("start_s"):
        return row["path"]
    return f"{row['path']}#t={row['start_s']},{row['end_s']}"


def missing_in(folder: Path) -> list[str]:
    """Videos that the test could not score."""
    try:
        return json.loads((folder / "metrics.json").read_text()).get("missing", [])
    except (OSError, ValueError) as e:
        raise UserError(f"{folder} is not the folder of a finished test: {e}") from e


def combine(tests: list[Test], shares: list[float]) -> Test:
    """The weighted mean over the videos that all have, in the order of the first.

    Raises UserError.
    """
    common = [path for path in tests[0] if all(path in test for test in tests)]
    if not common:
        raise UserError("no video was scored by all of these tests; are they of the same list?")
    combined = {}
    for path in common:
        labels = [test[path][0] for test in tests]
        scores = [test[path][1] for test in tests]
        if len(set(labels)) > 1 or len({len(score) for score in scores}) > 1:
            raise UserError(
                f"{path} has other labels or another number of classes in one of these tests"
            )
        weighted = torch.stack([share * score for share, score in zip(shares, scores)])
        combined[path] = labels[0], weighted.sum(0) / sum(shares)
    return combined


def accuracy(test: Test) -> Mapping[str, float | None]:
    """top1 and top5 over the labelled videos, in percent; None if there are none."""
    labelled = [(label, score) for label, score in test.values() if label >= 0]
    if not labelled:
        return {"top1": None, "top5": None}
    scores = torch.stack([score for _, score in labelled])
    return hits(ranked(scores), torch.tensor([label for label, _ in labelled]))


def write(folder: Path, test: Test) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    videos = VideoList(list(test), [label for label, _ in test.values()])
    rows = list(range(len(test)))
    scores = torch.stack([score for _, score in test.values()])
    write_predictions(folder / "predictions.csv", videos, rows, scores)
    write_scores(folder / "scores.safetensors", scores, rows)


def write_server_file(file: Path, test: Test) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for path, (_, score) in test.items():
        lines.append(";".join([Path(path).stem, *map(str, ranked(score).tolist())]))
    file.write_text("".join(f"{line}\n" for line in lines))
