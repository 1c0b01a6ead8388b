"""What a masked autoencoder makes of a video: original, masked, predicted.

    hiera-video visualize-mae --cfg configs/K400/hiera_b_16x4_mae.yaml \\
        --weights runs/hiera_b_16x4_mae video.mp4

Writes mae.png, or with --output x.mp4 a video. Four rows: the original; what the model saw; its
prediction with brightness and contrast of hidden patches guessed from visible ones ("honest"); and
with their true values, which looks better than the model is, but shows the structure that it
predicted. --weights are those of a masked autoencoder; the clip is the middle one.
"""

import argparse
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from hiera_video import build
from hiera_video.commands.arguments import add_config, make_parser
from hiera_video.config import Config, load_config
from hiera_video.data.decode.source import VideoSource
from hiera_video.inference import VideoModel
from hiera_video.models.mae import MaskedAutoencoder
from hiera_video.models.weights import is_autoencoder, read_weights
from hiera_video.pictures.reconstruct import ROWS, Reconstruction, reconstruct, sheet
from hiera_video.system.errors import UserError, VideoError


def parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("video", type=Path)
    add_config(parser, "config file (YAML) of the pretraining")
    parser.add_argument(
        "--weights",
        required=True,
        help="weight file, step folder, run folder or published name of a masked autoencoder",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("mae.png"),
        help="a picture (.png, .jpg) or a video (.mp4)",
    )
    parser.add_argument("--mask-ratio", type=float, help="default: the config's")
    parser.add_argument("--seed", type=int, default=0, help="decides which units are hidden")
    return parser


def main(args: argparse.Namespace) -> None:
    config = load_config(args.cfg, args.overrides)
    if config.task != "pretrain":
        raise UserError(
            f"--cfg {args.cfg}: task={config.task}; a masked autoencoder has task=pretrain"
        )
    if not args.video.is_file():
        raise UserError(f"there is no video {args.video}")
    if config.model.target == "hog":
        raise UserError("model.target=hog: what it predicts is no picture")
    model = load_autoencoder(config, args.weights)
    autoencoder = model.module
    assert isinstance(autoencoder, MaskedAutoencoder)  # task=pretrain
    ratio = config.mae.mask_ratio if args.mask_ratio is None else args.mask_ratio
    try:
        result = reconstruct(
            autoencoder,
            model.middle_clip(args.video),
            mask_ratio=ratio,
            tubes=config.mae.mask == "tube",
            decoder_keep=config.mae.decoder_keep,
            seed=args.seed,
            mean=config.data.mean,
            std=config.data.std,
        )
    except VideoError as e:
        raise UserError(f"{args.video}: {e}") from e
    except ValueError as e:
        raise UserError(str(e)) from e
    model.close()
    try:
        if args.output.suffix == ".mp4":
            stride = config.data.sampling_rate * autoencoder.patch_stride[0]
            write_video(result, args.output, config.data.target_fps / stride)
        else:
            sheet(result).save(args.output)
    except (OSError, ValueError, av.FFmpegError) as e:
        raise UserError(f"--output {args.output}: {e}") from e
    print(f"{args.output}: loss {result.loss:.4f} at mask ratio {ratio:g}")


def load_autoencoder(config: Config, weights: str) -> VideoModel:
    """Raises UserError."""
    try:
        state, _ = read_weights(weights)
    except ValueError as e:
        raise UserError(f"--weights: {e}") from e
    if not is_autoencoder(state):
        raise UserError(f"--weights {weights}: not a masked autoencoder, it has no decoder")
    model = build.build_model(build.model_spec(config, None), seed=config.seed)
    print(build.load_for_use(model, weights, key="--weights"))
    source = VideoSource(config.data.decoder, timeout_s=config.data.decode_timeout_s)
    return VideoModel(model, format=build.clip_format(config), source=source, device="cpu")


def write_video(result: Reconstruction, file: Path, fps: float) -> None:
    """The four side by side."""
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        frames = np.concatenate([getattr(result, name).numpy() for name in ROWS], axis=2)
        stream.height = frames.shape[1]
        stream.width = frames.shape[2]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "12"}
        for frame in frames:
            image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(image))
        container.mux(stream.encode())
