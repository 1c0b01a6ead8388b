"""Looks for what is wrong with lists before a run spends days on them.

    python datasets/check_lists.py /k400/train.csv /k400/val.csv --classes datasets/labels/k400.txt

Of each list: files that are not there, videos that stand in it twice, labels out of range or
missing, classes without a video. Between lists: videos that stand in two of them, by path, by file
name, with --content by their bytes, and, with --duplicates, near-duplicates that `hiera-video
duplicates` found, within a list, too. Relative paths are under --root, by default the folder of
each list. --group names a column of tables, such as the person: groups in two lists are leaks, too.
Exit status 0 if nothing was found, 2 if something was. tools/check_videos.py decodes the
videos; this only looks at lists and names.
"""

import argparse
import csv
import hashlib
import os
import sys
from collections import Counter
from pathlib import Path

# A checkout works without being installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm

from hiera_video.data.lists import VideoList, read_videos
from hiera_video.system.errors import UserError, run_command
from hiera_video.system.files import exists, local, size_of
from hiera_video.system.members import open_bytes

SHOWN = 5  # examples of each kind of problem


class Findings:
    def __init__(self) -> None:
        self.count = 0

    def say(self, what: str, examples: list[str]) -> None:
        if examples:
            self.count += len(examples)
            more = f" and {len(examples) - SHOWN} more" if len(examples) > SHOWN else ""
            print(f"{len(examples)} {what}: {', '.join(examples[:SHOWN])}{more}")


def check_list(videos: VideoList, name: str, classes: list[str] | None, findings: Findings) -> None:
    if classes is not None and videos.header and videos.classes:
        unknown = [label for label in videos.classes if label not in classes]
        findings.say(f"labels in {name} that are no class", unknown)
        videos = videos.numbered_by([*classes, *unknown], key=name)
    paths = [videos.written(i) for i in range(len(videos))]
    there = tqdm(range(len(videos)), desc=name, unit="files", disable=not sys.stderr.isatty())
    findings.say(
        f"missing files in {name}", [paths[i] for i in there if not exists(videos.path(i))]
    )
    rows = Counter((p, videos.segment(i)) for i, p in enumerate(paths))
    findings.say(f"repeated videos in {name}", [p for (p, _), n in rows.items() if n > 1])
    unlabelled = [p for p, label in zip(paths, videos.labels) if label == -1]
    if len(unlabelled) < len(paths):
        findings.say(f"videos without a label in {name}", unlabelled)
    if classes is None or len(unlabelled) == len(paths):
        return
    wrong = [
        f"{p} {label}"
        for p, label in zip(paths, videos.labels)
        if label < -1 or label >= len(classes)
    ]
    findings.say(f"labels outside 0 to {len(classes) - 1} in {name}", wrong)
    seen = set(videos.labels.tolist())
    findings.say(
        f"classes without a video in {name}", [c for k, c in enumerate(classes) if k not in seen]
    )


def check_pair(a: VideoList, b: VideoList, names: str, content: bool, findings: Findings) -> None:
    paths = [{os.path.abspath(v.path(i)): v.written(i) for i in range(len(v))} for v in (a, b)]
    same = sorted(paths[0].keys() & paths[1].keys())
    findings.say(f"videos in both {names}", same)
    stems = [{Path(name).stem: path for path, name in which.items()} for which in paths]
    alike = sorted(stems[0].keys() & stems[1].keys() - {Path(paths[0][p]).stem for p in same})
    findings.say(f"file names in both {names}, in different folders", [stems[0][s] for s in alike])
    if content:
        sizes = [{}, {}]
        for by_size, which in zip(sizes, paths):
            for path in which:
                if exists(path):
                    by_size.setdefault(size_of(path), []).append(path)
        shared = sorted(sizes[0].keys() & sizes[1].keys())  # only files of equal size are read
        hashes = [{_hash(p): p for size in shared for p in by_size[size]} for by_size in sizes]
        twins = [
            f"{hashes[0][h]} = {hashes[1][h]}" for h in sorted(hashes[0].keys() & hashes[1].keys())
        ]
        findings.say(
            f"files of equal content in {names}",
            [t for t in twins if len(set(t.split(" = "))) == 2],
        )


