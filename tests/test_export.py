"""tools/export.py: what is written, read again by what would read it elsewhere."""

import csv
import json

import pytest
import torch
from conftest import FINETUNE, PRETRAIN, SHORT, start
from safetensors.torch import load_file

import hiera_video
from hiera_video.data.lists import read_videos
from hiera_video.data.transforms import normalise
from hiera_video.export import formats
from hiera_video.export.check import compare
from hiera_video.export.graph import Graph
from hiera_video.models import create_hiera, create_model
from hiera_video.models.onnx_model import OnnxModel
from hiera_video.training.checkpoint import save_weights


@pytest.fixture
def has_onnx():
    pytest.importorskip("onnxscript", reason="onnx is not installed")
    pytest.importorskip("onnxruntime", reason="onnx is not installed")


@pytest.fixture(scope="module")
def trained(shapes, tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "run"
    start(f"data.root={shapes}", f"output={out}", "init.weights=null", *SHORT, cfg=FINETUNE)
    return out


@pytest.fixture(scope="module")
def videos(shapes):
    found = read_videos("val.csv", root=shapes)
    return [shapes / found.path(row) for row in range(3)]


@pytest.fixture(scope="module")
def onnx(
    trained,
    videos,
    tmp_path_factory,
):
    """With maps, and pixels as they are decoded."""
    pytest.importorskip("onnxscript", reason="onnx is not installed")
    pytest.importorskip("onnxruntime", reason="onnx is not installed")
    from hiera_video.__main__ import main

    file = tmp_path_factory.mktemp("onnx") / "model.onnx"
    given = ["--to", "onnx", str(file), "--maps", "--pixels", "--videos", str(videos[0])]
    main(["export", "--weights", str(trained), *given])
    return file


def test_onnx_predicts_as_the_model_does(trained, onnx, videos):
    ours = hiera_video.load(trained)
    theirs = hiera_video.load(onnx)
    assert theirs.classes == ours.classes and theirs.format == ours.format
    for video in videos:
        pairs = zip(ours.predict(video, top=5), theirs.predict(video, top=5))
        for a, b in pairs:
            assert a.label == b.label and a.score == pytest.approx(b.score, abs=1e-5)
        a, b = (model.features(video) for model in (ours, theirs))
        torch.testing.assert_close(a.features, b.features, rtol=1e-4, atol=1e-5)
        assert (a.times == b.times).all()
    ours.close()
    theirs.close()


def test_onnx_without_our_code(trained, onnx, videos):
    """In onnxruntime alone: uint8 in, names of the outputs, any number of clips, what it is of."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(onnx))
    ours = hiera_video.load(trained)
    clips = ours.clips(videos[0], 5)
    ours.close()
    found = dict(
        zip([o.name for o in session.get_outputs()], session.run(None, {"clip": clips.numpy()}))
    )
    assert list(found) == ["logits", "features", "stage1", "stage2", "stage3", "stage4"]
    with torch.inference_mode():
        given = normalise(clips, ours.format.mean, ours.format.std)
        maps = ours.module.feature_maps(given)
        torch.testing.assert_close(
            torch.from_numpy(found["logits"]), ours.module(given), rtol=1e-4, atol=1e-5
        )
    for stage, ours_of_stage in enumerate(maps, start=1):
        theirs = torch.from_numpy(found[f"stage{stage}"])
        torch.testing.assert_close(theirs, ours_of_stage, rtol=1e-4, atol=1e-4)
    known = json.loads(session.get_modelmeta().custom_metadata_map["hiera_video"])
    assert known["classes"] == ours.classes


def test_what_an_onnx_file_fixes(trained, onnx, shapes, tmp_path, tool):
    given = ("--cfg", trained / "config.yaml", "--videos", shapes / "val.csv", "--weights", onnx)
    for number, (key, words) in enumerate(
        (
            ("data.crop_size=32", "takes clips of"),
            ("test.keep_units=0.5", "test.keep_units=0.5"),
            ("test.precision=bfloat16", "is exported with float32"),
            ("data.mean=[0.5,0.5,0.5]", "data.mean="),
        )
    ):
        output = ("--output", tmp_path / f"out{number}")
        command = ("tools/extract_features.py", *given, *output, key)
        assert words in tool(*command, check=2).stderr
    for arguments, words in (
        ({"classes": ["one"]}, "classes: 1 names"),
        ({"model": "hiera_huge_16x224"}, "is of hiera_tiny_16x224"),
        ({"keep_units": 0.5}, "keep_units=0.5"),
    ):
        with pytest.raises(ValueError, match=words):
            hiera_video.load(onnx, **arguments)
    with pytest.raises(ValueError, match="clips are"):
        hiera_video.load(onnx)(torch.zeros(1, 3, 2, 8, 8))
    assert (
        "is for predict"
        in tool(
            "tools/convert_checkpoint.py", onnx, tmp_path / "x.pth", "--to", "official", check=2
        ).stderr
    )


def test_features_of_an_onnx_file(trained, onnx, shapes, tmp_path, tool):
    """The command's files are those of the weights themselves, maps too."""
    given = ("--cfg", trained / "config.yaml", "--videos", shapes / "val.csv")
    for name, weights in (("ours", trained), ("theirs", onnx)):
        output = ("--output", tmp_path / name, "features.stages=[4]")
        tool("tools/extract_features.py", *given, "--weights", weights, *output)
    with open(tmp_path / "ours/manifest.csv") as f:
        rows = list(csv.DictReader(f))
    for row in rows:
        a, b = (load_file(tmp_path / name / row["file"]) for name in ("ours", "theirs"))
        assert a.keys() == b.keys() and "stage4" in a
        for key, tensor in a.items():
            torch.testing.assert_close(tensor.float(), b[key].float(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("form", ["pt2", pytest.param("aoti", marks=pytest.mark.trial)])
def test_torch_forms(trained, videos, tmp_path, tool, form):
    file = tmp_path / "model.pt2"
    command = ("tools/export.py", "--weights", trained, "--to", form, file, "--videos", *videos)
    said = tool(*command).stdout
    assert "8 real clips" in said and "100% of predictions equal" in said
    if form == "pt2":
        known = {"hiera_video.json": ""}
        module = torch.export.load(file, extra_files=known).module()
        model = hiera_video.load(trained)
        clip = model.middle_clip(videos[0])
        logits, features = module(clip)
        assert torch.equal(logits, model(clip)) and torch.equal(
            features, model.module.features(clip)
        )
        assert json.loads(known["hiera_video.json"])["classes"] == model.classes
        model.close()


def test_int8(onnx, videos, tmp_path):
    """Smaller, nearly the same, and still saying what it is."""
    file = tmp_path / "model.onnx"
    formats.to_int8(onnx, file)
    assert file.stat().st_size < 0.6 * onnx.stat().st_size
    ours, theirs = hiera_video.load(onnx), hiera_video.load(file)
    assert theirs.classes == ours.classes and theirs.format == ours.format
    for video in videos:
        torch.testing.assert_close(ours.scores(video), theirs.scores(video), rtol=0, atol=0.02)
    ours.close()
    theirs.close()


SMALL = {"input_size": [4, 64, 64]}
VIT = {**SMALL, "embed_dim": 24, "num_heads": 2, "stages": [2]}
MVIT = {**SMALL, "embed_dim": 24, "num_heads": 1, "stages": [1, 1, 2, 1]}
SHORT_MVIT = {**MVIT, "stages": [1, 1], "q_pool": 1, "mask_unit_attn": [True, True]}
TOKENS = {"cls_token": True, "head_pool": "cls"}


def weights_of(name, arguments, folder):
    """A file of them, drawn large enough for every part to matter."""
    model = create_model(name, **arguments)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.1 * torch.randn(p.shape, generator=draw) + (0.5 if p.ndim == 1 else 0))
    file = folder / "weights.safetensors"
    metadata = {
        "model": {"name": name, "arguments": arguments},
        "clips": {"num_frames": 4, "crop_size": 64},
    }
    save_weights(file, model.state_dict(), metadata)
    return file


@pytest.mark.parametrize(
    ("name", "arguments", "forms"),
    [
        ("vit_base_16x224", {**VIT, **TOKENS}, ["pt2"]),
        ("mvit_v2_small_16x224", SHORT_MVIT, ["pt2"]),
        *(
            pytest.param(*case, marks=pytest.mark.trial)
            for case in (
                ("vit_base_16x224", VIT, ["pt2", "onnx", "onnx --opset 18", "aoti"]),
                ("mae_vit_base_16x224", VIT, ["onnx"]),
                ("mvit_v2_small_16x224", {**MVIT, **TOKENS}, ["onnx", "onnx --opset 18", "aoti"]),
                ("mae_mvit_v2_small_16x224", {**MVIT, "masking": "tokens"}, ["onnx"]),
                *(("mvit_v2_small_16x224", {**MVIT, "step": s}, ["pt2", "onnx"]) for s in "adf"),
            )
        ),
    ],
)
def test_other_families(name, arguments, forms, tmp_path, capsys):
    """Written, read again and compared by the command; with maps, as many as there are stages."""
    from hiera_video.__main__ import main

    weights = weights_of(name, arguments, tmp_path)
    for form in forms:
        file = tmp_path / "model.pt2"
        main(["export", "--weights", str(weights), str(file), "--maps", "--to", *form.split()])
        assert "8 drawn clips, largest difference" in capsys.readouterr().out
        if form == "pt2":
            maps = torch.export.load(file).module()(torch.zeros(3, 3, 4, 64, 64))
            known = len(arguments["stages"]) + 1 + (not name.startswith("mae_"))
            assert len(maps) == known and maps[-1].shape[:2] == (3, 2)


@pytest.mark.trial
def test_an_autoencoder_gives_features(shapes, tmp_path, tool, has_onnx):
    start(f"data.root={shapes}", f"output={tmp_path}/run", *SHORT, cfg=PRETRAIN)
    file = tmp_path / "mae.onnx"
    given = ("--weights", tmp_path / "run", "--to", "onnx", file, "--int8", "--opset", "18")
    said = tool("tools/export.py", *given)
    first, second = said.stdout.splitlines()
    assert "(onnx, " in first and "8 drawn clips" in first and "(int8, " in second
    assert OnnxModel(file).outputs == ["features"]
    video = next((shapes / "val").rglob("*.mp4"))
    a, b = (hiera_video.load(weights).features(video) for weights in (tmp_path / "run", file))
    torch.testing.assert_close(a.features, b.features, rtol=0.1, atol=0.1)
    said = tool("tools/predict.py", video, "--weights", file, check=2).stderr
    assert "a masked autoencoder knows no classes" in said


def test_what_differs_is_told(trained, videos, tmp_path):
    """A file whose weights were changed behind its back."""
    file = tmp_path / "model.pt2"
    model = hiera_video.load(trained, device="cpu")
    graph = Graph(model).eval()
    clips = normalise(model.clips(videos[0], 3), model.format.mean, model.format.std)
    formats.write_pt2(graph, clips[:2], file, {})
    assert compare(graph, formats.open_pt2(file), clips).largest == 0
    with torch.no_grad():
        model.module.head.projection.bias[1] += 0.5
    found = compare(graph, formats.open_pt2(file), clips)
    with torch.inference_mode():
        expected = 0.5 / max(1, float(graph(clips[:1])[0].abs().max()))
    assert found.differences["logits"] == pytest.approx(expected, rel=0.5)
    assert found.differences["features"] == 0
    model.close()


def test_a_difference_is_exit_3_and_replaces_nothing(trained, tmp_path, tool):
    file = tmp_path / "model.pt2"
    file.write_text("what was there")
    given = ("--to", "pt2", file, "--tolerance", "-1")
    done = tool("tools/export.py", "--weights", trained, *given, check=3)
    assert "more than --tolerance -1" in done.stderr
    assert file.read_text() == "what was there" and list(tmp_path.iterdir()) == [file]


def test_what_cannot_be_exported_is_one_line(trained, tmp_path, tool):
    image = tmp_path / "image.pth"
    torch.save(create_hiera("hiera_tiny_224").state_dict(), image)
    vit = weights_of("vit_base_16x224", VIT, tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/README.md").write_text("mine")
    for given, words in (
        (("--weights", image, "--to", "pt2", tmp_path / "x"), "does not say what model"),
        (("--weights", trained, "--to", "pt2", tmp_path), "is a folder"),
        (("--weights", trained, "--to", "aoti", tmp_path / "x"), "end in .pt2"),
        (("--weights", trained, "--to", "onnx", tmp_path / "x", "--opset", "9"), "from 18 to 23"),
        (("--weights", trained, "--to", "hf", tmp_path / "mine"), "holds something else"),
        (("--weights", trained, "--to", "hf", image), "holds something else"),
        (("--weights", vit, "--to", "hf", tmp_path / "x"), "a Hiera that classifies video"),
        (("--weights", trained, "--to", "pt2", tmp_path / "x", "--int8"), "for --to onnx"),
    ):
        assert words in tool("tools/export.py", *given, check=2).stderr
    assert (tmp_path / "mine/README.md").read_text() == "mine"


def test_other_onnx_files_are_refused(tmp_path, tool, onnx):
    import onnx as library

    model = library.load(str(onnx))
    del model.metadata_props[:]
    library.save(model, str(tmp_path / "foreign.onnx"))
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    for name, words in (("foreign", "was not written by"), ("broken", "no ONNX file")):
        with pytest.raises(ValueError, match=words):
            hiera_video.load(tmp_path / f"{name}.onnx")
