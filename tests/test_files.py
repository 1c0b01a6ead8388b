"""Remote lists, videos, class names and weights, through a handler of iopath that a module
registers.
"""

import json
import os
import pickle
import subprocess
import sys

import pytest
from conftest import ROOT, SHORT, start

from hiera_video.data.decode.source import VideoSource
from hiera_video.system.errors import UserError
from hiera_video.system.files import exists, join, local

HANDLER = """
import os, shutil, tempfile
from iopath.common.file_io import PathHandler, g_pathmgr

class Store(PathHandler):
    '''store://x is the file x of a folder, fetched by copying; `away` may not be fetched.'''

    def _get_supported_prefixes(self):
        return ["store://"]

    def _get_local_path(self, path, force=False, **kwargs):
        source = os.path.join({root!r}, path[len("store://"):])
        if "away" in path and not os.path.exists(source):
            raise ConnectionError("the store is away")
        copy = os.path.join({cache!r}, path[len("store://"):].replace("/", "_"))
        if not os.path.exists(copy):
            shutil.copy(source, copy)
        return copy

    def _exists(self, path, **kwargs):
        return os.path.exists(os.path.join({root!r}, path[len("store://"):]))

g_pathmgr.register_handler(Store(), allow_override=True)
"""


def test_paths():
    assert join("/data", "a b.mp4") == "/data/a b.mp4" and join("/data", "/x.mp4") == "/x.mp4"
    assert (
        join("s3://bucket/k", "x.mp4") == "s3://bucket/k/x.mp4"
        and join("/data", "s3://b/x.mp4") == "s3://b/x.mp4"
    )
    assert local("/tmp/x") == "/tmp/x" and exists(ROOT)
    with pytest.raises(OSError, match="no handler is registered for nowhere://"):
        local("nowhere://x")
    with pytest.raises(UserError, match=r"data\.path_handlers: No module named 'no_such_module'"):
        start("data.path_handlers=[no_such_module]")


def test_a_run_on_remote_data(shapes, tmp_path, tool, monkeypatch):
    """Lists, videos, class names and weights in a store; one video cannot be fetched at first."""
    root = tmp_path / "store"
    cache = tmp_path / "cache"
    root.mkdir(), cache.mkdir()
    for name in os.listdir(shapes):
        (root / name).symlink_to(shapes / name)
    (root / "val.csv").unlink()
    (root / "val.csv").write_text((shapes / "val.csv").read_text() + "away.mp4 0\n")
    (tmp_path / "my_store.py").write_text(HANDLER.format(root=str(root), cache=str(cache)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    common = [
        "data.root=store://",
        "data.path_handlers=[my_store]",
        "data.classes=classes.txt",
        *SHORT,
    ]
    command = ["tools/run_net.py", "--cfg", "tests/configs/finetune.yaml", *common]
    tool(
        *command,
        "init.weights=null",
        "stages=[train]",
        "train.val_every=0",
        f"output={tmp_path / 'first'}",
        "data.num_workers=2",
    )
    weights = tmp_path / "first/checkpoints/latest/model.safetensors"
    (root / "w.safetensors").symlink_to(weights.resolve())
    out = tmp_path / "second"
    test = [
        *command,
        "test.weights=store://w.safetensors",
        "init.weights=null",
        "stages=[test]",
        "data.decode_timeout_s=1",
        f"output={out}",
    ]
    stopped = tool(*test, check=None)
    assert stopped.returncode == 3, "one video of ten is missing, the others can be read"
    waited, last = stopped.stderr.strip().splitlines()
    assert waited == "waiting for store://away.mp4: the store is away"
    assert last.startswith("stopped: 90.0% of the test videos were scored")
    (root / "away.mp4").symlink_to(next((shapes / "val").rglob("*.mp4")))
    tool(*test)
    metrics = json.loads((out / "test/metrics.json").read_text())
    assert metrics["videos"] == 10 and metrics["missing"] == []

    # A worker that is started anew, as on macOS, knows the store as well.
    source = VideoSource(path_handlers=("my_store",))
    program = "import pickle, sys; s = pickle.load(sys.stdin.buffer); s.open(sys.argv[1]).close()"
    known = [sys.executable, "-c", program, "store://away.mp4"]
    subprocess.run(known, input=pickle.dumps(source), check=True, timeout=60)
    assert len(list(cache.iterdir())) > 40
