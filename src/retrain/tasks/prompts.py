"""What is done to every problem of every source: the system prompt, the instruction, the length."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence, Sized
from dataclasses import replace
from typing import Protocol
from weakref import WeakKeyDictionary

from retrain.analysis.words import plural
from retrain.config.data import DataConfig
from retrain.errors import InputError
from retrain.tasks.problems import ProblemListTask
from retrain.tasks.task import Task
from retrain.types import Message, Problem

CountTokens = Callable[[Sequence[Problem]], Sequence[int] | None]
"""Tokens of each problem as the model's prompt; None when they cannot be counted yet."""


class Codec(Protocol):
    """The part of a model's codec that counting needs."""

    def encode(self, problem: Problem) -> Sized:
        """The prompt's token ids."""


_counted: WeakKeyDictionary[Codec, dict[bytes, int]] = WeakKeyDictionary()
"""What was counted before, by hashes of prompts: the runs of a warm worker share a codec and often
their problems."""


def counting(codec: Codec) -> CountTokens:
    """Counts with the model's own codec, each prompt once."""
    known = _counted.setdefault(codec, {})

    def count(problems: Sequence[Problem]) -> list[int]:
        lengths = []
        for problem in problems:
            prompt = hashlib.blake2b(json.dumps(problem.prompt).encode(), digest_size=16).digest()
            if prompt not in known:
                known[prompt] = len(codec.encode(problem))
            lengths.append(known[prompt])
        return lengths

    return count


def addressed(problem: Problem, system_prompt: str, instruction: str) -> Problem:
    """The problem with the system prompt before it and the instruction below its last question.

    A system message that the problem has of its own is replaced. Raises InputError when there is
    no message of the user to put the instruction below.
    """
    prompt = problem.prompt
    if instruction:
        prompt = _instructed(problem, instruction)
    if system_prompt:
        system: Message = {"role": "system", "content": system_prompt}
        messages = replace(problem, prompt=prompt).messages
        own = messages and messages[0]["role"] == "system"
        prompt = (system, *messages[1 if own else 0 :])
    return replace(problem, prompt=prompt)


def _instructed(problem: Problem, instruction: str) -> str | tuple[Message, ...]:
    if isinstance(problem.prompt, str):
        return f"{problem.prompt}\n\n{instruction}"
    messages = list(problem.prompt)
    for index in reversed(range(len(messages))):
        if messages[index]["role"] == "user":
            content = f"{messages[index]['content']}\n\n{instruction}"
            messages[index] = {"role": "user", "content": content}
            return tuple(messages)
    raise InputError(
        f"data.instruction: problem {problem.id} has no message of the user to stand below"
    )


class AddressedTask:
    """A task whose problems get a system prompt and an instruction as they are drawn."""

    def __init__(self, task: Task, system_prompt: str, instruction: str) -> None:
        self.name = task.name
        self._task = task
        self._system_prompt = system_prompt
        self._instruction = instruction

    def train_batch(self, seed: int, step: int, batch_size: int) -> list[Problem]:
        """As the task has it."""
        return self._addressed(self._task.train_batch(seed, step, batch_size))

    def held_out(self, num_problems: int) -> list[Problem]:
        """As the task has it."""
        return self._addressed(self._task.held_out(num_problems))

    def _addressed(self, problems: Sequence[Problem]) -> list[Problem]:
        return [addressed(p, self._system_prompt, self._instruction) for p in problems]


def fitting(
    task: ProblemListTask, data: DataConfig, count: CountTokens, context: int | None
) -> ProblemListTask:
    """The task without the problems whose prompt is longer than `[data].max_prompt_tokens`.

    Every prompt is measured, so that no long one is met only after hours. Raises InputError when
    one that stays leaves no room for an answer in the model's context.
    """
    problems = (*task.train, *task.all_held_out)
    lengths = count(problems)
    if lengths is None:
        return task
    longest = data.max_prompt_tokens
    if longest:
        by_id = {id(problem): tokens for problem, tokens in zip(problems, lengths, strict=True)}
        kept = task.kept(lambda problem: by_id[id(problem)] <= longest)
        if not kept.train and task.whole:
            raise InputError(
                f"data.max_prompt_tokens: no training problem of {task.name} has a prompt of at "
                f"most {plural(longest, 'token')}; the shortest has "
                f"{min(lengths[: len(task.train)])}"
            )
        lengths = [by_id[id(problem)] for problem in (*kept.train, *kept.all_held_out)]
        task = kept.noted(_left_out(task, kept, longest))
        problems = (*task.train, *task.all_held_out)
    if context is not None and (worst := max(lengths, default=0)) >= context:
        problem = problems[list(lengths).index(worst)]
        over = sum(tokens >= context for tokens in lengths)
        bound = max(context // 2, min(lengths))
        remedy = (
            f"write max_prompt_tokens = {bound} or another bound to leave them out"
            if bound < context
            else "take a model with a longer one"
        )
        raise InputError(
            f"data.max_prompt_tokens: {plural(over, 'prompt')} of {task.name} would fill the "
            f"model's context of {context} tokens, e.g. problem {problem.id} with {worst}; {remedy}"
        )
    task.prompt_tokens = tuple(lengths)
    return task


def _left_out(
    before: ProblemListTask, after: ProblemListTask, longest: int
) -> list[tuple[str, str]]:
    parts = []
    for what, old, new in (
        ("training problem", before.train, after.train),
        ("held-out problem", before.all_held_out, after.all_held_out),
    ):
        if len(new) < len(old):
            parts.append(f"{len(old) - len(new)} of {plural(len(old), what)}")
    if not parts:
        return []
    text = f"{before.name}: {' and '.join(parts)} left out: their prompts are longer than {longest}"
    return [("data.max_prompt_tokens", f"{text} tokens")]
