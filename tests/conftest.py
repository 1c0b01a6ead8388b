"""Shared pieces: a small MovingShapes, real clips where there are any, and tools run as a user runs
them.
"""

import contextlib
import io
import os
import re
import runpy
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from forked import ROOT, Script
from local_server import BIG, Server

sys.path.insert(0, str(ROOT / "datasets"))  # datasets/ is no package

# A run of a few seconds: overrides on top of tests/configs.
SHORT = [
    "train.epochs=2",
    "train.log_every=2",
    "model.embed_dim=16",
    "model.stages=[1,1,1,1]",
    "data.num_workers=0",
]


FINETUNE = "tests/configs/finetune.yaml"
PRETRAIN = "tests/configs/pretrain.yaml"


# Files that take longest come first, so that no process ends up alone with one of them.
LONGEST = {"test_slurm", "test_ranks", "test_study", "test_fast_paths", "test_faulty_disk"}


def pytest_configure(config: pytest.Config) -> None:
    """Tests are alike on every machine: only `pytest -m gpu` sees a GPU."""
    if not re.search(r"(?<!not )gpu", config.option.markexpr):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONGEST)


def start(*overrides: str, cfg: str = FINETUNE) -> None:
    """The main job in this process, where its exceptions can be looked at."""
    from hiera_video.config import load_config
    from hiera_video.stages.run import run

    run(load_config(ROOT / cfg, overrides))


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """A folder with train.csv (32 videos), val.csv (9) and classes.txt."""
    import moving_shapes

    folder = tmp_path_factory.mktemp("moving_shapes")
    moving_shapes.make_dataset(folder, train=32, val=9)
    return folder


@pytest.fixture(scope="session")
def weights(shapes, tmp_path_factory) -> Path:
    """A fine-tuning run of 4 steps, with two checkpoints."""
    folder = tmp_path_factory.mktemp("weights") / "run"
    short = ["train.epochs=2", "model.embed_dim=16", "model.stages=[1,1,1,1]", "data.num_workers=0"]
    start(
        f"data.root={shapes}",
        f"output={folder}",
        "init.weights=null",
        "stages=[train]",
        "train.val_every=0",
        *short,
    )
    return folder


@pytest.fixture(scope="session")
def clips() -> Path:
    """The folder of real clips that HIERA_VIDEO_CLIPS names."""
    folder = os.environ.get("HIERA_VIDEO_CLIPS")
    if not folder:
        pytest.skip("no real clips: set HIERA_VIDEO_CLIPS to their folder")
    return Path(folder)


@pytest.fixture(scope="session")
def tool():
    """Runs `python tools/... ` from the repository root; returns the finished process.

    The process is forked, and wrong input (check=2) is tried in this one: both spare the imports.
    test_bad_input.py starts Python itself.
    """

    def run(*command: str, check: int | None = 0) -> subprocess.CompletedProcess:
        if check == 2:
            return refused(*map(str, command))
        done = Script(*command).wait(280)
        if check is not None:
            assert done.returncode == check, (
                f"exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
            )
        return done

    return run


def refused(script: str, *arguments: str) -> subprocess.CompletedProcess:
    """Runs a tool in this process, as the main program, and asserts that it exits with 2."""
    before = os.getcwd()
    argv = sys.argv
    path = sys.path
    said = [io.StringIO(), io.StringIO()]
    os.chdir(ROOT)
    sys.argv = [script, *arguments]
    sys.path = [str((ROOT / script).parent), *sys.path]
    try:
        with (
            contextlib.redirect_stdout(said[0]),
            contextlib.redirect_stderr(said[1]),
            pytest.raises(SystemExit) as stopped,
        ):
            runpy.run_path(str(ROOT / script), run_name="__main__")
    finally:
        os.chdir(before)
        sys.argv = argv
        sys.path = path
    out, err = (s.getvalue() for s in said)
    assert stopped.value.code == 2, f"exit {stopped.value.code}\n{out[-2000:]}\n{err[-2000:]}"
    return subprocess.CompletedProcess(sys.argv, 2, out, err)


@pytest.fixture
def finetune(shapes, tmp_path):
    """Overrides for a short fine-tuning run in its own folder."""

    def overrides(name: str = "run", *more: str) -> list[str]:
        return [
            f"data.root={shapes}",
            f"output={tmp_path / name}",
            "init.weights=null",
            *SHORT,
            *more,
        ]

    return overrides


def killed_when(there: Callable[[], bool], *scripts: Script) -> None:
    """Kills all of them, and what they have started, as soon as `there()`."""
    deadline = time.monotonic() + 120
    while all(s.at_work for s in scripts) and time.monotonic() < deadline and not there():
        time.sleep(0.002)
    ended = [s.wait(0) for s in scripts if not s.at_work]
    for script in scripts:
        script.kill()
    assert not ended, f"it ended before it was killed: {ended}"


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "big").write_bytes(BIG)
    served = Server(folder)
    served.folder = folder
    yield served
    served.close()
