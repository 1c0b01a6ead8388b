"""The main job as users start it: whole runs, restarts, ranks."""

import csv
import json
import shutil

import pytest
import torch
from conftest import FINETUNE, PRETRAIN, SHORT, killed_when, start
from forked import Script, run_forked
from safetensors.torch import load_file

from hiera_video.config import load_config
from hiera_video.stages.run import run
from hiera_video.system.errors import UserError


def results(folder):
    """What A4 promises to be the same: last checkpoint and test results, as bytes."""
    last = (folder / "checkpoints/latest").resolve()
    files = [
        last / "model.safetensors",
        last / "train_state.pt",
        folder / "test/metrics.json",
        folder / "test/predictions.csv",
    ]
    return {f"{last.name}/{f.name}": f.read_bytes() for f in files}


def steps(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["step"] for row in rows if row["split"] == "train"]


def test_pretrain_finetune_test_features(shapes, tmp_path, finetune, tool):
    """The whole path in one go, and every file that the contract names."""
    mae = tmp_path / "mae"
    out = tmp_path / "run"
    quiet = [*SHORT, "train.val_every=0"]
    tool("tools/run_net.py", "--cfg", PRETRAIN, f"data.root={shapes}", f"output={mae}", *quiet)
    overrides = [o for o in finetune() if not o.startswith("init.")]
    tool(
        *("tools/run_net.py", "--cfg", FINETUNE, *overrides, f"init.weights={mae}"),
        *("stages=[train,test,features]", "train.val_every=1", "features.stages=[1,4]"),
    )
    for name in (
        "config.yaml",
        "run.json",
        "log.txt",
        "metrics.jsonl",
        "tb",
        "checkpoints/latest/model.safetensors",
    ):
        assert (out / name).exists(), name
    assert "head.projection" in (out / "log.txt").read_text(), (
        "the re-initialised head is in the log"
    )
    latest = out / "checkpoints/latest"
    assert (
        latest.is_symlink()
        and not latest.readlink().is_absolute()
        and latest.readlink().name == "step_000000004"
    )

    card = json.loads((out / "run.json").read_text())
    assert card["world_size"] == 1 and card["lists"]["data.train"]["videos"] == 32
    assert (
        card["packages"]["torch"] == torch.__version__.split("+")[0]
        and "run_net.py" in card["command"]
    )

    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    train = [r for r in rows if r["split"] == "train"]
    assert train[-1]["step"] == 4
    assert set(train[0]) == {
        "split",
        "step",
        "epoch",
        "loss",
        "lr",
        "grad_norm",
        "clips_per_s",
        "data_wait",
        "memory_gib",
    }
    assert [r["step"] for r in rows if r["split"] == "val"] == [2, 4]

    metrics = json.loads((out / "test/metrics.json").read_text())
    assert metrics["videos"] == metrics["videos_expected"] == 9 and metrics["missing"] == []
    assert metrics["views"] == [5, 3] and 0 <= metrics["top1"] <= metrics["top5"] <= 100
    scores = load_file(out / "test/scores.safetensors")
    assert scores["scores"].shape == (9, 8) and scores["index"].tolist() == list(range(9))
    torch.testing.assert_close(scores["scores"].sum(1), torch.ones(9))
    with open(out / "test/predictions.csv") as f:
        predictions = list(csv.DictReader(f))
    assert [r["path"] for r in predictions] == [
        line.rsplit(" ", 1)[0] for line in (shapes / "val.csv").read_text().splitlines()
    ]
    hits = sum(r["label"] == r["prediction"] for r in predictions)
    assert metrics["top1"] == pytest.approx(100 * hits / 9)
    assert [int(r["top1_class"]) for r in predictions] == scores["scores"].argmax(1).tolist()

    with open(out / "features/manifest.csv") as f:
        manifest = list(csv.DictReader(f))
    assert [r["status"] for r in manifest] == ["ok"] * 9
    features = load_file(out / "features" / manifest[0]["file"])
    assert features["features"].shape == (2, 128) and features["times"].shape == (2, 2)
    assert features["stage1"].shape == (2, 4, 16, 16, 16) and features["stage4"].shape == (
        2,
        4,
        2,
        2,
        128,
    )

    before = (out / "log.txt").read_text().count("done already")
    tool(
        "tools/run_net.py",
        "--cfg",
        FINETUNE,
        *overrides,
        f"init.weights={mae}",
        "train.val_every=1",
        "features.stages=[1,4]",
    )
    assert (out / "log.txt").read_text().count("done already") == before + 2, (
        "a finished stage is not repeated"
    )

    # Features of the masked autoencoder's own weights, through the tool.
    tool(
        *(
            "tools/extract_features.py",
            "--cfg",
            PRETRAIN,
            "--weights",
            mae,
            "--videos",
            shapes / "val.csv",
        ),
        *("--output", tmp_path / "mae_features", f"data.root={shapes}", *SHORT),
    )
    assert len(list((tmp_path / "mae_features").glob("*.safetensors"))) == 9


