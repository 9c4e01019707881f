"""Sets, intervals, systems and numbers with a base in a mathematical answer."""

from __future__ import annotations

import re

_BASES = "two three four five six seven eight nine ten eleven twelve"
_DIGITS = {name: str(base) for base, name in enumerate(_BASES.split(), start=2)}
_NAME = r"(?P<name>[A-Za-z]|\\[a-z]+)"
_BOUND = re.compile(_NAME + r" ?(?P<sign><|>|\\[lg]e(?![a-z])) ?(?P<value>[^<>]+)")
_BETWEEN = re.compile(
    r"(?P<low>[^<>]+?) ?(?P<first><|\\le(?![a-z])) ?"
    + _NAME
    + r" ?(?P<sign><|\\le(?![a-z])) ?(?P<high>[^<>]+)"
)


def sets_and_bases(text: str) -> str:
    """Intervals, sets and bases."""
    text = re.sub(r",?\s*\(?\s*[A-Za-z]\s*\\in\s*\\mathbb\s*\{[ZR]\}\s*\)?$", "", text) or text
    text = re.sub(
        r"^(?:\\\{)?\s*\\begin\{(?:cases|array|aligned)\}(?:\{[lcr| ]*\})?(.*)\\end\{[a-z]*\}$",
        _system,
        text.strip(),
    )
    text = _union(text)
    text = re.sub(r"^\](.*)(?=[\[\]]$)", r"(\1", text)
    text = re.sub(r"(?<=^[(\[])(.*)\[$", r"\1)", text)
    if ";" in text and text[0] in "([{\\" and text[-1] in ")]}" and ", " not in text:
        text = re.sub(r"(?<=\d),(?=\d)", ".", text).replace(";", ",")
    text = re.sub(
        r"^\\\{\s*(?:[A-Za-z]|\\[a-z]+)\s*(?:\\in\s*\\mathbb\s*\{[RC]\}\s*)?(?:\\mid|\||:)(.*)\\\}$",
        lambda found: found[1],
        text,
    )
    text = re.sub(
        r"(?<=\w)\s*(?:_\s*\{?\s*)?(?:\(|\\text\{\s*\(?)?\s*(?:in\s+)?base\s*-?\s*\}?\s*(\w+)\s*\)?\s*\}?"
        r"[)}]?$",
        lambda found: f"_{{{_DIGITS.get(found[1].lower(), found[1])}}}",
        text,
    )
    text = re.sub(r"(?<![\dA-F])(\d[\dA-F]*)_\s*\{?\s*\(\s*(\w+)\s*\)\s*\}?", r"\1_{\2}", text)
    text = re.sub(
        r"(?<=\d)_\s*\{?\s*(?:\\text\{\s*)?([a-z]+)\s*\}?\s*\}?",
        lambda found: f"_{{{_DIGITS[found[1]]}}}" if found[1] in _DIGITS else found[0],
        text,
    )
    if (number := in_base(text)) is not None:
        return f"{number[0]}_{{{number[1]}}}"
    return re.sub(
        r"(?<![\dA-Za-z\\_.{}])(\d+)_(?:\{(\d+)\}|(\d+))",
        lambda found: str(_value(found[1], int(found[2] or found[3])) or found[0]),
        text,
    )


def _union(text: str) -> str:
    """Inequalities of one variable with `or` between them as a union of intervals; other answers
    with `or` as several."""
    parts = text.split("\\lor")
    found = [(_BOUND.fullmatch(part.strip()), _BETWEEN.fullmatch(part.strip())) for part in parts]
    names = {(one or two)["name"] if one or two else "" for one, two in found}  # type: ignore[index]
    if len(parts) == 1 or len(names) > 1 or "" in names:
        return re.sub(r"(?:\s*,)*\s*\\lor(?![a-z])", ",", text)
    return "\\cup ".join(_interval(one, two) for one, two in found)


def _interval(bound: re.Match[str] | None, between: re.Match[str] | None) -> str:
    low, high, sign, low_sign = "-\\infty", "\\infty", "", ""
    if bound and bound["sign"] in ("<", "\\le"):
        high, sign = bound["value"], bound["sign"]
    elif bound:
        low, low_sign = bound["value"], bound["sign"]
    elif between:
        low, low_sign, sign, high = (
            between["low"],
            between["first"],
            between["sign"],
            between["high"],
        )
    return f"{'[' if 'e' in low_sign else '('}{low},{high}{']' if 'e' in sign else ')'}"


def _system(found: re.Match[str]) -> str:
    """Equations below each other as equations beside each other; a function by cases as it is."""
    rows = [row for part in found[1].split("\\\\") if (row := re.sub("& *(?==)", "", part).strip())]
    return found[0] if "&" in "".join(rows) or "=" not in found[1] else ", ".join(rows)


def in_base(text: str) -> tuple[str, int] | None:
    """(digits, base) when `text` is one number with its base, as in `110_2`."""
    found = re.fullmatch(r"\(?(-?[0-9A-Z ]{1,200})\)?_\s*(?:\{\s*(\d{1,2})\s*\}|(\d))", text)
    if found is None:
        return None
    return found[1].replace(" ", ""), int(found[2] or found[3])


def same_in_base(reference: str, answer: str) -> bool | None:
    """Whether two numbers are the same when a base is written; None when none is. A number
    without one is in base ten, and text for text: 243_5 is neither 243 nor 73, what was to be
    converted."""
    one, other = in_base(reference), in_base(answer)
    if one is None and other is None:
        return None
    if one is None or other is None:
        return (one or (reference, 10)) == (other or (answer, 10))
    return one == other or _value(*one) == _value(*other) is not None


def _value(digits: str, base: int) -> int | None:
    try:
        return int(digits, base) if base > 1 else None
    except ValueError:
        return None
