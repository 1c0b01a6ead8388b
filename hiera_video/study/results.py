"""What the runs of a study left: accuracies, seconds, and their table and picture."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hiera_video.evaluation.eyes import NAMES
from hiera_video.study.arms import PRETRAINED, SAME_START, Run
from hiera_video.system.log import read_metrics


@dataclass(frozen=True)
class Outcome:
    """Of one run, in percent."""

    arm: str
    budget: float
    rate: float
    seed: int
    steps: int
    val_top1: float  # of data.val after the last step; rates are chosen by it
    top1: float  # of data.test
    seconds: float  # of its training, as measured


def rows_of(folder: Path, split: str) -> list[dict[str, Any]]:
    return [row for _, row in read_metrics(folder / "metrics.jsonl") if row["split"] == split]


def seconds_of(folder: Path, clips_a_step: int) -> float:
    """Of a whole training: its steps times the median step, so that a pause does not count."""
    rows = rows_of(folder, "train")
    step_s = statistics.median(clips_a_step / row["clips_per_s"] for row in rows)
    return rows[-1]["step"] * step_s


def outcome(run: Run, folder: Path, clips_a_step: int) -> Outcome:
    test = json.loads((folder / "test/metrics.json").read_text())
    return Outcome(
        arm=run.arm,
        budget=run.budget,
        rate=run.rate,
        seed=run.seed,
        steps=rows_of(folder, "train")[-1]["step"],
        val_top1=rows_of(folder, "val")[-1]["top1"],
        top1=test["top1"],
        seconds=seconds_of(folder, clips_a_step),
    )


def best_rate(outcomes: Sequence[Outcome]) -> float:
    """The rate whose runs are best on data.val; of equal ones the lower."""
    rates = sorted({o.rate for o in outcomes})
    scores = [statistics.mean(o.val_top1 for o in outcomes if o.rate == rate) for rate in rates]
    return rates[scores.index(max(scores))]


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    if len(values) < 2:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


@dataclass(frozen=True)
class Results:
    """Everything a study found. chosen: the outcomes at each arm's chosen rate, of every seed."""

    tried: list[Outcome]
    chosen: list[Outcome]
    frozen: dict[str, list[dict[str, Any]]]  # probes by what the features are of, one a seed
    pretraining: dict[str, list[dict[str, Any]]]  # probe rows by its name, of seed 0
    seconds: dict[str, list[float]]  # of each pretraining, by its name

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def of(self, arm: str, budget: float) -> list[Outcome]:
        """By seed."""
        found = [o for o in self.chosen if (o.arm, o.budget) == (arm, budget)]
        return sorted(found, key=lambda o: o.seed)

    @property
    def arms(self) -> list[str]:
        return list(dict.fromkeys(o.arm for o in self.chosen))

    @property
    def budgets(self) -> list[float]:
        return sorted({o.budget for o in self.chosen}, reverse=True)


def tables(results: Results) -> str:
    """Markdown."""
    parts = [_accuracies(results), _gains(results), _frozen(results), _curves(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _accuracies(results: Results) -> str:
    head = [f"{budget:.0%} of the labels" for budget in results.budgets]
    lines = [_row(["top-1, test", "steps", "seconds", "rate", *head])]
    lines.append("|---" * (4 + len(head)) + "|")
    for arm in results.arms:
        found = [results.of(arm, budget) for budget in results.budgets]
        first = next(outcomes for outcomes in found if outcomes)
        cells = [spread([o.top1 for o in outcomes]) if outcomes else "" for outcomes in found]
        rates = list(dict.fromkeys(f"{outcomes[0].rate:g}" for outcomes in found if outcomes))
        seconds = statistics.mean(o.seconds for o in first)
        lines.append(_row([arm, str(first[0].steps), f"{seconds:.0f}", ", ".join(rates), *cells]))
    for name, spent in results.seconds.items():
        lines.append(f"\nPretraining `{name}` took {statistics.mean(spent):.0f} s before that.")
    return "\n".join(lines)


def _gains(results: Results) -> str:
    """Differences to the pretrained arm, seed by seed."""
    lines = [_row(["points that pretraining gains over", *[f"{b:.0%}" for b in results.budgets]])]
    lines.append("|---" * (1 + len(results.budgets)) + "|")
    for arm in results.arms:
        cells = []
        for budget in results.budgets:
            ours = {o.seed: o.top1 for o in results.of(PRETRAINED, budget)}
            theirs = {o.seed: o.top1 for o in results.of(arm, budget)}
            both = sorted(ours.keys() & theirs.keys())
            cells.append(spread([ours[s] - theirs[s] for s in both]) if both else "")
        if arm != PRETRAINED and any(cells):
            lines.append(_row([arm, *cells]))
    return "\n".join(lines) if len(lines) > 2 else ""


def _frozen(results: Results) -> str:
    if not results.frozen:
        return ""
    names = list(results.frozen)
    probes = list(results.frozen[names[0]][0])
    titles = ["before its first step" if name == SAME_START else name for name in names]
    lines = [_row(["frozen features, top-1, test", *titles]), "|---" * (1 + len(names)) + "|"]
    for probe in probes:
        cells = [spread([of_seed[probe]["top1"] for of_seed in results.frozen[n]]) for n in names]
        lines.append(_row([probe, *cells]))
    return "\n".join(lines)


def _curves(results: Results) -> str:
    parts = []
    for name, rows in results.pretraining.items():
        keys = [key for key in SHOWN if any(key in row for row in rows)]
        lines = [f"Pretraining `{name}`, seed 0, on data.val (accuracies in percent):\n"]
        lines += [_row(["step", *[NAMES[key] for key in keys]]), "|---" * (1 + len(keys)) + "|"]
        for row in rows:
            cells = [_cell(key, row[key]) if key in row else "" for key in keys]
            lines.append(_row([str(row["step"]), *cells]))
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


SHOWN = (
    "mae_loss",
    "position",
    "copy",
    "explained",
    "rank",
    "variance",
    "knn_top1",
    "linear_top1",
    "linear_in_time_top1",
)


def _cell(key: str, value: float) -> str:
    return f"{value:.1%}" if key == "explained" else f"{value:.3g}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
