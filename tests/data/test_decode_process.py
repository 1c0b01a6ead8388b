"""No file hangs or crashes the process that asks for frames: real hangs, crashes and kills."""

import csv
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hiera_video.data.dataset import ClipDataset, Key
from hiera_video.data.decode import process as decode_process
from hiera_video.data.decode.process import DecodeFailure, DecodeProcess
from hiera_video.data.decode.quarantine import Quarantine
from hiera_video.data.decode.readers import open_video
from hiera_video.data.decode.source import VideoSource
from hiera_video.data.lists import read_videos
from hiera_video.data.transforms import EvalCrops
from hiera_video.system.errors import Unavailable, VideoError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def video(shapes):
    return sorted(shapes.rglob("*.mp4"))[0]


def children(pid):
    done = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(p) for p in done.stdout.split()]


@pytest.mark.parametrize("decoder", ["auto", "pyav", "decord"])
def test_same_frames_as_in_process(video, decoder):
    process = DecodeProcess(timeout_s=60)
    for indices in ([0, 5, 2, 2], [7], range(16)):
        with process.open(video, decoder) as bounded, open_video(video, decoder) as plain:
            assert bounded.name == plain.name
            assert np.array_equal(bounded.info.times, plain.info.times)
            assert np.array_equal(bounded.get(list(indices)), plain.get(list(indices)))
    with pytest.raises(IndexError), process.open(video, decoder) as bounded:
        bounded.get([10_000])
    process.close()


def test_errors_are_those_of_the_reader_and_leave_the_process_alive(video, tmp_path):
    process = DecodeProcess(timeout_s=60)
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(VideoError, match="Invalid data"):
        process.open(tmp_path / "text.mp4", "auto")
    first = process._child.pid
    with process.open(video, "auto") as bounded:
        bounded.get([0])
    assert process._child.pid == first
    process.close()


