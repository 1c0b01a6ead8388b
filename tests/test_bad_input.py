"""Everything that can be wrong with the input: one clear line, the promised exit status, and
nothing lost.
"""

import csv
import json
import shutil
import subprocess
import sys

import pytest
from conftest import FINETUNE, PRETRAIN, ROOT, SHORT, start

from hiera_video.system.errors import RunStopped, UserError


@pytest.fixture
def odd_list(shapes, tmp_path):
    """Two good videos among everything that can be wrong with a file."""
    import moving_shapes

    good = shapes / "train/closed_open_wide/00000.mp4"
    whole = good.read_bytes()
    (tmp_path / "zero.mp4").touch()
    (tmp_path / "text.mp4").write_text("this is no video" * 99)
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    moving_shapes.write_video(tmp_path / "short.mp4", moving_shapes.draw_video(1, 0)[:3])
    moving_shapes.write_video(tmp_path / "one.mp4", moving_shapes.draw_video(1, 0)[:1])
    names = [str(good), "zero.mp4", "text.mp4", "cut.mp4", "gone.mp4", "short.mp4", "one.mp4"]
    (tmp_path / "odd.csv").write_text("".join(f"{n} {i % 8}\n" for i, n in enumerate(names)))
    return tmp_path


def test_bad_videos_stop_nothing_and_are_named(odd_list, finetune, shapes):
    lists = [
        f"data.train={odd_list / 'odd.csv'}",
        f"data.val={odd_list / 'odd.csv'}",
        f"data.root={odd_list}",
    ]
    classes = [
        f"data.classes={shapes / 'classes.txt'}",
        "data.max_bad_fraction=0.9",
        "train.batch_size=4",
        "test.min_coverage=0.3",
    ]
    start(*finetune(), *lists, *classes, "stages=[train,test,features]")
    metrics = json.loads((odd_list / "run/test/metrics.json").read_text())
    assert metrics["videos"] == 3 and metrics["videos_expected"] == 7
    assert metrics["missing"] == ["zero.mp4", "text.mp4", "cut.mp4", "gone.mp4"]
    log = (odd_list / "run/log.txt").read_text()
    for name in metrics["missing"]:
        assert f"replaced by the next good one: {name}" in log and f"not scored: {name}" in log
    with open(odd_list / "run/features/manifest.csv") as f:
        status = {r["path"]: r["status"] for r in csv.DictReader(f)}
    assert status["short.mp4"] == status["one.mp4"] == "ok" and "Invalid data" in status["cut.mp4"]


def test_too_many_bad_videos_stop_the_run(odd_list, finetune, shapes, tool):
    lists = [
        f"data.train={odd_list / 'odd.csv'}",
        f"data.root={odd_list}",
        f"data.classes={shapes / 'classes.txt'}",
    ]
    done = tool(
        "tools/run_net.py",
        "--cfg",
        FINETUNE,
        *finetune(),
        *lists,
        f"data.val={odd_list / 'odd.csv'}",
        check=3,
    )
    assert done.stderr.startswith("stopped: ") and "data.max_bad_fraction=0.1" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_too_little_coverage_is_exit_3(odd_list, finetune, shapes):
    lists = [
        f"data.val={odd_list / 'odd.csv'}",
        f"data.root={odd_list}",
        f"data.classes={shapes / 'classes.txt'}",
    ]
    lists += [f"data.train={odd_list / 'odd.csv'}", "data.max_bad_fraction=1"]
    metrics = odd_list / "run/test/metrics.json"
    for _ in range(2):  # the same command does not take it for done
        with pytest.raises(RunStopped, match="coverage"):
            start(*finetune(), *lists, "test.min_coverage=0.9")
        assert metrics.exists(), "what was scored is kept"
    few = json.loads(metrics.read_text())
    for name in few["missing"]:
        shutil.copy(shapes / "train/closed_open_wide/00000.mp4", odd_list / name)
    start(*finetune(), *lists, "test.min_coverage=0.9")
    log = (odd_list / "run/log.txt").read_text()
    mended = json.loads(metrics.read_text())
    assert (
        mended["missing"] == []
        and f"{few['videos']} of {mended['videos']} videos are scored already" in log
    )
    start(*finetune(), *lists, "test.min_coverage=0.9")
    assert "test: done already" in (odd_list / "run/log.txt").read_text()


