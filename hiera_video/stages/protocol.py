"""protocol.json of a test, its card: everything that the figures depend on, and nothing else."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hiera_video.config import Config
from hiera_video.data.decode.readers import missing_decoder
from hiera_video.data.lists import VideoList
from hiera_video.system.files import sha256_of

Card = dict[str, Any]


def protocol_card(config: Config, videos: VideoList, weights: Path) -> Card:
    data = config.data
    test = config.test
    short_side = test.short_side or data.crop_size
    place = "centre" if test.crops == 1 else "three along the long side"
    card = {
        "list": {
            "file": Path(videos.source).name,
            "sha256": videos.sha256(),
            "videos": len(videos),
        },
        "views": {
            "clips": "the sampler's" if test.clip_sampler else test.clips,
            "crops": test.crops,
            "average": "sigmoid" if config.classify.multilabel else "softmax",
        },
        "clip": describe_clips(config),
        "frame_rate": "sampled by time; a variable rate is laid on an even grid",
        "resize": f"{'both sides' if data.squash else 'short side'} {short_side}, bilinear, "
        "no antialias, 8 bit, from the full frame",
        "crop": f"{data.crop_size} x {data.crop_size}, {place}",
        "normalisation": {"mean": list(data.mean), "std": list(data.std)},
        # A decoder that is not here leaves everything to PyAV.
        "decoder": "pyav" if missing_decoder(data.decoder) else data.decoder,
        "model": config.model.name,
        "weights": {"file": "/".join(weights.parts[-2:]), "sha256": sha256_of(weights)},
        "precision": test.precision,
    }
    if data.levels is not None:
        card["levels"] = "every clip's mean {:g} and deviation {:g}".format(*data.levels)
    if data.shuffle_frames:
        card["order"] = "frames of every clip in a random order"
    if test.keep_units < 1:
        card["mask units"] = describe_dial(config)
    if test.keep_units_too:
        card["mask units too"] = {"shares": list(test.keep_units_too), "by": test.keep_units_by}
    return card


def describe_dial(config: Config) -> str:
    """Which mask units a test computes, in words."""
    test = config.test
    which = "that change most" if test.keep_units_by == "motion" else "drawn by the view's seed"
    return f"{test.keep_units:g} of them, {which}"


def describe_clips(config: Config) -> str:
    """How the frames of a test's clips are chosen, in words."""
    data = config.data
    test = config.test
    if test.clip_sampler is not None:
        seconds = data.num_frames * data.sampling_rate / data.target_fps
        arguments = "".join(f", {a:g}" for a in test.clip_sampler_args)
        return f"{data.num_frames} frames evenly over {seconds:g} s, {test.clip_sampler}{arguments}"
    if data.clip_sampler == "segments":
        return f"{data.num_frames} frames, one from each of as many segments of the video"
    rate = f"one every {data.sampling_rate} at {data.target_fps:g} frames/s"
    return f"{data.num_frames} frames, {rate}"


def card_lines(card: Card) -> list[str]:
    """For the log."""
    listed = card["list"]
    views = card["views"]
    weights = card["weights"]
    return [
        f"protocol: {listed['videos']} videos of {listed['file']} "
        f"(sha256 {listed['sha256'][:12]}), "
        f"{views['clips']} clips x {views['crops']} crops, mean of {views['average']}",
        f"protocol: {card['clip']}; {card['resize']}; crops of {card['crop']}; "
        f"{card['frame_rate']}",
        f"protocol: {card['model']}, {weights['file']} (sha256 {weights['sha256'][:12]}), "
        f"{card['precision']}, decoder {card['decoder']}",
        *(f"protocol: {k}: {card[k]}" for k in ("levels", "order", "mask units") if k in card),
    ]


def accuracy_text(accuracy: Mapping[str, Any]) -> str:
    """accuracy: of ViewScores."""
    if accuracy.get("map") is not None:
        return (
            f"mAP {accuracy['map']:.2f}, F1 micro {accuracy['f1_micro']:.2f}, "
            f"macro {accuracy['f1_macro']:.2f}"
        )
    if accuracy["top1"] is None:
        return "no accuracy (no scored video has a label)"
    return f"top-1 {accuracy['top1']:.2f}, top-5 {accuracy['top5']:.2f}"
