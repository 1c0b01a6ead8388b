"""Arguments that several commands share."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

KEY = re.compile(r"[a-z]\w*(\.\w+)*=")


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """description: the docstring of a command's file, kept as it stands."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_config(parser: argparse.ArgumentParser, help: str = "config file (YAML)") -> None:
    """`--cfg FILE key=value ..`"""
    parser.add_argument("--cfg", required=True, help=help)
    add_overrides(parser)


def add_overrides(
    parser: argparse.ArgumentParser, help: str = "override a key of the config"
) -> None:
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=help)


def without_overrides(given: Sequence[str]) -> tuple[list[str], list[str]]:
    """(files and URLs, `key=value`), of arguments that are both"""
    files: list[str] = []
    overrides: list[str] = []
    for argument in given:
        is_override = KEY.match(argument) is not None and not Path(argument).exists()
        (overrides if is_override else files).append(argument)
    return files, overrides
