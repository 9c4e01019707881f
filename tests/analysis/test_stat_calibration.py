"""The short form of `benchmarks/calibration.py`: how often the statistics are wrong."""

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from retrain.analysis.verdict import judge

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "calibration.py"
CAMPAIGNS = 2000
NOMINAL = 0.05
ERROR = 4 * math.sqrt(NOMINAL * (1 - NOMINAL) / CAMPAIGNS)
"""Four standard errors of a share of 5 % in so many campaigns."""


@pytest.fixture(scope="module")
def calibration():
    spec = importlib.util.spec_from_file_location("calibration", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.parametrize("shape", ["normal", "skewed", "bimodal", "failures"])
@pytest.mark.parametrize("conditions", [2, 5])
@pytest.mark.parametrize("seeds", [3, 5, 8])
def test_errors_are_as_rare_as_they_are_said_to_be(calibration, shape, conditions, seeds):
    row = calibration.simulate(shape, seeds, conditions, CAMPAIGNS, seed=1)
    assert row.false_positive <= NOMINAL + ERROR
    assert not row.false_positive_partial > NOMINAL + ERROR
    assert row.wrong_equivalent <= NOMINAL + ERROR
    assert 0.93 - ERROR <= row.coverage <= 0.97 + ERROR
    assert row.pooled > 3 * NOMINAL
    assert row.bootstrap_coverage < 0.92
    if seeds < 6:
        assert row.false_positive == 0  # no p value reaches 5 %: it cannot be wrong, nor right
    elif shape != "failures":
        assert row.false_positive > NOMINAL - 0.02


def test_the_seeds_that_are_said_to_be_needed_are(calibration):
    for effect, seeds, found in calibration.power_rows(1000):
        assert found > 0.78, (effect, seeds)


@pytest.mark.parametrize("shape", ["normal", "failures", "rare failures"])
def test_the_simulation_judges_as_the_product_does(calibration, shape):
    rng = np.random.default_rng(1)
    effects = np.array([0, -0.03, 0.05])
    values = calibration.campaigns(rng, shape, (25, 8, 3), effects)
    d = calibration.differences(values)
    corrected = calibration.correct_planned(d).p
    same = calibration.holm(calibration.equivalence_p(np.swapaxes(d, 1, 2), 0.1))
    for one, p, q in zip(values, corrected, same, strict=True):
        judgements = judge(one, margin=0.1)
        np.testing.assert_allclose([j.p for j in judgements], p)
        np.testing.assert_allclose([j.p_equivalence for j in judgements], q)


@pytest.mark.parametrize("shape", ["normal", "skewed", "bimodal"])
def test_the_simulated_noise_has_mean_0_and_sd_1(calibration, shape):
    drawn = calibration.noise(np.random.default_rng(2), shape, (400_000,))
    assert drawn.mean() == pytest.approx(0, abs=0.01)
    assert drawn.std() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    "shape", ["normal", "skewed", "bimodal", "failures", "unlike", "rare failures"]
)
def test_the_simulated_differences_are_those_asked_for(calibration, shape):
    effects = np.array([0, -0.1, 0.0])
    values = calibration.campaigns(np.random.default_rng(3), shape, (20_000, 2, 3), effects)
    found = np.nanmean(calibration.differences(values), axis=(0, 1))
    np.testing.assert_allclose(found, effects[1:], atol=0.003)


@pytest.mark.parametrize("shape", ["normal", "skewed"])
def test_stopping_makes_no_false_claims(calibration, shape):
    row = calibration.simulate_stopping(shape, 8, 5, CAMPAIGNS, seed=1)
    assert row.false_positive <= NOMINAL + ERROR
    assert row.false_partial <= NOMINAL + ERROR
    assert row.false_better <= NOMINAL / 2 + ERROR / math.sqrt(2)
    assert row.false_better <= row.naive_better
    assert row.saved > 0.05
    assert row.stopped_better < row.stopped / 3
    assert 0.6 * row.power_without < row.power <= row.power_without


def test_the_simulation_stops_as_a_campaign_does(calibration):
    """Seed after seed, each contrast by itself, until it is stopped or the campaign is over."""
    d = np.random.default_rng(4).normal(-0.02, 0.03, (30, 6, 3))
    dropped, saved = calibration.stop_in_turn(d)
    assert 0.2 < dropped.mean() < 0.9
    for campaign, contrast in np.ndindex(30, 3):
        values = d[campaign, :, contrast]
        looks = [
            calibration.look(values[:n], np.zeros(n), calibration.WIN_MARGIN).futile
            for n in range(1, 7)
        ]
        first = next((n for n, futile in enumerate(looks, 1) if futile), None)
        assert dropped[campaign, contrast] == (first is not None)
        assert saved[campaign, contrast] == (0 if first is None else 6 - first + 0.5)


def test_half_way_is_as_like_the_end_as_it_is_said(calibration):
    rng, effects = np.random.default_rng(6), np.array([0, 0.1])
    interim, final = calibration.interim_and_final(rng, "skewed", (20_000, 2, 2), effects)
    half, end = (calibration.differences(values)[..., 0].ravel() for values in (interim, final))
    np.testing.assert_allclose([half.mean(), end.mean()], [0.05, 0.1], atol=0.001)
    # Answers are counted, which adds noise to both.
    assert np.corrcoef(half, end)[0, 1] == pytest.approx(
        0.7 * 0.0004 / (0.0004 + 0.00024), abs=0.02
    )
