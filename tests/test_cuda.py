"""What holds on a GPU: `pytest -m gpu`."""

import copy
import json
import math
from contextlib import closing

import pytest
import torch
import torch.nn.functional as F
from conftest import FINETUNE, PRETRAIN, ROOT, SHORT, killed_when
from forked import Script, start_ranks
from golden_weights import draw_weights
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel

import hiera_video
from hiera_video import build_training
from hiera_video.config import load_config
from hiera_video.data.dataset import Key, collate
from hiera_video.data.loading import to_device
from hiera_video.models import create_hiera, create_hiera_mae
from hiera_video.models.lora import Lora
from hiera_video.models.mae import MaskedAutoencoder
from hiera_video.stages.inputs import read_inputs
from hiera_video.stages.train import TrainStage
from hiera_video.system.devices import exact_float32
from hiera_video.system.distributed import World
from hiera_video.system.log import RunLog
from hiera_video.training.loop import take_step
from hiera_video.training.ranks import ForwardClock

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and -m gpu"),
]
VIDEO = dict(input_size=(8, 64, 96), embed_dim=24, num_heads=1, stages=(1, 2, 2, 1))
DECODER = dict(decoder_embed_dim=48, decoder_depth=2, decoder_num_heads=4)
WINDOWS = 24  # of a clip
TOO_MANY = 65_536 // WINDOWS + 1  # clips, for one grid of windows


def classifier():
    return draw_weights(create_hiera("hiera_base_16x224", num_classes=7, **VIDEO))


def autoencoder():
    return draw_weights(create_hiera_mae("hiera_base_16x224", **VIDEO, **DECODER))


def with_lora():
    model = classifier()
    Lora(rank=4, alpha=8).add_to(model, seed=0)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_b"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def clips(batch):
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, 3, *VIDEO["input_size"], generator=generator)


# -- the models


@pytest.mark.parametrize("batch", [2, TOO_MANY])
def test_flash_kernel_takes_every_attention(batch):
    model = classifier().cuda()
    clip = clips(1).cuda().expand(batch, -1, -1, -1, -1)
    with (
        torch.no_grad(),
        torch.autocast("cuda", torch.bfloat16),
        sdpa_kernel(SDPBackend.FLASH_ATTENTION),
    ):
        logits = model(clip)
    torch.testing.assert_close(logits[-1], logits[0])


def test_windows_beyond_a_grid_train():
    model = classifier().cuda()
    with torch.autocast("cuda", torch.bfloat16), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        model(clips(1).cuda().expand(TOO_MANY, -1, -1, -1, -1)).sum().backward()


def step_of(model, device, precision):
    """The loss, and all gradients in one vector, on the host."""
    model = copy.deepcopy(model).to(device)
    clip = clips(2).to(device)
    with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
        if isinstance(model, MaskedAutoencoder):
            noise = torch.rand(2, model.num_units, generator=torch.Generator().manual_seed(0))
            loss = model(clip, noise=noise.to(device)).loss
        else:
            loss = F.cross_entropy(model(clip).float(), torch.arange(2, device=device))
    loss.backward()
    trained = [p.grad.cpu().flatten() for p in model.parameters() if p.requires_grad]
    return loss.detach().cpu(), torch.cat(trained)


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.05)])
@pytest.mark.parametrize("make", [classifier, autoencoder, with_lora])
def test_losses_and_gradients_are_those_of_the_cpu(make, precision, tolerance):
    model = make()
    with exact_float32(torch.device("cuda")):
        loss, gradients = step_of(model, "cuda", precision)
    exact_loss, exact = step_of(model, "cpu", "float32")
    assert loss.item() == pytest.approx(exact_loss.item(), rel=tolerance)
    off = (gradients - exact).norm() / exact.norm()
    assert off < tolerance


# -- training


@pytest.mark.parametrize(
    "cfg, more",
    [
        (FINETUNE, ("classify.mixup=0.8", "data.erase=1", "train.ema=0.9", "train.repeats=2")),
        (FINETUNE, ("classify.cutmix=1", "classify.keep_units=0.5")),
        (FINETUNE, ("train.lora_rank=4", "train.ema=0.9")),
        (PRETRAIN, ("mae.decoder_keep=0.5",)),
    ],
)
def test_a_step_never_waits_for_the_device(shapes, tmp_path, cfg, more):
    """From the third on: the first ones fill caches."""
    world = World(0, 1, torch.device("cuda"))
    take = steps_of(world, shapes, tmp_path, cfg, *more)
    for _ in range(2):
        take()
    try:
        torch.cuda.set_sync_debug_mode("error")
        take()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def steps_of(world, shapes, folder, cfg, *more):
    """take(): the next step of a run."""
    given = [f"data.root={shapes}", f"output={folder}", "init.weights=none", *SHORT, *more]
    config = load_config(ROOT / cfg, [*given, "train.accumulate=2", "train.precision=bfloat16"])
    stage = TrainStage(config, world, read_inputs(config))
    run = stage._assemble(None, RunLog(None))
    dataset = build_training.training_set(config, stage.videos)
    batch = collate([dataset[Key(0, row)] for row in range(8)])
    batch = {k: v.pin_memory() if k in ("clip", "label") else v for k, v in batch.items()}
    dataset.source.close()
    clock = ForwardClock(world.device)
    steps = iter(range(1, 100))
    return lambda: take_step(run, to_device(batch, world.device), next(steps), 1e-4, clock)


def play(*arguments, status=0):
    done = Script(*arguments).wait(280)
    assert done.returncode == status, f"exit {done.returncode}\n{done.stderr[-3000:]}"
    return done


