"""Which completions to look at: filters, order, and how many.

Files are read row by row and only the chosen completions are kept, so that a campaign with
gigabytes of them can be looked at too.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from retrain.analysis.reading import iter_rows, last_rows, number
from retrain.analysis.records import RunView
from retrain.analysis.samples.sample import Sample, read_sample
from retrain.errors import InputError
from retrain.files import GENERATIONS_FILE

OUTCOMES = ("correct", "wrong", "unverifiable")


@dataclass(frozen=True, slots=True)
class Steps:
    """Steps from `first` to `last`, both included; negative ones count from the end."""

    first: int | None
    last: int | None

    @classmethod
    def parse(cls, value: str) -> Steps:
        """`7`, `10:20`, `100:`, `:20`, `-1` (the newest), `-5:`. Raises InputError."""
        match = re.fullmatch(r"\s*(-?\d+)?\s*(:)?\s*(-?\d+)?\s*", value, re.ASCII)
        if match is None or not (match[1] or match[3]) or (match[3] and not match[2]):
            raise InputError(
                f"--step {value}: write a step (7), a range (10:20, 100:, :20), or count from the "
                "end (-1 is the newest step, -5: the last five)"
            )
        first, last = (None if part is None else int(part) for part in (match[1], match[3]))
        return cls(first, last if match[2] else first)

    def holds(self, step: int, newest: int) -> bool:
        """Whether a step of a run is meant; `newest` is the run's newest."""
        first, last = (
            at + newest + 1 if at is not None and at < 0 else at for at in (self.first, self.last)
        )
        return (first is None or step >= first) and (last is None or step <= last)


@dataclass(frozen=True, slots=True)
class Selection:
    """What to show. Empty filters let everything pass.

    best, worst: so many completions by reward, then by advantage; None for the newest ones.
    limit:       how many of the newest ones.
    """

    steps: tuple[Steps, ...] = ()
    outcomes: frozenset[str] = frozenset()
    problems: frozenset[str] = frozenset()
    domains: frozenset[str] = frozenset()
    pattern: re.Pattern[str] | None = None
    best: int | None = None
    worst: int | None = None
    limit: int = 5

    def holds(self, sample: Sample, newest: int) -> bool:
        """Whether a completion passes the filters."""
        return (
            (not self.steps or any(steps.holds(sample.step, newest) for steps in self.steps))
            and (not self.outcomes or sample.outcome in self.outcomes)
            and (not self.problems or sample.problem_id in self.problems)
            and (not self.domains or sample.domain in self.domains)
            and (self.pattern is None or self.pattern.search(sample.completion) is not None)
        )

    @property
    def ranked(self) -> bool:
        return self.best is not None or self.worst is not None


@dataclass(slots=True)
class Seen:
    """What the files hold, before any filter; `matching` of them passed."""

    total: int = 0
    matching: int = 0
    steps: set[int] = field(default_factory=set)
    outcomes: set[str] = field(default_factory=set)
    domains: set[str] = field(default_factory=set)
    problems: set[str] = field(default_factory=set)

    def count(self, sample: Sample) -> None:
        self.total += 1
        self.steps.add(sample.step)
        self.outcomes.add(sample.outcome)
        self.domains.add(sample.domain)
        self.problems.add(sample.problem_id)


def pattern_of(value: str) -> re.Pattern[str]:
    """`--grep` compiled. Raises InputError for what is no regular expression."""
    try:
        return re.compile(value)
    except (re.error, RecursionError, OverflowError) as error:
        raise InputError(
            f"--grep {value}: not a regular expression: {error}; put a backslash before signs that "
            "are meant as they stand, such as \\( or \\\\boxed"
        ) from None


def choose(runs: Sequence[RunView], selection: Selection) -> tuple[list[Sample], Seen]:
    """The chosen completions in the order to show them in, and what there was to choose from.

    The newest step comes first; within a step, what different conditions wrote at the same place
    under the same seed stands together.
    """
    if not selection.ranked:
        return _first(runs, selection, selection.limit, _newest)
    chosen: list[Sample] = []
    seen = Seen()
    for count, order in ((selection.best, _best), (selection.worst, _worst)):
        if count is not None:
            found, seen = _first(runs, selection, count, order)
            chosen += [sample for sample in found if sample not in chosen]
    return chosen, seen


Key = tuple[Any, ...]


def _newest(sample: Sample) -> Key:
    return (-sample.step, sample.seed or 0, sample.place)


def _best(sample: Sample) -> Key:
    ranks = (_unknown_last(value, -1) for value in (sample.reward, sample.advantage))
    return (*ranks, *_newest(sample))


def _worst(sample: Sample) -> Key:
    ranks = (_unknown_last(value, 1) for value in (sample.reward, sample.advantage))
    return (*ranks, *_newest(sample))


def _unknown_last(value: float | None, sign: int) -> tuple[bool, float]:
    return (value is None, sign * (value or 0.0))


def _first(
    runs: Sequence[RunView], selection: Selection, count: int, order: Callable[[Sample], Key]
) -> tuple[list[Sample], Seen]:
    seen = Seen()
    # Stable: ties keep the order of the runs.
    return heapq.nsmallest(count, _matching(runs, selection, seen), key=order), seen


def _matching(runs: Sequence[RunView], selection: Selection, seen: Seen) -> Iterator[Sample]:
    for run in runs:
        path = run.folder / GENERATIONS_FILE
        rows, _ = last_rows(path, 1)
        newest = int(number(rows[0], "step") or 0) if rows else 0
        place, step = 0, None
        for row in iter_rows(path):
            place = place + 1 if row.get("step") == step else 0
            step = row.get("step")
            sample = read_sample(
                row, run=run.name, condition=run.condition, seed=run.seed, place=place
            )
            if sample is None:
                continue
            seen.count(sample)
            if selection.holds(sample, newest):
                seen.matching += 1
                yield sample
