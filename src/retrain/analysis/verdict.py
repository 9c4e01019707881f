"""From the numbers of a campaign to a sentence: better, worse, no difference, or undecided.

The rule, for each planned contrast, at a level alpha and a margin that were fixed before the runs:

- better, worse: the sign-flip p value, corrected for all planned contrasts, is at most alpha.
- equivalent: else, two one-sided t tests at alpha, Holm-corrected over the contrasts, say that the
  difference is smaller than the margin.
- undecided: else. The sentence says how many more seeds would decide.

Before all of them, a contrast is "identical" when the runs of both sides learnt the same, step by
step: no number of seeds would show a difference.

A contrast whose condition was stopped for futility is none of these: it is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from retrain.analysis.futility import Dropped
from retrain.analysis.multiplicity import Method, correct_planned, holm
from retrain.analysis.paired import Paired, compare_pairs, equivalence_p, paired_differences
from retrain.analysis.power import fewest_seeds, needed_seeds
from retrain.analysis.words import Unit
from retrain.types import FloatArray

Kind = Literal["better", "worse", "equivalent", "undecided", "dropped", "identical"]


POINTS = Unit()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one contrast says, in a word and in a sentence."""

    kind: Kind
    text: str
    more_seeds: int | None = None
    """For "undecided": about how many more seeds would decide. None where that is unknown."""
    notes: tuple[str, ...] = ()
    """What a reader has to know beside it: too few seeds, missing runs, a small difference."""


IDENTICAL = Verdict(
    "identical", "identical: the same rewards and gradients in every step, under every seed"
)


@dataclass(frozen=True, slots=True)
class Judgement:
    """One planned contrast, judged together with the others."""

    treatment: int
    """Index of the condition."""
    baseline: int
    paired: Paired
    p: float | None
    """Sign-flip p value after correction."""
    method: Method
    p_equivalence: float | None
    """Of the two one-sided tests, after Holm's correction. None without a margin."""
    verdict: Verdict


def decide(
    paired: Paired,
    margin: float | None = None,
    alpha: float = 0.05,
    *,
    p: float | None = None,
    p_equivalence: float | None = None,
    contrasts: int = 1,
    unit: Unit = POINTS,
) -> Verdict:
    """The verdict on one contrast.

    `p` is the corrected p value (without it `paired.p_sign_flip`, which is right for a single
    planned contrast only), `p_equivalence` that of the two one-sided tests, `contrasts` the number
    of planned contrasts. The rule is the module's; "more seeds" is `power.needed_seeds` for a
    difference of the margin, either way, at the observed sd and 80 % power.

    Edge cases: no pair and one pair are undecided. A difference that is both significant and
    smaller than the margin is "better" or "worse", with a note. Without a margin nothing is
    equivalent, and "undecided" names the difference that these seeds could have found. Differences
    that are all zero are named as identical. The verdict never rests on the interval: with 3 seeds
    it can lie above zero while p cannot fall below 0.25.
    """
    if margin is not None and not (np.isfinite(margin) and margin > 0):
        raise ValueError(f"the margin must be a finite number above 0, not {margin}")
    contrast = paired.contrast
    if p is None:
        if contrasts > 1 and paired.p_sign_flip is not None:
            raise ValueError(f"{contrasts} planned contrasts need a corrected p value")
        p = paired.p_sign_flip
    first = fewest_seeds(alpha, contrasts)
    mean = contrast.mean_difference
    if mean is None or p is None:
        return Verdict("undecided", "undecided: no seed has a run of both conditions", first)
    notes = _notes(paired, alpha)
    equivalent = margin is not None and p_equivalence is not None and p_equivalence <= alpha
    if p <= alpha and mean != 0 and contrast.low is not None and contrast.high is not None:
        kind: Kind = "better" if mean > 0 else "worse"
        agree = paired.wins if mean > 0 else paired.losses
        corrected = " after correction" if contrasts > 1 else ""
        text = (
            f"{kind} ({unit.signed(mean)} {unit.name}, {100 * contrast.confidence:g} % CI "
            f"{unit.signed(contrast.low)} to {unit.signed(contrast.high)}, "
            f"p {_p_text(p)}{corrected}, {agree}/{contrast.n} seeds)"
        ).replace(" ,", ",")
        if equivalent and margin is not None:
            notes = (f"the difference is smaller than {unit.size(margin)}", *notes)
        return Verdict(kind, text, notes=notes)
    if equivalent and margin is not None:
        text = f"no difference larger than {unit.size(margin)}"
        if paired.ties == contrast.n:
            text += f" (identical under all {contrast.n} seeds)"
        return Verdict("equivalent", text, notes=notes)
    return _undecided(paired, margin, alpha, contrasts, unit, notes)