@pytest.mark.parametrize(
    "body, kind, message",
    [
        ("while True: pass", "timeout", "more than 2 s"),
        ("import time; time.sleep(1000)", "stalled", "more than 2 s"),
        ("import ctypes; ctypes.string_at(0)", "crashed", "SIGSEGV"),
        ("import os; os._exit(7)", "crashed", "exit status 7"),
        ("import os; os.kill(os.getpid(), 9)", "killed", "SIGKILL"),
    ],
)
def test_hang_and_crash(video, tmp_path, monkeypatch, body, kind, message):
    """The child imports a reader whose `each` runs `body`; the next child is the real one again."""
    (tmp_path / "sitecustomize.py").write_text(
        "import hiera_video.data.decode.readers as video\ndef each(self, indices):\n    "
        f"{body}\n    yield\nvideo.PyAVReader.each = each\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    process = DecodeProcess(timeout_s=2)
    start = time.monotonic()
    with (
        pytest.raises(DecodeFailure, match=message) as failure,
        process.open(video, "auto") as bounded,
    ):
        bounded.get([0])
    assert failure.value.kind == kind and time.monotonic() - start < 30
    monkeypatch.delenv("PYTHONPATH")
    with process.open(video, "auto") as bounded:
        assert bounded.get([0]).shape[0] == 1
    process.close()


def test_a_child_that_is_killed_between_two_requests(video):
    """By a system that is out of memory, say: also between two parts of an answer."""
    process = DecodeProcess(timeout_s=60)
    for number in range(2):
        with pytest.raises(DecodeFailure) as failure, process.open(video, "auto") as bounded:
            parts = bounded.parts(range(20))
            if number:
                next(parts)
            os.kill(process._child.pid, signal.SIGKILL)
            while next(parts, None) is not None:
                pass
            bounded.get([0])
        assert failure.value.kind == "killed"
    with process.open(video, "auto") as bounded:
        assert bounded.get([0]).shape[0] == 1
    process.close()


@pytest.mark.parametrize("failures", [2, 100])
def test_a_child_that_does_not_start_is_started_again(video, tmp_path, monkeypatch, failures):
    """A shared environment that fails to answer, say. It is nobody's bad video."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'hiera_video.data.decode.process_child' in ' '.join(sys.orig_argv):\n"
        f"    with open({str(tmp_path / 'starts')!r}, 'a') as file:\n"
        "        file.write('x')\n"
        "        if file.tell() <= %d: os._exit(1)\n" % failures
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(decode_process, "START_PAUSES_S", (0, 0.1, 0.1))
    process = DecodeProcess(timeout_s=60)
    if failures > 2:
        with pytest.raises(Unavailable, match="the decoding process does not start"):
            process.open(video, "auto")
    else:
        with process.open(video, "auto") as bounded:
            assert bounded.get([0]).shape[0] == 1
    assert (tmp_path / "starts").read_text() == "xxx"
    process.close()


def test_a_limit_is_for_all_parts_of_an_answer(video, tmp_path, monkeypatch):
    """A child that takes 0.4 s for each frame, which all are parts of their own."""
    (tmp_path / "sitecustomize.py").write_text(
        "import time\n"
        "import hiera_video.data.decode.process as process\n"
        "from hiera_video.data.decode import pyav_reader\n"
        "each = pyav_reader.PyAVReader.each\n"
        "def slow(self, indices):\n"
        "    for pair in each(self, indices):\n"
        "        time.sleep(0.4)\n"
        "        yield pair\n"
        "pyav_reader.PyAVReader.each = slow\n"
        "process.PART_BYTES = 1\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    process = DecodeProcess(timeout_s=2)
    with process.open(video, "auto") as bounded:
        assert bounded.get(range(3)).shape[0] == 3
    began = time.monotonic()
    with pytest.raises(DecodeFailure) as failure, process.open(video, "auto") as bounded:
        bounded.get(range(20))
    assert failure.value.kind == "stalled" and time.monotonic() - began < 5
    process.close()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 looks into the folder first")
def test_the_child_is_of_the_same_installation(video, tmp_path, monkeypatch):
    """Whatever lies in the folder in which a run is started."""
    (tmp_path / "hiera_video").mkdir()
    (tmp_path / "hiera_video/__init__.py").write_text("raise ImportError")
    monkeypatch.chdir(tmp_path)
    process = DecodeProcess(timeout_s=60)
    with process.open(video, "auto") as bounded:
        assert bounded.get([0]).shape[0] == 1
    process.close()


def test_the_child_ends_with_its_parent(video, tmp_path):
    """Also in the middle of a decode, and when the parent is killed."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, hiera_video.data.decode.readers as video\n"
        "def each(self, indices):\n"
        "    while True: pass\n"
        "    yield\n"
        "video.PyAVReader.each = each\n"
    )
    code = (
        "from hiera_video.data.decode.process import DecodeProcess\n"
        f"DecodeProcess(timeout_s=1000).open({str(video)!r}, 'auto').get([0])"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    parent = subprocess.Popen([sys.executable, "-c", code], env=env)
    deadline = time.monotonic() + 60
    while not (started := children(parent.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in started) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert started and not any(Path(f"/proc/{pid}").exists() for pid in started)


def test_a_copy_has_a_child_of_its_own(video):
    process = DecodeProcess(timeout_s=60)
    with process.open(video, "auto"):
        copy = pickle.loads(pickle.dumps(process))
        with copy.open(video, "auto") as bounded:
            assert bounded.get([0]).shape[0] == 1
    assert process._child.pid != copy._child.pid
    process.close()
    copy.close()


@pytest.fixture
def trap(shapes, tmp_path, monkeypatch):
    """A list with two videos whose decoding hangs and crashes, whatever the backend, between good
    ones.

    Real decoders do so on files that nobody has yet; here the decoding process imports readers that
    do it by file name.
    """
    good = [line.rsplit(" ", 1)[0] for line in (shapes / "train.csv").read_text().splitlines()[:6]]
    folder = tmp_path / "videos"
    folder.mkdir()
    names = ["a.mp4", "hang.mp4", "b.mp4", "c.mp4", "crash.mp4", "d.mp4"]
    for name, source in zip(names, good):
        (folder / name).write_bytes((shapes / source).read_bytes())
    (folder / "train.csv").write_text("".join(f"{name} {i % 2}\n" for i, name in enumerate(names)))
    (tmp_path / "sitecustomize.py").write_text(
        "import ctypes, time, hiera_video.data.decode.readers as video\n"
        "def trapped(reader):\n"
        "    each = reader.each\n"
        "    def new(self, indices):\n"
        "        while self._path.endswith('/hang.mp4'): pass\n"
        "        if self._path.endswith('/crash.mp4'): ctypes.string_at(0)\n"
        "        return each(self, indices)\n"
        "    reader.each = new\n"
        "import sys\n"
        "if 'hiera_video.data.decode.process' in ' '.join(sys.orig_argv):\n"
        "    trapped(video.PyAVReader); trapped(video.DecordReader)\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    return folder


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.trial), 2])
def test_a_run_survives_hangs_and_crashes(trap, tmp_path, tool, workers):
    """Training replaces such videos, testing reports them missing, and both are named, counted and
    kept out of later.
    """
    out = tmp_path / "run"
    command = [
        *(
            "tools/run_net.py",
            "--cfg",
            "tests/configs/finetune.yaml",
            f"data.root={trap}",
            "data.val=train.csv",
        ),
        *(
            "data.classes=null",
            "model.num_classes=2",
            "init.weights=null",
            "model.embed_dim=16",
            "model.stages=[1,1,1,1]",
        ),
        *("train.epochs=2", "train.batch_size=2", "train.log_every=1", "data.max_bad_fraction=0.5"),
        "test.min_coverage=0.5",
        *(f"data.num_workers={workers}", "data.decode_timeout_s=3", f"output={out}"),
    ]
    tool(*command)
    metrics = json.loads((out / "test/metrics.json").read_text())
    assert metrics["missing"] == ["hang.mp4", "crash.mp4"] and metrics["videos"] == 4
    log = (out / "log.txt").read_text()
    assert "hang.mp4: decoding took more than 3 s" in log
    assert "crash.mp4: the decoder crashed (SIGSEGV)" in log
    held = list(csv.reader((out / "quarantine.csv").open()))
    assert {Path(row[0]).name for row in held} == {"hang.mp4", "crash.mp4"}
    with open(out / "quarantine.csv", "a") as file:  # a second occasion
        for path, reason, stamp, when in held:
            csv.writer(file).writerow([path, f"again: {reason}", stamp, int(when) + 3600])

    start = time.monotonic()  # a later run that is given the file does not even try them
    dataset = ClipDataset(
        read_videos("train.csv", root=trap),
        sample=first_frames,
        transform=EvalCrops(64, 64, 1),
        source=VideoSource(quarantine=out / "quarantine.csv"),
    )
    reasons = dict(zip(metrics["missing"], metrics["missing_reasons"]))
    assert dataset[Key(0, 1)]["bad"][0][1] == reasons["hang.mp4"], (
        "results do not depend on when it was found"
    )
    assert time.monotonic() - start < 1


