"""Tasks from files of problems: JSONL, lists in JSON, and parquet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from retrain.config.data import DataConfig
from retrain.errors import InputError
from retrain.files import lfs_pointer
from retrain.tasks.problems import ProblemListTask, Wanted
from retrain.tasks.reading import rows_of, shards
from retrain.tasks.rows import Collected, Fields, Unmarked, collect, settle


def read_file_task(data: DataConfig, wanted: Wanted = Wanted()) -> ProblemListTask:  # noqa: B008
    """The task of `[data].path`: JSONL or parquet files with one problem a row.

    Held out are the problems of `held_out_path`, else the rows whose `split` says so, else a tenth
    by a hash of the id. Raises InputError that names files and rows.
    """
    if not data.held_out_path:
        main = _read(data, "path", "tenth", wanted)
        parts = [main]
    else:
        main = _read(data, "path", "train", replace(wanted, held_out=0))
        parts = [main, _read(data, "held_out_path", "held_out", replace(wanted, train=0))]
    notes = settle(parts, data)
    splits, path, unit = main.splits, data.path, _unit(data)
    if splits[""] and (splits["train"] or splits["held_out"]):
        raise InputError(
            f"data.path: {path}: {splits['']} {unit}s have no `split` and the others have one; "
            f"give it to all {unit}s or to none"
        )
    if data.held_out_path and splits["held_out"]:
        raise InputError(
            f"data.held_out_path: {path} marks {splits['held_out']} {unit}s as held out itself; "
            "leave held_out_path out, or those rows"
        )
    if parts[-1] is not main and parts[-1].splits["train"]:
        raise InputError(
            f"data.held_out_path: {data.held_out_path} has {unit}s whose `split` is "
            '"train"; all of its problems are held out'
        )
    if not main.train:
        raise InputError(f"data.path: {path} holds no training problem{_because(notes)}")
    held_out = parts[-1].held_out
    if data.held_out_path and not held_out and wanted.held_out != 0:
        raise InputError(
            f"data.held_out_path: {data.held_out_path} holds no problem{_because(notes)}"
        )
    task = ProblemListTask(_name(Path(path)), main.train, held_out, data.shuffle)
    task.whole = all(part.whole for part in parts)
    return task.noted(("data.path", note) for note in notes).apart()


def _because(notes: list[str]) -> str:
    return "".join(f"; {note}" for note in notes)


def _name(path: Path) -> str:
    """What messages call the data: the file without its endings, or the folder of several."""
    if path.is_file():
        return Path(path.stem).stem if path.suffix == ".gz" else path.stem
    return path.name if path.is_dir() else path.parent.name


def _unit(data: DataConfig) -> str:
    return "line" if data.source == "jsonl" else "row"


def _read(data: DataConfig, key: str, unmarked: Unmarked, wanted: Wanted) -> Collected:
    text, place = getattr(data, key), f"data.{key}"
    fields = Fields.of(data, wanted.metadata)
    paths = shards(text, data.source, place)
    for path in paths:
        if pointer := lfs_pointer(path):
            raise InputError(f"{place}: {pointer}")
    rows = rows_of(paths, data.source, place, fields.columns)
    return collect(rows, fields, place, text, unmarked, wanted)
