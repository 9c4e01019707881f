"""What every reward offers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from retrain.types import Completion, Group, Problem, Score


class Reward(Protocol):
    """Judges completions."""

    def score(self, problem: Problem, completion: Completion) -> Score:
        """The completion's reward and outcome; a pure function of its arguments."""
        ...


def score(groups: Sequence[Group], reward: Reward) -> list[Group]:
    """The groups with every completion judged."""
    return [
        replace(
            group,
            scores=tuple(reward.score(group.problem, item) for item in group.completions),
        )
        for group in groups
    ]
