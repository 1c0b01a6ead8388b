"""Tries every video of a list: decodes it whole, in a process that is killed if it takes too long.

    hiera-video check-videos /k400/train.csv

Writes train.manifest.csv beside the list (path,status,frames,fps,width,height,reason) and
train.clean.csv, the rows that are ok, as the list has them. Status: ok, damaged (a coded frame does
not decode), unreadable, missing, timeout, crashed. A header that is wrong about the number of
frames alone is ok, with a reason. Relative paths are under --root, by default the list's folder.
The exit status is 0, whatever is found.

What a check that was killed had found is in train.manifest.csv.partial, and the next one goes on
from there. Only videos that are ok are kept there; the others are tried again.
"""

import argparse
import contextlib
import csv
import json
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from hiera_video.commands.arguments import make_parser
from hiera_video.data.decode.packets import stamp
from hiera_video.data.decode.process import DecodeFailure, DecodeProcess
from hiera_video.data.lists import VideoList, read_videos
from hiera_video.system.errors import UserError, VideoError
from hiera_video.system.files import exists, written_whole

COLUMNS = ("path", "status", "frames", "fps", "width", "height", "reason")
STATUS = {
    "unreadable": "unreadable",
    "timeout": "timeout",
    "stalled": "timeout",
    "crashed": "crashed",
    "killed": "crashed",
}
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
    checker = Checker(videos, args.timeout, args.list.with_suffix(".manifest.csv.partial"))
    if checker.known:
        print(f"{len(checker.known)} of {len(videos)} videos are ok as a check before found")
    rows = check(checker, len(videos), workers=args.workers)
    shown = tqdm(rows, total=len(videos), unit="videos", disable=not sys.stderr.isatty())
    try:
        counts = write(manifest, clean, videos, shown)
        checker.forget()
    except OSError as e:
        raise UserError(f"cannot write {e.filename}: {e.strerror}") from e
    found = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    print(f"{len(videos)} videos: {found}; {manifest}, {clean}")


def write(manifest: Path, clean: Path, videos: VideoList, rows: Iterable[Row]) -> Counter[object]:
    """Writes both files and names what is not ok. Returns how many have which status."""
    counts: Counter[object] = Counter()
    with (
        written_whole(manifest) as whole_manifest,
        written_whole(clean) as whole_clean,
        open(whole_manifest, "w", newline="", errors="surrogateescape") as m,
        open(whole_clean, "w", errors="surrogateescape") as c,
    ):
        writer = csv.DictWriter(m, COLUMNS)
        writer.writeheader()
        c.write(videos.head())
        for row, result in enumerate(rows):
            writer.writerow(result)
            counts[result["status"]] += 1
            if result["status"] == "ok":
                c.write(videos.line(row) + "\n")
            else:
                tqdm.write(f"{result['status']}: {result['path']}: {result['reason']}")
    return counts


def check(checker: "Checker", count: int, *, workers: int) -> Iterator[Row]:
    """Rows of the manifest, in list order."""
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(checker, range(count))


class Checker:
    """Makes rows of the manifest; each thread has a decoding process of its own.

    journal: what is ok is written there at once, and known from there after a kill: a JSON list
    [absolute path, state of the file, row of the manifest] a line.
    """

    def __init__(self, videos: VideoList, timeout_s: float, journal: Path):
        self._videos = videos
        self._timeout_s = timeout_s
        self._of_thread = threading.local()
        self._journal = journal
        self._writing = threading.Lock()
        self.known = self._found_before()

    def __call__(self, row: int) -> Row:
        path = self._videos.path(row)
        result: Row = dict.fromkeys(COLUMNS, "") | {"path": self._videos.written(row), "frames": 0}
        if not exists(path):
            return result | {"status": "missing", "reason": "there is no such file"}
        state = (os.path.abspath(path), stamp(path))
        if state in self.known:
            return self.known[state] | {"path": result["path"]}
        process = self._process()
        try:
            report = process.inspect(path)
        except VideoError as e:
            kind = e.kind if isinstance(e, DecodeFailure) else "unreadable"
            fault = process.storage_fault(path)
            reason = f"its storage does not answer: {fault}" if fault else str(e)
            return result | {"status": STATUS[kind], "reason": reason}
        found = result | {
            "status": "damaged" if report.damage else "ok",
            "frames": report.frames,
            "fps": f"{report.fps:.6g}",
            "width": report.width,
            "height": report.height,
            "reason": report.damage or report.remark,
        }
        if found["status"] == "ok":
            with self._writing, open(self._journal, "a") as file:
                file.write(json.dumps([*state, found]) + "\n")
        return found

    def forget(self) -> None:
        """The check is done."""
        self._journal.unlink(missing_ok=True)

    def _found_before(self) -> dict[tuple[str, str], Row]:
        """By path and state of the file."""
        known: dict[tuple[str, str], Row] = {}
        try:
            lines = self._journal.read_text().splitlines()
        except OSError:
            return {}
        with contextlib.suppress(OSError), open(self._journal, "a") as file:
            file.write("\n")  # the last line may be cut short
        for line in lines:
            with contextlib.suppress(ValueError):  # cut short by the kill
                path, state, row = json.loads(line)
                known[path, state] = row
        return known

    def _process(self) -> DecodeProcess:
        if not hasattr(self._of_thread, "process"):
            self._of_thread.process = DecodeProcess(timeout_s=self._timeout_s)
        return self._of_thread.process
