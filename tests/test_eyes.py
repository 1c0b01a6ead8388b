"""What is measured of a pretraining: predictors without a model, ranks, and when it warns."""

import json

import pytest
import torch
from conftest import FINETUNE, PRETRAIN, SHORT, start

from hiera_video.evaluation.eyes import (
    PositionMeans,
    between_videos,
    clip_losses,
    copies_in_time,
    effective_rank,
    explained,
    warning,
)
from hiera_video.evaluation.probe import ridge
from hiera_video.models import create_hiera_mae
from hiera_video.stages.watch import at_chance
from hiera_video.system.distributed import World

ALONE = World(0, 1, torch.device("cpu"))


def autoencoder():
    torch.manual_seed(0)
    arguments = dict(input_size=(8, 64, 96), embed_dim=16, stages=(1, 1, 1, 1))
    decoder = dict(decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=4)
    return create_hiera_mae("mae_hiera_tiny_16x224", **arguments, **decoder).eval()


def test_copies_are_the_nearest_visible_patch_in_time():
    model = autoencoder()
    clip = torch.randn(1, 3, 8, 64, 96, generator=torch.Generator().manual_seed(1))
    keep = torch.zeros(1, model.num_units, dtype=torch.bool)
    keep[0, [0, 18]] = True  # units of 2 x 3 places in 4 frames: place 0 at frames 0 and 3
    visible = keep.nonzero()[:, 1].view(1, -1)
    hidden = model.predicted_patches(visible)
    every = torch.arange(96)[None]
    patches = model.patch_targets(clip, every).view(4, 24, -1)
    copied = torch.zeros(4, 24, 768)
    of_place_0 = [0, 1, 6, 7]  # 2 x 2 patches of a grid of 4 x 6
    for frame, source in ((1, 0), (2, 3)):
        copied[frame, of_place_0] = patches[source, of_place_0]
    got = copies_in_time(model, clip, keep, hidden)
    torch.testing.assert_close(got[0], copied.flatten(0, 1)[hidden[0]])


def test_predictors_without_a_model_know_still_videos():
    """A video that stands still is copied rightly, one that is always the same is its mean."""
    model = autoencoder()
    still = torch.randn(4, 3, 1, 64, 96).expand(-1, -1, 8, -1, -1)
    same = torch.randn(1, 3, 8, 64, 96).expand(4, -1, -1, -1, -1)
    for clips, good, bad in ((still, "copy", "position"), (same, "position", "copy")):
        means = PositionMeans()
        means.add(model, clips[:3])
        means.add(model, clips[3:])
        keep = torch.zeros(4, 4, 6, dtype=torch.bool)
        keep[:, 1] = True  # one frame is visible
        out = model(clips, keep=keep.flatten(1))
        visible = out.keep.nonzero()[:, 1].view(4, -1)
        hidden = model.predicted_patches(visible)
        losses = clip_losses(model, clips, out, hidden, means.table(ALONE))
        losses = {name: value.mean().item() for name, value in losses.items()}
        assert losses[good] < 1e-6 < 0.3 < losses[bad]
        assert abs(losses["zero"] - 767 / 768) < 1e-3
        assert abs(losses["mae_loss"] - out.loss.item()) < 1e-5
        assert explained(losses) < -1e3, "the model is worse than the best of them"


def test_ranks_and_variances():
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(500, 16, generator=generator)
    flat = torch.randn(500, 2, generator=generator) @ torch.randn(2, 16, generator=generator)
    assert 15 < effective_rank(wide + 100) <= 16
    assert effective_rank(flat + 100) <= 2.001
    assert abs(between_videos(wide + 100) - 0.01) < 0.002


def test_ridge_finds_what_is_linear():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(300, 8, generator=generator)
    labels = (features @ torch.randn(8, 3, generator=generator)).argmax(1)
    scores = ridge(features[:200], labels[:200], features[200:], strength=0.01)
    assert (scores.argmax(1) == labels[200:]).float().mean() > 0.8


def test_it_warns_when_nothing_is_learned_and_not_before():
    first = {"explained": -0.1, "rank": 40.0}
    assert not warning({"explained": 0.3, "rank": 39.0}, first, progress=1.0)
    assert not warning({"explained": -0.1, "rank": 2.0}, first, progress=0.1)
    assert "nothing is learned" in warning({"explained": 0.01, "rank": 39.0}, first, progress=0.5)
    collapsed = warning({"explained": 0.3, "rank": 5.0}, first, progress=0.5)
    assert "effective rank is 5.0, and was 40.0" in collapsed and "mask units" in collapsed


def test_a_run_says_what_it_learns_beside_its_start(shapes, tmp_path):
    """Unlabelled videos are pretrained on, a labelled list is learned from; figures at step 0,
    once, also where the run goes on.
    """
    rows = [line.rsplit(" ", 1)[0] for line in (shapes / "train.csv").read_text().splitlines()]
    (tmp_path / "unlabelled.csv").write_text("\n".join(rows) + "\n")
    out = tmp_path / "run"
    common = [
        f"data.root={shapes}",
        f"data.train={tmp_path / 'unlabelled.csv'}",
        "mae.probe=train.csv",
        "mae.probe_videos=16",
        f"output={out}",
        *SHORT,
        "train.val_every=1",
        "mae.decoder_keep=0.5",
    ]
    start(*common, cfg=PRETRAIN)
    found = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    probe = [row for row in found if row["split"] == "probe"]
    steps = [row["step"] for row in probe]
    assert steps[0] == 0 and len(steps) == len(set(steps)) >= 3
    for row in probe:
        best = min(row["zero"], row["position"], row["copy"])
        assert abs(row["explained"] - (1 - row["mae_loss"] / best)) < 1e-6
        assert 0 <= row["linear_in_time_top1"] <= 100 and row["rank"] >= 1
    text = (out / "log.txt").read_text()
    assert "without a model: zero" in text and "before the first step" in text
    assert "Share explained" in (out / "report.html").read_text()


def test_chance_is_two_standard_errors_wide():
    assert at_chance(20.0, chance=12.5, videos=64) and at_chance(3.0, chance=12.5, videos=64)
    assert not at_chance(21.0, chance=12.5, videos=64)
    assert not at_chance(20.0, chance=12.5, videos=640)
    assert not at_chance(None, chance=12.5, videos=64), "no video has a label"


@pytest.mark.parametrize("weights, warned", [("null", True), ("none", False)])
def test_random_weights_under_a_layer_decay_are_named(shapes, tmp_path, weights, warned):
    out = tmp_path / "run"
    overrides = [f"init.weights={weights}", "stages=[train]", "optim.layer_decay=0.5"]
    start(f"data.root={shapes}", f"output={out}", *SHORT, *overrides, cfg=FINETUNE)
    assert ("learns at 3.12% of the rate" in (out / "log.txt").read_text()) == warned


def test_a_fine_tuning_that_cannot_learn_says_so(shapes, tmp_path):
    out = tmp_path / "run"
    overrides = ["init.weights=null", "stages=[train]", "optim.lr=0", "optim.warmup_epochs=9"]
    start(f"data.root={shapes}", f"output={out}", *SHORT, *overrides, cfg=FINETUNE)
    text = (out / "log.txt").read_text()
    assert "the whole run is warm-up" in text
    assert text.count("no better than chance (12.50)") == 1 and "head_pool=time" in text
