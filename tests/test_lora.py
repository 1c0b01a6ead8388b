"""LoRA: beside layers that stay as they are, merged into what is kept, resumed exactly."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from conftest import SHORT, start
from run_folders import rows, state
from safetensors.torch import load_file

from hiera_video.models import create_hiera, load_weights
from hiera_video.models.lora import Lora, LoraLinear
from hiera_video.models.weights import weights_file

SMALL = dict(embed_dim=16, num_heads=1, stages=(1, 1, 2, 1), input_size=(8, 64, 64), num_classes=5)
SMALL["head_init_scale"] = 1.0
BLOCK_LAYERS = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")


def test_merged_weights_compute_the_same():
    torch.manual_seed(0)
    model = create_hiera("hiera_tiny_16x224", **SMALL).eval()
    clip = torch.randn(2, 3, 8, 64, 64)
    before = model(clip)
    lora = Lora(rank=4, alpha=6.0)
    model.freeze(1)
    lora.add_to(model, seed=0)
    assert torch.equal(model(clip), before), "B begins at zero"
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    factors = {name for name in trained if "lora_" in name}
    assert len(factors) == 4 * 4 * 2, "four blocks of five, four layers, A and B"
    assert all(name.startswith(("norm.", "head.")) for name in trained - factors)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_b"):
            torch.nn.init.normal_(parameter, std=0.2)
    plain = create_hiera("hiera_tiny_16x224", **SMALL).eval()
    load_weights(plain, lora.merged(model.state_dict()))
    assert (model(clip) - before).abs().max() > 0.1
    torch.testing.assert_close(plain(clip), model(clip), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_gradients_are_those_of_the_sum(precision):
    """W x + s B A x by plain operators, with and without autocast."""
    torch.manual_seed(0)
    base = torch.nn.Linear(24, 40)
    base.requires_grad_(False)
    layer = LoraLinear(base, rank=4, scale=1.5, draws=torch.Generator().manual_seed(0))
    torch.nn.init.normal_(layer.lora_b)
    x = torch.randn(3, 7, 24, requires_grad=True)
    found = []
    for plain in (False, True):
        for tensor in (x, layer.lora_a, layer.lora_b):
            tensor.grad = None
        with torch.autocast("cpu", torch.bfloat16, enabled=precision != torch.float32):
            if plain:
                y = base(x) + 1.5 * F.linear(F.linear(x, layer.lora_a), layer.lora_b)
            else:
                y = layer(x)
            y.square().sum().backward()
        found.append([y, x.grad, layer.lora_a.grad, layer.lora_b.grad])
    far = 1e-4 if precision == torch.float32 else 0.03
    for ours, theirs in zip(*found):
        assert (ours - theirs).norm() < far * theirs.norm()


@pytest.mark.parametrize("ema", [0.0, 0.6])
def test_a_run_with_lora(shapes, weights, tmp_path, ema):
    """Only the blocks' layers and what follows them move; cut off, it ends with the same bytes; its
    checkpoints are plain ones; validation sees the merged weights.
    """
    before = load_file(weights_file(weights))
    keys = [f"data.root={shapes}", f"init.weights={weights}", "train.lora_rank=2", *SHORT]
    keys += ["stages=[train,test]", "optim.lr=0.02", "train.val_every=2", f"train.ema={ema}"]
    keys += ["train.freeze_stages=1", "train.save_every=0.25", "train.keep=99", "test.clips=1"]
    keys += ["test.crops=1"]
    run = tmp_path / "run"
    start(*keys, f"output={run}")
    after = load_file(weights_file(run))
    assert after.keys() == before.keys()
    for name, value in after.items():
        moved = name.endswith(BLOCK_LAYERS) and not name.startswith("blocks.0.")
        assert torch.equal(value, before[name]) != (moved or name.startswith(("norm.", "head.")))
    log = (run / "log.txt").read_text()
    assert "train.freeze_stages and train.lora_rank: " in log and "parameters are trained" in log
    tested = (run / "test/predictions.csv").read_bytes()
    assert rows(run, "val")
    half = tmp_path / "half"
    shutil.copytree(run, half, symlinks=True)
    for late in sorted((half / "checkpoints").glob("step_*"))[2:]:
        shutil.rmtree(late)
    shutil.rmtree(half / "test")
    start(*keys, f"output={half}")
    assert state(half) == state(run)
    assert (half / "test/predictions.csv").read_bytes() == tested