def check_groups(lists: dict[str, VideoList], column: str, findings: Findings) -> None:
    """Raises UserError for a list without the column."""
    groups = {}
    for name, videos in lists.items():
        cells = videos.column(column)
        if cells is None:
            raise UserError(f"--group {column}: {name} has no such column")
        groups[name] = set(filter(None, cells))
    names = list(lists)
    for k, a in enumerate(names):
        for b in names[k + 1 :]:
            findings.say(f"groups ({column}) in both {a} and {b}", sorted(groups[a] & groups[b]))


def check_duplicates(
    pairs: list[tuple[str, str]], lists: dict[str, VideoList], findings: Findings
) -> None:
    """pairs: paths as the lists have them"""
    names = list(lists)
    held = {name: {v.written(i) for i in range(len(v))} for name, v in lists.items()}
    for k, a in enumerate(names):
        for b in names[k:]:
            both = sorted(
                f"{one} = {other}"
                for one, other in pairs
                if (one in held[a] and other in held[b]) or (one in held[b] and other in held[a])
            )
            where = f"within {a}" if a == b else f"between {a} and {b}"
            findings.say(f"near-duplicates {where}", both)


def read_pairs(file: Path) -> list[tuple[str, str]]:
    """Raises UserError."""
    if not file.is_file():
        raise UserError(f"--duplicates {file}: name the csv file")
    with open(file, newline="", encoding="utf-8", errors="surrogateescape") as f:
        rows = csv.DictReader(f)
        if not {"path_a", "path_b"} <= set(rows.fieldnames or ()):
            raise UserError(f"--duplicates {file}: it has no columns path_a and path_b")
        return [(row["path_a"], row["path_b"]) for row in rows]


def _hash(path: str) -> str:
    digest = hashlib.sha256()
    with open_bytes(local(path)) as f:
        for part in iter(lambda: f.read(1 << 20), b""):
            digest.update(part)
    return digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("lists", type=Path, nargs="+")
    parser.add_argument("--root", type=Path, help="folder of relative paths; default: each list's")
    parser.add_argument("--classes", type=Path, help="one class name a line")
    parser.add_argument(
        "--content", action="store_true", help="also look for equal files under different names"
    )
    parser.add_argument("--group", metavar="COLUMN", help="that no two lists may share a value of")
    parser.add_argument("--duplicates", type=Path, help="the csv of `hiera-video duplicates`")
    args = parser.parse_args()
    for file in [*args.lists, *filter(None, (args.classes, args.duplicates))]:
        if not file.exists():
            raise UserError(f"there is no file {file}")
    classes = args.classes.read_text(encoding="utf-8").splitlines() if args.classes else None
    findings = Findings()
    lists = {}
    for file in args.lists:
        lists[str(file)] = read_videos(
            file.absolute(), root=args.root or file.absolute().parent, key="list"
        )
        check_list(lists[str(file)], str(file), classes, findings)
    names = list(lists)
    for k, a in enumerate(names):
        for b in names[k + 1 :]:
            check_pair(lists[a], lists[b], f"{a} and {b}", args.content, findings)
    if args.group:
        check_groups(lists, args.group, findings)
    if args.duplicates:
        check_duplicates(read_pairs(args.duplicates), lists, findings)
    total = sum(map(len, lists.values()))
    if findings.count:
        raise UserError(
            f"{findings.count} problems in {len(lists)} lists of {total} videos (named above)"
        )
    print(f"nothing wrong in {len(lists)} lists of {total} videos")


if __name__ == "__main__":
    run_command(main)
