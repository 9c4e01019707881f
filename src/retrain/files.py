"""Files that survive a crash: atomic replacement, whole-line appends, `run.json`.

Every file that a reader may meet half-written goes through here. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self, get_args

import msgspec

from retrain import __version__
from retrain.errors import InputError
from retrain.processes import ProcessId

RunStatus = Literal["pending", "running", "done", "diverged", "failed", "stopped", "dropped"]
FINAL_STATUSES: frozenset[str] = frozenset({"done", "diverged", "failed", "stopped", "dropped"})

RUN_FILE = "run.json"
RUN_CONFIG_FILE = "config.toml"
METRICS_FILE = "metrics.jsonl"
RUN_LOG_FILE = "run.log"
STEPS_FILE = "emergence/steps.jsonl"
GENERATIONS_FILE = "emergence/generations.jsonl"
JOURNALS = (METRICS_FILE, STEPS_FILE, GENERATIONS_FILE)
"""What a run appends to, step by step."""
EVALUATION_FOLDER = "evaluation"
FINAL_FOLDER = "final"
_DEEPEST = 32


def expanded(path: Path | str) -> Path:
    """`path` with `~` and `~user` as folders; a user who does not exist is left as written, where
    `Path.expanduser` raises."""
    return Path(os.path.expanduser(path))  # noqa: PTH111


def utc_now() -> str:
    """The present moment as `2026-01-31T12:00:00+00:00`."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextlib.contextmanager
def atomic_writer(path: Path, *, mode: int | None = None) -> Iterator[BinaryIO]:
    """A file to write into that replaces `path` in one instant when the block ends without error:
    readers see the old bytes or the new ones, never a mix."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if mode is not None:
            aside.chmod(mode)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def atomic_write_bytes(path: Path, data: bytes, *, mode: int | None = None) -> None:
    """Replace `path` in one instant: readers see the old bytes or the new ones, never a mix."""
    with atomic_writer(path, mode=mode) as file:
        file.write(data)


def atomic_write_text(path: Path, text: str, *, mode: int | None = None) -> None:
    """`atomic_write_bytes` for UTF-8 text."""
    atomic_write_bytes(path, text.encode(), mode=mode)


def atomic_write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as indented JSON."""
    text = json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    atomic_write_text(path, text + "\n")


def atomic_write_toml(path: Path, tables: Mapping[str, Any]) -> None:
    """Replace `path` by `tables` as TOML, which has no null: leave such keys out."""
    import tomli_w

    atomic_write_text(path, tomli_w.dumps(tables))


def read_json(path: Path) -> Any:
    """The JSON value in a file."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_record(path: Path, shape: type[msgspec.Struct]) -> dict[str, Any]:
    """The JSON object in a file, whose known fields are those of `shape`; there may be others.

    Raises InputError when it is damaged, and OSError when it cannot be read.
    """
    data = path.read_bytes()
    try:
        msgspec.json.decode(data, type=shape)
        record: dict[str, Any] = json.loads(data)
        left: list[tuple[Any, int]] = [(record, 0)]
        while left:
            value, depth = left.pop()
            if depth > _DEEPEST:
                raise ValueError("its values are nested too deep")
            if isinstance(value, dict):
                left += [(part, depth + 1) for item in value.items() for part in item]
            elif isinstance(value, list):
                left += [(item, depth + 1) for item in value]
            elif isinstance(value, str):
                value.encode()
    except UnicodeError:
        raise InputError(f"{path} is damaged: it is not text in UTF-8") from None
    except RecursionError:
        raise InputError(f"{path} is damaged: its values are nested too deep") from None
    except ValueError as error:
        reason = str(error) if data.strip() else "it is empty"
        raise InputError(f"{path} is damaged: {reason}") from None
    return record


def sync_folder(folder: Path) -> None:
    """Make names created or renamed in a folder durable, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def json_line(row: Mapping[str, Any]) -> str:
    """One row as one line of JSON, without the newline; non-finite numbers become null."""
    return json.dumps(_plain(row), ensure_ascii=False, allow_nan=False, separators=(", ", ": "))


