"""Several labels a video, and classes of which there are few examples."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SHORT, start
from safetensors.torch import load_file

import hiera_video
from hiera_video.config import ClassifyConfig
from hiera_video.data.lists import read_videos
from hiera_video.data.loading import Balanced, Key, Shuffled, TrainingOrder
from hiera_video.evaluation.multilabel import average_precision, best_thresholds, count, figures
from hiera_video.models.weights import read_weights
from hiera_video.system.errors import UserError
from hiera_video.system.files import sha256_of
from hiera_video.training.checkpoint import add_to_metadata, save_weights, what_is_damaged
from hiera_video.training.losses import binary_losses, class_weights
from hiera_video.training.tasks import mix

POSES = ["closed", "open", "round", "wide"]


def precision_by_hand(scores, there):
    """For every example: the share of examples among all that score as high or higher."""
    found = []
    for s, t in zip(scores, there):
        if t:
            above = [u for r, u in zip(scores, there) if r >= s]
            found.append(sum(above) / len(above))
    return sum(found) / len(found)


def f1_by_hand(scores, there, threshold):
    right = sum(1 for s, t in zip(scores, there) if s >= threshold and t)
    wrong = sum(1 for s, t in zip(scores, there) if s >= threshold and not t)
    missed = sum(1 for s, t in zip(scores, there) if s < threshold and t)
    return 2 * right / (2 * right + wrong + missed) if right + wrong + missed else 0.0


def test_figures_of_fifty_rows_by_hand():
    draw = np.random.default_rng(0)
    truth = draw.random((50, 5)) < [0.5, 0.3, 0.1, 0.04, 0.0]
    # Rounded: many scores are equal.
    scores = np.round(np.clip(truth * 0.3 + draw.random((50, 5)) * 0.7, 0, 1), 1)
    s, t = torch.tensor(scores).float(), torch.tensor(truth).float()
    precision = average_precision(s, t)
    thresholds = best_thresholds(s, t)
    of_class = []
    for c in range(4):
        columns = (s[:, c].tolist(), truth[:, c].tolist())
        assert precision[c] == pytest.approx(precision_by_hand(*columns))
        best = max(f1_by_hand(*columns, float(at)) for at in np.arange(0, 1.2, 0.05) + 0.0249)
        of_class.append(f1_by_hand(*columns, float(thresholds[c])))
        assert of_class[c] == pytest.approx(best)
    assert precision[4].isnan() and thresholds[4] == 0.5
    found = figures(s, t, thresholds)
    assert found["map"] == pytest.approx(100 * precision[:4].mean().item())
    assert found["map_classes"] == 4
    assert found["f1_macro"] == pytest.approx(100 * np.mean(of_class))
    flat = ((s >= thresholds).flatten().tolist(), t.flatten().tolist())
    assert found["f1_micro"] == pytest.approx(100 * f1_by_hand(*flat, 1))
    counts = count(s, t, thresholds)
    assert torch.equal(counts.there, t.sum(0).double())


@pytest.fixture(scope="module")
def tables(shapes, tmp_path_factory):
    """MovingShapes as tables whose labels are the poses of the word; two rows have none."""
    folder = tmp_path_factory.mktemp("several")
    for name in ("train", "val"):
        rows = [["path", "label"]]
        for k, line in enumerate((shapes / f"{name}.csv").read_text().splitlines()):
            path = line.split()[0]
            poses = path.split("/")[1].split("_")
            rows.append([path, "" if k in (3, 5) else ";".join(poses[: 1 + k % 3])])
        with open(folder / f"{name}.csv", "w", newline="") as f:
            csv.writer(f).writerows(rows)
    return folder


def several(shapes, tables, output, *more):
    lists = [f"data.{name}={tables / name}.csv" for name in ("train", "val")]
    keys = ["classify.multilabel=true", "data.classes=null", "init.weights=null"]
    return (f"data.root={shapes}", *lists, *keys, f"output={output}", *SHORT, *more)


@pytest.fixture(scope="module")
def trained(shapes, tables, tmp_path_factory):
    output = tmp_path_factory.mktemp("multilabel") / "run"
    start(*several(shapes, tables, output, "train.val_every=1", "classify.threshold_share=0.25"))
    return output


def test_the_files_of_a_test(trained, tables, shapes):
    """metrics.json and classes.csv, by hand from the scores, the list and the stored thresholds."""
    metrics = json.loads((trained / "test/metrics.json").read_text())
    _, metadata = read_weights(trained)
    assert metadata["classes"] == POSES and len(metadata["thresholds"]) == 4
    scores = load_file(trained / "test/scores.safetensors")["scores"]
    with open(tables / "val.csv") as f:
        sets = [set(filter(None, row["label"].split(";"))) for row in csv.DictReader(f)]
    truth = torch.tensor([[pose in labels for pose in POSES] for labels in sets]).float()
    thresholds = torch.tensor(metadata["thresholds"])
    expected = figures(scores, truth, thresholds)
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert metrics["top1"] is None and metrics["videos"] == 9
    with open(trained / "test/classes.csv") as f:
        for c, row in enumerate(csv.DictReader(f)):
            assert row["name"] == POSES[c] and int(row["videos"]) == truth[:, c].sum()
            columns = (scores[:, c].tolist(), truth[:, c].tolist())
            assert float(row["ap"]) == pytest.approx(100 * precision_by_hand(*columns), abs=0.01)
            at = float(thresholds[c])
            assert float(row["f1"]) == pytest.approx(100 * f1_by_hand(*columns, at), abs=0.01)
    with open(trained / "test/predictions.csv") as f:
        for row, labels, score in zip(csv.DictReader(f), sets, scores):
            assert {POSES[int(c)] for c in row["label"].split(";") if c} == labels
            chosen = (score >= thresholds).nonzero().flatten().tolist()
            assert row["prediction"] == ";".join(map(str, chosen))
    page = (trained / "report.html").read_text()
    assert "mAP" in page and "average precision" in page and "too few to say anything" in page
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [row["map"] is not None for row in rows if row["split"] == "val"] == [True, True]
    assert (trained / "checkpoints/best").exists()


def test_thresholds_are_of_videos_that_were_held_out(trained):
    log = (trained / "log.txt").read_text()
    assert "train: 24 videos" in log and "on 8 training videos that were held out" in log


def test_a_kill_before_the_thresholds(trained, shapes, tables, tmp_path, monkeypatch):
    """The same command adds them, and the files are those of a run that was never killed."""
    output = tmp_path / "run"
    keys = several(shapes, tables, output, "train.val_every=1", "classify.threshold_share=0.25")
    start(*keys, "stages=[train]")
    latest = (output / "checkpoints/latest").resolve()
    whole = (latest / "model.safetensors").read_bytes()
    assert whole == (trained / "checkpoints/latest/model.safetensors").read_bytes()
    # As the checkpoint was before the thresholds were chosen.
    weights, metadata = read_weights(latest)
    thresholds = metadata.pop("thresholds")
    save_weights(latest / "model.safetensors", weights, metadata)
    sums = json.loads((latest / "checksums.json").read_text())
    sums["model.safetensors"] = sha256_of(latest / "model.safetensors")
    (latest / "checksums.json").write_text(json.dumps(sums, indent=1) + "\n")
    before = {
        name: (latest / name).read_bytes() for name in ("checksums.json", "model.safetensors")
    }
    start(*keys, "stages=[train]")
    assert read_weights(latest)[1]["thresholds"] == thresholds
    assert (latest / "model.safetensors").read_bytes() == whole
    # Wherever a kill comes, the checkpoint is whole.
    for number in range(1, 4):
        for name, content in before.items():
            (latest / name).write_bytes(content)
        with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
            m.setattr(Path, "replace", dying_at(number))
            add_to_metadata(latest, {"thresholds": thresholds})
        assert what_is_damaged(latest) == ""
        start(*keys, "stages=[train]")
        assert (latest / "model.safetensors").read_bytes() == whole
        assert what_is_damaged(latest) == ""


def dying_at(count):
    """Path.replace that does not come to its `count`-th call."""
    replace = Path.replace
    calls = iter(range(1, 100))

    def dies(file, target):
        if next(calls) == count:
            raise KeyboardInterrupt
        return replace(file, target)

    return dies


def test_labels_that_are_chosen(trained, shapes, tool):
    model = hiera_video.load(trained)
    video = next((shapes / "val").rglob("*.mp4"))
    found = model.predict(video, top=4)
    for p in found:
        assert p.is_chosen == (p.score >= model.thresholds[p.index])
    model.close()
    said = tool("tools/predict.py", video, "--weights", trained).stdout
    assert said.count(" *\n") == sum(p.is_chosen for p in found)


def test_lists_that_do_not_fit(shapes, tables, tmp_path):
    (tmp_path / "odd.csv").write_text("path,label\na.mp4,jump;open\n")
    listed = read_videos("odd.csv", root=tmp_path)
    with pytest.raises(UserError, match=r"row 1 of .*'jump'"):
        listed.with_label_sets(POSES, 4, key="data.val")
    (tmp_path / "numbers.csv").write_text("path,label\na.mp4,0;3\nb.mp4,\nc.mp4,2\n")
    listed = read_videos("numbers.csv", root=tmp_path).with_label_sets([], 4, key="data.val")
    assert [listed.label_set(k) for k in range(3)] == [[0, 3], [], [2]]
    assert listed.target(0).tolist() == [1, 0, 0, 1] and listed.examples(4).tolist() == [1, 0, 1, 1]
    part = listed.subset([2, 0])
    assert part.label_set(1) == [0, 3] and part.sha256() != listed.sha256()
    with pytest.raises(UserError, match="threshold_share"):
        start(*several(shapes, tables, tmp_path / "run", "classify.threshold_share=0.001"))


def test_losses_of_several_labels():
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, generator=draw) * 3
    target = (torch.rand(6, 4, generator=draw) < 0.4).float()
    plain = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    for config in (
        ClassifyConfig(multilabel=True),
        ClassifyConfig(multilabel=True, multilabel_loss="focal", focal_gamma=0),
        ClassifyConfig(
            multilabel=True,
            multilabel_loss="asymmetric",
            asymmetric_gammas=(0, 0),
            asymmetric_margin=0,
        ),
    ):
        torch.testing.assert_close(binary_losses(logits, target, config), plain)
    focal = ClassifyConfig(multilabel=True, multilabel_loss="focal", focal_gamma=2)
    p = torch.where(target > 0, logits.sigmoid(), 1 - logits.sigmoid())
    torch.testing.assert_close(binary_losses(logits, target, focal), -((1 - p) ** 2) * p.log())
    uneven = ClassifyConfig(multilabel=True, multilabel_loss="asymmetric")
    p = logits.sigmoid()
    shifted = (p - 0.05).clamp(min=0)
    expected = torch.where(target > 0, -p.log(), -(shifted**4) * (1 - shifted).log())
    torch.testing.assert_close(binary_losses(logits, target, uneven), expected)


def test_targets_of_mixed_clips():
    clips = torch.rand(4, 3, 2, 8, 8)
    target = torch.tensor([[1.0, 0], [0, 1], [1, 1], [0, 0]])
    for targets, expected in (("mix", None), ("max", torch.maximum(target, target.flip(0)))):
        config = ClassifyConfig(multilabel=True, mixup=0.8, mix_targets=targets)
        torch.manual_seed(0)
        mixed = mix(clips, target, config)[1]
        if expected is None:
            share = mixed[0, 0]  # of the first clip; the last one has no label
            assert 0 < share < 1
            torch.testing.assert_close(mixed, target * share + target.flip(0) * (1 - share))
        else:
            assert torch.equal(mixed, expected)


def test_weights_of_classes():
    examples = np.array([100, 10, 1, 0])
    for kind, ratio in (("inverse", 10), ("inverse_sqrt", 10**0.5), ("none", 1)):
        weights = class_weights(examples, ClassifyConfig(class_weights=kind))
        assert weights[1] / weights[0] == pytest.approx(ratio)
        assert weights[3] == weights[2] and (weights[:3] * torch.tensor([100, 10, 1])).sum() == (
            pytest.approx(
                111 if kind == "none" else float((weights * torch.tensor([100, 10, 1, 0])).sum())
            )
        )
    config = ClassifyConfig(class_weights="effective", effective_beta=0.9)
    weights = class_weights(examples, config)
    assert weights[1] / weights[0] == pytest.approx((1 - 0.9**100) / (1 - 0.9**10))


def test_every_class_as_often():
    rows = [np.arange(50), np.array([50, 51, 52]), np.array([53])]
    order = Balanced(rows, seed=3)
    keys = [order.key(p) for p in range(300)]
    assert len(set(keys)) == 300, "a video that comes again looks another way"
    drawn = np.bincount([np.searchsorted([50, 53], key.index, "right") for key in keys])
    assert drawn.tolist() == [100, 100, 100]
    first = [key.index for key in keys if key.index < 50]
    assert sorted(first[:50]) == list(range(50)), "each of a class in turn"
    for step in (7, 20):  # a run that goes on, on two ranks
        whole = TrainingOrder(order, batch_size=6, steps=25)
        ranks = [
            TrainingOrder(
                Balanced(rows, seed=3), batch_size=6, steps=25, first_step=step, rank=r, world=2
            )
            for r in range(2)
        ]
        parts = [a + b for a, b in zip(*ranks)]
        assert parts == list(whole)[step:]
    assert Shuffled(5, seed=0).key(7).epoch == 1 and isinstance(keys[0], Key)


def test_a_balanced_run(shapes, tmp_path):
    """The figures that do not reward the largest class stand beside top-1."""
    lines = (shapes / "train.csv").read_text().splitlines()
    few = [line for k, line in enumerate(lines) if not line.endswith((" 1", " 2")) or k < 8]
    (tmp_path / "few.csv").write_text("\n".join(few) + "\n")
    keys = [f"data.root={shapes}", f"data.train={tmp_path / 'few.csv'}", "init.weights=null"]
    keys += ["train.sampler=balanced", "classify.class_weights=inverse_sqrt"]
    start(*keys, f"output={tmp_path / 'run'}", *SHORT)
    metrics = json.loads((tmp_path / "run/test/metrics.json").read_text())
    assert 0 <= metrics["macro_f1"] <= 100 and 0 <= metrics["mean_class"] <= 100
    scores = load_file(tmp_path / "run/test/scores.safetensors")["scores"]
    labels = [int(line.split()[-1]) for line in (shapes / "val.csv").read_text().splitlines()]
    best = scores.argmax(1).tolist()
    f1 = [
        f1_by_hand([b == c for b in best], [k == c for k in labels], 1) for c in sorted(set(labels))
    ]
    assert metrics["macro_f1"] == pytest.approx(100 * np.mean(f1))
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "none.csv").write_text("".join(line.split()[0] + "\n" for line in lines))
    with pytest.raises(UserError):
        start(*keys, f"data.train={tmp_path / 'none.csv'}", f"output={tmp_path / 'run'}", *SHORT)
