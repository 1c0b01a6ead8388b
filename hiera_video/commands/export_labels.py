"""Predictions and timelines as files of FiftyOne, ActivityNet, CVAT and Label Studio.

    hiera-video predict videos/ --weights runs/own --timeline timelines
    hiera-video export-labels timelines --to labelstudio for_label_studio
    hiera-video export-labels runs/own --to fiftyone for_fiftyone

SOURCE is a folder that `predict --timeline` wrote, or a run that has been tested. Of a timeline,
windows that follow each other with one best class, of a score of --least or more, become a segment;
of a run, each video has its class, or each segment of the list. OUT is a file (activitynet) or a
folder. docs/handover.md says how each tool reads it. Rows without a video are left out and named.
"""

import argparse
import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hiera_video.build import video_source
from hiera_video.commands.arguments import add_overrides, make_parser
from hiera_video.commands.predict import file_names
from hiera_video.config import load_config
from hiera_video.evaluation.scores import TOP, class_name
from hiera_video.evaluation.segments import Segment, segments_of
from hiera_video.export.labels import WRITERS, Labelled, write_label_studio
from hiera_video.pictures.timeline import FACTS, TABLE
from hiera_video.stages.inputs import build_classes, read_list
from hiera_video.system.errors import Unavailable, UserError, VideoError


def parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("source", type=Path, metavar="SOURCE")
    parser.add_argument("--to", choices=WRITERS, required=True)
    parser.add_argument("target", type=Path, metavar="OUT")
    parser.add_argument("--least", type=float, default=0.5, help="score of a window in a segment")
    parser.add_argument(
        "--root", type=Path, help="labelstudio: the document root; default: what holds all videos"
    )
    add_overrides(parser, "of a run's config, such as data.root, where the videos are now")
    return parser


def main(args: argparse.Namespace) -> None:
    if not 0 <= args.least <= 1:
        raise UserError(f"--least {args.least} must be from 0 to 1")
    timelines = sorted(args.source.glob(f"*{FACTS}"))
    if timelines:
        videos = [read_timeline(file, args.least) for file in timelines]
        classes = sorted({label for video in videos for label in labels_of(video)})
        known = json.loads(timelines[0].read_text())["classes"]
        classes = known or classes
    elif (args.source / "test/predictions.csv").is_file():
        videos, classes = read_run(args.source, args.overrides)
    else:
        raise UserError(
            f"{args.source} holds neither timelines of `predict --timeline` nor a run with a test"
        )
    if not videos:
        raise UserError(f"{args.source}: none of its videos is there")
    try:
        args.target.parent.mkdir(parents=True, exist_ok=True)
        if args.to == "labelstudio":
            write_label_studio(args.target, videos, classes, root=args.root)
        else:
            WRITERS[args.to](args.target, videos, classes)
    except OSError as e:
        raise UserError(f"cannot write {args.target}: {e}") from e
    segments = sum(len(video.segments) for video in videos)
    print(f"{args.target}: {len(videos)} videos, {segments} segments, {len(classes)} classes")


def labels_of(video: Labelled) -> set[str]:
    return {label for label, _ in video.best} | {segment.label for segment in video.segments}


def read_timeline(file: Path, least: float) -> Labelled:
    """file: the facts beside the table. Raises UserError."""
    facts = json.loads(file.read_text())
    name = file.name.removesuffix(FACTS)
    table = file.with_name(f"{name}{TABLE}")
    try:
        with open(table, newline="") as f:
            rows = list(csv.DictReader(f))
    except OSError as e:
        raise UserError(f"{table}: {e.strerror}; make the timeline again") from e
    times = np.array([[float(row["start_s"]), float(row["end_s"])] for row in rows])
    best = [(row["top1_name"], float(row["top1_score"])) for row in rows]
    whole = [(label, score) for label, score in facts["predictions"]]
    segments = segments_of(times, best, least=least)
    return Labelled(facts["video"], name, facts["fps"], facts["frames"], whole, segments)


def read_run(run: Path, overrides: list[str]) -> tuple[list[Labelled], list[str]]:
    """Raises UserError."""
    config = load_config(run / "config.yaml", overrides)
    listed = read_list(config, "data.test")
    classes = build_classes(config, listed)
    with open(run / "test/predictions.csv", newline="", errors="surrogateescape") as f:
        rows = list(csv.DictReader(f))
    # Rows of predictions are in list order; those that were missing have none.
    number = 0
    places: dict[str, tuple[str, list[dict[str, str]], list[tuple[float, float] | None]]] = {}
    for row in rows:
        while number < len(listed) and listed.written(number) != row["path"]:
            number += 1
        if number == len(listed):
            raise UserError(f"{run}: its predictions are not of the list {listed.source}")
        path = listed.path(number)
        _, of_video, parts = places.setdefault(row["path"], (path, [], []))
        of_video.append(row)
        parts.append(listed.segment(number))
        number += 1
    source = video_source(config, quarantine=False)
    videos = []
    names = file_names(list(places))
    for name, (path, of_video, parts) in zip(names, places.values()):
        try:
            with source.open(path) as video:
                fps, frames = video.info.fps, video.info.num_frames
        except (VideoError, Unavailable) as e:
            print(f"left out: {path}: {e}", file=sys.stderr)
            continue
        if parts == [None]:
            best = list(top_of(of_video[0], classes.names))
            videos.append(Labelled(path, name, fps, frames, best, []))
            continue
        segments = []
        for row, part in zip(of_video, parts):
            label, score = next(top_of(row, classes.names))
            start, end = part or (0.0, frames / fps)
            segments.append(Segment(label, score, start, end))
        videos.append(Labelled(path, name, fps, frames, [], segments))
    source.close()
    count = classes.count or len(classes.names)
    return videos, [class_name(classes.names, k) for k in range(count)]


def top_of(row: dict[str, str], names: list[str]) -> Iterator[tuple[str, float]]:
    for k in range(1, TOP + 1):
        if row.get(f"top{k}_class"):
            yield class_name(names, int(row[f"top{k}_class"])), float(row[f"top{k}_score"])
