"""The two ways a run ends early without being a defect, and how a command line reports them."""

import sys
from collections.abc import Callable


class UserError(ValueError):
    """The user's input is wrong: one line that says what, where and what to do. Exit status 2."""


class RunStopped(RuntimeError):
    """The run stopped itself at a stated limit (bad files, coverage, gradients that are not finite). Exit status 3."""


class Interrupted(RunStopped):
    """The run was asked to stop (a signal), and saved its state first. The same command continues."""


def run_command(main: Callable[[], None]) -> None:
    """Runs a tool's `main` and exits: 0 done, 2 wrong input, 3 stopped at a limit; both with one line on stderr."""
    try:
        main()
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
    except RunStopped as e:
        print(f"stopped: {e}", file=sys.stderr)
        sys.exit(3)
