"""Checkpoints of a run: `checkpoints/step_XXXXXXXXX/`, and `checkpoints/latest`, a link to one.

A step folder holds model.safetensors, train_state.pt and checksums.json. It is written under a
temporary name, flushed to the disk and renamed, so that it is always whole. Should the disk have
lost part of it all the same, its checksums tell, and the one before is taken.

model.safetensors holds the weights to use. Where an average of them is kept, that is the average,
and the weights themselves are in the training state: a flat dict of tensors and numbers under fixed
names, so that equal states give equal bytes.
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
from torch import Tensor, nn

from hiera_video.models.lora import Lora
from hiera_video.models.weights import metadata_entry, read_weights
from hiera_video.system.distributed import World, full_tensor, placed_like
from hiera_video.system.errors import RunStopped, UserError
from hiera_video.system.files import sha256_of, write_text, written_whole
from hiera_video.system.tensors import save_file
from hiera_video.training.optim import Ema

TEMPORARY = ".writing_"
REMOVED = ".removing_"
FILES = ("model.safetensors", "train_state.pt")
CHECKSUMS = "checksums.json"
Gather = Callable[[Iterable[tuple[str, Tensor]]], dict[str, Tensor]]  # from shards, on the host


@dataclass(frozen=True)
class TrainState:
    """What changes while a model is trained."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: Ema | None  # the average of the model's weights, where one is kept
    lora: Lora | None = None  # that the model has

    def weights_to_keep(self, gather: Gather) -> dict[str, Tensor]:
        """The model's state, with the average in the place of its parameters, and LoRA merged."""
        average = {} if self.ema is None else self.ema.average
        weights = gather((self.model.state_dict() | average).items())
        return weights if self.lora is None else self.lora.merged(weights)

    def beside_kept(self) -> Iterator[tuple[str, Tensor]]:
        """What those do not tell: the parameters, where an average or LoRA stands in their place.

        And the average, where it was merged.
        """
        if self.ema is None and self.lora is None:
            return
        for name, parameter in self.model.named_parameters():
            yield f"weights.{name}", parameter
            if self.ema is not None and self.lora is not None and parameter.requires_grad:
                yield f"average.{name}", self.ema.average[name]

    def optimizer_state(self) -> Iterator[tuple[str, Tensor]]:
        """("optimizer.<parameter>.<what>", tensor), in the order of the model's parameters."""
        for name, parameter in self.model.named_parameters():
            for what, value in sorted(self.optimizer.state.get(parameter, {}).items()):
                yield f"optimizer.{name}.{what}", value


