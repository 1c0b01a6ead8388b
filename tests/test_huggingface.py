"""Weights in the folders of the official package and of transformers; live parity with both."""

import json

import pytest
import torch

import hiera_video
from hiera_video.models import create_hiera, load_weights

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
SMALL = dict(embed_dim=24, depths=[1, 1, 2, 1], num_heads=[1, 2, 4, 8], image_size=[64, 64])


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def saved(model, folder):
    """The model, with weights that leave nothing at zero or one, in a folder."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    return model.eval()


def test_image_classification(images, tmp_path):
    names = {0: "cat", 1: "dog", 2: "cow"}
    config = transformers.HieraConfig(**SMALL, num_labels=3, id2label=names)
    theirs = saved(transformers.HieraForImageClassification(config), tmp_path)
    ours = hiera_video.load(tmp_path, device="cpu")
    assert ours.classes == ["cat", "dog", "cow"]
    with torch.inference_mode():
        expected = theirs(images).logits
        torch.testing.assert_close(
            ours(images.to(ours.device)).cpu(), expected, rtol=1e-4, atol=1e-5
        )
    with pytest.raises(ValueError, match="takes images, not video"):
        ours.predict("x.mp4")


def test_pretraining(images, tmp_path):
    decoder = dict(decoder_hidden_size=32, decoder_depth=2, decoder_num_heads=4)
    config = transformers.HieraConfig(**SMALL, num_query_pool=2, **decoder)
    theirs = saved(transformers.HieraForPreTraining(config), tmp_path)
    ours = hiera_video.load(tmp_path, device="cpu").module
    noise = torch.rand(2, ours.num_units, generator=torch.Generator().manual_seed(1))
    embeddings = theirs.hiera.embeddings.patch_embeddings
    keep, _ = embeddings.random_masking(images, noise)
    with torch.inference_mode():
        expected = theirs(images, noise=noise).loss
        assert float(ours(images, keep=keep).loss) == pytest.approx(float(expected), rel=1e-4)


def test_the_encoder_alone(images, tmp_path):
    """It has no classifier: `load` says so; features are its pooled output."""
    theirs = saved(transformers.HieraModel(transformers.HieraConfig(**SMALL)), tmp_path)
    with pytest.raises(ValueError, match="re-initialised: head"):
        hiera_video.load(tmp_path)
    small = dict(embed_dim=24, stages=(1, 1, 2, 1), input_size=(64, 64))
    ours = create_hiera("hiera_base_224", **small, num_classes=7)
    load_weights(ours, tmp_path, strict=False)
    with torch.inference_mode():
        expected = theirs(images).pooler_output
        torch.testing.assert_close(ours.eval().features(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["classifier", "autoencoder"])
def test_official_folders(tmp_path, name):
    """What the official package saves, and what it reads."""
    import hiera as official

    size = dict(
        input_size=(8, 64, 64),
        embed_dim=24,
        num_heads=1,
        stages=(1, 1, 2, 1),
        q_stride=(1, 2, 2),
        mask_unit_size=(1, 8, 8),
        patch_kernel=(3, 7, 7),
        patch_stride=(2, 4, 4),
        patch_padding=(1, 3, 3),
        sep_pos_embed=True,
    )
    clip = torch.randn(1, 3, 8, 64, 64, generator=torch.Generator().manual_seed(0))
    if name == "classifier":
        theirs = saved(official.Hiera(**size, num_classes=5), tmp_path)
        ours = hiera_video.load(tmp_path, device="cpu")
        with torch.inference_mode():
            expected = theirs(clip)  # probabilities, in eval
            found = ours(clip).softmax(-1)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    else:
        decoder = dict(decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=4)
        theirs = saved(official.MaskedAutoencoderHiera(**size, **decoder, q_pool=2), tmp_path)
        ours = hiera_video.load(tmp_path, device="cpu")
        keep = torch.zeros(1, ours.module.num_units, dtype=torch.bool)
        keep[:, ::3] = True
        with torch.inference_mode():
            expected = theirs(clip, mask=keep)[0]
            found = ours.module(clip, keep=keep).loss
        assert float(found) == pytest.approx(float(expected), rel=1e-4)


def test_a_folder_of_another_model(tmp_path):
    config = transformers.ViTConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=2)
    transformers.ViTModel(config).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "vit"
    with pytest.raises(ValueError, match="does not say what model it belongs to"):
        hiera_video.load(tmp_path)