def judge(
    values_SC: ArrayLike,
    margin: float | None = None,
    alpha: float = 0.05,
    *,
    pairs: Sequence[tuple[int, int]] | None = None,
    unit: Unit = POINTS,
    seed: int = 0,
    dropped_K: Sequence[Dropped | None] | None = None,
) -> list[Judgement]:
    """Every planned contrast of a campaign, corrected together; S seeds by C conditions.

    `pairs` are (treatment, baseline) columns; without them each condition is compared with the
    first. Intervals have the confidence 1 - alpha and are those of each contrast by itself. NaN is
    a missing run; `paired.intention_to_treat` puts a floor where a run diverged. `dropped_K` has,
    for each pair, how it was stopped for futility, or None: such a contrast counts among the
    planned ones with p = 1, for "better" and for "equivalent".

    The method is "maxT" where all contrasts rest on the same seeds, "Holm" where they do not, and
    "none" for a single contrast. Fewer than two conditions, pairs outside the columns, or a
    `dropped_K` of another length raise ValueError.
    """
    values = np.asarray(values_SC, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] < 2:
        raise ValueError(f"values need seeds by two or more conditions, not {values.shape}")
    conditions = values.shape[1]
    chosen = [(k, 0) for k in range(1, conditions)] if pairs is None else list(pairs)
    for treatment, baseline in chosen:
        if not (0 <= treatment < conditions and 0 <= baseline < conditions):
            raise ValueError(f"contrast {treatment} against {baseline}: no such condition")
        if treatment == baseline:
            raise ValueError(f"condition {treatment} cannot be compared with itself")
    if not chosen:
        return []
    treatments, baselines = (np.asarray(side) for side in zip(*chosen, strict=True))
    differences_SK = paired_differences(values[:, treatments], values[:, baselines])
    stopped = [None] * len(chosen) if dropped_K is None else list(dropped_K)
    if len(stopped) != len(chosen):
        raise ValueError(f"{len(stopped)} entries of dropped_K for {len(chosen)} contrasts")
    given_up_K = np.asarray([stop is not None for stop in stopped])
    p_K, by_max_t = correct_planned(differences_SK, seed, dropped_K=given_up_K)
    method: Method = "none" if len(chosen) == 1 else "maxT" if by_max_t else "Holm"
    same_K: FloatArray = np.full(len(chosen), np.nan)
    if margin is not None:
        same_K = holm(np.where(given_up_K, 1.0, equivalence_p(differences_SK.T, margin)))
    judgements = []
    for k, (treatment, baseline) in enumerate(chosen):
        paired = compare_pairs(values[:, treatment], values[:, baseline], 1 - alpha)
        p = None if np.isnan(p_K[k]) else float(p_K[k])
        same = None if np.isnan(same_K[k]) else float(same_K[k])
        if (stop := stopped[k]) is not None:
            text = f"stopped for futility at step {stop.step} ({stop.numbers(unit)})"
            verdict = Verdict("dropped", text)
        else:
            verdict = decide(
                paired, margin, alpha, p=p, p_equivalence=same, contrasts=len(chosen), unit=unit
            )
        judgements.append(Judgement(treatment, baseline, paired, p, method, same, verdict))
    return judgements


def _undecided(
    paired: Paired,
    margin: float | None,
    alpha: float,
    contrasts: int,
    unit: Unit,
    notes: tuple[str, ...],
) -> Verdict:
    n, sd = paired.contrast.n, paired.sd
    if margin is None:
        if paired.detectable is None:
            return Verdict("undecided", f"undecided with {_many(n, 'seed')}", notes=notes)
        text = f"undecided: {_many(n, 'seed')} would find {unit.signed(paired.detectable)[1:]}"
        return Verdict("undecided", f"{text} {unit.name} or more".rstrip(), notes=notes)
    if sd is None:
        more = max(1, fewest_seeds(alpha, contrasts) - n)
        text = f"undecided: one seed shows no spread; at least {_many(more, 'more seed')} needed"
        return Verdict("undecided", text, more, notes)
    needed = needed_seeds(sd, margin, alpha, contrasts=contrasts, either_way=True)
    size = unit.size(margin)
    if needed is None:
        return Verdict(
            "undecided", f"undecided: no affordable number of seeds decides {size}", notes=notes
        )
    # Seeds that should have been enough by the observed spread, and were not: one more at least.
    more = max(1, needed - n)
    text = f"undecided: {_many(more, 'more seed')} would decide a difference of {size}"
    return Verdict("undecided", text, more, notes)


def _notes(paired: Paired, alpha: float) -> tuple[str, ...]:
    notes = []
    contrast = paired.contrast
    if paired.smallest_p > alpha and contrast.n:
        notes.append(
            f"{_differing(contrast.n - paired.ties)} cannot give a p value below "
            f"{paired.smallest_p:g}; {fewest_seeds(alpha)} can reach {alpha:g}"
        )
    if 2 <= contrast.n <= 3:
        notes.append("with 3 or fewer seeds the interval rests on differences being normal")
    if contrast.all_equal and contrast.mean_difference:
        notes.append("all seeds differ by the same amount: the interval has no width")
    if contrast.dropped:
        notes.append(f"{_many(contrast.dropped, 'seed')} left out: a run is missing")
    return tuple(notes)


def _differing(seeds: int) -> str:
    return "1 seed that differs" if seeds == 1 else f"{seeds} seeds that differ"


def _p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.2g}"


def _many(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
