"""Lists of spoken words of the GRID corpus (Cooke et al., 2006), as it is published.

    python datasets/grid.py /data/grid --output /data/grid_words
    python datasets/grid.py /data/grid --output /data/grid_words --slots command --mouth 128x112 \\
        --split speaker --hold-out s4 s9

One folder a speaker, s1/bbaf2n.mpg; word times in s1/align/bbaf2n.align or align/s1/bbaf2n.align,
`start end word` a line in 1/25000 s. Writes train.csv, val.csv (tables with start_s, end_s) and
classes.txt; words.csv has both sides, for split_table.py. A sentence is never on both sides; with
--split speaker neither is a speaker.

--mouth WxH also writes the videos anew, cut to a box of that size that stands still, where that
speaker's pixels change most; --box X,Y,W,H says where it is instead.
Then paths are relative to --output, else to the corpus: set data.root to it.
"""

import argparse
import csv
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# A checkout works without being installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import av
import numpy as np
from tqdm import tqdm

from hiera_video.system.errors import UserError, run_command

UNITS_PER_S = 25_000
SLOTS = ("command", "colour", "preposition", "letter", "digit", "adverb")
SILENCE = ("sil", "sp")
SAMPLED = 20  # videos of a speaker that tell where the mouth is
Box = tuple[int, int, int, int]  # x, y, width, height


def read_words(file: Path) -> list[tuple[str, float, float]]:
    """(word, start, end) in seconds, without silence. Raises UserError."""
    words = []
    for number, line in enumerate(file.read_text().splitlines(), 1):
        cells = line.split()
        if len(cells) != 3 or not (cells[0].isdigit() and cells[1].isdigit()):
            raise UserError(f"{file}, line {number}: {line!r} is not `start end word`")
        if cells[2] not in SILENCE:
            words.append((cells[2], int(cells[0]) / UNITS_PER_S, int(cells[1]) / UNITS_PER_S))
    if len(words) != len(SLOTS):
        raise UserError(f"{file}: {len(words)} words, but a sentence of GRID has {len(SLOTS)}")
    return words


def find_sentences(root: Path) -> dict[Path, Path]:
    """Video -> its times; the sentences that have both. Raises UserError."""
    found = {}
    for video in sorted(root.glob("s*/**/*.mpg")):
        speaker = video.relative_to(root).parts[0]
        name = f"{video.stem}.align"
        for times in (root / speaker / "align" / name, root / "align" / speaker / name):
            if times.is_file():
                found[video] = times
    if not found:
        raise UserError(f"{root}: no s*/*.mpg with s*/align/*.align or align/s*/*.align")
    return found


def read_all(times: dict[Path, Path]) -> dict[Path, list[tuple[str, float, float]]]:
    """The words of every sentence; those that cannot be told are named and left out."""
    words = {}
    for video, file in times.items():
        try:
            words[video] = read_words(file)
        except UserError as e:
            print(f"left out: {e}", file=sys.stderr)
    if not words:
        raise UserError(f"none of the {len(times)} sentences has readable times")
    return words


