"""What the terminal and the page share: names, numbers, colour scales."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import chain

from retrain.analysis.samples.sample import Sample
from retrain.output import visible

SHARE_IN_SCALE = 0.95
"""Full colour is for the few tokens beyond this share: one extreme must not pale all others."""


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
