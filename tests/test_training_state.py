"""What a training keeps: weights and their average, checkpoints, whole or damaged."""

import os
import shutil
import stat
import subprocess

import pytest
import torch
from conftest import PRETRAIN, start
from run_folders import rows, state
from safetensors.torch import load_file

from hiera_video.system.errors import UserError
from hiera_video.system.tensors import save_file
from hiera_video.training.checkpoint import Snapshot, save_checkpoint
from hiera_video.training.optim import Ema, share_of_first


def test_average_of_the_weights(tmp_path, finetune):
    """It follows its formula, is what is saved, tested and resumed, and leaves the training as it
    is.
    """
    more = ["train.epochs=4", "train.log_every=1", "train.save_every=0.25", "train.keep=99"]
    start(*finetune("plain", "stages=[train]", *more))
    start(*finetune("ema", *more, "train.ema=0.7", "train.val_every=2"))
    plain, ema = (tmp_path / n / "checkpoints" for n in ("plain", "ema"))
    weights = [load_file(f / "model.safetensors") for f in sorted(plain.glob("step_*"))]
    averaged = [load_file(f / "model.safetensors") for f in sorted(ema.glob("step_*"))]
    for k in range(1, len(weights)):
        decay = min(0.7, (k + 2) / (k + 11))  # of step k + 1
        for name, now in weights[k].items():
            expected = decay * averaged[k - 1][name] + (1 - decay) * now
            torch.testing.assert_close(averaged[k][name], expected)
    own = torch.load(ema / "latest/train_state.pt", weights_only=True)
    assert all(torch.equal(own[f"weights.{name}"], t) for name, t in weights[-1].items()), (
        "training is the same"
    )
    assert [r["loss"] for r in rows(tmp_path / "plain")] == [
        r["loss"] for r in rows(tmp_path / "ema")
    ]
    # Taken up in the middle, it ends the same.
    half = tmp_path / "half"
    shutil.copytree(tmp_path / "ema", half, symlinks=True)
    for late in sorted((half / "checkpoints").glob("step_*"))[3:]:
        shutil.rmtree(late)
    shutil.rmtree(half / "test")
    start(*finetune("half", *more, "train.ema=0.7", "train.val_every=2"))
    assert state(half) == state(tmp_path / "ema")
    assert (half / "test/predictions.csv").read_bytes() == (
        tmp_path / "ema/test/predictions.csv"
    ).read_bytes()


