"""Clips as the recipes want them: shapes, draws, order of operations."""

import json

import numpy as np
import pytest
import torch
from conftest import ROOT

from hiera_video import build
from hiera_video.config import load_config
from hiera_video.data.format import ClipFormat
from hiera_video.data.small_frames import SmallFrames
from hiera_video.data.transforms import (
    EvalCrops,
    TrainCrop,
    normalise,
    planar,
    pytorchvideo_transform,
    random_box,
)


def frames(height=48, width=80, count=6):
    return torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (count, 3, height, width), dtype=np.uint8)
    )


def test_channels_come_first_whatever_the_layout():
    """As decoders lay frames out, as torch does, and in a part of a picture."""
    first = frames()
    last = frames().permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    for some in (first, last, last[..., 3:40, 5:60]):
        assert torch.equal(planar(some), some.transpose(0, 1))


def test_three_crops_are_the_published_boxes_of_the_resized_frame():
    views = EvalCrops(short_side=32, size=32, num_crops=3)(frames())
    assert views.clips.shape == (3, 3, 6, 32, 32) and views.clips.dtype == torch.uint8
    whole = torch.nn.functional.interpolate(
        frames().float(), size=(32, 53), mode="bilinear", align_corners=False
    )
    for clip, left in zip(views.clips, (0, 11, 21)):
        expected = whole[..., left : left + 32].transpose(0, 1)
        assert (clip.float() - expected).abs().max() <= 1.001  # two passes, each rounded to uint8
    tall = EvalCrops(short_side=32, size=32, num_crops=3)(frames(80, 48))
    assert not torch.equal(tall.clips[0], tall.clips[2])


def test_training_crop_draws_once_a_clip():
    """A video of one repeated frame stays one repeated frame, whatever is drawn."""
    still = frames(count=1).expand(6, -1, -1, -1)
    transform = TrainCrop(size=32, scale=(0.08, 1.0), flip=0.5, magnitude=7.0)
    clips = [transform(still, np.random.default_rng(seed)).clips[0] for seed in range(40)]
    for clip in clips:
        assert clip.shape == (3, 6, 32, 32) and clip.dtype == torch.uint8
        assert (clip == clip[:, :1]).all()
    assert len({clip.numpy().tobytes() for clip in clips}) == 40
    again = transform(still, np.random.default_rng(7)).clips[0]
    assert torch.equal(again, clips[7])


def test_no_flip_means_no_flip():
    ramp = torch.arange(64, dtype=torch.uint8).mul(4).expand(4, 3, 48, 64)  # brighter to the right
    for seed in range(50):
        kept = TrainCrop(size=32, flip=0.0)(ramp, np.random.default_rng(seed)).clips.float()
        flipped = TrainCrop(size=32, flip=1.0)(ramp, np.random.default_rng(seed)).clips.float()
        assert kept[..., -1].mean() > kept[..., 0].mean()
        assert torch.equal(flipped, kept.flip(-1))


def test_boxes_have_the_asked_area_and_ratio():
    rng = np.random.default_rng(0)
    for _ in range(300):
        top, left, h, w = random_box(240, 320, scale=(0.08, 1.0), aspect=(0.75, 1.3333), rng=rng)
        assert 0 <= top <= 240 - h and 0 <= left <= 320 - w
        assert 0.07 < h * w / (240 * 320) <= 1
        assert 0.7 < w / h < 1.4
    assert random_box(10, 100, scale=(1.0, 1.0), aspect=(0.75, 1.3333), rng=rng) == (0, 43, 10, 13)


def test_erasing_fills_the_box_after_normalisation():
    clips = torch.full((3, 3, 4, 32, 32), 200, dtype=torch.uint8)
    erase = torch.tensor([[0, 0, 0, 0], [4, 6, 20, 24], [4, 6, 20, 24]])
    out = normalise(clips, erase=erase, seeds=torch.tensor([1, 2, 3]))
    value = (200 / 255 - 0.45) / 0.225
    assert torch.allclose(out[0], torch.tensor(value))
    box = out[1, :, :, 4:24, 6:30]
    assert abs(box.mean()) < 0.05 and abs(box.std() - 1) < 0.05
    out[1, :, :, 4:24, 6:30] = value
    assert torch.allclose(out[1], torch.tensor(value))
    alone = normalise(clips[2:], erase=erase[2:], seeds=torch.tensor([3]))
    assert torch.equal(alone[0], out[2]), "noise depends on the clip's seed, not on its batch"


