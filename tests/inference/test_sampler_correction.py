"""Truncated importance weights: worked numbers, and when they change nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retrain.config.schema import LossConfig, RunConfig
from retrain.policies.local.loss import LossParts, LossRows, policy_loss, update_stats
from retrain.training.correction import SamplerCorrection, resolved_loss
from retrain.types import TrainBatch

PLAIN = LossConfig(sampler_correction="off")
CUT = LossConfig(sampler_correction="truncate", truncate=2.0)


def config(kind: str = "ppo", correction: str = "truncate") -> RunConfig:
    return RunConfig.model_validate({"loss": {"type": kind, "sampler_correction": correction}})


def parts(ratios: list[float], credit: list[float], loss: LossConfig) -> tuple[LossParts, Any]:
    """Loss of one row of tokens, and its gradient in the tokens' log-probabilities."""
    logprobs = torch.log(torch.tensor([ratios])).requires_grad_()
    mask = torch.ones_like(logprobs, dtype=torch.bool)
    found = policy_loss(
        LossRows(
            logprobs=logprobs,
            old_logprobs=torch.zeros_like(logprobs),
            credit=torch.tensor([credit]),
            mask=mask,
            weight=torch.full_like(logprobs, 1 / len(ratios)),
        ),
        loss,
    )
    found.loss.backward()  # type: ignore[no-untyped-call]
    assert logprobs.grad is not None
    return found, logprobs.grad[0].tolist()


def test_worked_numbers_of_importance_sampling() -> None:
    """Ratios 0.5, 1, 4 with credit 1, -1, 1 and weight 1/3; 4 is cut to 2, and learns on."""
    found, gradient = parts([0.5, 1.0, 4.0], [1.0, -1.0, 1.0], CUT)
    assert found.loss.item() == pytest.approx(-(0.5 - 1 + 2) / 3)
    assert gradient == pytest.approx([-0.5 / 3, 1 / 3, -2 / 3])
    assert found.clipped == 1
    stats = update_stats([found], found.loss.item(), None, with_base=False)
    assert stats.sampler_ess == pytest.approx(3.5**2 / (3 * (0.25 + 1 + 4)))
    whole, gradient = parts([0.5, 1.0, 4.0], [1.0, -1.0, 1.0], PLAIN)
    assert whole.loss.item() == pytest.approx(-(0.5 - 1 + 4) / 3)
    assert gradient == pytest.approx([-0.5 / 3, 1 / 3, -4 / 3])
    assert update_stats([whole], 0.0, None, with_base=False).sampler_ess is None


@given(st.lists(st.floats(0.01, 2.0), min_size=1, max_size=6))
def test_below_the_limit_nothing_changes(ratios: list[float]) -> None:
    credit = [(-1.0) ** n * (n + 1) for n in range(len(ratios))]
    cut, plain = parts(ratios, credit, CUT), parts(ratios, credit, PLAIN)
    assert cut[0].loss.item() == plain[0].loss.item()
    assert cut[1] == plain[1]


class Trainer:
    """A trainer with given log-probabilities."""

    def __init__(self, logprobs: np.ndarray) -> None:
        self.logprobs = logprobs
        self.asked: list[TrainBatch] = []

    def completion_logprobs(self, batch: TrainBatch) -> np.ndarray:
        self.asked.append(batch)
        return self.logprobs[: batch.num_rows]


def batch(sampler: list[list[float]], credit: list[list[float]]) -> TrainBatch:
    mask = np.array(sampler) != 0
    return TrainBatch(
        prompts=[np.array([1])],
        prompt_index=np.zeros(len(sampler), dtype=np.int64),
        token_ids=mask.astype(np.int64),
        mask=mask,
        logprobs=np.array(sampler),
        credit=np.array(credit),
        weight=mask / mask.sum(),
        temperature=1.0,
    )