def test_an_average_forgets_where_it_began():
    """In a run of 300 steps, too, whose decay is made for tens of thousands."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 1.0)
    average = Ema(model, 0.9995)
    torch.nn.init.zeros_(model.weight)
    for step in range(1, 301):
        average.update(model, step)
    assert average.average["weight"].item() == pytest.approx(share_of_first(0.9995, 300), abs=1e-7)
    assert share_of_first(0.9995, 300) < 1e-9
    assert 0 < share_of_first(0.7, 3) < 0.7**3, "the decay begins low"


def test_accumulated_gradients_are_the_same_training(tmp_path, finetune, shapes):
    for name, more in (("one", []), ("four", ["train.accumulate=4"])):
        start(
            *finetune(
                name,
                "stages=[train]",
                "train.epochs=3",
                "train.log_every=1",
                "optim.lr=2e-4",
                *more,
            )
        )
    one, four = ([r["loss"] for r in rows(tmp_path / n)] for n in ("one", "four"))
    assert four == pytest.approx(one, abs=1e-4) and len(one) == 6
    common = [
        f"data.root={shapes}",
        "train.epochs=4",
        "train.batch_size=8",
        "train.log_every=1",
        "train.val_every=0",
        "data.num_workers=0",
    ]
    for name, more in (("mae_one", []), ("mae_four", ["train.accumulate=3"])):
        start(
            *common,
            f"output={tmp_path / name}",
            *more,
            "model.embed_dim=16",
            "model.stages=[1,1,1,1]",
            cfg=PRETRAIN,
        )
    one, four = ([r["loss"] for r in rows(tmp_path / n)] for n in ("mae_one", "mae_four"))
    assert four == pytest.approx(one, abs=1e-4) and len(one) >= 4


def test_damaged_checkpoints_are_passed_over_loudly(tmp_path, finetune):
    more = ["stages=[train]", "train.epochs=4", "train.save_every=1", "train.keep=3"]
    start(*finetune("run", *more))
    run = tmp_path / "run"
    whole = state(tmp_path / "run")
    steps = sorted((run / "checkpoints").glob("step_*"))
    file = steps[-1] / "train_state.pt"
    file.write_bytes(file.read_bytes()[:-100])  # torn
    content = bytearray((steps[-2] / "model.safetensors").read_bytes())
    content[-10] ^= 1  # one flipped bit
    (steps[-2] / "model.safetensors").write_bytes(content)
    start(*finetune("run", *more))
    log = (run / "log.txt").read_text()
    assert (
        log.count("CHECKPOINT DAMAGED") == 2
        and f"continuing after step {int(steps[-3].name[5:])}" in log
    )
    assert state(run) == whole, "it went back and ended the same"
    for step in (run / "checkpoints").glob("step_*"):
        (step / "checksums.json").unlink()
    with pytest.raises(UserError, match=r"every checkpoint in .* is damaged"):
        start(*finetune("run", *more))


def test_checkpoints_that_stay_and_the_best(tmp_path, finetune):
    more = [
        "train.epochs=6",
        "train.save_every=1",
        "train.keep=1",
        "train.keep_every=3",
        "train.val_every=1",
    ]
    start(*finetune("run", *more, "stages=[train]"))
    found = sorted(int(p.name[5:]) for p in (tmp_path / "run/checkpoints").glob("step_*"))
    best = int((tmp_path / "run/checkpoints/best").resolve().name[5:])
    accuracy = {r["step"]: r["top1"] for r in rows(tmp_path / "run", "val")}
    assert accuracy[best] == max(accuracy.values()) and best == min(
        s for s in accuracy if accuracy[s] == accuracy[best]
    )
    assert set(found) == {6, 12, best}


def test_the_best_is_saved_between_two_checkpoints(tmp_path, finetune):
    more = ["stages=[train]", "train.epochs=2", "train.save_every=99", "train.val_every=0.5"]
    start(*finetune("run", *more))
    accuracy = {r["step"]: r["top1"] for r in rows(tmp_path / "run", "val")}
    best = int((tmp_path / "run/checkpoints/best").resolve().name[5:])
    assert len(accuracy) == 4 and accuracy[best] == max(accuracy.values())


def test_a_former_best_goes_with_the_old_ones(tmp_path):
    state = torch.nn.Linear(1, 1).state_dict()
    for step in (10, 11):
        snapshot = Snapshot(step, state, {}, {})
        save_checkpoint(tmp_path, snapshot, keep=1, best=True, say=print)
    assert [p.name for p in tmp_path.glob("step_*")] == ["step_000000011"]
    assert (tmp_path / "best").readlink().name == "step_000000011"


def test_an_old_checkpoint_that_cannot_be_removed_ends_nothing(tmp_path):
    """One that is a mount point; it goes when it can."""
    state = torch.nn.Linear(1, 1).state_dict()
    said = []

    def save(step):
        save_checkpoint(tmp_path, Snapshot(step, state, {}, {}), keep=1, say=said.append)

    save(1)
    old = tmp_path / "step_000000001"
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", old], capture_output=True).returncode:
        pytest.skip("cannot mount a file system here")
    try:
        save(2)
        assert len(said) == 1 and "step_000000001" in said[0] and "cannot be removed" in said[0]
    finally:
        subprocess.run(["umount", old], check=True)
    save(3)
    assert [p.name for p in tmp_path.glob("*step_*")] == ["step_000000003"] and len(said) == 1


def test_colleagues_can_read_what_is_written(tmp_path):
    mask = os.umask(0o022)
    try:
        step = save_checkpoint(
            tmp_path, Snapshot(1, torch.nn.Linear(1, 1).state_dict(), {}, {}), keep=1, say=print
        )
    finally:
        os.umask(mask)
    assert {stat.S_IMODE(file.stat().st_mode) for file in step.iterdir()} == {0o644}


def test_learning_rate_follows_the_batch(tmp_path, finetune):
    batch = [
        "stages=[train]",
        "optim.lr=1e-3",
        "optim.warmup_epochs=0",
        "train.batch_size=16",
        "train.log_every=1",
    ]
    start(*finetune("run", *batch, "optim.reference_batch=64"))
    assert rows(tmp_path / "run")[0]["lr"] == pytest.approx(0.25e-3)
    assert (
        "WARNING: train.batch_size=16 is not the recipe's 64"
        in (tmp_path / "run/log.txt").read_text()
    )
    start(*finetune("same", *batch, "optim.reference_batch=16"))
    assert rows(tmp_path / "same")[0]["lr"] == pytest.approx(1e-3)
    assert "the recipe's" not in (tmp_path / "same/log.txt").read_text()


def test_storage_that_fails_is_an_error_of_the_system(tmp_path):
    """safetensors has one of its own, which nobody would take for storage that is away."""
    with pytest.raises(FileNotFoundError):
        save_file({"x": torch.zeros(2)}, tmp_path / "missing/x.safetensors")
