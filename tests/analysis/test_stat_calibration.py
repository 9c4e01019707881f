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
