"""Live streams: windows as of a file, dropped frames counted, lost streams opened again."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time

import numpy as np
import pytest
from forked import Script
from rtsp_server import RtspServer
from run_folders import memory_of_group

from hiera_video.data.decode.live import LiveFrames, Window, _Clock, is_live
from hiera_video.data.decode.pyav_reader import PyAVReader
from hiera_video.data.sampling import sliding_windows
from hiera_video.models import create_hiera
from hiera_video.stages.live import Tally
from hiera_video.system.errors import VideoError
from hiera_video.training.checkpoint import save_weights

pytestmark = pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg is not installed")
CAMERA = ("-f", "lavfi", "-i", "testsrc=size=160x120:rate=30")
X264 = ("-c:v", "libx264", "-preset", "ultrafast", "-tune", "zerolatency", "-g", "15")


def ffmpeg(*arguments):
    """In the background."""
    command = ["ffmpeg", "-loglevel", "error", "-y", *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def http_stream(port):
    """A camera over HTTP; whoever asks first has it."""
    url = f"http://127.0.0.1:{port}/live.ts"
    return ffmpeg("-re", *CAMERA, *X264, "-f", "mpegts", "-listen", "1", url)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A model of random weights: quick, or (as `slow`) one that no core keeps up with."""
    folder = tmp_path_factory.mktemp("weights")
    quick = dict(input_size=(4, 32, 32), embed_dim=16, num_heads=1, stages=(1, 1, 1, 1))
    for name, arguments in (("quick", quick), ("slow", {})):
        arguments = {"num_classes": 3, **arguments}
        size = arguments.get("input_size", (16, 224, 224))
        # The slow one's window is shorter than what it takes for one: frames are in none.
        rate = 3 if name == "quick" else 1
        clips = {"num_frames": size[0], "sampling_rate": rate, "crop_size": size[1]}
        described = {"name": "hiera_tiny_16x224", "arguments": arguments}
        model = create_hiera("hiera_tiny_16x224", **arguments)
        metadata = {"model": described, "classes": ["a", "b", "c"], "clips": clips}
        save_weights(folder / f"{name}.safetensors", model.state_dict(), metadata)
    return folder


def rows_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def wait_for_rows(file, count, script, seconds=60):
    until = time.monotonic() + seconds
    while time.monotonic() < until and script.at_work:
        if len(rows_of(file)) >= count:
            return
        time.sleep(0.05)
    raise AssertionError(f"no {count} rows in {seconds} s: {script.wait(1)}")


def test_windows_are_those_of_the_file(tmp_path):
    """Through a pipe, frame by frame what sampling takes from the file, and the newest."""
    file = tmp_path / "clip.nut"
    ffmpeg(*CAMERA, "-t", "3", "-c:v", "ffv1", file).wait()
    os.mkfifo(tmp_path / "pipe")
    assert is_live(str(tmp_path / "pipe")) and not is_live(str(file))
    feeder = ffmpeg("-re", "-i", file, "-c", "copy", "-f", "nut", tmp_path / "pipe")
    live = LiveFrames(str(tmp_path / "pipe"), lambda x: x, span_s=16 / 30, reconnect_s=0)
    seen = []
    after_s = -1.0
    try:
        while True:
            window = live.window(8, 16 / 30, after_s=after_s, wait_s=10)
            seen.append(window)
            after_s = window.end_s + 0.4
    except VideoError as e:
        assert "it ended" in str(e)
    live.close()
    feeder.wait()
    assert len(seen) >= 4
    reader = PyAVReader(str(file))
    every = reader.get(range(reader.info.num_frames))
    of_file = sliding_windows(90, 30, 8, 2, 30, hop_s=1 / 30)
    assert all(window.end_s - window.start_s == pytest.approx(15 / 30, abs=0.02) for window in seen)
    # What is read to learn of the stream is not waited for again: it begins at some frame.
    newest = [np.array_equal(frame, seen[0].frames[-1]) for frame in every].index(True)
    for window in seen:
        number = newest + window.last - seen[0].last
        expected = next(clip for clip in of_file if clip[-1] == number)
        assert np.array_equal(np.stack(window.frames), every[expected])


