"""What a user of the models relies on, beside the figures."""

import itertools
import subprocess
import sys

import pytest
import torch

from hiera_video.models import create_hiera, create_hiera_mae, list_models, tokens
from hiera_video.models.baselines import PYTORCHVIDEO_MODELS, create_pytorchvideo
from hiera_video.models.flops import count_macs, count_parameters
from hiera_video.models.masking import draw_visible

SMALL = dict(embed_dim=24, num_heads=1, stages=(1, 2, 2, 1), input_size=(8, 64, 64))
DECODER = dict(decoder_embed_dim=48, decoder_depth=2, decoder_num_heads=4)


@pytest.mark.parametrize(
    "unit, stride, pools",
    [((1, 8, 8), (1, 2, 2), 3), ((2, 4, 4), (2, 2, 2), 1), ((8, 8), (2, 2), 2)],
)
def test_token_order_is_undone(unit, stride, pools):
    grid = tuple(2 * u for u in unit)
    x = torch.randn(2, *grid, 5)
    units = tokens.to_units(x, unit, stride, pools)
    assert torch.equal(tokens.to_spatial(units, grid, unit, stride, pools), x)


def test_pooling_in_unit_order_is_max_pooling_in_space():
    x = torch.randn(2, 4, 16, 24, 5)
    pooled = tokens.to_units(x, (1, 8, 8), (1, 2, 2), 3).unflatten(2, (4, -1)).amax(2)
    expected = torch.nn.functional.max_pool3d(x.movedim(-1, 1), (1, 2, 2)).movedim(1, -1)
    assert torch.equal(tokens.to_spatial(pooled, (4, 8, 12), (1, 4, 4), (1, 2, 2), 2), expected)


def test_hidden_pixels_never_reach_visible_tokens():
    mae = create_hiera_mae("hiera_tiny_16x224", **SMALL, **DECODER).eval()
    keep = torch.zeros(2, mae.num_units, dtype=torch.bool)
    keep[0, [0, 3, 9, 14]] = keep[1, [1, 2, 7, 15]] = True
    visible = keep.nonzero()[:, 1].view(2, 4)
    clip, other = torch.randn(2, 2, 3, 8, 64, 64)
    shown = keep.view(2, 1, *mae.units)
    for d, n in enumerate((2, 32, 32)):
        shown = shown.repeat_interleave(n, dim=2 + d)
    changed = torch.where(shown, clip, other)
    with torch.no_grad():
        encoded = mae.forward_encoder(clip, keep, visible)
        assert torch.equal(mae.forward_encoder(changed, keep, visible), encoded)
        assert not torch.equal(mae.forward_encoder(other, keep, visible), encoded)


def test_masks_are_drawn_as_published():
    visible = draw_visible(torch.rand(3, 392), 0.9)
    assert visible.shape == (3, 39)
    assert (visible.diff(dim=1) > 0).all()
    mae = create_hiera_mae("hiera_tiny_16x224", **SMALL, **DECODER)
    out = mae(torch.randn(2, 3, 8, 64, 64), mask_ratio=0.75)
    assert out.keep.sum(1).tolist() == [4, 4]
    assert out.pred.shape == out.target.shape == (2 * 12 * 4, 768)
    with pytest.raises(ValueError, match="same number"):
        mae(
            torch.randn(2, 3, 8, 64, 64),
            keep=torch.eye(16, dtype=torch.bool)[:2].logical_or(torch.arange(2)[:, None] == 0),
        )


def test_features_are_what_the_classifier_reads():
    model = create_hiera("hiera_tiny_16x224", **SMALL, num_classes=5).eval()
    clip = torch.randn(2, 3, 8, 64, 64)
    with torch.no_grad():
        features = model.features(clip)
        assert features.shape == (2, 192)
        torch.testing.assert_close(model.head.projection(features), model(clip))
        assert [tuple(m.shape[1:]) for m in model.feature_maps(clip)] == [
            (4, 16, 16, 24), (4, 8, 8, 48), (4, 4, 4, 96), (4, 2, 2, 192),
        ]  # fmt: skip


