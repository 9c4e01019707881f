"""Units and words in a mathematical answer, and which letters are neither."""

from __future__ import annotations

import re

_SHORT = (
    "mm cm dm km m ft in yd mi kg mg g lb lbs oz s sec min hr hrs h mL ml L l ha Hz kHz MHz kW W J "
    "kJ N Pa kPa V mV A mA K C F mol rad sq cu mph kmh cc gm ms ns nm eV MeV T Wb H"
)
_UNITS = frozenset(_SHORT.split())
# From `am` on: without it, 7 am would be 7 pm.
_OTHERS = (
    "i e d pi or and if not no times percent squared cubed plus minus remainder mod factorial "
    "am pm a.m. p.m. AM PM AD BC BCE CE north south east west left right up down increase decrease "
    "profit loss gain more less dozen half"
)
_NO_UNITS = frozenset(_OTHERS.split())


def without_unit(text: str) -> str:
    """Without the unit at the end, when a value stands before it."""
    text = text.strip()
    text = re.sub(r"^(?:Rs|USD|EUR|US)\b\.?\s*(?=[\d\\])", "", text)
    found = re.fullmatch(r"(.*?)\(([^()]*\\text\{[^{}]*\}[^()]*)\)", text)
    if found:
        text = found[1] + found[2]
    while found := re.fullmatch(
        r"(.*\S)\s*\\text\{([^{}]*)\}\s*(?:\^\s*(?:\{\s*-?\d+\s*\}|\d))?", text
    ):
        value = re.sub(r"(?:(?<=[\d})])\s*/|\\cdot|\\times)?\s*$", "", found[1])
        words = found[2].split()
        if not _is_value(value, len(words) == 1 and len(words[0]) == 1) or set(words) & _NO_UNITS:
            break
        text = value
    found = re.fullmatch(
        r"(.*(?:[\d})]|\\pi(?= )))(\s*)([A-Za-z]+(?:(?:\s*/\s*|\s+)[A-Za-z]+)*)\s*"
        r"(?:\^\s*(?:\{\s*-?\d\s*\}|\d)|(?<=m)[23])?",
        text,
    )
    if found and _is_value(found[1], numeric=True):
        words = re.split(r"[\s/]+", found[3])
        spaced = bool(found[2]) or "/" in found[3]
        if all(_is_unit(word, spaced) for word in words) and not set(words) & _NO_UNITS:
            text = found[1]
    return text.strip()


def _is_value(text: str, numeric: bool) -> bool:
    """Whether a unit may follow. numeric: a value without variables is asked for."""
    rest = re.sub(r"\\text\{[^{}]*\}", "", text)
    if numeric and re.search(r"(?<![A-Za-z\\])[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", rest)):
        return False
    return bool(
        re.search(r"[\dA-Za-z]", rest)
        and re.search(r"[\w})\]!%]\s*$", text)
        and not re.search(
            r"\\(?:cdot|times|in|lor|cup|cap|to|pm|le|ge|ne|sqrt|frac|sin|cos|tan|ln|log)\s*$", text
        )
    )


def _is_unit(word: str, spaced: bool) -> bool:
    if word in _UNITS:
        return spaced or len(word) > 1
    return len(word) > 2 and _is_word(word)


def _is_word(letters: str) -> bool:
    """Whether letters side by side are a word, not a product of variables. Products are short, hold
    no vowel but an `a` among usual variables, and write a repeated factor as a power."""
    if len(letters) == 1:
        return False
    if len(letters) > 4 or len(set(letters)) < len(letters):
        return True
    if letters.isupper():
        return len(letters) > 2
    if len(letters) == 2:
        return "o" in letters
    return bool(set(letters) & set("eiou")) or (
        "a" in letters and set(letters) > set("a") and not set(letters) <= set("abcdkgnxyz")
    )


def words_as_text(text: str) -> str:
    """Words as one `\\text{…}` without case and spaces: their letters are no variables."""
    text = re.sub(r"\\text\{([^{}]*)\}", lambda found: _word(found[1], text), text)
    text = re.sub(r"\\(angle|triangle)\s+([A-Z]{2,})(?![A-Za-z])", _corners, text)
    text = re.sub(
        r"\\text\{\w+\}(?: ?\\text\{\w+\})+",
        lambda found: re.sub(r"\} ?\\text\{", "", found[0]),
        text,
    )
    text = re.sub(
        r"(^|[,;=(\[:]|\\\{)\s*([A-Za-z]+(?: [A-Za-z]+)*)\s*(?=$|[,;=)\]:_]|\\\})",
        lambda found: found[1] + _word(found[2], ""),
        text,
    )
    if "\\int" in text or re.search(r"[/{] *d *[A-Za-z\\]", text):
        return text
    # The parser takes the dc of dcba for a differential.
    return re.sub(
        r"\\[A-Za-z]+(?:\{[A-Za-z]*\})?|(?<!mo)d(?= ?[A-Za-z\\])",
        lambda found: "{d}" if found[0] == "d" else found[0],
        text,
    )


def _corners(found: re.Match[str]) -> str:
    return f"\\text{{{found[1]}{found[2].casefold()}}}"


def _word(inside: str, whole: str) -> str:
    """`whole`: the text that a `\\text{…}` stands in; empty for bare letters."""
    runs = re.findall(r"[^\W\d_]+", inside)
    letters = "".join(runs)
    if (len(runs) > 1 and max(map(len, runs)) > 1) or _is_word(letters) or not letters.isascii():
        return f"\\text{{{letters.casefold()}}}"
    if whole and len(letters) == 1:
        return letters
    return inside.strip() if not whole else f" {letters} "
