"""Every tool starts and says how it is used; the small ones do their job."""

import pytest
from conftest import ROOT

TOOLS = sorted(str(p.relative_to(ROOT)) for folder in ("tools", "datasets") for p in (ROOT / folder).glob("*.py"))


@pytest.mark.parametrize("path", TOOLS)
def test_help(tool, path):
    assert "usage:" in tool(path, "--help").stdout


def test_flops_tool(tool):
    out = tool("tools/count_flops.py", "hiera_base_16x224", "x3d_m").stdout
    assert "101.9" in out and "102" in out and "x3d_m" in out
    assert "there is no model" in tool("tools/count_flops.py", "hiera_x", check=2).stderr


def test_moving_shapes_are_repeatable_and_apart(tmp_path):
    import moving_shapes

    assert (moving_shapes.draw_video(3, 5) == moving_shapes.draw_video(3, 5)).all()
    assert (moving_shapes.draw_video(3, 5) != moving_shapes.draw_video(3, 1_000_005)).any()
    frames = moving_shapes.draw_video(moving_shapes.CLASSES.index("disc moving right"), 0).astype(float).sum(-1)
    places = [(f * (f > 400)).sum(0).argmax() for f in (frames[4], frames[-4])]
    assert places[1] > places[0] + 10, "it moves right"
    moving_shapes.make_dataset(tmp_path / "a", train=8, val=8)
    lists = [(tmp_path / f"a/{split}.csv").read_text().splitlines() for split in ("train", "val")]
    assert [len(rows) for rows in lists] == [8, 8] and sorted(int(r.split()[-1]) for r in lists[0]) == list(range(8))


def test_make_lists_keeps_what_is_there(tmp_path, tool):
    for name in ("a/1.mp4", "a/2.mp4", "b/3.avi", "b/4.avi"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    tool("datasets/make_lists.py", tmp_path)
    rows = (tmp_path / "train.csv").read_text() + (tmp_path / "val.csv").read_text()
    assert sorted(rows.splitlines()) == ["a/1.mp4 0", "a/2.mp4 0", "b/3.avi 1", "b/4.avi 1"]
    assert "--force" in tool("datasets/make_lists.py", tmp_path, check=2).stderr
    (tmp_path / "c").mkdir()
    assert "no video" in tool("datasets/make_lists.py", tmp_path, "--force", check=2).stderr
