"""The evaluation loop, and what becomes of its outputs: scores for multi-view testing, files of features.

Every rank takes its own rows of the list, each row once and no padding; rank 0 puts the parts together by row. A video
that cannot be read is never replaced: it is missing, and named.
"""

import csv
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor

from hiera_video.data.annotations import VideoList
from hiera_video.data.dataset import Batch
from hiera_video.data.transforms import normalise
from hiera_video.distributed import World
from hiera_video.log import RunLog
from hiera_video.tasks import autocast

TOP = 5


@dataclass(frozen=True)
class TestConfig:
    __test__ = False  # not a test case, whatever its name

    clips: int = 5
    crops: int = 3  # 1 or 3
    short_side: int | None = None  # pixels; default data.crop_size
    batch_size: int = 1  # videos that are decoded together
    views_per_forward: int = 15  # memory grows with it
    precision: str = "float32"  # float32 | bfloat16
    compile: bool = False  # torch.compile, for the features too
    weights: str | None = None  # default: the run's last checkpoint
    min_coverage: float = 0.0  # share of the videos that must be scored, else exit status 3
    clip_sampler: str | None = None  # default: by data.clip_sampler; pytorchvideo.{uniform,constant_clips_per_video}
    clip_sampler_args: tuple[float, ...] = ()  # what follows the clip duration in pytorchvideo's constructor


@dataclass(frozen=True)
class FeaturesConfig:
    videos: str | None = None  # a list; default data.test
    hop_s: float | None = None  # seconds from window to window; default end to end
    stages: tuple[int, ...] = ()  # also keep the maps of these stages, 1 to 4


class Consumer(Protocol):
    def update(self, batch: Batch, out: dict[str, Tensor]) -> None:
        """out: what the model said of every view, each [B, V, ...] on the host."""

    def missing(self, row: int, reason: str) -> None: ...


@torch.inference_mode()
def evaluate(
    predict: Callable[[Tensor], dict[str, Tensor]],
    batches: Iterable[Batch],
    consumer: Consumer,
    *,
    world: World,
    mean: tuple,
    std: tuple,
    views_per_forward: int,
    precision: str,
    compiled: bool,
    total: int,
    what: str,
    log: RunLog,
) -> None:
    """Runs `predict` on all views of all videos of this rank's `batches` and hands the outputs to `consumer`."""
    predict = torch.compile(predict) if compiled else predict
    progress = log.progress(total, what=what, unit="videos")
    for batch in batches:
        for row, reason in batch["bad"]:
            consumer.missing(row, reason)
        if batch["clip"] is not None:
            clips = batch["clip"]
            parts = []
            for part in clips.flatten(0, 1).split(views_per_forward):
                with autocast(precision, world.device):
                    out = predict(normalise(part.to(world.device, non_blocking=True), mean, std))
                parts.append({name: value.float().cpu() for name, value in out.items()})
            joined = {name: torch.cat([p[name] for p in parts]).unflatten(0, clips.shape[:2]) for name in parts[0]}
            consumer.update(batch, joined)
        progress.advance(batch["requested"] * world.size)
    progress.close()


