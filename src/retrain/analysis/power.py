"""How many seeds a comparison needs, and what a given number of seeds can show.

All effects here are *standardised*: a difference over the standard deviation of the paired
differences (`difference / sd`). The planned test is the exact sign-flip test. Its p values are
multiples of 2 / 2^n, so with few seeds it works at a level below the one asked for, or cannot
reject at all. Its power is taken to be that of the paired t test at the level which is really
attained; `benchmarks/calibration.py` compares that with simulation.
"""

from __future__ import annotations

import math

import numpy as np

EXACT_SEEDS = 17
"""Up to here all sign flips are enumerated: 2^17, of which half are mirror images."""

MOST_SEEDS = 10_000
"""A design that needs more seeds than this is reported as out of reach."""


def smallest_p(seeds: int) -> float:
    """The smallest two-sided p value that a sign-flip test of so many pairs can give.

    Formula: `min(1, 2 / 2^n)`: of all 2^n flips only the observed one and its mirror image are as
    extreme. 3 seeds: 0.25; 5: 0.0625; 6: 0.03125; 8: 0.0078. Above 17 seeds, where 2^16 flips are
    drawn, it stays at 1 / 2^16. Differences of zero count for nothing: with ties, n is the number
    of differences that are not zero.
    """
    return min(1.0, 2.0 * 2.0 ** -min(_seeds(seeds), EXACT_SEEDS))


def attained_level(seeds: int, alpha: float = 0.05) -> float:
    """The largest possible sign-flip p value that is at most alpha; 0 where there is none.

    Formula: `floor(alpha / q) * q` with `q = 2 / 2^n`. Assumes that there are no ties among the
    absolute sums. 5 seeds at 0.05 give 0 (nothing can be significant), 6 give 0.03125.
    """
    _level(alpha)
    quantum = smallest_p(seeds)
    # One part in 10^9: 0.05 * 2^n / 2 must not fall below a whole number by rounding.
    return min(alpha, math.floor(alpha / quantum * (1 + 1e-9)) * quantum)


def fewest_seeds(alpha: float = 0.05, contrasts: int = 1) -> int:
    """The fewest seeds whose smallest p value reaches alpha / contrasts (6 for 0.05)."""
    _level(alpha)
    if contrasts < 1:
        raise ValueError(f"contrasts must be at least 1, not {contrasts}")
    return max(2, math.ceil(math.log2(2 * contrasts / alpha) - 1e-9))


def power_t(seeds: int, effect: float, alpha: float = 0.05) -> float:
    """Power of the two-sided paired t test for a standardised effect.

    Formula: `1 - F(c) + F(-c)`, F the noncentral t distribution with n - 1 degrees of freedom and
    noncentrality `effect * sqrt(n)`, c the central t quantile at 1 - alpha / 2.

    Source: Cohen, "Statistical Power Analysis" (1988), chapter 2. Assumes independent, normal
    differences. Fewer than 2 seeds or alpha 0 give 0.
    """
    from scipy.special import nctdtr, stdtrit

    if alpha == 0.0 or _seeds(seeds) < 2:
        return 0.0
    _level(alpha)
    critical = float(stdtrit(seeds - 1, 1 - alpha / 2))
    center = abs(effect) * math.sqrt(seeds)
    # scipy's series ends in NaN where a tail is below 1e-15.
    upper, lower = np.nan_to_num(nctdtr(seeds - 1, center, np.array([critical, -critical])))
    return min(1.0, max(0.0, float(1 - upper + lower)))


def power_sign_flip(seeds: int, effect: float, alpha: float = 0.05) -> float:
    """Power of the exact sign-flip test: that of the t test at the attained level.

    An approximation for normal differences: a few points too high just above the fewest seeds
    that can reject. 0 where no p value reaches alpha.
    """
    return power_t(seeds, effect, attained_level(seeds, alpha))


