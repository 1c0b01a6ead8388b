"""Weights of one input size for a model of another: interpolated, or inflated from images.

Time is interpolated linearly, space bicubically, as PySlowFast does. An image model becomes a video
model by spreading each patch kernel evenly over its frames and starting the temporal positions at
zero: a still video then has the image's patch embedding, where the kernel does not reach over the
clip's ends.

Legend: N positions, C channels; a grid is (h, w) for images, (t, h, w) for video, in tokens.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hiera_video.models.tokens import pooled
from hiera_video.models.trunk import Trunk

Grid = tuple[int, ...]
TABLES = ("pos_embed", "pos_embed_spatial", "pos_embed_temporal")


def fit_to_model(
    state: dict[str, Tensor], model: nn.Module, metadata: Mapping[str, Any]
) -> dict[str, str]:
    """Replaces in `state` what has another size than in `model` and can be brought to it.

    Returns {parameter: "interpolated" or "inflated"}. The grid that the weights were made for is
    read from `metadata` (ours), or inferred from the tables. Raises ValueError if it cannot be
    told.
    """
    own = model.state_dict()
    done: dict[str, str] = {}
    if "patch_embed.proj.weight" not in state or not isinstance(model, Trunk):
        return done
    _check_window_positions(state, model)
    for name in (*TABLES, *(f"decoder_{name}" for name in TABLES)):
        is_row_by_row = name not in own or own[name].ndim == 3
        if name in state and is_row_by_row and (state[name].ndim != 3 or len(state[name]) != 1):
            raise ValueError(
                f"{name} has shape {list(state[name].shape)}, not [1, positions, channels]"
            )
    kernel = own["patch_embed.proj.weight"]
    if state["patch_embed.proj.weight"].ndim == 4 and kernel.ndim == 5:
        before = dict(state)
        inflate(state, model)
        changed = (name for name, tensor in state.items() if tensor is not before.get(name))
        done |= dict.fromkeys(changed, "inflated")
    done |= _lengthen_relative(state, own)
    grid = source_grid(state, model, metadata)
    if grid is None:
        return done
    tables = dict(zip(TABLES, _parts(grid, model.grid)))
    ends = (pooled(g, model.q_stride, model.q_pool) for g in (grid, model.grid))
    tables |= zip((f"decoder_{name}" for name in TABLES), _parts(*ends))
    for name, (source, target) in tables.items():
        is_row_by_row = name in own and own[name].ndim == 3
        if name in state and is_row_by_row and len(source) == len(target) and source != target:
            if state[name].shape[1] != math.prod(source):
                raise ValueError(
                    f"{name} has {state[name].shape[1]} positions, which is no grid of {source}"
                )
            state[name] = interpolate(state[name], source, target)
            done.setdefault(name, "interpolated")
    return done


def _check_window_positions(state: Mapping[str, Tensor], model: Trunk) -> None:
    table = state.get("pos_embed")
    if table is None or table.ndim != 4:
        return
    size = tuple(table.shape[2:])
    if model.positions != "window" or tuple(model.args.global_pos_size) != size:
        raise ValueError(
            f"its tables are of windows: a model with abs_win_pos_embed=True and "
            f"global_pos_size={list(size)} takes them"
        )


def _parts(source: Grid, target: Grid) -> tuple[tuple[Grid, Grid], ...]:
    """Of tables of all places, of space and of time."""
    return (source, target), (source[-2:], target[-2:]), (source[:1], target[:1])


def _lengthen_relative(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, str]:
    """Tables of relative positions [distances, channels], linearly, as PySlowFast does."""
    done = {}
    for name in [name for name in state if ".rel_pos_" in name and name in own]:
        length = len(own[name])
        if state[name].ndim == 2 and len(state[name]) != length:
            table = state[name].float().t()[None]
            state[name] = F.interpolate(table, size=length, mode="linear")[0].t().to(own[name])
            done[name] = "interpolated"
    return done


def interpolate(table: Tensor, source: Grid, target: Grid) -> Tensor:
    """[1, prod(source), C] -> [1, prod(target), C]; grids of (t), (h, w) or (t, h, w)."""
    channels = table.shape[-1]
    dtype = table.dtype
    x = table.float().reshape(*source, channels)
    if len(source) != 2 and source[0] != target[0]:
        frames = x.flatten(1).t()[None] if x.ndim > 1 else x[None]  # [1, everything else, t]
        frames = F.interpolate(frames, size=target[0], mode="linear", align_corners=False)
        x = frames[0].t().reshape(target[0], *source[1:], channels)
    if len(source) > 1 and source[-2:] != target[-2:]:
        maps = x.reshape(-1, *source[-2:], channels).permute(0, 3, 1, 2)  # [t or 1, C, h, w]
        x = F.interpolate(maps, size=target[-2:], mode="bicubic", align_corners=False).permute(
            0, 2, 3, 1
        )
    return x.reshape(1, math.prod(target), channels).to(dtype)


def inflate(state: dict[str, Tensor], model: Trunk) -> None:
    """Image weights -> video weights, in place."""
    frames = model.patch_embed.proj.kernel_size[0]
    kernel = state["patch_embed.proj.weight"]  # [C, 3, kh, kw]
    state["patch_embed.proj.weight"] = (kernel / frames)[:, :, None].repeat(1, 1, frames, 1, 1)
    if model.positions == "window":
        state["pos_embed_temporal"] = kernel.new_zeros(1, model.grid[0], len(kernel))
    if "pos_embed" in state and model.positions == "separate":
        table = state.pop("pos_embed")
        state["pos_embed_spatial"] = table
        state["pos_embed_temporal"] = table.new_zeros(1, model.grid[0], table.shape[-1])
    elif "pos_embed" in state and model.positions == "joint":
        state["pos_embed"] = state["pos_embed"].repeat(1, model.grid[0], 1)
    for name, own in model.state_dict().items():
        if ".attn.pool_" in name and name in state and state[name].ndim == 4 and own.ndim == 5:
            # One kernel, in the middle of time.
            deep = state[name].new_zeros(*state[name].shape[:2], *own.shape[2:])
            deep[:, :, own.shape[2] // 2] = state[name]
            state[name] = deep
        elif name.endswith(".rel_pos_t") and name not in state:
            state[name] = torch.zeros_like(own)


def source_grid(
    state: Mapping[str, Tensor], model: Trunk, metadata: Mapping[str, Any]
) -> Grid | None:
    """The grid of tokens that the weights were made for; None without a known position table."""
    own = model.grid
    arguments = metadata.get("model", {}).get("arguments", {})
    if "input_size" in arguments:
        size = arguments["input_size"]
        # An image's stride is a video's without time.
        stride = arguments.get("patch_stride", model.patch_stride)[-len(size) :]
        return tuple(n // s for n, s in zip(size, stride))
    if model.positions == "window":
        # In space they fit every grid.
        times = (
            state["pos_embed_temporal"].shape[1:2] if "pos_embed_temporal" in state else own[:-2]
        )
        return (*times, *own[-2:])
    if "pos_embed_spatial" in state and "pos_embed_temporal" in state:
        time = state["pos_embed_temporal"].shape[1]
        return (time, *_plane(state["pos_embed_spatial"].shape[1], own[-2:]))
    if "pos_embed" in state and state["pos_embed"].ndim == 3:
        positions = state["pos_embed"].shape[1]
        if len(own) == 2:
            return _plane(positions, own)
        if positions == math.prod(own):
            return own
        raise ValueError(
            f"pos_embed has {positions} positions of a (t, h, w) grid that the file does not tell"
        )
    return None


def _plane(positions: int, own: Sequence[int]) -> tuple[int, int]:
    """(h, w) with h * w = positions: the model's own, else a square, else of the model's shape."""
    if positions == own[0] * own[1]:
        return own[0], own[1]
    side = math.isqrt(positions)
    if side * side == positions:
        return side, side
    h = round(math.sqrt(positions * own[0] / own[1]))
    if h and positions % h == 0 and h * own[1] == positions // h * own[0]:
        return h, positions // h
    raise ValueError(
        f"{positions} positions are neither a square nor of the shape {own[0]} x {own[1]}; the "
        "file does not tell its size"
    )