def append_jsonl(path: Path, rows: Mapping[str, Any] | Iterable[Mapping[str, Any]]) -> None:
    """Append one row, or several, each as one whole line.

    A line that an earlier, killed writer left torn is removed first, so that it can never run
    into the new one.
    """
    rows = [rows] if isinstance(rows, Mapping) else list(rows)
    if not rows:
        return
    data = "".join(json_line(row) + "\n" for row in rows).encode()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        _mend_last_line(descriptor)
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
    finally:
        os.close(descriptor)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All whole rows of a JSONL file; a torn last line is ignored, a missing file is empty."""
    return list(iter_jsonl(path))


def iter_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """As `read_jsonl`, one row at a time."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                if not line.endswith(b"\n"):
                    return
                raise InputError(f"{path}: line {number} is not JSON: {error}") from error
            if isinstance(row, dict):
                yield row


def count_lines(path: Path, limit: int) -> int:
    """Whole lines of a file, at most `limit`; 0 without the file."""
    return _lines(path, limit)[0]


def keep_lines(path: Path, count: int) -> None:
    """Cut a file after its first `count` whole lines; a missing file stays missing."""
    size = _lines(path, count)[1]
    if path.exists() and path.stat().st_size != size:
        os.truncate(path, size)


def sync_file(path: Path) -> None:
    """Make what was written to a file durable; nothing without the file."""
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_left_overs(*folders: Path) -> None:
    """Remove what writers that were killed have left aside in these folders.

    Only for the process that holds the lock: a living writer's files look the same.
    """
    for folder in folders:
        for path in folder.glob(".*.tmp"):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def evaluation_files(run_dir: Path) -> dict[int, Path]:
    """A run's `evaluation/step_NNNNNN.json` by step, in order of the steps."""
    folder = run_dir / EVALUATION_FOLDER
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries]
    except OSError:
        return {}
    found: dict[int, Path] = {}
    for name in names:
        digits = name.removeprefix("step_").removesuffix(".json")
        if digits.isdecimal() and name == f"step_{digits}.json":
            found[int(digits)] = folder / name
    return dict(sorted(found.items()))


