"""Parts of a clip: a decoder that predicts some hidden patches, a classifier that computes some
units.
"""

import pytest
import torch
from torch import Tensor

from hiera_video.config import MAEConfig
from hiera_video.models import create_hiera, create_hiera_mae
from hiera_video.models.masking import draw_predicted, running_cells
from hiera_video.models.token_dial import TokenDial, motion_of_units
from hiera_video.training.tasks import hidden_draws

SMALL = dict(input_size=(8, 64, 96), embed_dim=16, stages=(1, 1, 1, 1))


def autoencoder():
    torch.manual_seed(0)
    decoder = dict(decoder_embed_dim=32, decoder_depth=2, decoder_num_heads=4)
    return create_hiera_mae("mae_hiera_tiny_16x224", **SMALL, **decoder)


def classifier():
    torch.manual_seed(0)
    return create_hiera("hiera_tiny_16x224", num_classes=5, head_init_scale=1.0, **SMALL).eval()


def clips(count: int) -> Tensor:
    return torch.randn(count, 3, 8, 64, 96, generator=torch.Generator().manual_seed(1))


# -- the decoder


def test_a_decoder_of_all_patches_is_the_plain_one():
    mae = autoencoder()
    noise = torch.rand(2, mae.num_units, generator=torch.Generator().manual_seed(2))
    plain = mae(clips(2), mask_ratio=0.75, noise=noise)
    whole = mae(clips(2), mask_ratio=0.75, noise=noise, decoder_keep=1.0)
    assert torch.equal(plain.loss, whole.loss)
    assert torch.equal(plain.pred, whole.pred)


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_rows_are_the_chosen_patches_in_order_and_others_are_no_tokens(share):
    """Equal to a decoder that is given the chosen patches alone, forward and gradients."""
    mae = autoencoder()
    clip = clips(2)
    generator = torch.Generator().manual_seed(2)
    noise = torch.rand(2, mae.num_units, generator=generator)
    order = torch.rand(2, mae.patch_index.numel(), generator=generator)
    tokens_seen = []
    mae.decoder_blocks[0].register_forward_pre_hook(lambda _, x: tokens_seen.append(x[0].shape))
    part = mae(clip, mask_ratio=0.75, noise=noise, decoder_keep=share, decoder_noise=order)
    whole = mae(clip, mask_ratio=0.75, noise=noise)
    visible = part.keep.nonzero()[:, 1].view(2, -1)
    hidden = mae._hidden_patches(visible)
    count = round(share * hidden.shape[1])
    shown = mae.patch_index[visible].flatten(1)
    assert tokens_seen[0][2] == shown.shape[1] + count
    assert part.pred.shape == (2 * count, whole.pred.shape[1])
    for row in range(2):
        lowest = order[row, hidden[row]].argsort()[:count].sort().values
        targets = whole.target.view(2, hidden.shape[1], -1)[row, lowest]
        torch.testing.assert_close(part.target.view(2, count, -1)[row], targets)
    assert part.loss == (part.pred - part.target).square().mean()
    part.loss.backward()
    assert mae.decoder_pos_embed.grad.isfinite().all()
    gone = hidden[0][~torch.isin(hidden[0], draw_predicted(hidden, share, order)[0])]
    only_gone = gone[~torch.isin(gone, draw_predicted(hidden, share, order)[1])]
    only_gone = only_gone[~torch.isin(only_gone, shown[1])]
    assert len(only_gone)
    assert not mae.decoder_pos_embed.grad[0, only_gone].any()


