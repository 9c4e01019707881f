"""A reward function of the user's."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from numbers import Real
from typing import Any

from retrain.errors import RetrainError
from retrain.types import Completion, Problem, Score

_SHOWN_CHARACTERS = 400


class RewardFailedError(RetrainError):
    """A reward function raised, or returned something that is no reward."""


class CustomReward:
    """Calls `fn(response, reference)`, with `problem=` when the function has that parameter.

    It returns a number, or a `retrain.types.Score`. A number at or above `correct_threshold`
    counts as correct.
    """

    def __init__(self, function: Callable[..., Any], name: str, correct_threshold: float) -> None:
        self._function = function
        self._name = name
        self._threshold = correct_threshold
        self._takes_problem = "problem" in inspect.signature(function).parameters

    def score(self, problem: Problem, completion: Completion) -> Score:
        extra = {"problem": problem} if self._takes_problem else {}
        try:
            result = self._function(completion.text, problem.answer, **extra)
        except Exception as error:
            raise RewardFailedError(
                self._complaint(f"raised {type(error).__name__}: {error}", problem, completion)
            ) from error
        if isinstance(result, Score):
            value, outcome = result.reward, result.outcome
        elif isinstance(result, Real) or hasattr(result, "__float__"):
            value = float(result)
            outcome = "correct" if value >= self._threshold else "wrong"
        else:
            raise RewardFailedError(
                self._complaint(f"returned {result!r}; a number is wanted", problem, completion)
            )
        if not math.isfinite(value):
            raise RewardFailedError(self._complaint(f"returned {value}", problem, completion))
        return result if isinstance(result, Score) else Score(value, outcome)

    def _complaint(self, what: str, problem: Problem, completion: Completion) -> str:
        text = completion.text
        shown = text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + " …"
        return f"the reward {self._name} {what}\nproblem {problem.id}, completion: {shown!r}"
