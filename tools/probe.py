"""Frozen evaluation: what cached features are worth to a nearest-neighbour, a linear and an attentive classifier.

    python tools/extract_features.py --cfg CFG --weights runs/mae --videos train.csv --output features/train features.stages=[4]
    python tools/extract_features.py --cfg CFG --weights runs/mae --videos val.csv --output features/val features.stages=[4]
    python tools/probe.py features/train features/val --lists train.csv val.csv

The features are used as they are, of videos that have both features and a label. The nearest-neighbour and linear probes see a
video's mean over its windows; the attentive one sees the tokens of a stage's whole map (features.stages=[4]; without maps it is
left out), of one random window at a time in training and the mean of its scores over all windows in testing. The linear and
attentive probes are trained at several rates in one pass; the rate is chosen on a tenth of the training videos that is held
out, never on the test videos. Prints a table; --json writes it with the figures of all rates.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a plain checkout works without installing it

import torch
from safetensors import safe_open
from torch import Tensor, nn

from hiera_video.data.annotations import read_videos
from hiera_video.errors import UserError, run_command
from hiera_video.features import read_manifest
from hiera_video.probe import NEIGHBOURS, AttentiveProbe, LinearProbe, nearest_neighbours, train_probes
from hiera_video.scores import hits, ranked

HELD_OUT = 0.1  # of the training videos
LINEAR_RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
ATTENTIVE_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)


class Features:
    """Files of a features folder whose videos have a label. Raises UserError."""

    def __init__(self, folder: Path, labels: str):
        try:
            lines = read_manifest(folder)
        except OSError as e:
            raise UserError(f"{folder}: no manifest.csv; extract features into it first") from e
        videos = read_videos(labels, root="", key="--lists")
        label_of = {videos.written(row): videos.label(row) for row in range(len(videos))}
        good = [line for line in lines if line["status"] == "ok" and label_of.get(line["path"], -1) >= 0]
        if not good:
            raise UserError(f"{folder}: {labels} has no label for any of its {len(lines)} videos")
        self.files = [folder / line["file"] for line in good]
        gone = [file for file in self.files if not file.is_file()]
        if gone:
            raise UserError(f"{gone[0]} is not there, though manifest.csv names it; extract the features again")
        card = folder / "made_of.json"
        self.weights = json.loads(card.read_text())["weights"] if card.exists() else None
        self.labels = torch.tensor([label_of[line["path"]] for line in good])
        self.left_out = len(lines) - len(good)

    def means(self) -> Tensor:
        """[N, dim]"""
        return torch.stack([self._read(k, "features").mean(0) for k in range(len(self.files))])

    def windows(self, row: int, stage: int, which: int | None = None) -> Tensor:
        """Tokens of one window or all: [windows, L, dim]"""
        return self._read(row, f"stage{stage}", which).flatten(1, -2)

    def has_maps(self, stage: int) -> bool:
        with safe_open(self.files[0], "pt") as f:
            return f"stage{stage}" in set(f.keys()) and len(f.get_slice(f"stage{stage}").get_shape()) > 2

    def shape(self) -> list[int]:
        """Of a video's mean."""
        with safe_open(self.files[0], "pt") as f:
            return f.get_slice("features").get_shape()[1:]

    def count(self, row: int) -> int:
        with safe_open(self.files[row], "pt") as f:
            return f.get_slice("times").get_shape()[0]

    def _read(self, row: int, name: str, which: int | None = None) -> Tensor:
        with safe_open(self.files[row], "pt") as f:
            part = f.get_slice(name)
            return (part[:] if which is None else part[which : which + 1]).float()


def optimizer_of(probes: list[nn.Module], rates: tuple[float, ...], *, adam: bool) -> torch.optim.Optimizer:
    groups = [{"params": list(p.parameters()), "lr": rate} for p, rate in zip(probes, rates)]
    return torch.optim.AdamW(groups, weight_decay=0.01) if adam else torch.optim.SGD(groups, momentum=0.9)


def linear(train: Features, test: Features, split: tuple[Tensor, Tensor], classes: int, args) -> list[Tensor]:
    """Scores of every rate's probe, of the held-out videos and of the test videos: [rates, videos, classes] each"""
    known, asked, (rows, held_out) = train.means(), test.means(), split
    probes = [LinearProbe(known[rows], classes) for _ in LINEAR_RATES]
    train_probes(
        probes,
        optimizer_of(probes, LINEAR_RATES, adam=False),
        lambda some, _: known[rows[some]],
        train.labels[rows],
        epochs=args.epochs,
        batch_size=args.batch,
        seed=args.seed,
    )
    with torch.inference_mode():
        return [torch.stack([probe(x).softmax(-1) for probe in probes]) for x in (known[held_out], asked)]


