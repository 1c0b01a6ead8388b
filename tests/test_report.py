"""report.html: what a run leaves for a person to look at, opened in a real browser."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from browser import chromium
from conftest import FINETUNE, PRETRAIN, ROOT, SHORT, start
from PIL import Image
from safetensors.torch import save_file

from hiera_video.config import load_config
from hiera_video.evaluation.embedding import on_a_plane
from hiera_video.evaluation.feature_folder import FeatureFolder
from hiera_video.evaluation.features import write_manifest
from hiera_video.stages.report import _labels_of

ODD = "<script>document.title='fooled'</script> & \"quotes\""


@pytest.fixture(scope="module")
def runs(shapes, tmp_path_factory):
    """A fine-tuning and a pretraining, with a class of an odd name and a video that is missing."""
    folder = tmp_path_factory.mktemp("reports")
    names = (shapes / "classes.txt").read_text().splitlines()
    (folder / "classes.txt").write_text("\n".join([ODD, *names[1:]]) + "\n")
    (folder / "val.csv").write_text((shapes / "val.csv").read_text() + "gone/<b>.mp4 3\n")
    common = [f"data.root={shapes}", *SHORT, "train.val_every=1"]
    test = [
        "init.weights=null",
        f"data.test={folder / 'val.csv'}",
        f"data.classes={folder / 'classes.txt'}",
        "test.min_coverage=0.9",
    ]
    start(*common, *test, "stages=[train,test,features]", f"output={folder / 'finetune'}")
    start(*common, "mae.probe_videos=8", f"output={folder / 'pretrain'}", cfg=PRETRAIN)
    return folder


def browse(file, folder, *more):
    """(what Chromium logs, the console included; what the page asked of a network)"""
    quiet = (
        "--disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync"
    )
    command = [
        chromium(),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        *quiet.split(),
        "--hide-scrollbars",
    ]
    command += [
        "--enable-logging=stderr",
        f"--user-data-dir={folder / 'profile'}",
        "--window-size=1100,3000",
    ]
    command += [f"--log-net-log={folder / 'net.json'}", *more, f"file://{file}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    events = json.loads((folder / "net.json").read_text())["events"]
    own = "not an origin"  # what the browser asks for itself
    asked = [e["params"]["url"] for e in events if e.get("params", {}).get("initiator", own) != own]
    return done.stderr, [url for url in asked if not url.startswith(("file:", "data:"))]


@pytest.mark.parametrize("name", ["finetune", "pretrain"])
def test_opens_in_a_browser(runs, tmp_path, name):
    file = runs / name / "report.html"
    picture = tmp_path / "page.png"
    said, asked = browse(file, tmp_path, f"--screenshot={picture}")
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100, "blank"
    assert pixels[2000:].std() > 1 and "CONSOLE" not in said
    assert not asked


def test_a_page_that_misbehaves_is_noticed(tmp_path):
    page = tmp_path / "page.html"
    page.write_text('<img src="http://127.0.0.1:9/x.png"><script>console.error("no")</script>')
    said, asked = browse(page, tmp_path, f"--screenshot={tmp_path / 'page.png'}")
    assert "CONSOLE" in said and asked == ["http://127.0.0.1:9/x.png"]


def test_says_what_happened(runs, tmp_path):
    page = (runs / "finetune/report.html").read_text()
    metrics = json.loads((runs / "finetune/test/metrics.json").read_text())
    protocol = json.loads((runs / "finetune/test/protocol.json").read_text())
    for text in (
        f"<b>{metrics['top1']:.2f}</b>top-1",
        "<b>9 of 10</b>videos scored",
        "Training loss",
        "Validation, one view",
        "open closed wide",
        "confusion matrix",
        "Videos it gets most wrong",
        "gone/&lt;b&gt;.mp4",
        protocol["weights"]["sha256"],
        protocol["list"]["sha256"],
        "9 of 10 videos, 18 clips, in features/",
        "Means of 9 videos, by PCA",
        html.escape(ODD),
    ):
        assert text in page, text
    assert "<script>" not in page and page.count("data:image/jpeg") >= 6, "thumbnails"
    page = (runs / "pretrain/report.html").read_text()
    assert (
        "Probes, top-1 percent" in page
        and "at step 2<" in page
        and page.count("data:image/png") == 4
    )


def test_made_again_elsewhere(runs, tmp_path, tool):
    """A copy of the run, without its videos: the same report but for the thumbnails."""
    shutil.copytree(runs / "finetune", tmp_path / "copy")
    (tmp_path / "copy/report.html").unlink()
    tool("tools/report.py", tmp_path / "copy", "data.root=/nowhere")
    page = (tmp_path / "copy/report.html").read_text()
    whole = (runs / "finetune/report.html").read_text()
    heads = re.findall("<h2>(.*?)</h2>", whole)
    assert re.findall("<h2>(.*?)</h2>", page) == heads and len(heads) > 5
    assert "data:image/jpeg" in whole and "data:image/jpeg" not in page
    assert "is no run" in tool("tools/report.py", tmp_path, check=2).stderr


def test_a_map_of_segments_and_names(shapes, tmp_path):
    """Each segment has its own label, and a table's names mean the classes of the test."""
    folder = tmp_path / "features"
    folder.mkdir()
    lines = []
    for k in range(3):
        save_file({"features": torch.randn(2, 8), "times": torch.zeros(2, 2)}, folder / f"{k}.st")
        lines.append(["v.mp4", f"{k}.st", 2, "ok"])
    write_manifest(folder / "manifest.csv", lines)
    table = "path,label,start_s,end_s\nv.mp4,walk,0,1\nv.mp4,run,1,2\nv.mp4,walk,2,3\n"
    (tmp_path / "list.csv").write_text(table)
    config = load_config(ROOT / FINETUNE, [f"features.videos={tmp_path / 'list.csv'}"])
    found = _labels_of(config, FeatureFolder(folder), ["jump", "run", "walk"])
    assert found == [2, 1, 2]
    assert _labels_of(config, FeatureFolder(folder), ["jump", "run"]) == [-1] * 3


@pytest.mark.trial
def test_umap_keeps_neighbours_together():
    pytest.importorskip("umap", reason="umap is not installed")
    labels = torch.arange(120) % 4
    how, places = on_a_plane(torch.eye(4, 16)[labels] * 8 + torch.randn(120, 16))
    distances = torch.cdist(places, places)
    distances.fill_diagonal_(torch.inf)
    assert how == "UMAP"
    assert (labels[distances.argmin(1)] == labels).float().mean() > 0.9
