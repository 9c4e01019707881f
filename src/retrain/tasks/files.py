"""Tasks from files of problems: JSONL and parquet."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retrain.config.data import DataConfig
from retrain.errors import InputError
from retrain.files import lfs_pointer
from retrain.tasks.problems import ProblemListTask, split_by_id
from retrain.tasks.rows import Collected, Fields, collect, plain_rows


def read_file_task(data: DataConfig) -> ProblemListTask:
    """The task of `[data].path`, a JSONL or parquet file with one problem a row.

    Held out are the problems of `held_out_path`, else the rows whose `split` is "held_out", else a
    tenth by a hash of the id. Raises InputError that names file and row.
    """
    path = Path(data.path)
    main = _read(path, data, "data.path")
    train, held_out, unsplit = (main.by_split[name] for name in ("train", "held_out", ""))
    notes = list(main.notes)
    if unsplit and (train or held_out):
        raise InputError(
            f"data.path: {path}: {len(unsplit)} {_unit(data)}s have no `split` and the others have "
            f"one; give it to all {_unit(data)}s or to none"
        )
    if data.held_out_path:
        if held_out:
            raise InputError(
                f"data.held_out_path: {path} marks {len(held_out)} {_unit(data)}s as held out "
                "itself; leave held_out_path out, or those rows"
            )
        other = _read(Path(data.held_out_path), data, "data.held_out_path")
        if other.by_split["train"]:
            raise InputError(
                f"data.held_out_path: {data.held_out_path} has {_unit(data)}s whose `split` is "
                '"train"; all of its problems are held out'
            )
        train, held_out = [*train, *unsplit], other.problems
        notes += other.notes
    elif unsplit:
        train, held_out = split_by_id(unsplit)
    if not train:
        raise InputError(f"data.path: {path} holds no training problem")
    if data.held_out_path and not held_out:
        raise InputError(f"data.held_out_path: {data.held_out_path} holds no problem")
    task = ProblemListTask(path.stem, train, held_out, data.shuffle)
    task = task.noted(("data.path", note) for note in notes)
    return task if Fields.of(data).strict and not data.held_out_path else task.apart()


def _unit(data: DataConfig) -> str:
    return "line" if data.source == "jsonl" else "row"


def _read(path: Path, data: DataConfig, key: str) -> Collected:
    if pointer := lfs_pointer(path):
        raise InputError(f"{key}: {pointer}")
    read = {"jsonl": _jsonl_rows, "parquet": _parquet_rows}[data.source]
    return collect(read(path, key), Fields.of(data), key, str(path))


def _jsonl_rows(path: Path, key: str) -> Iterator[tuple[str, Any]]:
    """("line N", value) of every line that is not empty."""
    if path.suffix == ".parquet":
        raise InputError(f'{key}: {path} is a parquet file; write source = "parquet"')
    try:
        # Not splitlines(), which also splits at characters that JSON allows inside of a text.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{key}: {path} cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield f"line {number}", json.loads(line)
        except ValueError as error:
            raise InputError(f"{key}: {path}, line {number}: not JSON: {error}") from error


def _parquet_rows(path: Path, key: str) -> Iterator[tuple[str, Any]]:
    """("row N", dict) of every row; structs and lists are dicts and lists."""
    if path.suffix in (".jsonl", ".json"):
        raise InputError(f'{key}: {path} is no parquet file; write source = "jsonl"')
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in plain_rows(batch):
                    number += 1
                    yield f"row {number}", row
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{key}: {path} cannot be read as parquet: {error}") from error
