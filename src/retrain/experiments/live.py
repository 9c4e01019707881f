"""What the terminal shows while runs train: a live view, or plain lines where there is none."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from retrain.analysis.words import duration, percent, plural
from retrain.experiments.executors.executor import (
    Cancelled,
    Event,
    Failed,
    Finished,
    Interrupted,
    Row,
    Started,
    Warned,
)

PLAIN_SHARE = 0.05
"""A plain line of progress each time so much more of all steps is done."""

SHOWN_FAILURES = 3

State = Literal["waiting", "running", "done", "failed", "diverged", "stopped", "dropped"]


class _Shown(logging.Handler):
    def __init__(self, show: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._show = show

    def emit(self, record: logging.LogRecord) -> None:
        self._show(record.getMessage())


@contextmanager
def warnings_shown(show: Callable[[str], None]) -> Iterator[None]:
    """retrain's own warnings in this process are given to `show`, whatever thread they are from."""
    logger, handler = logging.getLogger("retrain"), _Shown(show)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@dataclass
class RunProgress:
    """How far one run is, as its events tell."""

    name: str
    max_steps: int
    state: State = "waiting"
    step: int = 0
    mean_reward: float | None = None
    correct_rate: float | None = None
    held_out_accuracy: float | None = None
    started_at: float = 0.0
    ended_at: float | None = None
    message: str = ""

    def elapsed(self, now: float) -> float:
        if self.state == "waiting":
            return 0.0
        return (now if self.ended_at is None else self.ended_at) - self.started_at

    @property
    def settled_steps(self) -> int:
        """Steps that need no more waiting for: all those of a run that ended by itself."""
        over = {"done", "failed", "diverged", "dropped"}
        return self.max_steps if self.state in over else self.step