def test_a_quarantine_counts_occasions(tmp_path):
    """Of the same file; one bad moment of a machine is one, whoever lives through it."""
    state = {"/v/a.mp4": "1"}
    file = tmp_path / "quarantine.csv"

    def given(*times):
        file.write_text("".join(f"/v/a.mp4,hangs,1,{time}\n" for time in times))
        return Quarantine(file, lambda path: state[path])

    assert given(1000).reason("/v/a.mp4") is None
    assert given(1000, 1010, 1050).reason("/v/a.mp4") is None
    assert given(1000, 1010, 1080).reason("/v/a.mp4") == "hangs"
    assert given(1000, 9000).reason("/v/b.mp4") is None
    twice = given(1000, 9000)
    state["/v/a.mp4"] = "2"
    assert twice.reason("/v/a.mp4") is None, "the file was replaced"
    own = Quarantine(file, lambda path: state[path])
    own.add("/v/a.mp4", "crashes")
    assert own.reason("/v/a.mp4") == "crashes", "who saw it fail does not try it again"
    assert Quarantine(file, lambda path: state[path]).reason("/v/a.mp4") is None


def first_frames(count, fps, rng):
    return np.arange(4)[None]


def test_more_files_are_open_than_select_knows(video):
    """1,024 of them, as in a job with many workers."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    held = []
    try:
        held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
        process = DecodeProcess(timeout_s=60)
        with process.open(video, "auto") as reader:
            assert reader.get([0]).shape[0] == 1
        process.close()
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_stop_signals_do_not_reach_the_decoder(video):
    """A scheduler signals every process of a job, also one that is only starting; the run still
    needs it.
    """
    process = DecodeProcess(timeout_s=60)
    for _ in range(3):
        process._start()
        for name in ("SIGTERM", "SIGUSR2"):
            process._child.send_signal(getattr(signal, name))
        with process.open(video, "auto") as bounded:
            assert bounded.get([0]).shape[0] == 1
        process._kill()
    assert deaf_from_the_start(process)


def deaf_from_the_start(process):
    """Signals sent before the child has run a line of its own."""
    popen = subprocess.Popen

    def signalled(*arguments, **more):
        child = popen(*arguments, **more)
        child.send_signal(signal.SIGTERM), child.send_signal(signal.SIGUSR2)
        return child

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", signalled)
        process._start()
    alive = process._child.poll() is None
    process.close()
    return alive
