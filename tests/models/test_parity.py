"""Live parity with the official implementation on random weights: outputs, and every parameter's
gradient.
"""

import pytest
import torch
from golden_weights import draw_weights

from hiera_video.models import create_hiera, create_hiera_mae

official = pytest.importorskip("hiera.hiera", reason="hiera-transformer is not installed")
official_mae = pytest.importorskip("hiera.hiera_mae", reason="hiera-transformer is not installed")

VIDEO = dict(
    input_size=(8, 64, 96),
    embed_dim=24,
    num_heads=1,
    stages=(1, 2, 3, 1),
    q_stride=(1, 2, 2),
    mask_unit_size=(1, 8, 8),
    patch_kernel=(3, 7, 7),
    patch_stride=(2, 4, 4),
    patch_padding=(1, 3, 3),
    sep_pos_embed=True,
)
IMAGE = dict(input_size=(96, 64), embed_dim=24, num_heads=1, stages=(1, 2, 3, 1))
GEOMETRIES = {"video": ("hiera_base_16x224", VIDEO), "image": ("hiera_base_224", IMAGE)}
DECODER = dict(decoder_embed_dim=48, decoder_depth=2, decoder_num_heads=4)


def assert_same_gradients(ours, theirs):
    theirs = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        expected = theirs[name].grad
        difference = parameter.grad - theirs[name].grad
        # the keys' third is zero up to rounding: softmax ignores a shift of all keys
        if name.endswith("qkv.bias"):
            third = len(expected) // 3
            assert difference[third : 2 * third].abs().max() < 1e-5, name
            rest = torch.cat([torch.arange(third), torch.arange(2 * third, 3 * third)])
            expected = expected[rest]
            difference = difference[rest]
        assert difference.norm() <= 1e-3 * expected.norm(), name


@pytest.mark.parametrize("kind", GEOMETRIES)
def test_classifier(kind):
    name, arguments = GEOMETRIES[kind]
    theirs = draw_weights(official.Hiera(**arguments, num_classes=7))
    ours = create_hiera(name, **arguments, num_classes=7)
    ours.load_state_dict(theirs.state_dict())
    clip = torch.randn(2, 3, *arguments["input_size"], generator=torch.Generator().manual_seed(1))

    theirs.train(), ours.train()  # in eval the official head gives probabilities
    expected = theirs(clip)
    actual = ours(clip)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    (expected * weight).sum().backward()
    (actual * weight).sum().backward()
    assert_same_gradients(ours, theirs)

    with torch.no_grad():
        maps = theirs(clip, return_intermediates=True)[1]
        for actual, expected in zip(ours.feature_maps(clip), maps, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            ours.eval()(clip).softmax(-1), theirs.eval()(clip), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("kind", GEOMETRIES)
def test_autoencoder(kind):
    name, arguments = GEOMETRIES[kind]
    theirs = draw_weights(official_mae.MaskedAutoencoderHiera(**arguments, q_pool=2, **DECODER))
    ours = create_hiera_mae(name, **arguments, **DECODER)
    ours.load_state_dict(theirs.state_dict())
    clip = torch.randn(2, 3, *arguments["input_size"], generator=torch.Generator().manual_seed(1))
    keep = torch.zeros(2, ours.num_units, dtype=torch.bool)
    for row in keep:
        row[
            torch.randperm(ours.num_units, generator=torch.Generator().manual_seed(3))[
                : ours.num_units // 3
            ]
        ] = True

    loss, pred, label, _ = theirs(clip, mask=keep)
    out = ours(clip, keep=keep)
    torch.testing.assert_close(out.loss, loss, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.pred, pred, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.target, label, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        (out.pred - out.target) ** 2, (pred - label) ** 2, rtol=1e-4, atol=1e-4
    )
    loss.backward()
    out.loss.backward()
    assert_same_gradients(ours, theirs)


@pytest.mark.parametrize(
    "arguments", [dict(q_pool=2), dict(q_pool=1), dict(mask_unit_attn=(True, False, False, False))]
)
def test_other_arguments(arguments):
    theirs = draw_weights(official.Hiera(**VIDEO, num_classes=7, **arguments))
    ours = create_hiera("hiera_base_16x224", **VIDEO, num_classes=7, **arguments)
    ours.load_state_dict(theirs.state_dict())
    clip = torch.randn(1, 3, *VIDEO["input_size"], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours(clip), theirs.train()(clip), rtol=1e-4, atol=1e-5)
