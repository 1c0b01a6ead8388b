"""hiera-video own: from a folder or table of one's own to a tested model, or to one clear line."""

import csv
import json
import shutil

import numpy as np
import pytest
from test_find_segments import stitch
from test_search import frames_of

import hiera_video
from hiera_video.config import load_config
from hiera_video.data.lists import read_videos
from hiera_video.stages.own import NOTHING
from hiera_video.system.files import write_csv

# What makes training short; everything else is the preset's.
BRIEF = ["train.epochs=1", "train.val_every=0.5", "train.save_every=0.5", "optim.warmup_epochs=0"]
BRIEF += ["train.batch_size=8", "data.num_workers=0"]


def own(tool, videos, output, *more, **how):
    return tool("tools/own.py", videos, "--output", output, *more, **how)


def table(file, *rows, head="path,label,start_s,end_s"):
    file.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def some(shapes):
    """(path, class) of 16 videos."""
    names = (shapes / "classes.txt").read_text().splitlines()
    lines = [line.split() for line in (shapes / "train.csv").read_text().splitlines()[:16]]
    return [(shapes / path, names[int(label)]) for path, label in lines]


@pytest.fixture(scope="module")
def long_videos(some, tmp_path_factory):
    """Six videos of three words each, with gaps, and the table of their words."""
    folder = tmp_path_factory.mktemp("mine")
    rows = [["path", "label", "start_s", "end_s", "who"]]
    for k in range(6):
        words = [some[(k + j) % 2 * 8 + j % 2] for j in range(3)]
        times = stitch(folder / f"{k}, take.mp4", [frames_of(path) for path, _ in words])
        for (_, label), (start, end) in zip(words, times):
            rows.append([f"{k}, take.mp4", label, f"{start:.3f}", f"{end:.3f}", f"p{k // 2}"])
    write_csv(folder / "words.csv", rows)
    return folder


def test_class_folders(some, tmp_path, tool):
    """Every step of it; a file that is none is named and left out; again, nothing is done twice."""
    for path, name in some:
        (tmp_path / "vids" / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "vids" / name)
    (tmp_path / "vids" / some[0][1] / "broken.mp4").write_bytes(b"no video")
    out = tmp_path / "out"
    said = own(tool, tmp_path / "vids", out, *BRIEF).stdout
    assert "1 videos cannot be read" in said and "broken.mp4" in (out / "left_out.csv").read_text()
    assert "preset quick" in said and "hiera-video review" in said and "--folds 5" in said
    lists = [read_videos(out / f"lists/{name}.csv") for name in ("train", "val", "test")]
    paths = [{of_list.written(i) for i in range(len(of_list))} for of_list in lists]
    assert sum(map(len, paths)) == len(set.union(*paths)) == 16
    metrics = json.loads((out / "test/metrics.json").read_text())
    assert metrics["videos"] == len(lists[2]) and (out / "report.html").exists()
    config = load_config(out / "config.yaml")
    assert config.test.weights == str(out / "checkpoints/best")
    model = hiera_video.load(out / "checkpoints/best")
    assert model.classes == sorted({name for _, name in some})
    before = (out / "test/predictions.csv").stat().st_mtime_ns
    again = own(tool, tmp_path / "vids", out, *BRIEF).stdout
    assert "done already" in again
    assert (out / "test/predictions.csv").stat().st_mtime_ns == before
    shutil.copy(some[0][0], tmp_path / "vids" / some[0][1] / "more.mp4")
    listed = (out / "lists/train.csv").read_bytes()
    assert "on other rows" in own(tool, tmp_path / "vids", out, *BRIEF, check=2).stderr
    assert (out / "lists/train.csv").read_bytes() == listed
    said = own(tool, tmp_path / "vids", tmp_path / "dry", "--dry-run", *BRIEF).stdout
    assert "memory" in said and "whole run" in said and not (tmp_path / "dry/test").exists()
    taken = own(tool, tmp_path / "vids", out / "left_out.csv", *BRIEF, check=2).stderr
    assert "--output: cannot write" in taken


