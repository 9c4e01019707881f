"""Files as rows: JSONL, lists in JSON, both also compressed with gzip, and parquet.

Nothing is held but the row at hand. A row that cannot be read comes as the BadRowError that says
why, so that the others are read all the same.
"""

from __future__ import annotations

import codecs
import glob
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

from retrain.config.messages import no_such
from retrain.errors import InputError

ENDINGS = {
    "jsonl": (".jsonl", ".json", ".jsonl.gz", ".json.gz"),
    "parquet": (".parquet",),
}
"""Of the files that are read where a folder is named, by `[data].source`."""

Columns = Callable[[Sequence[str]], list[str] | None]
"""Of the columns there are, those to read; None for all."""

_CHUNK = 1 << 20
_BATCH = 256
_BETWEEN = re.compile(r"[\s,]*")
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


class BadRowError(Exception):
    """A row that cannot be used.

    kind: what it has in common with others, e.g. `has no answer`; the exception's text is about
    this one.
    """

    def __init__(self, kind: str, text: str = "") -> None:
        super().__init__(text or kind)
        self.kind = kind


def shards(text: str, source: str, key: str) -> list[Path]:
    """The files that `text` names: a file, all of a folder, or what a glob finds, by name.

    Raises InputError, with the config key and the remedy, when there are none.
    """
    path, endings = Path(text), ENDINGS[source]
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [file for file in path.iterdir() if file.name.endswith(endings)]
        wanted = f"{path} is a folder without files that end in {' or '.join(endings)}"
        wanted += '; write source = "hub" to read it as a copy of a data set'
    elif glob.has_magic(text):
        found = [Path(name) for name in glob.glob(text, recursive=True)]  # noqa: PTH207
        wanted = f"no file is called like {text}"
    else:
        names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise InputError(f"{key}: {no_such('file', path, path.name, names)}")
    files = sorted(file for file in found if file.is_file() and not file.name.startswith("."))
    if not files:
        raise InputError(f"{key}: {wanted}")
    return files


def rows_of(
    files: Sequence[Path], source: str, key: str, columns: Columns
) -> Iterator[tuple[str, Any]]:
    """(place, row or BadRowError) of every row, e.g. ("line 3", {...}), with its file where there
    are several."""
    for file in files:
        shard = f"{file.name}, " if len(files) > 1 else ""
        rows = _json_rows(file, key) if source == "jsonl" else _table(file, key, columns)
        for place, row in rows:
            yield f"{shard}{place}", row


def load_json(text: str) -> Any:
    """The value. Raises BadRowError for what is no JSON, for a key that stands twice in one object,
    and for half of a character, which no tokenizer takes."""
    twice: list[str] = []
    try:
        value = json.loads(text, object_pairs_hook=partial(_object, twice))
    except (ValueError, RecursionError) as error:
        raise BadRowError("is no JSON", f"not JSON: {_reason(error)}") from error
    return _sound(text, value, twice)


def _object(twice: list[str], pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object; the keys that it has twice are added to `twice`."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice += [name for name in made if names.count(name) > 1]
    return made


def _sound(text: str, value: Any, twice: Sequence[str]) -> Any:
    if twice:
        raise BadRowError("has a key twice", f"the key {twice[0]!r} stands twice")
    if _HALF.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(error.object[error.start]):04x}"
            message = f"{half} is half of a character (a surrogate pair that was cut in two)"
            raise BadRowError("has half of a character", message) from error
    return value


def _reason(error: Exception) -> str:
    return "it is nested too deep" if isinstance(error, RecursionError) else str(error)


