"""Makes train.csv, val.csv and classes.txt of one table: some rows, a label, a split by groups.

    python datasets/split_table.py takes.csv --where kind=words --label label \\
        --group person --hold-out F10 M02 M04 --output lists/words
    python datasets/split_table.py words.csv --not slot=letter --label word \\
        --group path --val-share 0.25 --output lists/words

A table is a list with a header (docs/data.md); its columns are kept. Rows of one group, such as the
takes of a person or the words of a sentence, are never on both sides. Held out are the groups of
--hold-out, or a share of them drawn by --seed. Paths stay relative to what they were relative to;
--absolute makes them whole, so that data.root can be the folder of the lists. --tune-on names
groups of their own to choose rates and lengths by: they make val.csv then, what is held out
test.csv.
--unlabelled also writes pretrain.csv: all rows of the table of the training groups, not labelled.
"""

import argparse
import csv
import sys
from pathlib import Path

# A checkout works without being installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from hiera_video.system.errors import UserError, run_command

Row = dict[str, str]


def read_rows(file: Path) -> list[Row]:
    """Raises UserError."""
    if not file.is_file():
        raise UserError(f"there is no table {file}")
    with open(file, newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    if not rows or "path" not in rows[0]:
        raise UserError(f"{file} is no table with a column path")
    return rows


def is_chosen(row: Row, where: list[list[str]], without: list[list[str]]) -> bool:
    is_in = all(row[name] in values.split(",") for name, values in where)
    return is_in and not any(row[name] in values.split(",") for name, values in without)


def drawn(every: list[str], share: float, seed: int) -> set[str]:
    """A share of the groups. Raises UserError."""
    count = round(share * len(every))
    if not 0 < count < len(every):
        raise UserError(f"a share of {share} of {len(every)} groups leaves a side empty")
    order = np.random.default_rng(seed).permutation(len(every))
    return {every[k] for k in order[:count]}


def named(every: set[str], names: list[str], option: str) -> set[str]:
    """Raises UserError."""
    unknown = sorted(set(names) - every)
    if unknown:
        raise UserError(f"{option} {unknown[0]}: there is no such group to hold out")
    return set(names)


def split(groups: set[str], args: argparse.Namespace) -> dict[str, set[str]]:
    """Name of a list -> its groups. Raises UserError."""
    if args.hold_out:
        held = named(groups, args.hold_out, "--hold-out")
    else:
        held = drawn(sorted(groups), args.val_share, args.seed)
    others = groups - held
    tuned: set[str] = set()
    if args.tune_on:
        tuned = named(others, args.tune_on, "--tune-on")
    elif args.tune_share:
        tuned = drawn(sorted(others), args.tune_share, args.seed)
    if not tuned:
        return {"train": others, "val": held}
    return {"train": others - tuned, "val": tuned, "test": held}


def write(file: Path, rows: list[Row], columns: list[str]) -> None:
    with open(file, "w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("table", type=Path)
    add("--label", required=True, help="column of the labels")
    add("--group", required=True, help="column whose values stay on one side")
    add("--where", nargs="*", default=[], metavar="COLUMN=A,B", help="rows that are taken")
    add("--not", nargs="*", default=[], metavar="COLUMN=A,B", dest="without", help="left out")
    add("--hold-out", nargs="*", help="groups of val.csv")
    add("--tune-on", nargs="*", default=[], help="groups of val.csv; --hold-out is then test.csv")
    add("--tune-share", type=float, default=0.0, help="of the other groups, where none is named")
    add("--val-share", type=float, default=0.2, help="of the groups, where none is named")
    add("--seed", type=int, default=0)
    add("--absolute", action="store_true", help="paths from the table's folder on")
    add("--unlabelled", action="store_true", help="write pretrain.csv, too")
    add("--output", type=Path, required=True)
    args = parser.parse_args()
    rows = read_rows(args.table)
    conditions = [[c.split("=", 1) for c in given] for given in (args.where, args.without)]
    columns = [args.label, args.group, *(c[0] for given in conditions for c in given)]
    unknown = [name for name in columns if name not in rows[0]]
    if unknown:
        raise UserError(f"{args.table} has no column {unknown[0]!r}, but {', '.join(rows[0])}")
    if not all(len(c) == 2 for given in conditions for c in given):
        raise UserError("--where and --not take COLUMN=VALUE or COLUMN=VALUE,VALUE")
    if args.absolute:
        for row in rows:
            row["path"] = str(args.table.absolute().parent / row["path"])
    chosen = [row for row in rows if is_chosen(row, *conditions) and row[args.label]]
    if not chosen:
        raise UserError("no row of the table is left")
    groups = {row[args.group] for row in chosen}
    sides = split(groups, args)
    args.output.mkdir(parents=True, exist_ok=True)
    others = [name for name in rows[0] if name not in ("path", "label")]
    for row in chosen:
        row["label"] = row[args.label]
    for name, side in sides.items():
        part = [row for row in chosen if row[args.group] in side]
        write(args.output / f"{name}.csv", part, ["path", "label", *others])
        print(f"{args.output / name}.csv: {len(part)} rows")
    if args.unlabelled:
        aside = groups - sides["train"]
        part = [row for row in rows if row[args.group] not in aside]
        write(args.output / "pretrain.csv", part, ["path", *others])
        print(f"{args.output / 'pretrain'}.csv: {len(part)} rows")
    classes = sorted({row["label"] for row in chosen})
    if all(name.isdigit() for name in classes):  # numbers of classes, which have no names
        classes = [str(k) for k in range(1 + max(map(int, classes)))]
    (args.output / "classes.txt").write_text("".join(f"{name}\n" for name in classes))
    print(f"{args.output / 'classes.txt'}: {len(classes)} classes")


if __name__ == "__main__":
    run_command(main)
