"""What masked-autoencoder pretraining is worth on your videos: arms that differ in one thing.

    hiera-video study --pretrain configs/MIRACL/pretrain.yaml \\
        --finetune configs/MIRACL/finetune.yaml --baseline configs/MIRACL/baseline.yaml \\
        --budgets 1 0.25 --rates 3e-4 1e-3 --seeds 3 --equal-time --output runs/study/miracl

Pretrains once a seed. Then fine-tunes, on shares of the labels and for the same number of steps,
from the pretrained weights, from the same autoencoder before its first step, from the classifier's
own initialisation, and another model. Each arm tries every rate with seed 0; the one that is best
on data.val is taken for all seeds, and data.test tells the accuracy. --equal-time gives the arms
without pretraining its time as steps on labels. Frozen features are probed before and after.
--also NAME:key=value,.. pretrains in another way, too; --at fine-tunes from earlier checkpoints at
the rate of the last one. Probes of frozen features take minutes a seed: --no-probes.

Everything is another command's run in --output, so what is finished is not done again. Writes
study.json, table.md (mean and standard deviation over the seeds) and study.svg after every arm.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from hiera_video.commands.arguments import add_overrides, make_parser
from hiera_video.system.errors import UserError
from hiera_video.system.files import write_json, write_text

if TYPE_CHECKING:
    from hiera_video.study.results import Results


def parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--pretrain", required=True, metavar="CFG")
    add("--finetune", required=True, metavar="CFG")
    add("--baseline", metavar="CFG", help="another model on the same videos")
    add("--output", type=Path, required=True)
    add(
        "--budgets", type=float, nargs="+", default=[1.0], help="shares of the labels; default: all"
    )
    add("--rates", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3], help="default: %(default)s")
    add("--seeds", type=int, default=3, help="default: %(default)s")
    add("--steps", type=int, default=300, help="of fine-tuning; default: %(default)s")
    add("--also", action="append", default=[], metavar="NAME:key=value,..", help="pretrain so, too")
    add("--at", type=int, nargs="*", default=[], help="fine-tune after these steps, too")
    add("--equal-time", action="store_true", help="pretraining's time as steps on labels")
    add("--no-probes", action="store_true", help="leave frozen features out")
    add("--jobs", type=int, default=1, help="runs at a time; they share the cores")
    add_overrides(parser, "override a key of all configs")
    return parser


def main(args: argparse.Namespace) -> None:
    if min(args.seeds, args.steps, args.jobs, *args.rates) <= 0:
        raise UserError("--seeds, --steps, --jobs and --rates must be > 0")
    if not all(0 < budget <= 1 for budget in args.budgets):
        raise UserError(f"--budgets {args.budgets}: shares, above 0 and at most 1")
    # Imported here, after the arguments were read: torch takes seconds.
    from hiera_video.study.arms import PRETRAINED, Pretraining
    from hiera_video.study.runner import Settings, Study

    settings = Settings(
        pretrain=args.pretrain,
        finetune=args.finetune,
        baseline=args.baseline,
        output=args.output,
        pretrainings=(Pretraining(PRETRAINED), *map(Pretraining.parse, args.also)),
        budgets=tuple(sorted(set(args.budgets), reverse=True)),
        rates=tuple(args.rates),
        seeds=args.seeds,
        steps=args.steps,
        at=tuple(args.at),
        equal_time=args.equal_time,
        probes=not args.no_probes,
        jobs=args.jobs,
        overrides=tuple(args.overrides),
    )
    study = Study(settings, lambda line: print(line, flush=True))
    args.output.mkdir(parents=True, exist_ok=True)
    if study.tunes_on_the_test:
        print("rates are chosen on the test videos themselves: set data.test to a list of its own")
    for results in study.run():
        table = _write(args.output, results, study.tunes_on_the_test)
    print(f"\n{table}\n{args.output}: study.json, table.md, study.svg")


def _write(output: Path, results: "Results", tuned_on_the_test: bool) -> str:
    """The files of what is found so far; returns the table."""
    from hiera_video.pictures.dots import dot_plot
    from hiera_video.study.results import tables

    write_json(output / "study.json", results.as_json())
    table = tables(results)
    if tuned_on_the_test:
        table += "\nRates were chosen on the test videos themselves.\n"
    write_text(output / "table.md", table)
    panels = {}
    for budget in results.budgets:
        rows = {arm: [o.top1 for o in results.of(arm, budget)] for arm in results.arms}
        panels[f"{budget:.0%} of the labels"] = {arm: v for arm, v in rows.items() if v}
    write_text(output / "study.svg", dot_plot("Top-1, one dot a seed", panels))
    return table
