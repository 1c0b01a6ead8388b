"""What a model says of videos, in the files of tools that show and correct labels.

FiftyOne 1.22 (fiftyone/utils/data/importers.py, FiftyOneVideoLabelsDataset), ActivityNet
(Evaluation/eval_detection.py and eval_classification.py), CVAT (cvat/apps/dataset_manager/formats/
cvat.py at a01a8a8, "CVAT 1.1") and Label Studio (docs of predictions, TimelineLabels; frames are
counted as in label-studio-ml-backend, examples/yolo). Frames: FiftyOne and Label Studio count from
1 and CVAT from 0; the last one belongs to a segment.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote
from xml.sax.saxutils import escape, quoteattr

from hiera_video.evaluation.segments import Segment
from hiera_video.system.files import write_json, write_text
from hiera_video.system.members import member_of
from hiera_video.system.stores import is_remote


@dataclass(frozen=True)
class Labelled:
    """What is said of a video."""

    path: str  # where it lies
    name: str  # of its own among the others, without a suffix
    fps: float
    frames: int
    best: Sequence[tuple[str, float]]  # of the whole: classes with scores, the best one first
    segments: Sequence[Segment]


def write_activitynet(file: Path, videos: Sequence[Labelled], classes: Sequence[str]) -> None:
    """Results for the evaluation of detection or, where nothing has segments, classification."""
    stems = [Path(video.path).stem for video in videos]
    if stems != [video.name for video in videos]:
        twice = next(stem for stem in stems if stems.count(stem) > 1)
        raise ValueError(
            f"activitynet knows videos by their names, and several are called {twice}; give them "
            "names of their own"
        )
    results: dict[str, list[dict[str, object]]] = {}
    of_segments = any(video.segments for video in videos)
    for video in videos:
        said = results.setdefault(video.name.removeprefix("v_"), [])
        if of_segments:
            for segment in video.segments:
                place = [segment.start_s, segment.end_s]
                said.append({"label": segment.label, "score": segment.score, "segment": place})
        else:
            said += [{"label": label, "score": score} for label, score in video.best]
    external = {"used": False, "details": ""}
    write_json(file, {"version": "VERSION 1.3", "results": results, "external_data": external})


def write_fiftyone(folder: Path, videos: Sequence[Labelled], classes: Sequence[str]) -> None:
    """A FiftyOneVideoLabelsDataset that leaves the videos where they are.

    Fields: `prediction` (Classification) and `segments` (TemporalDetections).
    """
    (folder / "labels").mkdir(parents=True, exist_ok=True)
    index = []
    for video in videos:
        labels: dict[str, object] = {}
        if video.best:
            label, score = video.best[0]
            attribute = {
                "type": "eta.core.data.CategoricalAttribute",
                "name": "prediction",
                "value": label,
                "confidence": score,
            }
            labels["attrs"] = {"attrs": [attribute]}
        events = []
        for segment in video.segments:
            first, last = segment.frames(video.fps, video.frames)
            events.append(
                {
                    "name": "segments",
                    "label": segment.label,
                    "confidence": segment.score,
                    "support": {"ranges": [[first + 1, last + 1]]},
                }
            )
        if events:
            labels["events"] = {"events": events}
        file = f"labels/{video.name}.json"
        write_json(folder / file, labels)
        index.append({"data": _whole(video.path), "labels": file})
    kind = "eta.core.datasets.LabeledVideoDataset"
    write_json(folder / "manifest.json", {"type": kind, "description": "", "index": index})


def write_cvat(folder: Path, videos: Sequence[Labelled], classes: Sequence[str]) -> None:
    """`<name>.xml` for the task of each video, and `labels.json` for its constructor.

    A tag on every frame, as CVAT knows no ranges of them; of videos without segments the class of
    the whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    confidence = {"name": "confidence", "input_type": "text", "mutable": False, "values": [""]}
    constructor = [{"name": name, "type": "tag", "attributes": [confidence]} for name in classes]
    write_text(folder / "labels.json", json.dumps(constructor, indent=1) + "\n")
    for video in videos:
        tags: dict[int, list[str]] = {}
        for label, score, first, last in _ranges(video):
            tag = (
                f'<tag label={quoteattr(label)} source="file">'
                f'<attribute name="confidence">{score:.4f}</attribute></tag>'
            )
            for frame in range(first, last + 1):
                tags.setdefault(frame, []).append(tag)
        parts = [
            f'<image id="{frame}" name="frame_{frame:06d}">{"".join(of_frame)}</image>\n'
            for frame, of_frame in sorted(tags.items())
        ]
        text = (
            f'<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n'
            f"<meta><source>{escape(os.path.basename(video.path))}</source></meta>\n"
            f"{''.join(parts)}</annotations>\n"
        )
        write_text(folder / f"{video.name}.xml", text)


