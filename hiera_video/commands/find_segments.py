"""What happens when in long videos: a table of segments, measured where the truth is known.

    hiera-video find-segments --weights runs/own --videos table.csv --output found --hop-s 0.2

Every class has a score in every window of a video; a segment begins where it reaches --high, and
ends where it falls below --low. Writes OUTPUT/segments.csv, a table with segments and scores
(`path,label,start_s,end_s,score`), and settings.json. Where the given table has segments, they are
the truth: metrics.json and classes.csv have average precision at temporal intersections over union
of 0.3 to 0.7 (ActivityNet's rules) and precision, recall and F1 of frames, and report.html shows
truth and what was found. --nothing names the class of the background, which is no segment.

Scores are kept in OUTPUT/scores: a command that was killed goes on, and other settings are quick.
A video that cannot be read is named on stderr; then the exit status is 2.
"""

import argparse
import csv
import dataclasses
import json
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tqdm import tqdm

from hiera_video.commands.arguments import make_parser
from hiera_video.commands.predict import load_classifier
from hiera_video.data.lists import VideoList, read_videos
from hiera_video.data.tables import split_labels
from hiera_video.evaluation.detection import TIOUS, detection_figures
from hiera_video.evaluation.segments import EDGES, Segment, SegmentSettings, find_segments
from hiera_video.models.weights import weights_file
from hiera_video.pictures.bars_in_time import colours_of, two_bars
from hiera_video.pictures.page import page, section, table
from hiera_video.system.errors import UserError, VideoError
from hiera_video.system.files import sha256_of, write_csv, write_json, write_text, written_whole
from hiera_video.system.tensors import save_file

SHOWN = 200  # videos of a report
Segments = dict[str, list[Segment]]  # of every video, by its path as written


class Scores(NamedTuple):
    times: np.ndarray  # [W, 2], seconds
    scores: np.ndarray  # [W, classes]
    length_s: float  # of the video


def parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--weights", required=True, help="weight file, step folder, run folder or published name")
    add("--videos", required=True, help="list or table")
    add("--output", type=Path, required=True, help="a folder")
    add("--root", default="", help="folder of relative paths; default: the list's")
    add("--model", help="name, where the weights do not say it")
    add("--classes", type=Path, help="one class name a line, where the weights do not have them")
    add("--hop-s", type=float, help="seconds from window to window; default end to end")
    settings = SegmentSettings()
    add("--smooth-s", type=float, default=settings.smooth_s, help="seconds that scores average")
    add("--high", type=float, default=settings.high, help="score at which a segment begins")
    add("--low", type=float, default=settings.low, help="score below which it ends")
    add("--least-s", type=float, default=settings.least_s, help="seconds of a segment")
    add("--edges", choices=EDGES, default=settings.edges, help="of a segment, by its windows'")
    add("--nothing", help="class of the background")
    add("--timeout", type=float, default=60.0, help="seconds for decoding a video")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return parser


def main(args: argparse.Namespace) -> None:
    try:
        settings = SegmentSettings(args.smooth_s, args.high, args.low, args.least_s, args.edges)
    except ValueError as e:
        raise UserError(str(e)) from e
    if args.timeout <= 0 or (args.hop_s is not None and args.hop_s <= 0):
        raise UserError("--timeout and --hop-s must be > 0")
    source = Path(args.videos).absolute()
    videos = read_videos(source, root=args.root or source.parent, key="--videos")
    model = load_classifier(args)
    names = [model.name_of(c) for c in range(len(model.classes))]
    if not names:
        raise UserError(f"--weights {args.weights}: name its classes, --classes")
    if args.nothing is not None and args.nothing not in names:
        raise UserError(f"--nothing {args.nothing}: the classes are {', '.join(names)}")
    try:
        args.output.mkdir(parents=True, exist_ok=True)
        claim(args)
        found, lengths_s, unread = find_in_all(args, model, videos.whole_videos(), names, settings)
    except OSError as e:
        raise UserError(f"--output: cannot write {args.output}: {e}") from e
    finally:
        model.close()
    write(args.output, found, settings, args)
    if videos.has_segments and found:
        truth = truth_of(videos, list(lengths_s), args.nothing)
        labels = [name for name in names if name != args.nothing]
        measure(args.output, truth, found, lengths_s, labels)
    if unread:
        raise UserError(f"{len(unread)} videos could not be read: {', '.join(unread[:3])}")


def claim(args: argparse.Namespace) -> None:
    """Raises UserError where the folder's scores are of something else."""
    made_of = {"weights": sha256_of(weights_file(args.weights)), "hop_s": args.hop_s}
    card = args.output / "made_of.json"
    if card.exists() and json.loads(card.read_text()) != made_of:
        raise UserError(f"{args.output} holds scores of other weights, or of another --hop-s")
    write_json(card, made_of)


