"""What a campaign needs of whatever runs its workers: this machine, a cluster.

An executor owns the queue and the workers. The campaign submits runs, reads events, and writes
what they mean into the campaign's files; it never sees a process. A run submitted a second time
(a retry, a resume) is simply another job.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from retrain.policies.inference.endpoint import Endpoint


@dataclass(frozen=True, slots=True)
class Job:
    """One run to train, from wherever it stands. All that a worker needs to know stands in files
    it can reach, but for the server that was started for it."""

    name: str
    condition: str
    config: Path
    run_dir: Path
    endpoint: Endpoint | None = None


@dataclass(frozen=True, slots=True)
class Started:
    """A worker took the run."""

    run: str
    worker: int


MEASURES = ("mean_reward", "correct_rate", "held_out_accuracy", "step_time_s")
"""What of a row of `metrics.jsonl` is passed on, to be shown."""


@dataclass(frozen=True, slots=True)
class Row:
    """The run finished a step; numbers that the step did not measure are None."""

    run: str
    step: int
    mean_reward: float | None = None
    correct_rate: float | None = None
    held_out_accuracy: float | None = None
    step_time_s: float | None = None


@dataclass(frozen=True, slots=True)
class Warned:
    """Something the user should read now, and not only in `run.log`."""

    run: str
    message: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The run ended by itself; `status` is `done` or `diverged`."""

    run: str
    status: str
    message: str
    result: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Failed:
    """The run raised an error, or the worker that trained it is gone.

    `cause` is one of `retrain.causes`.
    """

    run: str
    cause: str
    message: str


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The run was stopped on request; it had begun when `started`."""

    run: str
    started: bool = True


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The run alone was ended on request, after its step; it had begun when `started`."""

    run: str
    started: bool = True


Event = Started | Row | Warned | Finished | Failed | Interrupted | Cancelled
ENDINGS = (Finished, Failed, Interrupted, Cancelled)


class Executor(Protocol):
    """Trains jobs, several at a time if it can. Every job ends in exactly one of `ENDINGS`."""

    @property
    def slots(self) -> int:
        """How many runs can train at the same time."""
        ...

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue runs; they start in this order as workers become free."""
        ...

    def poll(self, timeout: float) -> list[Event]:
        """What happened since the last call, in order; waits at most `timeout` seconds."""
        ...

    def cancel(self, names: Collection[str]) -> list[Event]:
        """Take these runs out of the queue, and end those that train after the step they are in.

        Returns the endings of those that waited; those that train end in a later `poll`, as
        `Cancelled`, or as they would have if that came first. Names of no such run do nothing.
        """
        ...

    def stop(self) -> list[Event]:
        """End all runs cleanly, by force where that fails, and return their last events.

        Once it returns, no worker is left.
        """
        ...

    def kill(self) -> None:
        """End all workers at once. Safe to call from a signal handler, and while stopping."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
