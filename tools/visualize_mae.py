"""What a masked autoencoder makes of a video: original, masked, predicted.

    python tools/visualize_mae.py --cfg configs/K400/hiera_b_16x4_mae.yaml --weights runs/hiera_b_16x4_mae video.mp4

Writes mae.png, or with --output x.mp4 a video. Four rows: the original; what the model saw; its prediction with brightness and
contrast of hidden patches guessed from visible ones ("honest"); and with their true values, which looks better than the
model is, but shows the structure that it predicted. --weights are those of a masked autoencoder; the clip is the middle one.
"""

import argparse
import sys
from fractions import Fraction
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a plain checkout works without installing it

import av
import numpy as np
import torch

from hiera_video import build
from hiera_video.config import Config, load_config
from hiera_video.data.annotations import VideoList
from hiera_video.data.dataset import ClipDataset, Key
from hiera_video.data.transforms import EvalCrops, normalise
from hiera_video.errors import UserError, run_command
from hiera_video.reconstruct import ROWS, Reconstruction, reconstruct, sheet


def write_video(result: Reconstruction, file: Path, fps: float) -> None:
    """The four side by side."""
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        frames = np.concatenate([getattr(result, name).numpy() for name in ROWS], axis=2)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.options = {"crf": "12"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


def middle_clip(config: Config, video: Path) -> torch.Tensor:
    """float [1, 3, T, S, S], normalised. Raises UserError."""
    if not video.is_file():
        raise UserError(f"there is no video {video}")
    size = config.data.crop_size
    crops = EvalCrops(short_side=config.test.short_side or size, size=size, num_crops=1)
    sample = build.uniform_sampler(config, 1)
    dataset = ClipDataset(
        VideoList([str(video)], [-1]),
        sample=sample,
        transform=crops,
        decoder=config.data.decoder,
        timeout_s=config.data.decode_timeout_s,
    )
    found = dataset[Key(0, 0)]
    dataset.decoding.close()
    if "clip" not in found:
        raise UserError(f"{video}: {found['bad'][0][1]}")
    return normalise(found["clip"], config.data.mean, config.data.std)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("--cfg", required=True, help="config file (YAML) of the pretraining")
    parser.add_argument(
        "--weights", required=True, help="weight file, step folder or run folder of a masked autoencoder"
    )
    parser.add_argument("--output", type=Path, default=Path("mae.png"), help="a picture (.png, .jpg) or a video (.mp4)")
    parser.add_argument("--mask-ratio", type=float, help="default: the config's")
    parser.add_argument("--seed", type=int, default=0, help="decides which units are hidden")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a key of the config")
    args = parser.parse_intermixed_args()
    config = load_config(args.cfg, args.overrides)
    if config.task != "pretrain":
        raise UserError(f"--cfg {args.cfg}: task={config.task}; a masked autoencoder has task=pretrain")
    ratio = config.mae.mask_ratio if args.mask_ratio is None else args.mask_ratio
    name, arguments = build.model_arguments(config, None)
    model = build.build_model(name, arguments, seed=config.seed)
    print(build.load_for_use(model, args.weights, key="--weights"))
    clip = middle_clip(config, args.video)
    try:
        mean, std = config.data.mean, config.data.std
        result = reconstruct(model.eval(), clip, mask_ratio=ratio, seed=args.seed, mean=mean, std=std)
    except ValueError as e:
        raise UserError(str(e)) from e
    try:
        if args.output.suffix == ".mp4":
            fps = config.data.target_fps / config.data.sampling_rate / model.patch_stride[0]
            write_video(result, args.output, fps)
        else:
            sheet(result).save(args.output)
    except (OSError, ValueError, av.FFmpegError) as e:
        raise UserError(f"--output {args.output}: {e}") from e
    print(f"{args.output}: loss {result.loss:.4f} at mask ratio {ratio:g}")


if __name__ == "__main__":
    run_command(main)
