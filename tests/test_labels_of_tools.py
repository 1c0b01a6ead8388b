"""What other tools read and write: labels for them, and tables with segments from their files."""

import csv
import json
import shutil
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import FINETUNE, SHORT, start

from hiera_video.data.lists import read_videos
from hiera_video.evaluation.segments import Segment, segments_of

TABLES = "datasets/segment_tables.py"


@pytest.fixture(scope="module")
def trained(shapes, tmp_path_factory):
    """A run whose test list has a video that is missing."""
    folder = tmp_path_factory.mktemp("labels")
    (folder / "val.csv").write_text("gone.mp4 1\n" + (shapes / "val.csv").read_text())
    listed = [f"data.test={folder / 'val.csv'}", "test.min_coverage=0.5"]
    out = folder / "run"
    start(
        f"data.root={shapes}", f"output={out}", "init.weights=null", *listed, *SHORT, cfg=FINETUNE
    )
    return out


@pytest.fixture(scope="module")
def timelines(trained, shapes, tmp_path_factory, tool):
    folder = tmp_path_factory.mktemp("timelines") / "out"
    videos = [shapes / line.split()[0] for line in (shapes / "val.csv").read_text().splitlines()]
    command = ("--weights", trained, "--timeline", folder, "--hop-s", "0.1")
    tool("tools/predict.py", *videos[:3], *command)
    return folder


def export(tool, source, form, target, *more, **how):
    command = ("tools/export_labels.py", source, "--to", form, target, *more)
    return tool(*command, **how)


def truth_of(timelines, least):
    """{name: segments}, by hand: a window counts until midway to the next one's centre."""
    found = {}
    for file in sorted(timelines.glob("*.timeline.csv")):
        with open(file) as f:
            rows = list(csv.DictReader(f))
        starts = [float(r["start_s"]) for r in rows]
        ends = [float(r["end_s"]) for r in rows]
        middle = [(s + e) / 2 for s, e in zip(starts, ends)]
        edges = [starts[0]]
        edges += [(a + b) / 2 for a, b in zip(middle, middle[1:])]
        edges.append(ends[-1])
        runs = []
        for k, row in enumerate(rows):
            if float(row["top1_score"]) < least:
                runs.append(None)
            elif runs and runs[-1] is not None and runs[-1][0] == row["top1_name"]:
                runs[-1][2] = edges[k + 1]
                runs[-1][3].append(float(row["top1_score"]))
            else:
                runs.append([row["top1_name"], edges[k], edges[k + 1], [float(row["top1_score"])]])
        name = file.name.removesuffix(".timeline.csv")
        found[name] = [(r[0], r[1], r[2], sum(r[3]) / len(r[3])) for r in runs if r]
    return found


def test_segments_of_windows():
    times = np.array([[0, 2], [1, 3], [2, 4], [3, 5], [4, 6]], dtype=float)
    best = [("a", 0.9), ("a", 0.7), ("b", 0.2), ("b", 0.6), ("a", 0.5)]
    found = segments_of(times, best, least=0.5)
    assert found == [
        Segment("a", pytest.approx(0.8), 0.0, 2.5),
        Segment("b", 0.6, 3.5, 4.5),
        Segment("a", 0.5, 4.5, 6.0),
    ]
    assert found[0].frames(10, 60) == (0, 24) and found[2].frames(10, 58) == (45, 57)
    assert Segment("a", 1.0, 9.0, 9.5).frames(10, 60) == (59, 59)


