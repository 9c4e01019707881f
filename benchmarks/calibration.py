"""How often the statistics of a campaign are wrong, counted on simulated campaigns.

    python benchmarks/calibration.py [--campaigns 20000] [--json]

A simulated campaign has S seeds and C conditions. A run's accuracy is a base value, plus an effect
of its seed that all conditions share (common random numbers), plus noise of its own in the given
shape, plus its condition's effect; what is measured is the share of correct answers among
`EPISODES`. With "failures" a run diverges now and then, and scores the floor, or is missing.

Three worlds are drawn for each design: no condition differs in its mean (null), every condition is
worse than the first by exactly the margin, and half of the conditions are. A second table shows
limits: conditions of equal mean whose outcomes have unlike shapes. The functions are those that
`retrain` judges with: `correct_planned`, `t_interval`, `equivalence_p`, `holm`, `needed_seeds`.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
from scipy.special import ndtr

from retrain.analysis.multiplicity import correct_planned, holm
from retrain.analysis.paired import equivalence_p, sign_flip_p, t_interval, t_test_p
from retrain.analysis.power import needed_seeds
from retrain.seeding import generator
from retrain.types import FloatArray

SHAPES = ("normal", "skewed", "bimodal", "failures")
LIMITS = ("unlike", "rare failures")
"""Conditions other than the first have skewed noise of twice the size, or alone diverge."""
SEEDS = (3, 5, 8)
CONDITIONS = (2, 5)
ALPHA = 0.05

BASE = 0.6
"""Accuracy of every condition before effects."""
SEED_SD = 0.03
"""Of the effect of a seed, which all conditions share."""
RUN_SD = 0.02
"""Of a run's own noise."""
MARGIN = 0.1
"""Five times a run's noise: the two one-sided tests then err as often as they ever do."""
EPISODES = 1000
"""Held-out answers of a run, each right or wrong."""
DIVERGED, MISSING, FLOOR = 0.10, 0.05, 0.25
"""Chance that a run diverges, that it is missing, and what a diverged run scores."""


@dataclass(frozen=True)
class Row:
    """One design; shares of simulated campaigns (of intervals for the coverages)."""

    shape: str
    seeds: int
    conditions: int
    false_positive: float
    """Null: a "better" or "worse" in any planned contrast."""
    false_positive_partial: float
    """Half of the conditions differ: the same, among those that do not. NaN with two."""
    coverage: float
    """Of the true difference by the 95 % t interval."""
    wrong_equivalent: float
    """Worse by exactly the margin: "no difference larger" in any contrast."""
    uncorrected: float
    """Null: any paired t test below alpha, without correction."""
    pooled: float
    """Null: any naive test over pooled episodes below alpha, Holm-corrected."""
    bootstrap_coverage: float
    """Of the true difference by a percentile bootstrap of the mean."""


def noise(rng: np.random.Generator, shape: str, size: tuple[int, ...]) -> FloatArray:
    """Independent draws of the shape, mean 0 and sd 1."""
    if shape == "skewed":  # a long tail of bad runs: the skewness is -3.3
        sigma = 0.7
        spread = math.sqrt(math.expm1(sigma**2)) * math.exp(sigma**2 / 2)
        return (math.exp(sigma**2 / 2) - rng.lognormal(0, sigma, size)) / spread
    if shape == "bimodal":  # a quarter of the runs end in a lower mode
        low = rng.random(size) < 0.25
        modes = np.where(low, -0.75, 0.25) / math.sqrt(0.1875)
        return (modes + 0.2 * rng.standard_normal(size)) / math.sqrt(1 + 0.2**2)
    return rng.standard_normal(size)


def campaigns(
    rng: np.random.Generator, shape: str, size: tuple[int, int, int], differences_C: FloatArray
) -> FloatArray:
    """Measured accuracies (campaigns, S, C), NaN where a run is missing.

    differences_C: true difference of each condition's mean score from the first's, here 0.
    """
    repeats, seeds, _ = size
    others = np.arange(size[2]) > 0
    diverging = DIVERGED * {"failures": np.ones(size[2]), "rare failures": others}.get(
        shape, np.zeros(size[2])
    )
    # A diverged run scores the floor whatever its condition does otherwise; the means of the
    # scores are to differ by differences_C all the same.
    lost = (diverging - diverging[0]) * (BASE - FLOOR)
    effects_C = (differences_C + lost) / (1 - diverging)
    own = RUN_SD * noise(rng, "normal" if shape == "unlike" else shape, size)
    if shape == "unlike":
        own = np.where(others, 2 * RUN_SD * noise(rng, "skewed", size), own)
    accuracy = BASE + SEED_SD * rng.standard_normal((repeats, seeds, 1)) + own + effects_C
    accuracy = np.where(rng.random(size) < diverging, FLOOR, accuracy)
    measured = rng.binomial(EPISODES, np.clip(accuracy, 0, 1)) / EPISODES
    if shape == "failures":
        measured[rng.random(size) < MISSING] = np.nan
    return measured


def differences(values_BSC: FloatArray) -> FloatArray:
    """Every condition minus the first, (campaigns, S, K)."""
    return values_BSC[..., 1:] - values_BSC[..., :1]


