"""The ways in which work ends early without being a defect, and how a command line reports them."""

import io
import os
import sys
from collections.abc import Callable

GOES_ON = "when that is mended, the same command goes on"


class UserError(ValueError):
    """The user's input is wrong: one line that says what, where and what to do. Exit status 2."""


class RunStopped(RuntimeError):
    """The run stopped itself at a stated limit, such as the share of bad files. Exit status 3."""


class Interrupted(RunStopped):
    """A signal asked the run to stop, and it saved its state first. The same command continues."""


class Unavailable(RunStopped):
    """The machine is at fault, not a file: storage that does not answer. One line."""


class VideoError(Exception):
    """A file that cannot be read, or a frame of it that cannot be decoded. One line."""


def run_command(main: Callable[[], None]) -> None:
    """Runs the `main` of a command and exits.

    Status 0: done. 2: wrong input. 3: stopped at a limit. The last two print one line on stderr.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names of files are any bytes
    try:
        main()
        sys.stdout.flush()
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
    except RunStopped as e:
        print(f"stopped: {e}", file=sys.stderr)
        sys.exit(3)
    except KeyboardInterrupt:
        print("stopped: by Ctrl-C; the same command goes on from what is saved", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read the output has seen enough (`| head`). Nothing more can be printed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