def test_activitynet(timelines, trained, shapes, tmp_path, tool):
    export(tool, timelines, "activitynet", tmp_path / "found.json", "--least", "0.1")
    found = json.loads((tmp_path / "found.json").read_text())
    # Evaluation/eval_detection.py: PREDICTION_FIELDS, and `label`, `score`, `segment` of each.
    assert set(found) == {"results", "version", "external_data"}
    truth = truth_of(timelines, 0.1)
    assert sum(map(len, truth.values())) >= 3 and set(found["results"]) == set(truth)
    for name, segments in truth.items():
        ours = found["results"][name]
        assert [item["label"] for item in ours] == [s[0] for s in segments]
        np.testing.assert_allclose([i["segment"] for i in ours], [s[1:3] for s in segments])
        np.testing.assert_allclose([i["score"] for i in ours], [s[3] for s in segments], atol=1e-6)
    done = export(tool, trained, "activitynet", tmp_path / "run.json")
    assert "9 videos, 0 segments, 8 classes" in done.stdout
    results = json.loads((tmp_path / "run.json").read_text())["results"]
    names = (shapes / "classes.txt").read_text().splitlines()
    with open(trained / "test/predictions.csv") as f:
        for row in csv.DictReader(f):
            (best, *others) = results[row["path"].split("/")[-1][:-4]]
            assert names.index(best["label"]) == int(row["prediction"]) and len(others) == 4
            assert best["score"] == pytest.approx(float(row["top1_score"]))


def test_fiftyone(timelines, tmp_path, tool):
    """fiftyone/utils/data/importers.py, FiftyOneVideoLabelsDatasetImporter: frames from 1."""
    export(tool, timelines, "fiftyone", tmp_path / "out", "--least", "0.1")
    index = json.loads((tmp_path / "out/manifest.json").read_text())["index"]
    truth = truth_of(timelines, 0.1)
    assert len(index) == 3
    for record in index:
        with open(record["data"], "rb") as video:
            assert video.read(1)
        labels = json.loads((tmp_path / "out" / record["labels"]).read_text())
        (attribute,) = labels["attrs"]["attrs"]
        assert attribute["name"] == "prediction" and 0 < attribute["confidence"] <= 1
        name = record["labels"].split("/")[-1][:-5]
        ranges = [event["support"]["ranges"][0] for event in labels["events"]["events"]]
        expected = []
        for _, start_s, end_s, _ in truth[name]:
            expected.append([round(start_s * 30) + 1, min(round(end_s * 30), 28)])
        assert ranges == expected and ranges[-1][1] == 28


def test_cvat(timelines, trained, tmp_path, tool):
    """cvat.py, load_anno: tags of frames, which are found by `frame_%06d`, from 0."""
    export(tool, timelines, "cvat", tmp_path / "out", "--least", "0.1")
    names = {label["name"] for label in json.loads((tmp_path / "out/labels.json").read_text())}
    for name, segments in truth_of(timelines, 0.1).items():
        root = ElementTree.parse(tmp_path / f"out/{name}.xml").getroot()
        tags = {image.get("name"): image.find("tag").get("label") for image in root.iter("image")}
        assert set(tags.values()) <= names and all(tag.tag != "tag" for tag in root)
        for label, start_s, end_s, _ in segments:
            middle = round((start_s + end_s) / 2 * 30)
            assert tags[f"frame_{min(middle, 27):06d}"] == label
        assert len(tags) == sum(round(s[2] * 30) - round(s[1] * 30) for s in segments)
    export(tool, trained, "cvat", tmp_path / "run")
    (file, *others) = sorted((tmp_path / "run").glob("*.xml"))
    assert len(ElementTree.parse(file).getroot().findall("image")) == 28 and len(others) == 8


def test_label_studio(timelines, shapes, tmp_path, tool):
    """Frames from 1, the last one in it; every name and label is one of the interface's."""
    export(tool, timelines, "labelstudio", tmp_path / "out", "--root", shapes, "--least", "0.1")
    view = ElementTree.parse(tmp_path / "out/config.xml").getroot()
    tags = {tag.get("name"): tag for tag in view if tag.get("name")}
    truth = truth_of(timelines, 0.1)
    tasks = json.loads((tmp_path / "out/tasks.json").read_text())
    assert len(tasks) == 3
    for task in tasks:
        place = task["data"]["video"].removeprefix("/data/local-files/?d=")
        assert (shapes / place).is_file() and task["data"]["fps"] == 30
        (prediction,) = task["predictions"]
        assert 0 <= prediction["score"] <= 1
        segments = []
        for item in prediction["result"]:
            tag = tags[item["from_name"]]
            assert tag.get("toName") == item["to_name"] == "video"
            assert tag.tag.lower() == item["type"] and isinstance(item["value"], dict)
            (label,) = item["value"][item["type"]]
            assert label in {choice.get("value") for choice in tag}
            if item["type"] == "timelinelabels":
                (part,) = item["value"]["ranges"]
                segments.append((label, part["start"], part["end"]))
        name = place.split("/")[-1][:-4]
        expected = [(s[0], round(s[1] * 30) + 1, min(round(s[2] * 30), 28)) for s in truth[name]]
        assert segments == expected


