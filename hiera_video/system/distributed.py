"""Ranks: the only file that imports torch.distributed.

A world of one takes the same path as many ranks and needs no process group.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hiera_video.system.errors import RunStopped, UserError
from hiera_video.system.signals import stop_requested

T = TypeVar("T")
LEFT = "hiera_video/left"  # key of the store: why a rank has left
# One rank may have hours of work left while the others wait for it.
LONGEST_WORK = timedelta(days=7)


class StopFlag:
    """Raised by the rank that is asked to stop, seen by the others within a second or two."""

    KEY = "hiera_video/stop"
    LOOK_S = 1.0

    def __init__(self, store: Any):
        self._store = store
        self._name = ""
        self._looked = 0.0

    def seen(self, own: str) -> str:
        """own: the signal that this rank was sent; empty if none was."""
        if not self._name and own:
            self._store.set(self.KEY, own)
            self._name = own
        elif not self._name and time.monotonic() - self._looked > self.LOOK_S:
            self._looked = time.monotonic()
            if self._store.check([self.KEY]):
                self._name = self._store.get(self.KEY).decode()
        return self._name


@dataclass(frozen=True)
class World:
    """The ranks of a run, seen from one of them."""

    rank: int
    size: int
    device: torch.device
    # For Python objects; unlike the group of a step's tensors it waits as long as it takes.
    process_group: Any = None
    step_group: Any = None
    stop_flag: StopFlag | None = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def stop_asked(self) -> str:
        """The signal by which some rank was asked to stop; empty if none was.

        Ranks learn it soon, but not at the same moment.
        """
        own = stop_requested()
        return own if self.stop_flag is None else self.stop_flag.seen(own)

    def wrap(self, module: nn.Module, parallel: str, units: Iterable[nn.Module]) -> nn.Module:
        """Returns `module`, on the device, for training: gradients are averaged over the ranks.

        parallel: with `ddp` every rank holds the whole model. With `fsdp` every rank holds its
        share of parameters, gradients and optimizer state; each of `units` is put together while
        it computes, and the module's parameters are new objects.
        """
        if self.size == 1:
            return module.to(self.device)
        if parallel == "ddp":
            module = module.to(self.device)
            # No device_ids: the loop has moved the batch already. Only running statistics change
            # from step to step; a Hiera's buffers are tables that do not.
            moving = has_running_statistics(module)
            return nn.parallel.DistributedDataParallel(
                module,
                process_group=self.step_group,
                broadcast_buffers=moving,
                gradient_as_bucket_view=True,
            )
        # Imported here, because it takes long.
        from torch.distributed.device_mesh import DeviceMesh
        from torch.distributed.fsdp import fully_shard

        # Unit by unit to the device, each rank's share: the whole may be too large for one.
        mesh = DeviceMesh.from_group(self.step_group, self.device.type)
        for unit in units:
            fully_shard(unit, mesh=mesh)
        fully_shard(module, mesh=mesh)
        return module

    @contextmanager
    def gradients_shared(self, module: Any, *, last: bool) -> Iterator[None]:
        """Averages gradients over the ranks in the last backward pass of a step only."""
        if hasattr(module, "set_requires_gradient_sync"):  # FSDP2
            module.set_requires_gradient_sync(last)
            yield
        elif self.size == 1 or last:
            yield
        else:
            with module.no_sync():
                yield

    def gather(self, value: Any) -> list[Any]:
        """The (picklable) value of every rank, in rank order, on rank 0; elsewhere nothing."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.is_main else None
        dist.gather_object(value, values, group=self.process_group)
        return values or []

    def share(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, group=self.process_group)
        return box[0]

    def on_main(self, work: Callable[[], T]) -> T:
        """What `work` returns on rank 0, on all ranks.

        A UserError or RunStopped of rank 0 is raised on all ranks.
        """
        result = None
        error = None
        if self.is_main:
            try:
                result = work()
            except (UserError, RunStopped) as e:
                error = e
        result, error = self.share((result, error))
        if error is not None:
            raise error
        return result

    def gather_all(self, value: Any) -> list[Any]:
        """The value of every rank, in rank order, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.process_group)
        return values

    def mean(self, value: Tensor) -> Tensor:
        """Mean over ranks."""
        if self.size > 1:
            dist.all_reduce(value, group=self.step_group)
            value /= self.size
        return value

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier(group=self.process_group)


def has_running_statistics(module: nn.Module) -> bool:
    return any(isinstance(part, _BatchNorm) for part in module.modules())


def full_tensor(tensor: Tensor) -> Tensor:
    """The tensor itself, or the shards of all ranks put together; then all ranks must call it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # a DTensor has it


def placed_like(tensor: Tensor, other: Any) -> Tensor:
    """A full tensor, the same on all ranks, placed as the tensor `other` is: device and shards."""
    tensor = tensor.to(other.device)
    if not hasattr(other, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor  # imported here, because it takes long

    return distribute_tensor(tensor, other.device_mesh, other.placements)


@contextmanager
def join_world(
    device: str = "auto", *, wait_s: float = 300.0, step_wait_s: float = 1800.0
) -> Iterator[World]:
    """One rank of a `torchrun`, as its environment says, or a world of one; never fewer ranks.

    device: auto, cpu or cuda. wait_s: how long ranks wait for each other to start; step_wait_s: in
    a training step. Raises UserError.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but torch sees no GPU here; set device=cpu or device=auto")
    size = int(os.environ.get("WORLD_SIZE", 1))
    rank = int(os.environ.get("RANK", 0))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    place = torch.device("cuda", local_rank) if device == "cuda" else torch.device("cpu")
    if device == "cuda":
        found = torch.cuda.device_count()
        if local_rank >= found:
            raise UserError(
                f"rank {rank} has LOCAL_RANK={local_rank}, but torch sees {found} GPU(s) here: "
                "start one rank a GPU, or set device=cpu"
            )
        torch.cuda.set_device(place)
    if size == 1:
        yield World(0, 1, place)
        return
    backend = "nccl" if device == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=wait_s))
    except (dist.DistError, RuntimeError, ValueError) as e:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise UserError(
            f"rank {rank} of {size} could not join the others at {where} within {wait_s:g} s: "
            f"{str(e).splitlines()[0]}; "
            "check that all ranks started and reach that address (join_timeout_s)"
        ) from e
    try:
        # Ranks that die are noticed at once all the same, by their closed connections.
        objects = dist.new_group(backend="gloo", timeout=LONGEST_WORK)
        tensors = dist.new_group(backend=backend, timeout=timedelta(seconds=step_wait_s))
        # The store that they met in; torch has no public way to ask for it.
        store = dist.distributed_c10d._get_default_store()
        with _why_a_rank_left(store, rank):
            yield World(rank, size, place, objects, tensors, StopFlag(store))
    finally:
        dist.destroy_process_group()


@contextmanager
def _why_a_rank_left(store: Any, rank: int) -> Iterator[None]:
    """A rank that stops says why to the others, whose next word with it fails.

    Without that they end in a traceback, and the launcher ends the rank itself before it is heard.
    """
    try:
        yield
    except (UserError, RunStopped) as e:
        store.set(LEFT, f"rank {rank}: {e}")
        raise
    except RuntimeError as e:
        reason = ""
        with contextlib.suppress(RuntimeError):  # the store may be gone, too
            reason = store.get(LEFT).decode() if store.check([LEFT]) else ""
        if not reason:
            raise
        raise RunStopped(reason) from e
