"""Every loss against its formula, written out token by token, values and gradients."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from retrain.config.schema import LossConfig
from retrain.policies.local.loss import LossRows, kl_estimate, policy_loss
from retrain.training.rollout import token_weights

CONFIGS = [
    LossConfig(),
    LossConfig(type="ppo"),
    LossConfig(type="ppo", eps_low=0.1, eps_high=0.4, dual_clip=1.5),
    LossConfig(type="gspo"),
    LossConfig(type="gspo", eps_low=0.05, eps_high=0.1),
    LossConfig(type="cispo"),
    LossConfig(type="cispo", ratio_max=1.1),
    LossConfig(kl_coef=0.3),
    LossConfig(type="ppo", kl_coef=0.3, kl_estimator="k2"),
]


def make_rows(seed: int, lengths: tuple[int, ...] = (4, 1, 6), spread: float = 0.5) -> LossRows:
    rng = np.random.default_rng(seed)
    mask = np.arange(max(lengths)) < np.array(lengths)[:, None]

    def values(low: float, high: float) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, mask.shape) * mask)

    old = values(-3, -0.1)
    advantage = torch.from_numpy(rng.normal(size=(len(lengths), 1)) * mask)
    return LossRows(
        logprobs=(old + values(-spread, spread)).requires_grad_(),
        old_logprobs=old,
        credit=advantage,
        mask=torch.from_numpy(mask),
        weight=torch.from_numpy(token_weights(mask, "token_mean", 10)),
        base_logprobs=old + values(-1, 1),
    )


def by_hand(rows: LossRows, config: LossConfig) -> Tensor:
    """The sum over tokens, one at a time."""
    total = torch.zeros((), dtype=torch.float64)
    for i in range(rows.mask.shape[0]):
        length = int(rows.mask[i].sum())
        sequence = (rows.logprobs[i, :length] - rows.old_logprobs[i, :length]).mean()
        for t in range(length):
            new, old = rows.logprobs[i, t], rows.old_logprobs[i, t]
            credit, weight = rows.credit[i, t], rows.weight[i, t]
            rho = torch.exp(new - old)
            if config.type == "importance_sampling":
                term = -rho * credit
            elif config.type == "cispo":
                term = -torch.clamp(rho, max=config.ratio_max or 5.0).detach() * credit * new
            else:
                ratio = rho
                if config.type == "gspo":
                    ratio = torch.exp(sequence).detach() * torch.exp(new - new.detach())
                low, high = (0.2, 0.2) if config.type == "ppo" else (3e-4, 4e-4)
                low, high = config.eps_low or low, config.eps_high or high
                bounded = torch.clamp(ratio, 1 - low, 1 + high)
                objective = torch.min(ratio * credit, bounded * credit)
                if config.dual_clip and credit < 0:
                    objective = torch.max(objective, config.dual_clip * credit)
                term = -objective
            if config.kl_coef:
                assert rows.base_logprobs is not None
                x = rows.base_logprobs[i, t] - new
                kl = x * x / 2 if config.kl_estimator == "k2" else torch.exp(x) - 1 - x
                term = term + config.kl_coef * kl
            total = total + weight * term
    return total


def value_and_gradient(loss: Tensor, logprobs: Tensor) -> tuple[float, Tensor]:
    (gradient,) = torch.autograd.grad(loss, logprobs)
    return float(loss.detach()), gradient


def without_base(rows: LossRows, config: LossConfig) -> LossRows:
    base = rows.base_logprobs if config.kl_coef else None
    return LossRows(rows.logprobs, rows.old_logprobs, rows.credit, rows.mask, rows.weight, base)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.type}-{c.kl_coef}-{c.eps_low}")
@pytest.mark.parametrize("seed", range(4))
def test_formula(config: LossConfig, seed: int) -> None:
    rows = without_base(make_rows(seed), config)
    found = value_and_gradient(policy_loss(rows, config).loss, rows.logprobs)
    expected = value_and_gradient(by_hand(rows, config), rows.logprobs)
    assert found[0] == pytest.approx(expected[0], rel=1e-9, abs=1e-12)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("config", CONFIGS[:7], ids=lambda c: f"{c.type}-{c.eps_low}")
def test_first_update_is_the_plain_policy_gradient(config: LossConfig) -> None:
    """At ratio 1 every loss has gradient -weight * credit, and nothing is clipped."""
    rows = without_base(make_rows(1, lengths=(3, 3), spread=0.0), config)
    parts = policy_loss(rows, config)
    _, gradient = value_and_gradient(parts.loss, rows.logprobs)
    expected = -rows.weight * rows.credit
    torch.testing.assert_close(gradient, expected)
    assert parts.clipped == 0
    assert parts.ratio_sum == pytest.approx(parts.tokens)
    assert parts.kl_to_sampler_sum == pytest.approx(0)


def sequence_gspo(rows: LossRows) -> Tensor:
    """GSPO with one credit a completion: -s A, s = exp(mean log rho), unclipped, over rows."""
    lengths = rows.mask.sum(1)
    s = (((rows.logprobs - rows.old_logprobs) * rows.mask).sum(1) / lengths).exp()
    return -(s * rows.credit[:, 0]).mean()


def test_gspo_with_one_credit_a_completion_is_gspo() -> None:
    rows = without_base(make_rows(2, spread=0.01), LossConfig())
    credit = rows.credit[:, :1] * rows.mask
    weight = torch.from_numpy(token_weights(rows.mask.numpy(), "sequence_mean", 10))
    rows = dataclasses.replace(rows, credit=credit, weight=weight)
    wide = LossConfig(type="gspo", eps_low=0.9, eps_high=9.0)
    found = value_and_gradient(policy_loss(rows, wide).loss, rows.logprobs)
    expected = value_and_gradient(sequence_gspo(rows), rows.logprobs)
    assert found[0] == pytest.approx(expected[0], rel=1e-9)
    torch.testing.assert_close(found[1], expected[1])


def test_gspo_keeps_the_credit_of_tokens_apart_and_clips_their_completion() -> None:
    """Two completions of equal ratios: one within the clip, one beyond it for its praise alone."""
    shift = torch.tensor([[0.02, -0.02, 0.0], [0.03, 0.0, 0.0]], dtype=torch.float64)
    old = torch.full((2, 3), -1.0, dtype=torch.float64)
    credit = torch.tensor([[3.0, 1.0, 0.0], [3.0, 1.0, -2.0]], dtype=torch.float64)
    ones = torch.ones_like(old)
    rows = LossRows((old + shift).requires_grad_(), old, credit, ones > 0, ones)
    parts = policy_loss(rows, LossConfig(type="gspo", eps_low=5e-3, eps_high=5e-3))
    _, gradient = value_and_gradient(parts.loss, rows.logprobs)
    beyond = 2.0 * math.exp(0.01)
    torch.testing.assert_close(
        gradient, torch.tensor([[-3.0, -1.0, 0.0], [0.0, 0.0, beyond]], dtype=torch.float64)
    )
    assert parts.clipped == 2


@given(st.integers(0, 1000), st.integers(1, 2))
def test_parts_of_a_batch_add_up(seed: int, cut: int) -> None:
    for config in CONFIGS:
        rows = without_base(make_rows(seed), config)

        def some(index: slice, rows: LossRows = rows) -> LossRows:
            return LossRows(
                *(
                    None if value is None else value[index]
                    for value in (
                        rows.logprobs,
                        rows.old_logprobs,
                        rows.credit,
                        rows.mask,
                        rows.weight,
                        rows.base_logprobs,
                    )
                )
            )

        whole = policy_loss(rows, config)
        parts = [policy_loss(some(i), config) for i in (slice(0, cut), slice(cut, None))]
        total = sum(float(part.loss.detach()) for part in parts)
        assert total == pytest.approx(float(whole.loss.detach()), abs=1e-9)
        for name in ("tokens", "ratio_sum", "clipped", "kl_to_sampler_sum", "kl_to_base_sum"):
            assert sum(getattr(p, name) for p in parts) == pytest.approx(getattr(whole, name))


def test_zero_credit_keeps_its_place_in_the_denominator() -> None:
    """Halving the credited rows by adding a row without credit halves the loss."""
    rows = make_rows(3, lengths=(4, 4))
    credit = rows.credit.clone()
    credit[1] = 0
    alone = LossRows(
        rows.logprobs[:1],
        rows.old_logprobs[:1],
        credit[:1],
        rows.mask[:1],
        torch.from_numpy(token_weights(rows.mask[:1].numpy(), "token_mean", 10)),
    )
    both = LossRows(rows.logprobs, rows.old_logprobs, credit, rows.mask, rows.weight)
    whole = policy_loss(both, LossConfig()).loss
    assert float(whole.detach()) == pytest.approx(
        float(policy_loss(alone, LossConfig()).loss.detach()) / 2
    )


def test_extreme_ratios_stay_finite_and_never_touch_uncredited_tokens() -> None:
    rows = make_rows(0, lengths=(3,))
    logprobs = torch.tensor([[-0.1, -300.0, -0.1]], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([[-500.0, -0.1, -500.0]], dtype=torch.float64)
    credit = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64)
    extreme = LossRows(logprobs, old, credit, rows.mask, rows.weight)
    for config in CONFIGS[:7]:
        loss, gradient = value_and_gradient(policy_loss(extreme, config).loss, logprobs)
        assert math.isfinite(loss)
        assert torch.isfinite(gradient).all()
        assert gradient[0, 2] == 0
    parts = policy_loss(extreme, LossConfig())
    assert parts.ratio_max == pytest.approx(math.exp(20))


@pytest.mark.parametrize(
    ("rewarded", "error", "found_there"),
    [([1, 4], 0.149, [-0.126, 0.205, -0.047, -0.032, 0.0]), ([4], 1.0, [0.0] * 5)],
)
def test_what_a_nucleus_cuts_off_is_never_learnt(
    rewarded: list[int], error: float, found_there: list[float]
) -> None:
    """The example of docs/algorithms.md: the expected gradient, by logits, of one token a row."""
    probs = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05], dtype=torch.float64)
    kept = slice(0, 4)  # top_p = 0.95
    drawn = probs[kept] / probs[kept].sum()
    reward = torch.zeros(5, dtype=torch.float64)
    reward[rewarded] = 1
    logits = probs.log().requires_grad_()
    rows = LossRows(
        logprobs=torch.log_softmax(logits, -1)[kept, None],
        old_logprobs=drawn.log()[:, None],
        credit=(reward[kept] - (drawn * reward[kept]).sum())[:, None],
        mask=torch.ones(4, 1, dtype=torch.bool),
        weight=drawn[:, None],
    )
    parts = policy_loss(rows, LossConfig())
    found = -value_and_gradient(parts.loss, logits)[1]
    torch.testing.assert_close(found.tolist(), found_there, rtol=0, atol=5e-4)
    true = probs * (reward - (probs * reward).sum())
    assert float((found - true).norm() / true.norm()) == pytest.approx(error, abs=5e-4)
    assert parts.ratio_max == pytest.approx(0.95)


@given(st.floats(-5, 5))
def test_kl_estimators_are_never_negative_and_zero_at_equality(x: float) -> None:
    for estimator in ("k2", "k3"):
        value = float(kl_estimate(torch.tensor(x, dtype=torch.float64), estimator))
        assert value >= 0
        assert float(kl_estimate(torch.zeros(1), estimator)) == 0


def test_k3_is_unbiased_for_the_kl() -> None:
    rng = np.random.default_rng(0)
    p, q = np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.5, 0.3])
    draws = rng.choice(3, size=200_000, p=p)
    estimate = kl_estimate(torch.from_numpy(np.log(q / p)[draws]), "k3").mean()
    assert float(estimate) == pytest.approx(float((p * np.log(p / q)).sum()), rel=0.02)


masks = st.lists(st.integers(0, 7), min_size=1, max_size=6).map(
    lambda lengths: np.arange(max(*lengths, 1)) < np.array(lengths)[:, None]
)


@given(masks)
def test_token_weights(mask: Any) -> None:
    tokens, rows = int(mask.sum()), len(mask)
    nonempty = int(mask.any(axis=1).sum())
    totals: dict[str, Callable[[], float]] = {
        "token_mean": lambda: 1.0 if tokens else 0.0,
        "sequence_mean": lambda: nonempty / rows,
        "constant": lambda: tokens / (rows * 10),
        "sum": lambda: float(tokens),
    }
    for aggregation, total in totals.items():
        weight = token_weights(mask, aggregation, 10)
        assert weight.sum() == pytest.approx(total())
        assert not weight[~mask].any()
        if aggregation == "sequence_mean":
            np.testing.assert_allclose(weight.sum(1)[mask.any(1)], 1 / rows)