def test_segments_of_a_list(trained, shapes, tmp_path, tool):
    """A run on a table of segments gives each its class, and one that is missing none."""
    video = (shapes / "val.csv").read_text().split()[0]
    rows = ["path,label,start_s,end_s", f"{video},0,50,51", f"{video},0,0.0,0.4"]
    (tmp_path / "parts.csv").write_text("\n".join([*rows, f"{video},1,0.5,0.9"]) + "\n")
    out = tmp_path / "run"
    start(
        f"data.root={shapes}",
        f"data.test={tmp_path / 'parts.csv'}",
        f"test.weights={trained}",
        f"output={out}",
        "stages=[test]",
        "test.min_coverage=0.5",
        *SHORT,
        cfg=FINETUNE,
    )
    export(tool, out, "activitynet", tmp_path / "found.json")
    (said,) = json.loads((tmp_path / "found.json").read_text())["results"].values()
    assert [item["segment"] for item in said] == [[0.0, 0.4], [0.5, 0.9]]


def test_a_table_from_activitynet(tmp_path, tool):
    for name in ("v_one.mp4", "two.webm"):
        (tmp_path / "videos" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "videos" / name).write_bytes(b"")
    database = {
        "one": {
            "subset": "training",
            "duration": 20.0,
            "annotations": [
                {"label": "jump, high", "segment": [1.5, 4.0]},
                {"label": "run", "segment": [18.0, 25.0]},
                {"label": "run", "segment": [3.0, 3.0]},
            ],
        },
        "two": {
            "subset": "validation",
            "duration": "9.5",
            "annotations": [{"label": "run", "segment": [0, 1]}],
        },
        "gone": {
            "subset": "training",
            "duration": 5,
            "annotations": [{"label": "run", "segment": [0, 1]}],
        },
        "dull": {"subset": "training", "duration": 5, "annotations": []},
    }
    file = tmp_path / "anet.json"
    file.write_text(json.dumps({"version": "VERSION 1.3", "database": database}))
    output = tmp_path / "train.csv"
    command = (TABLES, "activitynet", file, "--videos", tmp_path / "videos", "--output", output)
    said = tool(*command, "--subset", "training").stdout
    assert "2 segments of 1 videos, 2 classes; 1 videos not found" in said and "1 segments empty"
    listed = read_videos("train.csv", root=tmp_path)
    assert [listed.segment(k) for k in range(2)] == [(1.5, 4.0), (18.0, 20.0)]
    assert [listed.label_text(k) for k in range(2)] == ["jump, high", "run"]
    assert listed.written(0) == "videos/v_one.mp4"
    assert (tmp_path / "train.csv.missing.txt").read_text() == "gone\n"
    assert "3 segments of 2 videos" in tool(*command).stdout
    assert "has training, validation" in tool(*command, "--subset", "test", check=2).stderr
    file.write_text("[1]")
    assert "no ActivityNet json" in tool(*command, check=2).stderr
    file.write_text(json.dumps({"database": {"one": {"annotations": [{"label": "x"}]}}}))
    assert "annotation 1 of one needs" in tool(*command, check=2).stderr


