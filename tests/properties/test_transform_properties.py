"""The invariants of the transform modes, and their agreement with slow per-row references."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrain.advantages.transforms import (
    TransformContext,
    gtpo,
    gtpo_hicra,
    gtpo_sepa,
    gtpo_weights,
    none,
    sepa_pool,
)
from retrain.types import pad_mask, pad_rows

advantage = st.one_of(st.just(0.0), st.floats(-5, 5))
uncertainty = st.one_of(st.just(0.0), st.floats(1e-6, 50))
token = st.tuples(uncertainty, st.booleans())
row = st.tuples(advantage, st.lists(token, max_size=8))
beta = st.floats(0, 4)
share = st.floats(0, 1)
alpha = st.floats(0, 0.999)


def context_of(rows, **settings):
    lengths = [len(tokens) for _, tokens in rows]
    h = pad_rows([np.array([h for h, _ in tokens]) for _, tokens in rows])
    planning = pad_rows([np.array([p for _, p in tokens]) for _, tokens in rows], dtype=bool)
    advantages = np.array([a for a, _ in rows])
    return TransformContext(
        rewards=advantages,
        group_index=np.zeros(len(rows), dtype=np.int64),
        advantages=advantages,
        logprobs=-h,
        uncertainties=h,
        planning=planning,
        mask=pad_mask(lengths),
        **settings,
    )


batches = st.lists(row, min_size=1, max_size=6)
contexts = st.builds(
    lambda rows, b, s, a: context_of(rows, gtpo_beta=b, sepa_lambda=s, hicra_alpha=a),
    batches,
    beta,
    share,
    alpha,
)


def flags(context, value):
    return replace(context, planning=context.mask & value)


def slow_gtpo(advantage, h, beta):
    mean = sum(h) / len(h) if h else 0.0
    weights = [max(0.0, 1 + beta * (x / mean - 1)) if mean >= 1e-7 else 1.0 for x in h]
    return [advantage * w for w in weights]


def slow_hicra(advantage, h, planning, beta, alpha):
    tokens = slow_gtpo(advantage, h, beta)
    return [a + alpha * abs(a) * p for a, p in zip(tokens, planning, strict=True)]


def slow_sepa(advantage, h, planning, beta, share):
    execution = [x for x, p in zip(h, planning, strict=True) if not p]
    mean = sum(execution) / len(execution) if execution else 0.0
    pooled = [x if p else share * mean + (1 - share) * x for x, p in zip(h, planning, strict=True)]
    return slow_gtpo(advantage, pooled, beta)


@given(rows=batches, beta=beta, alpha=alpha, share=share)
def test_batched_transforms_equal_their_references(rows, beta, alpha, share):
    context = context_of(rows, gtpo_beta=beta, hicra_alpha=alpha, sepa_lambda=share)
    batched = [mode(context) for mode in (none, gtpo, gtpo_hicra, gtpo_sepa)]
    for i, (a, tokens) in enumerate(rows):
        h, planning = [h for h, _ in tokens], [p for _, p in tokens]
        expected = [
            [a] * len(h),
            slow_gtpo(a, h, beta),
            slow_hicra(a, h, planning, beta, alpha),
            slow_sepa(a, h, planning, beta, share),
        ]
        for result, reference in zip(batched, expected, strict=True):
            assert result[i, : len(h)] == pytest.approx(reference, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("mode", [none, gtpo, gtpo_hicra, gtpo_sepa])
@given(context=contexts)
def test_padding_gets_nothing_and_everything_is_finite(mode, context):
    tokens = mode(context)
    assert tokens.shape == context.mask.shape
    assert np.isfinite(tokens).all()
    assert not tokens[~context.mask].any()


@pytest.mark.parametrize("mode", [none, gtpo, gtpo_hicra, gtpo_sepa])
@given(context=contexts)
def test_the_sign_of_the_advantage_is_kept(mode, context):
    tokens = mode(context)
    signs = np.sign(context.advantages)[:, None]
    assert ((np.sign(tokens) == signs) | (tokens == 0)).all()


@pytest.mark.parametrize("mode", [none, gtpo, gtpo_hicra, gtpo_sepa])
@given(rows=batches, extra=row, beta=beta, share=share)
def test_a_row_does_not_depend_on_its_batch(mode, rows, extra, beta, share):
    settings = {"gtpo_beta": beta, "sepa_lambda": share}
    alone, together = context_of(rows, **settings), context_of([*rows, extra], **settings)
    width = alone.mask.shape[1]
    assert mode(together)[:-1, :width] == pytest.approx(mode(alone), rel=1e-9, abs=1e-12)


@given(context=contexts)
def test_gtpo_without_beta_is_none(context):
    context = replace(context, gtpo_beta=0.0)
    assert np.array_equal(gtpo(context), none(context))


@given(context=contexts, h=st.floats(0, 50))
def test_gtpo_of_flat_uncertainty_is_none(context, h):
    context = replace(context, uncertainties=np.where(context.mask, h, 0.0))
    assert gtpo(context) == pytest.approx(none(context), rel=1e-9, abs=1e-12)


@given(context=contexts, scale=st.floats(0, 1))
def test_gtpo_of_almost_no_uncertainty_is_none(context, scale):
    context = replace(context, uncertainties=context.uncertainties * scale * 1e-9)
    assert np.array_equal(gtpo(context), none(context))


@given(context=contexts)
def test_gtpo_weights_have_mean_1_when_none_clamps(context):
    context = replace(context, gtpo_beta=min(context.gtpo_beta, 1.0))
    w = gtpo_weights(context)
    for i, length in enumerate(context.mask.sum(axis=1)):
        if length:
            assert w[i, :length].mean() == pytest.approx(1)


@given(context=contexts)
def test_gtpo_clamps_only_beyond_beta_1(context):
    clamped = (gtpo_weights(context) == 0) & context.mask
    if context.gtpo_beta < 1:
        assert not clamped.any()


@given(context=contexts, scale=st.floats(0.5, 1000))
def test_gtpo_does_not_see_the_unit_of_uncertainty(context, scale):
    h = np.where(context.uncertainties > 0, np.maximum(context.uncertainties, 1e-3), 0.0)
    context = replace(context, uncertainties=h)
    scaled = replace(context, uncertainties=h * scale)
    assert gtpo(scaled) == pytest.approx(gtpo(context), rel=1e-9, abs=1e-9)


@given(context=contexts)
def test_hicra_without_alpha_is_gtpo(context):
    assert np.array_equal(gtpo_hicra(replace(context, hicra_alpha=0.0)), gtpo(context))


@given(context=contexts)
def test_hicra_leaves_execution_alone_and_never_lowers_planning(context):
    before, after = gtpo(context), gtpo_hicra(context)
    assert np.array_equal(after[~context.planning], before[~context.planning])
    assert (after[context.planning] >= before[context.planning]).all()


@given(context=contexts)
def test_hicra_softens_the_blame_of_planning(context):
    context = flags(replace(context, advantages=-np.abs(context.advantages)), True)
    expected = (1 - context.hicra_alpha) * gtpo(context)
    assert gtpo_hicra(context) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(context=contexts)
def test_sepa_without_lambda_is_gtpo(context):
    assert np.array_equal(gtpo_sepa(replace(context, sepa_lambda=0.0)), gtpo(context))


@given(context=contexts)
def test_pooling_keeps_the_mean_and_planning(context):
    pooled, h = sepa_pool(context), context.uncertainties
    assert pooled.sum(axis=1) == pytest.approx(h.sum(axis=1), rel=1e-9, abs=1e-9)
    assert np.array_equal(pooled[context.planning], h[context.planning])


@given(context=contexts, other=share)
def test_planning_weights_do_not_depend_on_lambda(context, other):
    one = gtpo_sepa(context)[context.planning]
    two = gtpo_sepa(replace(context, sepa_lambda=other))[context.planning]
    assert one == pytest.approx(two, rel=1e-7, abs=1e-9)


@given(context=contexts)
def test_pooling_shrinks_the_variance_of_execution(context):
    pooled = sepa_pool(context)
    for i, execution in enumerate(context.mask & ~context.planning):
        if execution.any():
            expected = context.uncertainties[i, execution].var() * (1 - context.sepa_lambda) ** 2
            assert pooled[i, execution].var() == pytest.approx(expected, rel=1e-7, abs=1e-9)


@given(context=contexts)
def test_full_pooling_without_planning_is_none(context):
    context = flags(replace(context, sepa_lambda=1.0), False)
    assert gtpo_sepa(context) == pytest.approx(none(context), rel=1e-9, abs=1e-12)


@given(context=contexts)
def test_sepa_of_nothing_but_planning_is_gtpo(context):
    context = flags(context, True)
    assert np.array_equal(gtpo_sepa(context), gtpo(context))
