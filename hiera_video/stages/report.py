"""`report.html` of a run: what it was, how it went and what it got wrong, in one file.

Made from the run's own files: run.json, metrics.jsonl, test/ and reconstructions/. What a run does
not have is left out. Only the thumbnails need the videos.
"""

import csv
import json
import math
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file

from hiera_video.config import Config
from hiera_video.data.decode.source import VideoSource
from hiera_video.data.lists import VideoList, read_videos
from hiera_video.evaluation.embedding import on_a_plane
from hiera_video.evaluation.eyes import NAMES
from hiera_video.evaluation.feature_folder import FeatureFolder
from hiera_video.evaluation.frozen import labels_of
from hiera_video.evaluation.scores import class_name
from hiera_video.pictures import charts
from hiera_video.pictures.page import card_table, page, section, table
from hiera_video.pictures.strip import strip
from hiera_video.stages.inputs import build_classes, read_list
from hiera_video.system.errors import UserError
from hiera_video.system.files import written_whole
from hiera_video.system.log import read_metrics

SHOWN = 6  # best and worst videos
MAPPED = 2000  # videos of a map, at most
FEW = 10  # videos of a class in the test
PAIRS = 10  # classes that are taken for each other
HEADLINES = (  # key of metrics.json, title
    ("top1", "top-1"),
    ("top5", "top-5"),
    ("map", "mAP"),
    ("f1_micro", "F1, micro"),
    ("f1_macro", "F1, macro"),
    ("mean_class", "balanced accuracy"),
    ("macro_f1", "F1, macro"),
    ("view_top1", "single views, top-1"),
)
Rows = list[dict[str, str]]  # of a CSV file with a header


class Curve(NamedTuple):
    title: str
    split: str  # of the rows
    keys: tuple[str, ...]
    log_scale: bool = False
    lowest: float = -math.inf  # values below would hide the others, and are left out beside them


CURVES = (
    Curve("Training loss", "train", ("loss",)),
    Curve("Validation, one view, percent", "val", ("top1", "top5", "map", "f1_macro")),
    Curve(
        "Loss on held-out clips, and of predictors without a model",
        "probe",
        ("mae_loss", "zero", "position", "copy"),
        log_scale=True,
    ),
    Curve("Share explained beyond the best of them", "probe", ("explained",), lowest=-1),
    Curve("Probes, top-1 percent", "probe", ("knn_top1", "linear_top1", "linear_in_time_top1")),
    Curve("Effective rank, features and tokens", "probe", ("rank", "token_rank")),
    Curve("Variance between videos", "probe", ("variance", "token_variance")),
    Curve("Learning rate", "train", ("lr",)),
    Curve("Gradient norm", "train", ("grad_norm",), log_scale=True),
    Curve("Clips a second", "train", ("clips_per_s",)),
    Curve("Share of the step spent waiting for data", "train", ("data_wait",)),
)


class Scored(NamedTuple):
    """A labelled video of the test."""

    row: int  # of the list
    path: str
    label: int
    prediction: int
    score: float  # of the prediction
    label_score: float


def write_report(config: Config, folder: Path) -> Path:
    """Writes `folder/report.html` anew."""
    folder = folder.resolve()
    videos, names = _videos_and_names(config)
    test = folder / "test"
    parts = [_head(config, folder), _curves(folder)]
    if (test / "metrics.json").exists():
        metrics = json.loads((test / "metrics.json").read_text())
        parts.insert(1, _headline(metrics))
        parts += [
            _by_views(metrics),
            _dial(metrics),
            _classes(test, names),
            _confusion(test, names),
        ]
        if metrics["top1"] is not None:
            parts.append(_best_and_worst(config, _scored(test), names, videos))
        parts.append(_missing(metrics))
    parts += [_reconstructions(folder), _features(config, folder, names), _cards(folder)]
    file = folder / "report.html"
    with written_whole(file) as temporary:
        text = page(folder.name, parts)
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    return file


def _videos_and_names(config: Config) -> tuple[VideoList | None, list[str]]:
    """The test's list and class names; none where they are not there any more."""
    try:
        videos = read_list(config, "data.test")
        return videos, build_classes(config, videos).names
    except UserError:
        return None, []


def _head(config: Config, folder: Path) -> str:
    data = config.data
    clip = f"{data.num_frames} frames at stride {data.sampling_rate}"
    what = f"{config.model.name}, {config.task}, {clip}"
    return f'<h1>{escape(folder.name)}</h1><div class="sub">{escape(what)}</div>'


def _headline(metrics: dict[str, Any]) -> str:
    cards = []
    for key, title in HEADLINES:
        if metrics.get(key) is not None:
            cards.append(f'<div class="card"><b>{metrics[key]:.2f}</b>{title}</div>')
    scored = metrics["videos"]
    listed = metrics["videos_expected"]
    bad = "" if scored == listed else " bad"
    cards.append(f'<div class="card{bad}"><b>{scored:,} of {listed:,}</b>videos scored</div>')
    clips, crops = metrics["views"]
    cards.append(f'<div class="card"><b>{clips or "all"} x {crops}</b>clips x crops</div>')
    return f'<div class="cards">{"".join(cards)}</div>'