def test_a_table_from_ava(tmp_path, tool):
    (tmp_path / "videos").mkdir()
    for name in ("one.mp4", "two_000010_000020.mp4"):
        (tmp_path / "videos" / name).write_bytes(b"")
    (tmp_path / "actions.pbtxt").write_text(
        'label {\n  name: "bend (at the waist)"\n  label_id: 1\n  label_type: PERSON_MOVEMENT\n}\n'
        'item {\n  name: "sit"\n  id: 11\n}\n'
    )
    rows = ["one,0902,0.1,0.1,0.5,0.9,1,0", "one,0902,0.1,0.1,0.5,0.9,11,0"]
    rows += ["one,0902,0.6,0.1,0.9,0.9,11,1", "two,0912.5,0,0,1,1,11", "gone,0903,0,0,1,1,1,0"]
    rows += ["two,913"]
    (tmp_path / "ava.csv").write_text("\n".join(rows) + "\n")
    output = tmp_path / "train.csv"
    command = (TABLES, "ava", tmp_path / "ava.csv", "--videos", tmp_path / "videos")
    command += ("--output", output, "--actions", tmp_path / "actions.pbtxt", "--starts-at", "900")
    tool(*command)
    listed = read_videos("train.csv", root=tmp_path)
    assert len(listed) == 2 and listed.label_text(0) == "bend (at the waist);sit"
    assert listed.segment(0) == (0.5, 3.5)
    assert listed.segment(1) == (1.0, 4.0), "Kinetics' files begin at the second in their name"
    tool(*command, "--persons", "--seconds", "1")
    with open(output) as f:
        persons = list(csv.DictReader(f))
    assert [row["person_id"] for row in persons] == ["0", "1", ""] and persons[1]["x1"] == "0.6"
    (tmp_path / "ava.csv").write_text("one,0902,0.1,0.1,0.5,0.9,7,0\n")
    assert "action 7 is not in" in tool(*command, check=2).stderr
    (tmp_path / "ava.csv").write_text("video_id,timestamp,x1,y1,x2,y2,action_id,person_id\n")
    assert "line 1: not of the form" in tool(*command, check=2).stderr
    # Two parts of one video, and a time that neither shows.
    (tmp_path / "videos/two_000100_000110.mp4").write_bytes(b"")
    rows = [f"two,{at},0,0,1,1,11" for at in (12, 105, 300)]
    (tmp_path / "ava.csv").write_text("\n".join(rows) + "\n")
    said = tool(*command[:-4], "--output", output).stdout
    assert "2 segments" in said and "1 segments empty" in said
    listed = read_videos("train.csv", root=tmp_path)
    assert [listed.segment(k) for k in range(2)] == [(0.5, 3.5), (3.5, 6.5)]
    assert [listed.written(k)[-10:-4] for k in range(2)] == ["000020", "000110"]


def test_what_is_wrong_is_said(trained, timelines, tmp_path, tool):
    target = tmp_path / "out"
    assert "holds neither" in export(tool, tmp_path, "cvat", target, check=2).stderr
    given = export(tool, timelines, "cvat", target, "data.root=/x", check=2).stderr
    assert "keys are of a run's config" in given
    given = export(tool, trained, "cvat", target, "--least", "0.3", check=2).stderr
    assert "--least is for timelines" in given
    given = export(tool, timelines, "labelstudio", target, "--root", tmp_path, check=2).stderr
    assert "does not hold" in given
    shutil.copytree(timelines, tmp_path / "cut")
    file = next((tmp_path / "cut").glob("*.timeline.json"))
    file.write_text(file.read_text()[:40])
    assert "no whole timeline" in export(tool, tmp_path / "cut", "cvat", target, check=2).stderr
    moved = export(tool, trained, "cvat", target, "data.root=/nowhere", check=2).stderr
    assert "/nowhere" in moved
    assert "--least" in export(tool, timelines, "cvat", target, "--least", "2", check=2).stderr
    (tmp_path / "file").write_text("")
    there = export(tool, timelines, "cvat", tmp_path / "file/x", check=2).stderr
    assert "cannot write" in there
