"""A folder that transformers reads, with `trust_remote_code=True` and without this package.

It holds the weights, the config, the code that runs them (hub_code/, and the files of models/ and
data/ that it needs, as they are), and a model card of what is known of the run.
"""

import inspect
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from torch import Tensor

from hiera_video.config import load_config
from hiera_video.data import sampling, transforms
from hiera_video.export.formats import Run, quiet
from hiera_video.inference import VideoModel
from hiera_video.models.hiera import Hiera
from hiera_video.models.huggingface import CONFIG, MODEL_TYPE, WEIGHTS
from hiera_video.models.published import LICENCE, published
from hiera_video.models.weights import metadata_entry
from hiera_video.models.zoo import model_arguments
from hiera_video.system.tensors import save_file

CODE = files("hiera_video.export") / "hub_code"
# Files of models/ that are copied; what they import is among them, or stands in `hub_code`.
MODELS = (
    "arguments",
    "blocks",
    "classifier",
    "hiera",
    "patch_embed",
    "positions",
    "tokens",
    "trunk",
)
# Functions that are copied, into clips.py: all that a processor needs of data/.
CLIPS = (
    sampling.clip_span,
    sampling.uniform_clips,
    sampling.segment_clips,
    sampling._spread,
    sampling._check,
    transforms.crop_boxes,
    transforms.resize,
    transforms.to_levels,
)
CLIPS_HEAD = '''"""Which frames make a clip, and how they are cut."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

Levels = tuple[float, float]  # mean and standard deviation of pixels, 0 to 1
'''
PROCESSOR = "processing_hiera_video.HieraVideoProcessor"


def write_folder(
    model: VideoModel, folder: Path, metadata: Mapping[str, Any], rows: Mapping[str, str]
) -> None:
    """metadata: of the weights. rows: of the model card.

    Raises ValueError for what is no classifier of ours.
    """
    if not isinstance(model.module, Hiera) or not model.takes_video:
        raise ValueError("--to hf is for the weights of a Hiera that classifies video")
    stored = metadata["model"]
    given = {"num_classes": model.module.head.projection.out_features}
    arguments = model_arguments(stored["name"], **{**stored.get("arguments", {}), **given})
    folder.mkdir()
    classes = model.classes or [f"class {k}" for k in range(arguments["num_classes"])]
    clip_format = describe_format(model)
    config = {
        "model_type": MODEL_TYPE,
        "model_name": stored["name"],
        "architectures": ["HieraVideoForVideoClassification"],
        "auto_map": {
            "AutoConfig": "configuration_hiera_video.HieraVideoConfig",
            "AutoModel": "modeling_hiera_video.HieraVideoModel",
            "AutoModelForVideoClassification": (
                "modeling_hiera_video.HieraVideoForVideoClassification"
            ),
            "AutoVideoProcessor": PROCESSOR,
        },
        "arguments": arguments,
        "clip_format": clip_format,
        "id2label": dict(enumerate(classes)),
        "label2id": {name: k for k, name in enumerate(classes)},
        "dtype": "float32",
    }
    if model.thresholds is not None:
        config |= {
            "problem_type": "multi_label_classification",
            "thresholds": model.thresholds.tolist(),
        }
    processor = {
        "video_processor_type": "HieraVideoProcessor",
        "auto_map": {"AutoVideoProcessor": PROCESSOR},
        "clip_format": clip_format,
    }
    state = {f"model.{name}": t.contiguous() for name, t in model.module.state_dict().items()}
    known = {**metadata_entry(metadata), "format": "pt"}
    save_file(state, folder / WEIGHTS, metadata=known)
    (folder / CONFIG).write_text(json.dumps(config, indent=1))
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        (folder / name).write_text(json.dumps(processor, indent=1))
    write_code(folder)
    (folder / "README.md").write_text(model_card(model, classes, stored["name"], rows))


def is_export(folder: Path) -> bool:
    """Whether `write_folder` made it."""
    try:
        return json.loads((folder / CONFIG).read_text()).get("model_type") == MODEL_TYPE
    except (OSError, ValueError, AttributeError):
        return False


