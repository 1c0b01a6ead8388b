"""Checkpoints of a run: `checkpoints/step_XXXXXXXXX/{model.safetensors, train_state.pt, checksums.json}`, `checkpoints/latest`.

A checkpoint is written to a temporary folder, flushed to the disk and renamed, so that a step folder is always whole; should
the disk have lost part of it all the same, its checksums tell, and the one before is taken. model.safetensors holds the
weights to use: the average of them, where one is kept; then the weights themselves are in the training state, a flat dict of
tensors and numbers under fixed names, so that equal states give equal bytes.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from hiera_video.errors import RunStopped, UserError
from hiera_video.models.weights import load_weights, metadata_entry
from hiera_video.optim import Ema

TEMPORARY = ".writing_"
FILES = ("model.safetensors", "train_state.pt")
CHECKSUMS = "checksums.json"


def save_checkpoint(
    folder: Path,
    *,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    metadata: dict[str, Any],
    keep: int,
    ema: Ema | None = None,
    keep_steps: int = 0,
) -> Path:
    """Writes the checkpoint of `step`, makes it `latest` and removes older ones.

    The newest `keep` stay, those of every `keep_steps` steps, and the one that `best` points to. Raises RunStopped where the
    disk does not take it; the checkpoints before are then as they were.
    """
    final, temporary = folder / f"step_{step:09d}", folder / f"{TEMPORARY}step_{step:09d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f"{TEMPORARY}*"):
            shutil.rmtree(leftover) if leftover.is_dir() and not leftover.is_symlink() else leftover.unlink()
        temporary.mkdir()
        write_state(temporary, step=step, model=model, optimizer=optimizer, metadata=metadata, ema=ema)
        if final.exists():  # a damaged one of this step
            shutil.rmtree(final)
        temporary.rename(final)
        point(folder, "latest", final.name)
    except (
        OSError,
        RuntimeError,
        SafetensorError,
    ) as e:  # torch and safetensors have errors of their own for a full disk
        shutil.rmtree(temporary, ignore_errors=True)
        before = newest(folder)
        whole = f"{before.name} is the newest whole one" if before else "there is none before it"
        raise RunStopped(f"cannot write the checkpoint of step {step} to {folder}: {e}; {whole}") from e
    best = (folder / "best").resolve().name
    for old in sorted(folder.glob("step_*"))[:-keep] if keep else []:
        if old.name != best and not (keep_steps and checkpoint_step(old) % keep_steps == 0):
            shutil.rmtree(old)
    return final


def write_state(
    folder: Path,
    *,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    metadata: dict[str, Any],
    ema: Ema | None,
) -> None:
    """The files of a checkpoint, flushed to the disk."""
    state: dict[str, Any] = {"step": step, **flat_optimizer_state(optimizer, model)}
    if ema is not None:
        state |= {f"weights.{name}": p.detach().clone().cpu() for name, p in model.named_parameters()}
    save_weights(folder / "model.safetensors", model, metadata, ema=ema)
    torch.save(state, folder / "train_state.pt")
    sums = {name: _sha256(folder / name) for name in FILES}
    (folder / CHECKSUMS).write_text(json.dumps(sums, indent=1) + "\n")
    for file in (*(folder / name for name in FILES), folder / CHECKSUMS, folder):
        _flush(file)


def save_weights(file: Path, model: nn.Module, metadata: dict[str, Any], *, ema: Ema | None = None) -> None:
    """A safetensors file of the model's weights, or of their average."""
    average = {} if ema is None else ema.average
    tensors = {name: average.get(name, t).detach().contiguous().cpu() for name, t in model.state_dict().items()}
    save_file(tensors, file, metadata=metadata_entry(metadata))


def point(folder: Path, link_name: str, step_name: str) -> None:
    """Makes `folder/link_name` a relative link to a step folder; there is no moment without one."""
    link = folder / f"{TEMPORARY}{link_name}"
    link.unlink(missing_ok=True)
    link.symlink_to(step_name)
    link.rename(folder / link_name)
    _flush(folder)


def newest(folder: Path) -> Path | None:
    """The newest step folder, or None."""
    steps = sorted(folder.glob("step_*"))
    return steps[-1] if steps else None


def newest_whole(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The newest step folder whose files are those that were written, or None where there is no folder at all.

    Raises UserError if there are step folders and all are damaged: starting afresh is for the user to decide.
    """
    steps = sorted(folder.glob("step_*"), reverse=True)
    for checkpoint in steps:
        wrong = what_is_damaged(checkpoint)
        if not wrong:
            return checkpoint
        say(f"CHECKPOINT DAMAGED: {checkpoint}: {wrong}; going back to the one before")
    if steps:
        raise UserError(f"every checkpoint in {folder} is damaged; remove that folder to start afresh")
    return None


def what_is_damaged(checkpoint: Path) -> str:
    """What is wrong with the files of a step folder; empty if they are whole."""
    try:
        sums = json.loads((checkpoint / CHECKSUMS).read_text())
        for name in FILES:
            if _sha256(checkpoint / name) != sums[name]:
                return f"{name} is not what was written"
    except (OSError, ValueError, KeyError) as e:
        return f"{type(e).__name__}: {e}"
    return ""


def checkpoint_step(checkpoint: Path | None) -> int:
    return int(checkpoint.name.removeprefix("step_")) if checkpoint else 0


def resume(checkpoint: Path, *, model: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema | None) -> int:
    """Loads weights, their average and the optimizer's state; returns the step. Raises UserError for another model's."""
    try:
        load_weights(model, checkpoint, strict=True)
    except ValueError as e:
        raise UserError(f"cannot resume: {e}") from e
    state = torch.load(checkpoint / "train_state.pt", map_location="cpu", weights_only=True)
    if ema is not None:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                ema.average[name].copy_(parameter)
                parameter.copy_(state[f"weights.{name}"])
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
        optimizer.state[parameter] = {what: value.to(parameter.device) for what, value in values.items()}
        if not values:
            del optimizer.state[parameter]


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as f:
        while part := f.read(1 << 22):
            digest.update(part)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
