"""Lists from the official files of Kinetics, Something-Something v2, UCF-101 and HMDB-51.

    python datasets/official_lists.py kinetics train.csv \\
        --videos /k400/train --classes k400 --output /k400/train.csv
    python datasets/official_lists.py ssv2 something-something-v2-train.json \\
        --videos /ssv2/videos --output /ssv2/train.csv
    python datasets/official_lists.py ucf101 ucfTrainTestlist/trainlist01.txt \\
        --videos /ucf/UCF-101 --output /ucf/train.csv
    python datasets/official_lists.py hmdb51 testTrainMulti_7030_splits --part train \\
        --videos /hmdb --output /hmdb/train.csv

A list has one video a line, `path label`, with paths relative to the folder of --output. Videos are
looked for at any depth of --videos. Those that are not there are left out, counted, and named in
<output>.missing.txt: every copy of these sets has gaps. Class numbers are the line numbers in
datasets/labels (--classes takes another file). datasets/README.md has the formats.
"""

import argparse
import csv
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

# A checkout works without being installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hiera_video.data.lists import VIDEO_SUFFIXES
from hiera_video.system.errors import UserError, run_command

LABELS = Path(__file__).resolve().parent / "labels"
HMDB_PARTS = {"train": "1", "test": "2"}
Row = tuple[
    list[str], str | None
]  # names under which the file may be found, without suffix; class, None for unlabelled


def kinetics(args: argparse.Namespace) -> Iterator[Row]:
    """label,youtube_id,time_start,time_end,split[,is_cc]

    Files are <id>_<start>_<end>, times in six digits, or <id>.
    """
    with open(args.annotations, newline="", encoding="utf-8") as f:
        reader = csv.DictReader(f)
        columns = {"youtube_id", "time_start", "time_end"}
        if not columns <= set(reader.fieldnames or ()):
            raise UserError(
                f"{args.annotations}: the header of a Kinetics CSV names "
                f"{', '.join(sorted(columns))}"
            )
        for row in reader:
            start = int(float(row["time_start"]))
            end = int(float(row["time_end"]))
            yield (
                [f"{row['youtube_id']}_{start:06d}_{end:06d}", row["youtube_id"]],
                row.get("label") or None,
            )


def ssv2(args: argparse.Namespace) -> Iterator[Row]:
    """[{"id": .., "template": "Holding [something] ..", ..}, ..]

    The class is the template without brackets.
    """
    try:
        entries = json.loads(args.annotations.read_text(encoding="utf-8"))
    except json.JSONDecodeError as e:
        raise UserError(f"{args.annotations} line {e.lineno}: {e.msg}") from e
    if not isinstance(entries, list) or any("id" not in e for e in entries):
        raise UserError(f"{args.annotations}: a list of objects with an `id` was expected")
    for entry in entries:
        template = entry.get("template")
        yield [str(entry["id"])], re.sub(r"[\[\]]", "", template) if template else None


def ucf101(args: argparse.Namespace) -> Iterator[Row]:
    """<class>/v_<class>_g08_c01.avi [1]: the class is the folder."""
    for line in args.annotations.read_text().splitlines():
        if line.strip():
            path = Path(line.split()[0])
            if not path.parent.name:
                raise UserError(
                    f"{args.annotations}: {line!r} is not of the form <class>/<video>.avi"
                )
            yield [path.stem], path.parent.name


def hmdb51(args: argparse.Namespace) -> Iterator[Row]:
    """<class>_test_split<n>.txt: `<video>.avi 1` in training, 2 in testing, 0 unused."""
    files = sorted(args.annotations.glob(f"*_test_split{args.split}.txt"))
    if not files:
        raise UserError(f"{args.annotations} has no files <class>_test_split{args.split}.txt")
    for file in files:
        for line in file.read_text().splitlines():
            if line.strip():
                name, part = line.rsplit(None, 1)
                if part == HMDB_PARTS[args.part]:
                    yield [Path(name).stem], file.name.removesuffix(f"_test_split{args.split}.txt")


