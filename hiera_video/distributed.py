"""Ranks: the only file that imports torch.distributed. A world of one takes the same path and needs no process group."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hiera_video.errors import RunStopped, UserError

T = TypeVar("T")
PARALLELS = ("ddp", "fsdp")
LONGEST_WORK = timedelta(days=7)  # of one rank, while others wait for it


@dataclass(frozen=True)
class World:
    rank: int
    size: int
    device: torch.device
    talk: Any = None  # the process group for what is not a tensor of a step; its waits may be long

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def wrap(self, module: nn.Module, parallel: str, units: Iterable[nn.Module]) -> nn.Module:
        """For training on several ranks: gradients are averaged over them.

        ddp: every rank holds the whole model. fsdp: every rank holds its share of the parameters, and so of gradients and
        optimizer state; each of `units` is put together while it computes. The parameters are new objects then.
        """
        if self.size == 1:
            return module
        if parallel == "ddp":
            return nn.parallel.DistributedDataParallel(module)  # no device_ids: batches are moved by the loop, once
        from torch.distributed.device_mesh import init_device_mesh  # here, for the time that they take
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (self.size,))
        for unit in units:
            fully_shard(unit, mesh=mesh)
        return fully_shard(module, mesh=mesh)

    @contextmanager
    def gradients_shared(self, module: nn.Module, *, last: bool) -> Iterator[None]:
        """Gradients are averaged over the ranks with the last of a step's backward passes, not before."""
        if hasattr(module, "set_requires_gradient_sync"):  # FSDP2's
            module.set_requires_gradient_sync(last)
            yield
        elif self.size == 1 or last:
            yield
        else:
            with module.no_sync():
                yield

    def gather(self, value: Any) -> list[Any]:
        """The value of every rank, in rank order, on rank 0; an empty list elsewhere. Values must be picklable."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.is_main else None
        dist.gather_object(value, values, group=self.talk)
        return values or []

    def share(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, group=self.talk)
        return box[0]

    def on_main(self, work: Callable[[], T]) -> T:
        """What `work` returns on rank 0, on all ranks; its UserError or RunStopped is raised on all of them, too."""
        result, error = None, None
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
        dist.all_gather_object(values, value, group=self.talk)
        return values

    def mean(self, value: Tensor) -> Tensor:
        """Mean over ranks."""
        if self.size > 1:
            dist.all_reduce(value)
            value /= self.size
        return value

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier(group=self.talk)


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or what the ranks hold shards of, put together; then all ranks must call it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # a DTensor has it


def placed_like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, the same on all ranks, on the device of `other` and in shards if `other` is."""
    tensor = tensor.to(other.device)
    if not hasattr(other, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor  # here, for the time that it takes

    return distribute_tensor(tensor, other.device_mesh, other.placements)


@contextmanager
def join_world(device: str = "auto", *, wait_s: float = 300.0) -> Iterator[World]:
    """One rank of a `torchrun` (its environment says which), or a world of one; never fewer ranks than that says.

    device: auto, cpu or cuda. wait_s: how long ranks wait for each other to start, and in a training step. Raises UserError.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but torch sees no GPU here; set device=cpu or device=auto")
    size, rank, local_rank = (int(os.environ.get(k, d)) for k, d in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0)))
    place = torch.device("cuda", local_rank) if device == "cuda" else torch.device("cpu")
    if device == "cuda":
        torch.cuda.set_device(place)
    if size == 1:
        yield World(0, 1, place)
        return
    try:
        dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timedelta(seconds=wait_s))
    except (dist.DistError, RuntimeError, ValueError) as e:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise UserError(
            f"rank {rank} of {size} could not join the others at {where} within {wait_s:g} s: {str(e).splitlines()[0]}; "
            "check that all ranks started and reach that address (join_timeout_s)"
        ) from e
    try:
        # A test or features may leave one rank with hours of work more than the others. Ranks that die are noticed at once,
        # by their closed connections.
        yield World(rank, size, place, dist.new_group(backend="gloo", timeout=LONGEST_WORK))
    finally:
        dist.destroy_process_group()
