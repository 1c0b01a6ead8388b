"""A run as a SLURM job: what submitit starts in every task.

When the scheduler is about to take the machines (pre-emption, time limit), it signals every
process. A run notes the signal, all ranks agree on it, what is done is saved, and rank 0 puts the
job back into the queue. Started again, the same run goes on at its
newest checkpoint. A job that is requeued without a warning does so, too.
"""

import os
import subprocess
import time
from dataclasses import dataclass

import submitit
import torch

from hiera_video.config import Config
from hiera_video.stages.run import run
from hiera_video.system.errors import Interrupted

REQUEUE_S = 120  # how long a task waits for the scheduler to end it after the job was requeued


@dataclass
class Job:
    """What submitit calls in each task.

    requeues: how often the job may put itself back into the queue.
    """

    config: Config
    requeues: int

    def __call__(self) -> None:
        # Each task picks its GPU by its local rank; the tasks of a node share what SLURM gave the
        # job.
        place = submitit.helpers.TorchDistributedEnvironment().export(
            set_cuda_visible_devices=False, overwrite=True
        )
        torch.set_num_threads(int(os.environ.get("SLURM_CPUS_PER_TASK", 1)))
        try:
            run(self.config)
        except Interrupted as e:
            if place.rank == 0:
                self._requeue(e)
            time.sleep(REQUEUE_S)
            raise

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """The same job again: submitit's own way, for a signal before a stage began."""
        return submitit.helpers.DelayedSubmission(self)

    def _requeue(self, why: Interrupted) -> None:
        restarts = int(os.environ.get("SLURM_RESTART_COUNT", 0))
        if restarts >= self.requeues:
            raise Interrupted(
                f"{why}; not requeued: that was done {restarts} times, --requeues allows no more"
            ) from why
        print(f"{why}; requeued, for the {restarts + 1}. time", flush=True)
        subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True)
