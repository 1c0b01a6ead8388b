"""Readers against a plain sequential decode, and against each other, on made and on real files."""

from fractions import Fraction

import av
import numpy as np
import pytest

from hiera_video.data.decode.readers import DecordReader, open_video
from hiera_video.system.errors import VideoError

ODD = ("hangs_decord.mp4", "corrupted.mp4")


def sequential(path):
    """Every frame of a file, in order, the slow and certain way."""
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        images = []
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.InvalidDataError:
                continue
            for frame in frames:
                image = frame.to_ndarray(format="rgb24")
                images.append(np.rot90(image, round(frame.rotation / 90)))
        return images


def write(path, *, codec="libx264", frames=40, rate=30, pts=None, **options):
    """A file whose frames all differ."""
    rng = np.random.default_rng(0)
    base = rng.integers(0, 255, (48, 64, 3))
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            codec, rate=Fraction(rate), options={k: str(v) for k, v in options.items()}
        )
        stream.width = 64
        stream.height = 48
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 600)
        for t in range(frames):
            image = np.roll(base, 3 * t, axis=1) // 2 + 2 * t
            frame = av.VideoFrame.from_ndarray(image.clip(0, 255).astype(np.uint8), format="rgb24")
            frame.pts = pts[t] if pts else t * 600 // rate
            frame.time_base = Fraction(1, 600)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


