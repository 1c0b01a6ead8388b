"""Top-5 classes of one's own videos.

    hiera-video predict my_video.mp4 --weights runs/hiera_b_16x4
    hiera-video predict folder/ --weights hiera_base_16x224.pth --model hiera_base_16x224 \\
        --classes datasets/labels/k400.txt

Model, class names and clip format come from what the weight file says of itself; published .pth
files say nothing, so name the model and a file with one class a line. Softmax scores are averaged
over --clips clips x --crops crops (5 x 3 is the published protocol). Folders are searched for
videos. A video that cannot be read is named on stderr; then the exit status is 2. Of a model of
several labels a video, those that reach their threshold are marked with *.

What happens when, in videos of any length: --timeline DIR writes the top-5 of every window as
<video>.timeline.csv and a picture of it, <video>.timeline.png (`hiera-video export-labels DIR`
makes segments of it for other tools); --draw DIR writes the video with the classes drawn on it,
<video>.drawn.mp4. Windows follow each other, or begin every --hop-s seconds.

A live stream: a camera (/dev/video0, or its number), rtsp://, udp:// and the like, a named pipe,
standard input (-), or http:// with --live. The newest window is classified again and again; what
the model is too slow for is dropped and counted, so the latest result is never old. --json FILE
keeps every result as a line of JSON (- for standard output). A stream that breaks off is opened
again, for --reconnect-s seconds.

    hiera-video predict rtsp://camera/1 --weights runs/own --json results.jsonl
    ffmpeg -i .. -f nut - | hiera-video predict - --weights runs/own
"""

import argparse
import sys
from pathlib import Path

from hiera_video.commands.arguments import make_parser
from hiera_video.data.decode.live import is_live
from hiera_video.data.lists import VIDEO_SUFFIXES
from hiera_video.inference import Prediction, UnnamedModel, VideoModel, load
from hiera_video.models.token_dial import KEEP_BY
from hiera_video.pictures import timeline
from hiera_video.stages.live import Watch, predict_stream
from hiera_video.system.errors import UserError, VideoError
from hiera_video.system.files import join, write_json
from hiera_video.system.stores import is_remote

DRAWN = ".drawn.mp4"  # end of a name
# Arguments of `load`, whose messages begin with the one that is wrong.
OPTIONS = ("model: ", "classes: ", "device: ", "keep_units=")


def parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="file, folder or URL")
    parser.add_argument(
        "--weights", required=True, help="weight file, step folder, run folder or published name"
    )
    parser.add_argument("--model", help="name, where the weights do not say it")
    parser.add_argument(
        "--classes", type=Path, help="one class name a line, where the weights do not have them"
    )
    parser.add_argument("--clips", type=int, default=5)
    parser.add_argument("--crops", type=int, default=3, choices=(1, 3))
    parser.add_argument(
        "--timeline", type=Path, metavar="DIR", help="write what happens when, as CSV and picture"
    )
    parser.add_argument(
        "--draw", type=Path, metavar="DIR", help="write the video with what happens drawn on it"
    )
    parser.add_argument(
        "--hop-s", type=float, help="seconds from window to window; default end to end"
    )
    parser.add_argument(
        "--keep-units",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="of a Hiera's mask units that are computed: less cost, less accuracy",
    )
    parser.add_argument("--keep-units-by", choices=KEEP_BY, default="random")
    stream = parser.add_argument_group("live streams")
    stream.add_argument("--live", action="store_true", help="the URL is a stream, not a file")
    stream.add_argument("--window-s", type=float, help="of a window; default: the model's clip")
    stream.add_argument("--json", type=Path, metavar="FILE", help="a line of JSON a result")
    stream.add_argument("--seconds", type=float, help="after which it ends; default: never")
    stream.add_argument("--reconnect-s", type=float, default=60.0, help="for a stream that is lost")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for decoding a video")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return parser


def main(args: argparse.Namespace) -> None:
    if args.clips < 1 or args.timeout <= 0 or (args.hop_s is not None and args.hop_s <= 0):
        raise UserError("--clips, --timeout and --hop-s must be > 0")
    if not 0 < args.keep_units <= 1:
        raise UserError(f"--keep-units {args.keep_units} must be above 0 and at most 1")
    if args.live or any(map(is_live, args.videos)):
        watch(args)
        return
    paths = find_videos(args.videos)
    names = file_names(paths)
    model = load_classifier(args, keep_units=args.keep_units, keep_units_by=args.keep_units_by)
    if args.draw:
        check_not_an_input(args.draw, names, paths)
    unread = []
    for path, name in zip(paths, names):
        try:
            show(model, path, name, args)
        except BrokenPipeError:
            raise
        except (VideoError, OSError) as e:
            unread.append(path)
            print(f"{path}: {e}", file=sys.stderr)
    model.close()
    if unread:
        shown = ", ".join(unread[:3])
        raise UserError(f"{len(unread)} of {len(paths)} videos could not be read: {shown}")


