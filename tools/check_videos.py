"""Tries every video of a list: decodes it whole, in a process that is killed when it takes too long.

    python tools/check_videos.py /k400/train.csv

Writes train.manifest.csv beside the list (path,status,frames,fps,width,height,reason) and train.clean.csv, the rows that are
ok, as the list has them. Status: ok, damaged (a coded frame does not decode), unreadable, missing, timeout, crashed. A header
that is wrong about the number of frames alone is ok, with a reason. Relative paths are under --root, by default the list's
folder. The exit status is 0, whatever is found.
"""

import argparse
import csv
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a plain checkout works without installing it

from tqdm import tqdm

from hiera_video.data.annotations import VideoList, read_videos
from hiera_video.data.decode_process import DecodeFailure, DecodeProcess
from hiera_video.data.packets import VideoError
from hiera_video.errors import UserError, run_command

COLUMNS = ("path", "status", "frames", "fps", "width", "height", "reason")


class Checker:
    """Rows of the manifest; each thread has a decoding process of its own."""

    def __init__(self, videos: VideoList, timeout_s: float):
        self.videos, self.timeout_s, self._of_thread = videos, timeout_s, threading.local()

    def __call__(self, row: int) -> dict[str, object]:
        path = self.videos.path(row)
        result = {"path": self.videos.written(row), "frames": 0, "fps": "", "width": "", "height": "", "reason": ""}
        if not os.path.exists(path):
            return result | {"status": "missing", "reason": "there is no such file"}
        try:
            report = self._process().inspect(path)
        except DecodeFailure as e:
            return result | {"status": e.kind, "reason": str(e)}
        except VideoError as e:
            return result | {"status": "unreadable", "reason": str(e)}
        status = "damaged" if report.damage else "ok"
        size = {"width": report.width, "height": report.height}
        found = {"frames": report.frames, "fps": f"{report.fps:.6g}", "reason": report.damage or report.remark}
        return result | {"status": status} | size | found

    def _process(self) -> DecodeProcess:
        if not hasattr(self._of_thread, "process"):
            self._of_thread.process = DecodeProcess(timeout_s=self.timeout_s)
        return self._of_thread.process


def check(videos: VideoList, *, timeout_s: float, workers: int) -> Iterator[dict[str, object]]:
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(Checker(videos, timeout_s), range(len(videos)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("list", type=Path, help="one video a line: `path label`, or `path`")
    parser.add_argument("--root", type=Path, help="folder of relative paths; default: the list's")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for one video")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="videos at a time")
    args = parser.parse_args()
    if args.timeout <= 0 or args.workers < 1:
        raise UserError(f"--timeout {args.timeout:g} and --workers {args.workers} must be > 0")
    if not args.list.is_file():
        raise UserError(f"there is no list {args.list}")
    videos = read_videos(args.list.absolute(), root=args.root or args.list.absolute().parent, key="list")
    manifest, clean = (args.list.with_suffix(f".{what}.csv") for what in ("manifest", "clean"))
    counts: Counter[str] = Counter()
    try:
        with open(manifest, "w", newline="") as m, open(clean, "w") as c:
            writer = csv.DictWriter(m, COLUMNS)
            writer.writeheader()
            rows = check(videos, timeout_s=args.timeout, workers=args.workers)
            for row, result in enumerate(tqdm(rows, total=len(videos), unit="videos", disable=not sys.stderr.isatty())):
                writer.writerow(result)
                m.flush()
                counts[result["status"]] += 1
                if result["status"] == "ok":
                    c.write(videos.line(row) + "\n")
                else:
                    tqdm.write(f"{result['status']}: {result['path']}: {result['reason']}")
    except OSError as e:
        raise UserError(f"cannot write {e.filename}: {e.strerror}") from e
    print(f"{len(videos)} videos: {', '.join(f'{n} {s}' for s, n in counts.most_common())}; {manifest}, {clean}")


if __name__ == "__main__":
    run_command(main)
