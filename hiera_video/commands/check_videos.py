"""Tries every video of a list: decodes it whole, in a process that is killed if it takes too long.

    hiera-video check-videos /k400/train.csv

Writes train.manifest.csv beside the list (path,status,frames,fps,width,height,reason) and
train.clean.csv, the rows that are ok, as the list has them. Status: ok, damaged (a coded frame does
not decode), unreadable, missing, timeout, crashed. A header that is wrong about the number of
frames alone is ok, with a reason. Relative paths are under --root, by default the list's folder.
The exit status is 0, whatever is found.

What a check that was killed had found is in train.manifest.csv.partial, and the next one goes on
from there; videos that were not ok are tried again.
"""

import argparse
import csv
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from hiera_video.commands.arguments import make_parser
from hiera_video.data.decode.process import DecodeFailure, DecodeProcess
from hiera_video.data.lists import VideoList, read_videos
from hiera_video.system.errors import UserError, VideoError

COLUMNS = ("path", "status", "frames", "fps", "width", "height", "reason")
STATUS = {"timeout": "timeout", "stalled": "timeout", "crashed": "crashed", "killed": "crashed"}
Row = dict[str, object]  # of the manifest, by COLUMNS


def parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("list", type=Path, help="one video a line: `path label`, or `path`")
    parser.add_argument("--root", type=Path, help="folder of relative paths; default: the list's")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for one video")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="videos at a time")
    return parser


def main(args: argparse.Namespace) -> None:
    if args.timeout <= 0 or args.workers < 1:
        raise UserError(f"--timeout {args.timeout:g} and --workers {args.workers} must be > 0")
    if not args.list.is_file():
        raise UserError(f"there is no list {args.list}")
    listed = args.list.absolute()
    videos = read_videos(listed, root=args.root or listed.parent, key="list")
    manifest = args.list.with_suffix(".manifest.csv")
    clean = args.list.with_suffix(".clean.csv")
    partial = args.list.with_suffix(".manifest.csv.partial")
    clean_partial = args.list.with_suffix(".clean.csv.partial")
    known = found_before(partial, videos)
    if known:
        print(f"{len(known)} of {len(videos)} videos are ok as a check before found", flush=True)
    rows = check(videos, known, timeout_s=args.timeout, workers=args.workers)
    shown = tqdm(rows, total=len(videos), unit="videos", disable=not sys.stderr.isatty())
    try:
        counts = write(partial, clean_partial, videos, shown)
        clean_partial.replace(clean)
        partial.replace(manifest)
    except OSError as e:
        raise UserError(f"cannot write {e.filename}: {e.strerror}") from e
    found = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    print(f"{len(videos)} videos: {found}; {manifest}, {clean}")


def write(manifest: Path, clean: Path, videos: VideoList, rows: Iterable[Row]) -> Counter[object]:
    """Writes both files row by row and names what is not ok. Returns how many have which status."""
    counts: Counter[object] = Counter()
    with open(manifest, "w", newline="") as m, open(clean, "w") as c:
        writer = csv.DictWriter(m, COLUMNS)
        writer.writeheader()
        c.write(videos.head())
        for row, result in enumerate(rows):
            writer.writerow(result)
            m.flush()
            counts[result["status"]] += 1
            if result["status"] == "ok":
                c.write(videos.line(row) + "\n")
            else:
                tqdm.write(f"{result['status']}: {result['path']}: {result['reason']}")
    return counts


def found_before(partial: Path, videos: VideoList) -> dict[int, Row]:
    """What a check that was killed found to be ok, by row of the same list."""
    try:
        with open(partial, newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError:
        return {}
    known: dict[int, Row] = {}
    for number, row in enumerate(rows[: len(videos)]):
        # The last line may be cut short.
        whole = set(row) == set(COLUMNS) and None not in row.values()
        if whole and row["status"] == "ok" and row["path"] == videos.written(number):
            known[number] = dict(row)
    return known


def check(
    videos: VideoList, known: dict[int, Row], *, timeout_s: float, workers: int
) -> Iterator[Row]:
    """Rows of the manifest, in list order; those of `known` as they are."""
    checker = Checker(videos, timeout_s)

    def row_of(number: int) -> Row:
        return known[number] if number in known else checker(number)

    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(row_of, range(len(videos)))


class Checker:
    """Makes rows of the manifest; each thread has a decoding process of its own."""

    def __init__(self, videos: VideoList, timeout_s: float):
        self._videos = videos
        self._timeout_s = timeout_s
        self._of_thread = threading.local()

    def __call__(self, row: int) -> Row:
        path = self._videos.path(row)
        result: Row = dict.fromkeys(COLUMNS, "") | {"path": self._videos.written(row), "frames": 0}
        if not os.path.exists(path):
            return result | {"status": "missing", "reason": "there is no such file"}
        try:
            report = self._process().inspect(path)
        except DecodeFailure as e:
            return result | {"status": STATUS[e.kind], "reason": str(e)}
        except VideoError as e:
            return result | {"status": "unreadable", "reason": str(e)}
        return result | {
            "status": "damaged" if report.damage else "ok",
            "frames": report.frames,
            "fps": f"{report.fps:.6g}",
            "width": report.width,
            "height": report.height,
            "reason": report.damage or report.remark,
        }

    def _process(self) -> DecodeProcess:
        if not hasattr(self._of_thread, "process"):
            self._of_thread.process = DecodeProcess(timeout_s=self._timeout_s)
        return self._of_thread.process
