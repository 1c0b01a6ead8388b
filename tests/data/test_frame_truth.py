"""Every frame carries its number. Whatever a decoder accepts it must read exactly, and `auto` reads
everything.

`pytest -s tests/data/test_frame_truth.py` prints the table: for every kind of file, who reads it
and who refuses.
"""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from hiera_video.data.decode.packets import Packets
from hiera_video.data.decode.readers import OTHERS, missing_decoder, open_video
from hiera_video.data.sampling import uniform_clips

BITS = 9
HEIGHT = 64
WIDTH = 72
LOSSLESS = {"qp": "0", "preset": "ultrafast"}
# x264 has no B frames where it is lossless
B_FRAMES = {"qp": "1", "bf": "3", "x264-params": "b-adapt=0"}
OPEN = "scenecut=0:open-gop=1:bframes=3:b-adapt=0"


def numbered(k, *, height=HEIGHT, width=WIDTH):
    """The number in binary, a column a bit, above the same inverted: light is 1. The top quarter is
    white: which way is up.
    """
    image = np.full((height, width, 3), 30, np.uint8)
    image[: height // 4] = 225
    edges = np.linspace(0, width, BITS + 1).astype(int)
    for bit in range(BITS):
        columns = slice(edges[bit], edges[bit + 1])
        half = (
            slice(height // 4, height * 5 // 8) if k >> bit & 1 else slice(height * 5 // 8, height)
        )
        image[half, columns] = 225
    return image


def number(image):
    """The number of a frame; None if it is not one of ours, upright."""
    height, width = image.shape[:2]
    grey = image.astype(int).mean(-1)
    if grey[: height // 4 - 1].mean() < 200:
        return None
    edges = np.linspace(0, width, BITS + 1).astype(int)
    k = 0
    for bit in range(BITS):
        columns = slice(edges[bit] + 2, edges[bit + 1] - 2)
        upper = grey[height // 4 + 2 : height * 5 // 8 - 2, columns].mean()
        lower = grey[height * 5 // 8 + 2 : height - 2, columns].mean()
        if abs(upper - lower) < 100:
            return None
        k |= int(upper > lower) << bit
    return k


def write(
    path,
    *,
    codec="libx264",
    frames=90,
    options=LOSSLESS,
    stamps=None,
    size=(HEIGHT, WIDTH),
    pixels="yuv420p",
    clock=600,
    **more,
):
    """stamps: pts of each frame, in 1/clock s; default 30 a second."""
    with av.open(str(path), "w", **more) as container:
        stream = container.add_stream(codec, rate=30, options=dict(options))
        stream.height, stream.width, stream.pix_fmt = *size, pixels
        stream.codec_context.time_base = Fraction(1, clock)
        for k in range(frames):
            frame = av.VideoFrame.from_ndarray(
                numbered(k, height=size[0], width=size[1]), format="rgb24"
            )
            frame.pts = stamps[k] if stamps else clock // 30 * k
            frame.time_base = Fraction(1, clock)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def copy_from(path, out, *, first):
    """A cut without re-encoding, as `ffmpeg -ss -c copy`: packets from the keyframe before, an edit
    list that hides them.
    """
    with av.open(str(path)) as source, av.open(str(out), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        cut = first * round(1 / 30 / stream.time_base)
        source.seek(cut, stream=stream)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.pts = packet.pts - cut
                packet.dts = packet.dts - cut
                packet.stream = copy
                target.mux(packet)


def patch(path, box, offset, value):
    """Overwrites four bytes of an MP4 box that occurs once."""
    content = bytearray(path.read_bytes())
    at = content.index(box) + 4 + offset
    content[at : at + 4] = struct.pack(">i", value)
    path.write_bytes(content)


def rotate_90(path):
    """The matrix of the track header: a quarter turn."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40
    content[at : at + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


def shorten(path, share):
    """An edit list that ends the presentation early."""
    at = path.read_bytes().index(b"elst") + 12
    (duration,) = struct.unpack(">i", path.read_bytes()[at : at + 4])
    patch(path, b"elst", 8, int(duration * share))


def make(folder, name):
    """(path, numbers of the frames that it presents, time stamps if they are uneven)"""
    path = folder / name
    shown = range(90)
    stamps = None
    kind = path.stem
    if kind.startswith("vfr"):
        steps = np.random.default_rng(0).choice([10, 20, 40, 100], 89)
        stamps = [0, *np.cumsum(steps).tolist()]
        write(path, stamps=stamps, options=B_FRAMES if path.suffix == ".mp4" else LOSSLESS)
    elif kind == "plain":
        write(path)
    elif kind == "b_frames":
        write(path, options={**B_FRAMES, "g": "250"})
    elif kind == "short_groups":
        write(path, options={**B_FRAMES, "g": "12"})
    elif kind == "open_groups":
        write(path, options={"qp": "1", "x264-params": f"keyint=15:min-keyint=15:{OPEN}"})
    elif kind == "fragmented":
        write(
            path,
            options={**B_FRAMES, "g": "20"},
            container_options={"movflags": "frag_keyframe+empty_moov"},
        )
    elif kind == "late_start":
        write(path, options=B_FRAMES, stamps=[900 + 20 * k for k in range(90)])
        stamps = None
    elif kind in ("cut_start", "cut_start_open_groups", "cut_end", "cut_both"):
        source = folder / f"source_{name}"
        groups = OPEN if "open" in kind else OPEN.replace("open-gop=1", "open-gop=0")
        write(source, options={"qp": "1", "x264-params": f"keyint=24:min-keyint=24:{groups}"})
        first = 0 if kind == "cut_end" else 31
        copy_from(source, path, first=first)
        shown = range(first, 90)
        if kind in ("cut_end", "cut_both"):
            shorten(path, 0.5)
            # how many frames half of the time is depends on rounding: the sequential decode says
            shown = None
    elif kind == "rotated":
        write(path, options=B_FRAMES)
        rotate_90(path)
    elif kind == "one_frame":
        write(path, frames=1)
        shown = range(1)
    elif kind == "two_frames":
        write(path, frames=2)
        shown = range(2)
    elif kind == "odd_size":
        write(path, size=(67, 91), pixels="yuv444p", options=B_FRAMES)
    elif kind == "hevc":
        write(
            path,
            codec="libx265",
            options={"x265-params": "lossless=1:keyint=20:bframes=3:log-level=none"},
        )
    elif kind == "vp9":
        write(
            path,
            codec="libvpx-vp9",
            options={"lossless": "1", "g": "20", "deadline": "realtime", "cpu-used": "8"},
        )
    elif kind == "vp8":
        write(
            path,
            codec="libvpx",
            options={"b": "2M", "g": "20", "deadline": "realtime", "cpu-used": "8"},
        )
    elif kind == "av1":
        write(
            path,
            codec="libsvtav1",
            options={"crf": "1", "preset": "8", "svtav1-params": "keyint=30"},
        )
    elif kind == "mpeg4":
        write(path, codec="mpeg4", options={"q": "2", "g": "12", "bf": "0"})
    elif kind == "mpeg4_b_frames":
        write(path, codec="mpeg4", options={"q": "2", "g": "12", "bf": "2"})
    elif kind == "h264_b_frames":
        write(path, options={**B_FRAMES, "g": "20"})
    elif kind in OTHERS_WRITTEN:
        codec, options, pixels = OTHERS_WRITTEN[kind]
        clock = 30 if codec.startswith("mpeg") else 600  # MPEG knows no other
        write(path, codec=codec, options=options, pixels=pixels, clock=clock)
    else:
        raise AssertionError(name)
    return path, shown, stamps


INTERLACED = {"flags": "+ildct+ilme", "qp": "2", "g": "20", "x264-params": "tff=1"}
GROUPS = {"b": "6000000", "bf": "2", "g": "12"}
# As cameras, recorders and old players leave them: codec, its options, pixels.
OTHERS_WRITTEN = {
    "mbaff": ("libx264", INTERLACED, "yuv420p"),
    "mpeg1": ("mpeg1video", GROUPS, "yuv420p"),
    "mpeg2": ("mpeg2video", GROUPS, "yuv420p"),
    "mpeg2_interlaced": ("mpeg2video", {**GROUPS, "flags": "+ildct+ilme"}, "yuv420p"),
    "ten_bit": ("libx264", {"qp": "4", "g": "20"}, "yuv420p10le"),
    "ten_bit_hevc": ("libx265", {"x265-params": "qp=4:log-level=none"}, "yuv420p10le"),
    "wmv": ("wmv2", {"b": "4000000"}, "yuv420p"),
    "flash": ("flv1", {"b": "4000000"}, "yuv420p"),
    "motion_jpeg": ("mjpeg", {"q:v": "3"}, "yuvj420p"),
    "prores": ("prores_ks", {}, "yuv422p10le"),
    "lossless": ("ffv1", {}, "yuv420p"),
}


FILES = """
plain.mp4 b_frames.mp4 short_groups.mp4 short_groups.mov short_groups.mkv open_groups.mp4
open_groups.mkv vfr.mp4 vfr.mkv fragmented.mp4 late_start.mp4 cut_start.mp4
cut_start_open_groups.mp4 cut_end.mp4 cut_both.mp4 rotated.mp4 one_frame.mp4 two_frames.mp4
odd_size.mp4 hevc.mp4 hevc.mkv vp9.webm vp8.webm av1.mkv mpeg4.mp4 mpeg4.avi mpeg4_b_frames.avi
h264_b_frames.avi h264_b_frames.ts mbaff.mp4 mbaff.ts mpeg1.mpg mpeg2.mpg mpeg2.vob mpeg2.ts
mpeg2_interlaced.mpg ten_bit.mp4 ten_bit_hevc.mkv wmv.wmv flash.flv motion_jpeg.avi prores.mov
lossless.mkv
""".split()  # noqa: SIM905
TABLE: dict[str, dict[str, str]] = {}


@pytest.fixture(scope="module", autouse=True)
def table():
    yield
    if TABLE:
        print(f"\n{'':28}{'auto':12}{'decord':12}{'torchcodec':12}")
        for name, row in TABLE.items():
            print(
                f"{name:28}"
                + "".join(f"{row.get(d, ''):12}" for d in ("auto", "decord", "torchcodec"))
            )


def frames_in_order(path):
    """A plain decode from the start: the truth about how many frames are presented."""
    with av.open(str(path)) as container:
        frames = container.decode(container.streams.best("video"))
        return [np.rot90(f.to_ndarray(format="rgb24"), round(f.rotation / 90)) for f in frames]


@pytest.mark.parametrize("name", FILES)
def test_every_asked_for_frame_or_none(name, tmp_path):
    path, shown, stamps = make(tmp_path, name)
    upright = not name.startswith("rotated")
    truth = [number(np.rot90(image) if not upright else image) for image in frames_in_order(path)]
    if shown is None:
        assert 40 < len(truth) * 2 < 100 and None not in truth
    else:
        assert truth == list(shown), "the file is what it should be"
    TABLE[name] = {}
    for decoder in ("auto", "decord", "torchcodec"):
        if missing_decoder(decoder):
            TABLE[name][decoder] = "missing"
            continue
        with open_video(path, decoder) as video:
            n = video.info.num_frames
            assert n == len(truth)
            if stamps:
                np.testing.assert_allclose(video.info.times, np.array(stamps) / 600, atol=2e-3)
            rng = np.random.default_rng(0)
            places = [
                np.arange(n),
                [n - 1],
                [0, 0],
                *(rng.integers(0, n, 6) for _ in range(8)),
                [n // 2, 0],
            ]
            for indices in places:
                images = video.get(indices)
                got = [number(image if upright else np.rot90(image)) for image in images]
                assert got == [truth[i] for i in indices], (decoder, video.name)
            TABLE[name][decoder] = "exact" if decoder in ("auto", video.name) else "refused"
    assert TABLE[name]["auto"] == "exact"


def test_what_is_refused_would_be_wrong(tmp_path):
    """The rules that send a file elsewhere are needed: without them decord gives other frames, or
    cannot open the file.
    """
    if missing_decoder("decord"):
        pytest.skip("decord is not installed")
    for name in ("open_groups.mp4", "mpeg4_b_frames.avi", "cut_start.mp4", "mpeg1.mpg"):
        path, _, _ = make(tmp_path, name)
        with av.open(str(path)) as container:
            packets = Packets.scan(container, container.streams.best("video"))
        assert packets.unsafe("decord")
        with open_video(path, "auto") as video:
            right = [number(i) for i in video.get(np.arange(video.info.num_frames))]
        assert wrong_or_broken(path, right), name


def wrong_or_broken(path, right):
    """What decord itself makes of the file, frame by frame, in random order, and never beyond what
    is presented.
    """
    import decord

    reader = decord.VideoReader(str(path), num_threads=1)
    order = np.random.default_rng(0).permutation(min(len(right), len(reader)))
    try:
        got = [number(reader.get_batch([int(i)]).asnumpy()[0]) for i in order]
    except (decord.DECORDError, RuntimeError):
        return True
    return got != [right[i] for i in order]


def test_clips_of_a_variable_rate_follow_the_clock(tmp_path):
    """A clip's frames are those on show at even times, whoever decodes them."""
    path, _, stamps = make(tmp_path, "vfr.mp4")
    seconds = np.array(stamps) / 600
    for decoder in ("auto", *OTHERS):
        if missing_decoder(decoder):
            continue
        with open_video(path, decoder) as video:
            info = video.info
            assert not info.is_even and info.fps == pytest.approx(89 / seconds[-1])
            grid = info.grid()
            clip = grid[uniform_clips(len(grid), info.fps, 8, 4, num_clips=3)]
            got = [[number(image) for image in video.get(rows)] for rows in clip]
        on_show = np.arange(len(grid)) / info.fps
        for k, i in zip(grid, on_show):
            assert seconds[k] <= i + 1e-3 and (k == 89 or seconds[k + 1] > i - 1e-3)
        assert got == clip.tolist()
        gaps = np.diff(seconds[clip])
        assert np.abs(gaps - gaps.mean()).max() < 100 / 600 + 1e-3, "even but for the longest step"


@pytest.mark.parametrize("decoder", OTHERS)
def test_the_decoder_is_here(decoder):
    if missing_decoder(decoder):
        pytest.skip(f"{missing_decoder(decoder)}; nothing above was tested with it")
