"""tools/probe.py: classifiers on features that tell their class, and on some that do not."""

import json

import pytest
import torch
from safetensors.torch import save_file

from hiera_video.evaluation.features import write_manifest

CLASSES = 4
DIM = 16


def write_features(folder, count, *, seed, signal, maps=True):
    """Videos of 2 or 3 windows whose stage map holds the class in one of its tokens, and whose
    features hold it too.
    """
    generator = torch.Generator().manual_seed(seed)
    directions = torch.eye(CLASSES, DIM)
    folder.mkdir(parents=True)
    lines = []
    rows = []
    for k in range(count):
        label = k % CLASSES
        windows = 2 + k % 2
        features = torch.randn(windows, DIM, generator=generator) + signal * directions[label]
        stage4 = torch.randn(windows, 2, 2, 2, DIM, generator=generator) * 0.5
        stage4[:, k % 2, 1, 0] += 2 * signal * directions[label]
        tensors = {"features": features, "times": torch.zeros(windows, 2, dtype=torch.float64)}
        save_file(tensors | ({"stage4": stage4} if maps else {}), folder / f"{k}.safetensors")
        lines.append([f"{k}.mp4", f"{k}.safetensors", windows, "ok"])
        rows.append(f"{k}.mp4 {label}\n")
    write_manifest(folder / "manifest.csv", [*lines, ["bad.mp4", "", 0, "no such file"]])
    folder.with_suffix(".csv").write_text("".join([*rows, "bad.mp4 0\n"]))


def probe(tool, folder, *more, check=0):
    lists = ("--lists", folder / "train.csv", folder / "val.csv")
    return tool("tools/probe.py", folder / "train", folder / "val", *lists, *more, check=check)


@pytest.mark.parametrize(("signal", "least", "most"), [(4.0, 90, 100), (0.0, 5, 50)])
def test_probes_find_what_is_there(tmp_path, tool, signal, least, most):
    write_features(tmp_path / "train", 120, seed=0, signal=signal)
    write_features(tmp_path / "val", 60, seed=1, signal=signal)
    out = probe(
        tool,
        tmp_path,
        "--attentive-epochs",
        "40",
        "--batch",
        "16",
        "--json",
        tmp_path / "probes.json",
    ).stdout
    found = json.loads((tmp_path / "probes.json").read_text())
    assert set(found) == {"nearest neighbours", "linear", "linear in time", "attentive"}
    assert all(least <= row["top1"] <= most for row in found.values()), found
    best = max(found["linear"]["by_rate"], key=lambda row: row["held_out_top1"])
    assert found["linear"]["top1"] == best["top1"] and len(found["linear"]["by_rate"]) == 6
    assert "training videos: 120 (1 without" in out


def test_without_maps_and_wrong_input(tmp_path, tool):
    write_features(tmp_path / "train", 12, seed=0, signal=4.0, maps=False)
    write_features(tmp_path / "val", 8, seed=1, signal=4.0, maps=False)
    assert "features.stages=[4]" in probe(tool, tmp_path, "--epochs", "5").stdout
    kept = (tmp_path / "val/3.safetensors").read_bytes()
    (tmp_path / "val/3.safetensors").unlink()
    assert "3.safetensors is not there" in probe(tool, tmp_path, check=2).stderr
    (tmp_path / "val/3.safetensors").write_bytes(kept)
    for folder, sha256 in (("train", "1"), ("val", "2")):
        (tmp_path / folder / "made_of.json").write_text(json.dumps({"weights": sha256}))
    assert "features of different weights" in probe(tool, tmp_path, check=2).stderr
    (tmp_path / "val.csv").write_text("other.mp4 1\n")
    assert "has no label for any of its 9 videos" in probe(tool, tmp_path, check=2).stderr
    (tmp_path / "val/manifest.csv").unlink()
    assert "extract features into it first" in probe(tool, tmp_path, check=2).stderr
