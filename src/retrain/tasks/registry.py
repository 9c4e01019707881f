"""From `[data]` to a task."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from retrain.config.data import DataConfig
from retrain.errors import InputError
from retrain.plugins import PluginError, Registry, call, positional_arguments
from retrain.tasks.arithmetic import ArithmeticTask
from retrain.tasks.problems import ProblemListTask, split_by_id
from retrain.tasks.prompts import AddressedTask, CountTokens, addressed, fitting
from retrain.tasks.task import Task
from retrain.types import Problem

_log = logging.getLogger("retrain")


def _arithmetic(data: DataConfig) -> Task:
    """Embedded: sums and products of small numbers, endless, split by a hash."""
    del data
    return ArithmeticTask()


def _math(data: DataConfig) -> Task:
    """MATH (EleutherAI/hendrycks_math) from the hub: the subjects you name, and its test split."""
    from retrain.tasks.hendrycks import read_hendrycks_task

    return read_hendrycks_task(data)


def _jsonl(data: DataConfig) -> Task:
    """A file: one JSON object a line with `prompt` and `answer`, or the fields you name."""
    from retrain.tasks.files import read_file_task

    return read_file_task(data)


def _parquet(data: DataConfig) -> Task:
    """A parquet file: one problem a row, with `prompt` and `answer`, or the fields you name."""
    from retrain.tasks.files import read_file_task

    return read_file_task(data)


def _hub(data: DataConfig) -> Task:
    """Any data set of the Hugging Face hub, or a local copy of one, with the fields you name."""
    from retrain.tasks.hub import read_hub_task

    return read_hub_task(data)


TASKS: Registry[Any] = Registry(
    "source", arithmetic=_arithmetic, math=_math, jsonl=_jsonl, parquet=_parquet, hub=_hub
)


def build_task(
    data: DataConfig,
    search_paths: Sequence[str | Path] = (),
    prompt_tokens: CountTokens | None = None,
    context: int | None = None,
) -> Task:
    """The task that `[data].source` names, as far as it fits; see `load_task` and `fit_task`."""
    return fit_task(load_task(data, search_paths), data, prompt_tokens, context)


def load_task(data: DataConfig, search_paths: Sequence[str | Path] = ()) -> Task:
    """The task that `[data].source` names. Raises InputError with the key and the remedy.

    A data set that is not on this machine is downloaded. A dotted path names a function that takes
    the `[data]` table (or nothing) and returns a task or a list of problems; of a list, a tenth is
    held out by a hash of the id.
    """
    try:
        make = TASKS.find(data.source, search_paths)
        if data.source in TASKS:
            _download(data)
            made: Any = make(data)
        else:
            wanted = positional_arguments(make, data.source)
            made = _checked(call(data.source, make, *([data] if wanted else [])), data)
    except PluginError as error:
        raise InputError(f"data.source: {error}") from error
    system_prompt, instruction = data.system_prompt, instruction_of(data)
    if not isinstance(made, ProblemListTask):
        if data.max_prompt_tokens and data.source not in TASKS:
            raise InputError(
                f"data.max_prompt_tokens: {data.source} is a task of its own and not a list of "
                "problems, of which some could be left out; leave them out there"
            )
        changes = system_prompt or instruction
        return AddressedTask(made, system_prompt, instruction) if changes else cast(Task, made)
    if system_prompt or instruction:
        return made.changed(lambda problem: addressed(problem, system_prompt, instruction))
    return made


def fit_task(
    task: Task, data: DataConfig, prompt_tokens: CountTokens | None, context: int | None
) -> Task:
    """The task without what does not fit. Raises InputError with the key and the remedy.

    prompt_tokens: counts the tokens of prompts; every prompt of a finite task is then measured
                   against `[data].max_prompt_tokens` and against `context`, the model's.
    """
    if not isinstance(task, ProblemListTask):
        return task
    if prompt_tokens is not None:
        task = fitting(task, data, prompt_tokens, context)
    return task.first(data.max_examples) if data.max_examples else task


def instruction_of(data: DataConfig) -> str:
    """`[data].instruction`, or what the source has in its place; empty for none."""
    if data.instruction is not None:
        return data.instruction
    if data.source == "math":
        from retrain.tasks.hendrycks import INSTRUCTION

        return INSTRUCTION
    return ""


def _download(data: DataConfig) -> None:
    from retrain.tasks.download import fetch_missing

    fetch_missing([data], _log.warning)


def _checked(made: Any, data: DataConfig) -> Any:
    if isinstance(made, Sequence) and made and all(isinstance(p, Problem) for p in made):
        train, held_out = split_by_id(made)
        if len({problem.id for problem in made}) != len(made):
            raise InputError(f"data.source: {data.source} returned two problems with one id")
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
    return made
