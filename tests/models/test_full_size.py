"""The models of other codes at their published size: outputs, gradients, counts."""

import pytest
import torch
import torchvision
from golden_weights import draw_weights
from other_models import OF_2021, a_clip, assert_close, assert_same_gradients, with_one_eps

from hiera_video.commands.count_flops import PAPER
from hiera_video.models import create_hiera, create_model, load_weights
from hiera_video.models.flops import count_macs, count_parameters

# (GMACs, million parameters): the paper's, and of MViTv2-B PySlowFast's on clips of 32 frames.
PUBLISHED = {name: figures for name, figures in PAPER.items() if not name.startswith("hiera_")}
PUBLISHED["mvit_v2_base_16x224"] = (225, 51.2)


def published(name):
    frames = 32 if name == "mvit_v2_base_16x224" else 16
    return create_model(name, input_size=(frames, 224, 224))


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters(name):
    with torch.device("meta"):
        model = published(name)
    assert count_parameters(model) / 1e6 == pytest.approx(PUBLISHED[name][1], rel=0.02)


@pytest.mark.trial
@pytest.mark.parametrize("name", PUBLISHED)
def test_macs(name):
    model = published(name)
    macs = count_macs(model, torch.zeros(1, 3, *model.input_size))
    print(name, macs / 1e9, count_parameters(model) / 1e6)
    assert macs / 1e9 == pytest.approx(PUBLISHED[name][0], rel=0.02)


def full_size(name):
    """(ours, theirs, what theirs makes of a clip of ours)"""
    if name == "mvit_v2_s":
        theirs = torchvision.models.video.mvit_v2_s(weights=None)
        return create_model("mvit_v2_small_16x224"), theirs, theirs
    if name == "mvit_base_16x4":
        from pytorchvideo.models import hub

        theirs = with_one_eps(hub.mvit_base_16x4())
        ours = create_model("mvit_v2_base_16x224", **OF_2021, stages=(1, 2, 11, 2))
        return ours, theirs, theirs
    if name == "videomae_base":
        transformers = pytest.importorskip("transformers", reason="transformers is not installed")
        theirs = transformers.VideoMAEForVideoClassification(
            transformers.VideoMAEConfig(num_labels=400)
        )
        return (
            create_model("vit_base_16x224"),
            theirs,
            lambda clip: theirs(clip.transpose(1, 2)).logits,
        )
    timm = pytest.importorskip("timm", reason="timm is not installed")
    theirs = timm.create_model(name, pretrained=False)
    if name == "vit_base_patch16_224":
        return create_model("vit_base_224"), theirs, theirs
    small = name == "hiera_small_abswin_256"
    ours = create_hiera(
        f"hiera_{'small' if small else 'base'}_224",
        input_size=(256, 256),
        abs_win_pos_embed=True,
        global_pos_size=(16, 16) if small else (14, 14),
        use_expand_proj=not small,
    )
    return ours, theirs, theirs


@pytest.mark.trial
@pytest.mark.parametrize(
    "name",
    [
        "mvit_v2_s",
        "mvit_base_16x4",
        "videomae_base",
        "vit_base_patch16_224",
        "hiera_small_abswin_256",
        "hiera_base_abswin_256",
    ],
)
def test_at_full_size(name):
    """Logits and, of every parameter, gradients."""
    ours, theirs, forward = full_size(name)
    draw_weights(theirs).eval()
    assert load_weights(ours.eval(), theirs.state_dict()).share_loaded == 1
    clip = a_clip(*ours.input_size, batch=1)
    expected = forward(clip)
    actual = ours(clip)
    print(name, ((actual - expected).abs().max() / expected.abs().max()).item())
    assert_close(actual, expected)
    if "abswin" in name:
        return  # its scales of layers stand in our weights, so that gradients are others
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    (expected * weight).sum().backward()
    (actual * weight).sum().backward()
    assert_same_gradients(ours, theirs)
