"""What `retrain score` does: ask a reward what it thinks of answers, those of a run among them.

A file is read twice: once for what is wrong with its rows, before anything is judged, and once row
by row, so that it may be larger than memory.
"""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.cells import set_cell_size
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from retrain.analysis.samples.look import one_line, shown_number
from retrain.analysis.words import percent, plural
from retrain.config.conditions import single
from retrain.config.load import Override, read_config, read_mapping
from retrain.config.messages import did_you_mean, show
from retrain.errors import ConfigError, ConfigIssue, InputError
from retrain.files import GENERATIONS_FILE
from retrain.rewards.match import final_answer, reference_of
from retrain.rewards.registry import build_reward
from retrain.rewards.reward import Reward
from retrain.tasks.fields import answer_text
from retrain.terminal import Terminal
from retrain.types import Completion, Problem, Score, StopReason

REFERENCE, RESPONSE = ("reference", "answer"), ("response", "completion")
"""Fields of a row: as this command calls them, and as a run writes them."""
AT_A_TIME = 512
"""Answers that are judged side by side."""
MOST_MISTAKES = 50
BAR_AFTER_S = 2.0
OUTCOMES = ("correct", "wrong", "unverifiable")

_TABLES = ("reward", "plugins", "logging")
_NOT_METADATA = frozenset({*REFERENCE, *RESPONSE, "prompt", "id", "domain", "metadata"})
_COLUMNS = (("   line", 7), ("outcome", 12), (" score", 6), ("reference", 22), ("answer", 30))


@dataclass(frozen=True, slots=True)
class Row:
    """A row to judge. before: the outcome that the file has for it already; else empty."""

    line: int
    problem: Problem
    completion: Completion
    before: str


class _BadRowError(Exception):
    """What is wrong with a row: all of it."""


def score_command(
    file: Path, *, kind: str | None = None, config: Path | None = None, as_json: bool = False
) -> None:
    """Judge the rows of `file`, a JSONL file or a run's folder, and print what comes out.

    kind: in place of `[reward].type` of `config`. Raises InputError for what is wrong with the
    reward, and with all rows together, before any is judged.
    """
    reward = _reward(kind, config)
    path = _file(file)
    totals = Totals()
    with _bar() as bar:
        # A run that trains writes on while its rows are read.
        count = _check(path)
        bar.update(bar.task_ids[0], description="judging", total=count)
        if not as_json:
            print(_line(*(name for name, _ in _COLUMNS), "why"))
        with reward:
            for row, score in judged(islice(rows(path), count), reward):
                bar.advance(bar.task_ids[0])
                totals.add(row, score)
                print(_json(row, score) if as_json else _shown(row, score))
    print(totals, file=sys.stderr if as_json else sys.stdout)


def _reward(kind: str | None, config: Path | None) -> Reward:
    """The reward that a run with this config would be judged by."""
    if kind is None and config is None:
        raise InputError("name the reward: --type math, or --config X.toml for its [reward]")
    options = [] if kind is None else [Override("reward", "type", kind, "--type")]
    reading = read_mapping({}, options) if config is None else read_config(config, options)
    # What is wrong with the training is no matter here.
    issues = [issue for issue in reading.issues if issue.key.partition(".")[0] in _TABLES]
    if issues and config is None and not any(issue.file for issue in issues):
        missing = ", ".join(issue.key for issue in issues)
        raise InputError(
            f"--type {kind} needs {missing}: write a [reward] and give --config X.toml"
        )
    if issues:
        raise ConfigError(issues)
    loaded = reading.loaded
    run = loaded.run_config(single(loaded.config), 0)
    return build_reward(run.reward, run.plugins.search_paths, run.logging.log_dir)


def _file(path: Path) -> Path:
    if path.is_dir():
        inside = path / GENERATIONS_FILE
        if inside.is_file():
            return inside
        runs = sorted(path.glob(f"runs/*/{GENERATIONS_FILE}"))
        hint = f"; give one of its runs, e.g. {runs[0].parents[1]}" if runs else ""
        raise InputError(f"{path} holds no {GENERATIONS_FILE}, as a run's folder does{hint}")
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    return path


def judged(rows: Iterator[Row], reward: Reward) -> Iterator[tuple[Row, Score | None]]:
    """Each row and its score, in order; None for what cannot be judged."""
    begun: deque[tuple[Row, Any]] = deque()
    for row in rows:
        begun.append((row, reward.begin(row.problem, row.completion)))
        if len(begun) == AT_A_TIME:
            first, wait = begun.popleft()
            yield first, wait()
    for first, wait in begun:
        yield first, wait()


def _check(path: Path) -> int:
    """How many good rows a file has. Raises ConfigError with all that is wrong."""
    issues: list[ConfigIssue] = []
    good = bad = 0
    for number, line in _lines(path):
        try:
            _row(number, line)
            good += 1
        except _BadRowError as error:
            bad += 1
            if bad <= MOST_MISTAKES:
                issues.append(ConfigIssue("", str(error), file=f"{path}, line {number}"))
    if bad > MOST_MISTAKES:
        message = f"{plural(bad - MOST_MISTAKES, 'other line')} of {path} are wrong as well"
        issues.append(ConfigIssue("", message))
    if issues:
        raise ConfigError(issues)
    if not good:
        raise InputError(f"{path} holds no row")
    return good


