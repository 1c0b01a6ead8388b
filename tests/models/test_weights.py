"""Loading: published and own files, known pairs, and nothing dropped silently."""

import pickle

import pytest
import torch
from golden_weights import load

from hiera_video.models import create_hiera, create_hiera_mae, load_weights
from hiera_video.models.resize import interpolate
from hiera_video.models.weights import read_weights
from hiera_video.training.checkpoint import save_weights

LAYOUTS = load("layouts.json")
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
    save_weights(
        tmp_path / "model.safetensors",
        other.state_dict(),
        {"model": {"name": "hiera_tiny_16x224"}, "classes": ["a"]},
    )
    assert read_weights(tmp_path)[1]["classes"] == ["a"]
    load_weights(model, tmp_path)  # a step folder
    assert same(model, other)
    first = (tmp_path / "model.safetensors").read_bytes()
    save_weights(
        tmp_path / "model.safetensors",
        other.state_dict(),
        {"classes": ["a"], "model": {"name": "hiera_tiny_16x224"}},
    )
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
    with pytest.raises(
        ValueError, match=r"head\.projection\.weight is \[9, 192\], needed \[5, 192\]"
    ):
        load_weights(model, source.state_dict(), strict=True)


@pytest.mark.parametrize("strict", [True, False])
def test_what_does_not_fit_raises_and_changes_nothing(model, strict):
    before = {n: t.clone() for n, t in model.state_dict().items()}
    missing = create_hiera("hiera_tiny_16x224", **SMALL, num_classes=5).state_dict()
    del missing["blocks.2.attn.qkv.weight"]
    with pytest.raises(ValueError, match=r"re-initialised: blocks\.2\.attn\.qkv"):
        load_weights(model, missing, strict=strict)
    bigger = create_hiera(
        "hiera_tiny_16x224", **{**SMALL, "stages": (1, 2, 3, 1)}, num_classes=5
    ).state_dict()
    with pytest.raises(ValueError, match=r"unused: blocks\.6"):
        load_weights(model, bigger, strict=strict)
    wider = create_hiera(
        "hiera_tiny_16x224", **{**SMALL, "embed_dim": 32}, num_classes=5
    ).state_dict()
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


def test_prefixes_and_nearest_names(model, other):
    load_weights(model, {f"encoder.{n}": t for n, t in other.state_dict().items()})
    assert same(model, other)
    state = other.state_dict()
    state["blocks.2.atn.qkv.weight"] = state.pop("blocks.2.attn.qkv.weight")
    with pytest.raises(
        ValueError, match=r"blocks\.2\.atn\.qkv\.weight looks like blocks\.2\.attn\.qkv\.weight"
    ):
        load_weights(model, state, strict=False)


def field(grid, channels):
    """A table that is linear in time and space: interpolation must give the same field on another
    grid.
    """
    axes = torch.meshgrid(*[(torch.arange(n) + 0.5) / n for n in grid], indexing="ij")
    return (
        sum((k + 1) * a for k, a in enumerate(axes)).flatten()[None, :, None].repeat(1, 1, channels)
    )


GRIDS = [((8,), (16,)), ((14, 14), (16, 16)), ((56, 56), (48, 64)), ((8, 14, 14), (16, 12, 16))]


