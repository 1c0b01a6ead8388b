"""tools/combine_scores.py on tests that real runs left."""

import csv
import json

import torch
from conftest import start
from safetensors.torch import load_file, save_file


def test_average_and_server_file(tmp_path, finetune, tool):
    for name, seed in (("a", 0), ("b", 1)):
        start(
            *finetune(
                name,
                f"seed={seed}",
                "train.epochs=1",
                "test.clips=1",
                "test.crops=1",
                "train.val_every=0",
            )
        )
    a = tmp_path / "a/test"
    b = tmp_path / "b/test"
    both = tmp_path / "both"
    tool(
        "tools/combine_scores.py",
        a,
        b,
        "--weights",
        "3",
        "1",
        "--output",
        both,
        "--server",
        tmp_path / "server.csv",
    )
    scores = [load_file(folder / "scores.safetensors")["scores"] for folder in (a, b, both)]
    torch.testing.assert_close(scores[2], 0.75 * scores[0] + 0.25 * scores[1])
    rows = list(csv.DictReader((both / "predictions.csv").open()))
    metrics = json.loads((both / "metrics.json").read_text())
    right = [row["label"] == row["prediction"] for row in rows]
    assert len(rows) == 9 and metrics["videos"] == 9 and metrics["top1"] == 100 * sum(right) / 9
    lines = (tmp_path / "server.csv").read_text().splitlines()
    assert len(lines) == 9
    for line, row in zip(lines, rows):
        video, *classes = line.split(";")
        assert row["path"].endswith(f"/{video}.mp4") and classes == [
            row[f"top{k}_class"] for k in range(1, 6)
        ]

    # A video that one of them lacks is left out, and named; a file for the server must have all.
    kept = (b / "predictions.csv").read_text().splitlines()
    (b / "predictions.csv").write_text("\n".join(kept[:-1]) + "\n")
    tensors = load_file(b / "scores.safetensors")
    save_file({name: t[:-1].clone() for name, t in tensors.items()}, b / "scores.safetensors")
    lost = kept[-1].split(",")[0]
    done = tool("tools/combine_scores.py", a, b, "--output", both)
    assert f"left out, not in all: 1 of {a}: {lost}" in done.stderr
    combined = json.loads((both / "metrics.json").read_text())
    assert (combined["videos"], combined["videos_expected"], combined["missing"]) == (8, 9, [lost])
    done = tool("tools/combine_scores.py", a, b, "--server", tmp_path / "server.csv", check=2)
    assert f"1 of 9 listed videos have no score ({lost})" in done.stderr

    (b / "predictions.csv").write_text("\n".join(kept[:-2]) + "\n")
    done = tool("tools/combine_scores.py", a, b, "--output", both, check=2)
    assert "7 rows in predictions.csv, 8 in scores.safetensors" in done.stderr
    done = tool("tools/combine_scores.py", a, tmp_path / "nothing", "--output", both, check=2)
    assert "is not the folder of a test" in done.stderr
