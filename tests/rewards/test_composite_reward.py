"""Weighted sums of rewards, and completions that are left out of their group."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrain.advantages.algorithm import algorithm_of
from retrain.advantages.credit import assign_credit
from retrain.config.algorithm import AlgorithmConfig
from retrain.config.reward import RewardComponentConfig as Component
from retrain.config.reward import RewardConfig
from retrain.config.schema import RunConfig, TrainingConfig
from retrain.errors import InputError
from retrain.rewards.composite import CompositeReward, Part
from retrain.rewards.match import MatchReward
from retrain.rewards.registry import build_reward
from retrain.rewards.reward import Reward, score
from retrain.training.metrics import rollout_metrics
from retrain.training.rollout import optimizer_batches
from retrain.types import Completion, Group, Outcome, Problem, Score
from tests.rewards.judged import completion, group, judged, problem

numbers = st.floats(-100, 100)


class Told(Reward):
    """Gives the score that it is told, whatever the completion."""

    def __init__(self, score: Score | None) -> None:
        self._score = score

    def score(self, problem: Problem, completion: Completion) -> Score | None:
        return self._score


def composed(
    *parts: tuple[float, float] | tuple[float, float, Outcome], threshold: float = 0.5
) -> Score:
    made = [
        Part(f"part{i}", part[0], Told(Score(part[1], part[2] if len(part) > 2 else "wrong")))
        for i, part in enumerate(parts)
    ]
    return judged(CompositeReward(made, threshold), "", "")


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=5), numbers)
def test_the_total_is_linear_in_the_weights(
    parts: list[tuple[float, float]], factor: float
) -> None:
    total = composed(*parts).reward
    assert total == pytest.approx(sum(weight * value for weight, value in parts), abs=1e-6)
    scaled = composed(*((factor * weight, value) for weight, value in parts)).reward
    assert scaled == pytest.approx(factor * total, abs=1e-6)
    doubled = composed(*parts, *parts).reward
    assert doubled == pytest.approx(2 * total, abs=1e-6)


def test_outcomes() -> None:
    assert composed((0.5, 1.0), (0.5, 0.0)) == Score(0.5, "correct", {"part0": 1.0, "part1": 0.0})
    assert composed((0.4, 1.0, "correct"), (0.5, 0.0)).outcome == "wrong"
    assert composed((0.4, 1.0), (0.5, 0.0, "unverifiable")).outcome == "unverifiable"
    assert composed((0.9, 1.0), (0.5, 0.0, "unverifiable")).outcome == "correct"
    assert composed((1.0, 1.0), threshold=1.5).outcome == "wrong"


def test_a_part_without_a_judgement_leaves_the_whole_without_one() -> None:
    parts = [Part("a", 1.0, Told(Score(1.0, "correct"))), Part("b", 0.0, Told(None))]
    assert CompositeReward(parts, 0.5).score(problem(), completion("")) is None


def test_parts_of_parts_keep_their_names_apart() -> None:
    inner = Told(Score(1.0, "correct", {"length": 3.0}))
    reward = CompositeReward([Part("mine", 1.0, inner), Part("length", 1.0, MatchReward())], 0.5)
    assert judged(reward, r"\boxed{5}", "5").parts == {
        "mine": 1.0,
        "mine/length": 3.0,
        "length": 1.0,
    }


def test_from_a_config(tmp_path: Path) -> None:
    (tmp_path / "own_composite_part.py").write_text(
        "async def short(response, reference):\n    return 1 / len(response)\n"
    )
    own = Component(
        type="custom",
        custom_module="own_composite_part",
        custom_function="short",
        weight=2.0,
        name="short",
    )
    config = RewardConfig(
        type="composite", components=[Component(type="match"), own], correct_threshold=1.0
    )
    with build_reward(config, [tmp_path]) as reward:
        assert reward.early
        found = judged(reward, r"\boxed{5} ", "5")
    assert found == Score(1.2, "correct", {"match": 1.0, "short": 0.1})
    wrong = own.model_copy(update={"custom_function": "shrt"})
    config = config.model_copy(update={"components": [Component(type="match"), wrong]})
    with pytest.raises(InputError, match=r"^reward\.components\[2\]\.custom_function: .*short"):
        build_reward(config, [tmp_path])


class Picky(Reward):
    """The number in the text; none for `mask`."""

    def score(self, problem: Problem, completion: Completion) -> Score | None:
        if completion.text == "mask":
            return None
        value = float(completion.text)
        return Score(value, "correct" if value > 0.5 else "wrong", {"size": 10 * value})


def credit_of(groups: list[Group], mode: str = "grpo") -> list[list[float]]:
    config = RunConfig(algorithm=AlgorithmConfig(advantage_mode=mode, transform_mode="gtpo_sepa"))
    credit = assign_credit(groups, algorithm_of(config), 0, 0.5, lambda ids: [])
    ends = np.cumsum([len(each.completions) for each in groups])[:-1]
    return [part.tolist() for part in np.split(credit.advantages, ends)]


@given(
    st.sampled_from(["grpo", "maxrl"]),
    st.lists(
        st.lists(st.sampled_from(["0", "1", "0.25", "mask"]), min_size=1, max_size=6),
        min_size=1,
        max_size=4,
    ),
)
def test_a_masked_completion_is_as_if_it_had_never_been(mode: str, texts: list[list[str]]) -> None:
    masked = score([group("", *each) for each in texts], Picky())
    without = score([group("", *(t for t in each if t != "mask")) for each in texts], Picky())
    assert credit_of(masked, mode) == credit_of(without, mode)
    assert [each.masked for each in masked] == [each.count("mask") for each in texts]


@pytest.mark.parametrize("minibatches", [1, 2, 4])
def test_groups_of_any_size_become_batches_and_a_row(minibatches: int) -> None:
    texts = [["1", "mask", "0", "0"], ["mask"] * 4, ["mask", "1", "mask", "mask"], ["1"] * 4]
    groups = score([group("", *each) for each in texts], Picky())
    assert [len(each.completions) for each in groups] == [3, 0, 1, 4]
    config = RunConfig(
        algorithm=AlgorithmConfig(advantage_mode="grpo", transform_mode="none"),
        training=TrainingConfig(minibatches=minibatches),
    )
    credit = assign_credit(groups, algorithm_of(config), 0, 0.5, lambda ids: [])
    assert credit.causes == ("informative", "other", "all_correct", "all_correct")
    batches = list(optimizer_batches(groups, credit, config, 0))
    assert sum(batch.num_rows for batch in batches) == 8
    row = rollout_metrics(groups, credit)
    assert row["masked_completions"] == 8
    assert row["mean_reward"] == row["reward_components/total_reward/mean"] == 6 / 8
    assert row["reward_components/size/mean"] == 7.5
    assert row["reward_components/size/min"] == 0.0
    assert row["reward_components/size/max"] == 10.0
    assert row["reward_components/size/std"] == pytest.approx(np.std([10, 0, 0, *[10] * 5]))


def test_a_step_in_which_nothing_could_be_judged_still_has_a_row() -> None:
    groups = score([group("", "mask", "mask") for _ in range(2)], Picky())
    config = RunConfig(training=TrainingConfig(minibatches=2))
    credit = assign_credit(groups, algorithm_of(config), 0, 0.5, lambda ids: [])
    assert list(optimizer_batches(groups, credit, config, 0)) == []
    row = rollout_metrics(groups, credit)
    assert row["masked_completions"] == 4
    assert row["mean_reward"] is None
    assert row["informative_groups"] == row["tokens"] == 0
