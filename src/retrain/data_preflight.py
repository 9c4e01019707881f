"""The part of the preflight that looks at problems and models: `[data]`, `[model]`, and whether
prompts and completions fit. Nothing is downloaded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from retrain.analysis.words import plural
from retrain.config.load import EMBEDDED
from retrain.config.messages import near, show
from retrain.config.schema import RunConfig
from retrain.errors import InputError
from retrain.tasks.conversation import short
from retrain.types import Problem

if TYPE_CHECKING:
    from retrain.config.conditions import Condition
    from retrain.models.folder import ModelFolder
    from retrain.preflight import _Findings as Findings
    from retrain.tasks.task import Task

PROBED_PROBLEMS = 64
"""Problems whose prompts are measured where a task has no end."""

_WORD = re.compile(r"(?<![\\\w])[^\W\d_]{3,}")
_PROSE = 5
"""Words, commands of LaTeX aside, of which an answer has fewer."""
_FILE_KEYS = ("path", "held_out_path")


def check_task_and_model(found: Findings, condition: Condition, run: RunConfig) -> None:
    """Try the task, look into the model's folder, and measure the prompts."""
    from retrain.models.adapter_folder import adapter_problems
    from retrain.models.folder import chat_templates, inspect, template_variables, unknown_template

    model = inspect(run.model, found.loaded.base_dir)
    at_service = run.backend.backend != "local"
    if at_service:
        # Its files may be here by chance; what the service holds, it tells itself.
        context = model.context if run.model.model == EMBEDDED else None
        model = replace(model, context=context, problems=())
    problems: list[Problem] = []
    if not _lacks_a_file(found, condition, run):
        found.attempt(
            condition,
            "data.source",
            lambda: problems.extend(_try_task(found, condition, run, model)),
        )
    for problem in model.problems:
        found.error(condition, "model.model", problem)
    name = run.model.chat_template
    templates = chat_templates(model.path) if model.path else {}
    if templates and name not in templates:
        text = unknown_template(run.model.model, name, templates).partition(": ")[2]
        found.error(condition, "model.chat_template", text)
    elif run.model.chat_template_args and model.path is not None and not model.problems:
        known = template_variables(model.path, name)
        for name in sorted(set(run.model.chat_template_args) - (known or set())):
            message = f"the chat template of {run.model.model} does not read {name}"
            hint = near(name, known or ())
            message += f"; did you mean {hint[0]}?" if hint else ""
            found.error(condition, "model.chat_template_args", message)
    for key, message in () if found.begun or at_service else adapter_problems(run.model):
        found.error(condition, key, message)
    if model.context is None:
        return
    longest = max((model.prompt_tokens(p) or 0 for p in problems[:PROBED_PROBLEMS]), default=0)
    room = model.context - max(longest, 1)
    if run.training.max_tokens > room:
        found.error(
            condition,
            "training.max_tokens",
            f"{run.training.max_tokens} tokens do not fit: {run.model.model} holds {model.context} "
            f"in all, of which prompts take up to {max(longest, 1)}; at most {room} are left"
            + (", and 64 are enough" if run.model.model == "embedded" else ""),
        )


def _lacks_a_file(found: Findings, condition: Condition, run: RunConfig) -> bool:
    from retrain.tasks.reading import ENDINGS, shards

    data = run.data
    lacking = False
    for key in _FILE_KEYS if data.source in ENDINGS else ():
        text, place = getattr(data, key), f"data.{key}"
        if text or key == "path":
            there = found.attempt(condition, place, partial(shards, text, data.source, place))
            lacking = lacking or not there
    return lacking


def _try_task(
    found: Findings, condition: Condition, run: RunConfig, model: ModelFolder
) -> list[Problem]:
    """Problems of the first step and of the evaluation; none where they must be downloaded."""
    from retrain.tasks.download import missing
    from retrain.tasks.problems import ProblemListTask

    if missing(run.data):
        return []
    task = _task(found, run, model)
    training, wanted = run.training, run.evaluation.num_problems
    problems = task.train_batch(training.seed, 0, training.batch_size)
    held_out = task.held_out(wanted) if wanted else []
    if wanted and not held_out:
        message = f"{task.name} has no held-out problem; set it to 0 to train without evaluation"
        found.error(condition, "evaluation.num_problems", message)
    elif len(held_out) < wanted:
        message = f"{task.name} has only {len(held_out)} held-out problems"
        found.warn(condition, "evaluation.num_problems", message)
    if isinstance(task, ProblemListTask):
        for key, note in task.notes:
            found.warn(condition, key, note)
        _measure(found, condition, run, model, task.prompt_tokens or ())
        _references(found, condition, run, [*task.train, *task.all_held_out])
    return [*problems, *held_out]


def _task(found: Findings, run: RunConfig, model: ModelFolder) -> Task:
    """The run's task; conditions with the same data share it, or what is wrong with it."""
    from retrain.tasks.registry import needs_of, task_of

    tables = (run.data.model_dump_json(), run.model.model_dump_json(), repr(needs_of(run)))
    key = (*tables, *run.plugins.search_paths)
    if key not in found.tasks:
        try:
            found.tasks[key] = task_of(run, model.prompt_tokens_batch, model.context)
        except InputError as error:
            found.tasks[key] = error
    task = found.tasks[key]
    if isinstance(task, InputError):
        raise task
    return task


def _references(
    found: Findings, condition: Condition, run: RunConfig, problems: Sequence[Problem]
) -> None:
    """Warn of references that are worked solutions, which no answer in a box equals."""
    from retrain.rewards.match import last_boxed

    types = {run.reward.type, *(component.type for component in run.reward.components)}
    if not types & {"match", "math"}:
        return
    solutions = [p.answer for p in problems if last_boxed(p.answer) is None and _is_prose(p.answer)]
    if solutions:
        message = (
            f"{plural(len(solutions), 'reference')} of {len(problems)} are whole solutions without "
            f"a box, which no answer equals, e.g. {short(solutions[0])}; say what of it is the "
            'answer: answer_pattern = "gsm8k" (what follows ####), or a regular expression'
        )
        found.warn(condition, "data.answer_pattern", message)


def _is_prose(answer: str) -> bool:
    return "####" in answer or len(_WORD.findall(answer)) >= _PROSE


def _measure(
    found: Findings,
    condition: Condition,
    run: RunConfig,
    model: ModelFolder,
    lengths: Sequence[int],
) -> None:
    """Warn of prompts after which an answer of the longest length does not fit."""
    if model.context is None:
        return
    room = model.context - run.training.max_tokens
    tight = sum(tokens > room for tokens in lengths)
    if tight and room > 0:
        found.warn(
            condition,
            "training.max_tokens",
            f"{plural(tight, 'prompt')} of {len(lengths)} leave less room than "
            f"{run.training.max_tokens} tokens in the {model.context} of {show(run.model.model)}; "
            f"their completions end early; max_prompt_tokens = {room} in [data] leaves them out",
        )