def rows(path: Path) -> Iterator[Row]:
    """The rows of a file that was checked, one at a time."""
    for number, line in _lines(path):
        yield _row(number, line)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number, line) of every line with something on it. What a run has half written is none."""
    is_written_on = path.parts[-2:] == tuple(GENERATIONS_FILE.split("/"))
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip() and (line.endswith(b"\n") or not is_written_on):
                yield number, line


def _row(number: int, line: bytes) -> Row:
    """Raises _BadRowError."""
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        if line.strip() in (b"{", b"["):
            raise _BadRowError("one JSON object a line is wanted, not one over many") from None
        raise _BadRowError(f"not JSON: {error}") from None
    if not isinstance(row, Mapping):
        raise _BadRowError(f"one JSON object a line is wanted, not {show(row)}")
    wrong: list[str] = []
    response = _field(row, RESPONSE, wrong)
    if response is not _MISSING and not isinstance(response, str):
        wrong.append(f"`response` must be text, not {show(response)}")
    reference = _field(row, REFERENCE, wrong)
    answer = answer_text(reference)
    if reference is not _MISSING and answer is None:
        wrong.append(f"`reference` must be text or a number, not {show(reference)}")
    prompt = row.get("prompt")
    messages = prompt if isinstance(prompt, list) else []
    is_prompt = prompt is None or isinstance(prompt, str | list)
    if not is_prompt or not all(map(_is_message, messages)):
        wanted = 'text or a list of messages {"role": "…", "content": "…"}'
        wrong.append(f"`prompt` must be {wanted}, not {show(prompt)}")
    own = row.get("metadata")
    if wrong:
        raise _BadRowError("; ".join(wrong))
    assert answer is not None
    problem = Problem(
        id=str(row.get("id", row.get("problem_id", f"line {number}"))),
        prompt=tuple(messages) or str(prompt or ""),
        answer=answer,
        domain=str(row.get("domain", "default")),
        metadata={
            **(own if isinstance(own, Mapping) else {}),
            **{name: value for name, value in row.items() if name not in _NOT_METADATA},
        },
    )
    stopped: StopReason = "length" if row.get("stop_reason") == "length" else "stop"
    nothing = np.zeros(0)
    completion = Completion(nothing.astype(np.int64), nothing, str(response), stopped)
    before = row.get("outcome")
    return Row(number, problem, completion, before if before in OUTCOMES else "")


_MISSING = object()


def _field(row: Mapping[str, Any], names: tuple[str, str], wrong: list[str]) -> Any:
    for name in names:
        if name in row:
            return row[name]
    wrong.append(f"`{names[0]}` is missing{did_you_mean(names[0], map(str, row))}")
    return _MISSING


def _is_message(value: Any) -> bool:
    fields = ("role", "content")
    return isinstance(value, Mapping) and all(isinstance(value.get(f), str) for f in fields)


@dataclass(slots=True)
class Totals:
    """changed: (outcome in the file, outcome now) of the rows in which they differ."""

    outcomes: Counter[str] = field(default_factory=Counter)
    changed: Counter[tuple[str, str]] = field(default_factory=Counter)
    reward: float = 0.0
    judged: int = 0

    def add(self, row: Row, score: Score | None) -> None:
        outcome = _outcome(score)
        self.outcomes[outcome] += 1
        if row.before not in ("", outcome):
            self.changed[row.before, outcome] += 1
        if score is not None:
            self.reward += score.reward
            self.judged += 1

    def __str__(self) -> str:
        count = self.outcomes.total()
        parts = [
            f"{self.outcomes[name]:,} {name} ({percent(self.outcomes[name] / count)})"
            for name in OUTCOMES
        ]
        mean = shown_number(self.reward / self.judged if self.judged else None)
        text = f"{count:,} {'row' if count == 1 else 'rows'}: {', '.join(parts)}; mean score {mean}"
        changed = [f"{n:,} {old} -> {new}" for (old, new), n in sorted(self.changed.items())]
        return text + (f"\nother than in the file: {', '.join(changed)}" if changed else "")


def _outcome(score: Score | None) -> str:
    return score.outcome if score else "unverifiable"


def _why(score: Score | None) -> str:
    return score.why if score else "no judgement is to be had; a run would leave it out"


def _json(row: Row, score: Score | None) -> str:
    named = {} if row.problem.id == f"line {row.line}" else {"id": row.problem.id}
    document = {
        "line": row.line,
        **named,
        "score": score.reward if score else None,
        "outcome": _outcome(score),
        "why": _why(score),
        **({"parts": dict(score.parts)} if score and score.parts else {}),
    }
    # ASCII: what a model wrote may hold what a terminal would obey.
    return json.dumps(document)


def _shown(row: Row, score: Score | None) -> str:
    response, width = row.completion.text, _COLUMNS[-1][1]
    return _line(
        f"{row.line:>7}",
        _outcome(score),
        f"{shown_number(score.reward if score else None):>6}",
        one_line(reference_of(row.problem)[: 4 * width]),
        one_line((final_answer(row.completion) or response[-width:])[: 4 * width]),
        one_line(_why(score)),
    )


def _line(*cells: str) -> str:
    """Cells cut and filled up to the widths of their columns; the last one as it is."""
    shown = [set_cell_size(cell, width) for cell, (_, width) in zip(cells, _COLUMNS, strict=False)]
    return "  ".join([*shown, cells[-1]]).rstrip()


@contextmanager
def _bar() -> Iterator[Progress]:
    """A bar on a terminal, once it has taken a while."""
    console = Terminal(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    bar = Progress(
        *columns,
        console=console,
        transient=True,
        disable=not console.is_terminal,
        # Rows that go to the same terminal are written above it.
        redirect_stdout=sys.stdout.isatty(),
    )
    bar.add_task("reading", total=None)
    timer = threading.Timer(BAR_AFTER_S, bar.start)
    timer.daemon = True
    timer.start()
    try:
        yield bar
    finally:
        timer.cancel()
        timer.join()
        bar.stop()
