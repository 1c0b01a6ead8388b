"""Configs: strict, helpful, complete."""

import dataclasses
import re
from pathlib import Path

import pytest
import yaml
from conftest import start

from hiera_video.build import build_model, model_spec
from hiera_video.config import ModelConfig, changed_keys, load_config, to_yaml, valid_keys
from hiera_video.config.checks import PRECISIONS
from hiera_video.config.reference import reference_page
from hiera_video.config.sections import DECODERS
from hiera_video.data.decode.readers import OTHERS
from hiera_video.data.decode.source import SECOND_TRY
from hiera_video.models.zoo import FAMILIES
from hiera_video.system import devices
from hiera_video.system.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
# data.yaml is what the others of a folder share.
EVERY = sorted((ROOT / "configs").rglob("*.yaml"))
CONFIGS = [str(p.relative_to(ROOT)) for p in EVERY if p.name != "data.yaml"]


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
        ("", ["data.levels=[0.5,0]"], "data.levels=[0.5, 0.0] must be a mean from 0 to 1"),
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
    if "K600" in file or "K700" in file:
        assert len(yaml.safe_load(text)) <= 3, "only what differs from Kinetics-400"
    if "SSv2" in file:
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


def test_bases(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far/root.yaml").write_text("train: {epochs: 5, repeats: 2}\nseed: 3\n")
    (tmp_path / "near.yaml").write_text("base: far/root.yaml\ntrain: {epochs: 6}\n")
    (tmp_path / "leaf.yaml").write_text("base: near.yaml\noptim: {lr: 0.5}\n")
    config = load_config(tmp_path / "leaf.yaml", ["train.repeats=4"])
    found = (config.train.epochs, config.train.repeats, config.seed, config.optim.lr)
    assert found == (6, 4, 3, 0.5)
    assert config.output == "runs/leaf"
    assert "base" not in yaml.safe_load(to_yaml(config))


def test_two_configs_of_a_name_do_not_meet(tmp_path):
    for folder, text in (("A", "seed: 1\n"), ("B", "base: ../A/x.yaml\n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.yaml").write_text(text)
    assert load_config(tmp_path / "A/x.yaml").output == "runs/x"
    assert load_config(tmp_path / "B/x.yaml").output == "runs/B_x"
    outputs = [load_config(ROOT / file).output for file in CONFIGS]
    assert len(set(outputs)) == len(outputs)


@pytest.mark.parametrize(
    "text, message",
    [
        ("base: gone.yaml", "c.yaml: base: there is no config file"),
        ("base: c.yaml", "is a base of itself"),
        ("base: [a, b]", "must be the path of a config file"),
        ("base: wrong.yaml", "wrong.yaml: there is no key 'train.epoch'"),
        ("base: cycle.yaml", "c.yaml is a base of itself"),
    ],
)
def test_wrong_bases(tmp_path, text, message):
    (tmp_path / "wrong.yaml").write_text("train: {epoch: 3}")
    (tmp_path / "cycle.yaml").write_text("base: c.yaml")
    with pytest.raises(UserError) as e:
        load(tmp_path, text)
    assert message in str(e.value) and "\n" not in str(e.value)


def test_show_config(tool):
    out = tool(
        *("tools/run_net.py", "--cfg", "configs/K700/hiera_l_16x4.yaml", "--show-config"),
        "train.epochs=7",
    ).stdout
    shown = yaml.safe_load(out)
    assert shown["train"]["epochs"] == 7 and shown["model"]["name"] == "hiera_large_16x224"
    assert shown["data"]["classes"] == "datasets/labels/k700.txt"


def test_the_reference_page_is_of_this_code():
    page = (ROOT / "docs/configuration.md").read_text()
    assert page == reference_page(), "make docs"
    for key in valid_keys():
        line = next(line for line in page.splitlines() if line.startswith(f"| `{key}` |"))
        assert line.split("|")[3].strip(), f"{key} has no meaning"


def test_model_keys_are_the_constructors_arguments():
    of_config = {field.name for field in dataclasses.fields(ModelConfig)} - {"name"}
    families = [
        args
        for family in FAMILIES.values()
        for args in (family.classifier_args, family.autoencoder_args)
    ]
    of_models = {field.name for args in families for field in dataclasses.fields(args)}
    assert of_config == of_models


def test_keys_that_define_no_result_may_change(tmp_path, finetune):
    """They are named in the log; others are refused."""
    start(*finetune("run", "train.log_every=2", "stages=[train]"))
    start(*finetune("run", "train.log_every=1", "train.accumulate=2", "test.batch_size=3"))
    log = (tmp_path / "run/log.txt").read_text()
    assert "config: train.log_every was 2, is 1" in log
    assert "config: test.batch_size was 1, is 3" in log
    with pytest.raises(UserError, match=r"keys differ: optim\.lr"):
        start(*finetune("run", "optim.lr=0.5"))
    with pytest.raises(UserError, match=r"keys differ: test\.batch_size"):
        start(*finetune("run"))


def test_choices_are_those_of_the_rooms():
    """The ground floor imports nothing heavy, so it names what higher rooms can do."""
    assert set(PRECISIONS) == set(devices.PRECISIONS)
    assert set(DECODERS) == set(SECOND_TRY) == {"auto", "pyav", *OTHERS}
