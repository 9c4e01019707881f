import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from retrain.analysis.statistics import (
    contrast_of_differences,
    mean,
    paired_contrast,
    standard_error,
    t_quantile,
)

values = st.floats(-1e3, 1e3, allow_nan=False)
samples = st.lists(values, min_size=2, max_size=12)


def test_worked_numbers_by_hand():
    # d = 1, 2, 3: mean 2, sd 1, standard error 1/sqrt(3), t(0.975, 2) = 4.302653.
    contrast = paired_contrast({1: 11.0, 2: 12.0, 3: 13.0}, {1: 10.0, 2: 10.0, 3: 10.0})
    assert contrast.mean_difference == pytest.approx(2.0)
    assert contrast.standard_error == pytest.approx(0.5773503)
    assert contrast.low == pytest.approx(2.0 - 4.302653 * 0.5773503, rel=1e-6)
    assert contrast.high == pytest.approx(2.0 + 4.302653 * 0.5773503, rel=1e-6)
    assert (contrast.n, contrast.dropped, contrast.all_equal) == (3, 0, False)


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
@pytest.mark.parametrize("n", [2, 3, 8, 40])
def test_interval_is_scipys(n, confidence):
    rng = np.random.default_rng(n)
    a, b = rng.normal(0.7, 0.1, n), rng.normal(0.65, 0.1, n)
    contrast = paired_contrast(dict(enumerate(a)), dict(enumerate(b)), confidence)
    interval = stats.ttest_rel(a, b).confidence_interval(confidence)
    assert contrast.low == pytest.approx(interval.low, rel=1e-9)
    assert contrast.high == pytest.approx(interval.high, rel=1e-9)
    assert contrast.standard_error == pytest.approx(stats.sem(a - b), rel=1e-9)


@pytest.mark.parametrize(("probability", "df"), [(0.975, 1), (0.975, 7), (0.9, 30)])
def test_t_quantile_is_scipys(probability, df):
    assert t_quantile(probability, df) == pytest.approx(stats.t.ppf(probability, df))


def test_one_pair_has_a_difference_but_no_interval():
    contrast = paired_contrast({42: 0.8}, {42: 0.7})
    assert contrast.mean_difference == pytest.approx(0.1)
    assert (contrast.low, contrast.high, contrast.standard_error) == (None, None, None)
    assert contrast.n == 1
    assert not contrast.all_equal


def test_no_pair_has_nothing():
    contrast = paired_contrast({1: 0.5}, {2: 0.5})
    assert (contrast.mean_difference, contrast.low, contrast.n) == (None, None, 0)
    assert contrast.dropped == 2


def test_equal_differences_have_no_width_and_say_so():
    contrast = paired_contrast({1: 0.8, 2: 0.7, 3: 0.3}, {1: 0.7, 2: 0.6, 3: 0.2})
    assert contrast.all_equal
    assert contrast.low == contrast.high == contrast.mean_difference == pytest.approx(0.1)
    assert contrast.standard_error == 0.0


def test_missing_runs_are_dropped_and_counted():
    contrast = paired_contrast({1: 0.9, 2: None, 3: 0.8, 4: 0.1}, {1: 0.5, 2: 0.5, 3: 0.6})
    assert contrast.n == 2
    assert contrast.dropped == 2
    assert contrast.mean_difference == pytest.approx(0.3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_refused(bad):
    with pytest.raises(ValueError, match="NaN"):
        paired_contrast({1: bad, 2: 0.5}, {1: 0.5, 2: 0.5})
    with pytest.raises(ValueError, match="NaN"):
        contrast_of_differences([0.1, bad])
    with pytest.raises(ValueError, match="NaN"):
        mean([bad])


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0, math.nan])
def test_confidence_lies_between_0_and_1(confidence):
    with pytest.raises(ValueError, match="confidence"):
        contrast_of_differences([1.0, 2.0], confidence)


def test_mean_and_standard_error():
    assert mean([1.0, 2.0, 6.0]) == 3.0
    assert mean([]) is None
    assert standard_error([1.0, 2.0, 6.0]) == pytest.approx(stats.sem([1.0, 2.0, 6.0]))
    assert standard_error([1.0]) is None
    assert standard_error([2.0, 2.0]) == 0.0


@given(samples)
def test_interval_surrounds_its_mean(differences):
    contrast = contrast_of_differences(differences)
    middle = (contrast.low + contrast.high) / 2
    assert contrast.low <= contrast.mean_difference <= contrast.high
    assert middle == pytest.approx(contrast.mean_difference, abs=1e-6, rel=1e-6)


@given(samples)
def test_swapping_the_sides_turns_the_interval_around(differences):
    one = contrast_of_differences(differences)
    other = contrast_of_differences([-d for d in differences])
    assert one.low == pytest.approx(-other.high)
    assert one.high == pytest.approx(-other.low)


@given(samples, st.floats(0.001, 1000.0))
def test_interval_scales_with_its_numbers(differences, factor):
    one = contrast_of_differences(differences)
    other = contrast_of_differences([factor * d for d in differences])
    tolerance = 1e-9 * factor * max(abs(d) for d in differences) + 1e-12
    assert other.low == pytest.approx(factor * one.low, rel=1e-6, abs=tolerance)
    assert other.high == pytest.approx(factor * one.high, rel=1e-6, abs=tolerance)


@given(st.lists(st.tuples(values, values), min_size=2, max_size=8), st.randoms())
def test_order_of_seeds_does_not_matter(pairs, random):
    a = {seed: x for seed, (x, _) in enumerate(pairs)}
    b = {seed: y for seed, (_, y) in enumerate(pairs)}
    seeds = list(a)
    random.shuffle(seeds)
    assert paired_contrast({s: a[s] for s in seeds}, b) == paired_contrast(a, b)


@given(samples, values)
def test_what_both_sides_share_cancels(differences, shared):
    seeds = range(len(differences))
    plain = contrast_of_differences(differences)
    shifted = paired_contrast(
        {s: shared + d for s, d in zip(seeds, differences, strict=True)},
        dict.fromkeys(seeds, shared),
    )
    assert shifted.mean_difference == pytest.approx(plain.mean_difference, abs=1e-9)
    assert shifted.low == pytest.approx(plain.low, abs=1e-6)