def test_same_config_and_seed_same_weights(tmp_path, finetune):
    for name in ("a", "b"):
        start(*finetune(name), "classify.mixup=0.8", "model.drop_path_rate=0.2", "data.erase=0.3")
    assert results(tmp_path / "a") == results(tmp_path / "b")
    start(
        *finetune("c"),
        "classify.mixup=0.8",
        "model.drop_path_rate=0.2",
        "data.erase=0.3",
        "data.num_workers=2",
    )
    assert results(tmp_path / "a") == results(tmp_path / "c"), "whatever the number of workers"
    start(*finetune("d"), "seed=1")
    assert results(tmp_path / "a") != results(tmp_path / "d")


@pytest.mark.trial
def test_compiled_and_recomputed_runs_are_the_same_training(tmp_path, finetune):
    losses = []
    accuracies = []
    for name, *more in (
        ("plain",),
        ("recomputed", "train.recompute_stages=[1,2,3]"),
        ("compiled", "train.compile=true", "test.compile=true"),
    ):
        start(*finetune(name, *more))
        rows = [
            json.loads(line)
            for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ]
        losses.append([row["loss"] for row in rows if row["split"] == "train"])
        accuracies.append(json.loads((tmp_path / name / "test/metrics.json").read_text())["top1"])
    assert losses[1] == losses[0]
    assert losses[2] == pytest.approx(losses[0], rel=1e-3)
    assert accuracies[1:] == accuracies[:1] * 2
    with pytest.raises(UserError, match="recompute_stages"):
        start(*finetune("wrong", "train.recompute_stages=[5]"))


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.trial), 2])
def test_killed_run_ends_the_same(tmp_path, finetune, workers):
    """Kill -9 between two checkpoints; the same command goes on and ends byte for byte as an
    uninterrupted run.
    """
    more = [
        "train.epochs=6",
        "train.log_every=1",
        f"data.num_workers={workers}",
        "model.drop_path_rate=0.2",
    ]
    command = ["tools/run_net.py", "--cfg", FINETUNE, *finetune("killed"), *more]
    killed = tmp_path / "killed"
    # checkpoints come every 2 of 12 steps; die at a step between them
    killed_when(
        lambda: (killed / "metrics.jsonl").exists() and steps(killed)[-1:] >= [5], Script(*command)
    )
    assert not (killed / "test/metrics.json").exists(), "it was to be killed before the end"
    run_forked(*command)
    assert "continuing after step" in (killed / "log.txt").read_text()
    start(*finetune("whole"), *more, "data.num_workers=0")
    assert results(killed) == results(tmp_path / "whole")
    assert steps(killed) == list(range(1, 13)), "each step stands once"
    assert not list((killed / "checkpoints").glob(".writing*"))


def test_pretraining_is_repeatable_and_learns(shapes, tmp_path):
    overrides = [
        f"data.root={shapes}",
        *SHORT,
        "train.epochs=16",
        "train.batch_size=8",
        "optim.lr=2e-3",
        "train.repeats=2",
        "train.val_every=0",
    ]
    for name in ("a", "b"):
        start(*overrides, f"output={tmp_path / name}", cfg=PRETRAIN)
    weights = [load_file(tmp_path / n / "checkpoints/latest/model.safetensors") for n in ("a", "b")]
    assert all(torch.equal(t, weights[1][n]) for n, t in weights[0].items())
    losses = [
        json.loads(line)["loss"] for line in (tmp_path / "a/metrics.jsonl").read_text().splitlines()
    ]
    assert sum(losses[-3:]) / 3 < 0.95 * sum(losses[:3]) / 3


@pytest.mark.parametrize(
    "name",
    [
        "slowfast_r50",
        *(
            pytest.param(name, marks=pytest.mark.trial)
            for name in ("mvit_base_16x4", "slow_r50", "x3d_m")
        ),
    ],
)
def test_pytorchvideo_models_train_and_test_in_our_loops(shapes, tmp_path, name):
    pytest.importorskip("pytorchvideo")
    config = tmp_path / "c.yaml"
    config.write_text(
        f"model: {{name: {name}}}\noutput: {tmp_path / 'run'}\n"
        f"data: {{root: {shapes}, classes: classes.txt, directional: true, num_frames: 8, "
        "sampling_rate: 2, crop_size: 64,"
        " num_workers: 0}\ntrain: {epochs: 0.5, batch_size: 8}\ntest: {clips: 2, crops: 1}\n"
    )
    run(load_config(config))
    metrics = json.loads((tmp_path / "run/test/metrics.json").read_text())
    assert metrics["videos"] == 9 and metrics["views"] == [2, 1]
    scores = load_file(tmp_path / "run/test/scores.safetensors")["scores"]
    torch.testing.assert_close(scores.sum(1), torch.ones(9))
    run(load_config(config, ["stages=[features]"]))
    with open(tmp_path / "run/features/manifest.csv") as f:
        rows = list(csv.DictReader(f))
    first = load_file(tmp_path / "run/features" / rows[0]["file"])
    assert len(rows) == 9 and all(row["status"] == "ok" for row in rows)
    assert first["features"].shape[0] == int(rows[0]["num_clips"]) and first["features"].std() > 0