def find_in_all(
    args: argparse.Namespace,
    model: Any,
    videos: VideoList,
    names: Sequence[str],
    settings: SegmentSettings,
) -> tuple[Segments, dict[str, float], list[str]]:
    """(segments, lengths in seconds, paths that could not be read)"""
    found: Segments = {}
    lengths_s: dict[str, float] = {}
    unread = []
    rows = tqdm(range(len(videos)), unit="videos", disable=not sys.stderr.isatty())
    for row in rows:
        path = videos.written(row)
        file = args.output / "scores" / f"{row:06d}.safetensors"
        try:
            scores = scores_of(file, model, videos.path(row), args.hop_s)
        except VideoError as e:
            print(f"{path}: {e}", file=sys.stderr)
            unread.append(path)
            continue
        every = find_segments(scores.times, scores.scores, names, settings)
        found[path] = [segment for segment in every if segment.label != args.nothing]
        lengths_s[path] = scores.length_s
    return found, lengths_s, unread


def scores_of(file: Path, model: Any, video: str, hop_s: float | None) -> Scores:
    """Of the file or, where there is none, of the model. Raises VideoError, OSError."""
    try:
        stored = load_file(file)
    except (OSError, SafetensorError):
        timeline = model.timeline(video, hop_s=hop_s)
        with model.open(video) as opened:
            length_s = opened.info.num_frames / opened.info.fps
        stored = {
            "times": torch.from_numpy(timeline.times),
            "scores": timeline.scores,
            "length_s": torch.tensor(length_s, dtype=torch.float64),
        }
        file.parent.mkdir(exist_ok=True)
        with written_whole(file) as temporary:
            save_file(stored, temporary)
    times, scores = stored["times"].numpy(), stored["scores"].numpy()
    return Scores(times, scores, float(stored["length_s"]))


def truth_of(videos: VideoList, paths: list[str], nothing: str | None) -> Segments:
    truth: Segments = {path: [] for path in paths}
    for row in range(len(videos)):
        segment = videos.segment(row)
        if segment is None or videos.written(row) not in truth:
            continue
        for label in split_labels(videos.label_text(row)):
            if label == nothing:
                continue
            truth[videos.written(row)].append(Segment(label, 1.0, *segment))
    return truth


def write(
    output: Path, found: Segments, settings: SegmentSettings, args: argparse.Namespace
) -> None:
    rows = []
    for path, segments in found.items():
        for s in segments:
            rows.append([path, s.label, f"{s.start_s:.3f}", f"{s.end_s:.3f}", f"{s.score:.6f}"])
    write_csv(output / "segments.csv", [["path", "label", "start_s", "end_s", "score"], *rows])
    card = dataclasses.asdict(settings) | {"hop_s": args.hop_s, "nothing": args.nothing}
    write_json(output / "settings.json", card)
    print(f"{output / 'segments.csv'}: {len(rows)} segments in {len(found)} videos")


def measure(
    output: Path,
    truth: Segments,
    found: Segments,
    lengths_s: dict[str, float],
    labels: Sequence[str],
) -> None:
    known = [label for label in labels if any(_has(of_video, label) for of_video in truth.values())]
    if not known:
        raise UserError(
            f"--videos: none of its labels is one of the classes ({', '.join(labels[:5])}, ..)"
        )
    figures = detection_figures(truth, found, lengths_s, labels)
    rows = figures.pop("classes")
    write_json(output / "metrics.json", figures)
    with written_whole(output / "classes.csv") as temporary, open(temporary, "w", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    colours = colours_of(known)
    key = "".join(
        f'<span class="key" style="--c:{colour}">{escape(label)}</span>'
        for label, colour in colours.items()
    )
    cards = [("mAP, tIoU 0.3 to 0.7", figures["map"]), ("mAP, tIoU 0.5", figures["map_0.5"])]
    cards.append(("F1 of frames", figures["frame_f1"]))
    cards.append(("precision of the background", figures["background_precision"]))
    head = "".join(f'<div class="card"><b>{value:.1f}</b>{name}</div>' for name, value in cards)
    shown = ""
    for path in list(lengths_s)[:SHOWN]:
        bars = two_bars(truth[path], found[path], lengths_s[path], colours)
        shown += f"<figure><code>{escape(path)}</code>{bars}</figure>"
    columns = ["class", "segments", "found", *(f"ap_{t:g}" for t in TIOUS), "f1"]
    cells = [[_cell(row[name]) for name in columns] for row in rows]
    parts = ["<h1>Segments</h1>", f'<div class="cards">{head}</div>']
    parts += [section("Classes, percent", table(cells, columns))]
    parts += [section("Truth, and what was found", f"<p>{key}</p>{shown}")]
    write_text(output / "report.html", page("segments", parts))
    print(
        f"mAP {figures['map']:.1f} (at tIoU 0.5: {figures['map_0.5']:.1f}), F1 of frames "
        f"{figures['frame_f1']:.1f}, precision of the background "
        f"{figures['background_precision']:.1f}; {output / 'report.html'}"
    )


def _has(segments: Sequence[Segment], label: str) -> bool:
    return any(segment.label == label for segment in segments)


def _cell(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, float) else escape(str(value))
