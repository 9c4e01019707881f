"""From `[data]` to a task."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from retrain.config.data import DataConfig
from retrain.config.schema import RunConfig
from retrain.errors import InputError
from retrain.plugins import PluginError, Registry, call, positional_arguments
from retrain.tasks.arithmetic import ArithmeticTask
from retrain.tasks.problems import ProblemListTask, Wanted, split_by_id
from retrain.tasks.prompts import AddressedTask, CountTokens, addressed, fitting
from retrain.tasks.task import Task
from retrain.types import Problem

_log = logging.getLogger("retrain")


def _arithmetic(data: DataConfig, wanted: Wanted) -> Task:
    """Embedded: sums and products of small numbers, endless, split by a hash."""
    del data, wanted
    return ArithmeticTask()


def _math(data: DataConfig, wanted: Wanted) -> Task:
    """MATH (EleutherAI/hendrycks_math) from the hub: the subjects you name, and its test split."""
    del wanted
    from retrain.tasks.hendrycks import read_hendrycks_task

    return read_hendrycks_task(data)


def _jsonl(data: DataConfig, wanted: Wanted) -> Task:
    """A file: one JSON object a line with `prompt` and `answer`, or the fields you name."""
    from retrain.tasks.files import read_file_task

    return read_file_task(data, wanted)


def _parquet(data: DataConfig, wanted: Wanted) -> Task:
    """A parquet file: one problem a row, with `prompt` and `answer`, or the fields you name."""
    from retrain.tasks.files import read_file_task

    return read_file_task(data, wanted)


def _hub(data: DataConfig, wanted: Wanted) -> Task:
    """Any data set of the Hugging Face hub, or a local copy of one, with the fields you name."""
    from retrain.tasks.hub import read_hub_task

    return read_hub_task(data, wanted)


TASKS: Registry[Any] = Registry(
    "source", arithmetic=_arithmetic, math=_math, jsonl=_jsonl, parquet=_parquet, hub=_hub
)


def task_of(
    run: RunConfig,
    prompt_tokens: CountTokens | None = None,
    context: int | None = None,
    loaded: Task | None = None,
) -> Task:
    """`build_task` of a run's config, with no more of the data in memory than the run uses.

    loaded: what `load_task` gave, so that it is not read twice.
    """
    paths = run.plugins.search_paths
    return build_task(run.data, paths, prompt_tokens, context, needs_of(run), loaded)


def load_task(run: RunConfig) -> Task:
    """The run's task before what does not fit the model is left out."""
    return _addressed(run.data, run.plugins.search_paths, needs_of(run))


def needs_of(run: RunConfig) -> Wanted:
    """What a run uses of its data."""
    algorithm, most = run.algorithm, run.data.max_examples
    modes = (algorithm.advantage_mode, algorithm.transform_mode, algorithm.algorithm_mode)
    rewards = [run.reward.type, *(component.type for component in run.reward.components)]
    return Wanted(
        train=most or None,
        held_out=run.evaluation.num_problems if most else None,
        # Only code of the user's can look at more than prompt and answer.
        metadata="custom" in rewards or any("." in mode for mode in modes),
    )


def build_task(
    data: DataConfig,
    search_paths: Sequence[str | Path] = (),
    prompt_tokens: CountTokens | None = None,
    context: int | None = None,
    wanted: Wanted = Wanted(),  # noqa: B008
    loaded: Task | None = None,
) -> Task:
    """The task that `[data].source` names. Raises InputError with the key and the remedy.

    A data set that is not on this machine is downloaded. A dotted path names a function that takes
    the `[data]` table (or nothing) and returns a task or a list of problems; of a list, a tenth is
    held out by a hash of the id.

    prompt_tokens: counts the tokens of prompts; every prompt of a finite task is then measured
                   against `[data].max_prompt_tokens` and against `context`, the model's.
    wanted:        how much of a data set the task needs at least; no more is read.
    loaded:        what has been read of it already.
    """
    reading, task = wanted, loaded or _addressed(data, search_paths, wanted)
    while isinstance(task, ProblemListTask):
        fitted = task if prompt_tokens is None else fitting(task, data, prompt_tokens, context)
        if task.whole or wanted.reached(fitted.train, fitted.all_held_out):
            return fitted.first(data.max_examples) if data.max_examples else fitted
        # Some of what was read was left out.
        reading = reading.more()
        task = _addressed(data, search_paths, reading)
    return task


def _addressed(data: DataConfig, search_paths: Sequence[str | Path], wanted: Wanted) -> Task:
    """What the source gives, with the prompts' system prompt and instruction."""
    task = _made(data, search_paths, wanted)
    system_prompt, instruction = data.system_prompt, instruction_of(data)
    if not (system_prompt or instruction):
        return task
    if isinstance(task, ProblemListTask):
        return task.changed(lambda problem: addressed(problem, system_prompt, instruction))
    return AddressedTask(task, system_prompt, instruction)


def _made(data: DataConfig, search_paths: Sequence[str | Path], wanted: Wanted) -> Task:
    """What the source gives."""
    try:
        make = TASKS.find(data.source, search_paths)
        if data.source in TASKS:
            _download(data)
            return cast(Task, make(data, wanted))
        positional = positional_arguments(make, data.source)
        made = _checked(call(data.source, make, *([data] if positional else [])), data)
    except PluginError as error:
        raise InputError(f"data.source: {error}") from error
    if isinstance(made, ProblemListTask):
        _check_text(data.source, (*made.train, *made.all_held_out))
    elif data.max_prompt_tokens:
        raise InputError(
            f"data.max_prompt_tokens: {data.source} is a task of its own and not a list of "
            "problems, of which some could be left out; leave them out there"
        )
    return cast(Task, made)


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


def _check_text(source: str, problems: Sequence[Problem]) -> None:
    """Raises InputError for text that no tokenizer takes."""
    for problem in problems:
        contents = [message["content"] for message in problem.messages]
        try:
            "".join([problem.id, problem.answer, problem.domain, *contents]).encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"data.source: {source} returned a problem whose text cannot be encoded: "
                f"{error.reason} (id {problem.id!r}, prompt {str(problem.prompt)[:60]!r})"
            ) from error


def _checked(made: Any, data: DataConfig) -> Any:
    if isinstance(made, Sequence) and made and all(isinstance(p, Problem) for p in made):
        _check_answers(made, data)
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
    _check_answers(batch, data)
    return made


def _check_answers(problems: Sequence[Problem], data: DataConfig) -> None:
    for problem in problems:
        if not isinstance(problem.answer, str):
            raise InputError(
                f"data.source: {data.source}: problem {problem.id} has the answer "
                f"{problem.answer!r}; text is wanted"
            )
