"""The numbers of a run by step, as columns, read again only where a file has grown."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from retrain.analysis.reading import number, parse_object
from retrain.analysis.records import RunView
from retrain.files import EVALUATION_FOLDER, evaluation_files

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

# fmt: off
COLUMNS = (
    "mean_reward", "correct_rate", "unverifiable_rate", "batch_size", "num_datums",
    "informative_groups", "groups_all_correct", "groups_all_wrong", "groups_other",
    "max_token_hit_rate", "mean_completion_tokens", "tokens", "exec_uncertainty_mean",
    "planning_fraction", "sepa_lambda", "advantage_abs_mean", "loss", "grad_norm", "ratio_mean",
    "clip_fraction", "kl_to_sampler", "kl_to_base", "lr", "step_time_s", "sample_time_s",
    "reward_time_s", "update_time_s", "evaluation_time_s", "peak_memory_mb",
    "held_out_accuracy", "held_out_greedy_accuracy",
)
# fmt: on
"""Keys of `metrics.jsonl` (docs/files.md) that a series has."""

LEARNT = (
    *("mean_reward", "correct_rate", "tokens", "num_datums"),
    *("held_out_accuracy", "held_out_greedy_accuracy"),
)
"""Those of them that are the same in every step only of runs that learn the same."""

ROUNDING = 1e-4
"""By which share the norms of one gradient differ at most, whatever the order of its sums."""

BLOCK = 1 << 23
"""Bytes parsed at a time."""
MARK = 2048
"""Bytes before the place where reading stopped, by which that place is known again. Rows hold
times, so a row that was trained anew is never the same."""
LAST_STEP = 2**53
"""No step from here on can be told from its neighbours."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One held-out evaluation of a run."""

    step: int
    """Updates behind the policy that was measured; 0 is before training."""
    accuracy: float | None
    greedy_accuracy: float | None
    tokens: float
    """Completion tokens of training spent until then."""
    seconds: float
    """Seconds of training until then: the sum of `step_time_s`."""


@dataclass(frozen=True, slots=True)
class RunSeries:
    """The rows of a `metrics.jsonl` as columns; n rows, ascending by step, one a step."""

    step: IntArray
    """(n,) the row's step, from 0."""
    values: Mapping[str, FloatArray]
    """For each of `COLUMNS`: (n,), NaN where a row has no number."""
    tokens: FloatArray
    """(n,) completion tokens spent up to and including the row; a row without any adds none."""
    seconds: FloatArray
    """(n,) likewise the seconds of `step_time_s`."""
    evaluations: tuple[Evaluation, ...]
    """Ascending by step."""

    def learnt_as(self, other: RunSeries) -> bool:
        """Whether every step of both had the same rewards and, but for rounding, one gradient."""
        measured = not np.isnan(self.values["mean_reward"]).all()
        if not measured or not np.array_equal(self.step, other.step):
            return False
        same = all(
            np.array_equal(self.values[key], other.values[key], equal_nan=True) for key in LEARNT
        )
        norms = self.values["grad_norm"], other.values["grad_norm"]
        return same and np.allclose(*norms, rtol=ROUNDING, atol=0.0, equal_nan=True)


class SeriesReader:
    """Reads the series of runs and remembers how far each file was read.

    A second call for the same run parses only what was appended since. A file that was replaced
    or cut, as a resumed run cuts it back to its checkpoint, is read anew.
    """

    def __init__(self) -> None:
        self._files: dict[Path, _File] = {}

    def read(self, run: RunView) -> RunSeries:
        """The run's series as its files tell now.

        Nothing is raised for what a file holds: damaged lines are passed over, a half-written
        last line is left for the next call, and of several rows of one step the last counts.
        Without a file the series is empty.

        An evaluation is taken from its row (`held_out_accuracy`), else from
        `evaluation/step_NNNNNN.json`, else, before training, from the run's result.
        """
        file = self._files.setdefault(run.folder, _File())
        changed = file.update(run.metrics)
        before = (run.result.accuracy_before, run.result.greedy_before)
        folder_at = _modified_ns(run.folder / EVALUATION_FOLDER)
        if file.series is None or changed or (before, folder_at) != (file.before, file.folder_at):
            file.before, file.folder_at = before, folder_at
            file.series = _series(file, run)
        return file.series


_FIELDS = ("step", *COLUMNS)
_DECODER: msgspec.json.Decoder[Any] = msgspec.json.Decoder(
    msgspec.defstruct("_Row", [(name, float | None, None) for name in _FIELDS], gc=False)
)
_values_of = attrgetter(*_FIELDS)


