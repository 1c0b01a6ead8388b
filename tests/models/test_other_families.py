"""MViTv2 and plain ViT beside the codes they are known from, on weights that are made there."""

import pytest
import torch
import torchvision
from golden_weights import draw_weights
from torchvision.models.video.mvit import MSBlockConfig

from hiera_video.models import create_hiera, create_model, load_weights
from hiera_video.models.flops import count_macs, count_parameters
from hiera_video.models.layouts import our_names

CLIP = (8, 32, 64)
SMALL = dict(embed_dim=24, num_heads=1, stages=(1, 2, 2, 1), num_classes=7)


def a_clip(*size, batch=2):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def assert_close(actual, expected, of=None):
    """Within 1e-4 of the largest value. of: the largest value, where it is that of others, too."""
    scale = expected.abs().max() if of is None else of
    assert (actual - expected).abs().max() <= 1e-4 * scale


def assert_same_gradients(ours, theirs):
    """Of every parameter; keys' biases, which change nothing, are zero up to rounding in both."""
    expected = our_names(
        {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None},
        ours.state_dict(),
    )
    largest = max(g.abs().max() for g in expected.values())
    for name, parameter in ours.named_parameters():
        idle = name.endswith(("qkv.bias", "norm_k.bias"))
        scale = largest if idle else expected[name].abs().max()
        assert_close(parameter.grad, expected[name], of=scale)


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


OF_2021 = dict(rel_pos=False, residual_pool=False, pool_everywhere="kv", dim_mul_in_att=False)


def with_one_eps(model):
    """1e-6, that of its blocks, also in its attention, where PyTorchVideo has 1e-5."""
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6
    return model


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


# -- plain ViT


VIT = dict(embed_dim=48, num_heads=3, stages=(2,), input_size=(4, 64, 64))


def transformers_videomae(**more):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    return transformers, transformers.VideoMAEConfig(
        image_size=64,
        num_frames=4,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=192,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=128,
        **more,
    )


def test_vit_is_transformers_videomae():
    transformers, config = transformers_videomae(num_labels=7)
    theirs = draw_weights(transformers.VideoMAEForVideoClassification(config)).eval()
    ours = create_model("vit_base_16x224", **VIT, num_classes=7).eval()
    assert load_weights(ours, theirs.state_dict()).share_loaded == 1
    clip = a_clip(4, 64, 64)
    with torch.no_grad():
        assert_close(ours(clip), theirs(clip.transpose(1, 2)).logits)
        tokens = theirs.videomae(clip.transpose(1, 2)).last_hidden_state
        assert_close(ours.feature_maps(clip)[0].flatten(1, 3), tokens)


def test_vit_autoencoder_is_transformers_videomae():
    transformers, config = transformers_videomae(use_mean_pooling=False)
    theirs = draw_weights(transformers.VideoMAEForPreTraining(config))
    ours = create_model(
        "mae_vit_base_16x224",
        **VIT,
        target="pixel_videomae",
        decoder_embed_dim=32,
        decoder_depth=2,
        decoder_num_heads=2,
    )
    assert load_weights(ours, theirs.state_dict()).share_loaded == 1
    clip = a_clip(4, 64, 64)
    noise = torch.rand(2, 16, generator=torch.Generator().manual_seed(6))
    out = ours(clip, 0.75, noise=noise)  # tubes: 16 places of 2 times
    assert out.keep.unflatten(1, (2, 16))[:, 0].equal(out.keep.unflatten(1, (2, 16))[:, 1])
    expected = theirs(clip.transpose(1, 2), bool_masked_pos=~out.keep)
    assert_close(out.loss, expected.loss)
    assert_close(out.pred, expected.logits.flatten(0, 1))
    out.loss.backward()
    expected.loss.backward()
    with torch.no_grad():
        ours.decoder_embed.bias.grad = torch.zeros_like(ours.decoder_embed.bias)  # theirs has none
    assert_same_gradients(ours, theirs)


