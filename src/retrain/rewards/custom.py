"""A reward function of the user's."""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future
from functools import partial
from numbers import Real
from typing import Any

from retrain.loops import LoopThread
from retrain.rewards.reward import Pending, Reward, RewardFailedError, complaint
from retrain.types import Completion, Problem, Score

__all__ = ["CustomReward", "RewardFailedError"]

_EXTRAS: dict[str, Callable[[Problem], Any]] = {
    "problem": lambda problem: problem,
    "metadata": lambda problem: problem.metadata,
}
"""Parameters that a function may ask for by their names."""


class CustomReward(Reward):
    """Calls `fn(response, reference)`, with `problem=` and `metadata=` when the function has these
    parameters.

    It returns a number, or a `retrain.types.Score`. A number at or above `correct_threshold`
    counts as correct. The calls of an async function go on side by side, and beside the decoding,
    in a thread of their own.
    """

    def __init__(self, function: Callable[..., Any], name: str, correct_threshold: float) -> None:
        self._function = function
        self._name = name
        self._threshold = correct_threshold
        parameters = inspect.signature(function).parameters
        self._extras = [extra for extra in _EXTRAS if extra in parameters]
        self._loop: LoopThread | None = None
        self.early = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004
        )

    def score(self, problem: Problem, completion: Completion) -> Score:
        return self._wait(self._call(problem, completion), problem, completion)

    def begin(self, problem: Problem, completion: Completion) -> Pending:
        if not self.early:
            return partial(self.score, problem, completion)
        return partial(self._wait, self._call(problem, completion), problem, completion)

    def probe(self, problem: Problem, completion: Completion) -> None:
        try:
            self.score(problem, completion)
        finally:
            self.close()

    def close(self) -> None:
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.close()

    def _call(self, problem: Problem, completion: Completion) -> Any:
        """What the function returns, or a future of it when it is async."""
        extra = {name: _EXTRAS[name](problem) for name in self._extras}
        try:
            result = self._function(completion.text, problem.answer, **extra)
        except (Exception, SystemExit) as error:
            raise self._raised(error, problem, completion) from error
        return self._begun(result) if inspect.isawaitable(result) else result

    def _begun(self, awaitable: Awaitable[Any]) -> Future[Any]:
        async def awaited() -> Any:
            try:
                return await awaitable
            except SystemExit as error:
                # It would end the loop, and with it everything that waits for it.
                raise RuntimeError(f"it called sys.exit({error.code!r})") from error

        if self._loop is None:
            self._loop = LoopThread("retrain-async-reward")
        return self._loop.submit(awaited())

    def _wait(self, result: Any, problem: Problem, completion: Completion) -> Score:
        if isinstance(result, Future):
            try:
                result = result.result()
            except (Exception, CancelledError, SystemExit) as error:
                raise self._raised(error, problem, completion) from error
        return self._checked(result, problem, completion)

    def _checked(self, result: Any, problem: Problem, completion: Completion) -> Score:
        if isinstance(result, Score):
            if not math.isfinite(result.reward):
                raise self._failed(f"returned {result.reward}", problem, completion)
            return result
        if not (isinstance(result, Real) or hasattr(result, "__float__")):
            raise self._failed(f"returned {result!r}; a number is wanted", problem, completion)
        try:
            value = float(result)
        except (TypeError, ValueError, OverflowError):
            what = f"returned {result!r}; a number is wanted"
            raise self._failed(what, problem, completion) from None
        if not math.isfinite(value):
            raise self._failed(f"returned {value}", problem, completion)
        return Score(value, "correct" if value >= self._threshold else "wrong")

    def _raised(
        self, error: BaseException, problem: Problem, completion: Completion
    ) -> RewardFailedError:
        return self._failed(f"raised {type(error).__name__}: {error}", problem, completion)

    def _failed(self, what: str, problem: Problem, completion: Completion) -> RewardFailedError:
        return RewardFailedError(complaint(f"{self._name} {what}", problem, completion))
