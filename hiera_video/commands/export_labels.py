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
from typing import Any

import numpy as np
from safetensors.torch import load_file

from hiera_video.build import video_source
from hiera_video.commands.arguments import add_overrides, make_parser
from hiera_video.commands.predict import file_names
from hiera_video.config import load_config
from hiera_video.evaluation.scores import TOP, class_name
from hiera_video.evaluation.segments import Segment, segments_of
from hiera_video.export.labels import WRITERS, Labelled, write_label_studio
from hiera_video.pictures.timeline import FACTS, TABLE
from hiera_video.stages.inputs import build_classes, read_list
from hiera_video.system.errors import UserError, VideoError

LABEL_STUDIO = "labelstudio"
LEAST = 0.5


def parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("source", type=Path, metavar="SOURCE")
    parser.add_argument("--to", choices=(*WRITERS, LABEL_STUDIO), required=True)
    parser.add_argument("target", type=Path, metavar="OUT")
    parser.add_argument(
        "--least", type=float, help=f"score of a window in a segment, default {LEAST}"
    )
    parser.add_argument(
        "--root", type=Path, help="labelstudio: the document root; default: what holds all videos"
    )
    add_overrides(parser, "of a run's config, such as data.root, where the videos are now")
    return parser


def main(args: argparse.Namespace) -> None:
    timelines = sorted(args.source.glob(f"*{FACTS}"))
    is_run = (args.source / "test/predictions.csv").is_file()
    check_arguments(args, bool(timelines))
    if timelines:
        least = LEAST if args.least is None else args.least
        videos, classes = read_timelines(timelines, least)
    elif is_run:
        videos, classes = read_run(args.source, args.overrides)
    else:
        raise UserError(
            f"{args.source} holds neither timelines of `predict --timeline` nor a run with a test"
        )
    if not videos:
        raise UserError(f"{args.source}: none of its videos is there")
    try:
        args.target.parent.mkdir(parents=True, exist_ok=True)
        if args.to == LABEL_STUDIO:
            write_label_studio(args.target, videos, classes, root=args.root)
        else:
            WRITERS[args.to](args.target, videos, classes)
    except OSError as e:
        raise UserError(f"cannot write {args.target}: {e}") from e
    except ValueError as e:
        raise UserError(str(e)) from e
    segments = sum(len(video.segments) for video in videos)
    print(f"{args.target}: {len(videos)} videos, {segments} segments, {len(classes)} classes")


def check_arguments(args: argparse.Namespace, of_timelines: bool) -> None:
    """Raises UserError."""
    if args.least is not None and not of_timelines:
        raise UserError("--least is for timelines")
    if args.overrides and of_timelines:
        raise UserError(f"{args.overrides[0]}: keys are of a run's config, not of timelines")
    if args.root and args.to != LABEL_STUDIO:
        raise UserError("--root is for --to labelstudio")
    if args.least is not None and not 0 <= args.least <= 1:
        raise UserError(f"--least {args.least} must be from 0 to 1")


def read_timelines(files: list[Path], least: float) -> tuple[list[Labelled], list[str]]:
    """Raises UserError."""
    videos = []
    classes: dict[str, None] = {}
    for file in files:
        try:
            facts = json.loads(file.read_text())
            videos.append(read_timeline(file, facts, least))
            classes |= dict.fromkeys(facts["classes"])
        except (OSError, ValueError, KeyError, IndexError) as e:
            raise UserError(f"{file}: no whole timeline ({e}); make it again") from e
    said = {label for video in videos for label, _ in video.best}
    said |= {segment.label for video in videos for segment in video.segments}
    return videos, list(classes) or sorted(said)


def read_timeline(file: Path, facts: dict[str, Any], least: float) -> Labelled:
    """file: the facts beside the table. Raises OSError, ValueError, KeyError, IndexError."""
    name = file.name.removesuffix(FACTS)
    with open(file.with_name(f"{name}{TABLE}"), newline="") as f:
        rows = list(csv.DictReader(f))
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
        said = list(csv.DictReader(f))
    scored = load_file(run / "test/scores.safetensors")["index"].tolist()  # rows of the list
    if scored and (max(scored) >= len(listed) or len(scored) != len(said)):
        raise UserError(f"{run}: its predictions are not of the list {listed.source}")
    of_videos: dict[str, list[tuple[int, dict[str, str]]]] = {}
    for row, prediction in zip(scored, said):
        if listed.written(row) != prediction["path"]:
            raise UserError(f"{run}: its predictions are not of the list {listed.source}")
        of_videos.setdefault(listed.path(row), []).append((row, prediction))
    source = video_source(config, quarantine=False)
    videos = []
    for name, (path, rows) in zip(file_names(list(of_videos)), of_videos.items()):
        try:
            with source.open(path) as video:
                fps, frames = video.info.fps, video.info.num_frames
        except VideoError as e:
            print(f"left out: {path}: {e}", file=sys.stderr)
            continue
        if [listed.segment(row) for row, _ in rows] == [None]:
            best = list(top_of(rows[0][1], classes.names))
            videos.append(Labelled(path, name, fps, frames, best, []))
            continue
        segments = []
        for row, prediction in rows:
            label, score = next(top_of(prediction, classes.names))
            start, end = listed.segment(row) or (0.0, frames / fps)
            segments.append(Segment(label, score, start, end))
        videos.append(Labelled(path, name, fps, frames, [], segments))
    source.close()
    count = classes.count or len(classes.names)
    return videos, [class_name(classes.names, k) for k in range(count)]


def top_of(row: dict[str, str], names: list[str]) -> Iterator[tuple[str, float]]:
    for k in range(1, TOP + 1):
        if row.get(f"top{k}_class"):
            yield class_name(names, int(row[f"top{k}_class"])), float(row[f"top{k}_score"])
