"""Testing: each video once, whoever is killed, whatever the ranks."""

import csv
import json
import random

import pytest
import torch
from conftest import FINETUNE, killed_when, start
from forked import start_ranks
from test_ranks import ranks

from hiera_video.data.lists import VideoList
from hiera_video.evaluation import score_files
from hiera_video.evaluation.score_files import write_test
from hiera_video.evaluation.scores import ViewScores, fewer_views, hits
from hiera_video.system.distributed import World

FILES = (
    "metrics.json",
    "predictions.csv",
    "scores.safetensors",
    "classes.csv",
    "confusion.csv",
    "protocol.json",
)


def interrupt(*_):
    raise KeyboardInterrupt


def outcome(folder):
    return {name: (folder / "test" / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def prime(shapes, weights, tmp_path_factory):
    """Overrides for the test of 31 videos, every one flushed at once, and what one rank makes of
    it.

    One thread everywhere: how many there are decides how a sum is rounded.
    """
    folder = tmp_path_factory.mktemp("prime")
    (folder / "prime.csv").write_text(
        "".join((shapes / "train.csv").read_text().splitlines(keepends=True)[:31])
    )
    overrides = [
        f"data.root={shapes}",
        f"data.test={folder / 'prime.csv'}",
        f"test.weights={weights}",
        "stages=[test]",
    ]
    overrides += [
        "init.weights=null",
        "model.embed_dim=16",
        "model.stages=[1,1,1,1]",
        "data.num_workers=0",
    ]
    overrides += ["test.save_every_s=0"]
    ranks(1, *overrides, f"output={folder / 'whole'}")
    assert not (folder / "whole/test/parts").exists()
    return overrides, outcome(folder / "whole")


def parts_of(run):
    return sorted((run / "test/parts").glob("[0-9]*"))


def kill_test(world, overrides, run, count):
    """Starts the test on `world` ranks and kills them all when `count` more videos are scored."""
    before = len(parts_of(run))
    command = ["tools/run_net.py", "--cfg", FINETUNE, *overrides, f"output={run}"]
    scripts = start_ranks(world, *command)
    killed_when(lambda: len(parts_of(run)) >= before + count, *scripts)
    assert not (run / "test/metrics.json").exists()


def test_a_killed_test_goes_on(tmp_path, prime):
    """A prime number of videos; killed twice on one rank, ended on three: the same bytes."""
    overrides, whole = prime
    run = tmp_path / "run"
    for count in (1, 3):
        kill_test(1, overrides, run, count)
    part = parts_of(run)[0]
    part.write_bytes(part.read_bytes()[:-20])  # the machine lost the end of one
    ranks(3, *overrides, f"output={run}")
    assert outcome(run) == whole
    assert "of 31 videos are scored already" in (run / "log.txt").read_text()
    card = json.loads((run / "test/protocol.json").read_text())
    assert (
        card["videos"] == {"listed": 31, "scored": 31, "missing": 0} and card["views"]["clips"] == 5
    )
    metrics = json.loads((run / "test/metrics.json").read_text())
    by_views = {(row["clips"], row["crops"]): row for row in metrics["by_views"]}
    assert set(by_views) == {(1, 1), (1, 3), (3, 1), (3, 3), (5, 1), (5, 3)}
    assert by_views[5, 3]["top1"] == metrics["top1"] and by_views[5, 3]["top5"] == metrics["top5"]


@pytest.mark.trial
@pytest.mark.parametrize(("world", "kills"), [(1, 4), (2, 3), (3, 3)])
def test_killed_on_any_number_of_ranks(tmp_path, prime, world, kills):
    overrides, whole = prime
    for count in random.Random(world).choices(range(1, 7), k=kills):
        kill_test(world, overrides, tmp_path / "run", count)
    ranks(world, *overrides, f"output={tmp_path / 'run'}")
    assert outcome(tmp_path / "run") == whole


def test_other_weights_are_tested_again(tmp_path, finetune, weights):
    copy = tmp_path / "weights.safetensors"
    copy.write_bytes((weights / "checkpoints/latest/model.safetensors").read_bytes())
    more = [f"test.weights={copy}", "stages=[test]", "test.clips=1", "test.crops=1"]
    start(*finetune("run", *more))
    first = (tmp_path / "run/test/scores.safetensors").read_bytes()
    start(*finetune("run", *more))
    assert "done already" in (tmp_path / "run/log.txt").read_text()
    early = sorted((weights / "checkpoints").glob("step_*"))[0] / "model.safetensors"
    copy.write_bytes(early.read_bytes())
    start(*finetune("run", *more))
    assert "testing again" in (tmp_path / "run/log.txt").read_text()
    assert (tmp_path / "run/test/scores.safetensors").read_bytes() != first


def test_a_repeated_test_that_is_killed_leaves_no_old_result(
    tmp_path, finetune, weights, monkeypatch
):
    copy = tmp_path / "weights.safetensors"
    test = tmp_path / "run/test"
    more = [
        *finetune("run"),
        f"test.weights={copy}",
        "stages=[test]",
        "test.clips=1",
        "test.crops=1",
    ]
    results = []
    for step in sorted((weights / "checkpoints").glob("step_*")):
        copy.write_bytes((step / "model.safetensors").read_bytes())
        with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
            m.setattr(score_files, "write_classes", interrupt)
            start(*more)
        assert (test / "predictions.csv").exists() and not (test / "metrics.json").exists()
        start(*more)
        results.append((test / "scores.safetensors").read_bytes())
        assert not (test / "parts").exists()
    assert results[0] != results[-1]


def test_scores_by_hand(tmp_path):
    """Two videos, 3 clips x 1 crop, 3 classes: everything that the files say can be told with a
    pencil.
    """
    result = ViewScores(3, 1)
    logits = torch.tensor(
        [[[5.0, 0, 0], [0, 9, 0], [5, 0, 0]], [[0.0, 0, 4], [0, 0, 4], [0, 9, 0]]]
    )
    batch = {"index": torch.tensor([1, 0])}
    result.update(batch, {"logits": logits})
    videos = VideoList(["b.mp4", "a.mp4"], [1, 0])
    merged = result.merged(World(0, 1, torch.device("cpu")), {})
    torch.testing.assert_close(merged.rows[1]["scores"], logits[0].softmax(-1).mean(0))
    metrics = write_test(tmp_path, merged, videos, names=["x", "y", "z"], protocol={})
    assert metrics["top1"] == 50.0 and metrics["top5"] == 100.0 and metrics["mean_class"] == 50.0
    assert metrics["view_top1"] == pytest.approx(100 * 3 / 6)
    assert metrics["by_views"][0] == {
        "clips": 1,
        "crops": 1,
        "top1": 0.0,
        "top5": 100.0,
    }  # the middle clip is wrong in both
    rows = list(csv.DictReader((tmp_path / "classes.csv").open()))
    assert (
        rows[0]["name"] == "x" and rows[0]["top1"] == "100.00" and rows[1]["taken_for_name"] == "z"
    )
    assert (tmp_path / "confusion.csv").read_text().split() == [
        "label,prediction,videos",
        "0,0,1",
        "1,2,1",
    ]
    assert hits(torch.tensor([[0, 1], [2, 0]]), torch.tensor([1, 1])) == {"top1": 0.0, "top5": 50.0}


def test_fewer_views_are_spread_over_the_video():
    chosen = {(n, k): views for n, k, views in fewer_views(5, 3)}
    assert chosen[1, 1] == [7] and chosen[3, 1] == [1, 7, 13] and chosen[1, 3] == [6, 7, 8]
    assert chosen[5, 3] == list(range(15)) and [n for n, _, _ in fewer_views(4, 1)] == [1, 3, 4]