@pytest.mark.parametrize("grid, other_grid", GRIDS)
def test_interpolation_keeps_a_linear_field(grid, other_grid):
    out = interpolate(field(grid, 3), grid, other_grid).reshape(*other_grid, 3)
    expected = field(other_grid, 3).reshape(*other_grid, 3)
    # away from the border, where the field ends
    inner = tuple(slice(n // 4, n - n // 4) for n in other_grid)
    torch.testing.assert_close(
        out[inner], expected[inner], rtol=0, atol=0.02
    )  # torch's bicubic kernel is not exact on a slope
    assert torch.equal(interpolate(field(grid, 3), grid, grid), field(grid, 3))


@pytest.mark.parametrize("size", [(16, 64, 64), (8, 96, 96), (4, 64, 96)])
@pytest.mark.parametrize("create, extra", [(create_hiera, {}), (create_hiera_mae, DECODER)])
def test_another_input_size(size, create, extra):
    source = create("hiera_tiny_16x224", **SMALL, **extra)
    target = create("hiera_tiny_16x224", **{**SMALL, "input_size": size}, **extra)
    report = load_weights(target, source.state_dict())
    tables = {n for n, t in target.state_dict().items() if t.shape != source.state_dict()[n].shape}
    assert set(report.names("interpolated")) == tables and tables
    assert report.share_loaded == 1 and "interpolated" in str(report)
    target(torch.randn(1, 3, *size))


def test_a_non_square_source_needs_its_size(tmp_path):
    wide = create_hiera("hiera_tiny_16x224", **{**SMALL, "input_size": (8, 64, 96)}, num_classes=5)
    square = create_hiera("hiera_tiny_16x224", **SMALL, num_classes=5)
    with pytest.raises(ValueError, match="384 positions"):
        load_weights(square, wide.state_dict())
    save_weights(
        tmp_path / "wide.safetensors",
        wide.state_dict(),
        {"model": {"arguments": {"input_size": (8, 64, 96)}}},
    )
    assert load_weights(square, tmp_path / "wide.safetensors").names("interpolated") == [
        "pos_embed_spatial"
    ]


SIZES = [(32, 224, 224), (16, 256, 256), (8, 192, 256)]
VIDEO_LAYOUTS = [name for name in LAYOUTS if "16x224" in name]


def resized(name, size, device):
    create = create_hiera_mae if name.startswith("mae_") else create_hiera
    classes = LAYOUTS[name]["state"].get("head.projection.bias")
    with torch.device(device):
        return create(name, input_size=size, **({"num_classes": classes[0]} if classes else {}))


def check_resized(report, name, size):
    t, h, w = (n // s for n, s in zip(size, (2, 4, 4)))
    changed = {"pos_embed_spatial": (h, w) != (56, 56), "pos_embed_temporal": t != 8}
    if name.startswith("mae_"):
        changed["decoder_pos_embed"] = True
    assert set(report.names("interpolated")) == {table for table, is_so in changed.items() if is_so}
    assert set(report.outcomes) == set(LAYOUTS[name]["state"]) and report.share_loaded == 1
    assert set(report.outcomes.values()) == {"loaded", "interpolated"}


@pytest.mark.parametrize("size", SIZES, ids=str)
# in trials: all
@pytest.mark.parametrize("name", [name for name in VIDEO_LAYOUTS if "base_16" in name])
def test_published_video_layouts_at_another_size(name, size):
    """What is done to each tensor; no numbers are computed but those of the tables."""
    published = {n: torch.zeros(()).expand(shape) for n, shape in LAYOUTS[name]["state"].items()}
    check_resized(load_weights(resized(name, size, "meta"), published), name, size)


@pytest.mark.trial
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", VIDEO_LAYOUTS)
def test_every_published_video_layout_runs_at_another_size(name, size):
    generator = torch.Generator().manual_seed(0)
    shapes = LAYOUTS[name]["state"].items()
    published = {n: torch.randn(shape, generator=generator).mul_(0.02) for n, shape in shapes}
    model = resized(name, size, "cpu").eval()
    check_resized(load_weights(model, published), name, size)
    with torch.no_grad():
        out = model(torch.randn(1, 3, *size, generator=generator))
    assert (out.loss if name.startswith("mae_") else out).isfinite().all()


@pytest.mark.parametrize("name", [name for name in LAYOUTS if "16x224" not in name])
def test_every_published_image_layout_becomes_video(name):
    published = {n: torch.zeros(()).expand(shape) for n, shape in LAYOUTS[name]["state"].items()}
    is_mae = name.startswith("mae_")
    with torch.device("meta"):
        video = create_hiera(name.removeprefix("mae_").replace("_224", "_16x224"), num_classes=1000)
    report = load_weights(video, published, strict=not is_mae)
    inflated = {"patch_embed.proj.weight", "pos_embed_spatial", "pos_embed_temporal"}
    assert set(report.names("inflated")) == inflated
    lost = {"head.projection.weight", "head.projection.bias"} if is_mae else set()
    assert set(report.names("re-initialised")) == lost
    assert all(
        n.startswith(("decoder", "mask_token", "multi_scale")) for n in report.names("unused")
    )


def damages():
    """(what was done, the tensors of the file) for tensors of every part of the model."""
    torch.manual_seed(1)
    state = create_hiera("hiera_tiny_16x224", **SMALL, num_classes=5).state_dict()
    for name, tensor in state.items():
        rest = {n: t for n, t in state.items() if n != name}
        yield f"removed {name}", rest
        yield (
            f"renamed {name}",
            {**rest, name.replace("a", "e"): tensor} if "a" in name else {**rest, name[1:]: tensor},
        )
        yield f"cut {name}", {**rest, name: tensor.flatten()[:-1]}
        yield f"transposed {name}", {**rest, name: tensor[None].mT.clone()}
        yield f"not finite {name}", {**rest, name: tensor.clone().fill_(float("nan"))}
        yield f"quantised {name}", {**rest, name: tensor.to(torch.int8)}
        yield f"added beside {name}", {**state, f"{name}_ema": tensor}
        yield f"not a tensor {name}", {**rest, name: "a string"}


def test_no_damage_goes_unseen(model):
    before = {n: t.clone() for n, t in model.state_dict().items()}
    for damage, state in damages():
        for strict in (True, False):
            kind, _, name = damage.partition(" ")
            if not strict and "head." in name and kind not in ("not", "quantised", "added"):
                continue  # another head is a known pair
            with pytest.raises(ValueError) as error:
                load_weights(model, state, strict=strict)
            assert "\n" not in str(error.value), damage
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items()), (
        "an error left the model changed"
    )


def test_damaged_files_are_refused(model, other, tmp_path):
    """Cut short anywhere."""
    save_weights(tmp_path / "w.safetensors", other.state_dict(), {})
    torch.save(other.state_dict(), tmp_path / "w.pth")
    for file in (tmp_path / "w.safetensors", tmp_path / "w.pth"):
        whole = file.read_bytes()
        for share in (0, 0.001, 0.3, 0.99, 0.999999):
            file.write_bytes(whole[: int(len(whole) * share)])
            with pytest.raises(ValueError, match=file.name):
                load_weights(model, file)


def test_image_weights_become_video_weights():
    arguments = dict(embed_dim=24, num_heads=1, stages=(1, 2, 2, 1), num_classes=5)
    image = create_hiera("hiera_tiny_224", **arguments, input_size=(64, 64)).eval()
    video = create_hiera("hiera_tiny_16x224", **arguments, input_size=(8, 64, 64)).eval()
    report = load_weights(video, image.state_dict())
    inflated = {"patch_embed.proj.weight", "pos_embed_spatial", "pos_embed_temporal"}
    assert set(report.names("inflated")) == inflated and not report.names("unused")
    picture = torch.randn(1, 3, 64, 64)
    still = picture[:, :, None].repeat(1, 1, 8, 1, 1)
    with torch.no_grad():
        first = image.patch_embed(picture)[0]
        last = video.patch_embed(still)[0, 1:]
        torch.testing.assert_close(last, first.expand_as(last), rtol=1e-4, atol=1e-5)
    mae = create_hiera_mae(
        "hiera_tiny_224", **{**arguments, "num_classes": 0}, input_size=(96, 96), **DECODER
    )
    assert "pos_embed_spatial" in load_weights(video, mae.state_dict(), strict=False).names(
        "inflated"
    )


def test_timm_names(model):
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("hiera_tiny_224", pretrained=False).eval()
    ours = create_hiera("hiera_tiny_224").eval()
    load_weights(ours, theirs.state_dict())
    picture = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours(picture), theirs(picture), rtol=1e-4, atol=1e-5)


def test_conversion_there_and_back(tmp_path, tool):
    torch.manual_seed(0)
    for create, name in (
        (create_hiera, "hiera_tiny_16x224"),
        (create_hiera_mae, "mae_hiera_tiny_224"),
    ):
        state = create(name).state_dict()
        torch.save({"model_state": state}, tmp_path / "a.pth")
        tool(
            "tools/convert_checkpoint.py",
            tmp_path / "a.pth",
            tmp_path / "b.safetensors",
            "--to",
            "native",
        )
        tool(
            "tools/convert_checkpoint.py",
            tmp_path / "b.safetensors",
            tmp_path / "c.pth",
            "--to",
            "official",
        )
        back = torch.load(tmp_path / "c.pth", weights_only=True)["model_state"]
        assert back.keys() == state.keys() and all(
            torch.equal(t, back[n]) for n, t in state.items()
        )
        assert read_weights(tmp_path / "b.safetensors")[1]["model"]["name"] == name
    done = tool(
        "tools/convert_checkpoint.py",
        tmp_path / "gone.pth",
        tmp_path / "x",
        "--to",
        "native",
        check=2,
    )
    assert "no weights at" in done.stderr


def test_the_official_code_loads_what_we_write(tmp_path, tool):
    hiera = pytest.importorskip("hiera")
    ours = create_hiera("hiera_base_224", num_classes=1000)
    save_weights(tmp_path / "model.safetensors", ours.state_dict(), {})
    tool("tools/convert_checkpoint.py", tmp_path, tmp_path / "o.pth", "--to", "official")
    state = torch.load(tmp_path / "o.pth", weights_only=True)["model_state"]
    hiera.hiera_base_224(pretrained=False).load_state_dict(state, strict=True)


def test_what_the_official_code_cannot_load_is_not_written(tmp_path, tool):
    model = create_hiera("hiera_tiny_16x224", head_pool="time")
    arguments = {"head_pool": "time"}
    card = {"model": {"name": "hiera_tiny_16x224", "arguments": arguments}}
    save_weights(tmp_path / "model.safetensors", model.state_dict(), card)
    command = ["tools/convert_checkpoint.py", str(tmp_path), str(tmp_path / "o.pth")]
    assert "head_pool" in tool(*command, "--to", "official", check=2).stderr
    save_weights(
        tmp_path / "model.safetensors", model.state_dict(), {"model": {"name": "vit_base_224"}}
    )
    assert "layout is Hiera's" in tool(*command, "--to", "official", check=2).stderr
    assert not (tmp_path / "o.pth").exists()


def test_a_named_model_that_is_another_one_is_not_written(tmp_path, tool):
    torch.save(create_hiera("hiera_tiny_224").state_dict(), tmp_path / "a.pth")
    command = ["tools/convert_checkpoint.py", tmp_path / "a.pth", tmp_path / "b.safetensors"]
    command += ["--to", "native", "--model"]
    assert "--model hiera_small_224: " in tool(*command, "hiera_small_224", check=2).stderr
    assert not (tmp_path / "b.safetensors").exists()
    tool(*command, "hiera_tiny_224")
    load_weights(create_hiera("hiera_tiny_224"), tmp_path / "b.safetensors")