def test_maps_are_in_spatial_order():
    """A bright square at a known place changes the maps most at that place."""
    torch.manual_seed(0)
    model = create_hiera("hiera_tiny_16x224", **SMALL).eval()
    clip = torch.zeros(1, 3, 8, 64, 64)
    bright = clip.clone()
    bright[:, :, 4:6, 32:48, 16:32] = 3.0
    with torch.no_grad():
        for stage, (a, b) in enumerate(zip(model.feature_maps(clip), model.feature_maps(bright))):
            change = (b - a).norm(dim=-1)[0]  # [t, h, w]
            t, h, w = torch.unravel_index(change.argmax(), change.shape)
            cell = 4 * 2**stage  # pixels
            # the token of those frames, or the next, whose kernel reaches one frame back
            assert t in (2, 3)
            assert 32 - cell <= h * cell <= 47 and 16 - cell <= w * cell <= 31


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(input_size=(8, 60, 64)), "input_size: 60 along h"),
        (dict(embed_dim=25, num_heads=2), "num_heads"),
        (dict(mask_unit_size=(1, 4, 4)), "mask_unit_size"),
        (dict(q_pool=4), "q_pool=4"),
        (dict(embed_dims=24), "takes no argument 'embed_dims'; the nearest: embed_dim"),
        (dict(patch_stride=(2, 0, 2)), "patch_stride"),
        (dict(q_stride=2), "q_stride=2 must be a list"),
        (dict(num_classes=-1), "num_classes=-1"),
        (dict(global_pos_size=(16, 16)), "is for abs_win_pos_embed"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_hiera("hiera_base_16x224", **arguments)


@pytest.mark.parametrize("key", ["decoder_depth", "decoder_num_heads", "decoder_embed_dim"])
@pytest.mark.parametrize("value", [0, -96])
def test_a_decoder_has_blocks_heads_and_channels(key, value):
    with pytest.raises(ValueError, match=f"{key}={value}"):
        create_hiera_mae("mae_hiera_base_16x224", **{key: value})


def test_wrong_clip_and_wrong_name_are_refused():
    model = create_hiera("hiera_tiny_16x224", **SMALL)
    with pytest.raises(ValueError, match="input_size"):
        model(torch.zeros(1, 3, 16, 64, 64))
    with pytest.raises(ValueError, match="hiera_base_16x224"):
        create_hiera("hiera_giant_16x224")


def test_names():
    sizes = ("tiny", "small", "base", "base_plus", "large", "huge")
    expected = {
        f"{m}hiera_{s}_{c}" for m, s, c in itertools.product(("", "mae_"), sizes, ("224", "16x224"))
    }
    assert set(list_models()) == expected


def test_cost_of_base_is_the_papers():
    model = create_hiera("hiera_base_16x224")
    assert count_macs(model, torch.zeros(1, 3, 16, 224, 224)) / 1e9 == pytest.approx(102, rel=0.02)
    assert count_parameters(model) / 1e6 == pytest.approx(51, rel=0.02)


def test_cost_of_multi_head_attention_modules_is_counted():
    layer = torch.nn.TransformerEncoderLayer(32, 4, dim_feedforward=128, batch_first=True)
    tokens = 50
    dim = 32
    hidden = 128
    assert count_macs(layer, torch.zeros(1, tokens, dim)) == pytest.approx(
        tokens * (4 * dim**2 + 2 * dim * hidden) + 2 * tokens**2 * dim, rel=0.03
    )


@pytest.mark.parametrize("name", PYTORCHVIDEO_MODELS)
def test_pytorchvideo_models_give_logits_for_any_clip(name):
    pytest.importorskip("pytorchvideo")
    model = create_pytorchvideo(name, num_classes=5, input_size=(8, 64, 64)).eval()
    with torch.no_grad():
        logits = model(torch.randn(2, 3, 8, 64, 64))
        features = model.features(torch.randn(2, 3, 8, 64, 64))
    assert logits.shape == (2, 5) and features.ndim == 2
    assert not torch.allclose(logits.sum(1), torch.ones(2), atol=1e-3), "these are probabilities"


def test_importing_the_package_has_no_side_effects(tmp_path):
    """From any folder: nothing printed, no heavy module loaded, no file left."""
    heavy = "{'torch', 'decord', 'pytorchvideo'}"
    code = f"import hiera_video, sys; print(sorted({heavy} & set(sys.modules)))"
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert out.stdout == "[]\n" and out.stderr == ""
    assert not list(tmp_path.iterdir())
