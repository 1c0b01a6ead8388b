"""hiera-video search and duplicates: footage is found again, encoded anew, resized, cut out."""

import csv
import json
import os
import random
import shutil

import av
import numpy as np
import pytest
import torch
from conftest import FINETUNE
from test_report import browse

from hiera_video.commands.arguments import without_overrides
from hiera_video.evaluation.likeness import Windows, matches
from hiera_video.evaluation.same_frames import SAME, alike, same_part

LEAST = 24  # frames of a cut: about a window


def frames_of(file):
    with av.open(str(file)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def write(file, frames, size=(96, 64), crf=23):
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": str(crf)})
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            image = av.VideoFrame.from_ndarray(frame, format="rgb24")
            container.mux(stream.encode(image.reformat(width=size[0], height=size[1])))
        container.mux(stream.encode())


def paths_in(file):
    return [line.rsplit(" ", 1)[0] for line in file.read_text().splitlines()]


def cut_out(shapes, paths, folder, count, draw):
    """{cut: (path, first frame)}"""
    folder.mkdir()
    found = {}
    for k in range(count):
        path = paths[k * len(paths) // count]
        frames = frames_of(shapes / path)
        length = draw.randint(LEAST, len(frames) - 1)
        first = draw.randint(0, len(frames) - length)
        write(folder / f"{k}.mp4", frames[first : first + length])
        found[str(folder / f"{k}.mp4")] = (path, first)
    return found


def copy_all(shapes, paths, folder, count, draw):
    """{name: path}: encoded again, most of them resized and trimmed, and their list."""
    folder.mkdir()
    found = {}
    for k in range(count):
        path = paths[k * len(paths) // count]
        frames = frames_of(shapes / path)
        first = draw.randint(0, 2)
        last = len(frames) - draw.randint(0, 2)
        size = draw.choice([(96, 64), (72, 48), (144, 96)])
        write(folder / f"copy_{k}.mp4", frames[first:last], size, draw.choice([23, 30, 36]))
        found[f"copy_{k}.mp4"] = path
    (folder / "list.csv").write_text("".join(f"{name}\n" for name in found))
    return found


SMALL = ["model.embed_dim=16", "model.stages=[1,1,1,1]", "model.num_classes=8"]


def extract(tool, weights, videos, output, *more, root):
    command = ["tools/extract_features.py", "--cfg", FINETUNE, "--weights", weights]
    command += ["--videos", videos, "--output", output, f"data.root={root}", *SMALL]
    tool(*command, "data.num_workers=0", "data.classes=null", *more)
    return output


@pytest.fixture(scope="module")
def library(shapes, weights, tmp_path_factory, tool):
    """Features of the 32 training videos, a window every 0.1 s."""
    output = tmp_path_factory.mktemp("library") / "features"
    videos = shapes / "train.csv"
    return extract(tool, weights, videos, output, "features.hop_s=0.1", root=shapes)


def check_found(results, cuts, *, exact):
    for cut, (path, first) in cuts.items():
        best = results[cut][0]
        assert best["path"] == path, cut
        late = best["span"][0] - best["query_span"][0] - first / 30
        assert abs(late) < (0.5 / 30 if exact else 0.15), cut


def test_a_cut_is_found_where_it_was(library, shapes, tmp_path, tool):
    cuts = cut_out(shapes, paths_in(shapes / "train.csv"), tmp_path / "cuts", 8, random.Random(0))
    said = tool("tools/search.py", library, *cuts, "--json", tmp_path / "found.json").stdout
    results = json.loads((tmp_path / "found.json").read_text())
    check_found(results, cuts, exact=True)
    assert all(results[cut][0]["same"] >= SAME > (results[cut][1]["same"] or 0) for cut in cuts)
    assert said.count("  same\n") == 8 and len(results[next(iter(cuts))]) == 10
    # By features alone, and by an index of them; a place of each video, or several.
    for more in (["--features-only"], ["--features-only", "--index", "faiss"]):
        if "faiss" in more:
            pytest.importorskip("faiss", reason="faiss is not installed")
        tool("tools/search.py", library, *cuts, *more, "--json", tmp_path / "features.json")
        check_found(json.loads((tmp_path / "features.json").read_text()), cuts, exact=False)
    assert list((library / "search").glob("*.faiss"))
    cut = next(iter(cuts))
    tool("tools/search.py", library, cut, "--by", "window", "--json", tmp_path / "windows.json")
    places = json.loads((tmp_path / "windows.json").read_text())[cut]
    spans = {}
    assert len({place["path"] for place in places}) <= len(places)
    for place in places:
        for other in spans.setdefault(place["path"], []):
            assert place["span"][0] >= other[1] or other[0] >= place["span"][1]
        spans[place["path"]].append(place["span"])


def test_pages_open_in_a_browser(library, shapes, tmp_path, tool):
    cuts = cut_out(shapes, paths_in(shapes / "train.csv"), tmp_path / "cuts", 1, random.Random(1))
    page = tmp_path / "found.html"
    tool("tools/search.py", library, *cuts, "--top", "3", "--page", page)
    said, asked = browse(page, tmp_path, f"--screenshot={tmp_path / 'page.png'}")
    assert "CONSOLE" not in said and not asked
    assert page.read_text().count("data:image/jpeg") == 4, "the query and three videos"


def test_copies_between_two_lists(library, shapes, weights, tmp_path, tool):
    """Every copy, and nothing else; check_lists.py names them; a page shows them."""
    copies = copy_all(shapes, paths_in(shapes / "train.csv"), tmp_path / "val", 5, random.Random(0))
    others = paths_in(shapes / "val.csv")
    for path in others:
        name = path.replace("/", "_")
        (tmp_path / "val" / name).symlink_to(shapes / path)
    with open(tmp_path / "val/list.csv", "a") as f:
        f.writelines(f"{path.replace('/', '_')}\n" for path in others)
    val = extract(
        tool,
        weights,
        tmp_path / "val/list.csv",
        tmp_path / "features",
        "features.hop_s=0.1",
        root=tmp_path / "val",
    )
    out = tmp_path / "out"
    said = tool("tools/duplicates.py", library, val, "--output", out).stdout
    with open(out / "duplicates.csv") as f:
        rows = list(csv.DictReader(f))
    assert {row["path_b"]: row["path_a"] for row in rows} == copies and "5 pairs among 46" in said
    assert all(float(row["frames"]) >= SAME for row in rows)
    said, asked = browse(out / "duplicates.html", tmp_path, f"--screenshot={tmp_path / 'page.png'}")
    assert "CONSOLE" not in said and not asked
    assert (out / "duplicates.html").read_text().count("data:image/jpeg") == 10
    lists = ("datasets/check_lists.py", shapes / "train.csv", tmp_path / "val/list.csv")
    found = tool(*lists, "--duplicates", out / "duplicates.csv", check=2).stdout
    assert "5 near-duplicates between" in found and f"{copies['copy_0.mp4']} = copy_0.mp4" in found
    # Features alone believe what is all but equal.
    said = tool(
        "tools/duplicates.py", library, val, "--features-only", "--output", tmp_path / "by_features"
    ).stdout
    with open(tmp_path / "by_features/duplicates.csv") as f:
        rows = list(csv.DictReader(f))
    assert all(copies[row["path_b"]] == row["path_a"] and row["frames"] == "" for row in rows)
    assert f"{len(rows)} pairs among 46 videos, by features alone" in said


def test_what_is_wrong_is_said(library, shapes, weights, tmp_path, tool):
    (tmp_path / "text.mp4").write_text("no video")
    good = shapes / paths_in(shapes / "train.csv")[0]
    search = ("tools/search.py", library)
    done = tool(*search, tmp_path / "text.mp4", good, check=None)
    assert done.returncode == 2 and "1 of 2 queries cannot be read" in done.stderr
    assert paths_in(shapes / "train.csv")[0] in done.stdout, "the other one is searched for"
    steps = sorted((weights / "checkpoints").glob("step_*"))
    other = tool(*search, good, f"test.weights={steps[0]}", check=2).stderr
    assert "is not what the features" in other
    gone = tool(*search, good, "test.weights=/gone", check=2).stderr
    assert "say test.weights=.. where they are now" in gone
    assert "no manifest.csv" in tool("tools/search.py", tmp_path, good, check=2).stderr
    assert "there is no key 'data.rot'" in tool(*search, good, "data.rot=x", check=2).stderr
    assert "--plain" in tool(*search, good, "--plain", "--index", "faiss", check=2).stderr
    plain = extract(tool, weights, shapes / "val.csv", tmp_path / "plain", root=shapes)
    both = tool("tools/duplicates.py", library, plain, check=2).stderr
    assert "different weights or windows" in both


def test_a_bad_file_takes_no_other_with_it(shapes, weights, tmp_path, tool):
    """A video and its copy are found, whatever is beside them; names may be any bytes."""
    source = shapes / paths_in(shapes / "train.csv")[0]
    frames = frames_of(source)
    odd = os.fsdecode(b"caf\xe9.mp4")
    for name in (odd, "copy.mp4", "bad.mp4"):
        write(tmp_path / name, frames)
    (tmp_path / "other.mp4").symlink_to(shapes / paths_in(shapes / "train.csv")[1])
    listed = tmp_path / "list.csv"
    names = [b"caf\xe9.mp4", b"bad.mp4", b"copy.mp4", b"other.mp4"]
    listed.write_bytes(b"".join(name + b"\n" for name in names))
    folder = extract(tool, weights, listed, tmp_path / "features", root=tmp_path)
    (tmp_path / "bad.mp4").write_bytes((tmp_path / "bad.mp4").read_bytes()[:300])
    done = tool("tools/duplicates.py", folder, "--output", tmp_path / "out")
    with open(tmp_path / "out/duplicates.csv", errors="surrogateescape") as f:
        pairs = {(row["path_a"], row["path_b"]): row["frames"] for row in csv.DictReader(f)}
    assert pairs[odd, "copy.mp4"] and not any("other.mp4" in pair for pair in pairs)
    assert "1 videos could not be looked at" in done.stderr and "bad.mp4" in done.stderr
    page = tmp_path / "found.html"
    done = tool("tools/search.py", folder, tmp_path / odd, "--page", page)
    assert done.stdout.count("  same") == 2 and "caf" in page.read_text()
    (tmp_path / "copy.mp4").rename(tmp_path / "away.mp4")
    done = tool("tools/search.py", folder, tmp_path / "away.mp4", "--top", "2")
    assert "could not be looked at" in done.stderr


def test_an_index_is_of_its_features(library, shapes, weights, tmp_path, tool):
    """The same list with other weights: the manifest is the same, the index is not."""
    pytest.importorskip("faiss", reason="faiss is not installed")
    steps = sorted((weights / "checkpoints").glob("step_*"))
    found = []
    for step in (steps[0], steps[-1]):
        folder = tmp_path / "features"
        shutil.rmtree(folder, ignore_errors=True)
        extract(tool, step, shapes / "val.csv", folder, root=shapes)
        if found:
            shutil.copytree(tmp_path / "kept", folder / "search")
        video = shapes / paths_in(shapes / "val.csv")[0]
        tool("tools/search.py", folder, video, "--index", "faiss")
        found.append([file.name for file in (folder / "search").glob("*.faiss")])
        shutil.copytree(folder / "search", tmp_path / "kept", dirs_exist_ok=True)
    assert len(found[0]) == len(found[1]) == 1 and found[0] != found[1]


def test_keys_and_files_are_told_apart(tmp_path):
    given = ["data.root=s3://bucket/x", "a=b.mp4", "http://x/y?z=1", "seed=1", "test.weights=/w"]
    (tmp_path / "seed=1").write_text("")
    files, overrides = without_overrides([*given, str(tmp_path / "seed=1")])
    assert files == ["http://x/y?z=1", str(tmp_path / "seed=1")]
    assert overrides == ["data.root=s3://bucket/x", "a=b.mp4", "seed=1", "test.weights=/w"]


def test_places_of_a_query_among_windows():
    """By hand: a video that holds the query twice, one that is shorter, one that holds nothing."""
    axes = torch.eye(6)
    windows = Windows.__new__(Windows)
    windows.counts = torch.tensor([6, 1, 3])
    windows.firsts = windows.counts.cumsum(0) - windows.counts
    windows.vectors = torch.cat([axes[[0, 1, 5, 0, 1, 5]], axes[[1]], axes[[2, 3, 4]]])
    query = axes[[0, 1]]
    best = matches(query, windows, top=5)
    assert best[0] == (0, 1.0, 0, 0, 2) and best[1] == (1, 1.0, 1, 0, 1)
    assert {match.video for match in best} == {0, 1, 2} and best[2].score == 0
    twice = [m.first for m in matches(query, windows, top=3, apart=2) if m.video == 0]
    assert sorted(twice)[:2] == [0, 3]
    any_order = matches(axes[[1, 0]], windows, top=1, in_order=False)
    assert (any_order[0].video, any_order[0].score) == (0, 1.0)
    few = matches(query, windows, top=5, allowed=torch.tensor([False, True, False]))
    assert [match.video for match in few] == [1]
    assert matches(query, windows, top=5, allowed=torch.zeros(3, dtype=torch.bool)) == []
    longer = matches(axes[[0, 1, 5, 0]], windows, top=5)  # than two of the videos
    assert longer[0] == (0, 1.0, 0, 0, 4) and len(longer) == 3
    turned = Windows.__new__(Windows)  # the short ones last
    turned.counts = torch.tensor([3, 2, 1])
    turned.firsts = turned.counts.cumsum(0) - turned.counts
    turned.vectors = axes
    assert matches(axes[:3], turned, top=9)[0].video == 0


def test_a_query_is_found_to_its_ends(library, shapes, tmp_path, tool):
    """Windows leave out its last frames; the seconds that are the same do not."""
    path = paths_in(shapes / "train.csv")[2]
    write(tmp_path / "cut.mp4", frames_of(shapes / path)[1:27])
    tool("tools/search.py", library, tmp_path / "cut.mp4", "--json", tmp_path / "found.json")
    (best, *_) = json.loads((tmp_path / "found.json").read_text())[str(tmp_path / "cut.mp4")]
    assert best["path"] == path
    assert best["query_span"] == pytest.approx([0, 26 / 30], abs=0.5 / 30)
    assert best["span"] == pytest.approx([1 / 30, 27 / 30], abs=0.5 / 30)


def test_seconds_that_are_the_same():
    """A copy of seconds 1 to 3 of a video of 5, by windows of 0.8 s that miss its end."""
    part, other = same_part((0.0, 1.6), ((0.0, 2.0), (0.0, 5.0)), 1.0, gap_s=0.8)
    assert part == (0.0, 2.0) and other == (1.0, 3.0)
    part, other = same_part((1.0, 3.4), ((0.0, 5.0), (0.0, 2.0)), -1.0, gap_s=0.4)
    assert part == (1.0, 3.0) and other == (0.0, 2.0)


def test_frames_of_a_copy_and_of_another_take():
    draw = np.random.default_rng(0)
    wall = draw.uniform(0, 255, (1, 16, 16))
    moves = [np.sin(np.linspace(a, a + 6, 20))[:, None, None] * 30 for a in (0.0, 2.0)]
    where = draw.normal(size=(1, 16, 16))
    one, other = (np.float32(wall + move * where) for move in moves)
    noise = draw.normal(0, 2, one.shape).astype(np.float32)
    assert alike(one, one * 0.9 + 8 + noise) > SAME, "encoded again, darker"
    assert alike(one, other) < SAME, "another take before the same wall"
    still = np.repeat(np.float32(wall), 20, 0)
    assert alike(still, still + noise * 0.2) > SAME
    assert alike(still, still[:, ::-1].copy()) < SAME
    assert alike(still[:1], still[:1]) > SAME, "a video of one frame"


@pytest.mark.trial
def test_a_hundred_cuts_and_twenty_copies_of_500(tmp_path, tool, weights):
    """100 of 100 cuts, 20 of 20 copies, and no other pair."""
    import moving_shapes

    moving_shapes.make_dataset(tmp_path / "shapes", train=500, val=8)
    shapes = tmp_path / "shapes"
    paths = paths_in(shapes / "train.csv")
    draw = random.Random(0)
    cuts = cut_out(shapes, paths, tmp_path / "cuts", 100, draw)
    copies = copy_all(shapes, paths, tmp_path / "copies", 20, draw)
    made = []
    for name, videos, root in (
        ("train", shapes / "train.csv", shapes),
        ("copies", tmp_path / "copies/list.csv", tmp_path / "copies"),
    ):
        made.append(
            extract(tool, weights, videos, tmp_path / name, "features.hop_s=0.1", root=root)
        )
    for more in ([], ["--features-only"]):
        tool("tools/search.py", made[0], *cuts, *more, "--json", tmp_path / "found.json")
        check_found(json.loads((tmp_path / "found.json").read_text()), cuts, exact=not more)
    tool("tools/duplicates.py", *made, "--within", "--output", tmp_path / "out")
    with open(tmp_path / "out/duplicates.csv") as f:
        pairs = {row["path_b"]: row["path_a"] for row in csv.DictReader(f)}
    assert pairs == copies
