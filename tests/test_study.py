"""The study of pretraining: real runs of a few steps, every arm, once; and what it counts."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import FINETUNE, PRETRAIN, ROOT, killed_when
from forked import Script

from hiera_video.data.lists import VideoList
from hiera_video.pictures.dots import dot_plot
from hiera_video.study.arms import Pretraining, Run, labelled_part
from hiera_video.study.results import Outcome, Results, best_rate, tables
from hiera_video.system.errors import UserError


def outcome(arm, seed, top1, *, rate=1e-3, val=50.0, budget=1.0):
    return Outcome(arm, budget, rate, seed, 300, val, top1, 60.0)


def test_parts_are_even_over_the_classes_and_differ_by_seed():
    videos = VideoList([str(i) for i in range(100)], [i % 4 for i in range(100)])
    part = labelled_part(videos, 0.2, 0)
    assert np.bincount(videos.labels[part]).tolist() == [5, 5, 5, 5]
    assert part != labelled_part(videos, 0.2, 1)
    assert labelled_part(videos, 1.0, 0) == list(range(100))


def test_rates_are_chosen_on_validation_videos_alone():
    tried = [outcome("a", 0, 90.0, rate=1e-3, val=40.0), outcome("a", 0, 10.0, rate=1e-4, val=60.0)]
    assert best_rate(tried) == 1e-4


def test_gains_are_counted_seed_by_seed():
    chosen = [outcome("pretrained", s, t) for s, t in enumerate((50, 60, 70))]
    chosen += [outcome("same start", s, t) for s, t in enumerate((40, 50, 60))]
    results = Results(chosen, chosen, {}, {}, {"pretrained": [100.0]})
    text = tables(results)
    assert "| pretrained | 300 | 60 | 0.001 | 60.0 ± 10.0 |" in text
    assert "| same start | 10.0 ± 0.0 |" in text
    picture = dot_plot("t", {"all": {"a<b": [1.0, 2.0], "c": [50.0]}})
    assert picture.count("<circle") == 3 and "a&lt;b" in picture


def test_wrong_ways_are_refused():
    assert Pretraining.parse("half:mae.decoder_keep=0.5,seed=1").overrides[1] == "seed=1"
    for text in ("half", "half:nothing", "pretrained:a=1", ":a=1"):
        with pytest.raises(UserError, match="--also"):
            Pretraining.parse(text)
    run = Run("same start, equal time", 0.25, 1e-3, 2, 900, None, "x.yaml")
    assert run.name == "same_start_equal_time_0.25_0.001_2"


def command_of(output, shapes, *more, epochs=2):
    """A study of the configs of the tests, with less of a model and of pretraining."""
    small = f"data: {{root: {shapes}, num_workers: 0}}\n"
    small += "model: {embed_dim: 16, stages: [1, 1, 1, 1]}\n"
    pretrain = output.parent / "pretrain.yaml"
    short = f"train: {{epochs: {epochs}, repeats: 1, val_every: 0}}\n"
    pretrain.write_text(f"base: {ROOT / PRETRAIN}\n{small}{short}")
    finetune = output.parent / "finetune.yaml"
    finetune.write_text(f"base: {ROOT / FINETUNE}\n{small}test: {{clips: 1, crops: 1}}\n")
    return [
        *("tools/study.py", "--pretrain", str(pretrain), "--finetune", str(finetune)),
        *("--output", str(output), "--seeds", "1", "--rates", "1e-3", "--steps", "2"),
        *("--equal-time", *more, "train.log_every=2"),
    ]


def test_a_study_of_a_few_steps(shapes, tmp_path, tool):
    output = tmp_path / "study"
    tool(*command_of(output, shapes, "--no-probes"))
    found = json.loads((output / "study.json").read_text())
    steps = {row["arm"]: row["steps"] for row in found["chosen"]}
    assert list(steps) == ["pretrained", "same start", "same start, equal time", "published"]
    assert steps["same start, equal time"] > steps["same start"] == 2
    assert (output / "study.svg").read_text().startswith("<svg")
    table = (output / "table.md").read_text()
    assert "before that" in table and "chosen on the test videos themselves" in table

    # Other steps in the same folder are not passed off as these.
    other = [text if text != "2" else "3" for text in command_of(output, shapes, "--no-probes")]
    refused = tool(*other, check=None)
    assert refused.returncode == 2 and "train.epochs" in refused.stderr


def study(*command):
    """Without the time limit of `tool`; what it printed."""
    command = [sys.executable, *command]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.trial
def test_a_study_of_every_arm(shapes, tmp_path):
    """Every arm is trained and tested; a kill loses nothing, a last call runs nothing again."""
    baseline = tmp_path / "baseline.yaml"
    baseline.write_text(
        "task: classify\nmodel: {name: x3d_m}\n"
        f"data: {{root: {shapes}, classes: classes.txt, num_frames: 8, sampling_rate: 2, "
        "crop_size: 64}\ntrain: {batch_size: 16}\ntest: {clips: 1, crops: 1}\n"
    )
    output = tmp_path / "study"
    more = ["--baseline", str(baseline), "--rates", "1e-3", "3e-3", "--at", "4"]
    more = [*more, "--also", "half:mae.decoder_keep=0.5", "train.save_every=1"]
    command = command_of(output, shapes, *more, epochs=6)
    killed_when((output / "study.json").exists, Script(*command))
    found = json.loads((output / "study.json").read_text())
    assert [row["arm"] for row in found["chosen"]] == ["pretrained"]
    first = study(*command)
    found = json.loads((output / "study.json").read_text())
    assert [row["arm"] for row in found["chosen"]] == [
        *("pretrained", "half", "same start", "same start, equal time"),
        *("baseline", "baseline, equal time", "published", "pretrained for 4 steps"),
    ]
    rate = {row["arm"]: row["rate"] for row in found["chosen"]}
    assert rate["pretrained for 4 steps"] == rate["pretrained"]
    assert set(found["frozen"]) == {"pretrained", "half", "same start"}
    assert "attentive" in found["frozen"]["half"][0]
    assert first.count(": done") > 8
    again = study(*command)
    assert ": done" not in again and "pretrained" in again
