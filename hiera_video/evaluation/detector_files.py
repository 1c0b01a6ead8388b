"""Features as action detectors read them: `<video id>.npy`, float32 [T, C], and what T means.

ActionFormer (libs/datasets/thumos14.py) and OpenTAD (opentad/datasets/transforms/loading.py) take
vector i for the time (i * stride + window / 2) / fps: the middle of window i. Beside the arrays:
`<video id>.npy.json` for each, `features.json` for all, and, of a list with segments, the ground
truth as ActivityNet's json with `category_idx.txt`; `missing_files.txt` names videos without
features.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file
from torch import Tensor

from hiera_video.data.lists import VideoList
from hiera_video.data.tables import SEVERAL
from hiera_video.system.errors import UserError
from hiera_video.system.files import write_json, write_text, written_whole

SUFFIX = ".npy"
# Names of lists -> ActivityNet's subsets.
SUBSETS = {"train": "training", "val": "validation", "test": "testing"}


def video_ids(videos: VideoList) -> list[str]:
    """The name of every row's file, without its suffix. Raises UserError where two are one."""
    ids = [Path(videos.written(row)).stem for row in range(len(videos))]
    seen: dict[str, int] = {}
    for row, name in enumerate(ids):
        first = seen.setdefault(name, row)
        if first != row:
            raise UserError(
                f"features.layout: {videos.written(first)} and {videos.written(row)} would both be "
                f"{name}{SUFFIX}"
            )
    return ids


def write_npy(file: Path, features: Tensor) -> None:
    """features: [T, C]"""
    with written_whole(file) as temporary, open(temporary, "wb") as f:
        np.save(f, features.float().numpy())


def join_npy(parts: Sequence[Path], file: Path, rows: int) -> None:
    """`features` of safetensors files, one after the other; one of them is held at a time."""
    with written_whole(file) as temporary, open(temporary, "wb") as f:
        for number, part in enumerate(parts):
            features = load_file(part)["features"].float().numpy()
            if number == 0:
                shape = (rows, features.shape[1])
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(f, header)
            f.write(np.ascontiguousarray(features).tobytes())


def rows_of_npy(file: Path) -> int:
    """Raises OSError, ValueError."""
    return np.load(file, mmap_mode="r").shape[0]


def sidecar_of(file: Path) -> Path:
    """Whatever a video is called, no other file of the folder has this name."""
    return file.with_name(f"{file.name}.json")


def write_sidecar(file: Path, *, fps: float, frames: int, rows: int) -> None:
    """Beside the array `file`: of its video."""
    known = {"fps": fps, "frames": frames, "duration_s": frames / fps, "features": rows}
    write_json(sidecar_of(file), known)


def write_index(
    folder: Path, whole: VideoList, segments: VideoList, facts: Mapping[str, Any]
) -> None:
    """What is said of all of them. whole: every video once. segments: the list itself.

    facts: stride and window in frames, and what made the features.
    """
    ids = video_ids(whole)
    window = facts["window_frames"]
    stride = facts["stride_frames"]
    write_json(
        folder / "features.json",
        {
            **facts,
            "actionformer": {"feat_stride": stride, "num_frames": window},
            "opentad": {
                "feature_stride": stride,
                "sample_stride": 1,
                "offset_frames": window // 2,
            },
        },
    )
    database: dict[str, Any] = {}
    missing = []
    id_of = {whole.written(row): ids[row] for row in range(len(whole))}
    stem = Path(segments.source).stem
    for name in ids:
        sidecar = sidecar_of(folder / f"{name}{SUFFIX}")
        if not sidecar.exists():
            missing.append(name)
            continue
        known = json.loads(sidecar.read_text())
        database[name] = {
            "subset": SUBSETS.get(stem, stem),
            "duration": known["duration_s"],
            "fps": known["fps"],
            "annotations": [],
        }
    write_text(folder / "missing_files.txt", "".join(f"{name}\n" for name in missing))
    if not segments.has_segments:
        return
    categories = sorted({label for row in range(len(segments)) for label in _labels(segments, row)})
    place = {label: k for k, label in enumerate(categories)}
    for row in range(len(segments)):
        segment = segments.segment(row)
        entry = database.get(id_of[segments.written(row)])
        if segment is None or entry is None:
            continue
        for label in _labels(segments, row):
            entry["annotations"].append(
                {"label": label, "label_id": place[label], "segment": list(segment)}
            )
    write_json(folder / "annotations.json", {"version": "1.3", "database": database})
    write_text(folder / "category_idx.txt", "".join(f"{label}\n" for label in categories))


def _labels(videos: VideoList, row: int) -> list[str]:
    return [label for label in videos.label_text(row).split(SEVERAL) if label]
