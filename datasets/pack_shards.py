"""Packs the videos of a list into tars, for storage that suffers from many small files.

    python datasets/pack_shards.py /k400/train.csv --output /k400_shards
    python tools/run_net.py --cfg .. data.root=/k400_shards

Writes train_000000.tar, .. of about --shard-mib each and, beside them, train.csv: the list's rows
with the columns `shard,offset,length`, by which any video is read where it lies. Labels, segments
and other columns stay, and so does `path`: samples and results are those of the loose files.

WebDataset reads the same tars: of video k they hold k.mp4 (or its own suffix), k.cls, the label, if
the list has one of it, and k.json, its path and labels. --shuffle lays the videos in a random
order, which such readers want; for ours it is of no matter.

Tars are written whole or not at all, and those that are there already are kept: the same command
goes on where it was stopped. Videos that are missing are named and left out. A classes.txt beside
the list comes along.
"""

import argparse
import csv
import io
import json
import os
import random
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

# A checkout works without being installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm

from hiera_video.data.lists import VideoList, read_videos
from hiera_video.data.tables import LABEL, PATH, SHARD, as_csv
from hiera_video.system.errors import UserError, run_command
from hiera_video.system.files import write_text, written_whole

BLOCK = tarfile.BLOCKSIZE


@dataclass
class Video:
    """One of the list, and what of it goes into a tar."""

    path: str
    number: int  # among the videos, in the order of the tars
    size: int
    mtime: int
    rows: list[int]
    texts: dict[str, bytes] = field(default_factory=dict)  # suffix -> what stands beside it
    offset: int = 0  # in its tar

    @property
    def name(self) -> str:
        return f"{self.number:09d}"

    def members(self) -> list[tuple[str, int]]:
        """(name, bytes)"""
        suffix = Path(self.path).suffix.lower() or ".video"
        beside = [(self.name + end, len(text)) for end, text in self.texts.items()]
        return [(self.name + suffix, self.size), *beside]


def find_videos(videos: VideoList, seed: int | None) -> tuple[list[Video], list[int]]:
    """(each video once, rows whose file is missing)"""
    rows_of: dict[str, list[int]] = {}
    for row in range(len(videos)):
        rows_of.setdefault(videos.path(row), []).append(row)
    paths = list(rows_of)
    if seed is not None:
        random.Random(seed).shuffle(paths)
    found = []
    missing = []
    for path in tqdm(paths, desc="sizes", unit="videos", disable=not sys.stderr.isatty()):
        try:
            status = os.stat(path)
        except OSError:
            missing += rows_of[path]
            continue
        video = Video(path, len(found), status.st_size, int(status.st_mtime), rows_of[path])
        labels = [videos.label(row) for row in video.rows]
        if len(labels) == 1 and labels[0] >= 0:
            video.texts[".cls"] = str(labels[0]).encode()
        written = os.fsencode(videos.written(video.rows[0])).decode(errors="backslashreplace")
        video.texts[".json"] = json.dumps({"path": written, "labels": labels}).encode()
        found.append(video)
    return found, sorted(missing)


def shards_of(videos: list[Video], limit: int) -> Iterator[list[Video]]:
    """Videos in their order, those of a tar together; sets their offsets."""
    shard: list[Video] = []
    end = 0
    for video in videos:
        size = sum(BLOCK + padded(length) for _, length in video.members())
        if shard and end + size > limit:
            yield shard
            shard = []
            end = 0
        video.offset = end + BLOCK
        shard.append(video)
        end += size
    if shard:
        yield shard


