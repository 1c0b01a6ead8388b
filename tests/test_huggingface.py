"""Weights in the folders of the official package and of transformers; live parity with both."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import FINETUNE, ROOT, SHORT, start
from other_models import VIDEOMAE
from safetensors.torch import save_file

import hiera_video
from hiera_video.data.decode.readers import open_video
from hiera_video.models import create_hiera, load_weights
from hiera_video.models.zoo import INPUTS

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
def test_official_folders(shapes, tmp_path, name):
    """What the official package saves; the clip's size comes with it."""
    video = next((shapes / "val").rglob("*.mp4"))
    import hiera as official

    video_size = {key: value for key, value in INPUTS["16x224"].items() if key != "num_classes"}
    small = dict(input_size=(8, 64, 64), embed_dim=24, num_heads=1, stages=(1, 1, 2, 1))
    size = {**video_size, **small}
    clip = torch.randn(1, 3, 8, 64, 64, generator=torch.Generator().manual_seed(0))
    if name == "classifier":
        theirs = saved(official.Hiera(**size, num_classes=5), tmp_path)
        ours = hiera_video.load(tmp_path, device="cpu")
        assert ours.clips(video, 2).shape == (2, 3, 8, 64, 64)
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


@pytest.fixture(scope="module")
def exported(shapes, tmp_path_factory):
    """(a run, the folder that was made of it)"""
    from hiera_video.__main__ import main

    out = tmp_path_factory.mktemp("hub")
    start(f"data.root={shapes}", f"output={out}/run", "init.weights=null", *SHORT, cfg=FINETUNE)
    main(["export", "--weights", f"{out}/run", "--to", "hf", f"{out}/folder"])
    return out / "run", out / "folder"


def test_a_pipeline_predicts_as_we_do(exported, shapes):
    """From the middle clip of the file, by transformers' own pipeline."""
    run, folder = exported
    classify = transformers.pipeline(
        "video-classification", model=str(folder), trust_remote_code=True
    )
    for source in (run, folder):  # ours reads the folder, too
        model = hiera_video.load(source, device="cpu")
        for video in sorted((shapes / "val").rglob("*.mp4"))[:3]:
            found = classify(str(video), top_k=3)
            expected = model.predict(video, clips=1, crops=1, top=3)
            for theirs, ours in zip(found, expected):
                assert theirs["label"] == ours.label
                assert theirs["score"] == pytest.approx(ours.score, abs=1e-4)
        model.close()


def test_a_pipeline_on_a_real_clip(exported, clips):
    """30 frames/s, wide, longer than a clip."""
    run, folder = exported
    classify = transformers.pipeline(
        "video-classification", model=str(folder), trust_remote_code=True
    )
    model = hiera_video.load(run, device="cpu")
    found = classify(str(clips / "dog.mp4"), top_k=2)
    for theirs, ours in zip(found, model.predict(clips / "dog.mp4", clips=1, crops=1, top=2)):
        assert theirs["label"] == ours.label
        assert theirs["score"] == pytest.approx(ours.score, abs=1e-4)
    model.close()


