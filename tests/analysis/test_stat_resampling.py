"""Pooled tasks: IQM, bootstrap, probability of improvement, profiles."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from retrain.analysis.resampling import (
    bootstrap_mean,
    iqm,
    performance_profile,
    probability_of_improvement,
    stratified_bootstrap,
)

numbers = st.lists(st.floats(-100, 100), min_size=1, max_size=30)


@given(numbers)
def test_iqm_is_scipys_trimmed_mean(values):
    assert iqm(values) == pytest.approx(stats.trim_mean(values, 0.25), abs=1e-9)


def test_iqm_by_hand():
    assert iqm([[9, 1], [2, 3], [4, 5], [6, -90]]) == 3.5  # -90, 1 and 6, 9 are cut
    assert iqm([1, np.nan, 3]) == 2.0
    assert np.isnan(iqm([np.nan]))
    with pytest.raises(ValueError, match="infinity"):
        iqm([np.inf])


def test_bootstrap_of_a_mean_is_scipys():
    values = np.random.default_rng(1).exponential(size=30)
    ours = bootstrap_mean(values, draws=20_000)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert ours.estimate == pytest.approx(values.mean())
    assert (ours.low, ours.high) == (
        pytest.approx(theirs.low, abs=0.02),
        pytest.approx(theirs.high, abs=0.02),
    )
    assert bootstrap_mean(values) == bootstrap_mean(values)
    assert bootstrap_mean(values, seed=1) != bootstrap_mean(values)


def test_few_values_are_never_bootstrapped():
    with pytest.raises(ValueError, match="t interval"):
        bootstrap_mean(np.arange(9.0))
    with pytest.raises(ValueError, match="t interval"):
        bootstrap_mean([*range(9), np.nan])
    with pytest.raises(ValueError, match="t interval"):
        stratified_bootstrap(np.ones((3, 3)))
    with pytest.raises(ValueError, match="too few to pool"):
        stratified_bootstrap(np.ones((10, 2)))


def test_strata_keep_differences_between_tasks_out_of_the_interval():
    rng = np.random.default_rng(3)
    values = rng.normal(0, 0.1, (8, 4)) + np.array([0, 10, 20, 30])
    interval = stratified_bootstrap(values, "mean")
    assert interval.high - interval.low < 0.2
    assert interval.estimate == pytest.approx(values.mean())
    assert interval.low < interval.estimate < interval.high
    flat = stratified_bootstrap(np.full((5, 3), 2.0))
    assert flat == (2.0, 2.0, 2.0)


@pytest.mark.parametrize("statistic", ["iqm", "mean", "median"])
def test_bootstrap_shifts_and_scales_with_its_values(statistic):
    values = np.random.default_rng(4).normal(size=(6, 3))
    values[2, 1] = np.nan
    plain = np.array(stratified_bootstrap(values, statistic, draws=500))
    other = np.array(stratified_bootstrap(10 * values + 7, statistic, draws=500))
    np.testing.assert_allclose(other, 10 * plain + 7)


def test_probability_of_improvement_is_mann_whitneys_u():
    rng = np.random.default_rng(5)
    a, b = rng.integers(0, 6, (7, 3)).astype(float), rng.integers(0, 5, (4, 3)).astype(float)
    u = stats.mannwhitneyu(a, b, axis=0).statistic
    assert probability_of_improvement(a, b) == pytest.approx((u / 28).mean())
    assert probability_of_improvement(b, a) == pytest.approx(1 - (u / 28).mean())
    assert probability_of_improvement(a, a) == pytest.approx(0.5)
    assert probability_of_improvement([[2.0], [np.nan]], [[1.0]]) == 1.0
    with pytest.raises(ValueError, match="task 0 has no value"):
        probability_of_improvement([[np.nan]], [[1.0]])
    with pytest.raises(ValueError, match="same tasks"):
        probability_of_improvement([[1.0, 2.0]], [[1.0]])


def test_performance_profile():
    values = [[0.1, 0.9], [0.5, 0.9], [0.7, np.nan]]
    np.testing.assert_allclose(
        performance_profile(values, [0.0, 0.1, 0.6, 0.9]), [1, (2 / 3 + 1) / 2, (1 / 3 + 1) / 2, 0]
    )
    with pytest.raises(ValueError, match="axes"):
        performance_profile([1.0], [0.5])


@given(st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=6))
def test_profiles_fall(values):
    profile = performance_profile(values, np.linspace(-0.1, 1.1, 13))
    assert profile[0] == 1.0
    assert profile[-1] == 0.0
    assert (np.diff(profile) <= 1e-12).all()


def test_misuse_is_refused():
    values = np.random.default_rng(6).normal(size=(5, 3))
    with pytest.raises(ValueError, match="confidence"):
        stratified_bootstrap(values, confidence=95)
    with pytest.raises(ValueError, match="draw"):
        stratified_bootstrap(values, draws=0)
