"""Advantage modes: the rewards of one group -> one number a completion.

Every mode is a function `fn(rewards (completions,), params) -> (completions,)`. A group whose
rewards are all equal gets zeros, exactly: it says nothing about which completion was better,
and rounding must not turn it into a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from retrain import plugins
from retrain.plugins import PluginError, Registry
from retrain.types import FloatArray, Score

AdvantageFunction = Callable[[FloatArray, Mapping[str, Any]], FloatArray]
GroupCause = Literal["informative", "all_correct", "all_wrong", "other"]

STD_EPS = 1e-6
MEAN_EPS = 1e-6


class RewardError(ValueError):
    """A reward that the advantage mode is not defined for."""


def grpo(rewards: FloatArray, params: Mapping[str, Any]) -> FloatArray:
    """Reward minus the group's mean.

    `A_i = r_i - mean(r)`: GRPO (arXiv 2402.03300, section 4.1) without its division by the
    standard deviation, which weights problems by how lopsided their rewards are (Dr. GRPO,
    arXiv 2503.20783, section 3). `params["scale"] = "std"` divides by `std(r, ddof=1) + 1e-6`
    as the original does; the default is "none".

    rewards: (completions,). Returns (completions,) with sum 0.
    """
    if _all_equal(rewards):
        return np.zeros_like(rewards, dtype=np.float64)
    centred: FloatArray = rewards - rewards.mean()
    if params.get("scale", "none") == "std":
        centred = centred / (rewards.std(ddof=1) + STD_EPS)
    return centred


def maxrl(rewards: FloatArray, params: Mapping[str, Any]) -> FloatArray:  # noqa: ARG001
    """Reward minus the group's mean, over that mean: hard problems weigh more.

    `A_i = (r_i - mean(r)) / (mean(r) + 1e-6)`, all zero when `mean(r) <= 1e-6`: the estimator
    of maximum-likelihood RL (arXiv 2602.02710), whose gradient carries the inverse of the
    success rate. With rewards in {0, 1} the only success among G completions gets G - 1, so
    gradient-norm clipping binds far more often than under `grpo`.

    rewards: (completions,), none negative. Returns (completions,) with sum 0.
    Raises RewardError for a negative reward, for which the mode is not defined.
    """
    if rewards.size and rewards.min() < 0:
        worst = int(rewards.argmin())
        raise RewardError(
            f"maxrl is defined for rewards >= 0; completion {worst} of the group has reward "
            f"{rewards[worst]:g} (use advantage_mode = 'grpo', or a reward without penalties)"
        )
    if _all_equal(rewards) or rewards.mean() <= MEAN_EPS:
        return np.zeros_like(rewards, dtype=np.float64)
    mean = float(rewards.mean())
    return (rewards - mean) / (mean + MEAN_EPS)


ADVANTAGE_MODES: Registry[AdvantageFunction] = Registry("advantage_mode", grpo=grpo, maxrl=maxrl)

ADVANTAGE_PARAMS: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "grpo": {"scale": ("none", "std")},
    "maxrl": {},
}
"""What `advantage_params` may hold for each built-in mode, and the values allowed."""


def advantage_function(mode: str, search_paths: Sequence[str | Path] = ()) -> AdvantageFunction:
    """The advantage mode of this name: built in, or a plugin `fn(rewards[, params])`.

    A plugin's second argument is given the parameters when it is required or named `params`.
    What a plugin returns is checked at every call: a finite number for each completion.

    Raises PluginError when there is no such mode or it takes other arguments.
    """
    found = ADVANTAGE_MODES.find(mode, search_paths)
    if mode in ADVANTAGE_MODES:
        return found
    arguments = plugins.positional_arguments(found, mode)
    required = [a for a in arguments if a.default is a.empty and a.kind is not a.VAR_POSITIONAL]
    if not arguments or len(required) > 2:
        raise PluginError(
            f"{mode}: an advantage mode is fn(rewards, params) or fn(rewards); "
            f"this takes ({', '.join(map(str, arguments))})"
        )
    takes_params = (
        len(required) == 2
        or any(a.kind is a.VAR_POSITIONAL for a in arguments)
        or (len(arguments) > 1 and arguments[1].name == "params")
    )

    def advantage_mode(rewards: FloatArray, params: Mapping[str, Any]) -> FloatArray:
        given = (rewards, params) if takes_params else (rewards,)
        return _checked(mode, plugins.call(mode, found, *given), rewards)

    return advantage_mode


def group_cause(scores: Sequence[Score]) -> GroupCause:
    """Why a group does or does not inform.

    "informative" when its rewards differ; otherwise "all_correct" or "all_wrong" when every
    outcome says so, and "other" (unverifiable or mixed outcomes under one reward).
    """
    if len({score.reward for score in scores}) > 1:
        return "informative"
    outcomes = {score.outcome for score in scores}
    if outcomes == {"correct"}:
        return "all_correct"
    return "all_wrong" if outcomes == {"wrong"} else "other"


def _all_equal(rewards: FloatArray) -> bool:
    return rewards.size == 0 or bool((rewards == rewards[0]).all())


def _checked(mode: str, result: Any, rewards: FloatArray) -> FloatArray:
    advantages = plugins.as_array(
        mode, result, rewards.shape, "one advantage for each completion of the group"
    )
    if not np.isfinite(advantages).all():
        bad = advantages[~np.isfinite(advantages)][0]
        raise PluginError(f"{mode} returned {bad} for the rewards {rewards.tolist()}")
    return advantages
