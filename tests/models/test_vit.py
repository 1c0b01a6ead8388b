"""Plain ViT beside transformers' VideoMAE and timm's, and the names of the original codes."""

import pytest
import torch
from golden_weights import draw_weights
from other_models import VIDEOMAE, a_clip, assert_close, assert_same_gradients

from hiera_video.models import create_model, load_weights

VIT = dict(embed_dim=48, num_heads=3, stages=(2,), input_size=(4, 64, 64))


def transformers_videomae(**more):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    return transformers, transformers.VideoMAEConfig(
        **VIDEOMAE,
        image_size=64,
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


def test_mae_st_classifies_by_the_mean_of_its_places():
    sizes = dict(VIT, cls_token=True, sep_pos_embed=True, sincos_pos_embed=False)
    model = draw_weights(create_model("vit_base_16x224", **sizes))
    ends, token = model.encode_with_class(model.embed(a_clip(4, 64, 64)))
    expected = model.norm(ends[-1].mean((1, 2)))
    torch.testing.assert_close(model.features(a_clip(4, 64, 64)), expected)
    assert token.shape == (2, 48)


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