def test_segments_in_folds(long_videos, tmp_path, tool):
    """By person: each is tested once; rows of nothing lie in gaps; a table of all folds."""
    out = tmp_path / "out"
    table = long_videos / "words.csv"
    said = own(tool, table, out, "--group", "who", "--folds", "3", *BRIEF).stdout
    with open(table, newline="") as f:
        words = list(csv.DictReader(f))
    tested = []
    for k in (1, 2, 3):
        folder = out / f"fold_{k}"
        rows = {}
        for name in ("train", "val", "test"):
            with open(folder / f"lists/{name}.csv", newline="") as f:
                rows[name] = list(csv.DictReader(f))
        people = [{row["group"] for row in of_list} for of_list in rows.values()]
        assert sum(map(len, people)) == len(set.union(*people)) == 3
        tested += [(row["path"], row["start_s"]) for row in rows["test"] if row["label"] != NOTHING]
        for row in (row for of_list in rows.values() for row in of_list):
            twice = [r for of_list in rows.values() for r in of_list if r == row]
            assert len(twice) == 1
            if row["label"] == NOTHING:
                overlaps = [w for w in words if w["path"] == row["path"] and touch(w, row)]
                assert not overlaps
        assert any(row["label"] == NOTHING for row in rows["train"])
        config = load_config(folder / "config.yaml")
        assert config.data.clip_sampler == "random" and config.data.sampling_rate in (3, 4)
    assert sorted(tested) == sorted((w["path"], w["start_s"]) for w in words)
    with open(out / "folds.csv") as f:
        folds = list(csv.DictReader(f))
    top1 = [float(row["top1"]) for row in folds]
    for row in folds:
        metrics = json.loads((out / row["fold"] / "test/metrics.json").read_text())
        assert float(row["macro_f1"]) == metrics["macro_f1"]
    assert f"{np.mean(top1):.1f} +- {np.std(top1, ddof=1):.1f}" in said


def touch(word, gap):
    start, end = float(gap["start_s"]), float(gap["end_s"])
    return float(word["start_s"]) < end and start < float(word["end_s"])


