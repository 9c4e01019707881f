"""Advantage modes: worked numbers, and plugins in their place."""

import numpy as np
import pytest

from retrain.advantages.episode import (
    ADVANTAGE_MODES,
    ADVANTAGE_PARAMS,
    RewardError,
    advantage_function,
    group_cause,
    grpo,
    maxrl,
)
from retrain.plugins import PluginError
from retrain.types import Score


@pytest.fixture
def plugin(tmp_path):
    """Write a module of one function `f` and resolve it as an advantage mode."""

    def make(body):
        (tmp_path / "advantage_plugin.py").write_text("import numpy as np\n" + body)
        return advantage_function("advantage_plugin.f", [tmp_path])

    return make


def test_worked_numbers():
    rewards = np.array([1.0, 0.0, 0.0, 0.0])
    assert grpo(rewards, {}).tolist() == [0.75, -0.25, -0.25, -0.25]
    # The sample standard deviation of one success in four is sqrt(0.75 / 3) = 0.5.
    assert grpo(rewards, {"scale": "std"}) == pytest.approx([1.5, -0.5, -0.5, -0.5], rel=1e-5)
    assert maxrl(rewards, {}) == pytest.approx([3, -1, -1, -1], rel=1e-5)
    assert maxrl(np.array([1.0, 1.0, 0.0, 0.0]), {}) == pytest.approx([1, 1, -1, -1], rel=1e-5)


@pytest.mark.parametrize("mode", list(ADVANTAGE_MODES))
@pytest.mark.parametrize("rewards", [[], [0.7], [0.1, 0.1, 0.1]])
def test_groups_that_say_nothing(mode, rewards):
    for params in ({}, {"scale": "std"}):
        result = ADVANTAGE_MODES[mode](np.array(rewards), params)
        assert result.tolist() == [0.0] * len(rewards)


def test_maxrl_names_the_negative_reward():
    with pytest.raises(RewardError, match=r"completion 1 of the group has reward -0\.5"):
        maxrl(np.array([1.0, -0.5]), {})


def test_every_mode_says_what_it_takes():
    assert set(ADVANTAGE_PARAMS) == set(ADVANTAGE_MODES)


@pytest.mark.parametrize(
    ("scores", "cause"),
    [
        ([(1, "correct"), (0, "wrong")], "informative"),
        ([(1, "correct"), (0.5, "correct")], "informative"),
        ([(1, "correct"), (1, "correct")], "all_correct"),
        ([(0, "wrong"), (0, "wrong")], "all_wrong"),
        ([(0, "wrong"), (0, "unverifiable")], "other"),
        ([(0, "unverifiable")], "other"),
        ([], "other"),
    ],
)
def test_causes(scores, cause):
    assert group_cause([Score(r, o) for r, o in scores]) == cause


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("def f(rewards): return rewards * 2", [2, 4]),
        ("def f(rewards, params): return rewards * params['k']", [3, 6]),
        ("def f(rewards, params=None): return rewards * params['k']", [3, 6]),
        ("def f(rewards, eps=10): return rewards + eps", [11, 12]),
        ("def f(*args): return args[0] * len(args)", [2, 4]),
        ("class F:\n  def __call__(self, rewards): return rewards\nf = F()", [1, 2]),
        ("def f(rewards): return [r + 1 for r in rewards]", [2, 3]),
        ("def f(rewards): return rewards.astype(np.float32)", [1, 2]),
    ],
)
def test_plugins_of_one_or_two_arguments(plugin, body, expected):
    result = plugin(body)(np.array([1.0, 2.0]), {"k": 3})
    assert result.tolist() == expected
    assert result.dtype == np.float64


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def f(): return 1", r"fn\(rewards, params\) or fn\(rewards\); this takes \(\)"),
        ("def f(a, b, c): return a", r"this takes \(a, b, c\)"),
        ("def f(rewards, *, k): return rewards", "requires the keyword argument 'k'"),
        ("def f(rewards): return rewards.mean()", r"returned shape \(\); expected shape \(2,\)"),
        ("def f(rewards): return rewards[:1]", r"returned shape \(1,\); expected shape \(2,\)"),
        ("def f(rewards): return rewards * np.nan", r"returned nan for the rewards \[1.0, 2.0\]"),
        ("def f(rewards): return None", r"returned None; expected shape \(2,\), one adv"),
        ("def f(rewards): return 'abc'", "returned str, not an array of numbers"),
        ("def f(rewards): return 1 / 0", "raised ZeroDivisionError: division by zero"),
        ("def f(rewards, params): return rewards * params['k']", "raised KeyError: 'k'"),
    ],
)
def test_plugins_that_are_wrong(plugin, body, message):
    with pytest.raises(PluginError, match=message):
        plugin(body)(np.array([1.0, 2.0]), {})


def test_an_unknown_mode_names_a_near_one():
    with pytest.raises(PluginError, match=r"unknown advantage_mode 'gpro'; did you mean grpo\?"):
        advantage_function("gpro")
