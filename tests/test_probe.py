"""The probe of pretraining: votes counted by hand, and a run that leaves a curve and pictures."""

import json

import numpy as np
import torch
from conftest import PRETRAIN, SHORT, start
from PIL import Image

from hiera_video.data.lists import VideoList
from hiera_video.evaluation.probe import AttentiveProbe, nearest_neighbours, spread_rows


def test_neighbours_vote():
    known = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 5.0], [0.0, 1.0], [0.1, 1.0]])
    labels = torch.tensor([2, 2, 0, 0, 1])
    asked = torch.tensor([[3.0, 0.1], [0.0, 0.2]])
    assert nearest_neighbours(known, labels, asked, k=3).argmax(1).tolist() == [2, 0]
    assert nearest_neighbours(known, labels, asked, k=100).argmax(1).tolist() == [2, 0], (
        "more than there are is all of them"
    )


def test_attention_of_one_query_is_attention():
    """Values and gradients, beside keys and values of every token."""
    torch.manual_seed(0)
    probe = AttentiveProbe(dim=192, num_classes=5).double()
    for parameter in probe.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # norms and biases count
    tokens = torch.randn(3, 50, 192, dtype=torch.float64)
    seen = probe.before(tokens)
    plain = probe.attention(probe.query.expand(3, -1, -1), seen, seen)[0][:, 0]
    ours = probe.attend(tokens)
    torch.testing.assert_close(ours, plain)
    parts = ("query", "before", "attention")
    parameters = [p for name, p in probe.named_parameters() if name.startswith(parts)]
    gradients = [torch.autograd.grad(out.square().sum(), parameters) for out in (ours, plain)]
    for got, expected in zip(*gradients):
        torch.testing.assert_close(got, expected)


def test_rows_are_spread_and_labelled():
    videos = VideoList([str(i) for i in range(100)], [i if i % 2 else -1 for i in range(100)])
    rows = spread_rows(videos, 10)
    assert len(rows) == 10 and rows[0] == 1 and rows[-1] == 99 and all(r % 2 for r in rows)
    assert spread_rows(videos, 1000) == list(range(1, 100, 2))


def test_pretraining_leaves_a_curve_and_pictures(shapes, tmp_path):
    out = tmp_path / "run"
    common = [
        f"data.root={shapes}",
        *SHORT,
        "train.epochs=4",
        "train.batch_size=8",
        "mae.probe_videos=16",
    ]
    start(*common, f"output={out}", "train.val_every=2", "train.ema=0.5", cfg=PRETRAIN)
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    probe = [r for r in found if r["split"] == "probe"]
    assert len(probe) >= 2 and all(0 <= r["knn_top1"] <= 100 and r["videos"] == 9 for r in probe)
    pictures = sorted((out / "reconstructions").iterdir())
    assert len(pictures) == 4 * (len(probe) - 1) and np.asarray(Image.open(pictures[0])).std() > 10
    quiet = [*common, "train.val_every=0", "train.ema=0.5"]
    start(*quiet, f"output={tmp_path / 'without'}", cfg=PRETRAIN)
    losses = [
        [
            r["loss"]
            for r in map(json.loads, (f / "metrics.jsonl").read_text().splitlines())
            if r["split"] == "train"
        ]
        for f in (out, tmp_path / "without")
    ]
    assert losses[0] == losses[1], "looking changes nothing"
