"""The house rules that a machine can check."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "hiera_video"

FLOORS = (
    ("errors", "files", "signals", "charts"),
    ("lock", "distributed"),
    ("data", "models", "log", "optim"),
    ("tasks", "checkpoint", "reconstruct", "scores", "features"),
    ("train", "evaluate", "probe", "timeline"),
    ("config",),
    ("build",),
    ("eval_stages",),
    ("train_stage", "report"),
    ("run",),
    ("slurm", "dry_run"),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def imports(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def room(file):
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def test_imports_run_downward_only():
    for file in PACKAGE.rglob("*.py"):
        if file.name == "__init__.py" and file.parent == PACKAGE:
            continue
        for module in imports(file):
            if module.startswith("hiera_video."):
                target = module.split(".")[1]
                if target in FLOOR and target != room(file):
                    assert FLOOR[target] < FLOOR[room(file)], f"{file.name} imports {module}"


def users_of(module):
    """Files of the package that import `module` or something in it."""
    used = ((file, name) for file in PACKAGE.rglob("*.py") for name in imports(file))
    return {str(file.relative_to(PACKAGE)) for file, name in used if name == module or name.startswith(f"{module}.")}


def test_outside_libraries_have_one_door():
    assert users_of("torch.distributed") == {"distributed.py"}
    assert users_of("decord") == users_of("torchcodec") == {"data/video.py"}
    assert users_of("av") == {"data/packets.py", "data/pyav_reader.py", "timeline.py"}  # the last one writes
    assert users_of("omegaconf") == {"config.py"}
    assert users_of("iopath") == {"files.py"}
    assert users_of("pytorchvideo") == {"build.py", "models/pytorchvideo_models.py"}
    assert not any(
        name.startswith("hiera_video.data") for f in (PACKAGE / "models").glob("*.py") for name in imports(f)
    )


def test_no_package_shadows_another_library():
    for folder in ("datasets", "tools", "configs"):
        assert not list((ROOT / folder).rglob("__init__.py"))
