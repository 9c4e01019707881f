"""The text that the embedded model is made from: three ways to answer an arithmetic problem.

A *careful* solution names its plan and works step by step; now and then a step slips and is
noticed and corrected, or a right step is checked by its inverse. A *guess* gives a number that
is right about once in ten. A *sloppy* solution works step by step and never notices its one
slip. A problem of two operations is mostly answered with care, one of three tempts to
guess. The mixture leaves reinforcement learning two things to find: that care pays on every
problem, and how to carry it out without slips.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

from retrain.models.tiny.tokenizer import BOXED
from retrain.tasks.arithmetic import LARGEST, Expression, Step, apply

_OPENING = "Let me think: "
_CORRECTIONS = (
    " Wait, let me check: ",
    " Wait, let me check: ",
    " That's not right: ",
    " On second thought: ",
)
_CHECKS = (" Let me check: ", " Let me double check: ", " Let me verify: ", " Notice that ")
_CLOSINGS = (" So", " So", " So the answer is")

_GUESS_RIGHT = 0.1


@dataclass(frozen=True, slots=True)
class Mixture:
    """Shares of the three ways of answering (they sum to 1), and how a careful step goes.

    careful, guess, sloppy: the shares for a problem of two operations
    haste: the share that goes from careful to guess with a third operation
    slip:  how often a careful step slips, to be corrected at once
    check: how often a careful step that did not slip is checked by its inverse
    """

    careful: float
    guess: float
    sloppy: float
    haste: float
    slip: float
    check: float

    def towards(self, other: Mixture, share: float) -> Mixture:
        """The mixture a `share` (0..1) of the way from this one to the other."""
        names = [field.name for field in fields(self)]
        return replace(
            self,
            **{
                name: (1 - share) * getattr(self, name) + share * getattr(other, name)
                for name in names
            },
        )


def solution(expression: Expression, mixture: Mixture, stream: np.random.Generator) -> str:
    """One answer to the expression, drawn from the mixture."""
    haste = mixture.haste if len(expression.operators) > 2 else 0.0
    u = stream.random()
    if u < mixture.careful - haste:
        return _careful(expression, mixture, stream)
    if u < mixture.careful + mixture.guess:
        return _guess(expression, stream)
    return _sloppy(expression, stream)


def _careful(expression: Expression, mixture: Mixture, stream: np.random.Generator) -> str:
    parts = [_OPENING]
    for index, step in enumerate(expression.steps):
        separator = ". " if index else ""
        if stream.random() < mixture.slip:
            slip = _write(replace(step, result=_slip(step, stream)))
            parts.append(f"{separator}{slip}.{_pick(_CORRECTIONS, stream)}{_write(step)}")
        else:
            parts.append(separator + _write(step))
            if stream.random() < mixture.check:
                parts.append(f".{_pick(_CHECKS, stream)}{_write(_inverse(step))}")
    return "".join(parts) + _close(expression.answer, stream)


def _guess(expression: Expression, stream: np.random.Generator) -> str:
    right = stream.random() < _GUESS_RIGHT
    number = expression.answer if right else int(stream.integers(LARGEST + 1))
    return f"It looks like {BOXED}{number}}}"


def _sloppy(expression: Expression, stream: np.random.Generator) -> str:
    """Exactly one step slips; what follows builds on it and stays in 0..99."""
    while True:
        slips_at = int(stream.integers(len(expression.steps)))
        value = expression.operands[0]
        written: list[Step] = []
        for index, operator in enumerate(expression.operators):
            operand = expression.operands[index + 1]
            step = Step(value, operator, operand, apply(operator, value, operand))
            if index == slips_at:
                step = replace(step, result=_slip(step, stream))
            written.append(step)
            value = step.result
        if all(0 <= step.result <= LARGEST for step in written):
            return ". ".join(map(_write, written)) + _close(value, stream)


def _slip(step: Step, stream: np.random.Generator) -> int:
    """A wrong result that looks right: off by one or two, by ten, or by one factor."""
    distances = [1, 2, 10] if step.operator != "*" else [1, 10, step.left, step.right]
    while True:
        distance = distances[int(stream.integers(len(distances)))]
        result = step.result + (distance if stream.random() < 0.5 else -distance)
        if 0 <= result <= LARGEST:
            return result


def _inverse(step: Step) -> Step:
    """The operation that confirms a step: 43-20=23 confirms 23+20=43."""
    match step.operator:
        case "+":
            return Step(step.result, "-", step.right, step.left)
        case "-":
            return Step(step.result, "+", step.right, step.left)
        case "*":
            return Step(step.right, "*", step.left, step.result)


def _write(step: Step) -> str:
    return f"{step.left}{step.operator}{step.right}={step.result}"


def _close(answer: int, stream: np.random.Generator) -> str:
    return f".{_pick(_CLOSINGS, stream)} {BOXED}{answer}}}"


def _pick(texts: tuple[str, ...], stream: np.random.Generator) -> str:
    return texts[int(stream.integers(len(texts)))]
