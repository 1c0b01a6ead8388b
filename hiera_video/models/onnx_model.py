"""A model that lies in an ONNX file, in place of a module of ours (export/ writes such files)."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SUFFIX = ".onnx"
METADATA_KEY = "hiera_video"


class OnnxModel(nn.Module):
    """Takes normalised clips as the model does that was exported. Raises ValueError.

    Runs in onnxruntime; device: cpu, or cuda where its GPU build is installed.
    """

    def __init__(self, file: str | Path, *, device: str = "cpu"):
        super().__init__()
        self._session = _session(file, device)
        known = self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if known is None:
            raise ValueError(f"{file} was not written by `hiera-video export`")
        self.metadata: dict[str, Any] = json.loads(known)
        self.outputs = [output.name for output in self._session.get_outputs()]
        sizes = {output.name: output.shape for output in self._session.get_outputs()}
        self.num_classes = sizes["logits"][1] if "logits" in sizes else None
        (given,) = self._session.get_inputs()
        self.input_size = tuple(given.shape[2:])
        self._takes_pixels = given.type == "tensor(uint8)"

    def forward(self, clip: Tensor) -> Tensor:
        """[B, 3, T, S, S] -> logits [B, classes]"""
        return self._run(clip, ["logits"])[0]

    def features(self, clip: Tensor) -> Tensor:
        """[B, 3, T, S, S] -> [B, dim]"""
        return self._run(clip, ["features"])[0]

    def features_and_maps(self, clip: Tensor) -> tuple[Tensor, list[Tensor]]:
        names = [name for name in self.outputs if name.startswith("stage")]
        features, *maps = self._run(clip, ["features", *names])
        return features, maps

    def outputs_of(self, clip: Tensor) -> tuple[Tensor, ...]:
        """All that the file gives, of a clip as the file takes it."""
        found = self._session.run(None, {"clip": np.ascontiguousarray(clip.numpy())})
        return tuple(torch.from_numpy(values) for values in found)

    @cached_property
    def _levels(self) -> tuple[Tensor, Tensor]:
        """(mean, std) that its pixels were normalised by, each [3, 1, 1, 1]"""
        found = [self.metadata[name] for name in ("mean", "std")]
        mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in found)
        return mean, std

    def _run(self, clip: Tensor, names: Sequence[str]) -> list[Tensor]:
        missing = [name for name in names if name not in self.outputs]
        if missing:
            raise ValueError(f"the ONNX file gives no {missing[0]}, but {', '.join(self.outputs)}")
        if tuple(clip.shape[2:]) != self.input_size:
            raise ValueError(f"clips are {tuple(clip.shape[2:])}, the file's {self.input_size}")
        clip = clip.float().cpu()
        if self._takes_pixels:  # back to what was decoded
            mean, std = self._levels
            clip = ((clip * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        found = self._session.run(list(names), {"clip": np.ascontiguousarray(clip.numpy())})
        return [torch.from_numpy(values) for values in found]


def _session(file: str | Path, device: str) -> Any:
    try:
        import onnxruntime
    except ImportError as e:
        raise ValueError(f"{file}: ONNX files need onnxruntime: pip install onnxruntime") from e
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    wanted = {"cuda": ("CUDAExecutionProvider",)}.get(device.split(":")[0], ())
    here = [name for name in wanted if name in onnxruntime.get_available_providers()]
    try:
        return onnxruntime.InferenceSession(
            str(file), options, providers=[*here, "CPUExecutionProvider"]
        )
    except Exception as e:  # its errors have no common base
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise ValueError(f"{file} is no ONNX file that onnxruntime runs: {reason}") from e
