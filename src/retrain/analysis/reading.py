"""Reading files that may be missing, half-written, or in use.

Nothing here raises for what a file holds: what cannot be read is None or empty.
"""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

TAIL_ROWS = 12
ROW_BYTES = 1536
"""What is read for each row at first; more when the rows turn out to be longer."""


@dataclass(frozen=True, slots=True)
class MetricsTail:
    """The end of a `metrics.jsonl`."""

    rows: int
    """Rows in the whole file; steps count from 0 and every step has one row."""
    last: Mapping[str, Any]
    step_time_s: float | None
    """Median over the last rows."""
    modified_at: float


def read_tail(path: Path, rows: int = TAIL_ROWS) -> MetricsTail | None:
    """The end of a `metrics.jsonl` without reading the rest; None without the file."""
    found, written_at = last_rows(path, rows)
    if written_at is None:
        return None
    last = found[-1] if found else {}
    times = [value for row in found if (value := number(row, "step_time_s")) is not None]
    step = number(last, "step")
    return MetricsTail(
        rows=len(found) if step is None else int(step) + 1,
        last=last,
        step_time_s=statistics.median(times) if times else None,
        modified_at=written_at,
    )


def last_rows(path: Path, rows: int) -> tuple[list[dict[str, Any]], float | None]:
    """Up to `rows` last rows of a JSONL file, oldest first, and when it was last written.

    A half-written last line is passed over. Without the file: no rows and None.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            size, block = status.st_size, max(1, rows) * ROW_BYTES
            while True:
                start = max(0, size - block)
                file.seek(start)
                lines = file.read(size - start).split(b"\n")
                found = _last_objects(lines[1:] if start else lines, rows)
                if len(found) == rows or start == 0:
                    return found[::-1], status.st_mtime
                block *= 4
    except OSError:
        return [], None


def iter_rows(path: Path) -> Iterator[dict[str, Any]]:
    """All rows of a JSONL file that can be read, one at a time; nothing without the file.

    Unlike the reader that resumes a run, this one passes over damaged lines: a report of what
    is left is worth more than none.
    """
    try:
        file = path.open("rb")
    except OSError:
        return
    with file:
        for line in file:
            row = parse_object(line)
            if row is not None:
                yield row


def load_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty when it is missing, half-written or something else."""
    try:
        return parse_object(path.read_bytes()) or {}
    except OSError:
        return {}


def load_tables(path: Path) -> dict[str, Any]:
    """The TOML tables in a file; empty when it is missing or damaged."""
    # Brings pydantic along, which `retrain status` seldom needs.
    from retrain.config.files import parse

    try:
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def number(source: Mapping[str, Any], key: str) -> float | None:
    """A finite number, or None for anything else."""
    value = source.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:  # A whole number that no float can hold.
        return None


def text(source: Mapping[str, Any], key: str) -> str:
    """A string, or an empty one for anything else."""
    value = source.get(key)
    return value if isinstance(value, str) else ""


def moment(source: Mapping[str, Any], key: str) -> float | None:
    """An ISO 8601 moment as seconds since 1970, or None for anything else."""
    try:
        return datetime.fromisoformat(text(source, key)).timestamp()
    except ValueError:
        return None


def nested(source: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """An object inside an object, or an empty one for anything else."""
    value = source.get(key)
    return value if isinstance(value, dict) else {}


def items(source: Mapping[str, Any], key: str) -> list[Any]:
    """A list inside an object, or an empty one for anything else."""
    value = source.get(key)
    return value if isinstance(value, list) else []


def modified_at(path: Path) -> float | None:
    """When a file was last written, in seconds since 1970; None without the file."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def subfolders(path: Path) -> list[Path]:
    """The folders in a folder, without hidden ones; none without it."""
    try:
        with os.scandir(path) as entries:
            names = [entry.name for entry in entries if entry.is_dir()]
            return [path / name for name in names if not name.startswith(".")]
    except OSError:
        return []


def _last_objects(lines: Sequence[bytes], limit: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for line in reversed(lines):
        row = parse_object(line)
        if row is not None:
            found.append(row)
            if len(found) == limit:
                break
    return found


def parse_object(data: bytes) -> dict[str, Any] | None:
    """The JSON object in some bytes; None when they hold something else.

    Numbers that no float can hold (NaN and Infinity, which Python writes, or 1e999) are None.
    """
    try:
        value = msgspec.json.decode(data)
    except (ValueError, RecursionError):
        # Not JSON, but perhaps what Python takes for it: a row is worth more than its rigour.
        try:
            value = json.loads(data, parse_constant=_no_number, parse_float=_finite)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def _finite(digits: str) -> float | None:
    value = float(digits)
    return value if math.isfinite(value) else None


def _no_number(_name: str) -> None:
    """What NaN, Infinity and -Infinity stand for."""