def test_the_folder_needs_no_package_of_ours(exported, tmp_path):
    """In an interpreter that cannot import hiera_video; logits and features as ours."""
    run, folder = exported
    model = hiera_video.load(run, device="cpu")
    clip = torch.randn(1, 3, *model.module.input_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        save_file({"clip": clip, "logits": model(clip)}, tmp_path / "x.safetensors")
    code = f"""
import sys
sys.modules["hiera_video"] = None
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForVideoClassification
known = load_file("{tmp_path}/x.safetensors")
model = AutoModelForVideoClassification.from_pretrained("{folder}", trust_remote_code=True)
torch.testing.assert_close(model(known["clip"]).logits, known["logits"], rtol=1e-4, atol=1e-5)
loss = model(known["clip"], labels=torch.tensor([1])).loss
loss.backward()
assert model.model.patch_embed.proj.weight.grad.isfinite().all()
encoder = AutoModel.from_pretrained("{folder}", trust_remote_code=True)
assert encoder(known["clip"]).pooler_output.shape[0] == 1
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_card_says_what_the_run_knows(exported):
    run, folder = exported
    card = (folder / "README.md").read_text()
    modes = {oct(file.stat().st_mode & 0o777) for file in folder.iterdir() if file.is_file()}
    assert len(modes) == 1, "colleagues can read all of it, or none"
    top1 = json.loads((run / "test/metrics.json").read_text())["top1"]
    assert f"| top-1, top-5 | {top1:.2f}, " in card and "5 clips x 3 crops" in card
    assert "| started from | random weights |" in card and "train.csv" in card


def test_transformers_may_save_it_again(exported, tmp_path):
    """With a head for other classes: it is used, and ours reads what comes of it."""
    run, folder = exported
    again = transformers.AutoModelForVideoClassification.from_pretrained(
        folder, trust_remote_code=True, num_labels=5, ignore_mismatched_sizes=True
    )
    clip = torch.randn(1, 3, *again.model.input_size)
    assert again(clip).logits.shape == (1, 5)
    assert 0.01 < float(again.model.head.projection.weight.detach().std()) < 0.03
    again.save_pretrained(tmp_path)
    ours = hiera_video.load(tmp_path, device="cpu")
    with torch.inference_mode():
        torch.testing.assert_close(ours(clip), again.eval()(clip).logits, rtol=1e-4, atol=1e-5)
    assert ours.format == hiera_video.load(run).format


def test_frames_in_place_of_a_file(exported, shapes):
    _, folder = exported
    process = transformers.AutoVideoProcessor.from_pretrained(folder, trust_remote_code=True)
    video = next((shapes / "val").rglob("*.mp4"))
    with open_video(video, "pyav") as opened:
        count = opened.info.num_frames
        frames = opened.get(range(count))
        fps = opened.info.fps
    expected = process(str(video)).pixel_values
    for given in (frames, list(frames), [list(frames)]):
        assert torch.equal(process(given, fps=fps).pixel_values, expected)


def test_a_model_of_the_hub(exported, tmp_path, monkeypatch):
    """Of its cache, as huggingface_hub keeps it; nobody is asked. A mistyped folder is none."""
    _, folder = exported
    cache = tmp_path / "hub/models--some--model"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs/main").write_text("0" * 40)
    shutil.copytree(folder, cache / "snapshots" / ("0" * 40))
    code = "import hiera_video, sys; hiera_video.load(sys.argv[1])"
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_ENDPOINT": "http://x"}

    def loaded(name):
        command = [sys.executable, "-c", code, name]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)

    done = loaded("hf://some/model")
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert "hf://no/model cannot be had" in loaded("hf://no/model").stderr
    assert "no weights at some/model" in loaded("some/model").stderr


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_act": "relu"}, "hidden_act=relu is not computed here"),
        ({"layer_norm_eps": 1e-2}, "layer_norm_eps=0.01"),
        ({"num_heads": [1, 2, 2, 4]}, "num_heads"),
        ({"num_heads": None}, "it is odd"),
        ({"id2label": {"1": "a"}}, "lacks something"),
    ],
)
def test_what_is_computed_otherwise_is_refused(tmp_path, change, words):
    config = transformers.HieraConfig(**SMALL, num_labels=3)
    saved(transformers.HieraForImageClassification(config), tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=words):
        hiera_video.load(tmp_path)


def test_classes_without_names(images, tmp_path):
    """Of two, transformers writes no names at all."""
    config = transformers.HieraConfig(**SMALL, num_labels=2)
    theirs = saved(transformers.HieraForImageClassification(config), tmp_path)
    ours = hiera_video.load(tmp_path, device="cpu")
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(images).logits, rtol=1e-4, atol=1e-5)


def test_a_folder_of_another_model(tmp_path):
    config = transformers.ViTConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=2)
    transformers.ViTModel(config).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "vit"
    with pytest.raises(ValueError, match="does not say what model it belongs to"):
        hiera_video.load(tmp_path)


def test_videomae(tmp_path, shapes):
    """A folder of transformers' VideoMAE: classes, clip format and weights, on a real file."""
    sizes = dict(VIDEOMAE, image_size=32)
    names = {0: "cat", 1: "dog", 2: "cow"}
    config = transformers.VideoMAEConfig(**sizes, num_labels=3, id2label=names)
    theirs = saved(transformers.VideoMAEForVideoClassification(config), tmp_path / "classifier")
    ours = hiera_video.load(tmp_path / "classifier", device="cpu")
    assert ours.classes == ["cat", "dog", "cow"]
    clip = torch.randn(1, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = theirs(clip.transpose(1, 2)).logits
        torch.testing.assert_close(ours(clip), expected, rtol=1e-4, atol=1e-5)
    video = next((shapes / "val").rglob("*.mp4"))
    found = ours.predict(video, clips=1, crops=1)
    assert {p.label for p in found} == set(names.values())
    assert list(ours.format.mean) == [0.485, 0.456, 0.406]

    decoder = dict(
        decoder_hidden_size=32,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=128,
    )
    config = transformers.VideoMAEConfig(**sizes, **decoder, use_mean_pooling=False)
    theirs = saved(transformers.VideoMAEForPreTraining(config), tmp_path / "autoencoder")
    loaded = hiera_video.load(tmp_path / "autoencoder", device="cpu")
    assert loaded.features(video).features.shape[1] == 48
    ours = loaded.module
    keep = torch.zeros(1, 8, dtype=torch.bool)
    keep[0, [1, 6]] = True
    with torch.inference_mode():
        expected = theirs(clip.transpose(1, 2), bool_masked_pos=~keep).loss
        torch.testing.assert_close(ours(clip, keep=keep).loss, expected, rtol=1e-4, atol=1e-5)
