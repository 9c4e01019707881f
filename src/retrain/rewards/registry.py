"""From `[reward]` to a reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from retrain.config.reward import RewardComponentConfig, RewardConfig
from retrain.errors import InputError
from retrain.files import expanded
from retrain.plugins import PluginError, Registry, resolve
from retrain.rewards.composite import CompositeReward, Part
from retrain.rewards.custom import CustomReward
from retrain.rewards.match import MatchReward
from retrain.rewards.reward import Reward

CACHE_FOLDER = "judge_cache"


@dataclass(frozen=True, slots=True)
class Setting:
    """What a reward needs to know besides its own keys.

    place: what messages call it: `reward`, or `reward.components[2]`, counted from 1.
    mask:  whether a completion that cannot be judged is left out.
    """

    search_paths: Sequence[str | Path]
    log_dir: Path
    mask: bool
    place: str = "reward"


_Config = RewardConfig | RewardComponentConfig


def _match(config: _Config, setting: Setting) -> Reward:
    """The last \\boxed{} equals the reference answer."""
    del config, setting
    return MatchReward()


def _math(config: _Config, setting: Setting) -> Reward:
    """The last \\boxed{} is the same number, expression or set as the reference answer."""
    from retrain.rewards.mathematics import TIMEOUT_S, MathReward

    del setting
    return MathReward(config.timeout or TIMEOUT_S)


def _judge(config: _Config, setting: Setting) -> Reward:
    """A model on a server gives a number from 0 to 1."""
    from retrain.rewards.judge import TIMEOUT_S, JudgeReward
    from retrain.rewards.judge_server import Server

    server = Server(
        base_url=config.base_url,
        model=config.model,
        api_key_env=config.api_key_env,
        timeout=config.timeout or TIMEOUT_S,
        retries=config.retries,
        concurrency=config.concurrency,
        place=setting.place,
    )
    return JudgeReward(
        server,
        expanded(config.cache_dir) if config.cache_dir else setting.log_dir / CACHE_FOLDER,
        prompt=config.prompt,
        correct_threshold=config.correct_threshold,
        mask=setting.mask,
    )


def _custom(config: _Config, setting: Setting) -> Reward:
    """A function of yours: fn(response, reference) -> number."""
    path = f"{config.custom_module}.{config.custom_function}"
    try:
        return CustomReward(resolve(path, setting.search_paths), path, config.correct_threshold)
    except PluginError as error:
        raise InputError(f"{setting.place}.custom_function: {error}") from error


def _composite(config: _Config, setting: Setting) -> Reward:
    """The weighted sum of the rewards in [[reward.components]]."""
    assert isinstance(config, RewardConfig)
    parts = []
    for number, component in enumerate(config.components, start=1):
        own = Setting(
            setting.search_paths, setting.log_dir, setting.mask, f"reward.components[{number}]"
        )
        reward = REWARDS[component.type](component, own)
        parts.append(Part(component.name or component.type, component.weight, reward))
    return CompositeReward(parts, config.correct_threshold)


REWARDS: Registry[Callable[[_Config, Setting], Reward]] = Registry(
    "type", match=_match, math=_math, judge=_judge, custom=_custom, composite=_composite
)


def build_reward(
    config: RewardConfig,
    search_paths: Sequence[str | Path] = (),
    log_dir: str | Path = "logs",
) -> Reward:
    """The reward that `[reward].type` names. Raises InputError with the key and the remedy.

    log_dir: where a judge keeps its verdicts unless `cache_dir` says so.
    """
    setting = Setting(search_paths, Path(log_dir), config.on_failure == "mask")
    return REWARDS[config.type](config, setting)