MADE = {
    "plain.mp4": {},
    "short_gop.mp4": {"g": 8, "bf": 2},
    "open_gop.mp4": {"x264-params": "keyint=10:min-keyint=10:open-gop=1:bframes=3"},
    "one_frame.mp4": {"frames": 1},
    "vfr.mp4": {"pts": [t * 20 + (t // 7) * 60 for t in range(40)]},
    "vp9.webm": {"codec": "libvpx-vp9", "g": 12},
    "mpeg4.avi": {"codec": "mpeg4", "g": 10, "bf": 2},
}


@pytest.mark.parametrize("name", MADE)
def test_made_files_are_read_exactly(name, tmp_path):
    path = write(tmp_path / name, **MADE[name])
    check_against_sequential(path)


def check_against_sequential(path):
    expected = sequential(path)
    rng = np.random.default_rng(0)
    for decoder in ("pyav", "decord"):
        with open_video(path, decoder) as video:
            n = video.info.num_frames
            assert n == len(expected) == len(video.info.times)
            assert (np.diff(video.info.times) > 0).all()
            for indices in [
                np.arange(n),
                [n - 1],
                [0, 0],
                *(rng.integers(0, n, 9) for _ in range(6)),
            ]:
                frames = video.get(indices)
                assert frames.dtype == np.uint8
                for frame, i in zip(frames, indices, strict=True):
                    difference = np.abs(frame.astype(int) - expected[i]).mean()
                    limit = {"pyav": 0.0, "decord": 5.0 if "10bit" in str(path) else 0.5}[
                        video.name
                    ]
                    assert difference <= limit, (decoder, video.name, i)


def test_real_files_are_read_exactly(clips):
    for path in sorted(clips.glob("*.m*")) + sorted(clips.glob("*.avi")):
        if path.suffix != ".md" and path.name not in ODD:
            check_against_sequential(path)


def test_decord_reads_what_it_reads_rightly_and_nothing_else(clips, tmp_path):
    pytest.importorskip("decord")
    expected = {
        "dog.mp4": "decord",
        "flipping_a_pancake.mkv": "decord",
        "kinetics_like.mp4": "decord",
        "video_90.mov": "decord",
        "h264_10bits.mp4": "decord",
        "h265_video.mp4": "pyav",  # open groups of pictures
        "av1_video.mkv": "pyav",
        "test.avi": "pyav",  # reordered frames in AVI
        "hangs_decord.mp4": "pyav",  # edit list
    }
    for name, reader in expected.items():
        with open_video(clips / name, "decord") as video:
            assert video.name == reader, name
    with open_video(clips / "dog.mp4", "auto") as video:
        assert video.name == "pyav"


def test_damaged_frames_are_never_made_up(clips):
    """Both readers give the same frames up to the damage, and an error from there on."""
    path = clips / "corrupted.mp4"
    expected = sequential(path)
    good = {"pyav": 0, "decord": 0}
    for decoder in good:
        with open_video(path, decoder) as video:
            assert video.info.num_frames == 50
            for i in range(50):
                try:
                    frame = video.get([i])[0]
                except VideoError as e:
                    assert "cannot be decoded" in str(e)
                    continue
                good[decoder] += 1
                assert np.array_equal(frame, expected[i])
    assert good["pyav"] == good["decord"] >= 20


def test_rotation_is_applied(clips):
    for decoder in ("pyav", "decord"):
        with open_video(clips / "video_90.mov", decoder) as video:
            assert video.get([0]).shape == (1, 568, 320, 3)


def test_header_is_not_trusted(clips):
    with open_video(clips / "demo.avi") as video:  # its header says 301
        assert video.info.num_frames == 300
    with open_video(clips / "flipping_a_pancake.mkv") as video:  # its header says nothing
        assert video.info.num_frames == 310


def test_times_follow_the_time_stamps(tmp_path):
    with open_video(write(tmp_path / "vfr.mp4", **MADE["vfr.mp4"])) as video:
        expected = (np.arange(40) * 20 + np.arange(40) // 7 * 60) / 600
        np.testing.assert_allclose(video.info.times, expected, atol=1e-3)


@pytest.mark.parametrize(
    "content, reason",
    [(b"", "Invalid data"), (b"this is no video" * 50, "Invalid data"), (None, "No such file")],
)
def test_what_is_no_video_is_refused(content, reason, tmp_path):
    path = tmp_path / "x.mp4"
    if content is not None:
        path.write_bytes(content)
    for decoder in ("auto", "decord"):
        with pytest.raises(VideoError, match=reason):
            open_video(path, decoder)


def test_truncated_and_audio_only_files_are_refused(tmp_path):
    whole = write(tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(VideoError, match="Invalid data"):
        open_video(tmp_path / "cut.mp4")
    with av.open(str(tmp_path / "audio.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        for _ in range(10):
            frame = av.AudioFrame.from_ndarray(
                np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
            )
            frame.sample_rate = 16000
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(VideoError, match="no video stream"):
        open_video(tmp_path / "audio.mp4")


def test_pytorchvideos_bridge_does_not_matter(clips):
    decord = pytest.importorskip("decord")
    decord.bridge.set_bridge("torch")
    try:
        with open_video(clips / "dog.mp4", "decord") as video:
            assert isinstance(video, DecordReader)
            assert isinstance(video.get([3, 1]), np.ndarray)
    finally:
        decord.bridge.reset_bridge()


def test_fields_are_read_as_frames(clips):
    """26 packets of a field each, 13 frames of 25 a second."""
    with open_video(clips / "avchd_fields.mts") as video:
        assert video.info.num_frames == 13 and video.info.fps == 25
        np.testing.assert_allclose(video.info.times, np.arange(13) / 25, atol=1e-6)
        truth = sequential(clips / "avchd_fields.mts")
        for indices in (range(13), [5], [12, 3, 3]):
            assert all((a == truth[i]).all() for a, i in zip(video.get(indices), indices))


def test_fields_of_two_recordings_are_counted(clips, tmp_path):
    """One after the other in a file: the same time stamps come again."""
    content = (clips / "avchd_fields.mts").read_bytes()
    path = tmp_path / "twice.mts"
    path.write_bytes(content + content)
    truth = sequential(path)
    with open_video(path) as video:
        assert video.info.num_frames == len(truth) > 20
        got = video.get(range(len(truth)))
    assert sum((a == b).all() for a, b in zip(got, truth)) > 20


def test_a_damaged_second_field_spoils_its_frame(clips, tmp_path):
    content = bytearray((clips / "avchd_fields.mts").read_bytes())
    with av.open(str(clips / "avchd_fields.mts")) as container:
        packets = [p for p in container.demux(container.streams.best("video")) if p.size]
        places = {p.pts: p.pos for p in packets if p.pos is not None}
    after = places[104400]  # what follows the second field of the frame at 108000 in the file
    content[after - 100 * 188 : after - 40 * 188] = bytes(60 * 188)
    path = tmp_path / "damaged.mts"
    path.write_bytes(content)
    whole = sequential(clips / "avchd_fields.mts")
    lost = 0
    with open_video(path) as video:
        for index in range(video.info.num_frames):
            try:
                image = video.get([index])[0]
            except VideoError:
                lost += 1
                continue
            assert any((image == other).all() for other in whole), "made up, and not reported"
    assert 0 < lost < 13


def test_a_picture_that_changes_its_size_is_scaled_to_the_first(tmp_path):
    """As recordings of calls do: here two streams of H.264, one after the other."""
    whole = b""
    for size in ((64, 48), (96, 80)):
        part = tmp_path / f"{size[0]}.h264"
        with av.open(str(part), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height = size
            stream.pix_fmt = "yuv420p"
            for grey in (40, 90, 140):
                image = np.full((size[1], size[0], 3), grey, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
        whole += part.read_bytes()
    (tmp_path / "both.h264").write_bytes(whole)
    with open_video(tmp_path / "both.h264") as video:
        assert video.info.num_frames == 6
        frames = video.get(range(6))
    assert frames.shape == (6, 48, 64, 3)
    np.testing.assert_allclose(frames.mean((1, 2, 3)), [40, 90, 140, 40, 90, 140], atol=3)
