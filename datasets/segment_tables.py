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
import math
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# A checkout works without being installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from official_lists import find_videos

from hiera_video.data.tables import SEVERAL
from hiera_video.system.errors import UserError, run_command
from hiera_video.system.files import write_csv, write_text

LATE_S = 600  # in which nothing happens: the files are likely cut
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
        database.items()
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{args.annotations}: no ActivityNet json with a `database`: {e}") from e
    subsets = {entry.get("subset") for entry in database.values()}
    if args.subset is not None and args.subset not in subsets:
        named = ", ".join(sorted(filter(None, subsets)))
        raise UserError(f"--subset {args.subset}: {args.annotations} has {named}")
    for name, entry in database.items():
        if args.subset not in (None, entry.get("subset")):
            continue
        for number, said in enumerate(entry.get("annotations") or ()):
            try:
                duration = float(entry.get("duration") or "inf")  # HACS writes it as a text
                start, end = map(float, said["segment"])
                label = str(said["label"] or "")
            except (KeyError, TypeError, ValueError):
                label = ""
            if not label or SEVERAL in label:
                raise UserError(
                    f"{args.annotations}: annotation {number + 1} of {name} needs a label without "
                    f"{SEVERAL!r}, a segment of two numbers and a duration that is one"
                )
            yield name, label, max(0.0, start), min(end, duration), []


def ava(args: argparse.Namespace) -> Iterator[Row]:
    """video_id,timestamp,x1,y1,x2,y2,action_id[,person_id], without a header"""
    names = read_actions(args.actions) if args.actions else {}
    rows: dict[tuple[str, ...], list[str]] = {}
    for line, cells in enumerate(csv.reader(read_text(args.annotations).splitlines()), start=1):
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
        return math.isfinite(float(text))
    except ValueError:
        return False


def read_text(file: Path) -> str:
    """Raises UserError."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise UserError(f"{file}: no text in UTF-8: {e}") from e


def read_actions(file: Path) -> dict[str, str]:
    """id -> name, of a .pbtxt. Raises UserError."""
    if not file.is_file():
        raise UserError(f"--actions: there is no file {file}")
    found = {number: name for name, number in ACTION.findall(read_text(file))}
    if not found:
        raise UserError(f'--actions {file}: no entries with `name: ".."` and `id: ..`')
    several = sorted(name for name in found.values() if SEVERAL in name)
    if several:
        raise UserError(f"--actions {file}: {several[0]!r}: a {SEVERAL!r} parts labels")
    return found


READERS = {"activitynet": activitynet, "ava": ava}


class Place(NamedTuple):
    """A file, and the seconds of the whole video that it is."""

    path: str
    start_s: float = 0.0
    end_s: float = math.inf


class Files:
    """The videos of a folder, by their ids. Raises UserError."""

    def __init__(self, folder: Path):
        self._wholes: dict[str, Place] = {}
        self._parts: dict[str, list[Place]] = {}
        for stem, path in find_videos(folder).items():
            part = PART.search(stem)
            if part is None:
                self._wholes[stem.removeprefix("v_")] = Place(path)
            else:
                place = Place(path, int(part[1]), int(part[2]))
                self._parts.setdefault(PART.sub("", stem), []).append(place)

    def place(self, name: str, at_s: float) -> Place | None:
        """The file that shows that second; else any part of the video, which then does not."""
        whole = self._wholes.get(name.removeprefix("v_"))
        if whole is not None:
            return whole
        parts = self._parts.get(name, [])
        showing = [part for part in parts if part.start_s <= at_s <= part.end_s]
        return next(iter(showing + parts), None)


def write_table(args: argparse.Namespace) -> None:
    """Raises UserError."""
    if not args.annotations.is_file():
        raise UserError(f"there is no annotation file {args.annotations}")
    if not args.videos.is_dir():
        raise UserError(f"--videos: there is no folder {args.videos}")
    if not all(map(math.isfinite, (getattr(args, "starts_at", 0), getattr(args, "seconds", 1)))):
        raise UserError("--starts-at and --seconds: numbers of seconds")
    found = Files(args.videos)
    root = args.output.absolute().parent
    lines = []
    missing: dict[str, None] = {}
    empty = 0
    for name, label, start, end, others in READERS[args.set](args):
        place = found.place(name, (start + end) / 2)
        if place is None:
            missing[name] = None
            continue
        start = max(start, place.start_s) - place.start_s
        end = min(end, place.end_s) - place.start_s
        if end <= max(start, 0.0):
            empty += 1
            continue
        path = os.path.relpath(os.path.abspath(place.path), root)
        lines.append([path, label, f"{max(start, 0.0):.3f}", f"{end:.3f}", *others])
    if not lines:
        raise UserError(
            f"{args.annotations} leaves no segment: {len(missing)} videos are not under "
            f"{args.videos}, {empty} segments are empty"
        )
    header = ["path", "label", "start_s", "end_s"]
    if len(lines[0]) > len(header):
        header += BOX
    try:
        root.mkdir(parents=True, exist_ok=True)
        write_csv(args.output, [header, *lines])
    except OSError as e:
        raise UserError(f"--output: cannot write {args.output}: {e.strerror}") from e
    report = args.output.with_name(f"{args.output.name}.missing.txt")
    report.unlink(missing_ok=True)
    if missing:
        write_text(report, "".join(f"{name}\n" for name in missing))
    videos = len({line[0] for line in lines})
    classes = len({label for line in lines for label in line[1].split(SEVERAL)})
    earliest = min(float(line[2]) for line in lines)
    if args.set == "ava" and args.starts_at == 0 and earliest > LATE_S:
        print(
            f"the first segment begins at {earliest:g} s: --starts-at says where files begin that "
            "were cut out of longer videos",
            file=sys.stderr,
        )
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
