"""Tables on disk, written a piece at a time: CSV and Parquet with the same rows."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any, BinaryIO, Literal, Protocol

from retrain.output import visible

Kind = Literal["int", "float", "bool", "text"]
Columns = Mapping[str, Kind]
"""Name -> what its cells hold, in the order of the columns. Every cell may also be None."""

FORMULA = ("=", "+", "-", "@", "\t")
"""A spreadsheet takes a cell that starts so for a formula, and would run it."""
GROUP_ROWS = 65_536
"""Rows of a Parquet row group."""


class Table(Protocol):
    """A table that is being written."""

    def add(self, rows: Sequence[list[Any]]) -> None:
        """Append rows: a list a row, a value a column. The lists are not the caller's any more."""

    def close(self) -> None:
        """Write what is still held; the file stays open."""


class CsvTable:
    """RFC 4180 in UTF-8: a header, CRLF, quotes where needed; an empty cell is None.

    Numbers are written with all their digits. Control characters in texts become visible ones,
    and a text that starts like a formula gets an apostrophe before it.
    """

    def __init__(self, file: BinaryIO, columns: Columns) -> None:
        self._text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        self._writer = csv.writer(self._text)
        self._writer.writerow([_csv_text(name) for name in columns])
        self._odd = [
            (place, _csv_text if kind == "text" else _csv_bool)
            for place, kind in enumerate(columns.values())
            if kind in {"text", "bool"}
        ]

    def add(self, rows: Sequence[list[Any]]) -> None:
        for row in rows:
            for place, shown in self._odd:
                row[place] = shown(row[place])
        self._writer.writerows(rows)

    def close(self) -> None:
        # Let go of the file, which is closed by whoever opened it.
        self._text.detach()


class ParquetTable:
    """Parquet with typed columns and zstd; null is None."""

    def __init__(self, file: BinaryIO, columns: Columns) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        types = {"int": pa.int64(), "float": pa.float64(), "bool": pa.bool_(), "text": pa.string()}
        self._pa = pa
        self._schema = pa.schema([(name, types[kind]) for name, kind in columns.items()])
        self._texts = [place for place, kind in enumerate(columns.values()) if kind == "text"]
        self._writer = parquet.ParquetWriter(file, self._schema, compression="zstd")
        self._held: list[Any] = []
        self._held_rows = 0

    def add(self, rows: Sequence[list[Any]]) -> None:
        if not rows:
            return
        for row in rows:
            for place in self._texts:
                row[place] = _text(row[place])
        columns = [
            self._pa.array(values, type=field.type)
            for values, field in zip(zip(*rows, strict=True), self._schema, strict=True)
        ]
        self._held.append(self._pa.record_batch(columns, schema=self._schema))
        self._held_rows += len(rows)
        if self._held_rows >= GROUP_ROWS:
            self._write()

    def close(self) -> None:
        self._write()
        self._writer.close()

    def _write(self) -> None:
        table = self._pa.Table.from_batches(self._held, schema=self._schema)
        self._writer.write_table(table.combine_chunks(), row_group_size=2 * GROUP_ROWS)
        self._held, self._held_rows = [], 0


def kind_of(types: Collection[type]) -> Kind | None:
    """What a column of values of these types holds; None when none of them fits into a cell.

    Whole and broken numbers are floats together; any other mixture is text. A column in which
    nothing was measured is one of floats.
    """
    cells = set(types) - {type(None), dict, list}
    if {dict, list} & set(types):
        return "text" if cells else None
    if cells <= {int, float}:
        return "int" if cells == {int} else "float"
    return "bool" if cells == {bool} else "text"


def _text(value: Any) -> str | None:
    if isinstance(value, str):
        return _visible(value)
    return None if value is None or isinstance(value, dict | list) else json.dumps(value)


def _csv_text(value: Any) -> str | None:
    return harmless(value) if isinstance(value, str) else _text(value)


def _csv_bool(value: bool | None) -> str | None:
    return None if value is None else json.dumps(value)


# Most texts come again, row after row.
_visible = lru_cache(maxsize=1 << 14)(visible)


@lru_cache(maxsize=1 << 14)
def harmless(text: str) -> str:
    """`text` as a spreadsheet shows it and does not run it."""
    text = visible(text)
    return f"'{text}" if text.startswith(FORMULA) else text