def test_frames_that_no_window_held_are_counted():
    tally = Tally()
    for first, last in ((0, 9), (5, 14), (30, 39), (41, 50)):
        tally.add(Window([], 0, 0, 0, 0, first, last), 0.1)
    assert (tally.frames, tally.dropped, tally.windows) == (51, 16, 4)


def test_the_clock_goes_on_where_time_stamps_go_back():
    clock = _Clock()
    assert clock.read(50.0, 100.0) == (True, 0.0, 0.0)
    assert clock.read(50.5, 101.0) == (False, 0.5, 0.5)  # half a second behind
    assert clock.read(3.0, 101.5) == (True, 1.5, 0.0)
    assert clock.read(None, 104.0)[1] > 1.5
    ahead = _Clock()
    assert ahead.read(0.0, 10.0) == (True, 0.0, 0.0)
    assert ahead.read(30.0, 10.1)[1] == 30.0
    assert ahead.read(30.0, 10.2) is None, "a stamp that comes again"
    ahead.begin()
    assert ahead.read(0.0, 12.0)[:2] == (True, 30.0), "never back"


def test_a_reader_that_fails_says_so(tmp_path):
    file = tmp_path / "clip.nut"
    ffmpeg(*CAMERA, "-t", "1", "-c:v", "ffv1", file).wait()
    os.mkfifo(tmp_path / "pipe")
    feeder = ffmpeg("-re", "-i", file, "-c", "copy", "-f", "nut", tmp_path / "pipe")

    def keep(frame):
        raise RuntimeError("no memory")

    live = LiveFrames(str(tmp_path / "pipe"), keep, span_s=1)
    with pytest.raises(VideoError, match="RuntimeError: no memory"):
        live.window(4, 0.1, after_s=-1, wait_s=10)
    live.close()
    feeder.kill()
    feeder.wait()


def test_what_is_slow_to_keep_is_left_out(tmp_path):
    """Keyframes alone, and a third of the speed that is needed: never far behind."""
    os.mkfifo(tmp_path / "pipe")
    mjpeg = ("-c:v", "mjpeg", "-f", "nut", tmp_path / "pipe")
    feeder = ffmpeg("-re", *CAMERA, "-t", "5", *mjpeg)
    live = LiveFrames(str(tmp_path / "pipe"), lambda frame: time.sleep(0.1), span_s=1)
    lags = []
    with pytest.raises(VideoError, match="it ended"):
        while True:
            window = live.window(2, 0.1, after_s=lags[-1][0] if lags else -1, wait_s=10)
            lags.append((window.end_s + 0.01, window.lag_s))
    live.close()
    feeder.wait()
    assert max(lag for _, lag in lags) < 2 and lags[-1][0] > 4


def test_rtsp(weights, tmp_path):
    server = RtspServer(*CAMERA)
    rows = tmp_path / "rows.jsonl"
    try:
        done = Script(
            *("tools/predict.py", server.url, "--weights", weights / "quick.safetensors"),
            *("--json", rows, "--seconds", "4"),
        ).wait(60)
    finally:
        server.close()
    assert done.returncode == 0, done.stderr
    found = rows_of(rows)
    assert len(found) >= 4 and all(len(row["top"]) == 3 for row in found)
    assert max(row["latency_s"] for row in found[1:]) < 1.5
    assert "latency" in done.stdout.splitlines()[-1] and "windows;" in done.stderr
    assert all(b["end_s"] > a["end_s"] for a, b in zip(found, found[1:]))


def test_a_lost_stream_is_opened_again(weights, tmp_path):
    """Its server dies and comes back: the clock goes on. When it stays away, that ends it."""
    port = free_port()
    rows = tmp_path / "rows.jsonl"
    camera = http_stream(port)
    time.sleep(1)
    script = Script(
        *("tools/predict.py", f"http://127.0.0.1:{port}/live.ts", "--live"),
        *("--weights", weights / "quick.safetensors", "--json", rows, "--reconnect-s", "3"),
    )
    wait_for_rows(rows, 3, script)
    camera.kill()
    camera.wait()
    before = len(rows_of(rows))
    camera = http_stream(port)
    wait_for_rows(rows, before + 3, script)
    camera.kill()
    camera.wait()
    done = script.wait(40)
    assert done.returncode == 3 and "--reconnect-s" in done.stderr.splitlines()[-1]
    assert "it is opened again in" in done.stderr
    ends = [row["end_s"] for row in rows_of(rows)]
    assert ends == sorted(ends)


