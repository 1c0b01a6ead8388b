"""hiera-video review: keys in a real browser, a new table, and nobody else at the door."""

import csv
import http.client
import json
import shutil
import signal
import time
import urllib.parse
from pathlib import Path

import pytest
from browser import Browser
from conftest import SHORT, start
from forked import Script
from test_find_segments import stitch
from test_search import frames_of

from hiera_video.data.lists import read_videos
from hiera_video.review.corrections import Correction, beside, write_corrected
from hiera_video.review.items import Item, how_unsure, how_wrong
from hiera_video.system.files import write_csv


@pytest.fixture(scope="module")
def tested(shapes, tmp_path_factory):
    """A run that was tested on a table of segments, one of an AVI that no browser plays."""
    folder = tmp_path_factory.mktemp("mine")
    names = (shapes / "classes.txt").read_text().splitlines()
    lines = [line.split() for line in (shapes / "val.csv").read_text().splitlines()[:6]]
    rows = [["path", "label", "start_s", "end_s", "who"]]
    for k, suffix in enumerate(("mp4", "avi")):
        words = lines[3 * k : 3 * k + 3]
        file = folder / f"{k}, take.{suffix}"
        times = stitch(file, [frames_of(shapes / path) for path, _ in words])
        for (_, label), (first, last) in zip(words, times):
            rows.append([file.name, names[int(label)], f"{first:.3f}", f"{last:.3f}", "ann"])
    write_csv(folder / "words.csv", rows)
    shutil.copy(shapes / "classes.txt", folder)
    keys = [f"data.root={folder}", "data.train=words.csv", "data.val=words.csv", *SHORT]
    keys += [
        "data.classes=classes.txt",
        "train.epochs=1",
        "train.batch_size=4",
        "stages=[train,test]",
    ]
    keys += ["init.weights=null", "test.clips=1", "test.crops=1", "train.val_every=0"]
    start(*keys, f"output={folder / 'run'}")
    return folder


@pytest.fixture
def review():
    """Starts reviews, and leaves none at work."""
    doors = []

    def begin(*arguments):
        doors.append(Door(*arguments))
        return doors[-1]

    yield begin
    for door in doors:
        door.script.kill()


