"""Several contrasts together: maxT, Holm, Benjamini-Hochberg."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from retrain.analysis.multiplicity import benjamini_hochberg, correct_planned, holm, max_t
from retrain.analysis.paired import sign_flip_p

shapes = st.tuples(st.integers(1, 7), st.integers(1, 4))
tables = arrays.arrays(np.float64, shapes, elements=st.integers(-30, 30).map(float))
p_values = st.lists(st.floats(0, 1), min_size=1, max_size=8)


def max_t_by_the_book(d_SK):
    """Westfall and Young's step-down maxT with |t| itself, one flip after the other."""

    def t_of(d):
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.abs(d.mean(0)) / (d.std(0, ddof=1) / np.sqrt(len(d)))
        return np.nan_to_num(t, nan=0.0, posinf=1e12)

    observed = t_of(d_SK)
    order = np.argsort(-observed)
    counts = np.zeros(len(order))
    flips = list(itertools.product((1, -1), repeat=len(d_SK)))
    for flip in flips:
        t = t_of(d_SK * np.array(flip)[:, None])[order]
        largest = np.maximum.accumulate(t[::-1])[::-1]
        counts += largest >= observed[order] * (1 - 1e-9)
    p = np.empty(len(order))
    p[order] = np.maximum.accumulate(counts / len(flips))
    return p


@pytest.mark.parametrize(("seeds", "contrasts"), [(3, 2), (6, 4), (8, 3)])
def test_max_t_by_the_book(seeds, contrasts):
    rng = np.random.default_rng(seeds)
    shared = rng.normal(size=(seeds, 1))
    d = rng.normal(size=(seeds, contrasts)) + shared + np.linspace(0, 1.5, contrasts)
    np.testing.assert_allclose(max_t(d), max_t_by_the_book(d))


def test_max_t_by_hand():
    # Two contrasts, three seeds: all the same way in the first, mixed in the second.
    # r = 6/sqrt(14) = 1.604 and 2/sqrt(12) = 0.577. Flipping seed 3 in both gives 0 and 1.732 in
    # the second, which beats 1.604: p_1 = 2/4. r_2 competes with itself only: 4/4.
    p = max_t(np.array([[1.0, 2.0], [2.0, 2.0], [3.0, -2.0]]))
    np.testing.assert_allclose(p, [0.5, 1.0])


@given(tables)
def test_max_t_lies_between_the_plain_and_the_bonferroni_p(d):
    plain, together = sign_flip_p(d.T), max_t(d)
    assert (together >= plain - 1e-12).all()
    assert (together <= np.minimum(1, d.shape[1] * plain.max()) + 1e-12).all()
    if d.shape[1] == 1:
        np.testing.assert_allclose(together, plain)


@given(tables, st.randoms(), st.sampled_from([0.5, 4.0]))
def test_max_t_knows_no_order_scale_or_side(d, random, scale):
    rows, columns = list(range(d.shape[0])), list(range(d.shape[1]))
    random.shuffle(rows)
    random.shuffle(columns)
    sides = np.array([random.choice([1, -1]) for _ in columns])
    # Each contrast may have its own unit and its own sides.
    other = (d[rows] * sides * scale)[:, columns]
    np.testing.assert_allclose(max_t(other), max_t(d)[columns])


@given(tables)
def test_max_t_keeps_the_order_of_its_statistics(d):
    length = np.sqrt((d**2).sum(0))
    size = np.abs(d.sum(0)) / np.where(length > 0, length, 1)
    p = max_t(d)
    for a, b in itertools.permutations(range(d.shape[1]), 2):
        if size[a] > size[b] + 1e-9:
            assert p[a] <= p[b]


def test_a_zero_column_gets_one_and_campaigns_are_judged_one_by_one():
    d = np.random.default_rng(1).normal(size=(4, 5, 3))
    d[:, :, 1] = 0
    p = max_t(d)
    assert (p[:, 1] == 1).all()
    np.testing.assert_allclose(p, [max_t(one) for one in d])


def test_holm_and_benjamini_hochberg_by_hand():
    p = [0.01, 0.04, 0.03, 0.005]
    np.testing.assert_allclose(holm(p), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(benjamini_hochberg(p), [0.02, 0.04, 0.04, 0.02])


@given(p_values)
def test_benjamini_hochberg_is_scipys(p):
    np.testing.assert_allclose(benjamini_hochberg(p), stats.false_discovery_control(p), atol=1e-12)


@given(p_values, st.randoms())
def test_adjusted_p_values_are_monotone(p, random):
    order = list(range(len(p)))
    random.shuffle(order)
    for adjust in (holm, benjamini_hochberg):
        adjusted = adjust(p)
        assert (adjusted >= np.array(p) - 1e-12).all()
        assert (adjusted <= 1).all()
        assert (np.diff(adjusted[np.argsort(p)]) >= -1e-12).all()
        np.testing.assert_allclose(adjust(np.array(p)[order]), adjusted[order])
    assert (benjamini_hochberg(p) <= holm(p) + 1e-12).all()


def test_missing_p_values_do_not_count():
    nan = np.nan
    np.testing.assert_allclose(holm([0.02, nan, 0.03]), [0.04, nan, 0.04])
    np.testing.assert_allclose(benjamini_hochberg([0.02, nan, 0.03]), [0.03, nan, 0.03])
    rows = [[0.02, nan, 0.03], [0.5, 0.01, 0.2]]
    np.testing.assert_allclose(holm(rows), [holm(row) for row in rows])


def test_the_method_follows_what_is_missing():
    d = np.random.default_rng(2).normal(0.5, 1, (3, 6, 2))
    d[1, 2, :] = np.nan  # the baseline's run is missing: in both contrasts
    d[2, 2, 0] = np.nan  # one treatment's run is missing
    p, by_max_t = correct_planned(d)
    assert by_max_t.tolist() == [True, True, False]
    np.testing.assert_allclose(p[0], max_t(d[0]))
    np.testing.assert_allclose(p[1], max_t(np.delete(d[1], 2, axis=0)))
    np.testing.assert_allclose(p[2], holm(sign_flip_p(d[2].T)))
    for one, expected in zip(d, p, strict=True):
        np.testing.assert_allclose(correct_planned(one).p, expected)


def test_a_condition_that_never_ran_does_not_count():
    d = np.random.default_rng(3).normal(0.5, 1, (6, 3))
    d[:, 1] = np.nan
    p, by_max_t = correct_planned(d)
    assert by_max_t
    assert np.isnan(p[1])
    np.testing.assert_allclose(p[[0, 2]], max_t(d[:, [0, 2]]))
    assert np.isnan(correct_planned(np.full((3, 2), np.nan)).p).all()


def test_misuse_is_refused():
    with pytest.raises(ValueError, match="correct_planned"):
        max_t([[1.0, np.nan]])
    with pytest.raises(ValueError, match="axes"):
        max_t([1.0, 2.0])
    with pytest.raises(ValueError, match="axes"):
        correct_planned([1.0])
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([1.5])
    with pytest.raises(ValueError, match="axis"):
        benjamini_hochberg(0.5)
    assert np.isnan(max_t(np.empty((0, 2)))).all()
