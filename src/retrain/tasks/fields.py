"""The fields of a row: where they are, and a reference answer as text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from retrain.rewards.match import last_boxed

_INT64 = 2**63
_GSM8K = r"####\s*(.+)"
"""The preset `gsm8k`; its numbers are grouped by commas."""


class MissingError(Exception):
    """A field that is not there. holder: the field that should hold it, or empty for the row."""

    def __init__(self, holder: str, name: str, names: list[str]) -> None:
        super().__init__(name)
        self.holder = holder
        self.name = name
        self.names = names


def look_up(row: Mapping[str, Any], key: str) -> Any:
    """The value of a field; dots go into nested fields and, as numbers, into lists."""
    if key in row:
        return row[key]
    value: Any = row
    path: list[str] = []
    for name in key.split("."):
        holder = ".".join(path)
        if isinstance(value, Mapping):
            if name not in value:
                raise MissingError(holder, name, sorted(map(str, value)))
            value = value[name]
        elif isinstance(value, list) and name.isdigit() and int(name) < len(value):
            value = value[int(name)]
        elif value is None and path:
            return None
        else:
            raise MissingError(holder, name, [])
        path.append(name)
    return value


def answer_text(value: Any) -> str | None:
    """A reference answer as text; None when `value` is none.

    A number is written with the fewest digits that name it, without an exponent, and without a
    point when it is whole.
    """
    match value:
        case bool() | None:
            return None
        case str():
            return value if value.strip() else None
        case int():
            return str(value)
        # A column of whole numbers with gaps, which have 64 bits at most.
        case float() if value.is_integer() and abs(value) < _INT64:
            return str(int(value))
        case float() | Decimal():
            # numpy's floats are floats with another repr.
            exact = Decimal(float.__repr__(value)) if isinstance(value, float) else value
            if not exact.is_finite():
                return None
            text = format(exact, "f")
            return text.rstrip("0").rstrip(".") if "." in text else text
        case _:
            return None


def found_in(text: str, pattern: str) -> str | None:
    """What `[data].answer_pattern` finds in an answer, where it fits last; None for nothing."""
    if pattern == "boxed":
        found = last_boxed(text)
    else:
        fits = list(re.finditer(_GSM8K if pattern == "gsm8k" else pattern, text))
        found = fits[-1][1] if fits else None
    if found is not None and pattern == "gsm8k":
        found = found.replace(",", "")
    return found.strip() if found else None