class Door:
    """A review at work; `ask` is a request of any kind."""

    def __init__(self, *arguments):
        self.script = Script("tools/review.py", *arguments)
        said = self.script._outputs[0]
        until = time.monotonic() + 60
        while "http://" not in (said.read_text() if said.exists() else ""):
            assert time.monotonic() < until and self.script.at_work, self.script.wait(1)
            time.sleep(0.05)
        self.url = said.read_text().split()[1]
        parts = urllib.parse.urlsplit(self.url)
        self.port = parts.port
        self.token = urllib.parse.parse_qs(parts.query)["token"][0]

    def ask(self, path, *, method="GET", body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer

    def end(self):
        self.script.send(signal.SIGINT)
        return self.script.wait(20)


def rows_of(file):
    with open(file, newline="") as f:
        return list(csv.DictReader(f))


def test_keys_and_the_corrected_table(tested, tmp_path, review):
    """A number, a class by its name, confirmed, left out, an edge moved; seen again after a new
    start; the old table is as it was; nothing but this server was asked.
    """
    before = (tested / "words.csv").read_bytes()
    door = review(tested / "run")
    classes = (tested / "classes.txt").read_text().splitlines()
    with Browser(tmp_path / "profile") as page:
        page.open(door.url)
        page.until("document.body.dataset.ready === 'yes'")
        page.until("video.videoWidth > 0 && video.currentTime > 0")
        rows = page.value("state.orders.worst")
        assert len(rows) == 6
        best = page.value("item().best.map((b) => b[0])")
        listed = page.value("item().labels[0]")
        number = next(k for k, name in enumerate(best) if name != listed)
        page.press(str(number + 1))  # another class
        page.until("at === 1")
        other = next(name for name in classes if name != page.value("item().labels[0]"))
        page.press("/", *other, "Enter")  # a class by its name
        page.until("at === 2")
        page.press("Enter")  # it is right
        page.until("at === 3")
        page.press("x")  # left out
        page.until("at === 4")
        page.until("video.readyState >= 2")
        page.press(" ")
        page.value("video.currentTime = draft.segment ? draft.segment[0] + 0.3 : 0")
        is_raw = page.value("!video.dataset.small")
        page.press("[", "Enter")
        page.until("at === 5")
        page.press("ArrowLeft", "u")
        page.until("Object.keys(state.corrections).length === 4")
        page.press("[", "Enter")
        page.until("Object.keys(state.corrections).length === 5")
        page.press("o")
        page.until("order === 'unsure' && at === 0")
        page.until("document.getElementById('message').textContent.includes('rows corrected')")
        # The AVI is played as a small MP4.
        for k in range(6):
            if page.value("item().path.endsWith('.avi')"):
                page.until("video.dataset.small === 'yes' && video.videoWidth > 0")
                break
            page.press("ArrowRight")
            page.until(f"at === {k + 1}")
        assert page.requested and all(
            url.startswith((f"http://127.0.0.1:{door.port}/", "data:")) for url in page.requested
        )
        assert not page.said
    assert (tested / "words.csv").read_bytes() == before
    old = rows_of(tested / "words.csv")
    new = rows_of(tested / "words.corrected.csv")
    expected = [dict(row) for row in old]
    expected[rows[0]]["label"] = best[number]
    expected[rows[1]]["label"] = other
    moved = expected[rows[4]]
    found = next(
        row for row in new if (row["path"], row["end_s"]) == (moved["path"], moved["end_s"])
    )
    if is_raw:
        assert float(found["start_s"]) > float(moved["start_s"])
    moved["start_s"] = found["start_s"]
    expected[rows[3]]["label"] = ""  # left out, and no gap
    assert new == expected
    # Another start goes on from there.
    done = door.end()
    assert done.returncode == 0 and "5 seen" in done.stdout, done
    again = review(tested / "run")
    state = json.loads(again.ask(f"/items?token={again.token}")[1])
    assert len(state["corrections"]) == 5
    again.end()


def test_nobody_else(tested, tmp_path, review):
    """A wrong token, another host, a path in place of a number, a body that is none: refused."""
    door = review(tested / "run", "--output", tmp_path / "new.csv")
    before = (tmp_path / "new.csv").exists() and (tmp_path / "new.csv").read_bytes()
    right = f"token={door.token}"
    assert door.ask(f"/?{right}")[0] == 200
    for path in ("/", "/?token=", "/?token=x", "/items?token=x", "/video/0", "/small/0?token=%ff"):
        assert door.ask(path)[0] == 403, path
    assert door.ask(f"/items?{right}", Host="evil.example")[0] == 403
    for path in ("/video/99", "/video/../run/config.yaml", "/config.yaml", "//etc/passwd"):
        assert door.ask(f"{path}?{right}")[0] == 404, path
    label = json.dumps({"row": 0, "labels": ["closed open wide"]})
    assert door.ask("/correct", method="POST", body=label)[0] == 403
    assert door.ask(f"/correct?{right}", method="POST", body=label)[0] == 403, "not in the address"
    token = {"X-Token": door.token}
    for body in ("", "[]", '{"row": 99, "labels": []}', '{"row": 0, "labels": ["none"]}', "{"):
        assert door.ask("/correct", method="POST", body=body, **token)[0] == 400, body
    wrong = {"row": 0, "labels": ["closed open wide"], "segment": [2, 1]}
    assert door.ask("/correct", method="POST", body=json.dumps(wrong), **token)[0] == 400
    status, body, answer = door.ask(f"/video/0?{right}", Range="bytes=4-11")
    assert (status, body) == (206, (tested / "0, take.mp4").read_bytes()[4:12])
    assert answer.headers["Content-Range"].startswith("bytes 4-11/")
    policy = door.ask(f"/?{right}")[2].headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    listening = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
    for _ in range(2):  # decoded for either
        for row in (0, 4, 5):
            assert door.ask(f"/small/{row}?{right}")[0] == 200
    ports = [line.split()[1] for line in listening.splitlines() if f":{door.port:04X} " in line]
    assert "0100007F:" in " ".join(ports) and "00000000:" not in " ".join(ports)
    assert ((tmp_path / "new.csv").exists() and (tmp_path / "new.csv").read_bytes()) == before
    door.end()


def test_other_tables(tested, tmp_path, review):
    """The user's own table, which has other rows than the test."""
    more = "extra.mp4,closed open wide,0.0,1.0,bob\n"
    table = tmp_path / "clips.csv"
    table.write_text((tested / "words.csv").read_text() + more)
    door = review(tested / "run", "--table", table)
    state = json.loads(door.ask(f"/items?token={door.token}")[1])
    row = state["orders"]["worst"][0]
    body = json.dumps({"row": row, "labels": ["wide open closed"]})
    status, said, _ = door.ask("/correct", method="POST", body=body, **{"X-Token": door.token})
    assert (status, json.loads(said)) == (200, {"rows": len(door_changes(tested))})
    new = rows_of(tmp_path / "clips.corrected.csv")
    assert new[row]["label"] == "wide open closed" and new[-1]["path"] == "extra.mp4"
    door.end()


def door_changes(tested):
    """Rows that the reviews of this file have corrected so far: the last word on each counts."""
    rows = {}
    for line in (tested / "run/review/corrections.jsonl").read_text().splitlines():
        entry = json.loads(line)
        rows[entry["row"]] = entry
    old = rows_of(tested / "words.csv")
    return [
        entry
        for row, entry in rows.items()
        if entry["labels"] is not None
        and (entry["left_out"] or entry["segment"] or entry["labels"] != [old[row]["label"]])
    ]


def item(row, path, label, segment=None):
    return Item(row, path, path, segment, (label,), ((label, 1.0),), 0.0, 0.0)


def test_lists_of_every_kind(tmp_path):
    """Plain lists keep their numbers, class folders become a table, a row that stands twice is
    corrected twice, and a gap between segments becomes a row.
    """
    names = ["run", "sit, down"]
    new = tmp_path / "new.csv"
    (tmp_path / "plain.txt").write_text("a b.mp4 0\nc.mp4 1\na b.mp4 0\n")
    plain = read_videos("plain.txt", root=tmp_path)
    changed = [(item(0, "a b.mp4", "run"), Correction(0, ("sit, down",)))]
    assert write_corrected(new, plain, changed, names) == 2
    assert new.read_text() == "a b.mp4 1\nc.mp4 1\na b.mp4 1\n"
    for path in ("run/1.mp4", "sit, down/2.mp4"):
        (tmp_path / "vids" / path).parent.mkdir(parents=True)
        (tmp_path / "vids" / path).write_bytes(b"")
    folders = read_videos(tmp_path / "vids")
    changed = [(item(0, "run/1.mp4", "run"), Correction(0, ("run",), left_out=True))]
    assert write_corrected(new, folders, changed, names) == 1
    assert new.read_text() == 'path,label\n"sit, down/2.mp4","sit, down"\n'
    assert beside(folders.source) == tmp_path / "vids/list.corrected.csv"
    (tmp_path / "t.csv").write_text("path,who,label,start_s,end_s\na.mp4,ann,run,1,2\n")
    table = read_videos("t.csv", root=tmp_path)
    changed = [(item(5, "a.mp4", "nothing", (2.5, 3.0)), Correction(5, ("run",), (2.4, 3.0)))]
    assert write_corrected(new, table, changed, [*names, "nothing"]) == 1
    assert new.read_text().splitlines()[1:] == ["a.mp4,ann,run,1,2", "a.mp4,,run,2.400,3.000"]
    # Times are rounded in lists of a run; what is left out stays, and is no gap.
    (tmp_path / "t.csv").write_text("path,label,start_s,end_s\n./a.mp4,run,2.0149999,3\n")
    table = read_videos("t.csv", root=tmp_path)
    gone = [(item(0, "a.mp4", "run", (2.015, 3.0)), Correction(0, ("run",), left_out=True))]
    assert write_corrected(new, table, gone, names) == 1
    assert new.read_text().splitlines()[1:] == ["./a.mp4,,2.0149999,3"]
    assert write_corrected(new, table, gone, names, several=True) == 1
    assert len(new.read_text().splitlines()) == 1
    # Integers are places in a run's lists, and names in one's own table.
    (tmp_path / "t.csv").write_text("path,label\na.mp4,1\nb.mp4,2\n")
    table = read_videos("t.csv", root=tmp_path)
    digits = ["1", "2", "3"]
    changed = [(item(0, "a.mp4", "2"), Correction(0, ("3",)))]
    for own_words, label in ((False, "2"), (True, "3")):
        write_corrected(new, table, changed, digits, own_words=own_words)
        assert new.read_text().splitlines()[1] == f"a.mp4,{label}"


def test_keys_while_an_answer_is_waited_for(tested, tmp_path, review):
    """A slow disk: the next key is not of the next video."""
    door = review(tested / "run", "--output", tmp_path / "new.csv")
    with Browser(tmp_path / "profile") as page:
        page.open(door.url)
        page.until("document.body.dataset.ready === 'yes'")
        page.value(
            "var plain = window.fetch; window.fetch = (...given) => "
            "new Promise((done) => setTimeout(done, 500)).then(() => plain(...given))"
        )
        rows = page.value("state.orders.worst")
        page.value("state.corrections = {}; at = 0; begin()")
        page.press("2", "ArrowRight", "1", "x")
        page.until("Object.keys(state.corrections).length === 1")
        assert page.value("Object.keys(state.corrections)[0]") == str(rows[0])
        assert page.value("at") == 1
        page.press("u")
        page.until("at === 1 && !busy")
    door.end()


def test_what_is_wrong_is_one_line(tested, weights, tmp_path, tool):
    for given, words in (
        ((tmp_path,), "is no run folder"),
        ((weights,), "holds no finished test"),
        ((tested / "run", "--count", "0"), "--count must be > 0"),
        ((tested / "run", "--table", tested / "classes.txt"), "is no table"),
        ((tested / "run", "--output", tested / "words.csv"), "is the old table"),
    ):
        said = tool("tools/review.py", *given, check=2).stderr
        assert words in said and said.count("\n") == 1, said


def test_what_comes_first():
    import numpy as np

    sure = np.array([0.9, 0.08, 0.02])
    assert how_wrong(sure, [0], multilabel=False) == pytest.approx(0.1)
    assert how_wrong(sure, [2], multilabel=False) == pytest.approx(0.98)
    assert how_wrong(sure, [], multilabel=False) == 0
    assert how_unsure(sure, multilabel=False) == pytest.approx(0.18)
    assert how_wrong(sure, [0, 1], multilabel=True) == pytest.approx(0.92)
    assert how_unsure(np.array([0.9, 0.4]), multilabel=True) == pytest.approx(0.8)
