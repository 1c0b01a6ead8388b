"""The way from a script of this folder to its command in the package.

With it `python tools/NAME.py` works in a checkout that is not installed; `hiera-video NAME` is the
same command of the installed package.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hiera_video.__main__ import run_named
from hiera_video.system.errors import run_command


def enter(name: str) -> None:
    """Runs the command with this process's arguments, and exits."""
    script = Path(sys.argv[0]).name
    try:
        run_command(lambda: run_named(name, sys.argv[1:], prog=script))
    except ModuleNotFoundError as error:
        print(
            f"error: {sys.executable} has no {error.name}: activate the environment that "
            "`make demo` and `make test` make, . .venv/bin/activate",
            file=sys.stderr,
        )
        sys.exit(2)
