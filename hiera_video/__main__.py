"""`hiera-video NAME ..`, or `python -m hiera_video NAME ..`: every command by its name."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from hiera_video.system.errors import UserError, run_command

COMMANDS = {
    "run": "pretrain, fine-tune, test, extract features: the stages of a config",
    "submit": "the same as a SLURM job, requeued when its machines are taken away",
    "own": "your own videos, a folder or a table: checked, split, trained, tested",
    "predict": "class names and scores of your own videos, over time if you like",
    "find-segments": "what happens when in long videos, measured where the truth is known",
    "review": "correct labels by eye, on a local page, where the model is most wrong",
    "extract-features": "feature vectors of any list of videos",
    "probe": "what frozen features are worth to simple classifiers",
    "search": "find a video, or what is like it, in a folder of features",
    "duplicates": "near-duplicates in and between folders of features",
    "report": "make the report of a run again",
    "combine-scores": "average several tests; write the test server's file",
    "check-videos": "try every video of a list, in processes that can be killed",
    "show-clip": "a training batch as a picture",
    "visualize-mae": "what a masked autoencoder sees and predicts",
    "models": "the published weights by name, and which of them are here",
    "verify": "whether published weights are what they are said to be",
    "export": "hand a model over: Hugging Face, ONNX, torch.export, AOTInductor",
    "export-labels": "predictions for FiftyOne, ActivityNet, CVAT, Label Studio",
    "convert-checkpoint": "published weight files to ours and back",
    "count-flops": "cost and size of models",
    "study": "what pretraining is worth on your videos: arms, seeds, spread",
}
# Scripts of the checkout, which is not installed with the package.
CHECKOUT_ONLY = ("benchmark", "demo")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command that the first argument names."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(
        prog="hiera-video",
        usage="hiera-video NAME ...",
        description=__doc__,
        epilog="\n".join(f"  {name:20} {what}" for name, what in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help="`hiera-video NAME --help` tells more")
    name = parser.parse_args(given[:1]).name
    run_command(lambda: run_named(name, given[1:], prog=f"hiera-video {name}"))


def run_named(name: str, arguments: Sequence[str], *, prog: str) -> None:
    """Runs one command. prog: how it was called, for its help. Raises UserError, RunStopped."""
    if name in CHECKOUT_ONLY:
        raise UserError(f"{name} is a script of the repository: python tools/{name}.py")
    if name not in COMMANDS:
        raise UserError(f"there is no command {name!r}; there are {', '.join(COMMANDS)}")
    command = import_module(f"hiera_video.commands.{name.replace('-', '_')}")
    parser: argparse.ArgumentParser = command.parser()
    parser.prog = prog
    command.main(parser.parse_intermixed_args(arguments))


if __name__ == "__main__":
    main()
