"""report.html: what a run leaves for a person to look at, opened in a real browser."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from conftest import PRETRAIN, SHORT, start
from PIL import Image

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
    chromium = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if chromium is None:
        pytest.skip("no Chromium here")
    quiet = (
        "--disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync"
    )
    command = [
        chromium,
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