def test_pytorchvideo_samplers_by_name(tmp_path, finetune):
    pytest.importorskip("pytorchvideo")
    sampler = [
        "data.clip_sampler=pytorchvideo.random",
        "test.clip_sampler=pytorchvideo.constant_clips_per_video",
    ]
    start(*finetune(), *sampler, "test.clip_sampler_args=[2]", "train.val_every=1")
    assert json.loads((tmp_path / "run/test/protocol.json").read_text())["clip"].endswith(
        "constant_clips_per_video, 2"
    )
    assert "videos, one view each" in (tmp_path / "run/log.txt").read_text()
    metrics = json.loads((tmp_path / "run/test/metrics.json").read_text())
    assert metrics["videos"] == 9 and metrics["views"] == [2, 3]


def test_own_videos_from_class_folders(shapes, tmp_path, tool):
    """The README's three commands, on MovingShapes laid out as class folders."""
    mine = tmp_path / "my videos"
    shutil.copytree(shapes / "train", mine)
    tool("datasets/make_lists.py", mine, "--val", "0.25")
    assert len((mine / "val.csv").read_text().splitlines()) == 8
    small = [
        "model.name=hiera_tiny_16x224",
        "model.embed_dim=16",
        "model.stages=[1,1,1,1]",
        "data.num_frames=8",
    ]
    small += [
        "data.sampling_rate=2",
        "data.crop_size=64",
        "data.num_workers=0",
        "train.epochs=1",
        "train.batch_size=8",
    ]
    small += [
        "train.precision=float32",
        "data.directional=true",
        f"output={tmp_path / 'own'}",
        f"data.root={mine}",
    ]
    tool("tools/run_net.py", "--cfg", "configs/own/hiera_b_16x4.yaml", *small, "stages=[train]")
    tool("tools/run_net.py", "--cfg", "configs/own/hiera_b_16x4.yaml", *small, "stages=[test]")
    assert json.loads((tmp_path / "own/test/metrics.json").read_text())["videos"] == 8
    # Class folders without lists do as well.
    more = [o for o in small if not o.startswith("output")] + [
        f"output={tmp_path / 'folders'}",
        "data.classes=null",
    ]
    tool(
        "tools/run_net.py",
        "--cfg",
        "configs/own/hiera_b_16x4.yaml",
        *more,
        f"data.train={mine}",
        f"data.val={mine}",
    )


def test_main_config_trains_on_any_small_list(shapes, tmp_path, tool):
    small = [
        "model.embed_dim=16",
        "model.stages=[1,1,1,1]",
        "data.num_frames=8",
        "data.crop_size=64",
        "train.batch_size=8",
    ]
    small += [
        "train.epochs=1",
        "data.num_workers=0",
        f"output={tmp_path / 'run'}",
        "test.clips=1",
        "train.val_every=0",
    ]
    tool(
        "tools/run_net.py", "--cfg", "configs/K400/hiera_b_16x4.yaml", f"data.root={shapes}", *small
    )
    assert json.loads((tmp_path / "run/test/metrics.json").read_text())["videos"] == 9


def test_real_clips(clips, tmp_path, tool):
    """The whole path on real and odd files: nothing stops, everything is counted."""
    left_out = ("README.md", "hangs_decord.mp4")  # a trap with tests of its own
    names = sorted(p.name for p in clips.iterdir() if p.name not in left_out)
    (tmp_path / "real.csv").write_text("".join(f"{n} {i % 3}\n" for i, n in enumerate(names)))
    lists = [f"data.root={clips}", *(f"data.{k}={tmp_path / 'real.csv'}" for k in ("train", "val"))]
    small = [
        "model.num_classes=3",
        "model.embed_dim=16",
        "model.stages=[1,1,1,1]",
        "data.num_frames=8",
        "data.crop_size=64",
    ]
    small += [
        "train.batch_size=4",
        "train.epochs=4",
        "data.num_workers=1",
        "data.max_bad_fraction=0.2",
        "test.min_coverage=0.9",
        "train.val_every=0",
    ]
    out = tmp_path / "run"
    stages = "stages=[train,test,features]"
    tool(
        "tools/run_net.py",
        "--cfg",
        "configs/K400/hiera_b_16x4.yaml",
        *lists,
        *small,
        f"output={out}",
        stages,
    )
    metrics = json.loads((out / "test/metrics.json").read_text())
    assert len(names) == 12 and metrics["videos_expected"] == 12
    assert metrics["videos"] + len(metrics["missing"]) == 12
    assert metrics["missing"] == ["corrupted.mp4"]
    assert len((out / "features/manifest.csv").read_text().splitlines()) == 13


def test_kill_between_checkpoint_and_link(tmp_path, finetune):
    """The newest folder counts, also where the links do not point to it yet."""
    start(*finetune(), "stages=[train]")
    checkpoints = tmp_path / "run/checkpoints"
    older = sorted(p.name for p in checkpoints.glob("step_*"))[0]
    (checkpoints / "latest").unlink()
    (checkpoints / "latest").symlink_to(older)
    (checkpoints / "best").unlink()
    start(*finetune(), "stages=[train,test]")
    for link in ("latest", "best"):
        assert (checkpoints / link).readlink().name == "step_000000004"
