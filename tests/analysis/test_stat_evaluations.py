"""avg@k, pass@k, Wilson intervals, errors by problem, source and seed."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from retrain.analysis.evaluations import (
    avg_at_k,
    by_problem,
    by_seed_and_problem,
    pass_at_k,
    wilson_interval,
)

numbers = st.lists(st.floats(-10, 10), min_size=2, max_size=12)


def test_avg_at_k():
    values = avg_at_k([[1, 0, 1, 1], [0, 0, np.nan, 1], [np.nan] * 4])
    np.testing.assert_allclose(values, [0.75, 1 / 3, np.nan])
    with pytest.raises(ValueError, match="axes"):
        avg_at_k([1, 0])


@given(
    st.integers(1, 12).flatmap(
        lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))
    )
)
def test_pass_at_k_is_chens_formula(case):
    n, c, k = case
    expected = 1 - math.comb(n - c, k) / math.comb(n, k)
    assert pass_at_k(c, n, k) == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_counts_all_draws():
    outcomes = [1, 1, 0, 0, 0, 0]
    draws = list(itertools.combinations(outcomes, 3))
    assert pass_at_k(2, 6, 3) == pytest.approx(sum(any(d) for d in draws) / len(draws))


def test_pass_at_k_takes_arrays_and_large_numbers():
    np.testing.assert_allclose(pass_at_k([0, 1, 4], [4, 4, 8], 1), [0, 0.25, 0.5])
    assert pass_at_k(1, 10_000, 5000) == pytest.approx(0.5)
    assert pass_at_k(6, 10, 5) == 1.0
    assert (np.diff([float(pass_at_k(2, 10, k)) for k in range(1, 11)]) >= 0).all()


def test_pass_at_k_is_unbiased():
    n, k, share = 6, 3, 0.3
    expected = sum(stats.binom.pmf(c, n, share) * float(pass_at_k(c, n, k)) for c in range(n + 1))
    assert expected == pytest.approx(1 - (1 - share) ** k)


@pytest.mark.parametrize(
    ("c", "n", "k", "match"),
    [(1, 2, 3, "at least 3"), (3, 2, 1, "more than"), (0.5, 2, 1, "whole"), (1, 2, 0, "k must")],
)
def test_pass_at_k_refuses(c, n, k, match):
    with pytest.raises(ValueError, match=match):
        pass_at_k(c, n, k)


@pytest.mark.parametrize(("c", "n"), [(0, 5), (5, 5), (3, 7), (410, 500)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_is_scipys(c, n, confidence):
    low, high = wilson_interval(c, n, confidence)
    expected = stats.binomtest(c, n).proportion_ci(confidence, method="wilson")
    assert low == pytest.approx(expected.low, abs=1e-12)
    assert high == pytest.approx(expected.high, abs=1e-12)


def test_wilson_ends():
    low, high = wilson_interval([0, 0, 4], [0, 4, 4])
    assert (low[0], high[0], low[1], high[2]) == (0.0, 1.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="more than"):
        wilson_interval(5, 4)
    with pytest.raises(ValueError, match="confidence"):
        wilson_interval(1, 4, 95)


def test_pairing_by_problem_is_the_paired_t_interval():
    rng = np.random.default_rng(1)
    a, b = rng.random((2, 30))
    estimate = by_problem(a, b)
    interval = stats.ttest_rel(a, b).confidence_interval()
    assert (estimate.low, estimate.high) == (
        pytest.approx(interval.low),
        pytest.approx(interval.high),
    )
    assert estimate.standard_error == pytest.approx(stats.sem(a - b))
    assert by_problem(a).standard_error == pytest.approx(stats.sem(a))


def test_clusters_by_hand():
    # Mean 0.5; sums of deviations by source: A 0.5 + 0.5 = 1, B -0.5 - 0.5 = -1.
    # se = sqrt(2 / 1 * (1 + 1)) / 4 = 0.5, one degree of freedom.
    estimate = by_problem([1, 1, 0, 0], sources_P=["A", "A", "B", "B"])
    assert (estimate.mean, estimate.standard_error, estimate.units) == (0.5, 0.5, 2)
    assert estimate.high == pytest.approx(0.5 + 0.5 * 12.7062, rel=1e-5)
    assert by_problem([1, 1, 0, 0]).standard_error == pytest.approx(stats.sem([1, 1, 0, 0]))


@given(numbers, st.randoms())
def test_sources_of_one_problem_are_no_sources(values, random):
    names = [f"s{i}" for i in range(len(values))]
    random.shuffle(names)
    plain, clustered = by_problem(values), by_problem(values, sources_P=names)
    assert clustered.standard_error == pytest.approx(plain.standard_error, abs=1e-12)
    assert clustered.units == len(values)


@given(numbers, st.integers(2, 4))
def test_copies_of_a_problem_add_no_information(values, copies):
    sources = np.repeat(np.arange(len(values)), copies)
    repeated = by_problem(np.repeat(values, copies), sources_P=sources)
    assert repeated.standard_error == pytest.approx(by_problem(values).standard_error, abs=1e-9)


def test_missing_problems():
    estimate = by_problem([1, np.nan, 0, 1], [0, 1, np.nan, 0.5])
    assert (estimate.mean, estimate.units) == (0.75, 2)
    assert by_problem([1.0]).standard_error is None
    assert by_problem([1.0, 0.0], sources_P=[7, 7]).low is None
    with pytest.raises(ValueError, match="no problem"):
        by_problem([np.nan])
    with pytest.raises(ValueError, match="both sides"):
        by_problem([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="one source"):
        by_problem([1.0, 2.0], sources_P=[1])


def test_seeds_count_when_they_differ():
    rng = np.random.default_rng(2)
    seeds, problems = 6, 200
    d = rng.normal(0, 0.1, (seeds, 1)) + rng.normal(0, 0.02, (seeds, problems))
    by_method = by_seed_and_problem(d)
    # Nearly all variance is between seeds: the error is that of the seeds' means.
    assert by_method.standard_error == pytest.approx(stats.sem(d.mean(axis=1)), rel=0.08)
    assert by_method.units == seeds
    assert by_problem(d.mean(axis=0)).standard_error < 0.1 * by_method.standard_error


def test_seeds_and_problems_add_up():
    rng = np.random.default_rng(3)
    seeds, problems = 12, 40
    d = rng.normal(0, 0.1, (seeds, 1)) + rng.normal(0, 0.2, (1, problems))
    expected = math.hypot(stats.sem(d.mean(1)), stats.sem(d.mean(0)))
    assert by_seed_and_problem(d).standard_error == pytest.approx(expected, rel=0.06)
    pairs = np.repeat(d, 2, axis=1)
    sources = np.repeat(np.arange(problems), 2)
    assert by_seed_and_problem(pairs, sources_P=sources).standard_error == pytest.approx(
        expected, rel=0.06
    )


def test_the_interval_of_a_method_covers():
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(200):
        d = rng.normal(0, 0.1, (5, 1)) + rng.normal(0, 0.3, (1, 50)) + rng.normal(0, 0.3, (5, 50))
        estimate = by_seed_and_problem(d, draws=500)
        covered += estimate.low <= 0 <= estimate.high
    assert covered / 200 > 0.9


def test_seeds_and_problems_edge_cases():
    d = np.random.default_rng(5).normal(size=(4, 10))
    with_gap = np.vstack([d, np.full((1, 10), np.nan)])
    assert by_seed_and_problem(with_gap) == by_seed_and_problem(d)
    assert by_seed_and_problem(d, d).standard_error == 0.0
    assert by_seed_and_problem(d[:1]).standard_error is None
    assert by_seed_and_problem(d, sources_P=[0] * 10).low is None
    d[0, 0] = np.nan
    with pytest.raises(ValueError, match="lacks single problems"):
        by_seed_and_problem(d)
    with pytest.raises(ValueError, match="no seed"):
        by_seed_and_problem([[np.nan]])
    with pytest.raises(ValueError, match="axes"):
        by_seed_and_problem([1.0])
    with pytest.raises(ValueError, match="infinity"):
        by_problem([math.inf])