def power_equivalence(seeds: int, margin: float, alpha: float = 0.05) -> float:
    """Power of two one-sided t tests to say "no difference larger than the margin".

    For a true difference of zero and normal differences; margin is standardised, alpha the level
    of each one-sided test.

    Formula: `E[max(0, 2 Phi(margin sqrt(n) - t(1 - alpha, n - 1) s) - 1)]` over
    `s^2 ~ chi2(n - 1) / (n - 1)`, by the midpoint rule on 2,000 quantiles of s.

    Source: Schuirmann, J. Pharmacokinet. Biopharm. 15 (1987). Fewer than 2 seeds give 0.
    """
    from scipy.special import chdtri, ndtr, stdtrit

    if _seeds(seeds) < 2:
        return 0.0
    _level(alpha)
    if not margin > 0:
        raise ValueError(f"the margin must be above 0, not {margin}")
    df = seeds - 1
    tails = (np.arange(2000) + 0.5) / 2000
    spreads = np.sqrt(chdtri(df, tails) / df)
    reach = margin * math.sqrt(seeds) - float(stdtrit(df, 1 - alpha)) * spreads
    return float(np.maximum(0.0, 2 * ndtr(reach) - 1).mean())


def detectable_effect(
    seeds: int, alpha: float = 0.05, power: float = 0.8, *, exact: bool = True
) -> float:
    """The standardised effect that a design finds with this power (minimum detectable effect).

    Formula: the solution of `power_sign_flip(n, effect, alpha) = power` by bisection (with
    `exact=False`: of `power_t`). Multiply by the sd of the differences for the unit of the data.

    Infinite where the test cannot reject whatever the data are: fewer than 2 seeds, or, with
    `exact`, where 2 / 2^n is above alpha.
    """
    _power(power)
    level = attained_level(seeds, alpha) if exact else alpha
    if level == 0.0 or _seeds(seeds) < 2:
        return math.inf
    low, high = 0.0, 1.0
    while power_t(seeds, high, level) < power:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if power_t(seeds, middle, level) >= power else (middle, high)
    return high


def needed_seeds(
    sd: float,
    difference: float,
    alpha: float = 0.05,
    power: float = 0.8,
    contrasts: int = 1,
    *,
    either_way: bool = False,
) -> int | None:
    """The fewest seeds that find a difference of this size with this power.

    sd is that of the paired differences, in the unit of `difference`. With several planned
    contrasts each is tested at alpha / contrasts, which is a little too many seeds for maxT. With
    `either_way` the design also says "no larger difference" with this power when there is none,
    so that it decides either way.

    Edge cases: an sd of 0 gives the fewest seeds that can reach significance at all. An sd
    estimated from a few seeds is itself uncertain: at 3 seeds by a factor of 0.5 to 6 (95 %).
    None above 10,000 seeds.
    """
    _power(power)
    if not (math.isfinite(sd) and sd >= 0):
        raise ValueError(f"sd must be finite and not negative, not {sd}")
    if not (math.isfinite(difference) and difference > 0):
        raise ValueError(f"the difference must be above 0, not {difference}")
    first = fewest_seeds(alpha, contrasts)
    level = alpha / contrasts
    if sd == 0.0:
        return first
    effect = difference / sd

    def enough(seeds: int) -> bool:
        if power_sign_flip(seeds, effect, level) < power:
            return False
        return not either_way or power_equivalence(seeds, effect, level) >= power

    # The attained level jumps up and down while n is small, so those are tried one by one.
    for seeds in range(first, 33):
        if enough(seeds):
            return seeds
    low, high = 32, 64
    while not enough(high):
        low, high = high, 2 * high
        if low >= MOST_SEEDS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high if high <= MOST_SEEDS else None


def _seeds(seeds: int) -> int:
    if seeds < 0:
        raise ValueError(f"the number of seeds cannot be negative: {seeds}")
    return seeds


def _level(alpha: float) -> None:
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha must lie between 0 and 1, not {alpha}")


def _power(power: float) -> None:
    if not 0.0 < power < 1.0:
        raise ValueError(f"power must lie between 0 and 1, not {power}")
