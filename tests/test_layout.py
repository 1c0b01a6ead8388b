"""The house rules that a machine can check."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "hiera_video"

# What each room may import; CONTRIBUTING.md says what each owns.
ROOMS = {
    "system": (),
    "config": ("system",),
    "models": ("system",),
    "data": ("system", "config"),
    "training": ("system", "config", "models", "data"),
    "evaluation": ("system", "config", "models", "data"),
    "pictures": ("system", "models", "data", "evaluation"),
    "inference": ("system", "config", "models", "data", "evaluation"),
    "build": (
        "system",
        "config",
        "models",
        "data",
        "training",
        "evaluation",
        "pictures",
        "inference",
    ),
}
ROOMS["export"] = (*ROOMS["inference"], "inference")
ROOMS["build_training"] = (*ROOMS["build"], "build")
ROOMS["stages"] = (*ROOMS["build_training"], "build_training")
ROOMS["review"] = (*ROOMS["stages"], "stages")
ROOMS["study"] = (*ROOMS["stages"], "stages")
ROOMS["commands"] = (*ROOMS["study"], "study", "export", "review")
ROOMS["__main__"] = ("system", "commands")


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
        if file == PACKAGE / "__init__.py":
            continue
        here = room(file)
        for module in imports(file):
            if module.startswith("hiera_video."):
                target = module.split(".")[1]
                assert target == here or target in ROOMS[here], f"{file} imports {module}"


def users_of(module):
    """Files of the package that import `module` or something in it.

    But for code that is handed over: it runs where the package is not.
    """
    own = [file for file in PACKAGE.rglob("*.py") if file.parent.name != "hub_code"]
    used = ((file, name) for file in own for name in imports(file))
    return {
        str(file.relative_to(PACKAGE))
        for file, name in used
        if name == module or name.startswith(f"{module}.")
    }


def test_outside_libraries_have_one_door():
    assert users_of("torch.distributed") == {"system/distributed.py"}
    assert users_of("decord") == users_of("torchcodec") == {"data/decode/readers.py"}
    reading = {"data/decode/packets.py", "data/decode/pyav_reader.py", "data/decode/live.py"}
    writing = {"pictures/timeline.py", "commands/visualize_mae.py", "review/small_video.py"}
    assert users_of("av") == reading | writing
    assert users_of("omegaconf") == {"config/load.py"}
    assert users_of("iopath") == {"system/stores.py"}
    assert users_of("pytorchvideo") == {"data/sampling.py", "models/baselines.py"}


def test_no_package_shadows_another_library():
    for folder in ("datasets", "tools", "configs"):
        assert not list((ROOT / folder).rglob("__init__.py"))