def _curves(folder: Path) -> str:
    file = folder / "metrics.jsonl"
    rows = [row for _, row in read_metrics(file)] if file.exists() else []
    drawn = ""
    for curve in CURVES:
        of_split = [row for row in rows if row["split"] == curve.split]
        series: dict[str, charts.Points] = {}  # by its name
        for key in curve.keys:
            points = [(row["step"], row[key]) for row in of_split if row.get(key) is not None]
            high = [point for point in points if point[1] >= curve.lowest]
            series[NAMES.get(key, key)] = high or points
        drawn += charts.curves(curve.title, series, log_scale=curve.log_scale)
    return section("Training", f'<div class="grid2">{drawn}</div>' if drawn else "")


def _by_views(metrics: dict[str, Any]) -> str:
    rows = []
    for views in metrics.get("by_views", []):
        name = f"{views['clips']} clips x {views['crops']} crops"
        rows.append((name, views["top1"], f"top-5 {views['top5']:.1f}"))
    return section("What fewer views give, top-1", _bars(rows))


def _dial(metrics: dict[str, Any]) -> str:
    """Accuracy against the cost of a view, for one set of weights."""
    points = sorted(metrics.get("by_keep_units", []), key=lambda point: point["gmacs"])
    series = {name: [(p["gmacs"], p[name]) for p in points] for name in ("top1", "top5")}
    drawn = charts.curves("Percent over GMACs of a view", series, step="GMACs")
    rows = []
    for point in points:
        title = f"{point['keep_units']:.0%} of the mask units"
        rows.append((title, point["top1"], f"{point['gmacs']:.3g} GMACs a view"))
    return section("What fewer mask units give, top-1", drawn + _bars(rows) if points else "")


def _classes(test: Path, names: list[str]) -> str:
    """Of several labels a video, their average precision in the place of top-1."""
    found = _read_rows(test / "classes.csv")
    figure = "ap" if found and "ap" in found[0] else "top1"
    told = [row for row in found if row[figure]]
    rows = []
    for row in sorted(told, key=lambda row: float(row[figure])):
        remark = f"{row['videos']} videos"
        if figure == "ap":
            remark += f", F1 {row['f1']} at {float(row['threshold']):.2f}"
        elif row["taken_for"]:
            other = class_name(names, int(row["taken_for"]))
            remark += f", {row['times']} taken for {other}"
        rows.append((class_name(names, int(row["class"])), float(row[figure]), remark))
    few = [class_name(names, int(row["class"])) for row in found if int(row["videos"]) < FEW]
    note = ""
    if few:
        shown = ", ".join(few[:PAIRS]) + (f" and {len(few) - PAIRS} more" if few[PAIRS:] else "")
        note = (
            f'<p class="remark">Fewer than {FEW} videos, too few to say anything: '
            f"{escape(shown)}</p>"
        )
    title = {"ap": "average precision", "top1": "top-1"}[figure]
    return section(f"Classes, worst first, {title}", _bars(rows) + note)


def _bars(rows: list[tuple[str, float, str]]) -> str:
    return f'<div class="panel">{charts.bars(rows)}</div>' if rows else ""


def _confusion(test: Path, names: list[str]) -> str:
    cells = [tuple(map(int, row.values())) for row in _read_rows(test / "confusion.csv")]
    if not cells:
        return ""
    size = 1 + max(max(label, prediction) for label, prediction, _ in cells)
    counts = np.zeros((size, size))
    for label, prediction, videos in cells:
        counts[label, prediction] = videos
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    wrong = [cell for cell in cells if cell[0] != cell[1]]
    pairs = []
    for label, prediction, videos in sorted(wrong, key=lambda cell: -cell[2])[:PAIRS]:
        label_name = escape(class_name(names, label))
        pairs.append([label_name, escape(class_name(names, prediction)), str(videos)])
    confused = "<p>No video was taken for another class.</p>"
    if pairs:
        confused = table(pairs, ["class", "taken for", "videos"])
    of_rows = [class_name(names, label) for label in range(size)]
    image = charts.matrix(shares, of_rows, alt="confusion matrix")
    note = "Rows are classes, columns predictions, in the order of their numbers."
    left = f'<div>{image}<p class="remark">{note}</p></div>'
    return section("Confusion", f'<div class="side">{left}<div>{confused}</div></div>')


def _scored(test: Path) -> list[Scored]:
    stored = load_file(test / "scores.safetensors")
    found = []
    lines = _read_rows(test / "predictions.csv")
    for row, line, scores in zip(stored["index"].tolist(), lines, stored["scores"]):
        label = int(line["label"])
        prediction = int(line["prediction"])
        if label >= 0:
            score = float(scores[prediction])
            found.append(Scored(row, line["path"], label, prediction, score, float(scores[label])))
    return found


