"""Schedule, parameter groups, soft labels and mixing: the arithmetic of the recipes."""

import math
import shutil

import pytest
import torch
from conftest import ROOT, SHORT, start
from safetensors.torch import load_file

from hiera_video.config import ClassifyConfig, TrainConfig, load_config
from hiera_video.models import create_hiera
from hiera_video.models.baselines import create_pytorchvideo
from hiera_video.models.weights import weights_file
from hiera_video.system.errors import UserError
from hiera_video.training.loop import step_seed
from hiera_video.training.optim import (
    OptimConfig,
    learning_rate,
    make_optimizer,
    parameter_groups,
    set_learning_rate,
)
from hiera_video.training.plan import Plan
from hiera_video.training.tasks import mix, soft_labels

SMALL = dict(embed_dim=16, num_heads=1, stages=(1, 1, 2, 1), input_size=(8, 64, 64), num_classes=5)


def test_schedule():
    config = OptimConfig(lr=1.0, start_lr=0.1, end_lr=0.2)
    assert learning_rate(config, 0.0, 0.25) == pytest.approx(0.1)
    assert learning_rate(config, 0.125, 0.25) == pytest.approx(0.55)
    assert learning_rate(config, 0.25, 0.25) == pytest.approx(1.0)
    assert learning_rate(config, 0.625, 0.25) == pytest.approx(0.6)
    assert learning_rate(config, 1.0, 0.25) == pytest.approx(0.2)
    assert learning_rate(config, 0.0, 0.0) == pytest.approx(1.0)


def test_layer_decay_and_weight_decay():
    """5 blocks: the embeddings get d^6, block i gets d^(5 - i), the head and the last norm 1 (power
    depth + 1 - layer).
    """
    model = create_hiera("hiera_tiny_16x224", **SMALL)
    groups = parameter_groups(model, weight_decay=0.05, layer_decay=0.8)
    scale = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    assert len(scale) == len(list(model.parameters()))
    for name, p in model.named_parameters():
        if name.startswith("blocks."):
            expected = 0.8 ** (5 - int(name.split(".")[1]))
        else:
            expected = 1.0 if name.startswith(("norm", "head")) else 0.8**6
        assert scale[id(p)] == pytest.approx(expected), name
        assert decay[id(p)] == (0.0 if p.ndim == 1 or "pos_embed" in name else 0.05), name
    optimizer = make_optimizer(model, OptimConfig(name="sgd", layer_decay=0.8))
    set_learning_rate(optimizer, 0.5)
    assert {round(g["lr"] / g["lr_scale"], 6) for g in optimizer.param_groups} == {0.5}


def test_layer_decay_is_refused_where_there_are_no_layers():
    pytest.importorskip("pytorchvideo")
    model = create_pytorchvideo("x3d_m", num_classes=3, input_size=(4, 32, 32))
    with pytest.raises(ValueError, match="layer_decay"):
        parameter_groups(model, weight_decay=0.05, layer_decay=0.8)


def test_epochs_are_effective():
    """K400: 3200 epochs at 4 repeats are 800 passes; 512 videos a step."""
    plan = Plan.make(
        TrainConfig(epochs=3200, batch_size=512, repeats=4),
        OptimConfig(warmup_epochs=120),
        num_videos=240_436,
    )
    assert plan.steps == math.ceil(800 * 240_436 / 512)
    assert plan.warmup == pytest.approx(120 / 3200)


@pytest.mark.parametrize("videos", [97, 3_025, 168_913, 240_436])
def test_what_is_validated_is_saved(videos):
    """In every config that validates, `checkpoints/best` can be set."""
    for file in sorted((ROOT / "configs").rglob("*.yaml")):
        train = load_config(file).train
        plan = Plan.make(train, OptimConfig(), videos)
        if train.val_every >= train.save_every:
            looked_at = range(plan.val_steps, plan.steps + 1, plan.val_steps)
            assert all(plan.saves_after(step) for step in looked_at), file


def test_soft_labels():
    target = soft_labels(torch.tensor([2, 0]), 4, 0.1)
    torch.testing.assert_close(
        target, torch.tensor([[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]])
    )


@pytest.mark.parametrize("config", [ClassifyConfig(mixup=0.8), ClassifyConfig(cutmix=1.0)])
def test_mixing_mixes_pixels_and_labels_alike(config):
    clips = torch.stack([torch.zeros(3, 4, 32, 32), torch.ones(3, 4, 32, 32)])
    target = torch.eye(2)
    shares = []
    for seed in range(20):
        torch.manual_seed(seed)
        mixed, labels = mix(clips, target, config)
        torch.testing.assert_close(mixed[0].mean(), labels[0, 1], atol=1e-5, rtol=0)
        torch.testing.assert_close(labels.sum(1), torch.ones(2))
        assert config.mixup or set(mixed.unique().tolist()) <= {0.0, 1.0}
        shares.append(labels[0, 0].item())
    assert max(shares) - min(shares) > 0.3
    torch.manual_seed(0)
    assert torch.equal(mix(clips, target, config)[0], mix_again(clips, target, config))
    assert torch.equal(mix(clips, target, ClassifyConfig())[0], clips)


def mix_again(clips, target, config):
    torch.manual_seed(0)
    return mix(clips, target, config)[0]


def test_seeds_differ_by_step_rank_and_run():
    seeds = {step_seed(s, k, r) for s in range(3) for k in range(50) for r in range(4)}
    assert len(seeds) == 600


def test_frozen_stages_stay_as_they_are(shapes, weights, tmp_path):
    """Embeddings and two stages keep their weights to the bit, the rest moves; they have no drop
    path, and a run that is cut off goes on to the same weights.
    """
    before = load_file(weights_file(weights))
    keys = [f"data.root={shapes}", f"init.weights={weights}", "train.freeze_stages=2", *SHORT]
    keys += ["stages=[train]", "model.drop_path_rate=0.5", "train.val_every=0"]
    start(*keys, f"output={tmp_path / 'run'}")
    after = load_file(weights_file(tmp_path / "run"))
    frozen = ("patch_embed.", "pos_embed", "blocks.0.", "blocks.1.")
    for name, value in after.items():
        same = torch.equal(value, before[name])
        assert same == name.startswith(frozen), name
    assert "parameters are trained" in (tmp_path / "run/log.txt").read_text()
    shutil.rmtree(tmp_path / "run/checkpoints/step_000000004")
    start(*keys, f"output={tmp_path / 'run'}")
    again = load_file(weights_file(tmp_path / "run"))
    assert all(torch.equal(again[name], value) for name, value in after.items())
    model = create_hiera("hiera_tiny_16x224", drop_path_rate=0.9, stages=(1, 1, 1, 1))
    model.freeze(4)
    model.train()
    assert not any(block.training for block in model.blocks) and model.head.training
    with pytest.raises(UserError, match=r"train\.freeze_stages=5 must be from 0 to 4"):
        start(*keys, "train.freeze_stages=5", f"output={tmp_path / 'other'}")