def write_label_studio(
    folder: Path, videos: Sequence[Labelled], classes: Sequence[str], *, root: Path | None = None
) -> None:
    """`tasks.json`, with predictions, and `config.xml`, the labelling interface that they fit.

    root: LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT; default the folder that holds all videos. Remote
    ones keep their URLs. Raises ValueError for a video outside the root.
    """
    folder.mkdir(parents=True, exist_ok=True)
    places = [_whole(video.path) for video in videos]
    here = [os.path.dirname(place) for place in places if not is_remote(place)]
    base = os.path.abspath(root) if root else os.path.commonpath(here or ["/"])
    tasks = []
    for video, place in zip(videos, places):
        result = []
        if video.best:
            label, score = video.best[0]
            result.append(_result("whole", "action", "choices", {"choices": [label]}, score))
        for k, segment in enumerate(video.segments):
            first, last = segment.frames(video.fps, video.frames)
            ranges = [{"start": first + 1, "end": last + 1}]
            value: dict[str, object] = {"ranges": ranges, "timelinelabels": [segment.label]}
            result.append(_result(f"s{k}", "segments", "timelinelabels", value, segment.score))
        url = place
        if not is_remote(place):
            inside = os.path.relpath(place, base)
            if inside.startswith(".."):
                raise ValueError(f"--root {base} does not hold {place}")
            url = f"/data/local-files/?d={quote(os.fsencode(inside))}"
        sure = max([score for _, score in video.best] + [s.score for s in video.segments])
        prediction = {"model_version": "hiera_video", "score": sure, "result": result}
        tasks.append({"data": {"video": url, "fps": video.fps}, "predictions": [prediction]})
    write_text(folder / "tasks.json", json.dumps(tasks, indent=1) + "\n")
    choices = "".join(f"    <Choice value={quoteattr(name)}/>\n" for name in classes)
    labels = "".join(f"    <Label value={quoteattr(name)}/>\n" for name in classes)
    write_text(
        folder / "config.xml",
        '<View>\n  <Video name="video" value="$video" frameRate="$fps"/>\n'
        f'  <Choices name="action" toName="video" choice="single">\n{choices}  </Choices>\n'
        f'  <TimelineLabels name="segments" toName="video">\n{labels}  </TimelineLabels>\n'
        "</View>\n",
    )


def _whole(path: str) -> str:
    """A local one from / on. Raises ValueError for one in a tar, which other tools do not read."""
    if member_of(path) is not None:
        raise ValueError(f"{path} lies in a tar; unpack it for other tools")
    return path if is_remote(path) else os.path.abspath(path)


def _result(
    number: str, name: str, kind: str, value: dict[str, object], score: float
) -> dict[str, object]:
    return {
        "id": number,
        "from_name": name,
        "to_name": "video",
        "type": kind,
        "value": value,
        "score": score,
    }


def _ranges(video: Labelled) -> list[tuple[str, float, int, int]]:
    """(label, score, first frame, last frame), from 0"""
    if video.segments:
        return [(s.label, s.score, *s.frames(video.fps, video.frames)) for s in video.segments]
    return [(label, score, 0, video.frames - 1) for label, score in video.best[:1]]


Writer = Callable[[Path, Sequence[Labelled], Sequence[str]], None]
WRITERS: dict[str, Writer] = {
    "activitynet": write_activitynet,
    "fiftyone": write_fiftyone,
    "cvat": write_cvat,
}