def _json_rows(path: Path, key: str) -> Iterator[tuple[str, Any]]:
    """("line N", row) of a file with an object a line, or with one list of objects."""
    if path.suffix == ".parquet":
        raise InputError(f'{key}: {path} is a parquet file; write source = "parquet"')
    begun = False
    try:
        unpack: Any = gzip.open if path.suffix == ".gz" else open
        with unpack(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if not (bare := line.strip()):
                    continue
                if not begun and bare.startswith(b"["):
                    yield from _listed(line, file, number, f"{key}: {path}")
                    return
                if not begun and bare == b"{":
                    raise InputError(
                        f"{key}: {path} holds one object over many lines; a list of objects, or "
                        "one object a line, is wanted"
                    )
                begun = True
                yield f"line {number}", _line(line)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{key}: {path} cannot be read: {error}") from error


def _line(line: bytes) -> Any:
    try:
        return load_json(line.decode())
    except UnicodeDecodeError as error:
        return BadRowError("is no UTF-8 text", f"not UTF-8 text: {error}")
    except BadRowError as bad:
        return bad


def _listed(first: bytes, file: IO[bytes], number: int, where: str) -> Iterator[tuple[str, Any]]:
    """The items of a list that begins in the line `first`, by the lines in which they begin."""
    decode = codecs.getincrementaldecoder("utf-8")().decode
    try:
        text, ended = decode(first), False
        position = text.index("[") + 1
        while True:
            seen, position = position, _BETWEEN.match(text, position).end()  # type: ignore[union-attr]
            number += text.count("\n", seen, position)
            if text.startswith("]", position):
                return
            twice: list[str] = []
            decoder = json.JSONDecoder(object_pairs_hook=partial(_object, twice))
            try:
                value, end = decoder.raw_decode(text, position)
            except (ValueError, RecursionError) as error:
                if ended or isinstance(error, RecursionError):
                    raise InputError(
                        f"{where}, line {number}: not JSON: {_reason(error)}"
                    ) from error
                chunk = file.read(max(_CHUNK, len(text)))
                text, position = text[position:] + decode(chunk, not chunk), 0
                ended = not chunk
                continue
            try:
                yield f"line {number}", _sound(text[position:end], value, twice)
            except BadRowError as bad:
                yield f"line {number}", bad
            number += text.count("\n", position, end)
            position = end
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is no UTF-8 text: {error}") from error


def _table(path: Path, key: str, columns: Columns) -> Iterator[tuple[str, Any]]:
    """("row N", dict) of every row of a parquet file; structs and lists are dicts and lists."""
    if path.name.endswith(ENDINGS["jsonl"]):
        raise InputError(f'{key}: {path} is no parquet file; write source = "jsonl"')
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            wanted = columns(file.schema_arrow.names)
            batches = file.iter_batches(batch_size=_BATCH, columns=wanted)
            yield from numbered(batches)
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{key}: {path} cannot be read as parquet: {error}") from error


def numbered(batches: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """("row N", dict or BadRowError) of every row of Arrow batches or tables."""
    number = 0
    for batch in batches:
        try:
            rows = _plain_rows(batch)
        except UnicodeDecodeError:
            rows = [_row(batch.slice(i, 1)) for i in range(batch.num_rows)]
        for row in rows:
            number += 1
            yield f"row {number}", row


def _row(batch: Any) -> Any:
    try:
        return _plain_rows(batch)[0]
    except UnicodeDecodeError as error:
        return BadRowError("is no UTF-8 text", f"not UTF-8 text: {error}")


def _plain_rows(batch: Any) -> list[dict[str, Any]]:
    """The rows of an arrow table or batch. Floats of 16 and 32 bits become the shortest decimals
    that name them: 0.1 and not 0.10000000149011612."""
    import numpy as np
    import pyarrow as pa

    def shorter(kind: Any) -> Callable[[Any], Any] | None:
        """What is to be done to values of a type; None when nothing is."""
        if pa.types.is_float16(kind) or pa.types.is_float32(kind):
            narrow = np.float16 if pa.types.is_float16(kind) else np.float32
            return lambda value: float(str(narrow(value)))
        if pa.types.is_dictionary(kind):
            return shorter(kind.value_type)
        if pa.types.is_struct(kind):
            inner = {part.name: change for part in kind if (change := shorter(part.type))}
            return (lambda value: changed(value, inner)) if inner else None
        if hasattr(kind, "value_type") and (each := shorter(kind.value_type)):
            return lambda value: [None if item is None else each(item) for item in value]
        return None

    def changed(row: dict[str, Any], changes: dict[str, Callable[[Any], Any]]) -> dict[str, Any]:
        odd = {name: change(row[name]) for name, change in changes.items() if row[name] is not None}
        return {**row, **odd}

    changes = {part.name: change for part in batch.schema if (change := shorter(part.type))}
    rows: list[dict[str, Any]] = batch.to_pylist()
    return [changed(row, changes) for row in rows] if changes else rows
