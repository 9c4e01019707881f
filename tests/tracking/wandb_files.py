"""What wandb has written into a run's folder, read back without wandb's own reader."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK = 2**15
FILE_HEADER = 7
RECORD_HEADER = struct.Struct("<IHB")
WHOLE, LAST = 1, 4


@dataclass
class Written:
    """One `.wandb` file: what the run is, its rows in order, its summary and how it ended."""

    id: str = ""
    project: str = ""
    name: str = ""
    group: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None
    kinds: set[str] = field(default_factory=set)
    artifacts: list[dict[str, Any]] = field(default_factory=list)
    """Of each: name, type, aliases, metadata, and files: name -> where it lies."""

    @property
    def steps(self) -> list[int]:
        return [row["_step"] for row in self.history]


def written(run_dir: Path) -> list[Written]:
    """What each attempt at the run has written, oldest first."""
    files = (run_dir / "wandb").glob("*run-*-*/run-*.wandb")
    return [read(path) for path in sorted(files, key=lambda path: path.stat().st_mtime_ns)]


def read(path: Path) -> Written:
    from wandb.proto.wandb_internal_pb2 import Record

    found = Written()
    for data in records(path.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        kind = str(record.WhichOneof("record_type"))
        found.kinds.add(kind)
        if kind == "run":
            run = record.run
            found.id, found.project = run.run_id, run.project
            found.name, found.group = run.display_name, run.run_group
            found.tags = list(run.tags)
            found.config.update(values(run.config.update))
        elif kind == "config":
            found.config.update(values(record.config.update))
        elif kind == "history":
            found.history.append(values(record.history.item))
        elif kind == "summary":
            found.summary.update(values(record.summary.update))
        elif kind == "artifact":
            found.artifacts.append(artifact(record.artifact))
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
    return found


def artifact(record: Any) -> dict[str, Any]:
    return {
        **{"name": record.name, "type": record.type, "aliases": list(record.aliases)},
        "metadata": json.loads(record.metadata or "{}"),
        "files": {entry.path: Path(entry.local_path) for entry in record.manifest.contents},
    }


def values(items: Any) -> dict[str, Any]:
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def records(data: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log; one that reaches over a block's end is in pieces."""
    place, whole = FILE_HEADER, b""
    while place + RECORD_HEADER.size <= len(data):
        left = BLOCK - place % BLOCK
        if left < RECORD_HEADER.size:
            place += left
            continue
        _, size, kind = RECORD_HEADER.unpack_from(data, place)
        place += RECORD_HEADER.size
        whole += data[place : place + size]
        place += size
        if kind in (WHOLE, LAST):
            yield whole
            whole = b""
