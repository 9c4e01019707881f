"""A task made of a finite list of problems: from files, data sets, or a function of the user's."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from retrain import seeding
from retrain.analysis.words import plural
from retrain.errors import InputError
from retrain.types import Problem

HELD_OUT_SHARE = 0.1
_INDEX_BYTES = 400
"""What finds repeated rows, and remembers the length of a prompt, for each problem."""

Note = tuple[str, str]
"""(config key, what the user should know of it)."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is used of a data set.

    train, held_out: how many problems, the first ones; None for all.
    metadata:        whether anything reads what rows hold beside prompt and answer.
    """

    train: int | None = None
    held_out: int | None = None
    metadata: bool = True

    def reached(self, train: Sequence[Problem], held_out: Sequence[Problem]) -> bool:
        """Whether there are as many."""
        pairs = ((self.train, train), (self.held_out, held_out))
        return all(most is not None and len(problems) >= most for most, problems in pairs)

    def more(self) -> Wanted:
        """So much more that few rounds come to the end of any data set."""
        counts = (self.train, self.held_out)
        train, held_out = (None if most is None else 4 * most for most in counts)
        return replace(self, train=train, held_out=held_out)


class ProblemListTask:
    """Problems visited epoch by epoch, each epoch in an order of its own.

    notes:         what was left out, to be told once.
    whole:         whether the data set was read to its end; else it may have more problems.
    prompt_tokens: (training and held-out problems,) lengths of the prompts, once measured.
    """

    def __init__(
        self,
        name: str,
        train: Sequence[Problem],
        held_out: Sequence[Problem],
        shuffle: bool = True,
    ) -> None:
        self.name = name
        self.notes: tuple[Note, ...] = ()
        self.whole = True
        self.prompt_tokens: tuple[int, ...] | None = None
        self._train = tuple(train)
        self._held_out = tuple(held_out)
        self._shuffle = shuffle

    @property
    def train(self) -> tuple[Problem, ...]:
        """All training problems."""
        return self._train

    @property
    def all_held_out(self) -> tuple[Problem, ...]:
        """All held-out problems."""
        return self._held_out

    @property
    def nbytes(self) -> int:
        """Bytes of main memory that the problems take at most: while they are read, and then."""
        problems = (*self._train, *self._held_out)
        return sum(map(_size, problems)) + _INDEX_BYTES * len(problems)

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

    def noted(self, notes: Iterable[Note]) -> ProblemListTask:
        """The same task with more to tell."""
        return self._with(self._train, self._held_out, notes)

    def changed(self, change: Callable[[Problem], Problem]) -> ProblemListTask:
        """The same task, each problem changed."""
        return self._with([change(p) for p in self._train], [change(p) for p in self._held_out])

    def kept(self, keep: Callable[[Problem], bool], notes: Iterable[Note] = ()) -> ProblemListTask:
        """The task without the problems that `keep` is false for."""
        train, held_out = ([p for p in side if keep(p)] for side in (self._train, self._held_out))
        return self._with(train, held_out, notes)

    def first(self, count: int) -> ProblemListTask:
        """The task with only the first `count` training problems."""
        return self._with(self._train[:count], self._held_out)

    def apart(self) -> ProblemListTask:
        """The task without those training problems whose prompt is held out too."""
        judged = {json.dumps(problem.prompt) for problem in self._held_out}
        train = [problem for problem in self._train if json.dumps(problem.prompt) not in judged]
        left_out = len(self._train) - len(train)
        if not left_out:
            return self
        text = plural(left_out, "training problem")
        note = f"{self.name}: {text} left out: the same prompt is among the held-out ones"
        return self._with(train, self._held_out, [("data.source", note)])

    def _with(
        self, train: Sequence[Problem], held_out: Sequence[Problem], notes: Iterable[Note] = ()
    ) -> ProblemListTask:
        task = ProblemListTask(self.name, train, held_out, self._shuffle)
        task.notes = (*self.notes, *notes)
        task.whole = self.whole
        return task


def _size(value: Any) -> int:
    match value:
        case Problem():
            parts: Iterable[Any] = (value.id, value.prompt, value.answer, value.metadata)
        case Mapping():
            parts = value.values()
        case list() | tuple():
            parts = value
        case _:
            parts = ()
    return sys.getsizeof(value) + sum(map(_size, parts))


def split_by_id(problems: Sequence[Problem]) -> tuple[list[Problem], list[Problem]]:
    """(train, held out): a tenth is held out, chosen by a hash of the id and therefore the same
    on every machine and in every order of the list."""
    train: list[Problem] = []
    held_out: list[Problem] = []
    for problem in problems:
        (held_out if is_held_out(problem.id) else train).append(problem)
    return train, held_out


def is_held_out(problem_id: str) -> bool:
    """Whether the problem is in that tenth."""
    digest = hashlib.blake2b(problem_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64 < HELD_OUT_SHARE