def test_vit_of_images_is_timms():
    timm = pytest.importorskip("timm", reason="timm is not installed")
    theirs = draw_weights(
        timm.create_model(
            "vit_base_patch16_224",
            pretrained=False,
            embed_dim=48,
            num_heads=3,
            depth=2,
            img_size=64,
            num_classes=7,
        )
    ).eval()
    ours = create_model(
        "vit_base_224", embed_dim=48, num_heads=3, stages=(2,), input_size=(64, 64), num_classes=7
    ).eval()
    assert load_weights(ours, theirs.state_dict()).share_loaded == 1
    image = a_clip(64, 64)
    with torch.no_grad():
        assert_close(ours(image), theirs(image))
        assert_close(
            ours.features(image), theirs.forward_head(theirs.forward_features(image), True)
        )


def test_layouts_of_the_original_codes_load():
    """VideoMAE's own names, and MAE-ST's: written out from a model of ours, and read back."""
    arguments = dict(VIT, decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=2)
    videomae = draw_weights(create_model("mae_vit_base_16x224", **arguments))
    theirs = {}
    for name, tensor in videomae.state_dict().items():
        name = name.replace("encoder_norm.", "encoder.norm.")
        for ours, original in (
            ("decoder_embed.", "encoder_to_decoder."),
            ("decoder_blocks.", "decoder.blocks."),
            ("decoder_norm.", "decoder.norm."),
            ("decoder_pred.", "decoder.head."),
            ("blocks.", "encoder.blocks."),
            ("patch_embed.", "encoder.patch_embed."),
        ):
            if name.startswith(ours):
                name = original + name.removeprefix(ours)
        if name == "encoder_to_decoder.bias":
            continue
        if name.endswith("qkv.bias"):
            q, _, v = tensor.chunk(3)
            theirs |= {name.replace("qkv.bias", f"{x}_bias"): t for x, t in (("q", q), ("v", v))}
        else:
            theirs[name] = tensor
    fresh = create_model("mae_vit_base_16x224", **arguments)
    assert load_weights(fresh, {"model": theirs}).share_loaded == 1
    assert fresh.decoder_blocks[0].mlp.fc1.weight.equal(videomae.decoder_blocks[0].mlp.fc1.weight)
    assert fresh.decoder_embed.bias.count_nonzero() == 0

    of_st = dict(arguments, cls_token=True, sep_pos_embed=True, sincos_pos_embed=False)
    mae_st = draw_weights(create_model("mae_vit_base_16x224", **of_st))
    theirs = {}
    for name, tensor in mae_st.state_dict().items():
        name = name.replace("encoder_norm.", "norm.")
        if ".qkv." in name:
            parts = zip("qkv", tensor.chunk(3))
            theirs |= {name.replace(".qkv.", f".{x}."): part for x, part in parts}
        else:
            theirs[name] = tensor
    fresh = create_model("mae_vit_base_16x224", **of_st)
    assert load_weights(fresh, {"model": theirs}).share_loaded == 1
    assert all(torch.equal(t, mae_st.state_dict()[n]) for n, t in fresh.state_dict().items())
    # The classifier takes the encoder of either.
    of_st = {k: v for k, v in of_st.items() if "decoder" not in k}
    classifier = create_model("vit_base_16x224", **of_st, num_classes=7)
    report = load_weights(classifier, theirs, strict=False)
    assert set(report.names("re-initialised")) == {
        "head.projection.weight",
        "head.projection.bias",
    }
    assert classifier.norm.weight.equal(mae_st.encoder_norm.weight)


# -- positions that fit every resolution