def create_timestamped_folder(parent: Path, prefix: str) -> Path:
    """Make `<parent>/<prefix>_<YYYYMMDD_HHMMSS>`, with `_2`, `_3`, … when it is taken.

    The folder is this caller's alone: of two processes in the same second each gets its own.
    """
    parent.mkdir(parents=True, exist_ok=True)
    base = f"{prefix}_{time.strftime('%Y%m%d_%H%M%S')}"
    number = 1
    while True:
        folder = parent / (base if number == 1 else f"{base}_{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
            continue
        return folder


@cache
def library_versions() -> dict[str, str]:
    """Versions of what a run's numbers depend on, read without importing any of it."""
    versions = {"retrain": __version__, "python": platform.python_version()}
    for name in ("torch", "transformers", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


class _Change(msgspec.Struct):
    key: str
    step: int
    before: Any
    now: Any


class _Run(msgspec.Struct):
    """What readers of `run.json` rely on."""

    name: str
    condition: str
    seed: int
    status: RunStatus
    message: str
    step: int
    attempts: int
    changes: list[_Change]
    result: dict[str, Any] | None
    cause: str | None = None
    contents: dict[str, str] | None = None
    place: str | None = None


class RunRecord:
    """`run.json`: what a run is, how far it is, and how it ended.

    One process writes it at a time: the campaign until a worker takes the run, then the
    worker, and the campaign again when the worker is gone.
    """

    def __init__(self, run_dir: Path, data: dict[str, Any]) -> None:
        self.run_dir = run_dir
        self.data = data

    @classmethod
    def create(
        cls, run_dir: Path, *, name: str, condition: str, seed: int, max_steps: int, **fields: Any
    ) -> Self:
        """Write a fresh `pending` record, making the folder when it is missing."""
        run_dir.mkdir(parents=True, exist_ok=True)
        record = cls(
            run_dir,
            {
                "name": name,
                "condition": condition,
                "seed": seed,
                "status": "pending",
                "message": "",
                "cause": None,
                "attempts": 0,
                "resumed_from": None,
                "changes": [],
                "contents": {},
                "started_at": None,
                "updated_at": None,
                "finished_at": None,
                "step": 0,
                "max_steps": max_steps,
                "versions": library_versions(),
                "device": None,
                "threads": None,
                "unadapted_experts": None,
                "result": None,
            },
        )
        record.update(**fields)
        return record

    @classmethod
    def read(cls, run_dir: Path) -> Self:
        """The record of an existing run. Raises InputError when it is missing or damaged."""
        try:
            return cls(run_dir, read_record(run_dir / RUN_FILE, _Run))
        except FileNotFoundError:
            raise InputError(f"{run_dir} holds no run: {RUN_FILE} is missing") from None

    @staticmethod
    def exists(run_dir: Path) -> bool:
        """Whether the folder already holds a run."""
        return (run_dir / RUN_FILE).exists()

    @property
    def status(self) -> str:
        return str(self.data["status"])

    @property
    def is_final(self) -> bool:
        return self.status in FINAL_STATUSES

    @property
    def contents(self) -> dict[str, str]:
        """`retrain.training.contents` that the run was planned or last trained with; empty for one
        that is older than these."""
        return dict(self.data.get("contents") or {})

    def is_trained(self, max_steps: int) -> bool:
        """Whether there is nothing left to train: all steps are done, or the run has diverged."""
        done = self.status == "done" and int(self.data["step"]) >= max_steps
        return done or self.status == "diverged"

    def update(self, **fields: Any) -> None:
        """Change fields and replace the file.

        A status brings its moments along: `running` fills the process, started_at and clears what
        an earlier attempt left; a final one fills finished_at.
        """
        status = fields.get("status")
        if status is not None and status not in get_args(RunStatus):
            raise ValueError(f"unknown run status {status!r}")
        now = utc_now()
        if status == "running":
            fields = {
                **ProcessId.own().fields(),
                "started_at": now,
                "finished_at": None,
                "message": "",
                "cause": None,
                "result": None,
                **fields,
            }
        elif status in FINAL_STATUSES:
            fields = {"finished_at": now, **fields}
        self.data.update(fields, updated_at=now)
        atomic_write_json(self.run_dir / RUN_FILE, self.data)


def lfs_pointer(path: Path) -> str:
    """What is wrong with a file when Git LFS has put its pointer there; empty for any other."""
    head = b"version https://git-lfs"
    with contextlib.suppress(OSError), path.open("rb") as file:
        if file.read(len(head)) == head:
            return (
                f"{path} is Git LFS's pointer to the file and not the file: run `git lfs pull` in "
                "its repository, or download it"
            )
    return ""


def _lines(path: Path, limit: int) -> tuple[int, int]:
    """(whole lines, bytes of them), of the first `limit` lines."""
    count = size = 0
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return 0, 0
    with file:
        while count < limit and (line := file.readline()).endswith(b"\n"):
            count += 1
            size += len(line)
    return count, size


def _mend_last_line(descriptor: int) -> None:
    size = os.lseek(descriptor, 0, os.SEEK_END)
    if size == 0 or os.pread(descriptor, 1, size - 1) == b"\n":
        return
    start, tail = size, b""
    while start > 0 and b"\n" not in tail:
        length = min(start, 1 << 16)
        start -= length
        tail = os.pread(descriptor, length, start) + tail
    line = tail.rsplit(b"\n", 1)[-1]
    try:
        json.loads(line)
    except ValueError:
        os.ftruncate(descriptor, size - len(line))
    else:
        os.write(descriptor, b"\n")


def _plain(value: Any) -> Any:
    """Values that JSON can hold: numpy scalars unwrapped, non-finite floats as None."""
    if isinstance(value, str | bool | int | None):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if hasattr(value, "isoformat"):
        return value.isoformat()
    raise TypeError(f"cannot write {type(value).__name__} as JSON: {value!r}")
