"""Lists with a header: `path,label,start_s,end_s` in any order, other columns kept and ignored.

    path,label,start_s,end_s,speaker
    a/first.mp4,open the door,2.0,4.5,ann
    a/first.mp4,3,,,ann

A label is an integer or the name of a class; if one label of a column is no integer, all are names.
Several are joined by `;`.
`start_s,end_s` make the row a segment of its video; many rows may name one video.
`shard,offset,length`, all three, say that the video lies in a tar (datasets/pack_shards.py).
"""

import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from hiera_video.system.errors import UserError
from hiera_video.system.members import Member

PATH = "path"
LABEL = "label"
START = "start_s"
END = "end_s"
SHARD = ("shard", "offset", "length")  # bytes
SEVERAL = ";"  # between the labels of a row
NO_LABEL = -1
SEVERAL_LABELS = -2
_INTEGER = re.compile(r"[+-]?\d+\Z")


@dataclass
class Table:
    """What a table says, row by row. labels: see `numbered`."""

    header: list[str]
    records: list[str] = field(default_factory=list)  # the rows, as CSV
    labels: list[int] = field(default_factory=list)
    # NaN for the whole video; empty if that is so of all rows.
    segments: list[tuple[float, float]] = field(default_factory=list)
    classes: tuple[str, ...] = ()  # names of the labels, sorted; empty where they are integers


def is_table(text: str) -> bool:
    """The first line is a header with the column `path`."""
    first = text.lstrip("\ufeff").split("\n", 1)[0]
    return ("," in first and PATH in _header(first)) or first.strip() == PATH


def read_table(text: str, *, source: str, key: str) -> Table:
    """source, key: for the message. Raises UserError, which names the row."""
    rows = _rows(text.lstrip("\ufeff"))
    _, cells, _ = next(rows)
    table = Table(_header_of(cells, source, key))
    column = {name: k for k, name in enumerate(table.header)}
    has_segments = START in column
    in_shards = set(SHARD) <= column.keys()
    label_of = column.get(LABEL)
    names: list[str] = []
    line = 0

    def where() -> str:
        return f"{key}: row {len(table.records) + 1} of {source} (line {line})"

    for line, cells, record in rows:  # noqa: B007 - where() says it
        if not record.strip(', \t"'):
            continue
        if len(cells) != len(table.header):
            raise UserError(
                f"{where()} has {len(cells)} cells, but the header names {len(table.header)} "
                "columns; a cell with a comma in it needs quotes"
            )
        if not cells[column[PATH]]:
            raise UserError(f"{where()} has no path")
        if has_segments:
            texts = cells[column[START]].strip(), cells[column[END]].strip()
            table.segments.append(_segment(texts, where))
        if in_shards:
            _check_place([cells[column[name]].strip() for name in SHARD], where)
        names.append("" if label_of is None else cells[label_of].strip())
        table.records.append(record)
    table.labels, table.classes = numbered(names)
    return table


def _rows(text: str) -> Iterator[tuple[int, list[str], str]]:
    """(number of the line, cells, the row as CSV)"""
    if '"' in text:
        reader = csv.reader(io.StringIO(text, newline=""))
        for cells in reader:
            yield reader.line_num, cells, as_csv(cells)
        return
    # Nothing is quoted: lists of hundreds of thousands of rows are read five times as fast.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for number, line in enumerate(lines, start=1):
        yield number, line.split(","), line


class Texts(Protocol):
    """A text for every row."""

    def __getitem__(self, row: int, /) -> str: ...


class Cells:
    """One column of a table's rows, by row; `records` holds the rows as CSV."""

    def __init__(self, records: Texts, column: int):
        self._records = records
        self._column = column

    def __getitem__(self, row: int) -> str:
        return _cells_of(self._records[row])[self._column]


class Places:
    """Where a table's videos lie, by row: their paths, or places in tars."""

    def __init__(self, records: Texts, header: list[str]):
        self._records = records
        self._path = header.index(PATH)
        self._shard = [header.index(name) for name in SHARD]

    def __getitem__(self, row: int) -> str:
        cells = _cells_of(self._records[row])
        shard, offset, length = (cells[k].strip() for k in self._shard)
        return str(Member(shard, int(offset), int(length))) if shard else cells[self._path]


def _cells_of(record: str) -> list[str]:
    return next(csv.reader([record])) if '"' in record else record.split(",")


def label_texts(records: Iterable[str], header: list[str]) -> list[str]:
    """The label of every row as it is written; empty for none."""
    if LABEL not in header:
        return ["" for _ in records]
    column = header.index(LABEL)
    return [cells[column].strip() for cells in csv.reader(records)]


def numbered(texts: Sequence[str], *, names: bool = False) -> tuple[list[int], tuple[str, ...]]:
    """(number of every label, names of the classes): integers as they are, names by the alphabet.

    names: integers are names, too. NO_LABEL for none, SEVERAL_LABELS for several.
    """
    single = sorted({text for text in texts if text and SEVERAL not in text})
    if not names and all(_INTEGER.match(text) for text in single):
        number = {text: int(text) for text in single}
        single = []
    else:
        number = {text: k for k, text in enumerate(single)}
    labels = []
    for text in texts:
        without = SEVERAL_LABELS if text else NO_LABEL
        labels.append(number.get(text, without))
    return labels, tuple(single)


def split_labels(text: str) -> list[str]:
    """The labels of a row, as they are written."""
    return [label.strip() for label in text.split(SEVERAL) if label.strip()]


def as_csv(cells: list[str]) -> str:
    """One line of CSV, without its end."""
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator="").writerow(cells)
    return out.getvalue()


def with_path(record: str, header: list[str], path: str) -> str:
    """The row with another path, which is a file of its own."""
    cells = next(csv.reader([record]))
    cells[header.index(PATH)] = path
    if set(SHARD) <= set(header):
        for name in SHARD:
            cells[header.index(name)] = ""
    return as_csv(cells)


def _header(line: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line.strip()]), [])]


def _header_of(cells: list[str], source: str, key: str) -> list[str]:
    header = [cell.strip() for cell in cells]
    in_shards = SHARD if set(SHARD) <= set(header) else ()
    for name in (PATH, LABEL, START, END, *in_shards):
        if header.count(name) > 1:
            raise UserError(f"{key}: the header of {source} has two columns {name!r}")
    if (START in header) != (END in header):
        raise UserError(f"{key}: the header of {source} needs both {START} and {END}, or neither")
    return header


def _check_place(place: Sequence[str], where: Callable[[], str]) -> None:
    """Raises UserError."""
    shard, offset, length = place
    if shard and not (offset.isdecimal() and length.isdecimal()):
        raise UserError(
            f"{where()}: offset={offset!r}, length={length!r} in {shard}: both in bytes, >= 0"
        )


def _segment(texts: tuple[str, str], where: Callable[[], str]) -> tuple[float, float]:
    """Raises UserError."""
    if texts == ("", ""):
        return math.nan, math.nan
    try:
        start = float(texts[0])
        end = float(texts[1])
    except ValueError:
        start = end = math.nan
    if not 0 <= start < end < math.inf:
        given = f"{START}={texts[0]!r}, {END}={texts[1]!r}"
        raise UserError(f"{where()}: {given}: both in seconds, 0 <= start < end")
    return start, end
