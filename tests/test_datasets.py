"""The scripts of datasets/: official formats to lists, what is wrong with lists, re-encoding."""

import json
import shutil

import numpy as np
import pytest
from conftest import ROOT

from hiera_video.data.decode.readers import open_video

SCRIPT = "datasets/official_lists.py"


@pytest.fixture
def touch(tmp_path):
    def make(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        return tmp_path

    return make


def test_kinetics(touch, tool):
    """Quoted labels, files in class folders or flat, names with and without times; what is not
    there is named.
    """
    root = touch("train/air drumming/abc_def-123_000010_000020.mp4", "train/zz9.mkv")
    (root / "k.csv").write_text(
        "label,youtube_id,time_start,time_end,split,is_cc\n"
        '"air drumming",abc_def-123,10,20,train,0\n'
        "abseiling,zz9,3,13,train,1\nzumba,gone,0,10,train,0\n"
    )
    done = tool(
        SCRIPT,
        "kinetics",
        root / "k.csv",
        "--videos",
        root / "train",
        "--output",
        root / "train.csv",
    )
    rows = (root / "train.csv").read_text().splitlines()
    assert rows == ["train/air drumming/abc_def-123_000010_000020.mp4 1", "train/zz9.mkv 0"]
    assert (
        root / "train.csv.missing.txt"
    ).read_text() == "gone_000000_000010\n" and "1 not found" in done.stdout

    (root / "test.csv").write_text(
        "youtube_id,time_start,time_end,split\nzz9,3,13,test\n"
    )  # no labels, Kinetics-700 style
    args = ("--classes", "k700", "--videos", root / "train", "--output", root / "lists/test.csv")
    tool(SCRIPT, "kinetics", root / "test.csv", *args)
    assert (root / "lists/test.csv").read_text() == "../train/zz9.mkv\n"
    (root / "k.csv").write_text("label,youtube_id,time_start,time_end\nno such class,zz9,3,13\n")
    wrong = tool(
        SCRIPT,
        "kinetics",
        root / "k.csv",
        "--videos",
        root / "train",
        "--output",
        root / "x.csv",
        check=2,
    )
    assert "'no such class' is not among the 400" in wrong.stderr


def test_something_something(touch, tool):
    root = touch("videos/78687.webm", "videos/2.webm", "frames/78687/00001.jpg")
    entry = {
        "id": "78687",
        "label": "holding potato",
        "template": "Holding [something] next to [something]",
    }
    (root / "train.json").write_text(json.dumps([entry]))
    tool(
        SCRIPT,
        "ssv2",
        root / "train.json",
        "--videos",
        root / "videos",
        "--output",
        root / "train.csv",
    )
    names = (ROOT / "datasets/labels/ssv2.txt").read_text().splitlines()
    number = names.index("Holding something next to something")
    assert (root / "train.csv").read_text() == f"videos/78687.webm {number}\n"
    (root / "test.json").write_text(json.dumps([{"id": "2"}]))
    tool(
        SCRIPT,
        "ssv2",
        root / "test.json",
        "--videos",
        root / "videos",
        "--output",
        root / "test.csv",
    )
    assert (root / "test.csv").read_text() == "videos/2.webm\n"
    frames = ("--videos", root / "frames", "--output", root / "x.csv")
    assert "extracted frames" in tool(SCRIPT, "ssv2", root / "train.json", *frames, check=2).stderr


def test_ucf_and_hmdb(touch, tool):
    root = touch(
        "UCF/Archery/v_Archery_g01_c01.avi", "UCF/ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi"
    )
    (root / "trainlist01.txt").write_text(
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\nArchery/v_Archery_g01_c01.avi 3\n"
    )
    tool(
        SCRIPT,
        "ucf101",
        root / "trainlist01.txt",
        "--videos",
        root / "UCF",
        "--output",
        root / "train.csv",
    )
    assert (root / "train.csv").read_text().splitlines() == [
        "UCF/ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 0",
        "UCF/Archery/v_Archery_g01_c01.avi 2",
    ]
    touch("hmdb/catch/a.avi", "hmdb/catch/b.avi", "hmdb/catch/c.avi", "splits/x_test_split2.txt")
    (root / "splits/catch_test_split1.txt").write_text("a.avi 1 \nb.avi 2 \nc.avi 0 \n")
    for part, name in (("train", "a"), ("test", "b")):
        args = ("--part", part, "--videos", root / "hmdb", "--output", root / f"{part}.csv")
        tool(SCRIPT, "hmdb51", root / "splits", *args)
        assert (root / f"{part}.csv").read_text() == f"hmdb/catch/{name}.avi 2\n"


def test_check_lists(touch, tool):
    root = touch("a.mp4", "b.mp4", "c.mp4", "copies/c.mp4")
    (root / "d.mp4").write_text("same bytes"), (root / "e.mp4").write_text("same bytes")
    (root / "classes.txt").write_text("x\ny\nz\n")
    (root / "train.csv").write_text("a.mp4 0\na.mp4 0\nb.mp4 7\ngone.mp4 1\nc.mp4 1\nd.mp4 0\n")
    (root / "val.csv").write_text("b.mp4 2\ncopies/c.mp4 1\ne.mp4 0\n")
    lists = (root / "train.csv", root / "val.csv", "--classes", root / "classes.txt", "--content")
    out = tool("datasets/check_lists.py", *lists, check=2)
    for text in (
        f"1 missing files in {root}/train.csv: gone.mp4",
        f"1 repeated videos in {root}/train.csv: a.mp4",
        f"1 labels outside 0 to 2 in {root}/train.csv: b.mp4 7",
        f"classes without a video in {root}/train.csv: z",
        "videos in both",
        "file names in both",
        f"{root}/d.mp4 = {root}/e.mp4",
    ):
        assert text in out.stdout, text
    assert "problems in 2 lists of 9 videos" in out.stderr
    (root / "good.csv").write_text("a.mp4 0\nb.mp4 1\nc.mp4 2\n")
    assert (
        "nothing wrong"
        in tool(
            "datasets/check_lists.py", root / "good.csv", "--classes", root / "classes.txt"
        ).stdout
    )


def test_resize_videos(shapes, tmp_path, tool):
    """Same frames in number, order and time; smaller; damaged ones left out; the second time
    nothing is done again.
    """
    root = tmp_path / "videos"
    (root / "a class").mkdir(parents=True)
    good = sorted(shapes.rglob("*.mp4"))[:2]
    for k, source in enumerate(good):
        shutil.copy(source, root / f"a class/{k}.mp4")
    (root / "cut.mp4").write_bytes(good[0].read_bytes()[:900])
    (root / "train.csv").write_text("a class/0.mp4 3\ncut.mp4 1\n")
    (root / "val.csv").write_text("a class/1.mp4\n")
    out = tmp_path / "small"
    lists = (
        root / "train.csv",
        root / "val.csv",
        "--output",
        out,
        "--short-side",
        "48",
        "--keyframes",
        "4",
    )
    done = tool("datasets/resize_videos.py", *lists)
    assert (
        "left out: " in done.stdout
        and "2 of 3 videos" in done.stdout
        and "times cheaper" in done.stdout
    )
    assert (out / "train.csv").read_text() == "a class/0.mp4 3\n" and (
        out / "val.csv"
    ).read_text() == "a class/1.mp4\n"
    assert "cut.mp4," in (out / "failed.csv").read_text()
    with open_video(root / "a class/0.mp4") as old, open_video(out / "a class/0.mp4") as new:
        assert (
            new.packets.info.num_frames == old.info.num_frames
            and min(new.get([0]).shape[1:3]) == 48
        )
        np.testing.assert_allclose(new.info.times, old.info.times, atol=1e-3)
        assert (
            len(new.packets.keyframes) == -(-new.info.num_frames // 4) and not new.packets.remarks
        )
    stamp = (out / "a class/0.mp4").stat().st_mtime_ns
    tool("datasets/resize_videos.py", *lists)
    assert (out / "a class/0.mp4").stat().st_mtime_ns == stamp
    assert not list(out.rglob("*.part"))
    other = tool("datasets/resize_videos.py", *lists, "--crf", "30", check=2).stderr
    assert "made with --crf 20, not 30; give another folder" in other
    into_itself = (root / "train.csv", "--output", root)
    assert "folder of the lists" in tool("datasets/resize_videos.py", *into_itself, check=2).stderr


@pytest.mark.trial
def test_resizing_makes_clips_cheaper(tmp_path, tool, clips):
    """On a Kinetics-like clip: at least 2.5 times."""
    (tmp_path / "list.csv").write_text("kinetics_like.mp4 0\n")
    done = tool(
        "datasets/resize_videos.py",
        tmp_path / "list.csv",
        "--root",
        clips,
        "--output",
        tmp_path / "out",
    )
    print(done.stdout)
    assert float(done.stdout.split(" times cheaper")[0].split()[-1]) >= 2.5


def test_uneven_and_rotated_videos_keep_their_times(tmp_path, tool, clips):
    (tmp_path / "list.csv").write_text("part_0.mp4 0\nvideo_90.mov 1\n")
    tool(
        "datasets/resize_videos.py",
        tmp_path / "list.csv",
        "--root",
        clips,
        "--output",
        tmp_path / "new",
        "--short-side",
        "128",
    )
    for name, new in (("part_0.mp4", "part_0.mp4"), ("video_90.mov", "video_90.mp4")):
        with open_video(clips / name) as a, open_video(tmp_path / "new" / new) as b:
            np.testing.assert_allclose(a.info.times, b.info.times, atol=2e-3)
            shapes = [np.array(v.get([0]).shape[1:3]) for v in (a, b)]
            assert (
                abs(shapes[0][0] / shapes[0][1] - shapes[1][0] / shapes[1][1]) < 0.03
                and min(shapes[1]) == 128
            )
    assert (tmp_path / "new/list.csv").read_text() == "part_0.mp4 0\nvideo_90.mp4 1\n"
