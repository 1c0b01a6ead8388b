"""Corrected labels: kept at once, and written as a new table beside the old one."""

import csv
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from hiera_video.data.lists import VideoList
from hiera_video.data.tables import END, LABEL, PATH, SEVERAL, START, as_csv, split_labels
from hiera_video.review.items import Item
from hiera_video.system.errors import UserError
from hiera_video.system.files import written_whole

ENDING = ".corrected.csv"


@dataclass(frozen=True)
class Correction:
    """What somebody said of an item."""

    row: int
    labels: tuple[str, ...]
    segment: tuple[float, float] | None = None  # None: as it was
    left_out: bool = False  # the row is to go


class Corrections:
    """Of a review; `file` keeps every one, and None in the place of one that was taken back."""

    def __init__(self, file: Path, items: Sequence[Item]):
        """Takes up what the file has. Raises UserError."""
        self._file = file
        self._items = {item.row: item for item in items}
        self.of_rows: dict[int, Correction] = {}
        if not file.exists():
            return
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                self._note(json.loads(line))
            except (ValueError, KeyError, TypeError) as e:
                raise UserError(f"{file} is damaged: {e}") from e

    def add(self, correction: Correction) -> None:
        """On the disk when it returns. Raises OSError."""
        self._append({**asdict(correction), "path": self._items[correction.row].path})

    def take_back(self, row: int) -> None:
        self._append({"row": row, "labels": None, "path": self._items[row].path})

    def _append(self, entry: dict) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with open(self._file, "a", encoding="utf-8") as f:
            f.write(json.dumps(entry) + "\n")
            f.flush()
            os.fsync(f.fileno())
        self._note(entry)

    def _note(self, entry: dict) -> None:
        item = self._items.get(entry["row"])
        if item is None or entry.get("path", item.path) != item.path:
            return  # of another list that was tested in this folder
        if entry["labels"] is None:
            self.of_rows.pop(entry["row"], None)
            return
        segment = entry.get("segment")
        self.of_rows[entry["row"]] = Correction(
            entry["row"],
            tuple(entry["labels"]),
            None if segment is None else (segment[0], segment[1]),
            bool(entry.get("left_out")),
        )

    def changed(self) -> list[tuple[Item, Correction]]:
        """Those that say something else than the list."""
        found = []
        for row, correction in sorted(self.of_rows.items()):
            item = self._items.get(row)
            if item is not None and (
                correction.left_out
                or correction.segment is not None
                or set(correction.labels) != set(item.labels)
            ):
                found.append((item, correction))
        return found


def beside(source: str) -> Path:
    """The new table's name."""
    path = Path(source)
    return path / f"list{ENDING}" if path.is_dir() else path.with_name(path.stem + ENDING)


def write_corrected(
    target: Path,
    table: VideoList,
    changed: Sequence[tuple[Item, Correction]],
    names: Sequence[str],
    *,
    own_words: bool = False,
    several: bool = False,
) -> int:
    """The table, with what was corrected. Returns the number of rows that differ. Raises OSError.

    own_words: its labels are what the classes are called, integers too. several: labels of a row;
    else a segment that is left out stays, without a label.

    Rows are found by their path and segment; what is no row of a table with segments, such as a gap
    between them, becomes a new one. A folder of class folders becomes a table.
    """
    found = {_key(item.path, item.segment): correction for item, correction in changed}
    in_table = set()
    of_item = {_key(item.path, item.segment): item for item, _ in changed}
    header = list(table.header or (PATH, LABEL))
    is_table = table.header is not None or bool(table.classes)
    # What is left out of a table with segments is no gap between them.
    stays = START in header and not several
    write_label = _label_writer(table, names, own_words=own_words)
    lines = [as_csv(header)] if is_table else []
    count = 0
    for i in range(len(table)):
        key = _key(table.written(i), table.segment(i))
        in_table.add(key)
        correction = found.get(key)
        count += correction is not None
        if correction is not None and correction.left_out and not stays:
            continue
        if not is_table:
            text = table.line(i)
            if correction is not None:
                text = f"{table.written(i)} {write_label(correction.labels)}".rstrip()
            lines.append(text)
            continue
        cells = _cells(table, i, header, names)
        if correction is not None:
            labels = () if correction.left_out else correction.labels
            cells[header.index(LABEL)] = write_label(labels)
            if correction.segment is not None and START in header:
                cells[header.index(START)], cells[header.index(END)] = _times(correction.segment)
        lines.append(as_csv(cells))
    if START in header:
        for key, correction in found.items():
            if key in in_table or correction.left_out:
                continue
            cells = [""] * len(header)
            cells[header.index(PATH)] = of_item[key].path
            cells[header.index(LABEL)] = write_label(correction.labels)
            segment = correction.segment or of_item[key].segment
            if segment is not None:
                cells[header.index(START)], cells[header.index(END)] = _times(segment)
            lines.append(as_csv(cells))
            count += 1
    with (
        written_whole(target) as whole,
        open(whole, "w", encoding="utf-8", errors="surrogateescape") as f,
    ):
        f.write("".join(line + "\n" for line in lines))
    return count


def _key(path: str, segment: tuple[float, float] | None) -> tuple[str, float, float]:
    start, end = segment or (-1.0, -1.0)
    return os.path.normpath(path), round(start, 3), round(end, 3)


def _cells(table: VideoList, i: int, header: list[str], names: Sequence[str]) -> list[str]:
    if table.header is None:
        return [table.written(i), table.classes[table.label(i)]]
    return next(csv.reader([table.line(i)]))


def _label_writer(
    table: VideoList, names: Sequence[str], *, own_words: bool
) -> Callable[[Sequence[str]], str]:
    """Labels as the table has them: as names, or as their numbers."""
    rows = (split_labels(table.label_text(i)) for i in range(len(table)))
    texts = {text for labels in rows for text in labels}
    by_name = bool(table.classes)
    if table.header is not None and all(re.fullmatch(r"[+-]?\d+", text) for text in texts):
        by_name = (own_words or table.has_label_sets) and texts <= set(names)
    elif table.header is not None:
        by_name = True
    return lambda labels: SEVERAL.join(
        label if by_name else str(list(names).index(label)) for label in labels
    )


def _times(segment: tuple[float, float]) -> list[str]:
    return [f"{t:.3f}" for t in segment]