def test_worked_numbers_of_recomputed_log_probabilities() -> None:
    """Trainer over sampler: 1/2, 1 and 4 (cut to 2) in the row with credit; the other is left."""
    given_batch = batch(
        [[-1.0, -2.0, -3.0], [-1.0, -1.0, 0.0]], [[1.0, -1.0, 0.5], [0.0, 0.0, 0.0]]
    )
    ours = np.array([[-1 - math.log(2), -2.0, -3 + math.log(4)]])
    trainer = Trainer(ours)
    correction = SamplerCorrection(config(), cast(Any, trainer))
    found = correction(given_batch)
    assert found.credit[0] == pytest.approx([0.5, -1.0, 1.0])
    assert found.logprobs[0] == pytest.approx(ours[0])
    assert found.logprobs[1].tolist() == [-1.0, -1.0, 0.0]
    assert correction.ess == pytest.approx(3.5**2 / (3 * 5.25))
    assert [asked.num_rows for asked in trainer.asked] == [1]
    assert (found.weight == given_batch.weight).all()
    assert given_batch.credit[0].tolist() == [1.0, -1.0, 0.5]


@pytest.mark.parametrize("kind", ["ppo", "gspo", "cispo"])
def test_equal_probabilities_leave_the_batch_as_it_is(kind: str) -> None:
    given_batch = batch([[-1.0, -2.0]], [[1.0, -1.0]])
    correction = SamplerCorrection(config(kind), cast(Any, Trainer(given_batch.logprobs)))
    found = correction(given_batch)
    assert (found.credit == given_batch.credit).all()
    assert (found.logprobs == given_batch.logprobs).all()
    assert correction.ess == 1.0


def test_it_is_never_applied_twice() -> None:
    """`importance_sampling` corrects in its loss, the others in their credit."""
    given_batch = batch([[-1.0, -2.0]], [[1.0, -1.0]])
    far = Trainer(given_batch.logprobs + 1.0)
    for settings in (config("importance_sampling"), config("ppo", "off"), config("ppo", "auto")):
        correction = SamplerCorrection(settings, cast(Any, far))
        assert correction(given_batch) is given_batch
        assert correction.ess is None
    assert not far.asked
    found, _ = parts([4.0], [1.0], LossConfig(type="ppo", sampler_correction="truncate"))
    assert found.weights is None


class Rounding:
    """A policy whose own sampler is not exact."""

    def __init__(self, logprobs: np.ndarray) -> None:
        self.logprobs = logprobs

    def old_logprobs(self, batch: TrainBatch) -> np.ndarray:
        return self.logprobs[: batch.num_rows]


@pytest.mark.parametrize("correction", ["auto", "off"])
def test_where_the_sampler_rounds_a_clip_is_about_the_trainers_own(correction: str) -> None:
    given_batch = batch([[-1.0, -2.0], [-1.0, -1.0]], [[1.0, -1.0], [0.0, 0.0]])
    policy = cast(Any, Rounding(np.array([[-1.01, -1.98], [-0.99, -1.0]])))
    applied = SamplerCorrection(config("gspo", correction), policy)
    found = applied(given_batch)
    assert found.logprobs.tolist() == [[-1.01, -1.98], [-1.0, -1.0]]
    assert (found.credit == given_batch.credit).all()
    assert applied.ess is None
    plain = SamplerCorrection(config("importance_sampling", correction), policy)
    assert plain(given_batch) is given_batch


def test_a_batch_without_credit_costs_nothing() -> None:
    trainer = Trainer(np.zeros((1, 2)))
    given_batch = replace(batch([[-1.0, -2.0]], [[1.0, 1.0]]), credit=np.zeros((1, 2)))
    assert SamplerCorrection(config(), cast(Any, trainer))(given_batch) is given_batch
    assert not trainer.asked


def test_auto_is_for_servers() -> None:
    assert resolved_loss(RunConfig()).sampler_correction == "off"
    remote = RunConfig.model_validate({"inference": {"engine": "openai", "url": "http://x"}})
    assert resolved_loss(remote).sampler_correction == "truncate"
    assert resolved_loss(config(correction="truncate")).sampler_correction == "truncate"