def test_pytorchvideo_transform_feeds_a_hiera(shapes):
    data = pytest.importorskip("pytorchvideo.data")
    from hiera_video.models import create_hiera

    for decoder in ("decord", "pyav"):
        if decoder == "decord":
            pytest.importorskip("decord")
        dataset = data.labeled_video_dataset(
            str(shapes / "val.csv"),
            data.make_clip_sampler("constant_clips_per_video", 16 / 30, 1),
            video_sampler=torch.utils.data.SequentialSampler,
            transform=pytorchvideo_transform(num_frames=8, crop_size=64),
            video_path_prefix=str(shapes),
            decode_audio=False,
            decoder=decoder,
        )
        samples = list(dataset)
        assert [s["label"] for s in samples] == [i % 8 for i in range(9)]
        clip = torch.stack([s["video"] for s in samples])
        model = create_hiera(
            "hiera_tiny_16x224", input_size=(8, 64, 64), embed_dim=16, num_classes=8
        ).eval()
        with torch.no_grad():
            assert model(clip).shape == (9, 8)
        assert clip.dtype == torch.float32 and -2.1 < clip.min() < clip.max() < 2.5
    random = pytorchvideo_transform(
        num_frames=8, crop_size=32, random_crop=TrainCrop(size=32, erase=1.0)
    )
    assert random({"video": torch.rand(3, 16, 48, 64) * 255, "label": 3})["video"].shape == (
        3,
        8,
        32,
        32,
    )


@pytest.mark.parametrize(
    "crop", [EvalCrops(32, 32, 3, levels=(0.5, 0.16)), TrainCrop(32, levels=(0.5, 0.16))]
)
def test_levels_make_up_for_light_and_contrast(crop):
    texture = torch.randn(4, 3, 40, 60, generator=torch.Generator().manual_seed(0))

    def crops(mean, std):
        frames = (mean + std * texture).round().clamp(0, 255).to(torch.uint8)
        return crop(frames, np.random.default_rng(0)).clips.float()

    bright = crops(160, 30)
    dark = crops(60, 15)
    assert (bright - dark).abs().mean() < 2  # of 255: both were rounded
    for clip in bright:
        assert abs(clip.mean() / 255 - 0.5) < 0.01 and abs(clip.std() / 255 - 0.16) < 0.01


def test_levels_of_a_clip_of_one_colour_are_their_mean():
    frames = torch.full((2, 3, 32, 32), 7, dtype=torch.uint8)
    assert (EvalCrops(32, 32, 1, levels=(0.5, 0.16))(frames).clips == 128).all()


@pytest.mark.parametrize("overrides", [[], ["data.levels=[0.5,0.16]", "data.squash=true"]])
def test_a_weight_file_says_how_its_clips_are_made(overrides):
    config = load_config(ROOT / "tests/configs/finetune.yaml", overrides)
    card = build.build_metadata(config, build.model_spec(config, 8), [])
    stored = json.loads(json.dumps(card))
    assert ClipFormat.from_metadata(stored) == build.clip_format(config)


def test_overlapping_windows_are_decoded_once():
    asked = []

    def parts(needed):
        asked.extend(needed.tolist())
        for some in (needed[:2], needed[2:]):
            if len(some):
                shape = (len(some), 2, 2, 3)
                whole = np.broadcast_to(some[:, None, None, None], shape).astype(np.uint8)
                yield some.tolist(), whole

    frames = None
    rng = np.random.default_rng(0)
    for clip in ([0, 2, 4, 6], [2, 4, 6, 8], [8], [20, 22]):
        frames = SmallFrames(EvalCrops(2, 2, 1), np.array([clip]), rng, parts, frames)
        (plan,) = frames.plans
        assert frames.of(plan.shrink, np.array(clip))[:, 0, 0, 0].tolist() == clip
    assert asked == [0, 2, 4, 6, 8, 20, 22]
