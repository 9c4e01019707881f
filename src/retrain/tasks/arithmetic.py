"""The arithmetic task: `Compute 7*8-19+35.`, answered in `\\boxed{}`.

An expression has two or three operations. It opens with a number from 1 to 99 or with the
product of two digits from 2 to 9; sums and differences with numbers from 1 to 99 follow. A
product stands only in front, so working from left to right obeys the usual precedence. Every
intermediate result, the answer among them, lies in 0..99.

One expression in ten is held out, by a hash of its text: no list of problems has to be kept,
and nothing that trains on `is_held_out(...) == False` can have seen a held-out problem.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from retrain import seeding
from retrain.types import Problem

Operator = Literal["+", "-", "*"]

LARGEST = 99
"""The largest operand and the largest intermediate result."""

_PRODUCT_SHARE = 0.5
_DIGITS = (2, 9)
_HELD_OUT_ONE_IN = 10


@dataclass(frozen=True, slots=True)
class Step:
    """One operation of a worked solution: `left operator right = result`."""

    left: int
    operator: Operator
    right: int
    result: int


@dataclass(frozen=True, slots=True)
class Expression:
    """Operands joined by operators, worked from left to right.

    operands:  (operations + 1,)
    operators: (operations,); a "*" only in front
    """

    operands: tuple[int, ...]
    operators: tuple[Operator, ...]

    def __post_init__(self) -> None:
        if len(self.operands) != len(self.operators) + 1:
            raise ValueError("an expression needs one operand more than it has operators")
        if "*" in self.operators[1:]:
            raise ValueError("a product is allowed only in front")

    @classmethod
    def parse(cls, text: str) -> Expression:
        """`7*8-19+35` -> its expression; the inverse of `text`."""
        operators: list[Operator] = [op for c in text for op in get_args(Operator) if c == op]
        return cls(tuple(int(number) for number in re.split(r"[-+*]", text)), tuple(operators))

    @property
    def text(self) -> str:
        tail = (f"{op}{n}" for op, n in zip(self.operators, self.operands[1:], strict=True))
        return str(self.operands[0]) + "".join(tail)

    @property
    def steps(self) -> tuple[Step, ...]:
        """(operations,) the worked solution, one operation a step."""
        steps: list[Step] = []
        value = self.operands[0]
        for operator, operand in zip(self.operators, self.operands[1:], strict=True):
            steps.append(Step(value, operator, operand, apply(operator, value, operand)))
            value = steps[-1].result
        return tuple(steps)

    @property
    def answer(self) -> int:
        return self.steps[-1].result

    @property
    def is_held_out(self) -> bool:
        digest = hashlib.blake2b(self.text.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") % _HELD_OUT_ONE_IN == 0

    @property
    def problem(self) -> Problem:
        return Problem(
            id=f"arithmetic:{self.text}",
            prompt=f"Compute {self.text}.",
            answer=str(self.answer),
            domain="arithmetic",
        )


def apply(operator: Operator, left: int, right: int) -> int:
    """The result of one operation."""
    match operator:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right


def draw(stream: np.random.Generator) -> Expression:
    """One expression of either split."""
    operations = int(stream.integers(2, 4))
    operators: list[Operator] = []
    if stream.random() < _PRODUCT_SHARE:
        low, high = _DIGITS
        operands = [int(n) for n in stream.integers(low, high + 1, size=2)]
        operators.append("*")
        value = operands[0] * operands[1]
    else:
        operands = [int(stream.integers(1, LARGEST + 1))]
        value = operands[0]
    while len(operators) < operations:
        room: dict[Operator, int] = {"+": LARGEST - value, "-": value}
        allowed = [operator for operator, most in room.items() if most > 0]
        operator = allowed[int(stream.integers(len(allowed)))]
        operand = int(stream.integers(1, room[operator] + 1))
        operators.append(operator)
        operands.append(operand)
        value = apply(operator, value, operand)
    return Expression(tuple(operands), tuple(operators))


def draw_distinct(stream: np.random.Generator, *, held_out: bool) -> Iterator[Expression]:
    """Expressions of one split without end, none of them twice."""
    seen: set[Expression] = set()
    while True:
        expression = draw(stream)
        if expression not in seen and expression.is_held_out == held_out:
            seen.add(expression)
            yield expression


class ArithmeticTask:
    """The task that needs no data: its problems are drawn, not stored."""

    name = "arithmetic"

    def train_batch(self, seed: int, step: int, batch_size: int) -> list[Problem]:
        """`batch_size` distinct problems; a smaller batch is the start of a larger one."""
        stream = seeding.generator(seed, "arithmetic/train", step)
        expressions = draw_distinct(stream, held_out=False)
        return [next(expressions).problem for _ in range(batch_size)]

    def held_out(self, num_problems: int) -> list[Problem]:
        """The first `num_problems` held-out problems, the same for everyone."""
        stream = seeding.generator(0, "arithmetic/held-out")
        expressions = draw_distinct(stream, held_out=True)
        return [next(expressions).problem for _ in range(num_problems)]
