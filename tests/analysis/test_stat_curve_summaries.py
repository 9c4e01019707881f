"""One number a run from its learning curve."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrain.analysis.curve_summaries import (
    align_by_step,
    best_on_validation,
    final_window,
    mean_height,
)

curves = st.lists(st.tuples(st.floats(0.1, 10), st.floats(-5, 5)), min_size=2, max_size=10).map(
    lambda pairs: (np.cumsum([p[0] for p in pairs]), np.array([p[1] for p in pairs]))
)


def test_curves_are_aligned_on_their_common_steps():
    steps, values = align_by_step([{20: 0.3, 0: 0.1, 10: 0.2}, {0: 0.5, 20: 0.7, 30: 0.8}])
    assert steps.tolist() == [0, 20]
    assert values.tolist() == [[0.1, 0.3], [0.5, 0.7]]
    assert align_by_step([{1: 0.1}, {2: 0.2}])[1].shape == (2, 0)
    with pytest.raises(ValueError, match="no curve"):
        align_by_step([])


def test_final_window():
    values = [[0.1, 0.4, 0.6], [np.nan, 0.2, 0.4], [0.1, np.nan, 0.3]]
    np.testing.assert_allclose(final_window(values, 2), [0.5, 0.3, np.nan])
    assert final_window([0.1, 0.4], 1) == 0.4
    for window in (0, 4):
        with pytest.raises(ValueError, match="window"):
            final_window(values, window)


def test_mean_height_by_hand():
    # 0..10 at mean 0.3, 10..30 at mean 0.5: (3 + 10) / 30.
    assert mean_height([0, 10, 30], [0.2, 0.4, 0.6]) == pytest.approx(13 / 30)
    # Until 20, where the curve stands at 0.5: (3 + 4.5) / 20.
    assert mean_height([0, 10, 30], [0.2, 0.4, 0.6], until=20) == pytest.approx(7.5 / 20)
    assert mean_height([0, 10, 30], [0.2, 0.4, math.nan], until=10) == pytest.approx(0.3)
    assert math.isnan(mean_height([0, 10, 30], [0.2, 0.4, math.nan]))
    assert math.isnan(mean_height([0, 10], [0.2, 0.4], until=11))


@given(curves, st.floats(0.05, 1.0))
def test_mean_height_is_numpys_trapezoid(curve, share):
    x, values = curve
    until = x[0] + share * (x[-1] - x[0])
    inside = x < until
    xs = np.append(x[inside], until)
    ys = np.append(values[inside], np.interp(until, x, values))
    expected = np.trapezoid(ys, xs) / (until - x[0])
    assert mean_height(x, values, until) == pytest.approx(expected, abs=1e-9)
    assert values.min() - 1e-9 <= mean_height(x, values) <= values.max() + 1e-9
    # Tokens in thousands or in units: the height is the same.
    assert mean_height(1000 * x, values) == pytest.approx(mean_height(x, values), abs=1e-9)


@pytest.mark.parametrize(
    ("x", "values", "until"),
    [
        ([0], [1], None),
        ([0, 0], [1, 1], None),
        ([0, 1], [1], None),
        ([0, math.nan], [1, 1], None),
        ([5, 6], [1, 1], 5),
    ],
)
def test_mean_height_refuses_what_is_no_curve(x, values, until):
    with pytest.raises(ValueError, match=r"points|rise|budget"):
        mean_height(x, values, until)


def test_the_best_is_chosen_on_validation_and_reported_on_test():
    assert best_on_validation([0.1, 0.5, 0.5, math.nan], [0.2, 0.4, 0.9, 1.0]) == (1, 0.4)
    for validation, test in (([], []), ([math.nan], [0.1]), ([0.1], [0.1, 0.2])):
        with pytest.raises(ValueError, match="evaluation"):
            best_on_validation(validation, test)