class RunsView:
    """Shows runs as they train; a context manager that is fed with events.

    runs:    (name, max_steps) of each, in the order in which they start.
    workers: how many train at the same time.
    title:   what all of it is called.
    note:    said once, at the start.
    """

    def __init__(
        self,
        console: Console,
        runs: Sequence[tuple[str, int]],
        *,
        workers: int = 1,
        title: str = "",
        note: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._runs = {name: RunProgress(name, max_steps) for name, max_steps in runs}
        self._workers = workers
        self._title = title
        self._note = note
        self._clock = clock
        self._started_at = clock()
        self._told_share = 0.0
        self._told_warnings: set[str] = set()
        self._told_failures: dict[str, str] = {}
        self._live: Live | None = None

    def __enter__(self) -> Self:
        self._started_at = self._clock()
        if self._console.is_terminal:
            self._live = Live(
                console=self._console,
                get_renderable=self._render,
                refresh_per_second=4,
                transient=True,
                vertical_overflow="crop",
            )
            self._live.start()
        else:
            steps = sum(run.max_steps for run in self._runs.values())
            self.say(
                f"{self._title}: {plural(len(self._runs), 'run')}, {plural(steps, 'step')}, "
                f"{plural(self._workers, 'worker')}"
            )
        if self._note:
            self.say(self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, message: str, style: str = "") -> None:
        """A line that stays: above the live view, or among the plain lines."""
        self._console.print(Text(message, style=style), soft_wrap=True)

    def retry(self, run: str, message: str) -> None:
        """The run failed and waits to be tried again."""
        self._runs[run].state = "waiting"
        self.say(f"{run} will be tried again: {self._once(run, message)}", "yellow")

    def handle(self, event: Event) -> None:
        """Take in what happened, and show it."""
        run = self._runs[event.run]
        if isinstance(event, Row):
            self._take_row(run, event)
        elif isinstance(event, Warned):
            self._warn(run, event.message)
        elif isinstance(event, Started):
            run.state, run.started_at, run.step = "running", self._clock(), 0
        elif isinstance(event, Finished):
            self._end(run, "diverged" if event.status == "diverged" else "done", event.message)
            self._tell_finished(run, event)
        elif isinstance(event, Failed):
            self._end(run, "failed", event.message)
            message = self._once(run.name, event.message)
            self.say(f"{self._count()} {run.name} failed: {message}", "red")
        elif isinstance(event, Interrupted) and event.started:
            self._end(run, "stopped")
        elif isinstance(event, Cancelled):
            self._end(run, "dropped")

    def _once(self, run: str, message: str) -> str:
        """Why a run failed; of another that failed for the same reason before, only its name."""
        first = self._told_failures.setdefault(message, run)
        return message if first == run else f"as {first}"

    def _warn(self, run: RunProgress, message: str) -> None:
        """Each warning once: what is wrong with one run is often wrong with all of them."""
        text = message.removeprefix(run.name).lstrip(":, ")
        if text not in self._told_warnings:
            self._told_warnings.add(text)
            self.say(f"warning: {run.name}: {text}", "yellow")

    def _take_row(self, run: RunProgress, row: Row) -> None:
        run.step = row.step + 1
        run.mean_reward = row.mean_reward
        run.correct_rate = row.correct_rate
        if row.held_out_accuracy is not None:
            run.held_out_accuracy = row.held_out_accuracy
        share = self._share()
        if not self._console.is_terminal and share >= self._told_share + PLAIN_SHARE:
            self._told_share = share
            self.say(
                f"{percent(share):>6} {run.name} step {run.step}/{run.max_steps}"
                f"{_measured(run)}{self._eta(', about {} left')}"
            )

    def _end(self, run: RunProgress, state: State, message: str = "") -> None:
        if run.state == "waiting":
            run.started_at = self._clock()
        run.state, run.message, run.ended_at = state, message, self._clock()

    def _tell_finished(self, run: RunProgress, event: Finished) -> None:
        if run.state == "diverged":
            self.say(f"{self._count()} {run.name} diverged: {run.message}", "red")
        elif not self._console.is_terminal:
            before, after = (event.result.get(f"accuracy_{when}") for when in ("before", "after"))
            accuracy = f": held-out accuracy {percent(before, '?')} -> {percent(after, '?')}"
            spent = duration(run.elapsed(self._clock()))
            known = accuracy if after is not None else ""
            self.say(f"{self._count()} {run.name} done{known} in {spent}")

    def _of(self, *states: State) -> list[RunProgress]:
        return [run for run in self._runs.values() if run.state in states]

    def _count(self) -> str:
        ended = len(self._runs) - len(self._of("waiting", "running"))
        return f"[{ended:>{len(str(len(self._runs)))}}/{len(self._runs)}]"

    def _share(self) -> float:
        total = sum(run.max_steps for run in self._runs.values())
        return sum(run.settled_steps for run in self._runs.values()) / total

    def _seconds_a_step(self) -> float | None:
        """Over all runs, with what is not a step (loading, evaluation) spread over the steps."""
        now = self._clock()
        steps = sum(run.step for run in self._runs.values())
        seconds = sum(run.elapsed(now) for run in self._runs.values() if run.step)
        return seconds / steps if steps else None

    def _seconds_left(self) -> float | None:
        pace = self._seconds_a_step()
        if pace is None:
            return None
        left = [run.max_steps - run.step for run in self._of("waiting", "running")]
        if not sum(left):
            return None
        # The longest run bounds the end when there are more workers than runs left.
        return pace * max(sum(left) / self._workers, max(left, default=0))

    def _eta(self, template: str) -> str:
        left = self._seconds_left()
        return "" if left is None else template.format(duration(left))

    def _render(self) -> RenderableType:
        parts: list[RenderableType] = [self._headline(), self._bar()]
        running, failures = self._of("running"), self._of("failed", "diverged")
        room = self._console.size.height - 6
        if failures:
            room -= min(len(failures), SHOWN_FAILURES) + 1
        if running:
            parts.append(self._table(running[: max(1, room)]))
        if len(running) > max(1, room):
            parts.append(Text(f"and {len(running) - max(1, room)} more running", style="dim"))
        for run in failures[-SHOWN_FAILURES:]:
            line = Text(f"{run.state} {run.name}: {run.message}", style="red", no_wrap=True)
            line.overflow = "ellipsis"
            parts.append(line)
        return Group(*parts)

    def _headline(self) -> Text:
        counts = [f"{len(self._of('done'))} of {plural(len(self._runs), 'run')} done"]
        states: tuple[State, ...] = (
            *("running", "waiting", "failed", "diverged", "stopped", "dropped"),
        )
        counts += [f"{len(runs)} {state}" for state in states if (runs := self._of(state))]
        line = Text(f"{self._title}  ", style="bold", no_wrap=True, overflow="ellipsis")
        return line.append(", ".join(counts), style="not bold")

    def _bar(self) -> RenderableType:
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.add_column(ratio=1)
        grid.add_column(justify="right", no_wrap=True)
        share = self._share()
        spent = duration(self._clock() - self._started_at)
        numbers = f"{percent(share)}, {spent}{self._eta(', about {} left')}"
        bar = ProgressBar(
            total=1.0, completed=share, complete_style="green", finished_style="green"
        )
        grid.add_row(bar, numbers)
        return grid

    def _table(self, runs: Sequence[RunProgress]) -> Table:
        table = Table(box=None, padding=(0, 1), expand=True, pad_edge=False)
        table.add_column("running", ratio=1, no_wrap=True, overflow="ellipsis")
        for title in ("step", "reward", "correct", "held-out", "left"):
            table.add_column(title, justify="right", no_wrap=True)
        now = self._clock()
        for run in runs:
            left = "" if not run.step else duration(self._run_left(run, now))
            reward = "" if run.mean_reward is None else f"{run.mean_reward:.3g}"
            table.add_row(
                Text(run.name),
                f"{run.step}/{run.max_steps}",
                reward,
                percent(run.correct_rate),
                percent(run.held_out_accuracy),
                left,
            )
        return table

    @staticmethod
    def _run_left(run: RunProgress, now: float) -> float:
        return run.elapsed(now) / run.step * (run.max_steps - run.step)


def _measured(run: RunProgress) -> str:
    parts = []
    if run.mean_reward is not None:
        parts.append(f", reward {run.mean_reward:.3g}")
    if run.correct_rate is not None:
        parts.append(f", correct {percent(run.correct_rate)}")
    if run.held_out_accuracy is not None:
        parts.append(f", held-out {percent(run.held_out_accuracy)}")
    return "".join(parts)