SETS = {"kinetics": kinetics, "ssv2": ssv2, "ucf101": ucf101, "hmdb51": hmdb51}


def find_videos(folder: Path) -> dict[str, str]:
    """File name without suffix -> path. Raises UserError for a folder of extracted frames."""
    found: dict[str, str] = {}
    for here, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in VIDEO_SUFFIXES:
                found.setdefault(stem, os.path.join(here, name))
            elif suffix.lower() in (".jpg", ".jpeg", ".png") and not found:
                raise UserError(
                    f"{here} holds extracted frames ({name}); give the folder of the videos "
                    "themselves"
                )
    if not found:
        raise UserError(f"--videos: {folder} holds no video ({', '.join(VIDEO_SUFFIXES)})")
    return found


def class_numbers(name: str) -> dict[str, int]:
    file = LABELS / f"{name}.txt" if (LABELS / f"{name}.txt").is_file() else Path(name)
    if not file.is_file():
        known = ", ".join(sorted(f.stem for f in LABELS.glob("*.txt")))
        raise UserError(f"--classes: {name} is neither a file nor one of {known}")
    return {_plain(line): k for k, line in enumerate(file.read_text(encoding="utf-8").splitlines())}


def _plain(name: str) -> str:
    return re.sub(r"[\s_]+", " ", name.strip().strip('"')).lower()


def write_list(args: argparse.Namespace) -> None:
    if not args.annotations.exists():
        raise UserError(f"there is no annotation file {args.annotations}")
    if not args.videos.is_dir():
        raise UserError(f"--videos: there is no folder {args.videos}")
    numbers = class_numbers(args.classes)
    found = find_videos(args.videos)
    lines = []
    missing = []
    root = args.output.absolute().parent
    for names, label in SETS[args.set](args):
        if label is not None and _plain(label) not in numbers:
            raise UserError(
                f"{args.annotations}: class {label!r} is not among the {len(numbers)} of --classes "
                f"{args.classes}"
            )
        path = next((found[name] for name in names if name in found), None)
        if path is None:
            missing.append(f"{names[0]}\n")
        else:
            number = "" if label is None else f" {numbers[_plain(label)]}"
            lines.append(f"{os.path.relpath(os.path.abspath(path), root)}{number}\n")
    if not lines:
        raise UserError(
            f"none of the {len(missing)} videos of {args.annotations} is under {args.videos}"
        )
    root.mkdir(parents=True, exist_ok=True)
    args.output.write_text("".join(lines), encoding="utf-8", errors="surrogateescape")
    report = args.output.with_name(f"{args.output.name}.missing.txt")
    report.unlink(missing_ok=True)
    if missing:
        report.write_text("".join(missing))
    print(
        f"{args.output}: {len(lines)} videos; {len(missing)} not "
        f"found{f', named in {report}' if missing else ''}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sets = parser.add_subparsers(dest="set", required=True)
    for name, read in SETS.items():
        part = sets.add_parser(name, help=read.__doc__, description=read.__doc__)
        part.add_argument(
            "annotations",
            type=Path,
            help="the official file" if name != "hmdb51" else "folder of splits",
        )
        part.add_argument(
            "--videos", type=Path, required=True, help="folder of the videos, at any depth"
        )
        part.add_argument("--output", type=Path, required=True, help="the list to write")
        default = "k400" if name == "kinetics" else name
        part.add_argument(
            "--classes",
            default=default,
            help="name of a file in datasets/labels, or a file of one's own",
        )
        if name == "hmdb51":
            part.add_argument("--split", type=int, choices=(1, 2, 3), default=1)
            part.add_argument("--part", choices=HMDB_PARTS, required=True)
    write_list(parser.parse_args())


if __name__ == "__main__":
    run_command(main)