def pooled_p(values_BSC: FloatArray) -> FloatArray:
    """The test that is not used: all answers of all seeds of a condition taken as independent.

    Two-sided two-proportion z test of each condition against the first, (campaigns, K).
    """
    there = ~np.isnan(values_BSC)
    n = EPISODES * there.sum(axis=1)
    right = EPISODES * np.nansum(values_BSC, axis=1)
    n0, n1, c0, c1 = n[:, :1], n[:, 1:], right[:, :1], right[:, 1:]
    with np.errstate(invalid="ignore", divide="ignore"):
        share = (c0 + c1) / (n0 + n1)
        z = (c1 / n1 - c0 / n0) / np.sqrt(share * (1 - share) * (1 / n0 + 1 / n1))
    return 2 * ndtr(-np.abs(z))


def bootstrap_covers(
    rng: np.random.Generator, differences_BS: FloatArray, truth: float, draws: int = 500
) -> float:
    """Share of percentile bootstrap intervals of the mean that hold the truth."""
    complete = differences_BS[~np.isnan(differences_BS).any(axis=1)]
    seeds = complete.shape[1]
    weights_DS = rng.multinomial(seeds, np.full(seeds, 1 / seeds), draws) / seeds
    low, high = np.quantile(complete @ weights_DS.T, [0.025, 0.975], axis=1)
    return float(((low <= truth) & (truth <= high)).mean())


def simulate(shape: str, seeds: int, conditions: int, repeats: int, seed: int = 0) -> Row:
    """One row of the table."""
    rng = generator(seed, "calibration", shape, seeds, conditions)
    size = (repeats, seeds, conditions)
    others = np.arange(conditions) > 0

    null = campaigns(rng, shape, size, np.zeros(conditions))
    p = correct_planned(differences(null)).p
    naive = holm(pooled_p(null))
    single = t_test_p(np.swapaxes(differences(null), 1, 2))

    apart = differences(campaigns(rng, shape, size, -MARGIN * others))
    same = holm(equivalence_p(np.swapaxes(apart, 1, 2), MARGIN))
    _, low, high = t_interval(np.swapaxes(apart, 1, 2))
    measured = ~np.isnan(low)

    partial = float("nan")
    if conditions > 2:
        differ = np.arange(conditions) > conditions // 2
        mixed = correct_planned(differences(campaigns(rng, shape, size, -MARGIN * differ))).p
        partial = _any(mixed[:, ~differ[1:]])
    return Row(
        shape,
        seeds,
        conditions,
        false_positive=_any(p),
        false_positive_partial=partial,
        coverage=float(((low <= -MARGIN) & (high >= -MARGIN))[measured].mean()),
        wrong_equivalent=_any(same),
        uncorrected=_any(single),
        pooled=_any(naive),
        bootstrap_coverage=bootstrap_covers(rng, apart[: min(repeats, 4000), :, 0], -MARGIN),
    )


def power_rows(repeats: int, seed: int = 0) -> Iterator[tuple[float, int, float]]:
    """For normal differences: difference / sd, the seeds that are said to give 80 %, the share."""
    for effect in (2.0, 1.5, 1.2, 1.0, 0.8):
        seeds = needed_seeds(1.0, effect)
        assert seeds is not None
        rng = generator(seed, "calibration-power", seeds)
        found = sign_flip_p(effect + rng.standard_normal((repeats, seeds))) <= ALPHA
        yield effect, seeds, float(found.mean())


def table(repeats: int, seed: int = 0, shapes: tuple[str, ...] = SHAPES) -> list[Row]:
    return [
        simulate(shape, seeds, conditions, repeats, seed)
        for shape in shapes
        for conditions in CONDITIONS
        for seeds in SEEDS
    ]


def print_table(rows: list[Row]) -> None:
    print(
        "| outcome | conditions | seeds | false positive | the same, half differ | t covers "
        "| wrong 'equivalent' | uncorrected t | pooled episodes | bootstrap covers |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        partial = (
            "" if math.isnan(row.false_positive_partial) else _percent(row.false_positive_partial)
        )
        covered = _percent(row.coverage) + ("" if 0.93 <= row.coverage <= 0.97 else " *")
        print(
            f"| {row.shape} | {row.conditions} | {row.seeds} | {_percent(row.false_positive)} "
            f"| {partial} | {covered} | {_percent(row.wrong_equivalent)} "
            f"| {_percent(row.uncorrected)} | {_percent(row.pooled)} "
            f"| {_percent(row.bootstrap_coverage)} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--campaigns", type=int, default=20_000, help="simulated a row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    started = time.perf_counter()
    rows = table(options.campaigns, options.seed)
    limits = table(options.campaigns, options.seed, LIMITS)
    power = list(power_rows(min(options.campaigns, 4000), options.seed))
    if options.json:
        result = {"rows": _plain(rows), "limits": _plain(limits), "power": power}
        print(json.dumps({"campaigns": options.campaigns, **result}))
        return
    error = 100 * math.sqrt(ALPHA * (1 - ALPHA) / options.campaigns)
    print(f"{options.campaigns} campaigns a row; 5 % has a simulation error of {error:.2f} %.\n")
    print_table(rows)
    print("\nLimits:\n")
    print_table(limits)
    print("\n| difference / sd | seeds for 80 % | found |\n|---|---|---|")
    for effect, seeds, found in power:
        print(f"| {effect} | {seeds} | {_percent(found)} |")
    print(f"\n{time.perf_counter() - started:.0f} s")


def _any(p_BK: FloatArray) -> float:
    return float((p_BK <= ALPHA).any(axis=1).mean())


def _plain(rows: list[Row]) -> list[dict[str, object]]:
    return [{k: None if v != v else v for k, v in asdict(row).items()} for row in rows]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


if __name__ == "__main__":
    main()