def attentive(train: Features, test: Features, split: tuple[Tensor, Tensor], classes: int, args) -> list[Tensor]:
    """The same of the attentive probe."""
    rows, held_out = split
    counts = [train.count(row) for row in rows.tolist()]

    def one_window(some: Tensor, generator: torch.Generator) -> Tensor:
        windows = [int(torch.randint(counts[k], (), generator=generator)) for k in some.tolist()]
        return torch.cat([train.windows(int(rows[k]), args.stage, w) for k, w in zip(some.tolist(), windows)])

    dim = train.windows(0, args.stage).shape[-1]
    probes = [AttentiveProbe(dim, classes) for _ in ATTENTIVE_RATES]
    for probe in probes[1:]:  # all start alike
        probe.load_state_dict(probes[0].state_dict())
    optimizer = optimizer_of(probes, ATTENTIVE_RATES, adam=True)
    labels = train.labels[rows]
    batch = min(args.batch, 64)
    train_probes(probes, optimizer, one_window, labels, epochs=args.attentive_epochs, batch_size=batch, seed=args.seed)

    @torch.inference_mode()
    def scores(features: Features, which: list[int]) -> Tensor:
        of_videos = []
        for row in which:
            parts = features.windows(row, args.stage).split(16)
            of_videos.append(torch.stack([torch.cat([p(w).softmax(-1) for w in parts]).mean(0) for p in probes]))
        return torch.stack(of_videos, dim=1)

    return [scores(train, held_out.tolist()), scores(test, list(range(len(test.files))))]


def chosen(rates: tuple[float, ...], scores: list[Tensor], train: Features, test: Features, held_out: Tensor) -> dict:
    by_rate = []
    for rate, of_held_out, of_test in zip(rates, *scores):
        held = hits(ranked(of_held_out), train.labels[held_out])["top1"] if len(held_out) else 0.0
        by_rate.append({"rate": rate, "held_out_top1": held, **hits(ranked(of_test), test.labels)})
    best = max(by_rate, key=lambda row: row["held_out_top1"])
    return {**best, "by_rate": by_rate}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path, help="features folder of the videos that are learned from")
    parser.add_argument("test", type=Path, help="features folder of the videos that are asked")
    parser.add_argument("--lists", nargs=2, required=True, metavar=("TRAIN", "TEST"), help="lists with their labels")
    parser.add_argument("--stage", type=int, default=4, choices=(1, 2, 3, 4), help="whose map the attentive probe sees")
    parser.add_argument("--neighbours", type=int, default=NEIGHBOURS)
    parser.add_argument("--epochs", type=int, default=200, help="of the linear probe")
    parser.add_argument("--attentive-epochs", type=int, default=50)
    parser.add_argument("--batch", type=int, default=256, help="videos; at most 64 for the attentive probe")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    if min(args.neighbours, args.epochs, args.attentive_epochs, args.batch) < 1:
        raise UserError("--neighbours, --epochs, --attentive-epochs and --batch must be > 0")
    train, test = Features(args.train, args.lists[0]), Features(args.test, args.lists[1])
    if train.shape() != test.shape() or train.weights != test.weights:
        raise UserError(f"{args.train} and {args.test} hold features of different weights; extract both with the same")
    classes = 1 + int(max(train.labels.max(), test.labels.max()))
    torch.manual_seed(args.seed)
    order = torch.randperm(len(train.files), generator=torch.Generator().manual_seed(args.seed))
    count = round(HELD_OUT * len(order)) if len(order) > 1 else 0
    split = (order[count:].sort().values, order[:count].sort().values)
    for name, features in (("learned from", train), ("asked", test)):
        left_out = f" ({features.left_out} without a label or features)" if features.left_out else ""
        print(f"videos {name}: {len(features.files)}{left_out}")

    votes = nearest_neighbours(train.means(), train.labels, test.means(), k=args.neighbours)
    result = {"nearest neighbours": hits(ranked(votes), test.labels)}
    result["linear"] = chosen(LINEAR_RATES, linear(train, test, split, classes, args), train, test, split[1])
    if train.has_maps(args.stage) and test.has_maps(args.stage):
        scores = attentive(train, test, split, classes, args)
        result["attentive"] = chosen(ATTENTIVE_RATES, scores, train, test, split[1])
    else:
        print(f"no attentive probe: the features hold no whole maps; extract them with features.stages=[{args.stage}]")
    for name, row in result.items():
        tried = [r["rate"] for r in row.get("by_rate", [])]
        if tried and row["rate"] in (tried[0], tried[-1]):
            print(f"{name}: the best rate, {row['rate']:g}, is at the end of those tried; one beyond it may be better")
    print("\n| probe | rate | top-1 | top-5 |\n|---|---|---|---|")
    for name, row in result.items():
        print(f"| {name} | {row.get('rate', '')} | {row['top1']:.2f} | {row['top5']:.2f} |")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    run_command(main)
