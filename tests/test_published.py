"""Published weights by name: from a local server with files of one's own."""

import runpy
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT
from local_server import BIG

import hiera_video
from hiera_video.data.lists import read_videos
from hiera_video.models import create_hiera, create_hiera_mae, load_weights
from hiera_video.models.published import PUBLISHED, published
from hiera_video.models.zoo import list_all_models
from hiera_video.system import remote

NAME = "hiera_base_16x224.mae_k400_ft_k400"
FILE = "hiera_base_16x224.pth"


@pytest.fixture
def mirror(server, tmp_path, monkeypatch):
    """It, with an empty cache before it; `kept`: where the file will lie."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HIERA_VIDEO_WEIGHTS_URL", server.url)
    monkeypatch.setattr(remote, "PAUSES_S", (0.0, 0.0))
    (server.folder / FILE).write_bytes(BIG)
    server.kept = tmp_path / "torch/hub/checkpoints" / FILE
    return server


def fetching(mirror, *, requests):
    """A process that fetches the file, as soon as the server has had so many requests."""
    code = f"from hiera_video.models.published import published; published({NAME!r}).fetched()"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    while mirror.asked[f"/{FILE}"] < requests:
        assert process.poll() is None
        time.sleep(0.01)
    return process


def test_names_are_the_official_ones():
    """Those of the official package, and its URLs."""
    import hiera as official

    theirs = {}
    for name in dir(official):
        for key, url in (getattr(getattr(official, name), "checkpoints", None) or {}).items():
            theirs[f"{name}.{key}"] = url
    assert len(theirs) > 20
    for name, url in theirs.items():
        assert published(name).url == url
    assert published(f"mae_{NAME}") is None
    assert set(PUBLISHED) == {name.removeprefix("mae_") for name in theirs}


def test_a_file_is_downloaded_once(mirror, capfd):
    assert published(NAME).fetched().read_bytes() == BIG
    assert "CC BY-NC 4.0" in capfd.readouterr().err
    asked = dict(mirror.asked)
    assert published(NAME).fetched() == mirror.kept
    assert dict(mirror.asked) == asked and not capfd.readouterr().err
    assert [f.name for f in mirror.kept.parent.iterdir()] == [FILE]


def test_a_download_that_breaks_off_goes_on(mirror):
    mirror.fail(f"/{FILE}", None, "cut", "refuse")
    published(NAME).fetched()
    assert mirror.kept.read_bytes() == BIG
    assert mirror.sent < len(BIG) + 100  # the first half came once


def test_a_download_that_is_killed_goes_on(mirror):
    """In a process of its own, that the server lets wait after half of the file."""
    mirror.fail(f"/{FILE}", None, "cut", "stall")
    process = fetching(mirror, requests=3)
    process.kill()
    process.wait()
    assert not mirror.kept.exists() and len(list(mirror.kept.parent.iterdir())) == 1
    published(NAME).fetched()
    assert mirror.kept.read_bytes() == BIG and mirror.sent < len(BIG) + 100
    assert [f.name for f in mirror.kept.parent.iterdir()] == [FILE]


def test_who_waits_goes_on_where_the_other_was_killed(mirror):
    """Two processes want the file; the one that fetches it is killed half-way."""
    mirror.fail(f"/{FILE}", None, "cut", "stall")
    first = fetching(mirror, requests=3)
    second = fetching(mirror, requests=4)  # its look at the file's version; then it waits
    time.sleep(0.5)
    first.kill()
    assert second.wait(60) == 0
    assert mirror.kept.read_bytes() == BIG and mirror.sent < len(BIG) + 200


def test_a_server_that_is_busy_at_first(mirror):
    mirror.fail(f"/{FILE}", "refuse", "refuse")
    assert published(NAME).fetched().read_bytes() == BIG


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("short", "gave 1747626 bytes of 5242880"),
        ("gone", "HTTP Error 404"),
        ("refuse", "HTTP Error 503"),
        ("offline", "Connection refused"),
    ],
)
def test_what_cannot_be_had_is_one_line(mirror, tool, fault, words):
    if fault == "gone":
        (mirror.folder / FILE).unlink()
    elif fault == "offline":
        mirror.close()
    else:
        mirror.fail(f"/{FILE}", None, *[fault] * 9)
    command = ("tools/verify.py", NAME)
    said = tool(*command, check=2).stderr
    assert words in said and len(said.strip().splitlines()) == 1
    assert f"put it at {mirror.kept}" in said and "HIERA_VIDEO_WEIGHTS_URL" in said
    assert not mirror.kept.exists()


def test_a_name_that_is_nearly_one(tool):
    said = tool("tools/verify.py", f"{NAME}x", check=2).stderr
    assert f"did you mean {NAME}?" in said


def test_a_name_is_all_that_is_needed(mirror, shapes, tmp_path, tool):
    """Classes and clip format come with it; it loads as the same weights from a file do."""
    torch.manual_seed(0)
    model = create_hiera("hiera_base_16x224")
    torch.save({"model_state": model.state_dict()}, mirror.folder / FILE)
    video = shapes / read_videos("val.csv", root=shapes).path(0)
    said = tool("tools/predict.py", video, "--weights", NAME, "--clips", "1", "--crops", "1").stdout
    loaded = hiera_video.load(NAME)
    assert loaded.classes[:2] == ["abseiling", "air drumming"] and len(loaded.classes) == 400
    best = loaded.predict(video, clips=1, crops=1)
    assert best[0].label in said.splitlines()[1]
    loaded.close()
    state = loaded.module.state_dict()
    assert all(torch.equal(state[name].cpu(), t) for name, t in model.state_dict().items())


def test_an_autoencoder_by_name_starts_a_classifier(mirror):
    torch.manual_seed(0)
    mae = create_hiera_mae("mae_hiera_base_16x224")
    torch.save({"model_state": mae.state_dict()}, mirror.folder / f"mae_{FILE}")
    model = create_hiera("hiera_base_16x224", num_classes=7)
    report = load_weights(model, "hiera_base_16x224.mae_k400", strict=False)
    assert report.names("re-initialised") == ["head.projection.weight", "head.projection.bias"]
    assert torch.equal(model.norm.weight, mae.encoder_norm.weight)


def test_verify_says_what_it_checks_and_what_not(mirror, tool):
    torch.manual_seed(0)
    torch.save(create_hiera("hiera_base_16x224").state_dict(), mirror.folder / FILE)
    said = tool("tools/verify.py", NAME).stdout
    for words in ("loaded: all 302 tensors, 51.09 M parameters", "finite on a grey clip"):
        assert words in said
    assert "not checked: accuracy (--data)" in said and "not checked: its hash" in said
    torch.save(create_hiera("hiera_tiny_16x224").state_dict(), mirror.kept)
    assert "does not fit this model" in tool("tools/verify.py", NAME, check=2).stderr


@pytest.mark.trial
@pytest.mark.timeout(1200)
def test_verify_accuracy(mirror, shapes, tmp_path, tool):
    """Of random weights, on two videos that have the class which they see: 100%, not 84."""
    torch.manual_seed(0)
    torch.save(create_hiera("hiera_base_16x224").state_dict(), mirror.folder / FILE)
    videos = read_videos("val.csv", root=shapes)
    loaded = hiera_video.load(NAME)
    rows = [(shapes / videos.path(row)) for row in range(2)]
    seen = [loaded.predict(video, top=1)[0].index for video in rows]
    loaded.close()
    lines = (f"{video} {index}\n" for video, index in zip(rows, seen))
    (tmp_path / "val.csv").write_text("".join(lines))
    given = ("tools/verify.py", NAME, "--data", tmp_path, "--workers", "0")
    done = tool(*given, "--output", tmp_path / "out", check=3)
    assert "top-1 100.00 of 2 videos, published 84.0" in done.stderr
    given += ("--output", tmp_path / "again", "--sample", "1", "--tolerance", "16")
    done = tool(*given)
    assert "top-1 100.00 of 1 videos" in done.stdout
    assert "not checked: the other 1 videos" in done.stdout


def test_torch_hub():
    """Every name, with the constructor's arguments; weights by what comes after the dot."""
    hub = runpy.run_path(str(ROOT / "hubconf.py"))
    names = {name for name, entry in hub.items() if callable(entry) and name[0] != "_"}
    assert names == set(list_all_models(ours=True)) and "safetensors" in hub["dependencies"]
    small = dict(embed_dim=24, num_heads=1, stages=(1, 1, 1, 1), num_classes=5)
    model = torch.hub.load(str(ROOT), "hiera_tiny_16x224", source="local", **small)
    assert model.head.projection.out_features == 5
    with pytest.raises(ValueError, match="no weights at nowhere"):
        torch.hub.load(str(ROOT), "hiera_tiny_16x224", source="local", weights="nowhere", **small)