def watch(args: argparse.Namespace) -> None:
    """Raises UserError, RunStopped."""
    if len(args.videos) > 1:
        raise UserError("one live stream at a time")
    if args.timeline or args.draw:
        raise UserError("--timeline and --draw are for files; --json keeps the results of a stream")
    for name in ("window_s", "seconds"):
        if getattr(args, name) is not None and getattr(args, name) <= 0:
            raise UserError(f"--{name.replace('_', '-')} must be > 0")
    if args.reconnect_s < 0:
        raise UserError("--reconnect-s must be >= 0")
    model = load_classifier(args, keep_units=args.keep_units, keep_units_by=args.keep_units_by)
    options = Watch(args.window_s, args.hop_s, args.json, args.seconds, args.reconnect_s)
    predict_stream(model, args.videos[0], options)


def show(model: VideoModel, path: str, name: str, args: argparse.Namespace) -> None:
    """Prints and writes what was asked for of one video. Raises VideoError, OSError."""
    best = model.predict(path, top=5, clips=args.clips, crops=args.crops)
    print(path)
    for prediction in best:
        mark = " *" if prediction.is_chosen else ""
        print(f"  {prediction.score:7.2%}  {prediction.label}{mark}", flush=True)
    if args.timeline or args.draw:
        for file in write_timeline(model, path, name, best, args):
            print(f"  {file}", flush=True)


def write_timeline(
    model: VideoModel, path: str, name: str, best: list[Prediction], args: argparse.Namespace
) -> list[Path]:
    """What --timeline and --draw ask for; returns the files. Raises VideoError, OSError."""
    found = model.timeline(path, hop_s=args.hop_s)
    scores = found.scores
    times = found.times
    written = []
    if args.timeline:
        args.timeline.mkdir(parents=True, exist_ok=True)
        table = args.timeline / f"{name}{timeline.TABLE}"
        picture = args.timeline / f"{name}.timeline.png"
        timeline.write_csv(table, times, scores, model.classes)
        timeline.draw_picture(picture, times, scores, model.classes, title=name)
        with model.open(path) as video:
            facts = {
                "video": str(join(Path.cwd(), path)),
                "fps": video.info.fps,
                "frames": video.info.num_frames,
                "predictions": [[p.label, p.score] for p in best],
                "classes": model.classes,
            }
        write_json(args.timeline / f"{name}{timeline.FACTS}", facts)
        written += [table, picture]
    if args.draw:
        args.draw.mkdir(parents=True, exist_ok=True)
        drawn = args.draw / f"{name}{DRAWN}"
        with model.open(path) as video:
            timeline.draw_video(drawn, video, times, scores, model.classes)
        written.append(drawn)
    return written


def load_classifier(
    args: argparse.Namespace, *, keep_units: float = 1.0, keep_units_by: str = "random"
) -> VideoModel:
    """args: weights, model, classes, device and timeout. Raises UserError."""
    classes = None if args.classes is None else read_classes(args.classes)
    try:
        model = load(
            args.weights,
            model=args.model,
            classes=classes,
            device=args.device,
            timeout_s=args.timeout,
            keep_units=keep_units,
            keep_units_by=keep_units_by,
        )
    except UnnamedModel as e:
        raise UserError(
            f"--weights {args.weights} does not say what model it belongs to; "
            "give --model, such as hiera_base_16x224"
        ) from e
    except ValueError as e:
        of_option = str(e).startswith(OPTIONS)
        message = (
            f"--{e}".replace("keep_units", "keep-units", 1) if of_option else f"--weights: {e}"
        )
        raise UserError(message) from e
    if not model.takes_video:
        raise UserError(f"--model: {args.model or args.weights} takes images, not video")
    if not model.is_classifier:
        raise UserError(
            f"--weights {args.weights}: a masked autoencoder knows no classes; fine-tune it first"
        )
    return model


def read_classes(file: Path) -> list[str]:
    """Raises UserError."""
    if not file.is_file():
        raise UserError(f"--classes: there is no file {file}")
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as e:
        raise UserError(f"--classes {file}: not a text in UTF-8: {e}") from e


def find_videos(given: list[str]) -> list[str]:
    """The files, and all videos below the folders. Raises UserError."""
    found = []
    for name in given:
        path = Path(name)
        if path.is_dir():
            files = [p for p in path.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES]
            inside = sorted(str(p) for p in files if p.is_file())
            if not inside:
                endings = ", ".join(VIDEO_SUFFIXES)
                raise UserError(f"the folder {path} holds no video ({endings})")
            found += inside
        elif path.is_file() or is_remote(name):
            found.append(name)
        else:
            raise UserError(f"there is no video {name}")
    return found


def file_names(paths: list[str]) -> list[str]:
    """The videos' names without their endings, numbered where that would leave two alike."""
    stems = [Path(path).stem for path in paths]
    if len(set(stems)) == len(stems):
        return stems
    return [f"{k:04d}_{stem}" for k, stem in enumerate(stems)]


def check_not_an_input(folder: Path, names: list[str], paths: list[str]) -> None:
    """Raises UserError where a video would be written over."""
    given = {Path(path).resolve() for path in paths}
    for name in names:
        if (folder / f"{name}{DRAWN}").resolve() in given:
            raise UserError(
                f"--draw {folder}: {name}{DRAWN} is one of the videos; choose another folder"
            )
