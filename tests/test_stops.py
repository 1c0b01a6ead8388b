"""How a run ends early: real signals and kills, real full disks, ranks that never come."""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
import torch
from conftest import FINETUNE, PRETRAIN, ROOT, SHORT, start
from forked import Script, run_forked
from run_folders import launch, outcome, rows, state, wait_for_step
from safetensors.torch import load_file

from hiera_video.system.errors import RunStopped, UserError
from hiera_video.training import loop
from hiera_video.training.checkpoint import newest_whole
from hiera_video.training.optim import clip_gradients


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, finetune):
    """A file system of a few megabytes, and a file that fills it half-way."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", disk], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("cannot mount a small file system here")
    try:
        overrides = [o for o in finetune() if not o.startswith("output")]
        run = launch(
            *overrides,
            f"output={disk / 'run'}",
            "train.epochs=200",
            "train.save_every=0.5",
            "train.log_every=1",
        )
        wait_for_step(disk / "run", 2, run)
        with open(disk / "filler", "wb", buffering=0) as f:  # else closing it writes once more
            try:
                while True:
                    f.write(bytes(1 << 16))
                    f.flush()
            except OSError:
                pass
        done = run.wait(120)
        assert done.returncode == 3, done.stderr
        assert "cannot write the checkpoint of step" in done.stderr
        assert "is the newest whole one" in done.stderr
        assert newest_whole(disk / "run/checkpoints", print) is not None
        assert not list((disk / "run/checkpoints").glob(".writing*"))
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_one_run_a_folder(tmp_path, finetune):
    more = ["train.epochs=300", "train.log_every=1", "data.num_workers=2"]
    first = launch(*finetune("run", *more))
    wait_for_step(tmp_path / "run", 1, first)
    second = launch(*finetune("run", *more))
    refused = second.wait(60)
    assert refused.returncode == 2 and "a run is at work" in refused.stderr
    assert f"process {first.pid} on" in refused.stderr
    first.send(signal.SIGKILL)  # the lock is gone with it, whatever its workers do
    first.wait(60)
    third = launch(*finetune("run", *more))
    wait_for_step(tmp_path / "run", rows(tmp_path / "run")[-1]["step"] + 1, third)
    third.kill()


@pytest.mark.parametrize(
    "name, workers, to_all",
    [pytest.param("SIGUSR2", 2, True, marks=pytest.mark.trial), ("SIGTERM", 1, False)],
)
def test_a_request_to_stop_saves_first(tmp_path, finetune, name, workers, to_all):
    """Sent to every process of the run, as schedulers do, or to the first alone. It ends soon, and
    goes on as if nothing had happened.
    """
    more = [
        "train.epochs=8",
        "train.save_every=100",
        "train.log_every=1",
        f"data.num_workers={workers}",
        "stages=[train]",
    ]
    start(*finetune("whole", *more))
    process = launch(*finetune("run", *more))
    wait_for_step(tmp_path / "run", 3, process)
    (os.killpg if to_all else os.kill)(process.pid, getattr(signal, name))
    done = process.wait(60)
    assert done.returncode == 3 and f"{name} asks to stop" in done.stderr
    assert "same command goes on" in done.stderr
    saved = int((tmp_path / "run/checkpoints/latest").resolve().name[5:])
    assert 3 <= saved < 16
    launch(*finetune("run", *more)).check(280)
    assert [r["step"] for r in rows(tmp_path / "run")] == list(range(1, 17))
    assert state(tmp_path / "run") == state(tmp_path / "whole")


def test_a_request_to_stop_is_heard_in_validation_and_testing(tmp_path, shapes, finetune):
    """However rare the lines of the log; what was cut off is done by the next start."""
    lines = (shapes / "val.csv").read_text().splitlines()
    (tmp_path / "many.csv").write_text("".join(f"{line}\n" for line in lines * 12))
    more = [
        "train.epochs=1",
        "train.save_every=0.5",
        "train.val_every=0.5",
        "train.log_every=1000",
        "test.save_every_s=0",
        f"data.val={tmp_path / 'many.csv'}",
    ]
    start(*finetune("whole", *more))
    whole = tmp_path / "whole"
    run = tmp_path / "run"

    def stopped_when(found):
        process = launch(*finetune("run", *more))
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.at_work and not found():
            time.sleep(0.005)
        process.send(signal.SIGTERM)
        done = process.wait(60)
        assert done.returncode == 3 and "SIGTERM asks to stop" in done.stderr, done.stderr
        return done.stderr

    first = rows(whole, "val")[0]["step"]
    err = stopped_when(lambda: (run / "metrics.jsonl").exists() and rows(run))
    assert f"the state of step {first} of" in err and not rows(run, "val")
    err = stopped_when(lambda: list(run.glob("test/parts/*.safetensors")))
    assert "test ends at" in err and not (run / "test/metrics.json").exists()
    assert rows(run, "val") == rows(whole, "val")
    start(*finetune("run", *more))
    assert state(run) == state(whole) and outcome(run) == outcome(whole)
    assert "videos are scored already" in (run / "log.txt").read_text()


def test_a_gradient_that_is_not_finite_stops_the_run_and_spares_the_weights(
    tmp_path, finetune, shapes
):
    """The rate explodes the loss; the run names the steps and the videos, keeps its state and
    deletes nothing.
    """
    more = [
        "train.epochs=50",
        "train.log_every=4",
        "optim.lr=1e30",
        "optim.warmup_epochs=0",
        "optim.clip_grad=0",
    ]
    with pytest.raises(
        RunStopped, match=r"gradients not finite in step \d+.*none of it reached the weights.*\.mp4"
    ) as e:
        start(*finetune("run", *more, "stages=[train]"))
    kept = next((tmp_path / "run/stopped").iterdir())
    assert str(kept) in str(e.value)
    weights = load_file(kept / "model.safetensors")
    assert all(torch.isfinite(t).all() for t in weights.values())
    names = (kept / "videos.txt").read_text().split()
    assert names and all((shapes / n).exists() for n in names)


@pytest.mark.parametrize("poisoned, stops", [({3, 5, 6}, False), ({4, 5, 6}, True)])
def test_some_gradients_that_are_not_finite_are_left_out(
    tmp_path, finetune, monkeypatch, poisoned, stops
):
    """Up to two in a row, also across lines of the log; the third stops the run."""
    taken = 0

    def clip(parameters, limit):
        nonlocal taken
        taken += 1
        parameters = list(parameters)
        if taken in poisoned:
            parameters[0].grad.fill_(float("nan"))
        return clip_gradients(parameters, limit)

    monkeypatch.setattr(loop, "clip_gradients", clip)
    run = [
        *finetune("run", "stages=[train]", "train.epochs=4", "train.save_every=4"),
        "train.log_every=5",
        "train.val_every=0",
    ]
    if stops:
        with pytest.raises(RunStopped, match=r"in step 6, 3 in a row; .*\.mp4"):
            start(*run)
        return
    start(*run)
    text = (tmp_path / "run/log.txt").read_text()
    assert "WARNING: gradients not finite in step 3, 5: skipped" in text and ".mp4" in text
    assert "gradients not finite in step 6: skipped" in text
    found = rows(tmp_path / "run")
    assert [row["step"] for row in found] == [5, 8]
    assert all(math.isfinite(row["loss"]) for row in found)
    assert found[0]["grad_norm"] is None, "of step 5"
    weights = load_file(tmp_path / "run/checkpoints/latest/model.safetensors")
    assert all(torch.isfinite(t).all() for t in weights.values())


def test_ranks_stop_together(tmp_path, finetune):
    """A wrong config, seen by rank 0 alone, ends all of them with the message once."""
    start(*finetune("run", "stages=[train]"))
    launch2 = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        "--master_port=29577",
    ]
    command = [
        *launch2,
        "tools/run_net.py",
        "--cfg",
        FINETUNE,
        *finetune("run", "optim.lr=7", "stages=[train]"),
    ]
    began = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (
        done.returncode
        and "these keys differ: optim.lr" in done.stderr
        and time.monotonic() - began < 60
    )


def killed(command, folder, moment, rng):
    """Starts the run and kills its whole group at the moment. Returns False if it ended before."""
    process = Script(*command)
    deadline = time.monotonic() + 120
    checkpoints = folder / "checkpoints"
    delay = rng.uniform(0.5, 4)
    began = time.monotonic()
    while process.at_work and time.monotonic() < deadline:
        writing = any(p.is_dir() and not p.is_symlink() for p in checkpoints.glob(".writing_step*"))
        log = (folder / "log.txt").read_text() if (folder / "log.txt").exists() else ""
        testing = "weights from" in log[log.rfind("run folder") :].replace("train:", "")
        if {"writing": writing, "testing": testing, "anywhere": time.monotonic() - began > delay}[
            moment
        ]:
            break
        time.sleep(0.0005)
    if not process.at_work:
        process.check(1)
        return False
    process.kill()
    return True


def kill_often(command, folder, moments, seed):
    """Kills the run at each of the moments, then lets it end. Returns how often it was killed at
    which.
    """
    rng = random.Random(seed)
    count = Counter()
    for moment in moments:
        if not killed(command, folder, moment, rng):
            break
        count[moment] += 1
    run_forked(*command)
    return count


@pytest.mark.trial
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("task", ["finetune", "pretrain"])
def test_killed_over_and_over(shapes, tmp_path, task, workers):
    """Kill -9 inside checkpoint writes, in evaluation, anywhere: byte for byte what an
    uninterrupted run ends with.
    """
    cfg = FINETUNE if task == "finetune" else PRETRAIN
    common = [
        f"data.root={shapes}",
        f"data.num_workers={workers}",
        "train.ema=0.9",
        "train.epochs=40",
        "train.log_every=1",
    ]
    common += [
        "train.save_every=2",
        "train.batch_size=8",
        "model.drop_path_rate=0.2",
        "init.weights=null",
    ]
    moments = ["writing", "anywhere"] * 3 + (["testing"] * 3 if task == "finetune" else [])
    folder = tmp_path / "killed"
    whole = tmp_path / "whole"
    command = ["tools/run_net.py", "--cfg", cfg, *common]
    count = kill_often([*command, f"output={folder}"], folder, moments, seed=workers)
    run_forked(*command, f"output={whole}")
    assert outcome(folder) == outcome(whole)
    assert [r["step"] for r in rows(folder)] == [r["step"] for r in rows(whole)], (
        "each step stands once"
    )
    assert not list((folder / "checkpoints").glob(".writing*"))
    print(f"{task}, {workers} workers: killed {dict(count)}")


def test_ranks_that_never_come_are_an_error_and_not_a_run_of_one(tmp_path, finetune):
    alone = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29583"}
    command = ["tools/run_net.py", "--cfg", FINETUNE, *finetune("run"), "join_timeout_s=5"]
    done = Script(*command, **alone).wait(120)
    assert done.returncode == 2
    assert "rank 0 of 2 could not join the others at 127.0.0.1:29583" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "run").exists()


def test_training_ends_where_nothing_becomes_better(shapes, tmp_path):
    """Two looks after the best one; the same command finds it done; the weights can be tested."""
    keys = [f"data.root={shapes}", f"output={tmp_path / 'run'}", "init.weights=null", *SHORT]
    keys += ["train.epochs=8", "train.val_every=1", "train.patience=2", "optim.lr=0"]
    start(*keys)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    looks = [row["step"] for row in rows if row["split"] == "val"]
    assert looks == [2, 4, 6], "the first is the best, and 16 steps were planned"
    log = (tmp_path / "run/log.txt").read_text()
    assert "2 looks at data.val brought nothing better" in log
    assert (tmp_path / "run/checkpoints/best").resolve().name == "step_000000002"
    assert (tmp_path / "run/checkpoints/latest").resolve().name == "step_000000006"
    assert json.loads((tmp_path / "run/test/metrics.json").read_text())["videos"] == 9
    start(*keys)
    assert "it ended at step 6" in (tmp_path / "run/log.txt").read_text()
    # A kill between the last look and its checkpoint.
    shutil.rmtree(tmp_path / "run/checkpoints/step_000000006")
    start(*keys)
    again = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in again if row["split"] == "val"] == looks
    for wrong in (["train.val_every=0"], ["task=pretrain", "stages=[train]"]):
        with pytest.raises(UserError, match=r"train\.patience"):
            start(*keys, *wrong)