def open_folder(folder: Path) -> tuple[Run, Run] | None:
    """(logits and features, logits alone), as transformers loads the folder; None without it."""
    try:
        from transformers import AutoModel, AutoModelForVideoClassification
    except ImportError:
        return None
    place = str(folder.absolute())
    with quiet():
        classifier = AutoModelForVideoClassification.from_pretrained(place, trust_remote_code=True)
        encoder = AutoModel.from_pretrained(place, trust_remote_code=True)

    def run(clip: Tensor) -> tuple[Tensor, ...]:
        return classifier(clip).logits, encoder(clip).pooler_output

    return run, classifier


def describe_format(model: VideoModel) -> dict[str, Any]:
    f = model.format
    return {
        "num_frames": f.shape.num_frames,
        "sampling_rate": f.shape.sampling_rate,
        "target_fps": f.shape.target_fps,
        "crop_size": f.crop_size,
        "short_side": f.short_side,
        "squash": f.squash,
        "levels": list(f.levels) if f.levels else None,
        "segments": f.segments,
        "mean": list(f.mean),
        "std": list(f.std),
    }


def write_code(folder: Path) -> None:
    for file in CODE.iterdir():
        if file.name.endswith(".py"):
            (folder / file.name).write_text(file.read_text())
    for name in MODELS:
        text = (files("hiera_video.models") / f"{name}.py").read_text()
        text = text.replace("from hiera_video.models import", "from . import")
        (folder / f"{name}.py").write_text(text.replace("from hiera_video.models.", "from ."))
    functions = (inspect.getsource(function) for function in CLIPS)
    (folder / "clips.py").write_text("\n\n".join([CLIPS_HEAD, *functions]))


def rows_of_run(weights: str) -> dict[str, str]:
    """What its own files say of a run: data, results and their protocol, what it started from.

    Nothing where `weights` is no run folder.
    """
    folder = Path(weights)
    rows: dict[str, str] = {}
    lists = _read(folder / "run.json").get("lists", {})
    for key in ("data.train", "data.val"):
        if key in lists:
            listed = lists[key]
            source = Path(listed["source"]).name
            rows[key] = f"{source}, {listed['videos']} videos, sha256 {listed['sha256'][:12]}"
    found = _read(folder / "test/metrics.json")
    card = _read(folder / "test/protocol.json")
    if found.get("top1") is not None and card:
        views = card["views"]
        rows["top-1, top-5"] = (
            f"{found['top1']:.2f}, {found['top5']:.2f} of {found['videos']} videos of "
            f"{card['list']['file']}, {views['clips']} clips x {views['crops']} crops"
        )
        rows["protocol"] = f"{card['clip']}; {card['resize']}; crops of {card['crop']}"
    file = folder / "config.yaml"
    if file.exists():
        start = load_config(file).init.file
        rows["started from"] = "random weights" if start is None else Path(start).name
        if start is not None and published(start) is not None:
            rows["licence of that"] = LICENCE
    return rows


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.exists() else {}


def model_card(model: VideoModel, classes: list[str], name: str, rows: Mapping[str, str]) -> str:
    f = model.format
    parameters = sum(p.numel() for p in model.module.parameters()) / 1e6
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: video-classification",
        *(["license: cc-by-nc-4.0"] if LICENCE in rows.values() else []),
        "tags: [hiera, video]",
        "---",
        "",
        f"# {name}",
        "",
        "A Hiera on video (Ryali et al., ICML 2023), exported by hiera_video.",
        "",
        "```python",
        "from transformers import pipeline",
        "",
        'classify = pipeline("video-classification", model=FOLDER, trust_remote_code=True)',
        'print(classify("video.mp4"))  # the clip from its middle, one crop',
        "```",
        "",
        "| | |",
        "|---|---|",
        f"| parameters | {parameters:.2f} M |",
        f"| classes | {len(classes)} |",
        f"| clip | {f.shape.num_frames} frames of {f.crop_size} x {f.crop_size} pixels |",
    ]
    lines += [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(lines) + "\n"
