"""The table of a benchmark: one row per evaluated adapter, as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from components.errors import InvalidInput
from components.files import write_text

Row = dict[str, str]
HEAD = ("variant", "concept", "kind", "seed", "step", "status", "error", "key")
"""Columns before the costs and metrics; `key` is the digest of all that a cell was measured from."""

MEASURED, FAILED = "measured", "failed"


def read_rows(file: Path) -> list[Row]:
    """Rows of a table; none if there is no file.

    Raises:
        InvalidInput: a column of `HEAD` is missing.
    """
    if not file.is_file():
        return []
    with file.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        rows = list(reader)
    missing = [name for name in HEAD if name not in (reader.fieldnames or [])]
    if missing:
        raise InvalidInput(f"no column {missing[0]!r}", file=file, mend="remove the file: it is measured anew")
    return rows


def write_rows(rows: Iterable[Mapping[str, str]], file: Path) -> None:
    """Write a table, whole or not at all; columns by name after those of `HEAD`."""
    kept = list(rows)
    columns = sorted({name for row in kept for name in row} - set(HEAD))
    text = io.StringIO()
    writer = csv.DictWriter(text, [*HEAD, *columns], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(kept)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text.getvalue())


def cell_rows(rows: Sequence[Row], key: str) -> list[Row]:
    """The measured rows of a cell."""
    return [row for row in rows if row["key"] == key and row["status"] == MEASURED]
