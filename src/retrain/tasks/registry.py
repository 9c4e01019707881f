"""From `[data]` to a task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from retrain.config.schema import DataConfig
from retrain.errors import InputError
from retrain.plugins import PluginError, Registry, call, positional_arguments
from retrain.tasks.arithmetic import ArithmeticTask
from retrain.tasks.problems import ProblemListTask, read_jsonl_task, split_by_id
from retrain.tasks.task import Task
from retrain.types import Problem


def _arithmetic(data: DataConfig) -> Task:
    """Embedded: sums and products of small numbers, endless, split by a hash."""
    del data
    return ArithmeticTask()


def _jsonl(data: DataConfig) -> Task:
    """A file: one JSON object a line with `prompt` and `answer`."""
    return read_jsonl_task(Path(data.path), data.max_examples, data.shuffle)


TASKS: Registry[Any] = Registry("source", arithmetic=_arithmetic, jsonl=_jsonl)


def build_task(data: DataConfig, search_paths: Sequence[str | Path] = ()) -> Task:
    """The task that `[data].source` names. Raises InputError with the key and the remedy.

    A dotted path names a function that takes the `[data]` table (or nothing) and returns a task
    or a list of problems; of a list, a tenth is held out by a hash of the id.
    """
    try:
        make = TASKS.find(data.source, search_paths)
        if data.source in TASKS:
            return cast(Task, make(data))
        wanted = positional_arguments(make, data.source)
        made = call(data.source, make, *([data] if wanted else []))
    except PluginError as error:
        raise InputError(f"data.source: {error}") from error
    return _checked(made, data)


def _checked(made: Any, data: DataConfig) -> Task:
    if isinstance(made, Sequence) and made and all(isinstance(p, Problem) for p in made):
        train, held_out = split_by_id(made)
        if len({problem.id for problem in made}) != len(made):
            raise InputError(f"data.source: {data.source} returned two problems with one id")
        if data.max_examples:
            train = train[: data.max_examples]
        return ProblemListTask(data.source, train, held_out, data.shuffle)
    if not all(callable(getattr(made, name, None)) for name in ("train_batch", "held_out")):
        raise InputError(
            f"data.source: {data.source} returned {type(made).__name__}; a task (an object with "
            "train_batch and held_out) or a list of retrain.types.Problem is wanted"
        )
    batch = made.train_batch(0, 0, 1)
    if len(batch) != 1 or not isinstance(batch[0], Problem):
        raise InputError(
            f"data.source: train_batch(seed=0, step=0, batch_size=1) of {data.source} returned "
            f"{batch!r}; a list of one retrain.types.Problem is wanted"
        )
    return cast(Task, made)
