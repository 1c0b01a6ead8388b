"""The run as a job of a real SLURM, brought up on this machine by the test: submit, pre-empt, time
limit, a killed rank.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from conftest import FINETUNE, ROOT, SHORT
from forked import run_ranks
from safetensors.torch import load_file

SLURM = ROOT / "tests/slurm"
SUBMIT = ["tools/submit.py", "--cfg", FINETUNE, "--partition", "low", "--cpus-per-task", "1"]
SUBMIT += ["--nodes", "2", "--tasks-per-node", "2"]


@pytest.fixture(scope="module")
def cluster():
    """Environment of a SLURM of two nodes. Its folder must have a short name, for its sockets."""
    missing = [
        p
        for p in ("slurmctld", "slurmd", "sbatch", "munged")
        if not shutil.which(p, path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    ]
    if missing:
        pytest.skip(
            f"no SLURM here ({missing[0]} is missing): apt-get install slurmd slurmctld "
            "slurm-client munge"
        )
    folder = tempfile.mkdtemp(dir="/tmp", prefix="hs")
    up = subprocess.run(
        ["bash", SLURM / "up.sh", folder], capture_output=True, text=True, timeout=60
    )
    if up.returncode:
        pytest.fail(f"SLURM does not start: {up.stderr[-500:]}")
    env = {
        **os.environ,
        "SLURM_CONF": f"{folder}/etc/slurm.conf",
        "PATH": f"{SLURM}/shim:{os.environ['PATH']}",
    }
    yield {**env, "OMP_NUM_THREADS": "1"}
    subprocess.run(["bash", SLURM / "down.sh", folder], capture_output=True, timeout=60)


def sh(env, *command, check=True):
    done = subprocess.run(
        [str(c) for c in command], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 or not check, done.stderr
    return done.stdout


def submit(env, *arguments):
    out = sh(env, sys.executable, *SUBMIT, *arguments)
    return out.split("job ")[1].split(":")[0]


def job_state(env, job):
    return dict(
        f.split("=", 1) for f in sh(env, "scontrol", "show", "job", job).split() if "=" in f
    )


def wait(env, job, folder, condition, seconds=150):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        state = job_state(env, job)
        if condition(state):
            return state
        if ended(state):
            break
        time.sleep(0.2)
    logs = "\n".join(
        f"== {f.name}\n{f.read_text()[-1500:]}" for f in sorted((folder / "slurm").glob("*_log.*"))
    )
    raise AssertionError(f"job {job} is {job_state(env, job)['JobState']}\n{logs}")


def complete(env, job, folder, seconds=150):
    """Its state after it ended well."""
    return wait(env, job, folder, lambda s: s["JobState"] == "COMPLETED", seconds)


def steps(folder):
    file = folder / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def ended(state):
    return state["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


@pytest.fixture
def job(shapes, tmp_path):
    """Overrides of a run of 20 steps."""

    def overrides(name, *more):
        common = [
            f"data.root={shapes}",
            f"output={tmp_path / name}",
            "init.weights=null",
            *SHORT,
            "stages=[train]",
        ]
        return [*common, "train.epochs=10", "train.log_every=1", "train.save_every=100", *more]

    return overrides


def test_preempted_and_requeued(cluster, job, tmp_path):
    """Submit, pre-empt by a job of a higher partition, requeue, finish: the same weights as those
    of two ranks without SLURM and without an interruption.
    """
    folder = tmp_path / "run"
    number = submit(cluster, *job("run"), "--tasks-per-node", "1")
    wait(cluster, number, folder, lambda s: steps(folder) >= 3)
    sh(
        cluster,
        "sbatch",
        "-p",
        "high",
        "-N2",
        "--exclusive",
        "-o",
        "/dev/null",
        "--wrap",
        "sleep 3",
    )
    run_ranks(2, "tools/run_net.py", "--cfg", FINETUNE, *job("whole"), timeout=120)
    assert int(complete(cluster, number, folder)["Restarts"]) >= 1
    log = (folder / "log.txt").read_text()
    assert "asks to stop" in log and "continuing after step" in log
    weights = load_file(folder / "checkpoints/latest/model.safetensors")
    for name, tensor in load_file(tmp_path / "whole/checkpoints/latest/model.safetensors").items():
        assert torch.equal(weights[name], tensor), name


def test_a_killed_rank_ends_the_job_with_its_name(cluster, job, tmp_path):
    folder = tmp_path / "run"
    number = submit(cluster, *job("run", "train.epochs=2000"))
    wait(cluster, number, folder, lambda s: steps(folder) >= 2)
    victim = next(
        p
        for p in map(int, sh(cluster, "pgrep", "-f", "submitit.core._submit").split())
        if rank_of(p) == "3"
    )
    began = time.monotonic()
    os.kill(victim, 9)
    state = wait(cluster, number, folder, ended, seconds=60)
    assert state["JobState"] == "FAILED" and time.monotonic() - began < 60
    said = "".join(f.read_text() for f in (folder / "slurm").glob("*_log.err"))
    assert "task 3: Killed" in said


def rank_of(pid):
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    return next((v.split("=")[1] for v in variables if v.startswith("SLURM_PROCID=")), None)


@pytest.mark.trial
def test_time_limit(cluster, job, tmp_path):
    """A job of a minute that needs more goes back into the queue until it is done."""
    more = ["train.epochs=120"]
    results = {}
    for name, limit in (("whole", "30"), ("run", "1")):
        number = submit(cluster, *job(name, *more), "--minutes", limit, "--signal-before", "40")
        state = complete(cluster, number, tmp_path / name, seconds=600)
        results[name] = load_file(tmp_path / name / "checkpoints/latest/model.safetensors")
        print(f"{name}: {state['Restarts']} restarts")
    assert int(state["Restarts"]) >= 1
    for name, tensor in results["whole"].items():
        assert torch.equal(results["run"][name], tensor), name


@pytest.mark.trial
def test_a_snapshot_and_an_array_of_features(cluster, job, shapes, tmp_path, tool):
    """A run from a copy of the code, then its features by three tasks of a job array: what one
    process makes.
    """
    number = submit(cluster, *job("run", "train.epochs=2", "train.save_every=2"), "--snapshot")
    complete(cluster, number, tmp_path / "run")
    copy = json.loads((tmp_path / "run/run.json").read_text())["code"]
    assert (
        copy == str(tmp_path / "run/slurm/code")
        and (Path(copy) / "hiera_video/models/hiera.py").is_file()
    )
    extract = [
        "tools/extract_features.py",
        "--cfg",
        FINETUNE,
        "--weights",
        tmp_path / "run",
        *SHORT,
    ]
    extract += [f"data.root={shapes}", "--videos", shapes / "val.csv", "--output"]
    tool(*extract, tmp_path / "one")
    command = shlex.join(
        map(str, [sys.executable, *extract, tmp_path / "array", "--shard", "slurm"])
    )
    log = tmp_path / "array_%a.txt"
    sh(
        cluster,
        "sbatch",
        "--wait",
        "-p",
        "low",
        "--array=0-2",
        "-o",
        log,
        "--wrap",
        f"cd {ROOT} && {command}",
    )
    for file in sorted((tmp_path / "one").glob("*.*")):
        if file.suffix in (".safetensors", ".csv"):
            assert (tmp_path / "array" / file.name).read_bytes() == file.read_bytes(), file.name


def test_dry_run_needs_no_slurm(tmp_path, tool):
    more = [
        "--account",
        "me",
        "--qos",
        "q",
        "--constraint",
        "h100",
        "--gpus-per-node",
        "8",
        "--dry-run",
    ]
    arguments = [
        "--cfg",
        FINETUNE,
        "tests/configs/pretrain.yaml",
        "--partition",
        "p",
        "--nodes",
        "4",
        *more,
    ]
    out = tool("tools/submit.py", *arguments).stdout
    for line in (
        "--nodes=4",
        "--ntasks-per-node=8",
        "--gpus-per-node=8",
        "--account=me",
        "--qos=q",
        "--constraint=h100",
    ):
        assert f"#SBATCH {line}" in out, line
    for line in ("--array=0-1%2", "--requeue", "--signal=USR2@120", "--time=1440"):
        assert f"#SBATCH {line}" in out, line
    assert "--kill-on-bad-exit=1" in out
    wrong = tool(
        "tools/submit.py",
        "--cfg",
        FINETUNE,
        "--partition",
        "p",
        "--dry-run",
        "train.epoch=3",
        check=2,
    )
    assert "train.epochs" in wrong.stderr
