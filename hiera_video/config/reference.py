"""docs/configuration.md: every key with its default, from the comments beside the fields.

python -m hiera_video.config.reference > docs/configuration.md
"""

import dataclasses
import inspect
import re

from hiera_video.config.sections import Config

FIELD = re.compile(r"    (\w+): ")
COMMENT = re.compile(r"    # ?(.*)")
HEAD = """# Configuration

Every key of a config file. A key that a file leaves out has the default below.
`--cfg file.yaml key=value` overrides a key on the command line, `run_net.py --show-config` prints
what results. A file may begin with `base: other.yaml`, a path relative to itself, whose keys it
overrides. An unknown key, a wrong type or a key given twice is an error.

Made from `hiera_video/config/` by `python -m hiera_video.config.reference`.
"""


def reference_page() -> str:
    """The page, as Markdown."""
    sections = [field for field in dataclasses.fields(Config) if _is_section(field)]
    parts = [HEAD, _table(Config, prefix="")]
    for section in sections:
        kind = type(getattr(Config(), section.name))
        parts.append(f"\n## {section.name}\n\n{inspect.getdoc(kind)}\n")
        parts.append(_table(kind, prefix=f"{section.name}."))
    return "\n".join(parts)


def comments_of(section: type) -> dict[str, str]:
    """Field -> the comment above it in the source."""
    comments: dict[str, str] = {}
    above: list[str] = []
    for line in inspect.getsource(section).splitlines():
        comment = COMMENT.fullmatch(line)
        field = FIELD.match(line)
        if comment:
            above.append(comment[1])
        elif field:
            comments[field[1]] = " ".join(above)
            above = []
        else:
            above = []
    return comments


def _table(section: type, *, prefix: str) -> str:
    comments = comments_of(section)
    lines = ["| key | default | meaning |", "|---|---|---|"]
    for field in dataclasses.fields(section):
        if not _is_section(field):
            default = _yaml(field.default)
            lines.append(f"| `{prefix}{field.name}` | {default} | {comments[field.name]} |")
    return "\n".join(lines) + "\n"


def _is_section(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING


def _yaml(value: object) -> str:
    """As a config file has it; nothing for null and for an empty text."""
    if value is None or value == "":
        return ""
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    print(reference_page(), end="")
