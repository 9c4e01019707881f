"""What is too long, too deep or too large to be read or computed as mathematics."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from retrain.rewards.math_text import LONGEST

DEEPEST = 60
"""Braces and brackets inside each other."""
MOST_DIGITS = 5000
"""Digits of a number that is computed."""


class UnreadableError(Exception):
    """The text is no mathematics that can be read; the message is the reason."""


def check_shape(text: str) -> None:
    """Raises UnreadableError for a text that no parser needs to see."""
    if len(text) > LONGEST:
        raise UnreadableError("length")
    if not text.strip() or (not text.isascii() and any(_odd(character) for character in text)):
        raise UnreadableError("text")
    depth = 0
    for character in text:
        if character in "{[(":
            depth += 1
            if depth > DEEPEST:
                raise UnreadableError("depth")
        elif character in "}])":
            depth -= 1
    if max((text.count(sign) for sign in "^!"), default=0) > DEEPEST:
        raise UnreadableError("depth")


def _odd(character: str) -> bool:
    """Digits of other scripts, which int() would read, and halves of characters."""
    return character.isdigit() or "\ud800" <= character <= "\udfff"


def check_size(expression: Any, sympy: Any) -> None:
    """Raises UnreadableError when computing the expression would make an enormous number."""

    def digits(node: Any) -> tuple[float, float]:
        """Upper bounds of the digits above and below the fraction line of a number's value."""
        if isinstance(node, sympy.Rational):
            return _log10(int(node.p)), _log10(int(node.q))
        if isinstance(node, sympy.Float):
            size = float(sympy.log(abs(node), 10)) if node else 0.0
            return (math.inf, 0.0) if math.isinf(size) else (max(size, 0.0), max(-size, 0.0))
        below = [digits(argument) for argument in getattr(node, "args", ())]
        # Members of a set are not multiplied.
        total: Callable[..., float] = sum if isinstance(node, sympy.Expr) else max
        above, under = map(total, zip(*below, strict=True)) if below else (0.5, 0.0)
        if isinstance(node, sympy.Pow) and node.exp.is_number:
            power = _bound(node.exp, below[1])
            # Nobody expands (x + 1)^1000000 and lives.
            above, under = (
                max(part, 0.0 if node.base.is_number else 1.0) * power for part in below[0]
            )
            if node.exp.could_extract_minus_sign():
                above, under = under, above
        elif isinstance(node, sympy.Pow):
            above, under = map(max, zip(*below, strict=True))
        elif isinstance(node, sympy.factorial) and node.args[0].is_number:
            number = _bound(node.args[0], below[0])
            above, under = (
                math.lgamma(number + 1.0) / math.log(10.0) if number < 1e9 else number,
                0.0,
            )
        elif isinstance(node, sympy.Add):
            above = max(own - its + under for own, its in below) + math.log10(len(below))
        if max(above, under) > MOST_DIGITS:
            raise UnreadableError("size")
        return above, under

    try:
        digits(expression)
    except RecursionError:
        raise UnreadableError("depth") from None


def _log10(number: int) -> float:
    """Of its size; 0 for 0. Whatever its length."""
    bits = max(abs(number).bit_length() - 60, 0)
    return bits * math.log10(2.0) + math.log10(max(abs(number) >> bits, 1))


def _bound(number: Any, digits: tuple[float, float]) -> float:
    """An upper bound of its size."""
    if number.is_Rational:
        return abs(int(number.p)) / int(number.q) if max(digits) < 300 else math.inf
    return float(10.0 ** digits[0]) if digits[0] < 300 else math.inf
