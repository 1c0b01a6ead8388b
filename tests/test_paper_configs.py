"""Every config of configs/paper: a dry run, and two steps at a reduced size."""

import json

import pytest
from conftest import ROOT

from hiera_video.config import load_config
from hiera_video.stages.dry_run import dry_run
from hiera_video.stages.run import run

CONFIGS = sorted(path.stem for path in (ROOT / "configs/paper").glob("*.yaml"))
# One of each kind; the others are trials.
FIRST = {
    "table1_mvitv2",
    "table1_b_mae",
    "table1_f_mae",
    "table3_c_hog",
    "vit_l_16x4_mae",
}
SMALL = [
    "data.num_frames=8",
    "data.crop_size=96",
    "data.decoder=auto",
    "data.num_workers=0",
    "data.classes=classes.txt",
    "init.weights=null",
    "train.batch_size=2",
    "train.repeats=1",
    "mae.probe_videos=2",
    "train.save_every=100",
    "train.val_every=100",
    "train.log_every=1",
    "train.precision=float32",
    "optim.warmup_epochs=0",
    "stages=[train]",
]
NARROW = {
    "hiera": ["model.embed_dim=16", "model.stages=[1,1,1,1]"],
    "mvit_v2": ["model.embed_dim=16", "model.stages=[1,1,1,1]"],
    "vit": ["model.embed_dim=48", "model.stages=[2]"],
}


def reduced(name, shapes, output):
    file = ROOT / f"configs/paper/{name}.yaml"
    config = load_config(file)
    family = config.model.name.rsplit("_", 2)[0]
    overrides = [*SMALL, *NARROW[family], f"data.root={shapes}", f"output={output}"]
    if config.task == "pretrain":
        overrides += ["model.decoder_embed_dim=16", "model.decoder_num_heads=2"]
    videos = len((shapes / "train.csv").read_text().splitlines())
    return load_config(file, [*overrides, f"train.epochs={2 * 2 / videos}"])


@pytest.mark.parametrize(
    "name", [n if n in FIRST else pytest.param(n, marks=pytest.mark.trial) for n in CONFIGS]
)
def test_two_steps(name, shapes, tmp_path, capsys):
    config = reduced(name, shapes, tmp_path / "run")
    dry_run(config, ranks=1)
    assert "whole run     2 steps" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    run(config)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["split"] == "train"]
    assert len(losses) == 2 and 0 < max(losses) < 20
    assert (tmp_path / "run/checkpoints/step_000000002/model.safetensors").exists()
