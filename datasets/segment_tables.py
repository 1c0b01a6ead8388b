"""Tables with segments from ActivityNet's json and from csv like AVA's.

    python datasets/segment_tables.py activitynet activity_net.v1-3.min.json \\
        --subset training --videos /anet/videos --output /anet/train.csv
    python datasets/segment_tables.py ava ava_train_v2.2.csv --actions ava_action_list_v2.2.pbtxt \\
        --starts-at 900 --videos /ava/clips --output /ava/train.csv

A table has a line a segment, `path,label,start_s,end_s` (docs/data.md), with paths relative to the
folder of --output and classes by name. HACS, FineAction and other sets that follow ActivityNet are
read as it is. Of AVA, what any person does at one time is the several labels of a segment around
it; --persons gives each person a row, whose box stands in the columns x1,y1,x2,y2,person_id.

Videos are looked for at any depth of --videos. Those that are not there are left out, counted, and
named in <output>.missing.txt; segments that are empty are left out and counted.
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

from official_lists import find_videos

from hiera_video.data.tables import SEVERAL
from hiera_video.system.errors import UserError, run_command
from hiera_video.system.files import write_text, written_whole

BOX = ["x1", "y1", "x2", "y2", "person_id"]
ACTION = re.compile(r'name:\s*"([^"]*)"\s*(?:label_)?id:\s*(\d+)')
# Kinetics names a file by the seconds of the original that it is.
PART = re.compile(r"_(\d{6})_(\d{6})\Z")
# id of the video, label, start and end in seconds, other cells
Row = tuple[str, str, float, float, list[str]]


def activitynet(args: argparse.Namespace) -> Iterator[Row]:
    """{"database": {id: {"subset", "duration", "annotations": [{"label", "segment"}]}}}"""
    try:
        database = json.loads(args.annotations.read_text(encoding="utf-8"))["database"]
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as e:
        raise UserError(f"{args.annotations}: no ActivityNet json with a `database`: {e}") from e
    subsets = {entry.get("subset") for entry in database.values()}
    if args.subset is not None and args.subset not in subsets:
        named = ", ".join(sorted(filter(None, subsets)))
        raise UserError(f"--subset {args.subset}: {args.annotations} has {named}")
    for name, entry in database.items():
        if args.subset not in (None, entry.get("subset")):
            continue
        duration = float(entry.get("duration") or "inf")  # HACS writes it as a text
        for number, said in enumerate(entry.get("annotations") or ()):
            try:
                start, end = map(float, said["segment"])
                label = said["label"]
            except (KeyError, TypeError, ValueError):
                raise UserError(
                    f"{args.annotations}: annotation {number + 1} of {name} needs a label and a "
                    "segment of two numbers"
                ) from None
            yield name, label, max(0.0, start), min(end, duration), []


def ava(args: argparse.Namespace) -> Iterator[Row]:
    """video_id,timestamp,x1,y1,x2,y2,action_id[,person_id], without a header"""
    names = read_actions(args.actions) if args.actions else {}
    rows: dict[tuple[str, ...], list[str]] = {}
    with open(args.annotations, newline="", encoding="utf-8") as f:
        for line, cells in enumerate(csv.reader(f), start=1):
            if len(cells) in (0, 2):  # AVA-Kinetics: nobody is there
                continue
            cells = [cell.strip() for cell in cells]
            if len(cells) not in (7, 8) or not _is_number(cells[1]):
                raise UserError(
                    f"{args.annotations} line {line}: not of the form "
                    "video_id,timestamp,x1,y1,x2,y2,action_id[,person_id]"
                )
            if cells[6] == "":
                continue
            if names and cells[6] not in names:
                raise UserError(
                    f"{args.annotations} line {line}: action {cells[6]} is not in {args.actions}"
                )
            box = [*cells[2:6], cells[7] if len(cells) == 8 else ""] if args.persons else []
            labels = rows.setdefault((cells[0], cells[1], *box), [])
            label = names.get(cells[6], cells[6])
            if label not in labels:
                labels.append(label)
    for (name, timestamp, *box), labels in rows.items():
        at = float(timestamp) - args.starts_at
        half = args.seconds / 2
        yield name, SEVERAL.join(labels), at - half, at + half, box


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_actions(file: Path) -> dict[str, str]:
    """id -> name, of a .pbtxt. Raises UserError."""
    if not file.is_file():
        raise UserError(f"--actions: there is no file {file}")
    found = {number: name for name, number in ACTION.findall(file.read_text(encoding="utf-8"))}
    if not found:
        raise UserError(f'--actions {file}: no entries with `name: ".."` and `id: ..`')
    several = sorted(name for name in found.values() if SEVERAL in name)
    if several:
        raise UserError(f"--actions {file}: {several[0]!r}: a {SEVERAL!r} parts labels")
    return found


READERS = {"activitynet": activitynet, "ava": ava}


def write_table(args: argparse.Namespace) -> None:
    """Raises UserError."""
    if not args.annotations.is_file():
        raise UserError(f"there is no annotation file {args.annotations}")
    if not args.videos.is_dir():
        raise UserError(f"--videos: there is no folder {args.videos}")
    found = {stem.removeprefix("v_"): path for stem, path in find_videos(args.videos).items()}
    parts = {PART.sub("", stem): stem for stem in found if PART.search(stem)}
    root = args.output.absolute().parent
    lines = []
    missing: dict[str, None] = {}
    empty = 0
    for name, label, start, end, others in READERS[args.set](args):
        stem = name.removeprefix("v_")
        if stem not in found and stem in parts:
            stem = parts[stem]
            part = PART.search(stem)
            assert part is not None  # it was found by it
            start -= int(part[1])
            end -= int(part[1])
        if stem not in found:
            missing[name] = None
            continue
        start = max(0.0, start)
        if end <= start:
            empty += 1
            continue
        path = os.path.relpath(os.path.abspath(found[stem]), root)
        lines.append([path, label, f"{start:.3f}", f"{end:.3f}", *others])
    if not lines:
        raise UserError(
            f"{args.annotations} leaves no segment: {len(missing)} videos are not under "
            f"{args.videos}, {empty} segments are empty"
        )
    root.mkdir(parents=True, exist_ok=True)
    header = ["path", "label", "start_s", "end_s"]
    if len(lines[0]) > len(header):
        header += BOX
    with (
        written_whole(args.output) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as f,
    ):
        csv.writer(f).writerows([header, *lines])
    report = args.output.with_name(f"{args.output.name}.missing.txt")
    report.unlink(missing_ok=True)
    if missing:
        write_text(report, "".join(f"{name}\n" for name in missing))
    videos = len({line[0] for line in lines})
    classes = len({label for line in lines for label in line[1].split(SEVERAL)})
    print(
        f"{args.output}: {len(lines)} segments of {videos} videos, {classes} classes; "
        f"{len(missing)} videos not found{f', named in {report}' if missing else ''}; "
        f"{empty} segments empty"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sets = parser.add_subparsers(dest="set", required=True)
    for name, read in READERS.items():
        part = sets.add_parser(name, help=read.__doc__, description=read.__doc__)
        part.add_argument("annotations", type=Path)
        part.add_argument("--videos", type=Path, required=True, help="folder, at any depth")
        part.add_argument("--output", type=Path, required=True, help="the table to write")
        if name == "activitynet":
            part.add_argument("--subset", help="training, validation, ..; default all")
        else:
            part.add_argument("--actions", type=Path, help="names of the actions, a .pbtxt")
            part.add_argument(
                "--seconds", type=float, default=3.0, help="of a segment around its time stamp"
            )
            part.add_argument(
                "--starts-at", type=float, default=0.0, help="second at which the files begin"
            )
            part.add_argument("--persons", action="store_true", help="a row for every person")
    write_table(parser.parse_args())


if __name__ == "__main__":
    run_command(main)
