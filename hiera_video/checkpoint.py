"""Checkpoints of a run: `checkpoints/step_XXXXXXXXX/{model.safetensors, train_state.pt}` and `checkpoints/latest`.

A checkpoint is written to a temporary folder, flushed to the disk and renamed, so that a step folder is always whole.
The training state is a flat dict of tensors and numbers under fixed names, so that equal states give equal bytes.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hiera_video.errors import UserError
from hiera_video.models.weights import load_weights, metadata_entry

TEMPORARY = ".writing_"


def save_checkpoint(
    folder: Path, *, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, metadata: dict[str, Any], keep: int
) -> Path:
    """Writes the checkpoint of `step`, makes it `latest` and removes all but the newest `keep`."""
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f"{TEMPORARY}*"):
        shutil.rmtree(leftover) if leftover.is_dir() and not leftover.is_symlink() else leftover.unlink()
    final, temporary = folder / f"step_{step:09d}", folder / f"{TEMPORARY}step_{step:09d}"
    temporary.mkdir()
    save_weights(temporary / "model.safetensors", model, metadata)
    torch.save({"step": step, **flat_optimizer_state(optimizer, model)}, temporary / "train_state.pt")
    for file in (temporary / "model.safetensors", temporary / "train_state.pt", temporary):
        _flush(file)
    temporary.rename(final)
    point_latest(folder, final.name)
    for old in sorted(folder.glob("step_*"))[:-keep] if keep else []:
        shutil.rmtree(old)
    return final


def point_latest(folder: Path, name: str) -> None:
    """Makes `folder/latest` a relative link to the step folder `name`; there is no moment without one."""
    link = folder / f"{TEMPORARY}latest"
    link.unlink(missing_ok=True)
    link.symlink_to(name)
    link.rename(folder / "latest")
    _flush(folder)


def save_weights(file: Path, model: nn.Module, metadata: dict[str, Any]) -> None:
    tensors = {name: t.detach().contiguous().cpu() for name, t in model.state_dict().items()}
    save_file(tensors, file, metadata=metadata_entry(metadata))


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole step folder, or None."""
    steps = sorted(folder.glob("step_*"))
    return steps[-1] if steps else None


def checkpoint_step(checkpoint: Path | None) -> int:
    return int(checkpoint.name.removeprefix("step_")) if checkpoint else 0


def resume(checkpoint: Path, *, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Loads weights and optimizer state of a step folder; returns the step. Raises UserError for another model's."""
    try:
        load_weights(model, checkpoint, strict=True)
    except ValueError as e:
        raise UserError(f"cannot resume: {e}") from e
    state = torch.load(checkpoint / "train_state.pt", map_location="cpu", weights_only=True)
    load_flat_optimizer_state(optimizer, model, state)
    return state["step"]


def flat_optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """{"optimizer.<parameter>.<what>": tensor}, in the order of the model's parameters."""
    flat = {}
    for name, parameter in model.named_parameters():
        for what, value in sorted(optimizer.state.get(parameter, {}).items()):
            flat[f"optimizer.{name}.{what}"] = value.detach().clone().cpu()
    return flat


def load_flat_optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module, flat: dict[str, Any]) -> None:
    for name, parameter in model.named_parameters():
        prefix = f"optimizer.{name}."
        values = {key.removeprefix(prefix): v for key, v in flat.items() if key.startswith(prefix)}
        # Adam keeps its step counter on the host, everything else beside the parameter.
        optimizer.state[parameter] = {k: v if v.ndim == 0 else v.to(parameter.device) for k, v in values.items()}
        if not values:
            del optimizer.state[parameter]


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
