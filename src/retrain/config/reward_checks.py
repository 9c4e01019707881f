"""What is odd about `[reward]`."""

from __future__ import annotations

from collections.abc import Iterator, Set

from retrain.config.findings import Finding, idle
from retrain.config.messages import show
from retrain.config.schema import RunConfig


def check_reward(run: RunConfig, written: Set[str]) -> Iterator[Finding]:
    """Keys of `[reward]` that are missing, or that its type does not read."""
    reward = run.reward
    if reward.type == "custom":
        for key, example in (("custom_module", "my_rewards"), ("custom_function", "score")):
            if not getattr(reward, key):
                message = f'is missing; type = "custom" needs it, e.g. {key} = "{example}"'
                yield Finding(f"reward.{key}", message, ("reward.type",))
    else:
        for key in ("custom_module", "custom_function", "correct_threshold"):
            if f"reward.{key}" in written:
                reason = f'type = {show(reward.type)}; it is for "custom"'
                yield idle(f"reward.{key}", reason, "reward.type", is_error=True)
