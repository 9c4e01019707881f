"""From `[reward]` to a reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from retrain.config.schema import RewardConfig
from retrain.errors import InputError
from retrain.plugins import PluginError, Registry, resolve
from retrain.rewards.custom import CustomReward
from retrain.rewards.match import MatchReward
from retrain.rewards.reward import Reward

_SearchPaths = Sequence[str | Path]


def _match(config: RewardConfig, search_paths: _SearchPaths) -> Reward:
    """The last \\boxed{} equals the reference answer."""
    del config, search_paths
    return MatchReward()


def _custom(config: RewardConfig, search_paths: _SearchPaths) -> Reward:
    """A function of yours: fn(response, reference) -> number."""
    path = f"{config.custom_module}.{config.custom_function}"
    try:
        return CustomReward(resolve(path, search_paths), path, config.correct_threshold)
    except PluginError as error:
        raise InputError(f"reward.custom_function: {error}") from error


REWARDS: Registry[Callable[[RewardConfig, _SearchPaths], Reward]] = Registry(
    "type", match=_match, custom=_custom
)


def build_reward(config: RewardConfig, search_paths: _SearchPaths = ()) -> Reward:
    """The reward that `[reward].type` names. Raises InputError with the key and the remedy."""
    return REWARDS[config.type](config, search_paths)
