"""Whether a condition can still win, and what becomes of the comparison when it is stopped."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from retrain.analysis.futility import Dropped, dropped_in, dropped_pairs, look
from retrain.analysis.multiplicity import correct_planned, holm
from retrain.analysis.paired import sign_flip_p
from retrain.analysis.verdict import judge
from retrain.analysis.words import Unit

BASELINE = np.array([0.50, 0.60, 0.70])
STOP = Dropped("b", "a", 20, 4, -0.012, -0.030, 0.006, 0.02, 0.95)


def test_by_hand():
    # d = -0.10, -0.08, -0.11: mean -0.096667, sd 0.0152753, half-width 4.302653 sd / sqrt(3).
    found = look([0.40, 0.52, 0.59], BASELINE, margin=0.02)
    assert found.seeds == 3
    np.testing.assert_allclose(found.difference, -0.0966667, atol=1e-6)
    np.testing.assert_allclose([found.low, found.high], [-0.1346126, -0.0587207], atol=1e-6)
    assert found.futile
    assert not look([0.40, 0.52, 0.59], BASELINE, margin=0.02, min_seeds=4).futile
    # Behind in the mean and still able to win: -0.02, 0.02, -0.03 reach to +0.056.
    assert not look([0.48, 0.62, 0.67], BASELINE, margin=0.02).futile


def test_seeds_that_are_not_there_yet_are_left_out():
    values = [0.40, math.nan, 0.59, 0.52]
    baseline = [0.50, 0.55, 0.70, math.nan]
    found = look(values, baseline, margin=0.02, min_seeds=2)
    assert found.seeds == 2
    np.testing.assert_allclose(found.difference, -0.105)
    assert not look(values, baseline, margin=0.02).futile
    nothing = look([math.nan], [0.5], margin=0.02)
    assert (int(nothing.seeds), bool(nothing.futile)) == (0, False)
    one = look([0.1], [0.5], margin=0.02, min_seeds=2)
    assert np.isnan(one.high)
    assert not one.futile


@pytest.mark.parametrize(
    ("shift", "futile"), [(0.0, True), (0.01, True), (0.03, False), (-0.3, True)]
)
def test_an_interval_without_width_is_taken_as_it_is(shift, futile):
    found = look(BASELINE + shift, BASELINE, margin=0.02)
    np.testing.assert_allclose([found.low, found.high], shift, atol=1e-12)
    assert found.futile == futile
    assert not look((BASELINE + shift)[:2], BASELINE[:2], margin=0.02).futile


differences = arrays.arrays(
    np.float64, st.integers(3, 8), elements=st.integers(-40, 40).map(lambda n: n / 100)
)


@given(differences, st.sampled_from([0.5, 0.8, 0.95]), st.sampled_from([0.005, 0.023, 0.1]))
def test_it_is_the_one_sided_t_test_of_the_margin(d, confidence, margin):
    assume(np.ptp(d) > 0)
    p = stats.ttest_1samp(d, margin, alternative="less").pvalue
    assume(abs(p - (1 - confidence) / 2) > 1e-9)
    found = look(d, np.zeros_like(d), margin, confidence)
    assert found.futile == (p < (1 - confidence) / 2)
    # A smaller margin to win by, or a higher confidence, stops nothing more.
    if not found.futile:
        assert not look(d, np.zeros_like(d), margin / 2, confidence + 0.04).futile


def test_many_campaigns_at_once():
    rng = np.random.default_rng(3)
    treatment, baseline = rng.normal(-0.5, 1, (2, 50, 4, 6))
    treatment[rng.random(treatment.shape) < 0.2] = np.nan
    together = look(treatment, baseline, margin=0.1)
    for index in np.ndindex(50, 4):
        one = look(treatment[index], baseline[index], margin=0.1)
        assert one.futile == together.futile[index]
        assert one.seeds == together.seeds[index]
        np.testing.assert_allclose(one.high, together.high[index])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"margin": 0.0}, "margin"),
        ({"margin": math.inf}, "margin"),
        ({"margin": 0.1, "min_seeds": 1}, "min_seeds"),
        ({"margin": 0.1, "confidence": 1.0}, "confidence"),
    ],
)
def test_misuse_is_refused(options, match):
    with pytest.raises(ValueError, match=match):
        look(BASELINE, BASELINE, **options)


def test_what_the_manifest_says():
    entry = {
        **{"condition": "b", "baseline": "a", "step": 20, "seeds": 4, "difference": -0.012},
        **{"low": -0.030, "high": 0.006, "margin": 0.02, "confidence": 0.95, "at": "…"},
    }
    half = {"condition": "c", "baseline": "a", "step": 20}
    manifest = {"dropped": [entry, half, None, {**entry, "baseline": "c", "low": "x"}]}
    assert dropped_in(manifest) == {("b", "a"): STOP}
    assert dropped_in({}) == {}
    assert STOP.numbers(Unit(1, "", 3)) == "-0.012, 95 % CI -0.030 to +0.006, below +0.02"


@given(
    arrays.arrays(np.float64, (6, 4), elements=st.integers(-30, 30).map(float)),
    arrays.arrays(np.bool_, 4),
)
def test_a_dropped_contrast_helps_no_other(d, dropped):
    """Whatever was dropped, no p value falls below the one without stopping, corrected by Holm."""
    partial = np.where(dropped, np.where(np.arange(6)[:, None] < 3, d, np.nan), d)
    corrected = correct_planned(partial, dropped_K=dropped)
    assert (corrected.p >= np.nan_to_num(holm(sign_flip_p(d.T))) - 1e-12).all() or not dropped.any()
    assert (corrected.p[dropped] == 1).all()
    if dropped.any():
        assert not corrected.by_max_t
    else:
        np.testing.assert_allclose(corrected.p, correct_planned(d).p)


def test_the_family_stays_as_large_as_it_was_planned():
    steady = np.array([3.0, 4, 5, 6, 7, 8, 9, 10])  # 8 of 8 seeds: p = 2 / 256
    noisy = np.array([3.0, -4, 5, -6, 7, -8, 9, -10])
    never = np.full(8, np.nan)
    d = np.column_stack([steady, noisy, never, never])
    flags = np.array([False, False, True, True])
    p = correct_planned(d, dropped_K=flags).p
    np.testing.assert_allclose(p[0], 4 * 2 / 256)
    np.testing.assert_allclose(p[2:], 1)
    # If the two had never been planned:
    np.testing.assert_allclose(correct_planned(d).p[0], 2 * 2 / 256)
    # Of many campaigns, each by its own method.
    both = correct_planned(np.stack([d, d]), dropped_K=np.stack([flags, ~flags & flags]))
    np.testing.assert_allclose(both.p[0], p)
    np.testing.assert_allclose(both.p[1], correct_planned(d).p)
    assert both.by_max_t.tolist() == [False, True]


def test_the_verdict_on_a_dropped_contrast():
    rng = np.random.default_rng(5)
    base = rng.uniform(0.5, 0.7, 8)
    up = base + np.array([0.045, 0.012, 0.061, 0.033, 0.078, 0.020, 0.055, 0.024])
    same = base + np.array([0.001, -0.002, 0.003, 0.0015, -0.001, 0.002, -0.003, -0.0005])
    stopped = np.where(np.arange(8) < 4, base - 0.012, np.nan)
    values = np.column_stack([base, up, same, stopped])
    won, equal, dropped = judge(values, 0.02, dropped_K=[None, None, STOP])
    assert (dropped.verdict.kind, dropped.p, dropped.p_equivalence) == ("dropped", 1.0, 1.0)
    assert dropped.verdict.text == (
        "stopped for futility at step 20 (-1.2 points, 95 % CI -3.0 to +0.6, below +2 points)"
    )
    assert (won.verdict.kind, equal.verdict.kind) == ("better", "equivalent")
    assert {judged.method for judged in (won, equal, dropped)} == {"Holm"}
    np.testing.assert_allclose(won.p, 3 * 2 / 256)
    # TOST is corrected for three as well.
    alone = judge(values[:, [0, 2]], 0.02)[0].p_equivalence
    np.testing.assert_allclose(equal.p_equivalence, 3 * alone)
    # One that was better after all, under the seeds that were run, is still not called so.
    ahead = np.column_stack([base, up])
    [judged] = judge(ahead, 0.02, dropped_K=[STOP])
    assert (judged.verdict.kind, judged.p) == ("dropped", 1.0)
    with pytest.raises(ValueError, match="1 entries of dropped_K for 3 contrasts"):
        judge(values, 0.02, dropped_K=[STOP])


def test_comparisons_of_a_stopped_condition():
    entry = {
        **{"condition": "b", "baseline": "a", "step": 20, "seeds": 4, "difference": -0.012},
        **{"low": -0.030, "high": 0.006, "margin": 0.02, "confidence": 0.95},
    }
    manifest = {"dropped": [entry, {**entry, "baseline": "c", "low": -0.05}]}
    other = dropped_in(manifest)[("b", "c")]
    pairs = [("b", "a"), ("b", "c"), ("c", "a"), ("b", "d"), ("d", "b")]
    # Those that nobody planned may not be believed either: half of the runs are missing.
    assert dropped_pairs(manifest, pairs) == [STOP, other, None, STOP, STOP]
    assert dropped_pairs({}, pairs) == [None] * 5
