"""Submits runs to SLURM: one task a GPU, requeued when the machines are taken away.

    hiera-video submit --cfg configs/K400/hiera_b_16x4.yaml --nodes 16 --gpus-per-node 8 \\
        --partition gpu data.root=/k400

Several configs after --cfg become a job array. The config is read and checked here and travels with
the job. Logs, the sbatch file and, with --snapshot, a copy of the code (what git tracks; the job
runs that, whatever is edited meanwhile) lie in <output>/slurm. --dry-run prints the sbatch text and
does nothing. On clusters without `preempt_send_user_signal` a pre-empted job is killed unwarned and
goes on from its newest checkpoint.
"""

import argparse
import dataclasses
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import submitit
from submitit.slurm.slurm import _make_sbatch_string

from hiera_video.commands.arguments import add_overrides, make_parser
from hiera_video.config import Config, load_config
from hiera_video.stages.slurm import Job
from hiera_video.system.errors import UserError


def parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--cfg", nargs="+", required=True, help="config file (YAML); several make a job array")
    add("--partition", required=True)
    add("--nodes", type=int, default=1)
    add("--gpus-per-node", type=int, default=0)
    add("--tasks-per-node", type=int, help="default: one a GPU")
    add(
        "--cpus-per-task",
        type=int,
        default=10,
        help="for decoding: data.num_workers and a few more",
    )
    add("--mem", help="of a node, such as 400GB")
    add(
        "--minutes",
        type=int,
        default=24 * 60,
        help="time limit; the job is requeued when it comes",
    )
    add(
        "--signal-before",
        type=int,
        default=120,
        help="seconds before the limit to save and requeue",
    )
    add("--requeues", type=int, default=100, help="how often a job may requeue itself")
    add("--account")
    add("--qos")
    add("--constraint")
    add("--snapshot", action="store_true", help="run a copy of the code as it is now (git, rsync)")
    add("--dry-run", action="store_true", help="print the sbatch text only")
    add_overrides(parser, "override keys of all configs")
    return parser


def main(args: argparse.Namespace) -> None:
    for name in ("nodes", "cpus_per_task", "minutes", "signal_before"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)} must be > 0")
    # `--cfg a.yaml key=value` gives both to --cfg.
    files = [given for given in args.cfg if "=" not in given]
    overrides = [given for given in args.cfg if "=" in given] + args.overrides
    configs = read_configs(files, overrides)
    folder = Path(configs[0].output) / "slurm"
    wanted = parameters(args, Path(files[0]).stem)
    if args.dry_run:
        if len(configs) > 1:
            wanted["map_count"] = len(configs)
        command = f"{sys.executable} -u -m submitit.core._submit {folder}"
        print(_make_sbatch_string(command=command, folder=folder, **wanted))
    else:
        submit(configs, folder, wanted, args)


def read_configs(files: list[str], overrides: list[str]) -> list[Config]:
    """With absolute outputs, each its own. Raises UserError."""
    configs = []
    for file in files:
        config = load_config(file, overrides)
        configs.append(dataclasses.replace(config, output=str(Path(config.output).resolve())))
    outputs = {config.output for config in configs}
    if len(outputs) < len(configs):
        raise UserError(
            f"two of the configs have the same output, {configs[0].output}; "
            "leave `output` out to name it after each"
        )
    return configs


def parameters(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """For sbatch, by submitit's names; what was not asked for is left to the cluster."""
    wanted = {
        "job_name": name,
        "partition": args.partition,
        "nodes": args.nodes,
        "ntasks_per_node": args.tasks_per_node or max(args.gpus_per_node, 1),
        "gpus_per_node": args.gpus_per_node or None,
        "cpus_per_task": args.cpus_per_task,
        "mem": args.mem,
        "time": args.minutes,
        "account": args.account,
        "qos": args.qos,
        "constraint": args.constraint,
        "signal_delay_s": args.signal_before,
        # A task that dies ends the job: the others would wait for it.
        "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={args.cpus_per_task}"],
        "additional_parameters": {"requeue": True},
    }
    return {key: value for key, value in wanted.items() if value is not None}


def submit(
    configs: list[Config], folder: Path, wanted: dict[str, Any], args: argparse.Namespace
) -> None:
    """Raises UserError where there is no SLURM, or sbatch refuses."""
    try:
        executor = submitit.SlurmExecutor(folder=folder)
    except RuntimeError as e:
        raise UserError(f"{e} --dry-run works without SLURM") from e
    executor.update_parameters(**wanted)
    try:
        snapshot: Any = nullcontext()
        if args.snapshot:
            snapshot = submitit.helpers.RsyncSnapshot(folder / "code")
    except RuntimeError as e:
        raise UserError(f"--snapshot: {e}") from e
    with snapshot:
        try:
            with executor.batch():
                jobs = [executor.submit(Job(config, args.requeues)) for config in configs]
        except submitit.core.utils.FailedJobError as e:
            reason = str(e).strip().splitlines()[-1]
            raise UserError(f"sbatch refused the job: {reason}") from e
    for job, config in zip(jobs, configs):
        logs = f"{folder}/{job.job_id}_*_log.{{out,err}}"
        print(f"job {job.job_id}: {config.output}; logs {logs}")
