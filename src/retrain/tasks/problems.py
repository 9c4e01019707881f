"""A task made of a finite list of problems, from a JSONL file or from a function of the user's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retrain import seeding
from retrain.errors import InputError
from retrain.types import Problem

HELD_OUT_SHARE = 0.1
_KEYS = frozenset({"prompt", "answer", "id", "domain", "split", "metadata"})
_SPLITS = ("train", "held_out")


class ProblemListTask:
    """Problems visited epoch by epoch, each epoch in an order of its own."""

    def __init__(
        self,
        name: str,
        train: Sequence[Problem],
        held_out: Sequence[Problem],
        shuffle: bool = True,
    ) -> None:
        self.name = name
        self._train = tuple(train)
        self._held_out = tuple(held_out)
        self._shuffle = shuffle

    def train_batch(self, seed: int, step: int, batch_size: int) -> list[Problem]:
        """The step's problems. An epoch is as many whole batches as the list holds; the few
        problems left over wait for the next epoch's order."""
        count = len(self._train)
        if batch_size > count:
            raise InputError(
                f"training.batch_size: {batch_size} problems a step, but {self.name} has only "
                f"{count} training problems"
            )
        epoch, batch = divmod(step, count // batch_size)
        order = range(count)
        if self._shuffle:
            shuffled = seeding.generator(seed, "data_order", epoch).permutation(count)
            order = shuffled.tolist()
        return [self._train[i] for i in order[batch * batch_size : (batch + 1) * batch_size]]

    def held_out(self, num_problems: int) -> list[Problem]:
        """The first problems of the held-out list; fewer when it is shorter."""
        return list(self._held_out[:num_problems])


def split_by_id(problems: Sequence[Problem]) -> tuple[list[Problem], list[Problem]]:
    """(train, held out): a tenth is held out, chosen by a hash of the id and therefore the same
    on every machine and in every order of the list."""
    train: list[Problem] = []
    held_out: list[Problem] = []
    for problem in problems:
        digest = hashlib.blake2b(problem.id.encode(), digest_size=8).digest()
        share = int.from_bytes(digest, "little") / 2**64
        (held_out if share < HELD_OUT_SHARE else train).append(problem)
    return train, held_out


def read_jsonl_task(path: Path, max_examples: int = 0, shuffle: bool = True) -> ProblemListTask:
    """A task from a JSONL file: one object a line with `prompt` (text or chat messages),
    `answer`, and optionally `id`, `domain`, `metadata`, `split` ("train" or "held_out").

    Without any `split` a tenth is held out by a hash of the id. Raises InputError that names
    the line.
    """
    train: list[Problem] = []
    held_out: list[Problem] = []
    unsplit: list[Problem] = []
    seen: dict[str, int] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"data.path: {path} cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"data.path: {path}, line {number}"
        problem, split = _problem(line, where)
        if problem.id in seen:
            raise InputError(f"{where}: id {problem.id!r} is already on line {seen[problem.id]}")
        seen[problem.id] = number
        {"train": train, "held_out": held_out, "": unsplit}[split].append(problem)
    if unsplit and (train or held_out):
        raise InputError(
            f"data.path: {path}: {len(unsplit)} lines have no `split` and the others have one; "
            "give it to all lines or to none"
        )
    if unsplit:
        train, held_out = split_by_id(unsplit)
    if not train:
        raise InputError(f"data.path: {path} holds no training problem")
    if max_examples:
        train = train[:max_examples]
    return ProblemListTask(path.stem, train, held_out, shuffle)


def _problem(line: str, where: str) -> tuple[Problem, str]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise InputError(f"{where}: one JSON object a line is wanted, not {line[:40]!r}")
    unknown = set(row) - _KEYS
    if unknown:
        raise InputError(
            f"{where}: unknown key {sorted(unknown)[0]!r}; known are {', '.join(sorted(_KEYS))} "
            "(put anything else into `metadata`)"
        )
    for name in ("prompt", "answer"):
        if name not in row:
            raise InputError(f"{where}: `{name}` is missing")
    answer = row["answer"]
    if isinstance(answer, bool) or not isinstance(answer, str | int | float) or answer == "":
        raise InputError(f"{where}: `answer` must be text or a number, not {answer!r}")
    split = row.get("split", "")
    if split not in ("", *_SPLITS):
        raise InputError(f'{where}: `split` is {split!r}; it must be "train" or "held_out"')
    metadata = row.get("metadata", {})
    if not isinstance(metadata, dict):
        raise InputError(f"{where}: `metadata` must be an object")
    prompt = _prompt(row["prompt"], where)
    digest = hashlib.blake2b(json.dumps(row["prompt"]).encode(), digest_size=6).hexdigest()
    problem = Problem(
        id=str(row.get("id", digest)),
        prompt=prompt,
        answer=str(answer),
        domain=str(row.get("domain", "default")),
        metadata=metadata,
    )
    return problem, split


def _prompt(prompt: Any, where: str) -> Any:
    if isinstance(prompt, str) and prompt:
        return prompt
    if isinstance(prompt, list) and prompt:
        for message in prompt:
            if (
                not isinstance(message, dict)
                or set(message) != {"role", "content"}
                or not all(isinstance(value, str) for value in message.values())
            ):
                raise InputError(
                    f"{where}: a message of `prompt` must be "
                    f'{{"role": "…", "content": "…"}}, not {message!r}'
                )
        return tuple(prompt)
    raise InputError(f"{where}: `prompt` must be text or a list of chat messages, not {prompt!r}")
