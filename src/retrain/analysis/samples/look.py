"""What the terminal and the page share: text that cannot do anything, numbers, colour scales."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import chain

from retrain.analysis.samples.sample import Sample

SHARE_IN_SCALE = 0.95
"""Full colour is for the few tokens beyond this share: one extreme must not pale all others."""

_BIDI = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_NEUTRAL = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"},
    0x7F: 0x2421,
    **dict.fromkeys([*range(0x80, 0xA0), *_BIDI, 0x2028, 0x2029, *range(0xD800, 0xE000)], 0xFFFD),
}


def visible(value: str) -> str:
    """Text of the same length in which control characters are pictures of themselves.

    Models write escape sequences, which a terminal would obey, and marks that turn text around.
    Line ends and tabs stay.
    """
    return value.translate(_NEUTRAL)


def one_line(value: str) -> str:
    """`visible` text without line ends, for names."""
    return " ".join(visible(value).split())


def shown_number(value: float | None, sign: bool = False) -> str:
    """`0.5`, `+1.667`, `–` for an unknown one."""
    if value is None:
        return "–"
    return f"{value + 0.0:{'+' if sign and value else ''}.4g}"


def advantage_scale(samples: Iterable[Sample]) -> float:
    """The size of token advantage that gets full colour; 0 when there is nothing to colour."""
    return _scale(token.advantage for sample in samples for token in sample.tokens)


def uncertainty_scale(samples: Iterable[Sample]) -> float:
    """The uncertainty that gets full colour; 0 when there is nothing to colour."""
    return _scale(token.uncertainty for sample in samples for token in sample.tokens)


def place_on_scale(value: float | None, scale: float) -> float:
    """From -1 to 1; 0 is no colour."""
    if value is None or scale <= 0:
        return 0.0
    return max(-1.0, min(1.0, value / scale))


def _scale(values: Iterable[float | None]) -> float:
    sizes = sorted(abs(value) for value in values if value)
    return sizes[math.ceil(SHARE_IN_SCALE * len(sizes)) - 1] if sizes else 0.0


def marks(samples: Iterable[Sample]) -> bool:
    """Whether any of them has planning spans."""
    return any(chain.from_iterable(sample.planning for sample in samples))
