"""Configs: strict, helpful, complete."""

import re
from pathlib import Path

import pytest
import yaml

from hiera_video.build import build_model, model_spec
from hiera_video.config import changed_keys, load_config, to_yaml, valid_keys
from hiera_video.system.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "configs").rglob("*.yaml"))


def load(tmp_path, text="", *overrides):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    return load_config(file, overrides)


@pytest.mark.parametrize(
    "text, overrides, message",
    [
        ("train: {epoch: 3}", [], "no key 'train.epoch'; the nearest is 'train.epochs'"),
        ("", ["lr=1"], "no key 'lr'; the nearest is 'optim.lr'"),
        ("", ["data.rot=/x"], "nearest is 'data.root'"),
        ("train: {epochs: many}", [], "train.epochs: Value 'many'"),
        ("", ["train.batch_size=2.5"], "train.batch_size"),
        ("train:\n  epochs: 1\n  epochs: 2\n", [], "line 3: found duplicate key epochs"),
        ("train: [", [], "line"),
        ("- a", [], "mapping"),
        ("", ["epochs"], "form key=value"),
        ("task: detect", [], "task='detect' must be one of pretrain, classify"),
        ("stages: [train, sleep]", [], "'sleep' must be one of train, test, features"),
        ("stages: []", [], "stages is empty"),
        ("", ["data.mean=[1,2]"], "override 'data.mean=[1,2]': TupleConfig length 2"),
        (
            "",
            ["train.recompute_stages=[x]"],
            "recompute_stages=[x]': Value in a list could not be converted to Integer",
        ),
        ("", ["test.crops=2"], "test.crops=2 must be one of 1, 3"),
        ("", ["train.ema=1"], "train.ema=1.0 must be at least 0 and less than 1"),
        ("", ["train.batch_size=0"], "train.batch_size=0 must be > 0"),
        ("data: {directional: true, flip: 0.5}", [], "never mirrored"),
        ("task: pretrain", [], "no classes to test"),
    ],
)
def test_wrong_config_is_one_clear_line(tmp_path, text, overrides, message):
    with pytest.raises(UserError) as e:
        load(tmp_path, text, *overrides)
    assert message in str(e.value) and "\n" not in str(e.value)


def test_overrides_and_defaults(tmp_path):
    config = load(
        tmp_path,
        "optim: {lr: 0.1}",
        "optim.lr=1e-3",
        "model.input_size=[8,64,64]",
        "data.root=/a b",
    )
    assert (
        config.optim.lr == 1e-3
        and config.model.input_size == [8, 64, 64]
        and config.data.root == "/a b"
    )
    assert config.output == "runs/c"


def test_stored_config_is_the_same_config(tmp_path):
    config = load(tmp_path, "", "data.crop_scale=[0.2,1]", "features.stages=[1,4]")
    assert changed_keys(config, to_yaml(config)) == []
    (tmp_path / "stored.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "stored.yaml") == config
    other = load(
        tmp_path, "", "data.crop_scale=[0.3,1]", "features.stages=[1,4]", "data.num_workers=7"
    )
    assert changed_keys(other, to_yaml(config)) == ["data.crop_scale"]


@pytest.mark.parametrize("file", CONFIGS)
def test_shipped_config(file):
    """Loads, says how it is run, gives nothing twice, and its model is a real one."""
    config = load_config(ROOT / file)
    text = (ROOT / file).read_text()
    assert f"python tools/run_net.py --cfg {file}" in text
    assert re.search(r"Expected|MovingShapes|our choice", text)
    if "K400" in file or "SSv2" in file:
        assert config.data.decoder == "decord"
        assert yaml.safe_load(text)["data"]["root"] is None
    if "SSv2" in file or "demo" in file:
        assert config.data.directional
    if "demo" in file:
        build_model(model_spec(config, None if config.task == "pretrain" else 8), seed=0)


def test_every_key_is_read_by_someone():
    """A config key that nothing reads is a defect."""
    package = ROOT / "hiera_video"
    files = [p for p in package.rglob("*.py") if "config" not in p.relative_to(package).parts]
    code = "\n".join(p.read_text() for p in files)
    for key in valid_keys():
        section, _, name = key.rpartition(".")
        if section == "model":
            continue  # constructor arguments, passed on by name
        assert re.search(rf"\.{name}\b|\"{name}\"", code), key
