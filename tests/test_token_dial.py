"""The token dial in a run: training, test, features and predict on a share of the mask units."""

import json

import pytest
import torch
from conftest import start

import hiera_video
from hiera_video.data.dataset import ClipDataset
from hiera_video.data.decode.source import VideoSource
from hiera_video.data.lists import read_videos
from hiera_video.data.sampling import ClipShape, SlidingWindows
from hiera_video.data.transforms import EvalCrops
from hiera_video.system.errors import UserError

SMALL = [
    "train.epochs=2",
    "model.embed_dim=16",
    "model.stages=[1,1,1,1]",
    "data.num_workers=0",
    "init.weights=null",
    "train.val_every=0",
    "test.clips=2",
    "test.crops=1",
]


@pytest.fixture(scope="module")
def run(shapes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dial") / "run"
    start(
        f"data.root={shapes}",
        f"output={folder}",
        *SMALL,
        "classify.keep_units=0.5",
        "test.keep_units_too=[0.25,0.5]",
        "test.keep_units_by=motion",
    )
    return folder


def test_one_test_tells_accuracy_against_cost(run):
    metrics = json.loads((run / "test/metrics.json").read_text())
    points = metrics["by_keep_units"]
    assert [p["keep_units"] for p in points] == [1.0, 0.25, 0.5]
    assert points[0]["top1"] == metrics["top1"]
    macs = [p["gmacs"] for p in points]
    assert macs[1] < 0.3 * macs[0] and macs[2] < 0.55 * macs[0]
    assert "GMACs a view" in (run / "log.txt").read_text()
    assert "What fewer mask units give" in (run / "report.html").read_text()


def test_a_share_alone_gives_what_it_gives_beside_others(run, shapes, tmp_path):
    start(
        f"data.root={shapes}",
        f"output={tmp_path / 'half'}",
        *SMALL,
        "stages=[test]",
        f"test.weights={run}",
        "test.keep_units=0.5",
        "test.keep_units_by=motion",
    )
    alone = json.loads((tmp_path / "half/test/metrics.json").read_text())
    beside = json.loads((run / "test/metrics.json").read_text())["by_keep_units"][2]
    assert (alone["top1"], alone["top5"]) == (beside["top1"], beside["top5"])
    card = json.loads((tmp_path / "half/test/protocol.json").read_text())
    assert card["mask units"] == "0.5 of them, that change most"
    assert "mask units" not in json.loads((run / "test/protocol.json").read_text())


def test_predict_and_features(run, shapes):
    video = next((shapes / "val").rglob("*.mp4"))
    whole = hiera_video.load(run)
    part = hiera_video.load(run, keep_units=0.5, keep_units_by="motion")
    again = hiera_video.load(run, keep_units=0.5, keep_units_by="motion")
    assert not torch.equal(whole.scores(video), part.scores(video))
    assert torch.equal(part.scores(video), again.scores(video))
    assert not torch.equal(whole.features(video).features, part.features(video).features)
    for model in (whole, part, again):
        model.close()
    with pytest.raises(ValueError, match="keep_units=0"):
        hiera_video.load(run, keep_units=0)


def test_what_has_no_mask_units_is_refused(shapes, tmp_path):
    common = [f"data.root={shapes}", f"output={tmp_path / 'x'}", "init.weights=null"]
    with pytest.raises(UserError, match=r"features\.stages=\[4\] with test\.keep_units=0\.5"):
        start(*common, "stages=[features]", "features.stages=[4]", "test.keep_units=0.5")
    baseline = ["model.name=x3d_m", "model.embed_dim=null", "model.stages=null"]
    with pytest.raises(UserError, match=r"test\.keep_units: only a Hiera or a ViT .*x3d_m"):
        start(*common, *baseline, "model.head_init_scale=null", "test.keep_units=0.5")
    with pytest.raises(UserError, match=r"test\.keep_units=0.*above 0"):
        start(*common, "test.keep_units=0")


def test_features_that_go_on_inside_a_video_compute_the_same_units(shapes):
    """The seeds of a chunk are its own."""
    data = ClipDataset(
        read_videos("val.csv", root=shapes),
        sample=SlidingWindows(ClipShape(4, 1, 30), 1 / 30),
        transform=EvalCrops(32, 32, 1),
        source=VideoSource(),
        seed=3,
    )
    whole = list(data.chunks(0, 0))
    assert len(whole) == 2
    (rest,) = data.chunks(0, whole[1]["first"])
    assert torch.equal(rest["seed"], whole[1]["seed"])
    assert not torch.equal(whole[0]["seed"][0, :4], whole[1]["seed"][0, :4])
    data.source.close()
