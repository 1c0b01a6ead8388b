"""MViTv2 beside torchvision's and PyTorchVideo's, and its steps to Hiera."""

import pytest
import torch
import torchvision
from golden_weights import draw_weights
from other_models import OF_2021, SMALL, a_clip, assert_close, assert_same_gradients, with_one_eps
from torchvision.models.video.mvit import MSBlockConfig

from hiera_video.models import create_hiera, create_model, load_weights

CLIP = (8, 32, 64)


def torchvision_mvit():
    """mvit_v2_s, smaller: stages of 1, 2, 2 and 1 blocks, on clips of 8 x 64 x 64."""
    blocks = []
    dims = [(24, 24), (24, 48), (48, 48), (48, 96), (96, 96), (96, 192)]
    starts = (1, 3, 5)
    kv = 8
    for i, (dim, dim_out) in enumerate(dims):
        kv //= 2 if i in starts else 1
        blocks.append(
            MSBlockConfig(
                num_heads=dim_out // 24,
                input_channels=dim,
                output_channels=dim_out,
                kernel_q=[3, 3, 3],
                kernel_kv=[3, 3, 3],
                stride_q=[1, 2, 2] if i in starts else [1, 1, 1],
                stride_kv=[1, kv, kv],
            )
        )
    return torchvision.models.video.MViT(
        spatial_size=(64, 64),
        temporal_size=8,
        block_setting=blocks,
        residual_pool=True,
        residual_with_cls_embed=False,
        rel_pos_embed=True,
        proj_after_attn=True,
        num_classes=7,
    )


def assert_same_mvit(ours, theirs, clip):
    theirs = draw_weights(theirs).eval()
    report = load_weights(ours.eval(), theirs.state_dict())
    assert set(report.outcomes.values()) == {"loaded"}
    expected = theirs(clip)
    actual = ours(clip)
    assert_close(actual, expected)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    (expected * weight).sum().backward()
    (actual * weight).sum().backward()
    assert_same_gradients(ours, theirs)


def test_mvit_is_torchvisions():
    ours = create_model("mvit_v2_small_16x224", **SMALL, input_size=(8, 64, 64))
    assert_same_mvit(ours, torchvision_mvit(), a_clip(8, 64, 64))


def test_mvit_of_2021_is_pytorchvideos():
    """Absolute positions, channels that grow in the perceptron, queries pooled where the grid
    shrinks."""
    from pytorchvideo.models.vision_transformers import create_multiscale_vision_transformers

    theirs = create_multiscale_vision_transformers(
        spatial_size=(64, 64),
        temporal_size=8,
        depth=6,
        patch_embed_dim=24,
        num_heads=1,
        embed_dim_mul=[[1, 2.0], [3, 2.0], [5, 2.0]],
        atten_head_mul=[[1, 2.0], [3, 2.0], [5, 2.0]],
        pool_q_stride_size=[[1, 1, 2, 2], [3, 1, 2, 2], [5, 1, 2, 2]],
        pool_kv_stride_adaptive=[1, 8, 8],
        pool_kvq_kernel=[3, 3, 3],
        head_num_classes=7,
    )
    ours = create_model("mvit_v2_base_16x224", **SMALL, **OF_2021, input_size=(8, 64, 64))
    assert_same_mvit(ours, with_one_eps(theirs), a_clip(8, 64, 64))


def test_names_are_pyslowfasts():
    """Written out from its code: its files load as they are."""
    block = "norm1 attn.qkv attn.proj attn.norm_q attn.norm_k attn.norm_v norm2 mlp.fc1 mlp.fc2"
    layers = ["patch_embed.proj", "norm", "head.projection", "blocks.1.proj"]
    layers += [f"blocks.{k}.{layer}" for k in range(2) for layer in block.split()]
    expected = {f"{layer}.{what}" for layer in layers for what in ("weight", "bias")}
    expected |= {f"blocks.{k}.attn.pool_{x}.weight" for k in range(2) for x in "qkv"}
    expected |= {f"blocks.{k}.attn.rel_pos_{x}" for k in range(2) for x in "thw"}
    model = create_model(
        "mvit_v2_base_16x224",
        **{**SMALL, "stages": (1, 1)},
        q_pool=1,
        input_size=(8, 64, 64),
        mask_unit_attn=(True, False),
    )
    assert set(model.state_dict()) == expected | {"cls_token"}
    assert model.state_dict()["blocks.0.attn.pool_q.weight"].shape == (24, 1, 3, 3, 3)
    assert model.state_dict()["blocks.0.attn.rel_pos_h"].shape == (2 * 16 - 1, 24)


def test_relative_positions_without_a_matrix_of_them_are_the_plain_ones():
    """Channels that stand for the bias, against attention with the bias as it is written."""
    model = create_model("mvit_v2_base_16x224", **SMALL, input_size=(8, 64, 64))
    attention = draw_weights(model).blocks[1].attn
    generator = torch.Generator().manual_seed(3)
    q = torch.randn(2, 2, 1 + 4 * 16 * 16, 24, generator=generator)
    k, v = torch.randn(2, 2, 2, 1 + 4 * 4 * 4, 24, generator=generator)
    attention._q_box, attention._k_box = (4, 8, 8), (4, 4, 4)
    q = q[:, :, : 1 + 4 * 8 * 8]
    bias = attention._bias(attention._distance_terms(q))
    expected = torch.softmax(q @ k.mT / 24**0.5 + bias, -1) @ v
    torch.testing.assert_close(
        attention._attend_with_distances(q, k, v), expected, rtol=1e-4, atol=1e-5
    )


