"""Submits runs to SLURM: the same run as tools/run_net.py, one task a GPU, requeued when its machines are taken away.

    python tools/submit.py --cfg configs/K400/hiera_b_16x4.yaml --nodes 16 --gpus-per-node 8 --partition gpu data.root=/k400

Several configs after --cfg become a job array. The config is read and checked here and travels with the job. Logs, the sbatch
file and, with --snapshot, a copy of the code (what git tracks; the job runs that, whatever is edited meanwhile) lie in
<output>/slurm. --dry-run prints the sbatch text and does nothing. On clusters without `preempt_send_user_signal` a pre-empted
job is killed unwarned and goes on from its newest checkpoint.
"""

import argparse
import dataclasses
import sys
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a plain checkout works without installing it

from hiera_video.errors import UserError, run_command


def parameters(args: argparse.Namespace, name: str) -> dict:
    """For sbatch, by submitit's names; what was not asked for is left to the cluster."""
    tasks = args.tasks_per_node or max(args.gpus_per_node, 1)
    wanted = {
        "job_name": name,
        "partition": args.partition,
        "nodes": args.nodes,
        "ntasks_per_node": tasks,
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", nargs="+", required=True, help="config file (YAML); several make a job array")
    parser.add_argument("--partition", required=True)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpus-per-node", type=int, default=0)
    parser.add_argument("--tasks-per-node", type=int, help="default: one a GPU")
    parser.add_argument("--cpus-per-task", type=int, default=10, help="for decoding: data.num_workers and a few more")
    parser.add_argument("--mem", help="of a node, such as 400GB")
    parser.add_argument("--minutes", type=int, default=24 * 60, help="time limit; the job is requeued when it comes")
    parser.add_argument("--signal-before", type=int, default=120, help="seconds before the limit to save and requeue")
    parser.add_argument(
        "--requeues", type=int, default=100, help="how often a job may go back into the queue by itself"
    )
    parser.add_argument("--account")
    parser.add_argument("--qos")
    parser.add_argument("--constraint")
    parser.add_argument("--snapshot", action="store_true", help="run a copy of the code as it is now (git and rsync)")
    parser.add_argument("--dry-run", action="store_true", help="print the sbatch text only")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override keys of all configs")
    args = parser.parse_intermixed_args()
    for name in ("nodes", "cpus_per_task", "minutes", "signal_before"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)} must be > 0")
    # `--cfg a.yaml key=value` gives both to --cfg.
    overrides = [*(c for c in args.cfg if "=" in c), *args.overrides]
    submit(args, [c for c in args.cfg if "=" not in c], overrides)


def submit(args: argparse.Namespace, files: list[str], overrides: list[str]) -> None:
    try:
        import submitit
        from submitit.slurm.slurm import _make_sbatch_string
    except ImportError as e:
        raise UserError("submitit is not installed; pip install submitit") from e
    from hiera_video.config import load_config
    from hiera_video.slurm import Job

    configs = [load_config(file, overrides) for file in files]
    configs = [dataclasses.replace(c, output=str(Path(c.output).resolve())) for c in configs]
    outputs = [c.output for c in configs]
    if len(set(outputs)) < len(outputs):
        raise UserError(
            f"two of the configs have the same output, {outputs[0]}; leave `output` out to name it after each"
        )
    folder = Path(outputs[0]) / "slurm"
    wanted = parameters(args, Path(files[0]).stem)
    if args.dry_run:
        if len(configs) > 1:
            wanted["map_count"] = len(configs)
        command = f"{sys.executable} -u -m submitit.core._submit {folder}"
        print(_make_sbatch_string(command=command, folder=folder, **wanted))
        return
    try:
        executor = submitit.SlurmExecutor(folder=folder)
    except RuntimeError as e:
        raise UserError(f"{e} --dry-run works without SLURM") from e
    executor.update_parameters(**wanted)
    try:
        snapshot = submitit.helpers.RsyncSnapshot(folder / "code") if args.snapshot else nullcontext()
    except RuntimeError as e:
        raise UserError(f"--snapshot: {e}") from e
    with snapshot:
        try:
            with executor.batch():
                jobs = [executor.submit(Job(config, args.requeues)) for config in configs]
        except submitit.core.utils.FailedJobError as e:
            raise UserError(f"sbatch refused the job: {str(e).strip().splitlines()[-1]}") from e
    for job, config in zip(jobs, configs):
        print(f"job {job.job_id}: {config.output}; logs {folder}/{job.job_id}_*_log.{{out,err}}")


if __name__ == "__main__":
    run_command(main)
