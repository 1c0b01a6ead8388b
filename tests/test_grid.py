"""GRID as it is published, and tables that are split: which words, which side, which pixels."""

import csv
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from hiera_video.data.lists import read_videos

SENTENCES = ("bin blue at f two now", "lay red by a one soon", "set white in z six again")


def write_video(path, seed):
    """75 frames, 360 x 288, with a mouth that moves at x 200, y 180."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mpeg") as out:
        stream = out.add_stream("mpeg1video", rate=Fraction(25))
        stream.width = 360
        stream.height = 288
        stream.pix_fmt = "yuv420p"
        for _ in range(75):
            image = np.full((288, 360, 3), 90, np.uint8)
            image[180:220, 200:260] = rng.integers(0, 255)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode())


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("grid")
    for k, sentence in enumerate(SENTENCES):
        speaker = ("s1", "s1", "s2")[k]
        write_video(root / speaker / f"video{k}.mpg", k)
        lines = ["0 10000 sil"]
        for w, word in enumerate(sentence.split()):
            lines.append(f"{10000 + 5000 * w} {15000 + 5000 * w} {word}")
        folder = root / "s1" / "align" if k < 2 else root / "align" / "s2"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"video{k}.align").write_text("\n".join([*lines, "40000 74500 sil"]) + "\n")
    return root


def rows(file):
    with open(file, newline="") as f:
        return list(csv.DictReader(f))


def test_every_word_with_its_time(corpus, tmp_path, tool):
    tool("datasets/grid.py", corpus, "--output", tmp_path / "words", "--val-share", "0.34")
    train = rows(tmp_path / "words/train.csv")
    val = rows(tmp_path / "words/val.csv")
    assert len(train) == 12 and len(val) == 6
    assert not {row["path"] for row in train} & {row["path"] for row in val}
    first = next(row for row in train + val if row["label"] == "bin")
    assert (first["start_s"], first["end_s"], first["slot"]) == ("0.4", "0.6", "command")
    videos = read_videos(tmp_path / "words/train.csv", root=corpus)
    assert videos.segment(0) == (0.4, 0.6)
    assert len((tmp_path / "words/classes.txt").read_text().split()) == 18


def test_one_slot_of_other_people_cut_to_the_mouth(corpus, tmp_path, tool):
    output = tmp_path / "mouths"
    done = tool(
        *("datasets/grid.py", corpus, "--output", output, "--slots", "command"),
        *("--split", "speaker", "--hold-out", "s2", "--mouth", "80x60"),
    )
    assert [row["label"] for row in rows(output / "val.csv")] == ["set"]
    assert [row["label"] for row in rows(output / "train.csv")] == ["bin", "lay"]
    (video,) = output.glob("videos/s1_80x60+*/video0.mp4")
    with av.open(str(video)) as container:
        frames = np.stack([f.to_ndarray(format="gray") for f in container.decode(video=0)])
    assert frames.shape == (75, 60, 80)
    moves = frames.std(0) > 20
    assert 2000 < moves.sum() < 2900, "the whole mouth, 60 x 40 pixels, is in the box"
    assert "data.root=" in done.stdout
    tool(
        *("datasets/split_table.py", output / "words.csv", "--label", "label", "--group", "path"),
        *("--not", "label=set", "--val-share", "0.5", "--absolute", "--output", output / "lists"),
    )
    (row,) = rows(output / "lists/train.csv")
    assert Path(row["path"]).exists() and row["slot"] == "command"


def test_wrong_words_are_named(corpus, tmp_path, tool):
    empty = tool("datasets/grid.py", tmp_path, "--output", tmp_path / "out", check=2)
    assert "no s*/*.mpg" in empty.stderr
    refused = tool(
        *("datasets/grid.py", corpus, "--output", tmp_path / "out"),
        *("--split", "speaker", "--hold-out", "s7"),
        check=2,
    )
    assert "s7" in refused.stderr


def test_a_table_is_split_by_groups(tmp_path, tool):
    lines = ["path,kind,word,person"]
    for k in range(24):
        lines.append(f"v{k}.mp4,{'words' if k % 2 else 'phrases'},w{k % 3},p{k % 4}")
    (tmp_path / "takes.csv").write_text("\n".join(lines) + "\n")
    split = ("datasets/split_table.py", tmp_path / "takes.csv", "--label", "word")
    tool(
        *split,
        *("--group", "person", "--where", "kind=words", "--hold-out", "p1", "--unlabelled"),
        *("--output", tmp_path / "lists"),
    )
    train = rows(tmp_path / "lists/train.csv")
    assert {row["person"] for row in train} == {"p3"}
    assert {row["person"] for row in rows(tmp_path / "lists/val.csv")} == {"p1"}
    assert len(rows(tmp_path / "lists/pretrain.csv")) == 18
    assert (tmp_path / "lists/classes.txt").read_text().split() == ["w0", "w1", "w2"]
    assert read_videos("lists/train.csv", root=tmp_path).classes == ("w0", "w1", "w2")
    wrong = tool(*split, "--group", "who", "--output", tmp_path / "lists", check=2)
    assert "no column 'who'" in wrong.stderr
