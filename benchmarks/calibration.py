"""How often the statistics of a campaign are wrong, counted on simulated campaigns.

    python benchmarks/calibration.py [--campaigns 20000] [--json]

A simulated campaign has S seeds and C conditions. A run's accuracy is a base value, plus an effect
of its seed that all conditions share (common random numbers), plus noise of its own in the given
shape, plus its condition's effect; what is measured is the share of correct answers among
`EPISODES`. With "failures" a run diverges now and then, and scores the floor, or is missing.

Three worlds are drawn for each design: no condition differs in its mean (null), every condition is
worse than the first by exactly the margin, and half of the conditions are. A second table shows
limits: conditions of equal mean whose outcomes have unlike shapes. A third one stops conditions
that cannot win, as `[campaign.stopping]` does: seed after seed, each run is looked at half-way. The
functions are those that `retrain` judges with: `correct_planned`, `t_interval`, `equivalence_p`,
`holm`, `needed_seeds`, `futility.look`.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy.special import ndtr

from retrain.analysis.futility import look
from retrain.analysis.multiplicity import correct_planned, holm
from retrain.analysis.paired import equivalence_p, sign_flip_p, t_interval, t_test_p
from retrain.analysis.power import needed_seeds
from retrain.seeding import generator
from retrain.types import BoolArray, FloatArray

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

STOPPING_DESIGNS = (
    *((shape, 5, seeds) for shape in ("normal", "skewed", "bimodal") for seeds in (3, 5, 8, 10)),
    ("normal", 12, 10),
)
"""Shape, conditions, seeds."""
INTERIM_CORRELATION = 0.7
"""Of a run's own noise half-way with that at the end."""
CAMPAIGNS_AT_ONCE = 2000
"""Whose sign flips are in memory together."""
WIN, WIN_MARGIN = 0.04, 0.02
"""By how much some conditions are better at the end (half of it half-way), and what has to be
possible for a condition to be trained on."""


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


@dataclass(frozen=True)
class StoppingRow:
    """One design with stopping; shares of simulated campaigns unless said otherwise."""

    shape: str
    seeds: int
    conditions: int
    false_positive: float
    """Null: a "better" or "worse" in any planned contrast, dropped ones counted with p = 1."""
    false_better: float
    """Null: a "better" in any planned contrast."""
    naive_better: float
    """The same, if only the contrasts that are left were corrected for."""
    false_partial: float
    """Half of the conditions are better: a "better" or "worse" among the others."""
    stopped: float
    """Null: share of the conditions other than the baseline."""
    saved: float
    """Null: share of the campaign's steps that were not trained."""
    stopped_better: float
    """Share of the better conditions that were stopped."""
    power: float
    """Share of the better conditions that were called so."""
    power_without: float
    """The same in a campaign without stopping."""


