"""Position tables that start as waves: near places are alike, and nothing else changes."""

import pytest
import torch

from hiera_video.models import create_hiera, create_hiera_mae
from hiera_video.models.positions import waves

SMALL = {"input_size": (16, 64, 64), "embed_dim": 32, "stages": (1, 2, 3, 1)}


@pytest.mark.parametrize("grid", [(8,), (6, 6), (4, 5, 5)])
def test_the_nearest_places_are_neighbours(grid):
    table = waves(grid, 96)
    places = torch.cartesian_prod(*[torch.arange(n) for n in grid]).view(len(table), -1).float()
    steps = torch.cdist(places, places, p=1)
    between = torch.cdist(table, table)
    assert between[steps == 1].max() < between[steps > 2].min()
    assert between[steps > 0].min() > 0.1


def test_an_axis_of_one_place_takes_no_channels():
    assert torch.equal(waves((1, 6), 32), waves((6,), 32))


@pytest.mark.parametrize("create", [create_hiera, create_hiera_mae])
@pytest.mark.parametrize("separable", [True, False])
def test_only_the_tables_differ_from_a_random_start(create, separable):
    states = []
    for pos_init in ("random", "waves"):
        torch.manual_seed(3)
        model = create("hiera_tiny_16x224", **SMALL, sep_pos_embed=separable, pos_init=pos_init)
        states.append(model.state_dict())
    differ = {name for name in states[0] if not torch.equal(states[0][name], states[1][name])}
    assert differ == {name for name in states[0] if "pos_embed" in name}
    assert [t.shape for t in states[0].values()] == [t.shape for t in states[1].values()]


def test_every_table_has_the_waves_of_its_grid():
    shape = {**SMALL, "input_size": (16, 64, 96)}
    model = create_hiera_mae("hiera_tiny_16x224", **shape, sep_pos_embed=True, pos_init="waves")
    grids = {
        "pos_embed_spatial": (16, 24),
        "pos_embed_temporal": (8,),
        "decoder_pos_embed": (8, 4, 6),
    }
    for name, grid in grids.items():
        table = model.get_parameter(name)[0]
        assert torch.equal(table, waves(grid, table.shape[-1])), name


def test_an_unknown_start_is_refused():
    with pytest.raises(ValueError, match="pos_init='sines'"):
        create_hiera("hiera_tiny_16x224", pos_init="sines")