@dataclass(frozen=True)
class Snapshot:
    """All that a checkpoint holds, on the host of rank 0; on other ranks it has no tensors.

    It is to be written before training goes on.
    """

    step: int
    weights: dict[str, Tensor]  # to use
    state: dict[str, Any]  # to go on training
    metadata: dict[str, Any]

    @classmethod
    def take(
        cls, step: int, state: TrainState, *, metadata: dict[str, Any], world: World
    ) -> "Snapshot":
        """All ranks take it together."""

        def on_host(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
            held = {}
            for name, tensor in tensors:
                tensor = full_tensor(tensor.detach())
                if world.is_main:
                    held[name] = tensor.cpu().contiguous()
            return held

        content = {"step": step, **on_host(state.optimizer_state()), **on_host(state.beside_kept())}
        return cls(step, state.weights_to_keep(on_host), content, metadata)


def save_checkpoint(
    folder: Path,
    snapshot: Snapshot,
    *,
    keep: int,
    keep_steps: int = 0,
    best: bool = False,
    say: Callable[[str], None],
) -> Path:
    """Writes the checkpoint of `step`, makes it `latest`, and `best` if it is; removes older ones.

    The newest `keep` stay, those of every `keep_steps` steps, and the one that `best` points to.
    Raises RunStopped where the disk does not take it; the checkpoints before are then as they were.
    """
    step = snapshot.step
    final = folder / f"step_{step:09d}"
    temporary = folder / f"{TEMPORARY}step_{step:09d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f"{TEMPORARY}*"):
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()
        temporary.mkdir()
        write_state(temporary, snapshot)
        if final.exists():  # a damaged one of this step
            shutil.rmtree(final)
        temporary.rename(final)
        point(folder, "latest", final.name)
        if best:
            point(folder, "best", final.name)
    # torch and safetensors have errors of their own for a full disk.
    except (OSError, RuntimeError, SafetensorError) as e:
        shutil.rmtree(temporary, ignore_errors=True)
        before = newest(folder)
        left = f"{before.name} is the newest whole one" if before else "there is none before it"
        raise RunStopped(
            f"cannot write the checkpoint of step {step} to {folder}: {e}; {left}"
        ) from e
    try:
        _remove_old(folder, keep, keep_steps)
    except OSError as e:  # such as a file that another machine has open
        say(f"an old checkpoint cannot be removed, and is tried again at the next one: {e}")
    return final


def _remove_old(folder: Path, keep: int, keep_steps: int) -> None:
    best = (folder / "best").resolve().name
    for old in sorted(folder.glob("step_*"))[:-keep]:
        stays = keep_steps and checkpoint_step(old) % keep_steps == 0
        if old.name != best and not stays:
            # What is half removed must not pass for a checkpoint.
            old.rename(folder / f"{REMOVED}{old.name}")
    for removed in folder.glob(f"{REMOVED}*"):
        shutil.rmtree(removed)


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
    save_file(
        {name: t.contiguous().cpu() for name, t in weights.items()},
        file,
        metadata=metadata_entry(metadata),
    )


def add_to_metadata(checkpoint: Path, more: dict[str, Any]) -> None:
    """Writes what the weights say of themselves anew, with `more`; whole at every moment."""
    weights, metadata = read_weights(checkpoint)
    file = checkpoint / "model.safetensors"
    sums = json.loads((checkpoint / CHECKSUMS).read_text())
    with written_whole(file) as temporary:
        save_weights(temporary, weights, {**metadata, **more})
        _flush(temporary)
        after = sha256_of(temporary)
        # Between this and the next line either of them is right.
        _write_sums(checkpoint, {**sums, file.name: [sha256_of(file), after]})
    _write_sums(checkpoint, {**sums, file.name: after})


def _write_sums(checkpoint: Path, sums: dict[str, Any]) -> None:
    write_text(checkpoint / CHECKSUMS, json.dumps(sums, indent=1) + "\n")
    for path in (checkpoint / CHECKSUMS, checkpoint):
        _flush(path)


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
    """The newest step folder whose files are undamaged, or None where there is no step folder.

    Raises UserError if all are damaged: starting afresh is for the user to decide.
    """
    steps = sorted(folder.glob("step_*"), reverse=True)
    for checkpoint in steps:
        wrong = what_is_damaged(checkpoint)
        if not wrong:
            return checkpoint
        say(f"CHECKPOINT DAMAGED: {checkpoint}: {wrong}; going back to the one before")
    if steps:
        raise UserError(
            f"every checkpoint in {folder} is damaged; remove that folder to start afresh"
        )
    return None


def what_is_damaged(checkpoint: Path) -> str:
    """What is wrong with the files of a step folder; empty if they are whole."""
    try:
        sums = json.loads((checkpoint / CHECKSUMS).read_text())
        for name in FILES:
            accepted = [sums[name]] if isinstance(sums[name], str) else sums[name]
            if sha256_of(checkpoint / name) not in accepted:
                return f"{name} is not what was written"
    except (OSError, ValueError, KeyError) as e:
        return f"{type(e).__name__}: {e}"
    return ""


def checkpoint_step(checkpoint: Path | None) -> int:
    return int(checkpoint.name.removeprefix("step_")) if checkpoint else 0


def restore(checkpoint: Path, state: TrainState) -> None:
    """Brings the optimizer's state back, and the average of the weights.

    The model was loaded from the checkpoint before, LoRA left out. Where that holds an average, or
    merged weights, the parameters themselves are brought back, too.
    """
    file = checkpoint / "train_state.pt"
    # Mapped, and copied tensor by tensor: every rank of a machine reads the same pages.
    stored = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    if state.ema is not None or state.lora is not None:
        with torch.no_grad():
            for name, parameter in state.model.named_parameters():
                weights = placed_like(stored[f"weights.{name}"], parameter)
                if state.ema is not None:
                    average = parameter if state.lora is None else weights
                    if f"average.{name}" in stored:
                        average = placed_like(stored[f"average.{name}"], parameter)
                    state.ema.average[name].copy_(average)
                parameter.copy_(weights)
    for name, parameter in state.model.named_parameters():
        prefix = f"optimizer.{name}."
        found = {key.removeprefix(prefix): stored[key] for key in stored if key.startswith(prefix)}
        if found:
            state.optimizer.state[parameter] = {
                what: _placed_with(value, parameter) for what, value in found.items()
            }


def _placed_with(value: Tensor, parameter: nn.Parameter) -> Tensor:
    """A tensor of the optimizer's state beside its parameter."""
    if value.shape == parameter.shape:
        return placed_like(value.clone(), parameter)
    return value.clone().to(parameter.device)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
