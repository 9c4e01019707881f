"""Whether a condition can still win, judged while its campaign runs.

Only for futility: nothing is ever called better or worse before the end. A condition that is
stopped stays in the family of planned contrasts with p = 1 (`multiplicity.correct_planned`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike

from retrain.analysis.paired import paired_differences, t_interval
from retrain.analysis.reading import items, number, text
from retrain.analysis.words import Unit
from retrain.types import BoolArray, FloatArray, IntArray


class Look(NamedTuple):
    """Interim comparisons; every field has the shape of the leading axes of the values."""

    seeds: IntArray
    """Pairs that the comparison rests on."""
    difference: FloatArray
    """Mean of treatment minus baseline; NaN without a pair."""
    low: FloatArray
    """Lower end of the interval; NaN below 2 pairs."""
    high: FloatArray
    futile: BoolArray
    """Whether the condition cannot win by the margin."""


def look(
    treatment_S: ArrayLike,
    baseline_S: ArrayLike,
    margin: float,
    confidence: float = 0.95,
    min_seeds: int = 3,
) -> Look:
    """Whether conditions can still win by the margin, from their values at one step; (..., S).

    Formula: futile when there are at least `min_seeds` pairs and the upper end of the two-sided
    paired t interval, `mean(d) + t(1 - (1 - confidence) / 2, n - 1) sd(d) / sqrt(n)`, lies below
    +margin: the test of "the difference is at least the margin" rejects at (1 - confidence) / 2.

    Source: futility by a confidence interval, Jennison & Turnbull, "Group Sequential Methods"
    (2000), chapters 9 and 10; non-binding, as a stopped contrast can only lose claims.

    Assumptions: differences at the step are roughly normal and independent between seeds, and a
    condition that is behind then does not catch up later: that is what a user says who names the
    step. The level of the final test needs neither. Looked at again with each new seed, a condition
    whose difference is exactly the margin is stopped more often than (1 - confidence) / 2.

    Edge cases: pairs with NaN (not there yet, or not measured) are left out; a diverged run has to
    come with its floor. Where all differences are equal the interval has no width and is taken as
    it is. Infinity, a margin that is not above 0 and fewer than 2 `min_seeds` raise ValueError.
    """
    if not (np.isfinite(margin) and margin > 0):
        raise ValueError(f"the margin must be a finite number above 0, not {margin}")
    if min_seeds < 2:
        raise ValueError(f"min_seeds must be at least 2, not {min_seeds}: one pair has no interval")
    differences = paired_differences(treatment_S, baseline_S)
    mean, low, high = t_interval(differences, confidence)
    seeds = (~np.isnan(differences)).sum(axis=-1)
    with np.errstate(invalid="ignore"):
        futile = (seeds >= min_seeds) & (high < margin)
    return Look(seeds, mean, low, high, np.asarray(futile))


@dataclass(frozen=True, slots=True)
class Dropped:
    """A planned contrast whose condition was stopped: an entry of the manifest's `dropped`."""

    condition: str
    baseline: str
    step: int
    seeds: int
    difference: float
    low: float
    high: float
    margin: float
    confidence: float

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Self | None:
        """From its entry; None when that is not whole."""
        condition, baseline = text(entry, "condition"), text(entry, "baseline")
        keys = ("step", "seeds", "difference", "low", "high", "margin", "confidence")
        found = [value for key in keys if (value := number(entry, key)) is not None]
        if not condition or not baseline or len(found) < len(keys):
            return None
        step, seeds, *measured = found
        return cls(condition, baseline, int(step), int(seeds), *measured)

    def numbers(self, unit: Unit) -> str:
        """`-1.2 points, 95 % CI -3.0 to +0.6, below +2 points`."""
        shown = (
            f"{unit.signed(self.difference)} {unit.name}, {100 * self.confidence:g} % CI "
            f"{unit.signed(self.low)} to {unit.signed(self.high)}, below +{unit.size(self.margin)}"
        )
        return shown.replace(" ,", ",")


def dropped_in(manifest: Mapping[str, Any]) -> dict[tuple[str, str], Dropped]:
    """The contrasts of stopped conditions in a campaign's manifest, by (condition, baseline)."""
    entries = [entry for entry in items(manifest, "dropped") if isinstance(entry, dict)]
    found = [dropped for entry in entries if (dropped := Dropped.of(entry))]
    return {(dropped.condition, dropped.baseline): dropped for dropped in found}


def dropped_pairs(
    manifest: Mapping[str, Any], pairs: Sequence[tuple[str, str]]
) -> list[Dropped | None]:
    """How each (treatment, baseline) was dropped, or None, for `verdict.judge`.

    A comparison that was not planned, with a condition that was stopped, takes what stopped it.
    """
    found = dropped_in(manifest)
    by_condition = {dropped.condition: dropped for dropped in reversed(found.values())}
    return [
        found.get((treatment, baseline))
        or by_condition.get(treatment)
        or by_condition.get(baseline)
        for treatment, baseline in pairs
    ]
