"""`report.html` of a run: what it was, how it went and what it got wrong, in one file that needs no other.

Made from the run's own files: run.json, metrics.jsonl, test/ and reconstructions/. What a run does not have is left out.
Only the thumbnails need the videos.
"""

import csv
import json
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

from hiera_video import build, charts
from hiera_video.config import Config
from hiera_video.data.annotations import VideoList
from hiera_video.data.decode_process import DecodeProcess
from hiera_video.data.packets import VideoError
from hiera_video.errors import UserError
from hiera_video.eval_stages import known_classes
from hiera_video.features import read_manifest
from hiera_video.files import local, written_whole
from hiera_video.log import read_metrics

SHOWN = 6  # best and worst videos
FRAMES, THUMBNAIL = 3, 96  # frames of a thumbnail, and their height in pixels
PAIRS = 10  # classes that are taken for each other
CURVES = (  # title, split, keys, on a log scale
    ("Training loss", "train", ("loss",), False),
    ("Validation, one view, percent", "val", ("top1", "top5"), False),
    ("Probe, nearest neighbours, top-1 percent", "probe", ("knn_top1",), False),
    ("Learning rate", "train", ("lr",), False),
    ("Gradient norm", "train", ("grad_norm",), True),
    ("Clips a second", "train", ("clips_per_s",), False),
    ("Share of the step spent waiting for data", "train", ("data_wait",), False),
)
ALONE = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # a browser then fetches nothing and runs nothing
)
STYLE = """
:root{--ink:#111827;--soft:#6b7280;--line:#e5e7eb;--blue:#2563eb;--back:#f9fafb}
*{box-sizing:border-box}body{margin:0;background:var(--back);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1060px;margin:0 auto;padding:32px 20px 64px}h1{font-size:26px;margin:0}h2{font-size:18px;margin:40px 0 12px}
.sub,.remark,figcaption{color:var(--soft)}.cards{display:flex;flex-wrap:wrap;gap:12px;margin:24px 0}
.card,.panel,figure{background:#fff;border:1px solid var(--line);border-radius:8px}
.card{padding:12px 18px;min-width:130px}.card b{display:block;font-size:26px;line-height:1.2}.card.bad b{color:#b91c1c}
.panel{padding:16px;overflow:auto}.grid2{display:grid;grid-template-columns:repeat(auto-fit,minmax(420px,1fr));gap:12px}
figure{margin:0;padding:12px}svg{width:100%;height:auto}svg text{font-size:11px;fill:var(--soft)}svg .grid{stroke:var(--line)}
.key{margin-left:10px;border-left:12px solid var(--c);padding-left:6px;color:var(--ink)}
table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:4px 10px 4px 0;border-bottom:1px solid var(--line);
vertical-align:top}th{font-weight:500;color:var(--soft);white-space:nowrap}code{font-size:13px;overflow-wrap:anywhere}
.bars{max-height:460px;overflow:auto}.bar{display:grid;grid-template-columns:200px 1fr 48px 300px;gap:10px;align-items:center}
.bar .name,.bar .remark{white-space:nowrap;overflow:hidden;text-overflow:ellipsis}.bar .value{text-align:right}
.track{background:var(--line);border-radius:4px;height:10px}
.track i{display:block;height:10px;border-radius:4px;background:var(--blue)}
.matrix{image-rendering:pixelated;border:1px solid var(--line)}.side{display:flex;flex-wrap:wrap;gap:24px}
.videos{display:grid;grid-template-columns:repeat(auto-fill,minmax(320px,1fr));gap:12px}.video{padding:10px}.video img{
max-width:100%;height:auto}img{max-width:100%}.shots img{height:auto;margin-bottom:12px}
.wrong{color:#b91c1c}.right{color:#047857}
"""


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
        scored = _scored(test)
        parts.insert(1, _headline(metrics))
        parts += [_by_views(metrics), _classes(test, names), _confusion(test, names)]
        parts += [_best_and_worst(config, scored, names, videos), _missing(metrics)]
    parts += [_reconstructions(folder), _features(folder), _cards(folder)]
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(folder.name)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{ALONE}"><style>{STYLE}</style></head>'
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )
    file = folder / "report.html"
    with written_whole(file) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
    return file


def _videos_and_names(config: Config) -> tuple[VideoList | None, list[str]]:
    """The test's list and class names; none where they are not there any more."""
    try:
        videos = build.build_videos(config, "data.test")
        return videos, known_classes(config, videos)[0]
    except UserError:
        return None, []