@pytest.mark.parametrize("name", ["hiera_small_abswin_256", "hiera_base_abswin_256"])
def test_absolute_window_positions_are_timms(name):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    stages = dict(embed_dim=24, stages=(1, 2, 2, 1))
    theirs = draw_weights(timm.create_model(name, pretrained=False, num_classes=7, **stages)).eval()
    ours = create_hiera(
        "hiera_base_224",
        **stages,
        input_size=(256, 256),
        num_classes=7,
        abs_win_pos_embed=True,
        global_pos_size=theirs.pos_embed.shape[-2:],
        use_expand_proj=name != "hiera_small_abswin_256",
    ).eval()
    assert load_weights(ours, theirs.state_dict()).share_loaded == 1
    image = a_clip(256, 256, batch=1)
    with torch.no_grad():
        assert_close(ours(image), theirs(image))


def test_absolute_window_positions_fit_other_sizes_and_video():
    small = dict(SMALL, abs_win_pos_embed=True)
    image = draw_weights(create_hiera("hiera_base_224", **small, input_size=(96, 96)))
    wide = create_hiera("hiera_base_224", **small, input_size=(128, 192))
    report = load_weights(wide, image.state_dict())
    assert set(report.outcomes.values()) == {"loaded"}  # nothing has to be interpolated
    table = wide.position_table().view(32, 48, 24)
    parts = table[:8, :8] - table[8:16, 8:16]
    whole = torch.nn.functional.interpolate(
        image.pos_embed, (32, 48), mode="bicubic", antialias=True
    )[0].movedim(0, -1)
    torch.testing.assert_close(parts, whole[:8, :8] - whole[8:16, 8:16], rtol=1e-4, atol=1e-5)

    video = create_hiera("hiera_base_16x224", **small, input_size=(8, 64, 64))
    report = load_weights(video, image.state_dict())
    assert set(report.names("inflated")) == {"patch_embed.proj.weight", "pos_embed_temporal"}
    longer = create_hiera("hiera_base_16x224", **small, input_size=(16, 96, 64))
    report = load_weights(longer, video.state_dict())
    assert report.names("interpolated") == ["pos_embed_temporal"]
    longer(a_clip(16, 96, 64, batch=1)).sum().backward()
    assert longer.pos_embed_win.grad is not None


# -- all of them as published


# (GMACs, million parameters): paper Table 4; MViTv2-S and B of PySlowFast's model zoo, B on clips
# of 32 frames.
PUBLISHED = {
    "mvit_v2_small_16x224": (64, 34.5),
    "mvit_v2_base_16x224": (225, 51.2),
    "mvit_v2_large_16x224": (377, 218),
    "vit_base_16x224": (180, 87),
    "vit_large_16x224": (597, 305),
    "vit_huge_16x224": (1192, 633),
}


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


# -- what a review found


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


def test_mae_st_classifies_by_the_mean_of_its_places():
    sizes = dict(VIT, cls_token=True, sep_pos_embed=True, sincos_pos_embed=False)
    model = draw_weights(create_model("vit_base_16x224", **sizes))
    ends, token = model.encode_with_class(model.embed(a_clip(4, 64, 64)))
    expected = model.norm(ends[-1].mean((1, 2)))
    torch.testing.assert_close(model.features(a_clip(4, 64, 64)), expected)
    assert token.shape == (2, 48)


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


def test_two_tensors_of_one_name_do_not_hide_each_other():
    vit = create_model("vit_base_16x224", **VIT, num_classes=7)
    state = vit.state_dict()
    state["fc_norm.weight"] = torch.zeros(48)
    with pytest.raises(ValueError, match="unused: fc_norm"):
        load_weights(vit, state)
    assert vit.norm.weight.count_nonzero() == 48
    with pytest.raises(ValueError, match=r"blocks\.0\.attn\.q_bias"):
        state = vit.state_dict()
        state["blocks.0.attn.q_bias"] = torch.zeros(48)
        load_weights(vit, state)


@pytest.mark.parametrize("stride", [(1, 0, 0), (1, 7, 7), (1, 14, 14), (8, 8)])
def test_strides_that_do_not_come_out_even(stride):
    with pytest.raises(ValueError, match="kv_stride"):
        create_model("mvit_v2_base_16x224", **SMALL, input_size=(8, 224, 224), kv_stride=stride)
