"""Masked autoencoding of every family, in each of the ways of the paper's Figure 4: what is hidden
stays hidden. Targets, and tubes.
"""

import math

import pytest
import torch
from golden_weights import draw_weights

from hiera_video.models import create_model, load_weights
from hiera_video.models.targets import Target, hog
from hiera_video.models.zoo import encoder_arguments

SIZES = dict(
    embed_dim=24,
    num_heads=1,
    stages=(1, 2, 2, 1),
    input_size=(8, 64, 96),
    decoder_embed_dim=32,
    decoder_depth=1,
    decoder_num_heads=2,
)
VIT = {**SIZES, "stages": (3,), "num_heads": 2}
# Figure 4: b and e delete, c keeps mask tokens, d separates and pads.
WAYS = {
    **{f"b, step {step}": ("mvit_v2_base_16x224", dict(step=step)) for step in "de"},
    **{
        f"c, step {step}": ("mvit_v2_base_16x224", dict(step=step, masking="tokens"))
        for step in ("mvitv2", *"abcdef")
    },
    **{f"d, step {step}": ("mvit_v2_base_16x224", dict(step=step)) for step in "abc"},
    "e, step f": ("mvit_v2_base_16x224", dict(step="f")),
    "e, Hiera": ("hiera_base_16x224", {}),
    "c, Hiera": ("hiera_base_16x224", dict(masking="tokens")),
    "b, ViT": ("vit_base_16x224", {}),
    "c, ViT": ("vit_base_16x224", dict(masking="tokens")),
    "b, MAE-ST": (
        "vit_base_16x224",
        dict(sincos_pos_embed=False, sep_pos_embed=True, cls_token=True, target="pixel_mae_st"),
    ),
}


def autoencoder(way):
    name, arguments = WAYS[way]
    sizes = VIT if name.startswith("vit") else SIZES
    return draw_weights(create_model(f"mae_{name}", **sizes, **arguments))


def draws(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def hidden_pixels(model, keep):
    """bool [B, 1, T, H, W]"""
    keep = keep.unflatten(1, model.units)
    for d, n in enumerate(model.units):
        keep = keep.repeat_interleave(model.input_size[d] // n, dim=1 + d)
    return ~keep[:, None]


@pytest.mark.parametrize("way", WAYS)
def test_hidden_pixels_never_reach_visible_tokens(way):
    """Nor a prediction, to the bit."""
    model = autoencoder(way)
    clip = draws(2, 3, *model.input_size, seed=1)
    noise = torch.rand(2, model.num_units, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        before = model(clip, 0.75, noise=noise)
        hidden = hidden_pixels(model, before.keep)
        changed = torch.where(hidden, draws(*clip.shape, seed=3), clip)
        after = model(changed, 0.75, noise=noise)
        visible = before.keep.nonzero()[:, 1].view(2, -1)
        tokens = [model.forward_encoder(x, before.keep, visible) for x in (clip, changed)]
    assert torch.equal(before.keep, after.keep)
    assert torch.equal(*tokens)
    assert torch.equal(before.pred, after.pred)
    assert not torch.equal(before.target, after.target)


def test_pixels_that_are_shown_do_reach_predictions():
    """Or the test above would say nothing."""
    model = autoencoder("d, step a")
    clip = draws(2, 3, *model.input_size, seed=1)
    noise = torch.rand(2, model.num_units, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        before = model(clip, 0.75, noise=noise)
        hidden = hidden_pixels(model, before.keep)
        changed = torch.where(hidden, clip, draws(*clip.shape, seed=3))
        assert not torch.equal(before.pred, model(changed, 0.75, noise=noise).pred)


@pytest.mark.parametrize("way", ["d, step a", "c, step mvitv2", "c, Hiera", "b, MAE-ST"])
def test_every_parameter_is_trained(way):
    model = autoencoder(way)
    model(draws(2, 3, *model.input_size, seed=1), 0.75).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(step="a", masking="delete"), "kernels that overlap"),
        (dict(step="mvitv2", masking="separate"), "cls_token"),
        (dict(step="mvitv2", masking="separate", cls_token=False), "rel_pos"),
        (dict(step="g"), "one of mvitv2, a, b, c, d, e, f"),
        (dict(step="a", kv_pool=False), "kv_pool=False"),
        (dict(step="c", pool_mode="conv", pool_overlap=False), "pool_mode='max'"),
    ],
)
def test_what_cannot_be_is_said(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_model("mae_mvit_v2_base_16x224", **SIZES, **arguments)


def test_separate_is_for_mvit():
    with pytest.raises(ValueError, match="masking='separate' is for MViTv2"):
        create_model("mae_hiera_base_16x224", **SIZES, masking="separate")


def test_one_scale_alone():
    """Table 3a: without the multi-scale decoder it reads the last stage."""
    one = create_model("mae_hiera_base_16x224", **SIZES, multi_scale=False)
    assert not one.multi_scale_fusion_heads
    one(draws(1, 3, *one.input_size, seed=1), 0.75).loss.backward()


def test_the_encoder_of_tokens_is_the_one_that_was_trained():
    """Of a step that separates by itself: with mask tokens it saw the whole grid."""
    arguments = dict(SIZES, step="a", masking="tokens")
    mae = draw_weights(create_model("mae_mvit_v2_base_16x224", **arguments))
    kept = encoder_arguments("mae_mvit_v2_base_16x224", arguments)
    encoder = create_model("mvit_v2_base_16x224", **{**kept, "q_pool": 2, "num_classes": 1})
    load_weights(encoder, mae.state_dict(), strict=False)
    clip = draws(1, 3, *mae.input_size, seed=1)
    with torch.no_grad():
        for actual, expected in zip(
            encoder.encode(encoder.embed(clip)), mae.encode(mae.embed(clip)), strict=True
        ):
            torch.testing.assert_close(actual, expected)


# -- tubes


def test_tubes_hide_the_same_places_at_all_times():
    model = autoencoder("b, ViT")
    times, height, width = model.units
    noise = torch.rand(3, height * width, generator=torch.Generator().manual_seed(4))
    visible = model.draw_visible(noise, 0.9)
    places = visible.view(3, times, -1)
    shown = height * width - int(0.9 * height * width)  # VideoMAE's rounding
    assert places.shape[2] == shown
    assert (places % (height * width)).eq(places[:, :1]).all()
    lowest = noise.argsort(dim=1)[:, :shown].sort(dim=1).values
    assert places[:, 0].equal(lowest)


# -- targets


def test_histograms_follow_directions():
    """An edge has its mass in the bin of its direction, whichever side is bright."""
    ramp = torch.arange(16.0)
    upright = ramp.expand(1, 1, 16, 16)
    flat = upright.mT
    inner = (slice(None), slice(None), slice(None), slice(0, 1), slice(0, 1))
    across = hog(upright)[inner].flatten().argmax()
    down = hog(flat)[inner].flatten().argmax()
    assert across != down
    assert hog(-upright)[inner].flatten().argmax() == across
    bins = hog(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(5)))
    assert bins.shape == (2, 3, 9, 4, 4)
    torch.testing.assert_close(bins.norm(dim=2), torch.ones(2, 3, 4, 4))
    assert torch.equal(hog(torch.ones(1, 1, 16, 16)), torch.zeros(1, 1, 9, 2, 2))


def test_histograms_are_counted_one_pixel_at_a_time():
    """The same in loops, as the definition says it: Sobel, 9 bins of half a turn, cells of 8."""
    image = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1), mode="reflect")[0, 0]
    counts = torch.zeros(9, dtype=torch.float64)
    for y in range(8):
        for x in range(8):
            box = padded[y : y + 3, x : x + 3]
            gx = (box[:, 0] - box[:, 2]) @ torch.tensor([1.0, 2, 1], dtype=torch.float64)
            gy = (box[0] - box[2]) @ torch.tensor([1.0, 2, 1], dtype=torch.float64)
            angle = math.atan2(gx, gy) / math.pi * 9
            counts[math.floor(angle) % 9] += math.hypot(gx, gy)
    torch.testing.assert_close(hog(image)[0, 0, :, 0, 0], counts / counts.norm())