def _section(title: str, content: str) -> str:
    return f"<h2>{escape(title)}</h2>{content}" if content else ""


def _table(rows: list[list[str]], head: list[str] | None = None) -> str:
    """Cells are HTML."""
    top = "<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>" if head else ""
    lines = ("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="panel"><table>{top}{"".join(lines)}</table></div>'


def _named(names: list[str], label: int) -> str:
    return names[label] if 0 <= label < len(names) else f"class {label}"


def _head(config: Config, folder: Path) -> str:
    what = f"{config.model.name}, {config.task}, {config.data.num_frames} frames at stride {config.data.sampling_rate}"
    return f'<h1>{escape(folder.name)}</h1><div class="sub">{escape(what)}</div>'


def _headline(metrics: dict) -> str:
    cards = []
    for title, key in (
        ("top-1", "top1"),
        ("top-5", "top5"),
        ("mean over classes", "mean_class"),
        ("single views, top-1", "view_top1"),
    ):
        if metrics.get(key) is not None:
            cards.append(f'<div class="card"><b>{metrics[key]:.2f}</b>{title}</div>')
    scored, listed = metrics["videos"], metrics["videos_expected"]
    bad = "" if scored == listed else " bad"
    cards.append(f'<div class="card{bad}"><b>{scored:,} of {listed:,}</b>videos scored</div>')
    clips, crops = metrics["views"]
    cards.append(f'<div class="card"><b>{clips or "all"} x {crops}</b>clips x crops</div>')
    return f'<div class="cards">{"".join(cards)}</div>'


def _curves(folder: Path) -> str:
    file = folder / "metrics.jsonl"
    rows = [row for _, row in read_metrics(file)] if file.exists() else []
    drawn = []
    for title, split, keys, log_scale in CURVES:
        of_split = [row for row in rows if row["split"] == split]
        series = {key: [(row["step"], row[key]) for row in of_split if row.get(key) is not None] for key in keys}
        drawn.append(charts.curves(title, series, log_scale=log_scale))
    return _section("Training", f'<div class="grid2">{"".join(drawn)}</div>' if any(drawn) else "")


def _by_views(metrics: dict) -> str:
    rows = [
        (f"{r['clips']} clips x {r['crops']} crops", r["top1"], f"top-5 {r['top5']:.1f}")
        for r in metrics.get("by_views", [])
    ]
    return _section("What fewer views give, top-1", f'<div class="panel">{charts.bars(rows)}</div>' if rows else "")


def _classes(test: Path, names: list[str]) -> str:
    if not (test / "classes.csv").exists():
        return ""
    rows = []
    for row in sorted(_rows(test / "classes.csv"), key=lambda row: float(row["top1"])):
        remark = f"{row['videos']} videos"
        if row["taken_for"]:
            remark += f", {row['times']} taken for {_named(names, int(row['taken_for']))}"
        rows.append((_named(names, int(row["class"])), float(row["top1"]), remark))
    return _section("Classes, worst first, top-1", f'<div class="panel">{charts.bars(rows)}</div>')


def _confusion(test: Path, names: list[str]) -> str:
    if not (test / "confusion.csv").exists():
        return ""
    cells = [tuple(map(int, row.values())) for row in _rows(test / "confusion.csv")]
    size = 1 + max(max(label, prediction) for label, prediction, _ in cells)
    counts = np.zeros((size, size))
    for label, prediction, videos in cells:
        counts[label, prediction] = videos
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    wrong = sorted((cell for cell in cells if cell[0] != cell[1]), key=lambda cell: -cell[2])[:PAIRS]
    pairs = [[escape(_named(names, a)), escape(_named(names, b)), str(n)] for a, b, n in wrong]
    table = _table(pairs, ["class", "taken for", "videos"]) if pairs else "<p>No video was taken for another class.</p>"
    image = charts.matrix(shares, alt="confusion matrix")
    note = '<p class="remark">Rows are classes, columns predictions, in the order of their numbers.</p>'
    return _section("Confusion", f'<div class="side"><div>{image}{note}</div><div>{table}</div></div>')


def _scored(test: Path) -> list[Scored]:
    stored = load_file(test / "scores.safetensors")
    found = []
    for row, line, scores in zip(stored["index"].tolist(), _rows(test / "predictions.csv"), stored["scores"]):
        label, prediction = int(line["label"]), int(line["prediction"])
        if label >= 0:
            found.append(Scored(row, line["path"], label, prediction, float(scores[prediction]), float(scores[label])))
    return found


def _best_and_worst(config: Config, scored: list[Scored], names: list[str], videos: VideoList | None) -> str:
    right = [s for s in scored if s.label == s.prediction]
    wrong = [s for s in scored if s.label != s.prediction]
    groups = (
        ("Videos it is surest of", sorted(right, key=lambda s: -s.label_score)[:SHOWN]),
        ("Videos it gets most wrong", sorted(wrong, key=lambda s: s.label_score - s.score)[:SHOWN]),
    )
    reader = DecodeProcess(timeout_s=config.data.decode_timeout_s)
    parts = []
    for title, chosen in groups:
        shown = []
        for s in chosen:
            said = f'<span class="right">{escape(_named(names, s.label))}</span> {s.label_score:.1%}'
            if s.label != s.prediction:
                said = f'<span class="wrong">{escape(_named(names, s.prediction))}</span> {s.score:.1%}, but is {said}'
            shown.append(
                f'<div class="panel video">{_thumbnail(reader, config, videos, s)}<div>{said}</div>'
                f"<code>{escape(s.path)}</code></div>"
            )
        parts.append(_section(title, f'<div class="videos">{"".join(shown)}</div>' if shown else ""))
    reader.close()
    return "".join(parts)


def _thumbnail(reader: DecodeProcess, config: Config, videos: VideoList | None, scored: Scored) -> str:
    """Some frames of the video side by side; nothing where it cannot be read."""
    if videos is None or scored.row >= len(videos) or videos.written(scored.row) != scored.path:
        return ""
    try:
        with reader.open(local(videos.path(scored.row)), config.data.decoder) as video:
            count = video.info.num_frames
            frames = video.get(np.unique(np.linspace(0, count - 1, FRAMES + 2)[1:-1].astype(int)))
    except (VideoError, OSError):
        return ""
    images = [Image.fromarray(frame) for frame in frames]
    images = [i.resize((max(1, round(i.width * THUMBNAIL / i.height)), THUMBNAIL)) for i in images]
    strip = Image.new("RGB", (sum(i.width + 2 for i in images) - 2, THUMBNAIL), "white")
    for k, image in enumerate(images):
        strip.paste(image, (k * (image.width + 2), 0))
    return charts.picture(strip, alt=f"frames of {scored.path}")


def _missing(metrics: dict) -> str:
    rows = [
        [f"<code>{escape(path)}</code>", escape(reason)]
        for path, reason in zip(metrics["missing"], metrics["missing_reasons"])
    ]
    return _section("Not scored", _table(rows) if rows else "")


def _reconstructions(folder: Path) -> str:
    """Of the last step that has any."""
    files = sorted((folder / "reconstructions").glob("step_*.png"))
    last = [f for f in files if f.name.rsplit("_", 1)[0] == files[-1].name.rsplit("_", 1)[0]]
    shots = [charts.picture(Image.open(f), alt=f.stem, kind="PNG") for f in last]
    step = last[0].name.split("_")[1].lstrip("0") if last else ""
    return _section(
        f"What it predicts, at step {step}", f'<div class="panel shots">{"".join(shots)}</div>' if shots else ""
    )


def _features(folder: Path) -> str:
    try:
        lines = read_manifest(folder / "features")
    except OSError:
        return ""
    good = [line for line in lines if line["status"] == "ok"]
    clips = sum(int(line["num_clips"]) for line in good)
    return _section("Features", f"<p>{len(good):,} of {len(lines):,} videos, {clips:,} clips, in features/.</p>")


def _cards(folder: Path) -> str:
    parts = []
    for title, file in (("Protocol of the test", folder / "test/protocol.json"), ("The run", folder / "run.json")):
        if file.exists():
            card = json.loads(file.read_text())
            parts.append(
                _section(title, _table([[escape(key.replace("_", " ")), _value(v)] for key, v in card.items()]))
            )
    return "".join(parts)


def _value(value: object) -> str:
    if isinstance(value, dict):
        return "<br>".join(f"{escape(str(key))} {_value(v)}" for key, v in value.items())
    if isinstance(value, list):
        return escape(", ".join(map(str, value)))
    return f"<code>{escape(str(value))}</code>"


def _rows(file: Path) -> list[dict[str, str]]:
    with open(file, newline="", errors="surrogateescape") as f:
        return list(csv.DictReader(f))
