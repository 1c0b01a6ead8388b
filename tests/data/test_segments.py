"""Lists with a header, and rows that are a part of a video."""

import numpy as np
import pytest
from conftest import ROOT, start

from hiera_video.config import load_config
from hiera_video.data.background import gaps_between, with_background
from hiera_video.data.classes import check_labels
from hiera_video.data.dataset import ClipDataset, Key
from hiera_video.data.decode.source import VideoSource
from hiera_video.data.lists import read_videos
from hiera_video.data.sampling import (
    ClipShape,
    RandomClip,
    SlidingWindows,
    UniformClips,
    UniformSegments,
    segment_frames,
)
from hiera_video.data.transforms import EvalCrops
from hiera_video.models.weights import read_weights
from hiera_video.stages.inputs import read_inputs
from hiera_video.system.errors import UserError


def written(tmp_path, text, name="list.csv"):
    (tmp_path / name).write_text(text, encoding="utf-8")
    return read_videos(name, root=tmp_path)


def test_columns_in_any_order_and_others_kept(tmp_path):
    text = 'speaker,end_s,label,start_s,path\nann,4.5,3,2.0,"a, b.mp4"\nbob,,1,,c d.mp4\n'
    videos = written(tmp_path, text)
    assert [videos.written(i) for i in range(2)] == ["a, b.mp4", "c d.mp4"]
    assert videos.labels.tolist() == [3, 1]
    assert (videos.segment(0), videos.segment(1)) == ((2.0, 4.5), None)
    assert videos.head() + "".join(videos.line(i) + "\n" for i in range(2)) == text
    assert videos.line(0, "x/y.mp4") == "ann,4.5,3,2.0,x/y.mp4"
    part = videos.subset([1, 0])
    assert (part.segment(0), part.segment(1)) == (None, (2.0, 4.5))
    assert part.line(1) == 'ann,4.5,3,2.0,"a, b.mp4"'


def test_a_segment_changes_what_a_list_is(tmp_path):
    first = written(tmp_path, "path,label,start_s,end_s\na.mp4,0,1,2\n")
    other = written(tmp_path, "path,label,start_s,end_s\na.mp4,0,1,3\n")
    whole = written(tmp_path, "path,label\na.mp4,0\n")
    plain = written(tmp_path, "a.mp4 0\n")
    assert first.sha256() != other.sha256() != whole.sha256() == plain.sha256()
    assert first.has_segments and not whole.has_segments


def test_lists_without_a_header_stay_what_they_are(tmp_path):
    videos = written(tmp_path, "my path,label.mp4 3\n")
    assert (videos.written(0), videos.label(0)) == ("my path,label.mp4", 3)


