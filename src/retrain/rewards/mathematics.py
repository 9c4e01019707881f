"""The last `\\boxed{}` is the same number, expression, set, … as the reference answer."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, wait
from functools import partial

from retrain.errors import InputError
from retrain.rewards.match import (
    NO_ANSWER,
    final_answer,
    last_boxed,
    reference_of,
    same_choice,
    without_space,
)
from retrain.rewards.math_pool import MathPool, OverBudgetError, Verdict
from retrain.rewards.math_sets import same_in_base
from retrain.rewards.math_text import LONGEST, choice, plain
from retrain.rewards.reward import Pending, Reward, RewardFailedError, complaint, is_milestone
from retrain.rewards.threads import Memo
from retrain.types import Completion, Problem, Score

_log = logging.getLogger("retrain")

TIMEOUT_S = 5.0
GLANCE_S = 10.0
"""Seconds in which references are looked at before training."""
_REMEMBERED = 2**16
_BETWEEN_DIGITS = re.compile(r"(?<=\d) +(?=\d)")
_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,300}")

_CORRECT = Score(1.0, "correct")
_WRONG = Score(0.0, "wrong")
_UNVERIFIABLE = Score(0.0, "unverifiable")


class MathReward(Reward):
    """1 for the right answer, 0 for a wrong one and for one that cannot be verified.

    Only the last `\\boxed{}` counts; a completion without one is wrong. Both are brought into one
    way of writing (`math_text`). What is then the same text, and whole numbers, are judged at once;
    the rest by math-verify in processes of their own. Unverifiable is what neither counts as right
    nor as wrong: the reference or the answer cannot be read as mathematics, or the check took
    longer than `timeout` seconds of CPU time.
    """

    early = True

    def __init__(self, timeout: float = TIMEOUT_S, processes: int | None = None) -> None:
        """processes: None takes the trainer's share of the cores, at most 4."""
        self._timeout = timeout
        self._processes = processes
        self._pool: MathPool | None = None
        self._in_a_step = False
        self._memo: Memo[tuple[str, str], Verdict] = Memo(_REMEMBERED)
        self._unread: set[str] = set()
        self._out_of_time = 0

    def recognises(self, problems: Sequence[Problem]) -> list[bool | None]:
        """Compares each reference with itself, for at most GLANCE_S seconds."""
        pool = MathPool(self._timeout, self._processes)
        checks = []
        for problem in problems:
            text = reference_of(problem).strip()
            is_plain = _WHOLE_NUMBER.fullmatch(plain(text)) or choice(text)
            own = last_boxed(f"\\boxed{{{text}}}") or ""
            checks.append(None if is_plain else pool.check(plain(text), plain(own)))
        wait([check for check in checks if check is not None], GLANCE_S)
        # Before the pool is closed, which gives up what is left.
        known = [check is None or check.done() for check in checks]
        try:
            return [
                None if not is_known else check is None or check.result().outcome == "correct"
                for check, is_known in zip(checks, known, strict=True)
            ]
        finally:
            pool.close()

    def begin_step(self) -> None:
        self._in_a_step = True
        if self._pool is not None:
            self._pool.begin_step()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()
        self._pool = None
        self._memo = Memo(_REMEMBERED)

    def probe(self, problem: Problem, completion: Completion) -> None:
        del problem, completion
        from importlib.util import find_spec

        for module in ("math_verify", "latex2sympy2_extended"):
            if find_spec(module) is None:
                raise InputError(
                    'reward.type: "math" needs the package math-verify; run: pip install '
                    "'math-verify>=0.8'"
                )

    def begin(self, problem: Problem, completion: Completion) -> Pending:
        answer = final_answer(completion)
        if not answer:
            return lambda: Score(0.0, "wrong", why=NO_ANSWER)
        reference = reference_of(problem).strip()
        if (quick := at_once(reference, answer)) is not None:
            return lambda: quick
        pair = (plain(reference), plain(answer))
        checked = self._memo.get(pair, lambda: self._checks().check(*pair))
        return partial(self._result, checked, problem, completion)

    def _checks(self) -> MathPool:
        if self._pool is None:
            self._pool = MathPool(self._timeout, self._processes)
            if self._in_a_step:
                self._pool.begin_step()
        return self._pool

    def _result(self, checked: Future[Verdict], problem: Problem, completion: Completion) -> Score:
        try:
            verdict = checked.result()
        except CancelledError as error:
            raise RewardFailedError(
                complaint("math was closed before it had judged", problem, completion)
            ) from error
        except OverBudgetError:
            verdict = Verdict("unverifiable", "budget")
        if verdict.outcome == "unverifiable":
            self._note(verdict.reason, problem)
            return Score(0.0, "unverifiable", why=verdict.why)
        return _CORRECT if verdict.outcome == "correct" else _WRONG

    def _note(self, reason: str, problem: Problem) -> None:
        if reason == "reference" and problem.id not in self._unread:
            self._unread.add(problem.id)
            if is_milestone(len(self._unread)):
                _log.warning(
                    "math: %s with a reference that cannot be read as mathematics so far; only an "
                    "answer with the same text is right there. Problem %s: %.200r",
                    "1 problem" if len(self._unread) == 1 else f"{len(self._unread)} problems",
                    problem.id,
                    problem.answer,
                )
        elif reason == "time":
            self._out_of_time += 1
            if is_milestone(self._out_of_time):
                _log.warning(
                    "math: %s so far could not be checked within %g seconds (problem %s); see "
                    "[reward].timeout",
                    "1 answer" if self._out_of_time == 1 else f"{self._out_of_time} answers",
                    self._timeout,
                    problem.id,
                )


def at_once(reference: str, answer: str) -> Score | None:
    """The score of an answer for which no process is needed; None for the others."""
    if (same := _same_whole(reference, answer)) is not None:
        return _CORRECT if same else _WRONG
    if reference == answer != "":
        return _CORRECT
    if len(answer) > LONGEST:
        return _UNVERIFIABLE
    if (same := same_choice(reference, answer)) is not None:
        return _CORRECT if same else _WRONG
    one, other = plain(reference), plain(answer)
    if _same_text(one, other):
        return _CORRECT
    for compared in (_same_whole, same_in_base):
        if (same := compared(one, other)) is not None:
            return _CORRECT if same else _WRONG
    return None


def _same_whole(one: str, other: str) -> bool | None:
    """Whether two whole numbers are the same; None for anything else."""
    if _WHOLE_NUMBER.fullmatch(one) and _WHOLE_NUMBER.fullmatch(other):
        return int(one) == int(other)
    return None


def _same_text(one: str, other: str) -> bool:
    # 2 1/3 is not 21/3.
    found, wanted = (without_space(_BETWEEN_DIGITS.sub("_", text)) for text in (one, other))
    return found == wanted != ""
