"""What every task offers: problems to train on, and fixed problems to be judged by."""

from __future__ import annotations

from typing import Protocol

from retrain.types import Problem


class Task(Protocol):
    """A source of problems with two splits that never share a problem."""

    name: str

    def train_batch(self, seed: int, step: int, batch_size: int) -> list[Problem]:
        """The `batch_size` distinct training problems of a step.

        A pure function of its arguments: every condition under one seed meets the same problems
        in the same order, and a resumed run meets those it would have met.
        """
        ...

    def held_out(self, num_problems: int) -> list[Problem]:
        """The first `num_problems` of one fixed list of held-out problems.

        The list is the same for every seed, condition and run, so that results are paired by
        problem; asking for more problems keeps those that fewer would have given.
        """
        ...