@pytest.fixture(scope="module")
def trained(shapes, tmp_path_factory):
    """Pretrained, fine-tuned, tested and its features taken, all on the GPU in bfloat16."""
    folder = tmp_path_factory.mktemp("gpu")
    common = (f"data.root={shapes}", *SHORT, "train.precision=bfloat16", "data.num_workers=2")
    mae = ("tools/run_net.py", "--cfg", PRETRAIN, *common, f"output={folder / 'mae'}")
    play(*mae, "train.val_every=1", "mae.decoder_keep=0.5")
    run = ("tools/run_net.py", "--cfg", FINETUNE, *common, f"output={folder / 'run'}")
    stages = ("stages=[train,test,features]", f"init.weights={folder / 'mae'}")
    play(*run, *stages, "train.ema=0.9", "data.decoder=decord")
    return folder


def rows(run, split):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == split]


def test_the_whole_path(trained):
    for run in ("mae", "run"):
        card = json.loads((trained / run / "run.json").read_text())
        assert card["device_name"] == torch.cuda.get_device_name()
        found = losses(trained / run).values()
        assert len(found) == 2 and all(map(math.isfinite, found))
        assert rows(trained / run, "train")[-1]["memory_gib"] > 0
    assert rows(trained / "mae", "probe") and (trained / "run/test/metrics.json").exists()


def test_the_test_stage_finds_the_same_on_the_cpu(trained, shapes, tmp_path):
    weights = trained / "run/checkpoints/latest/model.safetensors"
    run = ("tools/run_net.py", "--cfg", FINETUNE, f"data.root={shapes}", *SHORT)
    play(*run, "stages=[test]", f"test.weights={weights}", f"output={tmp_path}", "device=cpu")
    here, there = (load_file(p / "test/scores.safetensors") for p in (trained / "run", tmp_path))
    assert here.keys() == there.keys()
    torch.testing.assert_close(here["scores"], there["scores"], rtol=1e-3, atol=1e-4)


def test_a_video_on_either(trained, shapes):
    video = next((shapes / "val").rglob("*.mp4"))
    found = []
    for device in ("cuda", "cpu", "auto"):
        with closing(hiera_video.load(trained / "run", device=device)) as model:
            found.append((model.scores(video), model.features(video, hop_s=0.2).features))
            assert (model.device.type == "cpu") == (device == "cpu")
    for scores, features in found[1:]:
        torch.testing.assert_close(scores.cpu(), found[0][0].cpu(), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(features.cpu(), found[0][1].cpu(), rtol=1e-3, atol=1e-3)


def cut_off(shapes, folder, *more):
    """A run of 8 steps that was killed after one of the first. Returns its command."""
    common = (f"data.root={shapes}", *SHORT, "init.weights=none", "train.log_every=1")
    longer = ("stages=[train]", "train.epochs=4", "train.val_every=0", *more)
    run = ("tools/run_net.py", "--cfg", FINETUNE, *common, *longer)
    cut = (*run, f"output={folder / 'cut'}", "train.save_every=1")
    killed_when((folder / "cut/checkpoints/latest").exists, Script(*cut))
    return cut


def losses(run):
    return {row["step"]: row["loss"] for row in rows(run, "train")}


def test_killed_and_started_again(shapes, tmp_path):
    """The steps after it are those of a run that was left alone, to the rounding of a GPU."""
    cut = cut_off(shapes, tmp_path)
    assert "continuing after step" in play(*cut).stdout
    play(*cut, f"output={tmp_path / 'whole'}")
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), rel=1e-3)


@pytest.mark.trial
@pytest.mark.parametrize("cfg", [PRETRAIN, FINETUNE])
def test_compiled(shapes, tmp_path, cfg):
    """Steps, looks at the weights, and a test: as plain ones."""
    for compiled in (False, True):
        folder = tmp_path / str(compiled)
        run = ("tools/run_net.py", "--cfg", cfg, f"data.root={shapes}", *SHORT, f"output={folder}")
        play(*run, "init.weights=none", f"train.compile={compiled}", f"test.compile={compiled}")
    assert losses(tmp_path / "True") == pytest.approx(losses(tmp_path / "False"), rel=1e-3)
    if cfg == FINETUNE:
        compiled, plain = (
            load_file(tmp_path / f"{name}/test/scores.safetensors") for name in ("True", "False")
        )
        torch.testing.assert_close(compiled["scores"], plain["scores"], rtol=1e-2, atol=1e-3)


# -- where it does not suffice


def test_out_of_memory_is_one_line(shapes, tmp_path):
    """Another process holds what the run needs; when that is gone, it goes on where it was."""
    cut = cut_off(shapes, tmp_path, "model.embed_dim=256", "model.num_heads=4")
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    held = torch.empty(free - 2**30, dtype=torch.uint8, device="cuda")  # a context takes half
    done = play(*cut, status=3)
    del held
    torch.cuda.empty_cache()
    last = done.stderr.strip().splitlines()[-1]
    assert "the GPU is out of memory" in last and "train.accumulate" in last
    assert "Traceback" not in done.stderr
    assert "continuing after step" in play(*cut).stdout


def test_more_ranks_than_gpus(shapes, tmp_path):
    count = torch.cuda.device_count() + 1
    run = ("tools/run_net.py", "--cfg", FINETUNE, f"data.root={shapes}", *SHORT)
    ranks = start_ranks(count, *run, "init.weights=none", f"output={tmp_path / 'run'}")
    try:
        done = ranks[-1].wait(120)
    finally:
        for rank in ranks:
            rank.kill()
    assert done.returncode == 2 and "start one rank a GPU" in done.stderr


def test_dry_run_names_the_gpu(shapes):
    run = ("tools/run_net.py", "--cfg", FINETUNE, f"data.root={shapes}", *SHORT)
    said = play(*run, "init.weights=none", "--dry-run").stdout
    assert torch.cuda.get_device_name() in said and "the GPU has" in said
