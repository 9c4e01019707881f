from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrain.advantages.credit import Credit
from retrain.config.schema import RunConfig, TrainingConfig
from retrain.training.health import Health
from retrain.training.rollout import optimizer_batches
from retrain.training.schedule import learning_rate
from retrain.types import Completion, Group, Problem, Score, pad_mask


class TestLearningRate:
    def test_worked_numbers(self) -> None:
        linear = TrainingConfig(lr=1.0, lr_schedule="linear", warmup_steps=2, max_steps=6)
        assert [learning_rate(linear, s) for s in range(6)] == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
        cosine = TrainingConfig(lr=2.0, lr_schedule="cosine", max_steps=4)
        expected = [2.0, 1 + np.sqrt(0.5), 1.0, 1 - np.sqrt(0.5)]
        np.testing.assert_allclose([learning_rate(cosine, s) for s in range(4)], expected)
        constant = TrainingConfig(lr=3.0, max_steps=3)
        assert {learning_rate(constant, s) for s in range(3)} == {3.0}

    @given(
        st.sampled_from(["constant", "linear", "cosine"]), st.integers(0, 20), st.integers(1, 60)
    )
    def test_positive_and_never_above_the_peak(self, kind: str, warmup: int, steps: int) -> None:
        training = TrainingConfig.model_validate(
            {"lr": 0.1, "lr_schedule": kind, "warmup_steps": warmup, "max_steps": steps}
        )
        rates = [learning_rate(training, step) for step in range(steps)]
        assert all(0 < rate <= 0.1 for rate in rates)
        assert rates[:warmup] == sorted(rates[:warmup])
        assert rates[warmup:] == sorted(rates[warmup:], reverse=True)


def make_groups(lengths: tuple[int, ...] = (3, 5, 1, 4), groups: int = 2) -> list[Group]:
    made = []
    for index in range(groups):
        completions = tuple(
            Completion(np.arange(n) + index, np.full(n, -0.5), "text", "stop") for n in lengths
        )
        scores = tuple(Score(float(i % 2), "correct" if i % 2 else "wrong") for i in range(4))
        made.append(Group(Problem(f"p{index}", "?", "!"), np.arange(2), completions, scores))
    return made


def make_credit(groups: list[Group]) -> Credit:
    rows = [c for group in groups for c in group.completions]
    mask = pad_mask([row.num_tokens for row in rows])
    values = np.arange(1.0, mask.size + 1).reshape(mask.shape) * mask
    causes = tuple("informative" for _ in groups)
    return Credit(
        np.ones(len(rows)),
        values,
        values,
        np.zeros_like(mask),
        mask,
        causes,
        np.ones(len(rows)),
        {},
    )


class TestOptimizerBatches:
    def test_one_batch_holds_everything(self) -> None:
        groups = make_groups()
        credit = make_credit(groups)
        (batch,) = optimizer_batches(groups, credit, RunConfig(), 0)
        assert batch.num_rows == 8
        assert batch.prompt_index.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
        np.testing.assert_array_equal(batch.credit, credit.token_advantages)
        assert batch.weight.sum() == pytest.approx(1)

    @given(st.integers(1, 3), st.sampled_from([1, 2, 4, 8]), st.integers(0, 5))
    def test_each_pass_uses_every_row_once(self, updates: int, minibatches: int, step: int) -> None:
        groups = make_groups()
        training = TrainingConfig(updates_per_batch=updates, minibatches=minibatches)
        batches = list(
            optimizer_batches(groups, make_credit(groups), RunConfig(training=training), step)
        )
        assert len(batches) == updates * minibatches
        for start in range(0, len(batches), minibatches):
            credits = [row[0] for b in batches[start : start + minibatches] for row in b.credit]
            assert sorted(credits) == sorted(make_credit(groups).token_advantages[:, 0])
        for batch in batches:
            assert batch.num_rows == 8 // minibatches
            assert batch.weight.sum() == pytest.approx(1)

    def test_order_is_keyed_by_seed_and_step(self) -> None:
        groups = make_groups()

        def order(seed: int, step: int) -> list[float]:
            training = TrainingConfig(seed=seed, minibatches=2)
            batches = optimizer_batches(
                groups, make_credit(groups), RunConfig(training=training), step
            )
            return [row[0] for batch in batches for row in batch.credit]

        assert order(1, 0) == order(1, 0)
        assert len({tuple(order(seed, step)) for seed in (1, 2) for step in (0, 1)}) > 1


class TestHealth:
    def test_state_survives_json(self) -> None:
        health = Health()
        groups = make_groups()
        for _ in range(3):
            health.observe(groups, make_credit(groups), 10)
        assert Health(**json.loads(json.dumps(health.state_dict()))) == health

    def test_a_healthy_run_hears_nothing(self) -> None:
        health, groups = Health(), make_groups()
        assert not any(health.observe(groups, make_credit(groups), 10) for _ in range(50))
