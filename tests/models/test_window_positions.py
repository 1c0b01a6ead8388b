"""Absolute-window positions, which fit every resolution."""

import pytest
import torch
from golden_weights import draw_weights
from other_models import SMALL, a_clip, assert_close

from hiera_video.models import create_hiera, load_weights


@pytest.mark.parametrize("name", ["hiera_small_abswin_256", "hiera_base_abswin_256"])
def test_absolute_window_positions_are_timms(name):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    stages = dict(embed_dim=24, stages=(1, 2, 2, 1))
    theirs = draw_weights(timm.create_model(name, pretrained=False, num_classes=7, **stages)).eval()
    ours = create_hiera(
        "hiera_base_224",
        **stages,
        input_size=(256, 256),
        num_classes=7,
        abs_win_pos_embed=True,
        global_pos_size=theirs.pos_embed.shape[-2:],
        use_expand_proj=name != "hiera_small_abswin_256",
    ).eval()
    assert load_weights(ours, theirs.state_dict()).share_loaded == 1
    image = a_clip(256, 256, batch=1)
    with torch.no_grad():
        assert_close(ours(image), theirs(image))


def test_absolute_window_positions_fit_other_sizes_and_video():
    small = dict(SMALL, abs_win_pos_embed=True)
    image = draw_weights(create_hiera("hiera_base_224", **small, input_size=(96, 96)))
    wide = create_hiera("hiera_base_224", **small, input_size=(128, 192))
    report = load_weights(wide, image.state_dict())
    assert set(report.outcomes.values()) == {"loaded"}  # nothing has to be interpolated
    table = wide.position_table().view(32, 48, 24)
    parts = table[:8, :8] - table[8:16, 8:16]
    whole = torch.nn.functional.interpolate(
        image.pos_embed, (32, 48), mode="bicubic", antialias=True
    )[0].movedim(0, -1)
    torch.testing.assert_close(parts, whole[:8, :8] - whole[8:16, 8:16], rtol=1e-4, atol=1e-5)

    video = create_hiera("hiera_base_16x224", **small, input_size=(8, 64, 64))
    report = load_weights(video, image.state_dict())
    assert set(report.names("inflated")) == {"patch_embed.proj.weight", "pos_embed_temporal"}
    longer = create_hiera("hiera_base_16x224", **small, input_size=(16, 96, 64))
    report = load_weights(longer, video.state_dict())
    assert report.names("interpolated") == ["pos_embed_temporal"]
    longer(a_clip(16, 96, 64, batch=1)).sum().backward()
    assert longer.pos_embed_win.grad is not None
