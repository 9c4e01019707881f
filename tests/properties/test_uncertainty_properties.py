"""The invariants of the uncertainty kinds."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrain.advantages.uncertainty import (
    UNCERTAINTY_KINDS,
    NonFiniteError,
    check_logprobs,
    predictive_variance,
    surprisal,
)
from retrain.types import pad_mask, pad_rows

logprob = st.one_of(st.floats(-80, 0), st.floats(0, 1e-4), st.just(-math.inf))
batches = st.lists(st.lists(logprob, max_size=6).map(np.array), min_size=1, max_size=5)


def padded(rows):
    return pad_rows(rows), pad_mask([len(row) for row in rows])


@given(rows=batches)
def test_surprisal_is_minus_logprob_between_0_and_50(rows):
    logprobs, mask = padded(rows)
    h = surprisal(logprobs, mask)
    expected = [[min(max(-x, 0.0), 50.0) for x in row] for row in logprobs]
    assert np.array_equal(h, np.array(expected).reshape(h.shape))


@given(rows=batches)
def test_predictive_variance_is_p_times_1_minus_p(rows):
    logprobs, mask = padded(rows)
    h = predictive_variance(logprobs, mask)
    p = np.exp(np.minimum(logprobs, 0))
    assert h == pytest.approx(p * (1 - p))
    assert ((h >= 0) & (h <= 0.25)).all()


@pytest.mark.parametrize("name", list(UNCERTAINTY_KINDS))
@given(rows=batches)
def test_uncertainties_are_finite_not_negative_and_0_on_padding(name, rows):
    logprobs, mask = padded(rows)
    h = UNCERTAINTY_KINDS[name](logprobs, np.minimum(np.abs(logprobs), 10.0), mask)
    assert np.isfinite(h).all()
    assert (h >= 0).all()
    assert not h[~mask].any()


@given(
    rows=batches.filter(lambda rows: any(len(row) for row in rows)),
    bad=st.sampled_from([math.nan, math.inf, 0.5]),
    data=st.data(),
)
def test_a_bad_logprob_names_where_it_was(rows, bad, data):
    row = data.draw(st.sampled_from([i for i, r in enumerate(rows) if len(r)]))
    token = data.draw(st.integers(0, len(rows[row]) - 1))
    problems = [f"problem-{i}" for i in range(len(rows))]
    logprobs, mask = padded(rows)
    check_logprobs(logprobs, mask, run="r", step=3, problems=problems)
    logprobs[row, token] = bad
    with pytest.raises(NonFiniteError, match=rf"run r, step 3, problem problem-{row}:.*{token}"):
        check_logprobs(logprobs, mask, run="r", step=3, problems=problems)


def test_padding_is_not_looked_at():
    check_logprobs(
        np.array([[0.0, np.nan]]), np.array([[True, False]]), run="r", step=0, problems=["p"]
    )
