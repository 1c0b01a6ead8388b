"""Loading: published and own files, known pairs, and nothing dropped silently."""

import pickle

import pytest
import torch

from hiera_video.checkpoint import save_weights
from hiera_video.models import create_hiera, create_hiera_mae, load_weights
from hiera_video.models.weights import read_weights

SMALL = dict(embed_dim=24, num_heads=1, stages=(1, 2, 2, 1), input_size=(8, 64, 64))
DECODER = dict(decoder_embed_dim=48, decoder_depth=2, decoder_num_heads=4)


@pytest.fixture
def model():
    return create_hiera("hiera_tiny_16x224", **SMALL, num_classes=5)


@pytest.fixture
def other():
    torch.manual_seed(1)
    return create_hiera("hiera_tiny_16x224", **SMALL, num_classes=5)


def same(a, b):
    return all(torch.equal(t, b.state_dict()[n]) for n, t in a.state_dict().items())


WRAPPINGS = {
    "bare": lambda state: state,
    "official": lambda state: {"model_state": state, "epoch": 3},
    "data_parallel": lambda state: {"model": {f"module.{k}": v for k, v in state.items()}},
}


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
def test_published_files_load_as_they_are(model, other, tmp_path, wrap):
    torch.save(wrap(other.state_dict()), tmp_path / "x.pth")
    report = load_weights(model, tmp_path / "x.pth")
    assert same(model, other)
    assert report.share_loaded == 1 and set(report.outcomes.values()) == {"loaded"}


def test_own_files_say_what_they_are(model, other, tmp_path):
    save_weights(tmp_path / "model.safetensors", other, {"model": {"name": "hiera_tiny_16x224"}, "classes": ["a"]})
    assert read_weights(tmp_path)[1]["classes"] == ["a"]
    load_weights(model, tmp_path)  # a step folder
    assert same(model, other)
    first = (tmp_path / "model.safetensors").read_bytes()
    save_weights(tmp_path / "model.safetensors", other, {"classes": ["a"], "model": {"name": "hiera_tiny_16x224"}})
    assert (tmp_path / "model.safetensors").read_bytes() == first, "equal weights are equal bytes"


def test_autoencoder_into_classifier(model):
    mae = create_hiera_mae("hiera_tiny_16x224", **SMALL, **DECODER)
    with pytest.raises(ValueError, match=r"re-initialised: head\.projection; unused: mask_token"):
        load_weights(model, mae.state_dict())
    with torch.no_grad():
        mae.encoder_norm.weight.fill_(3.0)
    report = load_weights(model, mae.state_dict(), strict=False)
    assert (model.norm.weight == 3).all(), "encoder_norm becomes norm"
    assert report.names("re-initialised") == ["head.projection.weight", "head.projection.bias"]
    assert any(n.startswith("decoder_blocks.1") for n in report.names("unused"))
    assert "head.projection" in str(report) and "99" in str(report)
    for name, tensor in mae.state_dict().items():
        if name.startswith(("blocks.", "pos_embed", "patch_embed")):
            assert torch.equal(model.state_dict()[name], tensor)


def test_another_class_count_reinitialises_the_whole_head(model):
    source = create_hiera("hiera_tiny_16x224", **SMALL, num_classes=9)
    before = model.head.projection.bias.clone()
    report = load_weights(model, source.state_dict(), strict=False)
    assert report.names("re-initialised") == ["head.projection.weight", "head.projection.bias"]
    assert torch.equal(model.head.projection.bias, before)
    with pytest.raises(ValueError, match=r"head\.projection\.weight is \[9, 192\], needed \[5, 192\]"):
        load_weights(model, source.state_dict(), strict=True)


@pytest.mark.parametrize("strict", [True, False])
def test_what_does_not_fit_raises_and_changes_nothing(model, strict):
    before = {n: t.clone() for n, t in model.state_dict().items()}
    missing = create_hiera("hiera_tiny_16x224", **SMALL, num_classes=5).state_dict()
    del missing["blocks.2.attn.qkv.weight"]
    with pytest.raises(ValueError, match=r"re-initialised: blocks\.2\.attn\.qkv"):
        load_weights(model, missing, strict=strict)
    bigger = create_hiera("hiera_tiny_16x224", **{**SMALL, "stages": (1, 2, 3, 1)}, num_classes=5).state_dict()
    with pytest.raises(ValueError, match=r"unused: blocks\.6"):
        load_weights(model, bigger, strict=strict)
    wider = create_hiera("hiera_tiny_16x224", **{**SMALL, "embed_dim": 32}, num_classes=5).state_dict()
    with pytest.raises(ValueError, match="needed"):
        load_weights(model, wider, strict=strict)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


class Payload:
    def __reduce__(self):
        return (print, ("this ran",))


def test_code_in_a_weight_file_is_refused(model, tmp_path, capsys):
    (tmp_path / "bad.pth").write_bytes(pickle.dumps({"model_state": Payload()}))
    torch.save({"model_state": Payload()}, tmp_path / "bad2.pth")
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "text.safetensors").write_text("no weights")
    for name in ("bad.pth", "bad2.pth", "text.pth", "text.safetensors", "absent.pth"):
        with pytest.raises(ValueError, match=name):
            load_weights(model, tmp_path / name)
    assert "this ran" not in capsys.readouterr().out