def test_loss_that_is_not_finite_stops_the_run(finetune):
    with pytest.raises(RunStopped, match="not finite"):
        start(
            *finetune(),
            "optim.lr=1e30",
            "optim.clip_grad=0",
            "train.log_every=1",
            "optim.warmup_epochs=0",
        )


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["data.root=/nowhere"], "data.train: there is no list /nowhere/train.csv; set data.root"),
        (["data.train=empty.csv"], "is empty"),
        (["data.train=elsewhere.csv"], "none of the first videos"),
        (["model.num_classes=5"], "has label 5, but the model has 5 classes"),
        (["data.classes=null"], "model.num_classes: set it"),
        (["data.classes=gone.txt"], "data.classes: there is no file gone.txt"),
        (["model.name=hiera_giant_16x224"], "there is no model 'hiera_giant_16x224'"),
        (["model.name=hiera_base_224"], "use hiera_base_16x224"),
        (["model.decoder_depth=3"], "takes no argument 'decoder_depth'"),
        (["model.input_size=[8,96,96]"], "differs from the clips"),
        (["data.crop_size=60"], "input_size: 60"),
        (["init.weights=/nowhere.pth"], "init.weights: no weights at /nowhere.pth"),
        (["device=cuda"], "sees no GPU"),
        (["data.num_frame=3"], "nearest is 'data.num_frames'"),
        (["test.short_side=32"], "test.short_side"),
        (["features.stages=[5]", "stages=[features]", "test.weights=x"], "features.stages"),
        (["features.hop_s=0"], "features.hop_s=0.0 must be > 0"),
        (["test.min_coverage=95"], "test.min_coverage=95.0 must be from 0 to 1"),
        (
            ["test.clip_sampler=pytorchvideo.uniform", "test.batch_size=2"],
            "test.batch_size must be 1",
        ),
        (
            ["test.clip_sampler=pytorchvideo.uniform", "test.clip_sampler_args=[1,2,3]"],
            "test.clip_sampler_args",
        ),
        (["stages=[test]"], "test.weights: no weights"),
        (["model.embed_dim=0"], "embed_dim=0"),
        (["model.in_chans=1"], "model.in_chans=1: videos are decoded to 3 channels"),
        (["model.kv_stride=4"], "model.kv_stride: a list is needed, such as [1,4,4]"),
        (["mae.decoder_keep_by=running_cell"], "needs mae.decoder_keep below 1"),
        (["model.name=vit_bass_16x224"], "the nearest: vit_base_16x224"),
        (["init.weights=README.md"], "is no weight file"),
        (["output=/proc/run"], "output: cannot make the folder"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(shapes, tmp_path, finetune, overrides, message):
    (shapes / "empty.csv").write_text("\n")
    (shapes / "elsewhere.csv").write_text("/nowhere/a.mp4 0\n")
    with pytest.raises(UserError) as e:
        start(*finetune(), *overrides)
    assert message in str(e.value) and "\n" not in str(e.value)
    assert not (tmp_path / "run").exists()


def test_useless_mask_ratio_is_refused(shapes, tmp_path):
    for ratio in (1.0, 0.99, -0.1):
        with pytest.raises(UserError, match=r"mae\.mask_ratio"):
            start(
                f"data.root={shapes}",
                f"output={tmp_path / 'run'}",
                f"mae.mask_ratio={ratio}",
                *SHORT,
                cfg=PRETRAIN,
            )
    assert not (tmp_path / "run").exists()


def test_exit_status_2_from_the_command_line():
    command = [sys.executable, "tools/run_net.py", "--cfg", "configs/K400/hiera_b_16x4.yaml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "data.root" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr
    assert not (ROOT / "runs/hiera_b_16x4").exists()


def test_changed_config_and_wrong_weights(tmp_path, finetune, shapes):
    start(*finetune(), "stages=[train]")
    before = sorted(p.name for p in (tmp_path / "run").rglob("*"))
    with pytest.raises(
        UserError, match=r"another config; these keys differ: train\.epochs, optim\.lr"
    ):
        start(*finetune(), "stages=[train]", "optim.lr=0.5", "train.epochs=9")
    assert sorted(p.name for p in (tmp_path / "run").rglob("*")) == before
    trained = f"test.weights={tmp_path / 'run'}"
    with pytest.raises(UserError, match=r"test: .*does not fit.*"):
        start(*finetune("t"), trained, "stages=[test]", "model.stages=[1,1,2,1]")
    for stage in ("test", "features"):
        with pytest.raises(UserError, match=r"head\.projection"):
            start(*finetune(f"c{stage}"), trained, f"stages=[{stage}]", "model.num_classes=9")
    with pytest.raises(UserError, match=r"init\.weights: .*does not fit"):
        start(*finetune("i"), f"init.weights={tmp_path / 'run'}", "model.embed_dim=32")
    start(
        *finetune("h"), f"init.weights={tmp_path / 'run'}", "model.num_classes=9", "stages=[train]"
    )
    log = (tmp_path / "h/log.txt").read_text()
    assert "re-initialised: head.projection" in log and "names are left out" in log


def test_a_list_that_changed_is_refused(tmp_path, shapes, finetune):
    """Rows are known by their number: resumed training and kept scores would be of other videos
    than they say.
    """
    rows = (shapes / "val.csv").read_text().splitlines()
    (tmp_path / "val.csv").write_text("\n".join(rows) + "\n")
    more = finetune("run", f"data.val={tmp_path / 'val.csv'}", "test.clips=1", "test.crops=1")
    start(*more, "stages=[train,test]")
    start(*more, "stages=[train]")  # says nothing of the test's list, and does not forget it
    (tmp_path / "val.csv").write_text("\n".join(rows[1:]) + "\n")
    kept = (tmp_path / "run/run.json").read_bytes()
    with pytest.raises(
        UserError, match=r"data\.test: .*val\.csv has changed .* \(9 rows then, 8 now\)"
    ):
        start(*more, "stages=[test]")
    assert (tmp_path / "run/run.json").read_bytes() == kept


def test_resume_with_another_class_count_is_refused(tmp_path, finetune):
    start(*finetune(), "stages=[train]")
    (tmp_path / "run/config.yaml").unlink()  # as if an older program had left the folder
    with pytest.raises(UserError, match=r"cannot resume: .*head\.projection"):
        start(*finetune(), "stages=[train]", "model.num_classes=9", "train.epochs=4")


@pytest.mark.parametrize("content", [b"hello\n", b"", b"<html></html>", b"\x80\x04K", b"cut"])
def test_what_is_no_weight_file_is_one_line(tmp_path, tool, content):
    (tmp_path / "weights.pth").write_bytes(content)
    error = tool(
        "tools/predict.py", __file__, "--weights", tmp_path / "weights.pth", check=2
    ).stderr
    assert "is no weight file" in error and error.count("\n") == 1


def test_weights_of_another_model_say_whose_they_are(weights, tool):
    args = (__file__, "--weights", weights, "--model", "hiera_small_16x224")
    error = tool("tools/predict.py", *args, check=2).stderr
    assert "it is of hiera_tiny_16x224" in error and error.count("\n") == 1


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    """`| head`: the command ends quietly."""
    command = [sys.executable, "tools/run_net.py", "--cfg", FINETUNE, "--show-config"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    assert process.wait(timeout=60) == 0 and process.stderr.read() == b""