def padded(length: int) -> int:
    return -(-length // BLOCK) * BLOCK


def header(name: str, size: int, mtime: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    info.mtime = mtime
    return info


def is_there(file: Path, shard: list[Video]) -> bool:
    """Whether an earlier process wrote the tar: the same videos, labels and paths."""
    if not file.exists():
        return False
    with open(file, "rb") as tar:
        for video in shard:
            place = video.offset - BLOCK
            for (name, size), text in zip(video.members(), [None, *video.texts.values()]):
                tar.seek(place)
                wanted = header(name, size, video.mtime).tobuf(tarfile.USTAR_FORMAT)
                if tar.read(BLOCK) != wanted or text not in (None, tar.read(size)):
                    return False
                place += BLOCK + padded(size)
    return True


def write_shard(file: Path, shard: list[Video]) -> None:
    """Raises UserError where a video cannot be read, or changes."""
    with (
        written_whole(file) as temporary,
        tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for video in shard:
            (name, size), *_ = video.members()
            try:
                with open(video.path, "rb") as source:
                    tar.addfile(header(name, size, video.mtime), source)
            except OSError as e:
                raise UserError(f"{video.path}: {e.strerror or e}; {file} is not written") from e
            for end, text in video.texts.items():
                tar.addfile(header(video.name + end, len(text), video.mtime), io.BytesIO(text))


def packed_header(videos: VideoList) -> list[str]:
    columns = videos.header or [PATH, LABEL]
    return [*(name for name in columns if name not in SHARD), *SHARD]


def packed_row(videos: VideoList, row: int, place: tuple[str, int, int]) -> str:
    """The list's row, with the place of its video."""
    if videos.header is None:
        label = videos.label(row)
        cells = {PATH: videos.written(row), LABEL: str(label) if label >= 0 else ""}
    else:
        cells = dict(zip(videos.header, next(csv.reader([videos.line(row)]))))
    cells |= {name: str(value) for name, value in zip(SHARD, place)}
    return as_csv([cells[name] for name in packed_header(videos)])


def pack(videos: VideoList, name: str, args: argparse.Namespace) -> None:
    found, missing = find_videos(videos, args.shuffle)
    for row in missing:
        tqdm.write(f"left out: {videos.written(row)}: no such file")
    if not found:
        raise UserError(f"{videos.source}: none of its {len(videos)} videos is there")
    args.output.mkdir(parents=True, exist_ok=True)
    places: dict[int, tuple[str, int, int]] = {}
    shards = list(shards_of(found, int(args.shard_mib * 2**20)))
    bar = tqdm(total=len(found), unit="videos", disable=not sys.stderr.isatty())
    for number, shard in enumerate(shards):
        file = args.output / f"{name}_{number:06d}.tar"
        if not is_there(file, shard):
            write_shard(file, shard)
            if bar.disable:
                print(f"{file}: {len(shard)} videos, tar {number + 1} of {len(shards)}", flush=True)
        for video in shard:
            places |= dict.fromkeys(video.rows, (file.name, video.offset, video.size))
        bar.update(len(shard))
    bar.close()
    lines = [as_csv(packed_header(videos))]
    lines += [packed_row(videos, row, places[row]) for row in sorted(places)]
    with written_whole(args.output / f"{name}.csv") as temporary:
        text = "".join(f"{line}\n" for line in lines)
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")
    names = Path(videos.source).parent / "classes.txt"
    if videos.header is None and videos.classes:  # of class folders
        write_text(args.output / "classes.txt", "".join(f"{c}\n" for c in videos.classes))
    elif names.is_file():
        write_text(args.output / "classes.txt", names.read_text(encoding="utf-8"))
    total = sum(video.size for video in found) / 2**20
    print(
        f"{len(found)} videos, {total:.1f} MiB, in {len(shards)} tars; "
        f"{len(places)} of {len(videos)} rows in {args.output / f'{name}.csv'}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("list", type=Path, help="`path label` a line, a table, or a folder of class folders")
    add("--output", type=Path, required=True, help="folder of the tars and of the new list")
    add("--root", type=Path, help="folder of relative paths; default: the list's")
    add("--shard-mib", type=float, default=512, help="size of a tar; default: %(default)s")
    add("--shuffle", type=int, metavar="SEED", help="lay the videos in a random order")
    args = parser.parse_args()
    if not args.shard_mib > 0:
        raise UserError(f"--shard-mib {args.shard_mib} must be > 0")
    root = args.root or (args.list if args.list.is_dir() else args.list.absolute().parent)
    videos = read_videos(args.list.absolute(), root=root, key="list")
    name = args.list.stem if args.list.suffix else args.list.name
    theirs = args.list if args.list.is_dir() else args.list.absolute().parent
    if args.output.exists() and any(args.output.samefile(folder) for folder in (root, theirs)):
        raise UserError(
            f"--output {args.output} is the folder of the list or of its videos; give another"
        )
    pack(videos, name, args)


if __name__ == "__main__":
    run_command(main)