@dataclass(slots=True)
class _File:
    """What is known of one `metrics.jsonl` and the evaluations beside it."""

    identity: tuple[int, int] | None = None
    """Device and inode."""
    state: tuple[int, int] = (0, 0)
    """Size and moment of the last change when it was read."""
    offset: int = 0
    """Bytes that are parsed."""
    mark: bytes = b""
    """The last of them."""
    rows: FloatArray = field(default_factory=lambda: np.empty((len(_FIELDS), 0)))
    """(fields, rows), ascending by step."""
    measured: dict[int, tuple[float | None, float | None]] = field(default_factory=dict)
    """Accuracies from evaluation files, by step."""
    before: tuple[float | None, float | None] = (None, None)
    folder_at: int = 0
    series: RunSeries | None = None

    def update(self, path: Path) -> bool:
        """Read what is new; False when the file is as it was."""
        try:
            with path.open("rb", buffering=0) as file:
                status = os.fstat(file.fileno())
                identity = (status.st_dev, status.st_ino)
                state = (status.st_size, status.st_mtime_ns)
                if (identity, state) == (self.identity, self.state):
                    return False
                file.seek(self.offset - len(self.mark))
                if identity != self.identity or file.read(len(self.mark)) != self.mark:
                    self._forget()
                    file.seek(0)
                self.identity, self.state = identity, state
                blocks: list[FloatArray] = []
                rest = b""
                while data := file.read(BLOCK):
                    data = rest + data
                    end = data.rfind(b"\n") + 1
                    whole, rest = data[:end], data[end:]
                    if whole:
                        self._passed(whole)
                        blocks.append(_parse(whole))
        except OSError:
            existed = self.identity is not None
            self._forget()
            return existed
        # A last row that only lacks its newline is whole: a closed object cannot go on.
        if rest and parse_object(rest) is not None:
            self._passed(rest)
            blocks.append(_parse(rest))
        self.rows = _in_order(np.concatenate([self.rows, *blocks], axis=1))
        return True

    def _passed(self, data: bytes) -> None:
        self.offset += len(data)
        self.mark = (self.mark + data[-MARK:])[-MARK:]

    def _forget(self) -> None:
        self.identity, self.state, self.offset, self.mark = None, (0, 0), 0, b""
        self.rows = np.empty((len(_FIELDS), 0))
        self.measured = {}


def _parse(lines: bytes) -> FloatArray:
    """(fields, rows) of whole lines; those that are no object with a step are left out."""
    rows: list[tuple[float | None, ...]] = []
    with suppress(ValueError, RecursionError):
        rows = [_values_of(row) for row in _DECODER.decode_lines(lines)]
    # The decoder cares little for where lines end: what is not a row a line is looked at closely.
    if len(rows) != lines.count(b"\n") + (not lines.endswith(b"\n")):
        rows = [row for line in lines.split(b"\n") if (row := _parse_line(line)) is not None]
    found_NK: FloatArray = np.array(rows, dtype=np.float64).reshape(-1, len(_FIELDS))
    step_N = found_NK[:, 0]
    is_step_N = (step_N >= 0) & (step_N < LAST_STEP) & (np.floor(step_N) == step_N)
    return np.transpose(found_NK[is_step_N])


def _parse_line(line: bytes) -> tuple[float | None, ...] | None:
    """The same of a line that may be damaged, or hold values of other kinds."""
    row = parse_object(line)
    return None if row is None else tuple(number(row, name) for name in _FIELDS)


def _in_order(rows_KN: FloatArray) -> FloatArray:
    step_N = rows_KN[0]
    if (np.diff(step_N) > 0).all():
        return np.ascontiguousarray(rows_KN)
    _, newest = np.unique(step_N[::-1], return_index=True)
    return np.ascontiguousarray(rows_KN[:, step_N.size - 1 - newest])


def _series(file: _File, run: RunView) -> RunSeries:
    step = file.rows[0].astype(np.int64)
    values = dict(zip(COLUMNS, file.rows[1:], strict=True))
    tokens = np.nancumsum(values["tokens"])
    seconds = np.nancumsum(values["step_time_s"])
    accuracy, greedy = values["held_out_accuracy"], values["held_out_greedy_accuracy"]
    measured: dict[int, tuple[float | None, float | None]] = {
        int(step[row]) + 1: (_known(accuracy[row]), _known(greedy[row]))
        for row in np.flatnonzero(~np.isnan(accuracy))
    }
    for at, path in evaluation_files(run.folder).items() if file.folder_at else ():
        if at in measured:
            continue
        if at not in file.measured and (found := _read_evaluation(path)) is not None:
            file.measured[at] = found
        if at in file.measured:
            measured[at] = file.measured[at]
    if 0 not in measured and file.before[0] is not None:
        measured[0] = file.before
    evaluations = []
    for at, (sampled, greedily) in sorted(measured.items()):
        rows = int(np.searchsorted(step, at))
        spent = (float(tokens[rows - 1]), float(seconds[rows - 1])) if rows else (0.0, 0.0)
        evaluations.append(Evaluation(at, sampled, greedily, *spent))
    return RunSeries(step, MappingProxyType(values), tokens, seconds, tuple(evaluations))


class _Accuracies(msgspec.Struct):
    accuracy: float | None = None
    greedy_accuracy: float | None = None


_ACCURACIES = msgspec.json.Decoder(_Accuracies)


def _read_evaluation(path: Path) -> tuple[float | None, float | None] | None:
    """Accuracy and greedy accuracy; the results of the problems are skipped, not parsed."""
    try:
        found = _ACCURACIES.decode(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return None if found.accuracy is None else (found.accuracy, found.greedy_accuracy)


def _known(value: np.float64) -> float | None:
    return None if np.isnan(value) else float(value)


def _modified_ns(path: Path) -> int:
    """0 without the file."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