def test_mvit_weights_of_another_size_are_lengthened():
    small = create_model("mvit_v2_base_16x224", **SMALL, input_size=(8, 64, 64))
    large = create_model("mvit_v2_base_16x224", **SMALL, input_size=(16, 128, 128))
    report = load_weights(large, small.state_dict())
    assert "blocks.0.attn.rel_pos_h" in report.names("interpolated")
    assert large.blocks[0].attn.rel_pos_h[0].equal(small.blocks[0].attn.rel_pos_h[0])


# -- steps from MViTv2 to Hiera


HIERARCHY = dict(SMALL, input_size=CLIP)


def test_the_last_step_is_hiera():
    hiera = draw_weights(create_hiera("hiera_base_16x224", **HIERARCHY))
    last = create_model("mvit_v2_base_16x224", **HIERARCHY, step="f")
    last.load_state_dict(hiera.state_dict())
    clip = a_clip(*CLIP)
    torch.testing.assert_close(last(clip), hiera(clip), rtol=1e-4, atol=1e-5)
    for actual, expected in zip(last.feature_maps(clip), hiera.feature_maps(clip), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_the_last_step_is_hieras_autoencoder():
    sizes = dict(HIERARCHY, decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=2)
    del sizes["num_classes"]
    hiera = draw_weights(create_model("mae_hiera_base_16x224", **sizes))
    last = create_model("mae_mvit_v2_base_16x224", **sizes, step="f")
    last.load_state_dict(hiera.state_dict())
    noise = torch.rand(2, 8, generator=torch.Generator().manual_seed(4))
    for model in (hiera, last):
        model(a_clip(*CLIP), 0.5, noise=noise).loss.backward()
    for ours, theirs in zip(last.parameters(), hiera.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("step", ["mvitv2", "a", "b", "c", "d", "e"])
def test_every_step_takes_one_thing_away(step):
    """A model of each step differs from the one before in what it computes or what it has."""
    after = dict(zip(["mvitv2", "a", "b", "c", "d", "e"], "abcdef"))[step]
    one, two = (create_model("mvit_v2_base_16x224", **HIERARCHY, step=s) for s in (step, after))
    draw_weights(one)
    draw_weights(two)
    shared = one.state_dict()
    two.load_state_dict({k: shared.get(k, v) for k, v in two.state_dict().items()})
    clip = a_clip(*CLIP)
    assert (one.eval()(clip) - two.eval()(clip)).abs().max() > 1e-3


def test_disjoint_kernels_are_max_pools_of_torch():
    model = create_model("mvit_v2_base_16x224", **HIERARCHY, step="e")
    pool = model.blocks[0].attn.pool_k
    x = a_clip(8, 8, batch=2)[:, :, None].movedim(1, -1)  # [2, 1, 8, 8, 3], a box each
    expected = torch.nn.functional.max_pool3d(x.movedim(-1, 1), pool.kernel, pool.stride)
    assert pool(x.flatten(1, 3)).equal(expected.flatten(2).mT)


@pytest.mark.parametrize("step", ["a", "b"])
def test_a_unit_on_its_own_is_pooled_like_any_grid_among_zeros(step):
    """In one that is a single time thick, the kernel's middle alone meets anything but padding."""
    model = create_model("mvit_v2_base_16x224", **HIERARCHY, step=step)
    pool = model.blocks[0].attn.pool_q
    x = torch.randn(3, 64, 24, generator=torch.Generator().manual_seed(5))
    padded = torch.nn.functional.pad(x.mT.unflatten(2, (1, 8, 8)), [1] * 6)
    if step == "a":
        full = torch.nn.functional.conv3d(padded, pool.weight, groups=24)
    else:
        full = torch.nn.functional.max_pool3d(padded, 3, 1)
    torch.testing.assert_close(pool(x), full.flatten(2).mT)


def test_image_mvit_is_pyslowfasts_layout():
    """Without a class token, kernels of one frame, norm before the mean."""
    sizes = dict(SMALL, input_size=(64, 64))
    model = draw_weights(create_model("mvit_v2_base_224", **sizes)).eval()
    assert "cls_token" not in model.state_dict()
    theirs = {
        name: tensor.unsqueeze(2) if ".attn.pool_" in name else tensor
        for name, tensor in model.state_dict().items()
    }
    fresh = create_model("mvit_v2_base_224", **sizes).eval()
    assert load_weights(fresh, theirs).share_loaded == 1
    image = a_clip(64, 64)
    tokens = model.encode(model.embed(image))[-1]
    expected = model.head(model.norm(tokens).mean((1, 2)))
    torch.testing.assert_close(fresh(image), expected)


@pytest.mark.parametrize("step", ["mvitv2", "a", "b"])
def test_image_weights_are_inflated(step):
    """A still video then has the image's pooling, in the middle of time."""
    image = draw_weights(create_model("mvit_v2_base_224", **SMALL, input_size=(64, 64), step=step))
    video = create_model(
        "mvit_v2_base_16x224", **SMALL, input_size=(8, 64, 64), step=step, cls_token=False
    )
    report = load_weights(video, image.state_dict())
    assert not report.names("re-initialised") and not report.names("unused")
    inflated = report.names("inflated")
    assert "patch_embed.proj.weight" in inflated
    assert ("blocks.0.attn.pool_q.weight" in inflated) == (step != "b")
    assert ("blocks.0.attn.rel_pos_t" in inflated) == (step == "mvitv2")


@pytest.mark.parametrize("stride", [(1, 0, 0), (1, 7, 7), (1, 14, 14), (8, 8)])
def test_strides_that_do_not_come_out_even(stride):
    with pytest.raises(ValueError, match="kv_stride"):
        create_model("mvit_v2_base_16x224", **SMALL, input_size=(8, 224, 224), kv_stride=stride)
