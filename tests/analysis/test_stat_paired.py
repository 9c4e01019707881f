"""Paired contrasts: worked numbers, agreement with scipy, what must not change them."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from retrain.analysis.paired import (
    MONTE_CARLO_FLIPS,
    compare_pairs,
    equivalence_p,
    intention_to_treat,
    paired_differences,
    sign_flip_p,
    sign_flips,
    t_interval,
    t_test_p,
)

# Whole numbers: sums are exact, so that ties are ties and near-ties do not exist.
whole = st.lists(st.integers(-50, 50), min_size=1, max_size=9)


def by_enumeration(differences):
    sums = [
        abs(sum(sign * d for sign, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    return sum(s >= abs(sum(differences)) for s in sums) / len(sums)


def test_worked_numbers_by_hand():
    # d = 1, 2, 3, -1, sum 5. Of all 16 flips two give |sum| = 7 and four give 5: p = 6/16.
    # mean 1.25, sd 1.7078, se 0.8539, t = 1.4639, p = 0.2394.
    paired = compare_pairs([11, 12, 13, 9], [10, 10, 10, 10])
    assert paired.contrast.mean_difference == 1.25
    assert paired.p_sign_flip == pytest.approx(6 / 16)
    assert paired.p_t == pytest.approx(0.2394, abs=1e-4)
    assert (paired.wins, paired.losses, paired.ties) == (3, 1, 0)
    assert paired.sd == pytest.approx(1.7078, abs=1e-4)
    assert paired.smallest_p == 0.125
    assert paired.correlation is None  # the baseline is constant
    assert paired.detectable is None  # four seeds can never reach 0.05


@pytest.mark.parametrize(("seeds", "p"), [(1, 1.0), (2, 0.5), (3, 0.25), (5, 0.0625), (8, 2 / 256)])
def test_smallest_p_of_a_sign_flip(seeds, p):
    assert sign_flip_p(np.arange(1, seeds + 1)) == p


@given(whole)
def test_sign_flip_counts_all_flips(differences):
    assert sign_flip_p(differences) == pytest.approx(by_enumeration(differences))


@pytest.mark.parametrize("seeds", [4, 6, 9])
def test_sign_flip_is_scipys_permutation_test(seeds):
    rng = np.random.default_rng(seeds)
    a, b = rng.normal(0.5, 1, seeds), rng.normal(0, 1, seeds)
    result = stats.permutation_test(
        (a, b),
        lambda x, y, axis: (x - y).mean(axis=axis),
        permutation_type="samples",
        n_resamples=np.inf,
        vectorized=True,
    )
    assert sign_flip_p(a - b) == pytest.approx(result.pvalue)


def test_t_test_and_interval_are_scipys():
    rng = np.random.default_rng(3)
    a, b = rng.normal(0.5, 1, (5, 8)), rng.normal(0, 1, (5, 8))
    result = stats.ttest_rel(a, b, axis=1)
    interval = result.confidence_interval(0.9)
    mean, low, high = t_interval(a - b, 0.9)
    np.testing.assert_allclose(t_test_p(a - b), result.pvalue)
    np.testing.assert_allclose([mean, low, high], [(a - b).mean(1), interval.low, interval.high])


def test_equivalence_is_two_one_sided_t_tests():
    rng = np.random.default_rng(4)
    d = rng.normal(0.1, 1, (20, 8))
    lower = stats.ttest_1samp(d, -0.7, axis=1, alternative="greater").pvalue
    upper = stats.ttest_1samp(d, 0.7, axis=1, alternative="less").pvalue
    p = equivalence_p(d, 0.7)
    np.testing.assert_allclose(p, np.maximum(lower, upper))
    _, low, high = t_interval(d, 0.9)
    np.testing.assert_array_equal(p <= 0.05, (low >= -0.7) & (high <= 0.7))


def test_equal_differences_have_no_t_test_but_a_sign_flip():
    paired = compare_pairs([0.8, 0.7, 0.3], [0.7, 0.6, 0.2])
    assert paired.contrast.all_equal
    assert (paired.p_t, paired.sd, paired.p_sign_flip) == (None, 0.0, 0.25)
    assert equivalence_p([0.1] * 5, 0.2) == pytest.approx(1 / 32)
    assert equivalence_p([0.1] * 5, 0.1) == 1.0


def test_rounding_is_a_tie():
    paired = compare_pairs([0.1 + 0.2, 0.7], [0.3, 0.7])
    assert (paired.ties, paired.p_sign_flip, paired.smallest_p) == (2, 1.0, 1.0)


def test_missing_runs_are_dropped_and_counted():
    nan = math.nan
    some = compare_pairs([1, nan, 3, 5, 4], [0, 1, nan, 2, 5])
    same = compare_pairs([1, 5, 4], [0, 2, 5])
    assert (some.contrast.n, some.contrast.dropped) == (3, 2)
    assert (some.p_t, some.p_sign_flip, some.sd, some.correlation) == (
        same.p_t,
        same.p_sign_flip,
        same.sd,
        same.correlation,
    )
    none = compare_pairs([nan, 1], [1, nan])
    assert (none.p_sign_flip, none.contrast.mean_difference, none.contrast.n) == (None, None, 0)
    one = compare_pairs([2.0], [1.0])
    assert (one.p_sign_flip, one.p_t, one.sd, one.contrast.low) == (1.0, None, None, None)


def test_correlation_is_pearsons():
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(2, 7))
    assert compare_pairs(a, b).correlation == pytest.approx(stats.pearsonr(a, b).statistic)
    assert compare_pairs([1, 2], [3, 5]).correlation is None


def test_rows_with_gaps_are_judged_one_by_one():
    rng = np.random.default_rng(6)
    d = rng.normal(size=(6, 7))
    d[rng.random(d.shape) < 0.3] = np.nan
    for function in (sign_flip_p, t_test_p, lambda x: equivalence_p(x, 2.0)):
        alone = [float(function(row[~np.isnan(row)])) for row in d]
        np.testing.assert_allclose(function(d), alone)


@given(whole, st.randoms(), st.sampled_from([0.25, 1.0, 8.0]), st.sampled_from([1, -1]))
def test_order_scale_and_side_do_not_change_a_p_value(differences, random, scale, sign):
    other = [sign * scale * d for d in differences]
    random.shuffle(other)
    assert sign_flip_p(other) == pytest.approx(float(sign_flip_p(differences)))
    np.testing.assert_allclose(t_test_p(other), t_test_p(differences), rtol=1e-9)
    np.testing.assert_allclose(
        equivalence_p(other, 3 * scale), equivalence_p(differences, 3.0), rtol=1e-7, atol=1e-12
    )


@given(whole, st.integers(-1000, 1000))
def test_what_a_seed_gives_both_sides_cancels(differences, shared):
    baseline = np.arange(len(differences)) * shared
    assert compare_pairs(baseline + differences, baseline).p_sign_flip == pytest.approx(
        float(sign_flip_p(differences))
    )


@given(st.lists(st.integers(1, 200), min_size=1, max_size=7, unique=True))
def test_p_is_uniform_over_its_own_null(sizes):
    """Under the null all 2^n signs are equally likely: P(p <= q) <= q, with = where p can be q."""
    flips = np.array(list(itertools.product((1, -1), repeat=len(sizes))))
    p = sign_flip_p(flips * np.array(sizes))
    for q in p:
        assert (p <= q + 1e-12).mean() == pytest.approx(q)


def test_many_seeds_are_sampled_reproducibly():
    rng = np.random.default_rng(7)
    d = rng.normal(0.4, 1, 24)
    p = float(sign_flip_p(d))
    assert p == float(sign_flip_p(d))
    assert p == pytest.approx(float(t_test_p(d)), rel=0.2)
    assert float(sign_flip_p(np.full(24, 1.0))) == pytest.approx(1 / MONTE_CARLO_FLIPS)
    assert sign_flips(18).shape == (MONTE_CARLO_FLIPS, 18)
    assert sign_flips(17).shape == (2**16, 17)
    assert (sign_flips(5)[0] == 1).all()
    assert len(np.unique(sign_flips(5), axis=0)) == 16


def test_failed_runs_score_the_floor_and_missing_ones_stay_missing():
    values = np.array([[0.5, np.nan], [np.nan, 0.7]])
    diverged = np.array([[False, True], [False, False]])
    scored = intention_to_treat(values, diverged, 0.1)
    np.testing.assert_array_equal(scored, [[0.5, 0.1], [np.nan, 0.7]])
    with pytest.raises(ValueError, match="floor"):
        intention_to_treat(values, diverged, math.nan)
    with pytest.raises(ValueError, match="shapes"):
        intention_to_treat(values, diverged[:1], 0.0)


def test_misuse_is_refused():
    with pytest.raises(ValueError, match="infinity"):
        sign_flip_p([1.0, math.inf])
    with pytest.raises(ValueError, match="same order"):
        compare_pairs([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="axis of seeds"):
        sign_flip_p(1.0)
    with pytest.raises(ValueError, match="margin"):
        equivalence_p([1.0, 2.0], 0.0)
    with pytest.raises(ValueError, match="confidence"):
        t_interval([1.0, 2.0], 1.0)
    assert np.isnan(sign_flip_p([np.nan]))
    assert paired_differences(1.0, 0.5) == 0.5