@pytest.mark.parametrize(
    "seconds", [8, pytest.param(120, marks=[pytest.mark.trial, pytest.mark.timeout(300)])]
)
def test_a_model_too_slow_for_its_stream(weights, tmp_path, seconds):
    """Latency is that of one window at most, what is dropped is counted, memory stays."""
    rows = tmp_path / "rows.jsonl"
    read, write = os.pipe()
    camera = subprocess.Popen(
        ["ffmpeg", "-loglevel", "error", "-re", *CAMERA, *X264, "-f", "mpegts", "pipe:1"],
        stdin=subprocess.DEVNULL,
        stdout=write,
    )
    os.close(write)
    os.mkfifo(tmp_path / "pipe")
    pump = subprocess.Popen(["sh", "-c", f"exec cat > {tmp_path / 'pipe'}"], stdin=read)
    os.close(read)
    script = Script(
        *("tools/predict.py", tmp_path / "pipe", "--weights", weights / "slow.safetensors"),
        *("--json", rows, "--seconds", seconds, "--reconnect-s", "0", "--hop-s", "0.1"),
        OMP_NUM_THREADS="1",
    )
    memory = []
    while script.at_work:
        memory.append(memory_of_group(script.pid))
        time.sleep(0.5)
    done = script.wait(5)
    for process in (camera, pump):
        process.kill()
        process.wait()
    assert done.returncode == 0, done.stderr
    found = rows_of(rows)
    took = np.diff([row["end_s"] for row in found])
    assert np.median(took) > 0.6, "the model is too slow: a window is 0.53 s"
    assert found[-1]["dropped"] > 0.1 * found[-1]["frames"]
    worst = max(row["latency_s"] for row in found[1:])
    assert worst < max(took.max(), 0.5) + 0.5, "no older than the window before took"
    assert found[-1]["dropped"] == expected_drops(found)
    later = memory[len(memory) // 2 : -2]
    assert max(later) < 1.1 * max(memory[: len(memory) // 2]) + 30e6
    print(f"{seconds} s: {done.stderr.splitlines()[-1]}")
    print(f"memory {min(later) / 2**20:.0f} to {max(later) / 2**20:.0f} MiB in the second half")


def expected_drops(rows):
    """By the numbers of the frames: those between the end of a window and the start of the next."""
    dropped = 0
    seen = 0.0
    for row in rows:
        dropped += max(round((row["start_s"] - seen) * 30), 0)
        seen = row["end_s"] + 1 / 30
    return pytest.approx(dropped, abs=2 + len(rows) * 0.1)


def test_what_is_wrong_is_one_line(weights, tmp_path, tool):
    model = ("--weights", weights / "quick.safetensors")
    for given, words in (
        (("rtsp://127.0.0.1:1/x",), "cannot be opened"),
        (("/dev/video99",), "there is no camera /dev/video99"),
        (("98",), "there is no camera /dev/video98"),
        (("-", "a.mp4"), "one live stream at a time"),
        (("-", "--timeline", tmp_path), "--json keeps the results"),
        (("-", "--seconds", "0"), "--seconds must be > 0"),
    ):
        said = tool("tools/predict.py", *given, *model, check=2).stderr
        assert words in said and said.count("\n") == 1, said


def test_it_ends_at_a_signal(weights, tmp_path):
    server = RtspServer(*CAMERA)
    rows = tmp_path / "rows.jsonl"
    try:
        script = Script(
            *("tools/predict.py", server.url, "--weights", weights / "quick.safetensors"),
            *("--json", rows),
        )
        wait_for_rows(rows, 2, script)
        script.send(signal.SIGTERM)
        done = script.wait(20)
    finally:
        server.close()
    assert done.returncode == 0 and "windows;" in done.stderr