def interim_and_final(
    rng: np.random.Generator, shape: str, size: tuple[int, int, int], differences_C: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Measured accuracies (campaigns, S, C) half-way and at the end; the seed's effect is one."""
    shared = BASE + SEED_SD * rng.standard_normal((*size[:2], 1))
    end = noise(rng, shape, size)
    rest = math.sqrt(1 - INTERIM_CORRELATION**2)
    half_way = INTERIM_CORRELATION * end + rest * noise(rng, shape, size)
    true = (shared + RUN_SD * half_way + differences_C / 2, shared + RUN_SD * end + differences_C)
    interim, final = (rng.binomial(EPISODES, np.clip(a, 0, 1)) / EPISODES for a in true)
    return interim, final


def stop_in_turn(interim_BSK: FloatArray) -> tuple[BoolArray, FloatArray]:
    """Whether each contrast is dropped (campaigns, K), and the runs that this saves of each.

    interim_BSK: differences half-way. After each seed whatever is left is looked at over the seeds
    so far; what is stopped then saves the half of that seed's run, and the seeds to come.
    """
    dropped = np.zeros((len(interim_BSK), interim_BSK.shape[2]), dtype=np.bool_)
    saved = np.zeros(dropped.shape)
    seeds = interim_BSK.shape[1]
    for so_far in range(1, seeds + 1):
        values = np.swapaxes(interim_BSK[:, :so_far], 1, 2)
        futile = look(values, np.zeros(values.shape), WIN_MARGIN).futile & ~dropped
        dropped |= futile
        saved[futile] = seeds - so_far + 0.5
    return dropped, saved


def claims(final_BSK: FloatArray, dropped_BK: BoolArray, *, naive: bool = False) -> FloatArray:
    """+1 where a contrast is called better, -1 where it is called worse, 0 elsewhere.

    naive: corrected only for the contrasts that are left, as if the others had not been planned.
    """
    values = np.where(dropped_BK[:, None, :], np.nan, final_BSK)
    found = []
    for start in range(0, len(values), CAMPAIGNS_AT_ONCE):
        part = slice(start, start + CAMPAIGNS_AT_ONCE)
        found.append(correct_planned(values[part], dropped_K=None if naive else dropped_BK[part]).p)
    return np.where(np.concatenate(found) <= ALPHA, np.sign(final_BSK.mean(axis=1)), 0.0)


def simulate_stopping(
    shape: str, seeds: int, conditions: int, repeats: int, seed: int = 0
) -> StoppingRow:
    """One row of the table of campaigns with stopping."""
    rng = generator(seed, "calibration-stopping", shape, seeds, conditions)
    size = (repeats, seeds, conditions)

    interim, final = interim_and_final(rng, shape, size, np.zeros(conditions))
    dropped, saved = stop_in_turn(differences(interim))
    honest = claims(differences(final), dropped)
    naive = claims(differences(final), dropped, naive=True)

    wins = np.arange(conditions) > conditions // 2
    interim, final = interim_and_final(rng, shape, size, WIN * wins)
    gone, _ = stop_in_turn(differences(interim))
    mixed = claims(differences(final), gone)
    whole = claims(differences(final), np.zeros_like(gone))
    better, same = wins[1:], ~wins[1:]
    return StoppingRow(
        shape,
        seeds,
        conditions,
        false_positive=float((honest != 0).any(axis=1).mean()),
        false_better=float((honest > 0).any(axis=1).mean()),
        naive_better=float((naive > 0).any(axis=1).mean()),
        false_partial=float((mixed[:, same] != 0).any(axis=1).mean()),
        stopped=float(dropped.mean()),
        saved=float(saved.sum(axis=1).mean() / (seeds * conditions)),
        stopped_better=float(gone[:, better].mean()),
        power=float((mixed[:, better] > 0).mean()),
        power_without=float((whole[:, better] > 0).mean()),
    )


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


def stopping_table(repeats: int, seed: int = 0) -> list[StoppingRow]:
    return [
        simulate_stopping(shape, seeds, conditions, repeats, seed)
        for shape, conditions, seeds in STOPPING_DESIGNS
    ]


def print_stopping(rows: list[StoppingRow]) -> None:
    print(
        "| outcome | conditions | seeds | false positive | the same, half better | false 'better' "
        "| if only the rest were corrected for | conditions stopped | steps saved "
        "| better ones stopped | better ones found | found without stopping |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        shares = (
            *(row.false_positive, row.false_partial, row.false_better, row.naive_better),
            *(row.stopped, row.saved, row.stopped_better, row.power, row.power_without),
        )
        cells = (row.shape, str(row.conditions), str(row.seeds), *map(_percent, shares))
        print(f"| {' | '.join(cells)} |")


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
    stopping = stopping_table(options.campaigns, options.seed)
    power = list(power_rows(min(options.campaigns, 4000), options.seed))
    if options.json:
        result = {
            "rows": _plain(rows),
            "limits": _plain(limits),
            "stopping": _plain(stopping),
            "power": power,
        }
        print(json.dumps({"campaigns": options.campaigns, **result}))
        return
    error = 100 * math.sqrt(ALPHA * (1 - ALPHA) / options.campaigns)
    print(f"{options.campaigns} campaigns a row; 5 % has a simulation error of {error:.2f} %.\n")
    print_table(rows)
    print("\nLimits:\n")
    print_table(limits)
    print("\nWith stopping:\n")
    print_stopping(stopping)
    print("\n| difference / sd | seeds for 80 % | found |\n|---|---|---|")
    for effect, seeds, found in power:
        print(f"| {effect} | {seeds} | {_percent(found)} |")
    print(f"\n{time.perf_counter() - started:.0f} s")


def _any(p_BK: FloatArray) -> float:
    return float((p_BK <= ALPHA).any(axis=1).mean())


def _plain(rows: Sequence[Row | StoppingRow]) -> list[dict[str, object]]:
    return [{k: None if v != v else v for k, v in asdict(row).items()} for row in rows]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


if __name__ == "__main__":
    main()
