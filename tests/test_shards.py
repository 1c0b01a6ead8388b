"""Videos in tars: packed once, read where they lie, and what a user has of them is the same."""

import json
import os
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from conftest import ROOT, killed_when, start
from forked import Script, run_forked
from run_folders import outcome, state

from hiera_video.data.decode.process import DecodeProcess
from hiera_video.data.decode.readers import missing_decoder, open_video
from hiera_video.data.lists import read_videos
from hiera_video.system.errors import VideoError

SMALL = "0.1"  # MiB a tar: several of them


@pytest.fixture(scope="module")
def shards(shapes, tmp_path_factory, tool):
    """The videos of `shapes` in tars, with train.csv, val.csv and classes.txt."""
    folder = tmp_path_factory.mktemp("shards")
    for name in ("train", "val"):
        pack = ("datasets/pack_shards.py", shapes / f"{name}.csv", "--output", folder)
        tool(*pack, "--shard-mib", SMALL)
    assert len(list(folder.glob("train_*.tar"))) > 1
    return folder


@pytest.mark.parametrize("decoder", ["auto", "decord", "torchcodec"])
def test_frames_are_those_of_the_files(clips, tmp_path, tool, decoder):
    if missing_decoder(decoder):
        pytest.skip(missing_decoder(decoder))
    names = ["kinetics_like.mp4", "dog.mp4", "av1_video.mkv", "demo.avi", "h265_video.mp4"]
    lines = "".join(f"{name} {k}\n" for k, name in enumerate(names))
    (tmp_path / "list.csv").write_text(lines + "gone.mp4 1\n")
    pack = ("datasets/pack_shards.py", tmp_path / "list.csv", "--root", clips)
    done = tool(*pack, "--output", tmp_path / "out", "--shuffle", "3", "--shard-mib", "1")
    assert "left out: gone.mp4: no such file" in done.stdout + done.stderr
    assert "5 of 6 rows" in done.stdout
    packed = read_videos("list.csv", root=tmp_path / "out")
    assert [packed.written(k) for k in range(len(packed))] == names, "in the list's order"
    for k, name in enumerate(names):
        assert packed.label(k) == k
        with open_video(clips / name, decoder) as a, open_video(packed.path(k), decoder) as b:
            assert a.name == b.name
            assert np.array_equal(a.info.times, b.info.times)
            some = [0, a.info.num_frames // 2, a.info.num_frames - 1]
            assert np.array_equal(a.get(some), b.get(some))


def test_a_run_on_shards_ends_as_one_on_files(shapes, shards, tmp_path):
    """Weights, optimizer, metrics, predictions and features, byte for byte."""
    common = ["model.embed_dim=16", "model.stages=[1,1,1,1]", "init.weights=null"]
    common += ["train.epochs=1", "stages=[train,test,features]", "data.num_workers=1"]
    for name, root in (("files", shapes), ("tars", shards)):
        start(f"data.root={root}", f"output={tmp_path / name}", *common)
    assert state(tmp_path / "tars") == state(tmp_path / "files")
    assert outcome(tmp_path / "tars") == outcome(tmp_path / "files")
    features = sorted((tmp_path / "files/features").rglob("*.safetensors"))
    assert len(features) == 9
    for file in features:
        twin = tmp_path / "tars" / file.relative_to(tmp_path / "files")
        assert twin.read_bytes() == file.read_bytes()


# Draws every video of a list once, with two workers.
PROGRAM = """
import sys
import torch
from hiera_video import build, build_training
from hiera_video.config import load_config
from hiera_video.data.lists import read_videos
from hiera_video.system.distributed import World

config = load_config("tests/configs/finetune.yaml", [*sys.argv[2:], "train.batch_size=8"])
videos = read_videos("train.csv", root=sys.argv[1])
world = World(0, 1, torch.device("cpu"))
for batch in build_training.train_batches(config, videos, steps=4, first_step=0, world=world):
    assert not batch["bad"]
"""


@pytest.mark.trial
def test_a_tar_is_opened_once_a_process(shapes, shards, tmp_path):
    """Two workers, 32 videos: as many opens as there are tars for each, and not as videos."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    log = tmp_path / "opens"
    subprocess.run(
        ["strace", "-f", "-qq", "-e", "trace=open,openat,openat2", "-o", log]
        + [sys.executable, "-c", PROGRAM, shards, f"output={tmp_path}", "data.num_workers=2"],
        cwd=ROOT,
        check=True,
        timeout=120,
    )
    opened = [line for line in log.read_text().splitlines() if f'"{shards}/train_' in line]
    tars = len(list(shards.glob("train_*.tar")))
    assert tars <= len(opened) <= 2 * tars < 32


def test_packing_minds_what_is_there(shapes, tmp_path, tool):
    """Other labels make other tars; a list is not overwritten; class folders keep their numbers."""
    pack = ("datasets/pack_shards.py", tmp_path / "list.csv", "--root", shapes)
    names = [line.rsplit(" ", 1)[0] for line in (shapes / "val.csv").read_text().splitlines()[:2]]
    for labels in ((3, 5), (4, 6)):
        lines = [f"{name} {label}\n" for name, label in zip(names, labels)]
        (tmp_path / "list.csv").write_text("".join(lines))
        tool(*pack, "--output", tmp_path / "out")
        with tarfile.open(tmp_path / "out/list_000000.tar") as tar:
            said = [tar.extractfile(f"{k:09d}.cls").read() for k in range(2)]
        assert said == [str(label).encode() for label in labels]
    assert "give another" in tool(*pack, "--output", tmp_path, check=2).stderr
    for name, source in zip(("10", "2"), names):
        (tmp_path / "folders" / name).mkdir(parents=True)
        (tmp_path / "folders" / name / "a.mp4").write_bytes((shapes / source).read_bytes())
    (tmp_path / "folders/empty").mkdir()
    tool("datasets/pack_shards.py", tmp_path / "folders", "--output", tmp_path / "packed")
    loose = read_videos(tmp_path / "folders")
    packed = read_videos("folders.csv", root=tmp_path / "packed")
    assert [packed.label(k) for k in range(2)] == [loose.label(k) for k in range(2)] == [0, 1]
    assert (tmp_path / "packed/classes.txt").read_text() == "10\n2\nempty\n"


def test_lists_are_checked_as_those_of_files(shapes, shards, tmp_path, tool):
    """A video that stands in two lists is found by its content, in tars as well."""
    lines = (shapes / "train.csv").read_text().splitlines()
    (tmp_path / "some.csv").write_text("".join(f"{line}\n" for line in lines[:3]))
    pack = ("datasets/pack_shards.py", tmp_path / "some.csv", "--root", shapes)
    tool(*pack, "--output", tmp_path / "out")
    lists = (shards / "train.csv", tmp_path / "out/some.csv")
    found = tool("datasets/check_lists.py", *lists, "--content", check=2).stdout
    assert "3 files of equal content in" in found and "missing" not in found


def test_webdataset_can_read_them(shapes, shards):
    """A sample is the members of one name that follow each other, its parts their suffixes."""
    names = (shapes / "train.csv").read_text().splitlines()
    seen = 0
    for file in sorted(shards.glob("train_*.tar")):
        with tarfile.open(file) as tar:
            members = tar.getmembers()
            for video, label, said in zip(members[::3], members[1::3], members[2::3], strict=True):
                key = video.name.split(".")[0]
                assert [m.name for m in (video, label, said)] == [
                    f"{key}.mp4",
                    f"{key}.cls",
                    f"{key}.json",
                ]
                path, number = names[seen].rsplit(" ", 1)
                assert tar.extractfile(label).read().decode() == number
                about = json.loads(tar.extractfile(said).read())
                assert about == {"path": path, "labels": [int(number)]}
                assert tar.extractfile(video).read() == (shapes / path).read_bytes()
                seen += 1
    assert seen == len(names)


def test_packing_goes_on_where_it_was_killed(shapes, shards, tmp_path):
    command = ["datasets/pack_shards.py", shapes / "train.csv"]
    command += ["--output", tmp_path / "out", "--shard-mib", SMALL]
    killed_when((tmp_path / "out/train_000001.tar").exists, Script(*command))
    first = tmp_path / "out/train_000000.tar"
    stamp = first.stat().st_mtime_ns
    run_forked(*command)
    assert first.stat().st_mtime_ns == stamp, "what was there stays"
    for file in shards.glob("train*"):
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()


def test_a_damaged_tar_costs_its_own_videos(shapes, shards, tmp_path):
    """One that is cut short, and one that is gone; what is before the cut is read."""
    for file in shards.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    videos = read_videos("train.csv", root=tmp_path)
    tar, place = videos.path(2).split("#")
    os.truncate(tar, int(place.split("+")[0]) + 600)
    process = DecodeProcess(timeout_s=20)
    with process.open(videos.path(0), "auto") as video:
        assert len(video.get([0])) == 1
    with pytest.raises(VideoError):
        process.open(videos.path(2), "auto").get([0])
    os.unlink(tar)
    process.close()
    with pytest.raises(VideoError, match=r"No such file"):
        process.open(videos.path(0), "auto")
    process.close()


def test_a_table_keeps_its_columns_and_segments(shapes, tmp_path, tool):
    first, second = (
        line.rsplit(" ", 1)[0] for line in (shapes / "val.csv").read_text().splitlines()[:2]
    )
    rows = [f"{first},yes,0.1,0.5,ann", f"{second},no,,,ben", f"{first},no,0.3,0.6,ann"]
    (tmp_path / "words.csv").write_text("\n".join(["path,label,start_s,end_s,who", *rows, ""]))
    pack = ("datasets/pack_shards.py", tmp_path / "words.csv", "--root", shapes)
    tool(*pack, "--output", tmp_path / "out")
    packed = read_videos("words.csv", root=tmp_path / "out")
    assert packed.classes == ("no", "yes") and packed.segment(2) == (0.3, 0.6)
    assert packed.path(0) == packed.path(2) != packed.path(1), "a video lies there once"
    text = (tmp_path / "out/words.csv").read_text()
    assert text.startswith("path,label,start_s,end_s,who,shard,offset,length\n")
    broken = text.replace(",512,", ",half,")
    (tmp_path / "out/words.csv").write_text(broken)
    error = tool(
        "tools/run_net.py",
        "--cfg",
        "tests/configs/finetune.yaml",
        f"data.root={tmp_path / 'out'}",
        "data.train=words.csv",
        f"output={tmp_path / 'run'}",
        check=2,
    ).stderr
    assert "offset='half'" in error and "both in bytes" in error
