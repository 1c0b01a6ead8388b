"""Lists from a folder of class folders, split into training and validation.

    python datasets/make_lists.py my_videos --val 0.2

    my_videos/<class name>/<any depth>/<video>.{mp4,avi,webm,mkv,mov}

Writes train.csv and val.csv (`path label`, paths relative to the folder) and classes.txt (one name
a line; classes in alphabetical order, as PyTorchVideo numbers them) into the folder. Every class
keeps its share in both lists; the split depends on --seed alone. Lists that are there already are
not overwritten without --force.
"""

import argparse
import random
import sys
from pathlib import Path

# A checkout works without being installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hiera_video.data.lists import read_videos
from hiera_video.system.errors import UserError, run_command

FILES = ("train.csv", "val.csv", "classes.txt")


def make_lists(folder: Path, *, val: float, seed: int, force: bool) -> None:
    if not 0 < val < 1:
        raise UserError(f"--val {val} must be a share between 0 and 1")
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    there = [name for name in FILES if (folder / name).exists()]
    if there and not force:
        raise UserError(f"{folder / there[0]} is there already; --force overwrites it")
    videos = read_videos(folder, key="folder")
    by_class: dict[int, list[str]] = {}
    for i in range(len(videos)):
        by_class.setdefault(videos.label(i), []).append(videos.written(i))
    rng = random.Random(seed)
    train = []
    held_out = []
    for label, paths in sorted(by_class.items()):
        rng.shuffle(paths)
        if len(paths) < 2:
            raise UserError(
                f"class {videos.classes[label]!r} has a single video; both lists need one"
            )
        count = min(max(round(len(paths) * val), 1), len(paths) - 1)
        held_out += [f"{path} {label}\n" for path in sorted(paths[:count])]
        train += [f"{path} {label}\n" for path in sorted(paths[count:])]
    empty = [name for label, name in enumerate(videos.classes) if label not in by_class]
    if empty:
        raise UserError(
            f"class folder {empty[0]!r} holds no video; remove it, or it would be a class without "
            "examples"
        )
    for name, lines in zip(FILES, (train, held_out, [f"{name}\n" for name in videos.classes])):
        (folder / name).write_text("".join(lines), encoding="utf-8", errors="surrogateescape")
    print(
        f"{folder}: {len(train)} training and {len(held_out)} validation videos of "
        f"{len(videos.classes)} classes"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--val", type=float, default=0.2, help="share of each class for validation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--force", action="store_true", help="overwrite lists that are there already"
    )
    args = parser.parse_args()
    make_lists(args.folder, val=args.val, seed=args.seed, force=args.force)


if __name__ == "__main__":
    run_command(main)
