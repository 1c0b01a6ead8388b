"""Correct labels by eye: a page on this machine plays what the model finds hardest.

    hiera-video review runs/own
    hiera-video review runs/own --table my_videos/clips.csv

Shows the worst and the least certain videos or segments of a run's test, with its predictions, and
takes labels by the keyboard. Every correction is on the disk at once (RUN/review/corrections.jsonl;
a later review goes on from there), and in a new table beside the tested list, NAME.corrected.csv;
the old one stays as it is. --table corrects another table, by paths and segments, such as the one
that `hiera-video own` was given. The page is served to this machine alone, and asks for a token
that its address carries. Ctrl-C ends it.
"""

import argparse
import signal
import tempfile
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from hiera_video import build
from hiera_video.commands.arguments import make_parser
from hiera_video.config import load_config
from hiera_video.data.lists import VideoList, read_videos
from hiera_video.data.tables import LABEL
from hiera_video.review.corrections import Corrections, beside
from hiera_video.review.items import orders, read_items
from hiera_video.review.server import Review, ReviewServer
from hiera_video.system.errors import UserError
from hiera_video.system.files import write_text


def parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("run", type=Path, help="a run folder with a finished test")
    add(
        "--table",
        type=Path,
        help="that is corrected, or a folder of class folders; default: the tested list",
    )
    add("--output", type=Path, help="the new table; default: beside the old one")
    add("--count", type=int, default=200, help="videos or segments of each order")
    add("--port", type=int, default=0, help="default: one that is free")
    add("--open", action="store_true", help="open the page in the browser")
    return parser


def main(args: argparse.Namespace) -> None:
    if args.count < 1 or not 0 <= args.port < 65536:
        raise UserError("--count must be > 0, and --port from 0 to 65535")
    if not (args.run / "config.yaml").is_file():
        raise UserError(f"{args.run} is no run folder: it has no config.yaml")
    config = load_config(args.run / "config.yaml")
    items, videos, names = read_items(config, args.run)
    table = videos if args.table is None else read_table(args.table)
    target = args.output or beside(table.source)
    if table.header is not None and LABEL not in table.header:
        raise UserError(f"{table.source} has no column {LABEL}")
    journal = args.run / "review/corrections.jsonl"
    claim(target, args.run / "review/tables.txt", [table.source, videos.source])
    source = build.video_source(config, quarantine=False)
    with tempfile.TemporaryDirectory() as folder:
        review = Review(
            items,
            orders(items, args.count),
            names,
            Corrections(journal, items),
            multilabel=config.classify.multilabel,
            title=f"{args.run.name}: {len(items)} tested",
            folder=Path(folder),
            open_video=source.open,
            table=table,
            target=target,
            own_words=args.table is not None,
        )
        try:
            review.write()
        except OSError as e:
            raise UserError(f"--output: cannot write {target}: {e.strerror}") from e
        try:
            server = ReviewServer(review, args.port)
        except OSError as e:
            raise UserError(f"--port {args.port}: {e.strerror}") from e
        print(f"open {server.url}\ncorrections go to {target}; Ctrl-C ends it", flush=True)
        if args.open:
            webbrowser.open(server.url)
        # Also where a shell had Ctrl-C ignored, as it does for what runs in the background.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass
        finally:
            server.server_close()
            source.close()
    changed = len(review.corrections.changed())
    seen = len(review.corrections.of_rows)
    print(f"\n{seen} seen, {changed} corrected: {target if changed else 'nothing was written'}")
    if changed and args.table is not None:
        print(f"train on it: hiera-video own {target} --output OTHER")


def claim(target: Path, known: Path, sources: Sequence[str]) -> None:
    """Raises UserError where the target is a list that is read, or not of this review."""
    name = str(target.resolve())
    if name in {str(Path(source).resolve()) for source in sources}:
        raise UserError(f"--output {target} is the old table, which stays as it is: name another")
    before = known.read_text().splitlines() if known.exists() else []
    if target.exists() and name not in before:
        raise UserError(f"{target} is there already, and not of this review: name another --output")
    try:
        known.parent.mkdir(parents=True, exist_ok=True)
        write_text(known, "".join(f"{line}\n" for line in dict.fromkeys([*before, name])))
    except OSError as e:
        raise UserError(f"{known.parent}: cannot write: {e.strerror}") from e


def read_table(file: Path) -> VideoList:
    """Raises UserError."""
    videos = read_videos(file.absolute(), root=file.absolute().parent, key="--table")
    if videos.header is None and not videos.classes:
        raise UserError(f"--table {file} is no table: its first line names no columns")
    return videos