@pytest.mark.parametrize("kind", ["pixel", "pixel_mae_st", "pixel_videomae", "hog"])
def test_targets_are_those_of_their_place(kind):
    """Patch k in the order (t, h, w) is made of its own pixels alone."""
    target = Target(kind, 16, (2, 4, 4), 3)
    clip = draws(1, 3, 8, 32, 48, seed=7)
    patches = target.patches(clip)
    assert patches.shape == (1, 4 * 2 * 3, target.width)
    blank = clip.clone()
    k = (1 * 2 + 1) * 3 + 2  # t 1, h 1, w 2
    frames = torch.linspace(0, 7, 4).long()[1] if kind == "pixel_mae_st" else slice(2, 4)
    blank[:, :, frames, 17:31, 33:47] = 0
    changed = (target.patches(blank) != patches).any(-1).nonzero()[:, 1]
    assert changed.tolist() == [k]


def test_frames_of_mae_st_are_spread_to_the_last():
    clip = torch.arange(16.0).view(1, 1, 16, 1, 1).expand(1, 3, 16, 16, 16)
    seen = Target("pixel_mae_st", 16, (2, 16, 16), 3).patches(clip)[0, :, 0]
    assert seen.tolist() == [0, 2, 4, 6, 8, 10, 12, 15]
    assert Target("pixel", 16, (2, 16, 16), 3).patches(clip)[0, :, 0].tolist() == list(
        range(0, 16, 2)
    )


def test_noise_of_another_width_is_refused():
    model = autoencoder("b, ViT")
    with pytest.raises(ValueError, match="noise must have"):
        model(draws(2, 3, *model.input_size, seed=1), 0.75, noise=torch.rand(2, 7))


def test_histograms_are_float32_under_autocast():
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(8))
    with torch.autocast("cpu", torch.bfloat16):
        cells = hog(image)
    assert cells.dtype == torch.float32 and torch.equal(cells, hog(image))


def test_a_vit_with_window_positions_has_a_decoder_that_knows_places():
    model = create_model(
        "mae_vit_base_16x224", **VIT, sincos_pos_embed=False, abs_win_pos_embed=True
    )
    assert model.decoder_table().shape == (math.prod(model.patch_grid), 32)
