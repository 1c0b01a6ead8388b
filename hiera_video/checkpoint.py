"""Checkpoints of a run: `checkpoints/step_XXXXXXXXX/{model.safetensors, train_state.pt, checksums.json}`, `checkpoints/latest`.

A checkpoint is written to a temporary folder, flushed to the disk and renamed, so that a step folder is always whole; should
the disk have lost part of it all the same, its checksums tell, and the one before is taken. model.safetensors holds the
weights to use: the average of them, where one is kept; then the weights themselves are in the training state, a flat dict of
tensors and numbers under fixed names, so that equal states give equal bytes.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from hiera_video.distributed import World, placed_like, whole
from hiera_video.errors import RunStopped, UserError
from hiera_video.files import sha256_of
from hiera_video.models.weights import metadata_entry
from hiera_video.optim import Ema

TEMPORARY = ".writing_"
FILES = ("model.safetensors", "train_state.pt")
CHECKSUMS = "checksums.json"


@dataclass(frozen=True)
class Snapshot:
    """All that a checkpoint holds, on the host of rank 0, to be written before training goes on; no tensors on other ranks."""

    step: int
    weights: dict[str, Tensor]  # to use
    state: dict[str, Any]  # to go on training
    metadata: dict[str, Any]

    @classmethod
    def take(
        cls,
        step: int,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        ema: Ema | None,
        metadata: dict[str, Any],
        world: World,
    ) -> "Snapshot":
        """All ranks take it together."""

        def fetched(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
            fetched = ((name, whole(t.detach())) for name, t in tensors)
            return {name: t.cpu().contiguous() for name, t in fetched if world.is_main}

        state = {"step": step, **fetched(flat_optimizer_state(optimizer, model))}
        if ema is not None:
            state |= fetched((f"weights.{name}", p) for name, p in model.named_parameters())
        return cls(step, fetched(weights_to_keep(model, ema).items()), state, metadata)


def weights_to_keep(model: nn.Module, ema: Ema | None) -> dict[str, Tensor]:
    """The model's state, with the average of the parameters in their place where one is kept; maybe in shards."""
    return model.state_dict() | ({} if ema is None else ema.average)


def save_checkpoint(folder: Path, snapshot: Snapshot, *, keep: int, keep_steps: int = 0) -> Path:
    """Writes the checkpoint of `step`, makes it `latest` and removes older ones.

    The newest `keep` stay, those of every `keep_steps` steps, and the one that `best` points to. Raises RunStopped where the
    disk does not take it; the checkpoints before are then as they were.
    """
    step = snapshot.step
    final, temporary = folder / f"step_{step:09d}", folder / f"{TEMPORARY}step_{step:09d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f"{TEMPORARY}*"):
            shutil.rmtree(leftover) if leftover.is_dir() and not leftover.is_symlink() else leftover.unlink()
        temporary.mkdir()
        write_state(temporary, snapshot)
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


def write_state(folder: Path, snapshot: Snapshot) -> None:
    """The files of a checkpoint, flushed to the disk."""
    save_weights(folder / "model.safetensors", snapshot.weights, snapshot.metadata)
    torch.save(snapshot.state, folder / "train_state.pt")
    sums = {name: sha256_of(folder / name) for name in FILES}
    (folder / CHECKSUMS).write_text(json.dumps(sums, indent=1) + "\n")
    for file in (*(folder / name for name in FILES), folder / CHECKSUMS, folder):
        _flush(file)


def save_weights(file: Path, weights: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """A safetensors file that says what model it is of."""
    save_file({name: t.contiguous().cpu() for name, t in weights.items()}, file, metadata=metadata_entry(metadata))


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
            if sha256_of(checkpoint / name) != sums[name]:
                return f"{name} is not what was written"
    except (OSError, ValueError, KeyError) as e:
        return f"{type(e).__name__}: {e}"
    return ""


def checkpoint_step(checkpoint: Path | None) -> int:
    return int(checkpoint.name.removeprefix("step_")) if checkpoint else 0


def restore(checkpoint: Path, *, model: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema | None) -> None:
    """The optimizer's state, and the weights where the model, loaded from that checkpoint, holds their average."""
    state = torch.load(checkpoint / "train_state.pt", map_location="cpu", weights_only=True)
    if ema is not None:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                ema.average[name].copy_(parameter)
                parameter.copy_(placed_like(state[f"weights.{name}"], parameter))
    for name, parameter in model.named_parameters():
        prefix = f"optimizer.{name}."
        found = {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}
        if found:
            optimizer.state[parameter] = {
                what: placed_like(v, parameter) if v.shape == parameter.shape else v.to(parameter.device)
                for what, v in found.items()
            }


def flat_optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """("optimizer.<parameter>.<what>", tensor), in the order of the model's parameters."""
    for name, parameter in model.named_parameters():
        for what, value in sorted(optimizer.state.get(parameter, {}).items()):
            yield f"optimizer.{name}.{what}", value


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