def test_several_labels(some, tmp_path, tool):
    """Windows' ends of lines and a byte-order mark, rows without labels, classes that are numbers:
    thresholds are kept with the best weights and the last ones.
    """
    lines = [f"{path},{k % 3 + 7};{k % 2 + 2}" for k, (path, _) in enumerate(some)]
    lines += [f"{path}," for path, _ in some[:2]]
    text = "\r\n".join(["path,label", *lines, ""])
    (tmp_path / "many.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    out = tmp_path / "out"
    said = own(tool, tmp_path / "many.csv", out, *BRIEF).stdout
    assert "5 classes, several labels a row" in said
    metrics = json.loads((out / "test/metrics.json").read_text())
    assert metrics["map"] is not None and metrics["top1"] is None
    for weights in (out, out / "checkpoints/best"):
        model = hiera_video.load(weights)
        assert model.classes == ["2", "3", "7", "8", "9"] and model.thresholds is not None


def test_what_is_wrong_is_one_line(some, long_videos, tmp_path, tool):
    video = f'"{long_videos / "0, take.mp4"}"'
    other = f'"{long_videos / "1, take.mp4"}"'
    third = f'"{long_videos / "2, take.mp4"}"'
    parts = "path,label,start_s,end_s,split"
    cases = {
        "has one video": [f"{video},a,0,1", f"{video},b,2,3"],
        "has only the class 'a'": [f"{video},a,0,1", f"{other},a,2,3"],
        "begin behind the end": [f"{video},a,0,1", f"{other},b,60,61"],
        "0 <= start < end": [f"{video},a,0,1", f"{other},b,-2,1"],
        "has 5 cells": ["x, y.mp4,a,0,1", f"{other},b,2,3"],
        "2 of 3 videos cannot be read": [f"{video},a,0,1", "gone.mp4,b,0,1", "no.mp4,b,0,1"],
        "is in train and in test": ["#" + parts, f"{video},a,0,1,train", f"{video},b,2,3,test"],
        "must be one of train": ["#" + parts, f"{video},a,0,1,validation", f"{other},b,2,3,train"],
        "needs rows of train and of test": [
            "#" + parts,
            f"{video},a,0,1,val",
            f"{other},b,2,3,val",
        ],
        "are in the groups": [
            "#path,label,start_s,end_s,group",
            f"{video},a,0,1,ann",
            f"{video},b,2,3,bob",
            f"{other},b,2,3,bob",
        ],
        "has no label": [f"{video},,0,1", f"{other},,2,3"],
        "no column label": ["#path,start_s,end_s", f"{video},0,1", f"{other},2,3"],
    }
    for k, (words, rows) in enumerate(cases.items()):
        head = "path,label,start_s,end_s"
        if rows[0].startswith("#"):
            head = rows.pop(0)[1:]
        file = table(tmp_path / f"{k}.csv", *rows, head=head)
        said = own(tool, file, tmp_path / "out", check=2).stderr
        words = words.replace("are in the groups", "is in the groups")
        assert words in said and said.count("\n") == 1, said
    latin = tmp_path / "latin.csv"
    latin.write_bytes(f"path,label,start_s,end_s\n{video},caf\xe9,0,1\n".encode("latin-1"))
    assert "not UTF-8" in own(tool, latin, tmp_path / "out", check=2).stderr
    table(tmp_path / "list.csv", f"{some[0][0]} 1", head=f"{some[1][0]} 0")
    assert "nor a table" in own(tool, tmp_path / "list.csv", tmp_path / "out", check=2).stderr
    three = table(tmp_path / "3.csv", f"{video},a,0,1", f"{other},b,0,1", f"{third},b,0,1")
    folds = own(tool, three, tmp_path / "out", "--folds", "4", check=2).stderr
    assert "at most the 3 groups" in folds
    assert "there is no folder or table" in own(tool, "gone", tmp_path / "out", check=2).stderr
    for name in ("run;sit", "stand"):
        (tmp_path / "vids" / name).mkdir(parents=True)
        shutil.copy(some[0][0], tmp_path / "vids" / name)
    assert "rename it" in own(tool, tmp_path / "vids", tmp_path / "out", check=2).stderr
    assert not (tmp_path / "out").exists(), "nothing was written"


def test_classes_that_are_numbers(long_videos, tmp_path, tool):
    """With segments and a background, which the test may lack; a given split; other spellings of a
    path; columns that are nearly known; emoji.
    """
    folder = tmp_path / "\N{GRINNING FACE}"
    shutil.copytree(long_videos, folder)
    parts = ["train", "train", "train", "val", "test", "test"]
    rows = [f'"{k}, take.mp4",{k % 2 + 1},0.5,1.4,{part},x' for k, part in enumerate(parts)]
    rows.append('"./0, take.mp4",2,2.0,2.9,train,y')
    file = table(folder / "t.csv", *rows, head="path,label,start_s,end_s,split,Groups")
    said = own(tool, file, folder / "out", *BRIEF, "--background", "0.3").stdout
    assert "'Groups', which is ignored: is it 'group'?" in said and "2 classes" in said
    with open(folder / "out/test/predictions.csv", newline="") as f:
        tested = [row["label"] for row in csv.DictReader(f)]
    assert tested[:2] == ["0", "1"], "places in classes.txt"
    assert (folder / "out/lists/classes.txt").read_text().splitlines()[:2] == ["1", "2"]
    wrong = own(tool, file, tmp_path / "folds", "--folds", "3", check=2).stderr
    assert "says itself what is tested" in wrong
    leak = ['"0, take.mp4",1,0,1,train', '"./0, take.mp4",2,0,1,test', '"1, take.mp4",1,0,1,train']
    file = table(folder / "leak.csv", *leak, head="path,label,start_s,end_s,split")
    assert "is in train and in test" in own(tool, file, tmp_path / "o", check=2).stderr
    both = ['"0, take.mp4",1,0,1', f'"{folder}/0, take.mp4",2,2,3', '"1, take.mp4",1,0,1']
    file = table(folder / "both.csv", *both)
    assert "write it in one way" in own(tool, file, tmp_path / "o", check=2).stderr


def test_what_was_left_out_is_no_gap(long_videos, tmp_path, tool):
    rows = [f'"{long_videos}/{k}, take.mp4",{"ab"[k % 2]},0.5,1.0' for k in range(6)]
    rows += [f'"{long_videos}/{k}, take.mp4",,1.2,9' for k in range(6)]
    out = tmp_path / "out"
    file = table(tmp_path / "t.csv", *rows)
    own(tool, file, out, "--dry-run", *BRIEF)
    for name in ("train", "val", "test"):
        with open(out / f"lists/{name}.csv", newline="") as f:
            gaps = [row for row in csv.DictReader(f) if row["label"] == NOTHING]
        assert all(float(row["end_s"]) < 0.5 for row in gaps)


def test_overlaps_are_told(long_videos, tmp_path, tool):
    rows = []
    for k in range(4):
        rows += [f'"{long_videos}/{k}, take.mp4",a,0.1,1.2', f'"{long_videos}/{k}, take.mp4",b,1,2']
    file = table(tmp_path / "t.csv", *rows)
    said = own(tool, file, tmp_path / "out", "--dry-run", *BRIEF).stdout
    assert "WARNING: 4 times two rows give one moment" in said and "whole run" in said