@pytest.mark.parametrize(
    "text, message",
    [
        ("path,label,start_s\na.mp4,0,1\n", "needs both start_s and end_s"),
        ("path,label,start_s,end_s\na.mp4,0,2,1\n", r"row 1 .*line 2.*start < end"),
        ("path,label,start_s,end_s\na.mp4,0,1,2\nb.mp4,0,x,1\n", r"row 2 .*start_s='x'"),
        ("path,label\na,b.mp4,0\n", "3 cells, but the header names 2"),
        ("path,label\n,0\n", "row 1 .* has no path"),
        ("path,path\na.mp4,b\n", "two columns 'path'"),
        ("path,label\n", "no rows"),
    ],
)
def test_wrong_tables_are_refused(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        written(tmp_path, text)


# -- names of classes


def test_names_mean_the_same_in_all_lists(tmp_path, shapes):
    video = next((shapes / "val").rglob("*.mp4"))
    for name, labels in (("train.csv", "run jump swim"), ("val.csv", "swim run")):
        rows = "".join(f"{video},{label}\n" for label in labels.split())
        (tmp_path / name).write_text(f"path,label\n{rows}")
    config = load_config(ROOT / "tests/configs/finetune.yaml", [f"data.root={tmp_path}"])
    unnamed = load_config(
        ROOT / "tests/configs/finetune.yaml", [f"data.root={tmp_path}", "data.classes=null"]
    )
    inputs = read_inputs(unnamed)
    assert inputs["data.train"].classes.names == ["jump", "run", "swim"]
    assert inputs["data.test"].videos.labels.tolist() == [2, 1]
    (tmp_path / "classes.txt").write_text("swim\nrun\njump\n")
    assert read_inputs(config)["data.test"].videos.labels.tolist() == [0, 1]
    (tmp_path / "val.csv").write_text(f"path,label\n{video},fly\n")
    with pytest.raises(UserError, match=r"row 1 .*'fly', which is none of the 3 classes"):
        read_inputs(config)


def test_names_that_look_like_numbers_stay_names(tmp_path, shapes):
    video = next((shapes / "val").rglob("*.mp4"))
    for name, labels in (("train.csv", "1 2 10 oh"), ("val.csv", "1 2")):
        rows = "".join(f"{video},{label}\n" for label in labels.split())
        (tmp_path / name).write_text(f"path,label\n{rows}")
    overrides = [f"data.root={tmp_path}", "data.classes=null"]
    inputs = read_inputs(load_config(ROOT / "tests/configs/finetune.yaml", overrides))
    assert inputs["data.train"].classes.names == ["1", "10", "2", "oh"]
    assert inputs["data.test"].videos.labels.tolist() == [0, 2]


def test_several_labels_stand_in_nobody_s_way_but_are_not_learned(tmp_path):
    videos = written(tmp_path, "path,label\na.mp4,run;jump\nb.mp4,run\nc.mp4,\n")
    assert videos.labels.tolist() == [-2, 0, -1] and videos.classes == ("run",)
    with pytest.raises(UserError, match=r"row 1 .*a\.mp4.* has several labels"):
        check_labels(videos, 1, key="data.train")


# -- frames


SHAPE = ClipShape(8, 2, 30)  # 16 frames at 30 fps


def drawn(sample, segment, *, frames=90, fps=30.0, seed=0):
    """Clips of a segment, as frames of the video."""
    span = sample.span(fps)
    first, count = segment_frames(*segment, num_frames_in_video=frames, fps=fps, span=span)
    return first + sample(count, fps, np.random.default_rng(seed))


def test_clips_lie_inside_their_segment():
    for seed in range(50):
        clip = drawn(RandomClip(SHAPE), (1.0, 2.0), seed=seed)
        assert clip.min() >= 30 and clip.max() < 60
    starts = {int(drawn(RandomClip(SHAPE), (1.0, 2.0), seed=s)[0, 0]) for s in range(200)}
    assert starts == set(range(30, 44))  # anywhere in it
    spread = drawn(UniformClips(SHAPE, 3), (1.0, 2.0))
    assert spread[:, 0].tolist() == [30, 37, 44] and spread.max() < 60
    assert drawn(UniformSegments(8, 1), (1.0, 2.0)).max() < 60
    windows = drawn(SlidingWindows(SHAPE, None), (1.0, 2.0))
    assert windows[0, 0] == 30 and 58 <= windows.max() < 60


@pytest.mark.parametrize("sample", [RandomClip(SHAPE), UniformClips(SHAPE, 2)])
def test_a_segment_shorter_than_a_clip_is_centred(sample):
    clip = drawn(sample, (1.4, 1.6))  # frames 42 to 47
    assert (clip[:, 0] == 37).all() and (clip[:, -1] == 52).all()
    early = drawn(sample, (0.0, 0.1))
    assert early.min() < 0  # clamped to the video by the data set


def test_clips_may_reach_beyond_their_segment():
    """At a share of a half the middle of every clip lies in it, and all such clips are drawn."""
    sample = RandomClip(SHAPE)
    middles = set()
    for seed in range(300):
        first, count = segment_frames(
            1.0, 1.5, num_frames_in_video=90, fps=30.0, span=sample.span(30.0), share=0.5
        )
        clip = first + sample(count, 30.0, np.random.default_rng(seed))
        middles.add(int(clip[0, 0]) + 8)
    assert middles == set(range(30, 45))
    assert segment_frames(0.0, 0.5, num_frames_in_video=90, fps=30.0, span=16, share=0.5) == (0, 23)


def test_a_segment_behind_the_end_is_named():
    with pytest.raises(ValueError, match=r"begins behind the end, 3\.000 s"):
        segment_frames(3.2, 4.0, num_frames_in_video=90, fps=30.0)
    first, count = segment_frames(2.9, 9.0, num_frames_in_video=90, fps=30.0)
    assert (first, count) == (87, 3)
    # About the middle of what the video has of it.
    assert segment_frames(2.9, 9.0, num_frames_in_video=90, fps=30.0, span=16)[0] == 80


def test_views_of_segments_of_one_video(shapes, tmp_path):
    """Times of the views, the same frames as the whole video's, and a row that cannot be."""
    video = next((shapes / "val").rglob("*.mp4"))  # 28 frames at 30 fps
    rows = f"{video},0,0.1,0.5\n{video},1,0.4,0.8\n{video},1,5,6\n{video},1,,\n"
    videos = written(tmp_path, f"path,label,start_s,end_s\n{rows}")
    source = VideoSource()
    data = ClipDataset(
        videos,
        sample=UniformClips(ClipShape(4, 2, 30), 1),
        transform=EvalCrops(short_side=32, size=32, num_crops=1),
        source=source,
    )
    samples = [data[Key(0, row)] for row in range(4)]
    assert samples[0]["times"].round(4).tolist() == [[0.1667, 0.4333]]
    assert samples[1]["times"].round(4).tolist() == [[0.4667, 0.7333]]
    assert "begins behind the end" in samples[2]["bad"][0][1] and "clip" not in samples[2]
    assert samples[3]["times"].round(4).tolist() == [[0.3333, 0.6]]  # the middle of all
    assert (samples[0]["clip"] != samples[1]["clip"]).any()
    (chunk,) = data.chunks(1, 0)
    assert (chunk["clip"][0] == samples[1]["clip"]).all()
    assert np.array_equal(chunk["times"][0], samples[1]["times"])
    source.close()


def test_a_run_on_segments(shapes, tmp_path):
    """Many rows of one video: each is scored once, and predictions.csv tells them apart."""
    videos = sorted((shapes / "val").rglob("*.mp4"))
    rows = []
    for k, video in enumerate(videos[:4]):
        rows += [f"{video},{k},0,0.4", f"{video},{k + 4},0.4,0.8"]
    for name in ("train.csv", "val.csv"):
        (tmp_path / name).write_text("\n".join(["path,label,start_s,end_s", *rows]) + "\n")
    start(
        *(f"data.root={tmp_path}", f"output={tmp_path / 'run'}", "init.weights=null"),
        *("data.classes=null", "model.num_classes=8", "model.embed_dim=16"),
        *("model.stages=[1,1,1,1]", "data.num_workers=0", "train.epochs=2", "train.batch_size=4"),
        *("train.val_every=0", "test.clips=1", "test.crops=1", "stages=[train,test,features]"),
    )
    lines = (tmp_path / "run/test/predictions.csv").read_text().splitlines()
    assert lines[0].endswith(",start_s,end_s")
    assert [line.split(",")[-2:] for line in lines[1:3]] == [["0.0", "0.4"], ["0.4", "0.8"]]
    assert len(lines) == 9
    manifest = (tmp_path / "run/features/manifest.csv").read_text().splitlines()
    assert len(manifest) == 9 and all(line.endswith(",ok") for line in manifest[1:])


def test_gaps_between_segments():
    segments = [(8.0, 9.0), (2.0, 4.0), (3.0, 5.0), (5.2, 6.0)]
    assert gaps_between(segments, distance_s=0.5, least_s=0.5) == [(0.0, 1.5), (6.5, 7.5)]
    assert gaps_between(segments, distance_s=0.0, least_s=0.1) == [(0, 2), (5, 5.2), (6, 8)]
    assert gaps_between([(0.0, float("inf"))], distance_s=0, least_s=0.1) == []


def test_rows_of_the_background(tmp_path):
    """As many as asked for, in gaps alone, long ones more often; other columns stay empty."""
    text = "path,label,who,start_s,end_s\na.mp4,run,ann,10,11\na.mp4,run,bob,12,14\nb.mp4,x,,1,2\n"
    videos = written(tmp_path, text)
    more = with_background(
        videos, 4.0, label="nothing", distance_s=0.5, least_s=1.0, key="data.train"
    )
    assert len(more) == 3 + 12 and more.classes == ("nothing", "run", "x")
    extra = range(3, 15)
    assert {more.label_text(i) for i in extra} == {"nothing"}
    assert {more.written(i) for i in extra} == {"a.mp4"}, "b has no gap of a second"
    assert {more.segment(i) for i in extra} == {(0.0, 9.5)} and more.column("who")[3] == ""
    assert [more.segment(i) for i in range(3)] == [videos.segment(i) for i in range(3)]
    with pytest.raises(UserError, match="no gap between segments"):
        with_background(videos, 1, label="x", distance_s=0.5, least_s=20, key="data.train")
    plain = written(tmp_path, "a.mp4 1\n", "plain.csv")
    with pytest.raises(UserError, match="no table with labels and segments"):
        with_background(plain, 1, label="x", distance_s=0.5, least_s=1, key="data.train")


@pytest.mark.parametrize("several", [False, True])
def test_a_run_with_a_background(shapes, tmp_path, several):
    video = sorted((shapes / "val").rglob("*.mp4"))[0]
    rows = ["path,label,start_s,end_s", f"{video},jump,0.6,0.9", f"{video},run,0.7,0.9"]
    (tmp_path / "train.csv").write_text("\n".join(rows) + "\n")
    keys = [f"data.root={tmp_path}", f"output={tmp_path / 'run'}", "init.weights=null"]
    keys += ["data.val=train.csv", "data.classes=null", "model.embed_dim=16", "train.val_every=0"]
    keys += ["model.stages=[1,1,1,1]", "data.num_workers=0", "train.epochs=2", "stages=[train]"]
    keys += ["data.background_share=2", "data.background_distance_s=0", "train.batch_size=2"]
    if several:
        keys += ["classify.multilabel=true", "classify.threshold_share=0"]
    else:
        with pytest.raises(UserError, match="name its class"):
            start(*keys)
        keys.append("data.background_class=nothing")
    start(*keys)
    assert "train: 6 videos" in (tmp_path / "run/log.txt").read_text()
    _, metadata = read_weights(tmp_path / "run")
    assert metadata["classes"] == (["jump", "run"] if several else ["jump", "nothing", "run"])


def test_groups_that_straddle_lists(tmp_path, tool):
    for name, who in (("train", "ann"), ("val", "ann"), ("test", "bob")):
        (tmp_path / f"{name}.mp4").write_bytes(b"")
        (tmp_path / f"{name}.csv").write_text(f"path,label,who\n{name}.mp4,run,{who}\n")
    check = ("datasets/check_lists.py", "--group", "who")
    lists = [tmp_path / f"{name}.csv" for name in ("train", "val", "test")]
    said = tool(*check, *lists, check=2).stdout
    assert "1 groups (who) in both" in said and "ann" in said
    tool(*check, lists[0], lists[2])
    (tmp_path / "test.csv").write_text("test.mp4\n")
    assert "has no such column" in tool(*check, *lists, check=2).stderr
