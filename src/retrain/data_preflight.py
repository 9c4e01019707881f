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
from retrain.config.messages import did_you_mean, show
from retrain.config.schema import RunConfig
from retrain.errors import InputError, RetrainError
from retrain.tasks.conversation import short
from retrain.types import Problem

if TYPE_CHECKING:
    from retrain.config.conditions import Condition
    from retrain.models.folder import ModelFolder
    from retrain.preflight import _Findings as Findings
    from retrain.tasks.task import Task

PROBED_PROBLEMS = 64
"""Problems whose prompts are measured where a task has no end."""
TRIED_REFERENCES = 300
"""Different references that are tried, evenly spread over the data."""
SHOWN_REFERENCE = 80
ENOUGH_EMBEDDED = 64
"""Tokens in which the embedded model solves the embedded task."""

_WORD = re.compile(r"(?<![\\\w])[^\W\d_]{3,}")
_PROSE = 5
"""Words, commands of LaTeX aside, of which an answer has fewer."""
_FILE_KEYS = ("path", "held_out_path")


def check_task_and_model(found: Findings, condition: Condition, run: RunConfig) -> None:
    """Try the task, look into the model's folder, and measure the prompts."""
    from retrain.models.adapters.initial import adapter_problems
    from retrain.models.folder import chat_templates, inspect, template_variables, unknown_template
    from retrain.models.shape import experts_of, longrope_limit

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
            message += did_you_mean(name, known or ())
            found.error(condition, "model.chat_template_args", message)
    if (experts := experts_of(model.config)) and not at_service:
        message = f"the {experts} experts of a layer are no linear layers and stay as they are"
        found.warn(condition, "model.lora_targets", message)
    for key, message in () if found.begun or at_service else adapter_problems(run.model):
        found.error(condition, key, message)
    if not at_service:
        _adapter(found, condition, run, model)
    if model.context is None:
        return
    lengths: list[int] = []
    if not found.attempt(
        condition,
        "model.model",
        lambda: lengths.extend(model.prompt_tokens_batch(problems[:PROBED_PROBLEMS]) or ()),
    ):
        return
    longest = max(lengths, default=1)
    room = model.context - longest
    if run.training.max_tokens > room:
        left = f"at most {room} are left" if room > 0 else "none is left for a completion"
        enough = run.model.model == EMBEDDED and room >= ENOUGH_EMBEDDED
        found.error(
            condition,
            "training.max_tokens",
            f"{run.training.max_tokens} tokens do not fit: {run.model.model} holds {model.context} "
            f"in all, of which prompts take up to {longest}; {left}"
            + (
                "; longer texts change the angles of all their positions (longrope)"
                if model.context in longrope_limit(model.config)
                else ""
            )
            + (f", and {ENOUGH_EMBEDDED} are enough" if enough else ""),
        )


def _adapter(found: Findings, condition: Condition, run: RunConfig, model: ModelFolder) -> None:
    """Targets that name no layer, and a rank that this machine has no room for."""
    from retrain.config.explain_memory import size
    from retrain.experiments.memory import run_memory
    from retrain.models.shape import SUPPORTED

    shape, targets = model.shape, run.model.lora_targets
    if shape is None:
        return
    # Other architectures may call their layers differently from their weights.
    report = found.error if model.config.get("model_type") in SUPPORTED else found.warn
    for name in () if isinstance(targets, str) else targets:
        if not shape.adapter_parameters(1, [name]):
            known = ", ".join(sorted({layer.rsplit(".", 1)[-1] for layer in shape.linear}))
            message = f"no linear layer is called {show(name)}; this model has {known}"
            report(condition, "model.lora_targets", message)
    memory = run_memory(run, found.loaded.base_dir)
    if memory is None or memory["device_memory"] is None:
        return
    adapter = memory["peak"]["adapter"] + memory["peak"]["optimizer"]
    if adapter + memory["peak"]["weights"] > memory["device_memory"]:
        weights = memory["peak"]["weights"]
        message = (
            f"does not fit: the weights take {size(weights)}, and at rank {run.model.lora_rank} "
            f"adapter, gradient and optimizer {size(adapter)}; {size(memory['device_memory'])} are "
            "there"
        )
        if adapter > weights:
            found.error(condition, "model.lora_rank", message)
        else:
            found.warn(condition, "model.model", message)


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


def check_references(found: Findings, condition: Condition, run: RunConfig) -> None:
    """Warn of references that the reward cannot recognise; each is tried once."""
    from retrain.models.folder import inspect
    from retrain.rewards.registry import build_reward
    from retrain.tasks.download import missing
    from retrain.tasks.problems import ProblemListTask

    try:
        reward = build_reward(run.reward, run.plugins.search_paths)
        if missing(run.data):
            return
        task = _task(found, run, inspect(run.model, found.loaded.base_dir))
    except (RetrainError, ValueError, OSError):
        # It has been told.
        return
    if not isinstance(task, ProblemListTask):
        return
    distinct = {problem.answer: problem for problem in (*task.train, *task.all_held_out)}
    every = -(-len(distinct) // TRIED_REFERENCES)
    tried = list(distinct.values())[::every]
    recognised: list[bool | None] = []
    found.attempt(condition, "reward.type", lambda: recognised.extend(reward.recognises(tried)))
    known = sum(each is not None for each in recognised)
    odd = [problem for problem, each in zip(tried, recognised, strict=False) if each is False]
    if odd:
        tried_of = plural(known, "different reference")
        tried_of += f" tried (of {len(distinct):,})" if known < len(distinct) else ""
        found.warn(
            condition,
            "reward.type",
            f"the reward cannot read {len(odd):,} of {tried_of}: at most an answer with the same "
            f"text is right there, e.g. {odd[0].answer[:SHOWN_REFERENCE]!r} (problem {odd[0].id}); "
            "leave such problems out, or write their answers otherwise",
        )


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
