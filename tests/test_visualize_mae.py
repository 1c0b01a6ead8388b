"""Reconstructions: what was visible stays, what is predicted is the model's, and the two kinds
differ as they say.
"""

import numpy as np
import torch
from conftest import PRETRAIN, SHORT
from PIL import Image

from hiera_video.models import create_hiera_mae
from hiera_video.pictures.reconstruct import reconstruct

MEAN = (0.45, 0.45, 0.45)
STD = (0.225, 0.225, 0.225)


def model():
    torch.manual_seed(0)
    arguments = dict(
        input_size=(8, 64, 64),
        embed_dim=16,
        stages=(1, 1, 1, 1),
        decoder_embed_dim=32,
        decoder_depth=1,
    )
    return create_hiera_mae("mae_hiera_tiny_16x224", **arguments, decoder_num_heads=4).eval()


def test_pictures_are_what_they_say():
    clip = (torch.rand(1, 3, 8, 64, 64, generator=torch.Generator().manual_seed(1)) - 0.45) / 0.225
    clip[..., 32:] = (clip[..., 32:] * 0.1) + 1  # the right half is bright and smooth
    got = reconstruct(model(), clip, mask_ratio=0.5, seed=3, mean=MEAN, std=STD)
    frames = ((clip[0, :, ::2] * 0.225 + 0.45).clamp(0, 1) * 255).round().byte().permute(1, 2, 3, 0)
    assert torch.equal(got.original, frames)
    hidden = (got.masked == 128).all(-1)
    assert abs(hidden.float().mean().item() - 0.5) < 0.05
    for name in ("masked", "honest", "true"):
        assert torch.equal(getattr(got, name)[~hidden], frames[~hidden]), name
    right = hidden[:, :, 32:]
    level = frames[:, :, 32:][right].float().mean()
    assert abs(got.true[:, :, 32:][right].float().mean() - level) < 12, (
        "the true level of every patch is put back"
    )
    assert not torch.equal(got.honest[hidden], got.true[hidden])
    again = reconstruct(model(), clip, mask_ratio=0.5, seed=3, mean=MEAN, std=STD)
    assert all(torch.equal(a, b) for a, b in zip(got[:4], again[:4]))


def test_a_perfect_prediction_gives_the_picture_back(monkeypatch):
    autoencoder = model()
    monkeypatch.setattr(
        autoencoder,
        "forward_decoder",
        lambda x, visible, hidden: autoencoder.patch_targets(clip, hidden),
    )
    clip = torch.randn(1, 3, 8, 64, 64, generator=torch.Generator().manual_seed(1)) * 0.5
    got = reconstruct(autoencoder, clip, mask_ratio=0.9, seed=0, mean=MEAN, std=STD)
    assert got.loss < 1e-6
    assert (got.true.int() - got.original.int()).abs().max() <= 1


def test_tool(shapes, tmp_path, tool):
    common = ["--cfg", PRETRAIN, f"data.root={shapes}", "train.val_every=0", *SHORT]
    tool("tools/run_net.py", *common, f"output={tmp_path / 'mae'}")
    video = sorted(shapes.rglob("*.mp4"))[0]
    for output in ("mae.png", "mae.mp4"):
        args = [
            "--weights",
            tmp_path / "mae",
            "--output",
            tmp_path / output,
            "--mask-ratio",
            "0.75",
            video,
        ]
        done = tool("tools/visualize_mae.py", *common[:2], *args, *SHORT)
        assert "at mask ratio 0.75" in done.stdout
    assert (
        np.asarray(Image.open(tmp_path / "mae.png")).std() > 10
        and (tmp_path / "mae.mp4").stat().st_size > 500
    )
    gone = ["--weights", tmp_path / "mae", "gone.mp4"]
    assert (
        "no video gone.mp4"
        in tool("tools/visualize_mae.py", *common[:2], *gone, *SHORT, check=2).stderr
    )
    wrong = ["--cfg", "tests/configs/finetune.yaml", "--weights", tmp_path / "mae", video]
    assert "task=pretrain" in tool("tools/visualize_mae.py", *wrong, check=2).stderr
