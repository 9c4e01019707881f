"""Power, detectable effects, needed seeds."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from retrain.analysis.paired import equivalence_p, sign_flip_p
from retrain.analysis.power import (
    attained_level,
    detectable_effect,
    fewest_seeds,
    needed_seeds,
    power_equivalence,
    power_sign_flip,
    power_t,
    smallest_p,
)


@pytest.mark.parametrize(("seeds", "p"), [(0, 1), (1, 1), (3, 0.25), (6, 0.03125), (900, 2**-16)])
def test_smallest_p(seeds, p):
    assert smallest_p(seeds) == p


@pytest.mark.parametrize(
    ("seeds", "level"), [(3, 0.0), (5, 0.0), (6, 2 / 64), (7, 6 / 128), (8, 12 / 256), (2000, 0.05)]
)
def test_attained_level(seeds, level):
    assert attained_level(seeds) == pytest.approx(level, abs=2e-5)
    assert attained_level(seeds) <= 0.05


@pytest.mark.parametrize(("contrasts", "seeds"), [(1, 6), (2, 7), (4, 8), (10, 9)])
def test_fewest_seeds(contrasts, seeds):
    assert fewest_seeds(0.05, contrasts) == seeds
    assert smallest_p(seeds) <= 0.05 / contrasts < smallest_p(seeds - 1)


@pytest.mark.parametrize("seeds", [2, 5, 8, 40])
@pytest.mark.parametrize("effect", [0.0, 0.3, 1.0, 2.5])
def test_power_is_that_of_the_noncentral_t(seeds, effect):
    critical = stats.t.ppf(0.975, seeds - 1)
    law = stats.nct(seeds - 1, effect * math.sqrt(seeds)) if effect else stats.t(seeds - 1)
    lower = np.nan_to_num(law.cdf(-critical))
    assert power_t(seeds, effect) == pytest.approx(law.sf(critical) + lower, abs=1e-8)


def integrated_power(seeds, effect, alpha):
    """Of the paired t test, over the law of log s with s^2 ~ chi2(n - 1) / (n - 1); (effects,)."""
    df, center = seeds - 1, np.abs(effect)[:, None] * math.sqrt(seeds)
    log_s = np.linspace(-15.0, 3.0, 30_001)
    density = np.exp(stats.chi2.logpdf(df * np.exp(2 * log_s), df) + 2 * log_s) * 2 * df
    reach = stats.t.isf(alpha / 2, df) * np.exp(log_s)
    found = stats.norm.cdf(center - reach) + stats.norm.cdf(-center - reach)
    return np.trapezoid(found * density, log_s, axis=1)


@pytest.mark.parametrize("alpha", [0.2, 0.05, 0.01, 0.001, 2**-16])
def test_power_where_the_series_of_a_tail_has_no_value(alpha):
    effects = np.array([0.0, 0.1, 0.5, 1.0, 1.9, 2.4, 3.0, 5.0, 8.0, 12.0, 40.0])
    for seeds in (3, 6, 7, 10, 30, 400):
        found = [power_t(seeds, effect, alpha) for effect in effects]
        assert found == pytest.approx(integrated_power(seeds, effects, alpha), abs=1e-7), seeds
        assert np.all(np.diff(found) >= -1e-12)


def test_power_of_a_simulated_t_test_at_a_strict_level():
    drawn = np.random.default_rng(3).standard_normal((40_000, 6)) + 3.1
    rejected = (stats.ttest_1samp(drawn, 0.0, axis=1).pvalue <= 0.001).mean()
    assert power_t(6, 3.1, 0.001) == pytest.approx(rejected, abs=0.01)


def test_cohens_table():
    # Cohen 1988: a paired t test finds d = 0.5 with 80 % power with 34 pairs (G*Power: 0.8078).
    assert power_t(34, 0.5) == pytest.approx(0.8078, abs=1e-4)
    assert power_t(33, 0.5) < 0.8 < power_t(34, 0.5)
    assert needed_seeds(1.0, 0.5) in (34, 35)


def test_power_ends():
    assert power_t(1, 3.0) == 0.0
    assert power_sign_flip(5, 100.0) == 0.0
    assert power_t(8, 1e6) == 1.0
    assert power_equivalence(1, 1.0) == 0.0
    assert power_equivalence(8, 1e6) == pytest.approx(1.0)
    assert detectable_effect(5) == math.inf
    assert math.isfinite(detectable_effect(5, exact=False))
    assert detectable_effect(1, exact=False) == math.inf
    assert needed_seeds(0.0, 1.0) == 6
    assert needed_seeds(1.0, 1e-6) is None


@given(st.integers(6, 60), st.floats(0.5, 0.95))
def test_detectable_effect_has_just_that_power(seeds, power):
    effect = detectable_effect(seeds, power=power)
    assert power_sign_flip(seeds, effect) == pytest.approx(power, abs=1e-6)


@given(st.floats(0.15, 4.0), st.integers(1, 6), st.booleans())
def test_needed_seeds_are_enough_and_no_more(effect, contrasts, either_way):
    needed = needed_seeds(1.0, effect, contrasts=contrasts, either_way=either_way)
    level = 0.05 / contrasts

    def enough(seeds):
        return power_sign_flip(seeds, effect, level) >= 0.8 and (
            not either_way or power_equivalence(seeds, effect, level) >= 0.8
        )

    assert enough(needed)
    assert needed == fewest_seeds(0.05, contrasts) or not enough(needed - 1)
    assert needed == needed_seeds(3.0, 3 * effect, contrasts=contrasts, either_way=either_way)


def test_power_of_the_tests_themselves():
    rng = np.random.default_rng(1)
    for seeds, effect in ((8, 1.2), (12, 0.9)):
        found = (sign_flip_p(effect + rng.standard_normal((4000, seeds))) <= 0.05).mean()
        assert found == pytest.approx(power_sign_flip(seeds, effect), abs=0.04)
        same = (equivalence_p(rng.standard_normal((4000, seeds)), effect) <= 0.05).mean()
        assert same == pytest.approx(power_equivalence(seeds, effect), abs=0.04)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: smallest_p(-1), "negative"),
        (lambda: power_t(5, 1.0, 1.5), "alpha"),
        (lambda: fewest_seeds(0.05, 0), "contrasts"),
        (lambda: needed_seeds(-1.0, 1.0), "sd"),
        (lambda: needed_seeds(1.0, 0.0), "difference"),
        (lambda: detectable_effect(8, power=1.0), "power"),
        (lambda: power_equivalence(8, 0.0), "margin"),
    ],
)
def test_misuse_is_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()