def _best_and_worst(
    config: Config, scored: list[Scored], names: list[str], videos: VideoList | None
) -> str:
    right = [s for s in scored if s.label == s.prediction]
    wrong = [s for s in scored if s.label != s.prediction]
    best = sorted(right, key=lambda s: -s.label_score)[:SHOWN]
    worst = sorted(wrong, key=lambda s: s.label_score - s.score)[:SHOWN]
    source = VideoSource(config.data.decoder, timeout_s=config.data.decode_timeout_s)
    parts = ""
    for title, chosen in (("Videos it is surest of", best), ("Videos it gets most wrong", worst)):
        shown = ""
        for s in chosen:
            thumbnail = _thumbnail(source, videos, s)
            path = f"<code>{escape(s.path)}</code>"
            shown += f'<div class="panel video">{thumbnail}<div>{_said(s, names)}</div>{path}</div>'
        parts += section(title, f'<div class="videos">{shown}</div>' if shown else "")
    source.close()
    return parts


def _said(scored: Scored, names: list[str]) -> str:
    """What the model says of a video, and what is right."""
    label = escape(class_name(names, scored.label))
    said = f'<span class="right">{label}</span> {scored.label_score:.1%}'
    if scored.label == scored.prediction:
        return said
    prediction = escape(class_name(names, scored.prediction))
    return f'<span class="wrong">{prediction}</span> {scored.score:.1%}, but is {said}'


def _thumbnail(source: VideoSource, videos: VideoList | None, scored: Scored) -> str:
    """Some frames of the video side by side; nothing where it cannot be read."""
    if videos is None or scored.row >= len(videos) or videos.written(scored.row) != scored.path:
        return ""
    return strip(source, videos.path(scored.row), alt=f"frames of {scored.path}")


def _missing(metrics: dict[str, Any]) -> str:
    rows = []
    for path, reason in zip(metrics["missing"], metrics["missing_reasons"]):
        rows.append([f"<code>{escape(path)}</code>", escape(reason)])
    return section("Not scored", table(rows) if rows else "")


def _reconstructions(folder: Path) -> str:
    """Of the last step that has any."""
    files = sorted((folder / "reconstructions").glob("step_*.png"))
    if not files:
        return ""
    step = files[-1].name.split("_")[1]
    shots = ""
    for file in files:
        if file.name.split("_")[1] == step:
            shots += charts.picture(Image.open(file), alt=file.stem, kind="PNG")
    title = f"What it predicts, at step {step.lstrip('0')}"
    return section(title, f'<div class="panel shots">{shots}</div>')


def _features(config: Config, folder: Path, names: list[str]) -> str:
    try:
        features = FeatureFolder(folder / "features")
    except UserError:
        return ""
    clips = sum(map(features.windows, range(len(features))))
    text = f"{len(features):,} of {len(features.lines):,} videos, {clips:,} clips, in features/."
    return section("Features", f"<p>{text}</p>{_map(config, features, names)}")


def _map(config: Config, features: FeatureFolder, names: list[str]) -> str:
    """The videos on a plane; nothing of fewer than three, or where a file is gone."""
    if len(features) < 3:
        return ""
    rows = features.rows[:: -(-len(features) // MAPPED)]
    shown = features.subset(rows)
    try:
        means = torch.stack([shown.features(k).mean(0) for k in range(len(shown))])
    except (OSError, SafetensorError):
        return ""
    how, places = on_a_plane(means)
    labels = _labels_of(config, features, names)
    points = []
    for k, (x, y) in enumerate(places.tolist()):
        label = labels[rows[k]]
        group = class_name(names, label) if label >= 0 else "no label"
        points.append(charts.Spot(x, y, group, shown.path(k)))
    title = f"Means of {len(points)} videos, by {how}"
    return charts.scatter(title, points)


def _labels_of(config: Config, features: FeatureFolder, names: list[str]) -> list[int]:
    """Of each line of the manifest; -1 where the list is gone, or has others."""
    source = config.features.videos or config.data.test or config.data.val
    try:
        videos = read_videos(source, root=config.data.root or "", key="features.videos")
        if videos.header and videos.classes:
            videos = videos.numbered_by(names, key="features.videos")
        return labels_of(features.lines, videos)
    except UserError:
        return [-1] * len(features.lines)


def _cards(folder: Path) -> str:
    parts = ""
    cards = {"Protocol of the test": "test/protocol.json", "The run": "run.json"}
    for title, name in cards.items():
        if (folder / name).exists():
            parts += section(title, card_table(json.loads((folder / name).read_text())))
    return parts


def _read_rows(file: Path) -> Rows:
    """Empty where there is no file."""
    if not file.exists():
        return []
    with open(file, newline="", errors="surrogateescape") as f:
        return list(csv.DictReader(f))