class ViewScores:
    """Softmax of every view, averaged over the views of a video (paper App. A; PySlowFast)."""

    def __init__(self) -> None:
        self.rows: dict[int, Tensor] = {}  # row of the list -> float32 [classes]
        self.bad: dict[int, str] = {}

    def update(self, batch: Batch, out: dict[str, Tensor]) -> None:
        for row, score in zip(batch["index"].tolist(), out["logits"].softmax(-1).mean(1)):
            self.rows[row] = score

    def missing(self, row: int, reason: str) -> None:
        self.bad[row] = reason

    def merged(self, world: World) -> "ViewScores":
        """All ranks' rows, on rank 0, in list order."""
        whole = ViewScores()
        parts = world.gather((self.rows, self.bad))
        whole.rows = dict(sorted((row, s) for rows, _ in parts for row, s in rows.items()))
        whole.bad = dict(sorted((row, r) for _, bad in parts for row, r in bad.items()))
        return whole

    def accuracy(self, videos: VideoList) -> dict[str, float | None]:
        """top1 and top5 in percent over the scored videos that have a label; None if there are none."""
        labelled = [row for row in self.rows if videos.label(row) >= 0]
        if not labelled:
            return {"top1": None, "top5": None}
        best = ranked(torch.stack([self.rows[row] for row in labelled]))
        hits = best == torch.tensor([videos.label(row) for row in labelled])[:, None]
        return {"top1": 100 * hits[:, 0].double().mean().item(), "top5": 100 * hits.any(1).double().mean().item()}

    def write(self, folder: Path, videos: VideoList, *, views: tuple[int, int]) -> dict:
        """predictions.csv, scores.safetensors and, last, metrics.json. Returns the metrics."""
        folder.mkdir(parents=True, exist_ok=True)
        scores = torch.stack(list(self.rows.values())) if self.rows else torch.zeros(0, 0)
        with open(folder / "predictions.csv", "w", newline="") as f:
            writer = csv.writer(f)
            writer.writerow(
                ["path", "label", "prediction"]
                + [f"top{k}_class" for k in range(1, TOP + 1)]
                + [f"top{k}_score" for k in range(1, TOP + 1)]
            )
            for row, score, classes in zip(self.rows, scores, ranked(scores).tolist()):
                blank = [""] * (TOP - len(classes))  # a model of fewer classes
                top = [f"{score[c]:.6f}" for c in classes]
                writer.writerow([videos.written(row), videos.label(row), classes[0], *classes, *blank, *top, *blank])
        save_file({"scores": scores, "index": torch.tensor(list(self.rows))}, folder / "scores.safetensors")
        metrics = {
            **self.accuracy(videos),
            "videos": len(self.rows),
            "videos_expected": len(videos),
            "missing": [videos.written(row) for row in self.bad],
            "missing_reasons": list(self.bad.values()),
            "views": list(views),
        }
        write_json(folder / "metrics.json", metrics)
        return metrics


class FeatureFiles:
    """One safetensors a video: `features [clips, dim]`, `times [clips, 2]` in seconds, and `stageN` where asked for."""

    def __init__(self, folder: Path, videos: VideoList):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.videos = folder, videos
        self.rows: dict[int, tuple[str, int, str]] = {}  # row -> file, clips, status

    def update(self, batch: Batch, out: dict[str, Tensor]) -> None:
        for k, (row, times) in enumerate(zip(batch["index"].tolist(), batch["times"])):
            file = f"{row:06d}_{Path(self.videos.written(row)).stem}.safetensors"
            tensors = {name: value[k].contiguous() for name, value in out.items()} | {"times": torch.from_numpy(times)}
            temporary = self.folder / f".{file}"
            save_file(tensors, temporary)
            temporary.replace(self.folder / file)
            self.rows[row] = (file, len(times), "ok")

    def missing(self, row: int, reason: str) -> None:
        self.rows[row] = ("", 0, reason)

    def write_manifest(self, world: World) -> Path:
        """manifest.csv, `path,file,num_clips,status`, in list order; written last, by rank 0."""
        parts = world.gather(self.rows)
        file = self.folder / "manifest.csv"
        if parts:
            temporary = file.with_suffix(".tmp")
            with open(temporary, "w", newline="") as f:
                writer = csv.writer(f)
                writer.writerow(["path", "file", "num_clips", "status"])
                for row, values in sorted((row, v) for part in parts for row, v in part.items()):
                    writer.writerow([self.videos.written(row), *values])
            temporary.replace(file)
        return file


def ranked(scores: Tensor) -> Tensor:
    """int64 [videos, up to 5]: the best classes. Of equal scores the lower class comes first, on every machine."""
    return scores.sort(dim=-1, descending=True, stable=True).indices[:, :TOP]


def write_json(file: Path, content: dict) -> None:
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(file)
