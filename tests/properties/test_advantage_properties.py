"""The invariants of the advantage modes."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from retrain.advantages.episode import RewardError, group_cause, grpo, maxrl
from retrain.types import Score

reward = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(-10, 10, width=32))
rewards_of_a_group = st.lists(reward, min_size=1, max_size=12).map(np.array)
positive_rewards = st.lists(st.floats(0, 10, width=32), min_size=1, max_size=12).map(np.array)
binary_rewards = st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=16).map(np.array)
SCALES = [{}, {"scale": "none"}, {"scale": "std"}]


@pytest.mark.parametrize("params", SCALES)
@given(rewards=rewards_of_a_group)
def test_grpo_sums_to_zero(params, rewards):
    assert grpo(rewards, params).sum() == pytest.approx(0, abs=1e-9)


@given(rewards=rewards_of_a_group)
def test_grpo_is_reward_minus_mean(rewards):
    mean = math.fsum(rewards) / len(rewards)
    assert grpo(rewards, {}) == pytest.approx(rewards - mean, abs=1e-12)


@given(rewards=rewards_of_a_group, shift=st.floats(-100, 100))
def test_grpo_does_not_see_a_shift(rewards, shift):
    assert grpo(rewards + shift, {}) == pytest.approx(grpo(rewards, {}), abs=1e-9)


@given(rewards=rewards_of_a_group, scale=st.floats(-100, 100))
def test_grpo_scales_with_the_rewards(rewards, scale):
    assert grpo(rewards * scale, {}) == pytest.approx(grpo(rewards, {}) * scale, abs=1e-9)


@pytest.mark.parametrize("mode", [grpo, maxrl])
@given(rewards=positive_rewards, data=st.data())
def test_modes_follow_a_permutation(mode, rewards, data):
    order = np.array(data.draw(st.permutations(range(len(rewards)))))
    assert mode(rewards[order], {}) == pytest.approx(mode(rewards, {})[order], abs=1e-9)


@given(rewards=rewards_of_a_group)
def test_grpo_std_is_grpo_over_the_sample_deviation(rewards):
    assume(len(set(rewards)) > 1)
    expected = grpo(rewards, {}) / (np.std(rewards, ddof=1) + 1e-6)
    assert grpo(rewards, {"scale": "std"}) == pytest.approx(expected)


@pytest.mark.parametrize("params", SCALES)
@given(value=st.floats(-1e6, 1e6), size=st.integers(1, 12))
def test_equal_rewards_give_exactly_nothing(params, value, size):
    assert not grpo(np.full(size, value), params).any()
    assert not maxrl(np.full(size, abs(value)), params).any()


@given(rewards=positive_rewards)
def test_maxrl_sums_to_zero(rewards):
    assert maxrl(rewards, {}).sum() == pytest.approx(0, abs=1e-9)


@given(rewards=positive_rewards, scale=st.floats(1, 1000))
def test_maxrl_does_not_see_a_scale(rewards, scale):
    assume(rewards.mean() > 0.01)
    assert maxrl(rewards * scale, {}) == pytest.approx(maxrl(rewards, {}), rel=2e-4, abs=1e-9)


@given(rewards=binary_rewards)
def test_maxrl_of_binary_rewards_is_bounded_by_the_group(rewards):
    advantages = maxrl(rewards, {})
    assert advantages.max() <= len(rewards) - 1
    if len(rewards) > 1 and rewards.sum() == 1:
        assert advantages.max() == pytest.approx(len(rewards) - 1, rel=1e-4)


@given(rewards=st.lists(st.floats(0, 1e-6), min_size=1, max_size=8).map(np.array))
def test_maxrl_of_almost_nothing_is_nothing(rewards):
    assert not maxrl(rewards, {}).any()


@given(rewards=rewards_of_a_group)
def test_maxrl_refuses_negative_rewards(rewards):
    assume(rewards.min() < 0)
    with pytest.raises(RewardError, match=r"has reward -"):
        maxrl(rewards, {})


@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from(["correct", "wrong"])),
        min_size=1,
        max_size=8,
    )
)
def test_a_group_informs_when_its_rewards_differ(scores):
    cause = group_cause([Score(r, o) for r, o in scores])
    assert (cause == "informative") == (len({r for r, _ in scores}) > 1)
    if cause == "all_correct":
        assert all(o == "correct" for _, o in scores)
    if cause == "all_wrong":
        assert all(o == "wrong" for _, o in scores)
