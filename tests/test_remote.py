"""Remote files: from servers that stall, break off and refuse, to a folder of bounded size."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT, SHORT, start
from local_server import BIG
from run_folders import outcome, state

from hiera_video.data.decode.process import DecodeProcess
from hiera_video.data.decode.source import VideoSource
from hiera_video.data.lists import read_videos
from hiera_video.system import remote, stores
from hiera_video.system.errors import Unavailable, VideoError
from hiera_video.system.members import member_of
from hiera_video.system.remote import FolderError, RemoteFiles
from hiera_video.system.stores import exists_remotely


@pytest.fixture
def files(tmp_path):
    return RemoteFiles(tmp_path / "fetched", limit_gib=1)


@pytest.fixture
def no_pauses(monkeypatch):
    monkeypatch.setattr(remote, "PAUSES_S", (0.0, 0.0))
    monkeypatch.setattr(stores, "SILENT_S", 0.5)


def content(place):
    with open(place, "rb") as f:
        return f.read()


def test_a_file_is_fetched_once(server, files):
    url = f"{server.url}/big"
    place = files.fetch(url)
    assert content(place) == BIG and files.fetch(url) == place
    assert server.asked["/big"] == 1
    assert exists_remotely(url) and not exists_remotely(f"{server.url}/none")
    with pytest.raises(OSError, match="404"):
        files.fetch(f"{server.url}/none")


def test_a_server_that_fails_is_asked_again(server, files, no_pauses):
    """Cut off: the rest alone is asked for. 503 and silence: once more."""
    server.stall_s = 2
    server.fail("/big", "refuse", "cut", "stall", "cut")
    assert content(files.fetch(f"{server.url}/big")) == BIG
    assert server.asked["/big"] == 5 and server.sent <= len(BIG) // 4 + 1
    (server.folder / "other").write_bytes(b"x")
    server.fail("/other", *["refuse"] * 9)
    with pytest.raises(OSError, match="503"):
        files.fetch(f"{server.url}/other")
    assert server.asked["/other"] == 3


def test_a_server_without_ranges_sends_all_again(server, files, no_pauses):
    server.knows_ranges = False
    server.fail("/big", "cut")
    assert content(files.fetch(f"{server.url}/big")) == BIG


def test_the_folder_is_bounded_and_keeps_what_is_in_use(server, tmp_path):
    """Three files of 5 MiB where two fit: the one used longest ago goes, unless it is open."""
    files = RemoteFiles(tmp_path / "fetched", limit_gib=12 / 1024)
    for name in "abcd":
        (server.folder / name).write_bytes(name.encode() + BIG)
    with files.held(f"{server.url}/a") as a:
        files.fetch(f"{server.url}/b")
        files.fetch(f"{server.url}/c")
        assert content(a)[:1] == b"a", "held"
    held = sorted(content(file)[:1] for file in files.folder.iterdir())
    assert held == [b"a", b"c"]
    files.fetch(f"{server.url}/a")
    files.fetch(f"{server.url}/d")
    held = sorted(content(file)[:1] for file in files.folder.iterdir())
    assert held == [b"a", b"d"], "c was used before a"


def test_processes_that_want_the_same_file_fetch_it_once(server, files):
    program = (
        "import sys; from hiera_video.system.remote import RemoteFiles\n"
        "print(RemoteFiles(sys.argv[1]).fetch(sys.argv[2]))"
    )
    command = [sys.executable, "-c", program, files.folder, f"{server.url}/big"]
    several = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) for _ in range(4)]
    places = {process.communicate(timeout=60)[0].decode().strip() for process in several}
    assert len(places) == 1 and content(places.pop()) == BIG
    assert server.asked["/big"] == 1 and len(list(files.folder.iterdir())) == 1


def test_what_a_killed_process_left_is_fetched_anew(server, files):
    final = files._file(f"{server.url}/big", "")
    files.folder.mkdir()
    final.with_name(f".{final.name}").write_bytes(b"half of something")
    assert content(files.fetch(f"{server.url}/big")) == BIG


def test_the_folder_is_no_fault_of_the_video(server, tmp_path):
    """A disk that is full, also with what was fetched before gone, and a folder that cannot be."""
    disk = tmp_path / "disk"
    disk.mkdir()
    small = ["mount", "-t", "tmpfs", "-o", "size=7m", "tmpfs", disk]
    if subprocess.run(small, capture_output=True).returncode:
        pytest.skip("cannot mount a small file system here")
    try:
        files = RemoteFiles(disk / "fetched")
        (server.folder / "first").write_bytes(BIG)
        files.fetch(f"{server.url}/first")
        assert content(files.fetch(f"{server.url}/big")) == BIG, "the first one went"
        (server.folder / "huge").write_bytes(BIG * 2)
        with pytest.raises(FolderError, match=r"cannot keep .* in .*: No space left"):
            files.fetch(f"{server.url}/huge")
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
    with pytest.raises(FolderError, match=r"data\.remote_cache"):
        RemoteFiles("/proc/nowhere").fetch(f"{server.url}/big")


def test_what_has_changed_is_fetched_again(server, files, tmp_path):
    """Lists and weights each time they are asked for, tars once a process."""
    url = f"{server.url}/list.csv"
    for text in (b"first", b"another"):
        (server.folder / "list.csv").write_bytes(text)
        assert content(files.fetch(url, anew=True)) == text
    for text in (b"x" * 600, b"y" * 700):
        (server.folder / "a.tar").write_bytes(text)
        place = member_of(files.fetch(f"{server.url}/a.tar#512+50"))
        assert content(place.file) == text and place.offset == 512
        stores.version_of_tar.cache_clear()  # as in another process


def test_of_a_tar_that_does_not_fit_the_video_alone_is_fetched(server, tmp_path):
    """Where all that is fetched is in use, a whole tar would only drive out another one."""
    files = RemoteFiles(tmp_path / "fetched", limit_gib=6 / 1024)
    (server.folder / "other").write_bytes(BIG[1:])
    path = f"{server.url}/other#1000+70"
    whole = files.fetch(f"{server.url}/big#100+50")
    assert member_of(whole) is not None, "the first one fits"
    files._measured = -1e9
    alone = files.fetch(path)
    assert member_of(alone) is None and content(alone) == BIG[1001:1071]
    assert server.sent < len(BIG) + 1000


def test_a_server_that_never_answers_hangs_nothing(server, shapes, tmp_path):
    """The limit of a decode holds for the fetching, and no video is condemned for it."""
    video = next((shapes / "train").rglob("*.mp4"))
    for name in ("slow.mp4", "good.mp4"):
        (server.folder / name).write_bytes(video.read_bytes())
    server.fail("/slow.mp4", *["stall"] * 1000)
    process = DecodeProcess(timeout_s=1, remote=RemoteFiles(tmp_path / "fetched"))
    with process.open(f"{server.url}/good.mp4", "auto") as opened:
        assert len(opened.get([0, 1])) == 2
    began = time.monotonic()
    with pytest.raises(VideoError, match="took more than 1 s"):
        process.open(f"{server.url}/slow.mp4", "auto")
    assert time.monotonic() - began < 20
    with process.open(f"{server.url}/good.mp4", "auto") as opened:
        assert len(opened.get([0, 1])) == 2
    process.close()


def test_a_server_that_is_away_stops_the_run_by_name(server, shapes, tmp_path, monkeypatch):
    """Also where others of its videos were fetched before."""
    monkeypatch.setattr("hiera_video.data.decode.source.PAUSES", (0.0, 0.01))
    video = next((shapes / "train").rglob("*.mp4"))
    (server.folder / "before.mp4").write_bytes(video.read_bytes())
    source = VideoSource(timeout_s=30, remote=RemoteFiles(tmp_path / "fetched"))
    source.open(f"{server.url}/before.mp4").close()
    url = f"{server.url}/a.mp4"
    server.close()
    attempts = source.attempts(url, lambda: [f"{server.url}/before.mp4"])
    with pytest.raises(Unavailable, match=r"a\.mp4 cannot be read: .*refused"):
        while True:
            try:
                source.open(url)
            except VideoError as e:
                attempts.after(e)
    source.close()


def test_a_run_on_a_server_ends_as_one_on_files(server, shapes, tmp_path, tool):
    """Lists, names and videos by http, as files and as tars, with faults on the way."""
    for name in os.listdir(shapes):
        (server.folder / name).symlink_to(shapes / name)
    pack = ("datasets/pack_shards.py", shapes / "train.csv", "--output", server.folder / "tars")
    tool(*pack, "--shard-mib", "0.1")
    pack = ("datasets/pack_shards.py", shapes / "val.csv", "--output", server.folder / "tars")
    tool(*pack)
    lines = (shapes / "train.csv").read_text().splitlines()
    first, second = (line.rsplit(" ", 1)[0] for line in lines[:2])
    server.fail(f"/{first}", "cut")
    server.fail(f"/{second}", "refuse")
    server.fail("/tars/train_000000.tar", "cut", "cut")
    more = [*SHORT, "init.weights=null", "stages=[train,test]", "data.classes=classes.txt"]
    roots = {"files": shapes, "http": server.url, "tars": f"{server.url}/tars"}
    for name, root in roots.items():
        cache = f"data.remote_cache={tmp_path / 'fetched'}"
        start(f"data.root={root}", f"output={tmp_path / name}", *more, cache)
    for name in ("http", "tars"):
        assert state(tmp_path / name) == state(tmp_path / "files")
        assert outcome(tmp_path / name) == outcome(tmp_path / "files")
    assert server.asked["/tars/train_000001.tar"] <= 6, "once, and its state once a process"


def delayed(port, delay_s):
    """The port of a proxy in front of that one, which passes on what comes after a while."""
    listener = socket.create_server(("127.0.0.1", 0))

    def pass_on(source, target, delay_s):
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                time.sleep(delay_s)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def accept():
        while True:
            client, _ = listener.accept()
            behind = socket.create_connection(("127.0.0.1", port))
            for pair in ((client, behind, delay_s), (behind, client, 0)):
                threading.Thread(target=pass_on, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener.getsockname()[1]


@pytest.mark.trial
def test_tars_in_an_object_store(tmp_path, tool, monkeypatch):
    """A local S3 that takes 20 ms for each request: 300 small videos as objects and in tars, every
    one read once with an empty cache. At least five times as fast.
    """
    for module in ("s3fs", "moto", "boto3"):
        pytest.importorskip(module)
    import boto3
    from moto.server import ThreadedMotoServer

    tool("datasets/moving_shapes.py", tmp_path / "files", "--train", "300", "--val", "1")
    pack = ("datasets/pack_shards.py", tmp_path / "files/train.csv", "--shard-mib", "0.5")
    tool(*pack, "--output", tmp_path / "tars")
    store = ThreadedMotoServer(port=0, verbose=False)
    store.start()
    port = delayed(store.get_host_and_port()[1], 0.02)
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    for file in [f for f in tmp_path.rglob("*") if f.is_file()]:
        client.upload_file(str(file), "bucket", str(file.relative_to(tmp_path)))
    speed = {}
    frames = {}
    for name in ("files", "tars"):
        videos = read_videos("train.csv", root=f"s3://bucket/{name}")
        source = VideoSource(remote=RemoteFiles(tmp_path / f"fetched_{name}"))
        frames[name] = []
        source.open(videos.path(0)).close()  # starts the process
        began = time.monotonic()
        for row in range(1, len(videos)):
            with source.open(videos.path(row)) as video:
                frames[name].append(video.get([0]).sum())
        speed[name] = len(frames[name]) / (time.monotonic() - began)
        source.close()
    store.stop()
    print(f"object store, 20 ms: {speed['files']:.1f} videos/s, in tars {speed['tars']:.1f}")
    assert frames["files"] == frames["tars"]
    assert speed["tars"] > 5 * speed["files"]
