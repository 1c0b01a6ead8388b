"""What a training run leaves on the disk: checkpoints, the best one, the state it stopped in."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor

from hiera_video.config import TrainConfig
from hiera_video.data.lists import VideoList
from hiera_video.system.distributed import World, full_tensor
from hiera_video.system.errors import RunStopped
from hiera_video.training.checkpoint import (
    Snapshot,
    TrainState,
    save_checkpoint,
    write_state,
)
from hiera_video.training.plan import Plan

NAMED = 8  # videos named in a message


class Keeper:
    """Writes the state of one run. All ranks call its methods together."""

    def __init__(
        self,
        output: Path,
        state: TrainState,
        *,
        metadata: dict[str, Any],
        config: TrainConfig,
        plan: Plan,
        world: World,
        best: float,
        say: Callable[[str], None],
    ):
        self._output = output
        self._state = state
        self._metadata = metadata
        self._config = config
        self._plan = plan
        self._world = world
        self._best = best  # top-1 in validation so far
        self._best_step = 0
        self._say = say

    def weights(self) -> dict[str, Tensor]:
        """What a checkpoint would hold now, put together, on the host of every rank."""

        def on_host(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
            return {name: full_tensor(tensor.detach()).cpu() for name, tensor in tensors}

        return self._state.weights_to_keep(on_host)

    def note_validation(self, step: int, top1: float) -> bool:
        """top1: rank 0's counts. Returns whether it is the best so far."""
        is_best = self._world.share(top1 > self._best)
        if is_best:
            self._best = top1
            self._best_step = step
        return is_best

    def save(self, step: int) -> None:
        """Raises RunStopped where the disk does not take it."""
        snapshot = self._snapshot(step)

        def write() -> None:
            folder = self._output / "checkpoints"
            save_checkpoint(
                folder,
                snapshot,
                keep=self._config.keep,
                keep_steps=self._plan.keep_steps,
                best=self._best_step == step,
                say=self._say,
            )

        self._world.on_main(write)

    def stop(self, step: int, reason: str, rows: list[int], videos: VideoList) -> NoReturn:
        """Keeps the state apart from the checkpoints, with the names of the rows' videos."""
        folder = self._output / "stopped" / f"step_{step:09d}"
        names = self.names_of(rows, videos)
        snapshot = self._snapshot(step)

        def write() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            write_state(folder, snapshot)
            text = "".join(f"{name}\n" for name in names)
            (folder / "videos.txt").write_text(text, errors="surrogateescape")

        self._world.on_main(write)
        raise RunStopped(
            f"{reason}; none of it reached the weights; videos: {some_of(names)}; "
            f"the state is in {folder}"
        )

    def names_of(self, rows: list[int], videos: VideoList) -> list[str]:
        """Of the rows of all ranks."""
        of_ranks = self._world.gather_all(rows)
        return [videos.written(row) for rows_of_rank in of_ranks for row in rows_of_rank]

    def _snapshot(self, step: int) -> Snapshot:
        return Snapshot.take(step, self._state, metadata=self._metadata, world=self._world)


def some_of(names: list[str]) -> str:
    """For a message."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
