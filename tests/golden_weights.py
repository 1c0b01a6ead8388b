"""The weights and inputs that the golden figures were computed with: drawn, not stored (see
golden/README.md).
"""

import json
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parent / "golden"


def load(name):
    return json.loads((GOLDEN / name).read_text())


def draw_weights(model):
    """Fills a model in the official layout: parameter k (in sorted order) from RandomState(k),
    scaled by its name.
    """
    state = model.state_dict()
    for k, name in enumerate(sorted(state)):
        shape = tuple(state[name].shape)
        n = int(np.prod(shape))
        v = np.random.RandomState(k).standard_normal(n)
        if "norm" in name and name.endswith("weight"):
            v = 1 + 0.1 * v
        elif name.endswith("bias"):
            v = 0.05 * v
        elif "pos_embed" in name or "mask_token" in name:
            v = 0.2 * v
        else:
            v = v * np.sqrt(1 / (n // shape[0]))
        state[name] = torch.from_numpy(v.astype(np.float32).reshape(shape))
    model.load_state_dict(state)
    return model


def draw_input(shape):
    v = np.random.RandomState(1234).standard_normal(int(np.prod(shape)))
    return torch.from_numpy(v.astype(np.float32).reshape(shape))


def visible_units(sample, num_units, num_visible):
    found = []
    j = 0
    while len(found) < num_visible:
        unit = (7 * j + 3 * sample + j // num_units) % num_units
        if unit not in found:
            found.append(unit)
        j += 1
    return sorted(found)


def keep_mask(case):
    batch = case["input_shape"][0]
    units = case["num_units"]
    keep = torch.zeros(batch, units, dtype=torch.bool)
    for s in range(batch):
        keep[s, visible_units(s, units, case["num_visible"])] = True
    return keep