def test_the_sample_s_seed_alone_decides_which_patches_are_predicted():
    mae = autoencoder()
    plain = hidden_draws(mae, MAEConfig(mask_ratio=0.75), [7, 8])
    half = hidden_draws(mae, MAEConfig(mask_ratio=0.75, decoder_keep=0.5), [8, 7])
    assert plain.patches is None
    assert torch.equal(plain.units, half.units.flip(0))  # what is hidden stays as it was
    again = hidden_draws(mae, MAEConfig(mask_ratio=0.75, decoder_keep=0.5), [7])
    assert torch.equal(half.patches[1], again.patches[0])


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_running_cells_take_every_place_in_turn(share):
    """The same number of patches in every cell of 2 x 2, other places in every frame."""
    mae = autoencoder()
    grid = mae.patch_grid  # (4, 4, 6)
    noise = torch.rand(3, 96, generator=torch.Generator().manual_seed(3))
    cells = running_cells(noise, torch.tensor([0, 1, 3]), share=share, grid=grid)
    everything = torch.arange(96).expand(3, -1)
    chosen = torch.zeros(3, 96, dtype=torch.bool)
    chosen.scatter_(1, draw_predicted(everything, share, cells), 1)
    chosen = chosen.view(3, *grid).unflatten(3, (3, 2)).unflatten(2, (2, 2))
    assert (chosen.sum((3, 5)) == 4 * share).all()
    # Over four frames every place is predicted the same number of times.
    assert (chosen.sum(1) == 4 * share).all()
    assert not torch.equal(chosen[0], chosen[1])


def test_hidden_patches_are_predicted_part_by_part():
    """All of them, each as in a forward pass that predicts its part."""
    mae = autoencoder().eval()
    clip = clips(2)
    generator = torch.Generator().manual_seed(2)
    keep = mae(clip, mask_ratio=0.75).keep
    order = torch.rand(2, mae.patch_index.numel(), generator=generator)
    whole = mae.predict_hidden(clip, keep, noise=order)
    torch.testing.assert_close(whole, mae(clip, keep=keep).pred)
    parts = mae.predict_hidden(clip, keep, decoder_keep=0.3, noise=order).view(2, -1, 768)
    first = mae(clip, keep=keep, decoder_keep=0.3, decoder_noise=order)
    visible = keep.nonzero()[:, 1].view(2, -1)
    hidden = mae._hidden_patches(visible)
    chosen = draw_predicted(hidden, 0.3, order)
    assert parts.shape[1] == hidden.shape[1]
    assert parts.abs().sum(-1).gt(0).all()
    # The last part holds some of the first one's patches again; the others are as they were.
    last = hidden.shape[1] % chosen.shape[1]
    again = chosen.shape[1] - last if last else 0
    of_first = first.pred.view(2, chosen.shape[1], -1)
    for row in range(2):
        rank = order[row, chosen[row]].argsort().argsort()
        stays = rank >= again
        where = torch.isin(hidden[row], chosen[row][stays])
        torch.testing.assert_close(parts[row][where], of_first[row][stays])


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5])
def test_a_share_of_no_use_is_refused(share):
    with pytest.raises(ValueError, match="decoder_keep"):
        autoencoder()(clips(1), decoder_keep=share)


# -- the token dial


def test_all_units_are_the_plain_model():
    model = classifier()
    clip = clips(2)
    assert TokenDial(1.0).choose(model, clip, [0, 1]) is None
    assert torch.equal(model(clip, None), model(clip))
    everything = torch.arange(model.num_units).expand(2, -1)
    torch.testing.assert_close(model(clip, everything), model(clip))


def test_kept_units_are_embedded_and_locally_attended_as_in_the_whole_clip():
    model = classifier()
    clip = clips(2)
    units = TokenDial(0.5).choose(model, clip, [3, 4])
    assert units.shape == (2, model.num_units // 2)
    kept = model.encode(model.embed_visible(clip, None, units))
    whole = model.encode(model.embed(clip))
    rows = torch.arange(2)[:, None]
    for stage in (0, 1):
        torch.testing.assert_close(kept[stage], whole[stage][rows, units])
    assert not torch.allclose(kept[3], whole[3][rows, units])  # global attention knows


def test_units_of_a_seed_do_not_depend_on_the_batch():
    model = classifier()
    both = TokenDial(0.3).choose(model, clips(2), [5, 6])
    assert torch.equal(both[1:], TokenDial(0.3).choose(model, clips(1), [6]))
    assert not torch.equal(both[0], both[1])


def test_motion_finds_the_units_that_move():
    model = classifier()
    clip = torch.zeros(1, 3, 8, 64, 96)
    clip[:, :, :, :32, 32:64] = torch.rand(1, 3, 8, 32, 32)  # unit (., 0, 1) flickers
    units = TokenDial(4 / 24, "motion").choose(model, clip, [0])
    assert units.tolist() == [[1, 7, 13, 19]]
    assert motion_of_units(clip, model.units).shape == (1, 24)