def find_mouth(videos: list[Path], size: tuple[int, int]) -> Box:
    """The box of (width, height) whose pixels change most from frame to frame."""
    changes = []
    for video in videos[:: max(1, len(videos) // SAMPLED)]:
        with av.open(str(video)) as container:
            frames = [f.to_ndarray(format="gray") for f in container.decode(video=0)]
        if len(frames) > 1:
            changes.append(np.abs(np.diff(np.stack(frames).astype(np.float32), axis=0)).mean(0))
    if not changes:
        raise UserError(f"{videos[0].parent}: no video with two frames")
    width, height = size
    total = np.pad(np.mean(changes, axis=0).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    if height >= total.shape[0] or width >= total.shape[1]:
        raise UserError(f"--mouth {width}x{height} is larger than the videos of {videos[0].parent}")
    inside = total[height:, width:] - total[:-height, width:]
    inside = inside - total[height:, :-width] + total[:-height, :-width]
    y, x = np.unravel_index(inside.argmax(), inside.shape)
    return int(x) // 2 * 2, int(y) // 2 * 2, width, height  # even: the chroma planes are halved


def cut(job: tuple[Path, Path, Box]) -> str:
    """Writes one video anew, cut to a box; returns what went wrong."""
    source, target, (x, y, width, height) = job
    if target.exists():
        return ""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}")
    try:
        with av.open(str(source)) as video, av.open(str(temporary), "w", format="mp4") as out:
            options = {"crf": "18", "g": "25"}
            rate = video.streams.video[0].average_rate
            stream = out.add_stream("libx264", rate=rate, options=options)
            stream.width = width
            stream.height = height
            stream.pix_fmt = "yuv420p"
            stream.codec_context.thread_count = 1
            for frame in video.decode(video=0):
                image = frame.to_ndarray(format="rgb24")[y : y + height, x : x + width]
                image = np.ascontiguousarray(image)
                out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            out.mux(stream.encode())
    except (av.FFmpegError, OSError, ValueError) as e:
        temporary.unlink(missing_ok=True)
        return str(e)
    temporary.replace(target)
    return ""


def cut_all(sentences: list[Path], args: argparse.Namespace) -> dict[Path, Path]:
    """Video -> the one that was cut from it; those that fail are named and left out."""
    boxes: dict[str, Box] = {}
    jobs = []
    for video in sentences:
        speaker = speaker_of(video, args.corpus)
        if speaker not in boxes:
            own = [v for v in sentences if speaker_of(v, args.corpus) == speaker]
            boxes[speaker] = args.box or find_mouth(own, args.mouth)
            print(f"{speaker}: box x, y, width, height = {boxes[speaker]}")
        # Another box is another folder.
        box = "{2}x{3}+{0}+{1}".format(*boxes[speaker])
        target = args.output / "videos" / f"{speaker}_{box}" / f"{video.stem}.mp4"
        jobs.append((video, target, boxes[speaker]))
    written = {}
    with ThreadPoolExecutor(args.workers) as pool:
        results = tqdm(pool.map(cut, jobs), total=len(jobs), disable=not sys.stderr.isatty())
        for (video, target, _), wrong in zip(jobs, results):
            if wrong:
                print(f"left out: {video}: {wrong}", file=sys.stderr)
            else:
                written[video] = target
    return written


def speaker_of(video: Path, corpus: Path) -> str:
    return video.relative_to(corpus).parts[0]


def held_out(sentences: list[Path], args: argparse.Namespace) -> set[Path]:
    """Raises UserError."""
    groups = sentences
    if args.split == "speaker":
        groups = sorted({args.corpus / speaker_of(v, args.corpus) for v in sentences})
    if args.hold_out:
        named = {args.corpus / name for name in args.hold_out}
        missing = sorted(named - set(groups))
        if args.split != "speaker" or missing:
            raise UserError(f"--hold-out names speakers, for --split speaker; {missing or ''}")
        return named
    count = round(args.val_share * len(groups))
    if not 0 < count < len(groups):
        raise UserError(f"--val-share {args.val_share} of {len(groups)} leaves a side empty")
    order = np.random.default_rng(args.seed).permutation(len(groups))
    return {groups[k] for k in order[:count]}


def numbers(text: str, between: str, count: int) -> tuple[int, ...]:
    parts = text.split(between)
    if len(parts) != count or not all(part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not {count} numbers with {between!r}")
    return tuple(map(int, parts))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("corpus", type=Path)
    add("--output", type=Path, required=True)
    add("--slots", nargs="+", choices=SLOTS, default=list(SLOTS), help="default: every word")
    add("--split", choices=("utterance", "speaker"), default="utterance")
    add("--hold-out", nargs="*", help="speakers of val.csv")
    add("--val-share", type=float, default=0.25)
    add("--mouth", type=lambda t: numbers(t, "x", 2), metavar="WxH")
    add("--box", type=lambda t: numbers(t, ",", 4), metavar="X,Y,W,H")
    add("--seed", type=int, default=0)
    add("--workers", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    if any(size % 2 for size in (*(args.mouth or ()), *(args.box or ())[2:])):
        raise UserError("--mouth, --box: width and height must be even")
    words = read_all(find_sentences(args.corpus))
    sentences = list(words)
    held = held_out(sentences, args)
    args.output.mkdir(parents=True, exist_ok=True)
    files = {video: video for video in sentences}
    root = args.corpus
    if args.mouth or args.box:
        files = cut_all(sentences, args)
        root = args.output
    sides: dict[bool, list[list[object]]] = {False: [], True: []}
    for video, file in files.items():
        speaker = speaker_of(video, args.corpus)
        side = video in held or args.corpus / speaker in held
        path = file.relative_to(root)
        for slot, (word, start, end) in zip(SLOTS, words[video]):
            if slot in args.slots:
                sides[side].append([path, word, start, end, slot, speaker])
    lists = {"train": sides[False], "val": sides[True], "words": sides[False] + sides[True]}
    for name, rows in lists.items():
        with open(args.output / f"{name}.csv", "w", newline="") as f:
            writer = csv.writer(f)
            writer.writerow(["path", "label", "start_s", "end_s", "slot", "speaker"])
            writer.writerows(rows)
    classes = sorted({str(row[1]) for rows in sides.values() for row in rows})
    (args.output / "classes.txt").write_text("".join(f"{word}\n" for word in classes))
    print(
        f"{args.output}: {len(sides[False])} training and {len(sides[True])} validation words, "
        f"{len(classes)} classes; data.root={root}"
    )


if __name__ == "__main__":
    run_command(main)
