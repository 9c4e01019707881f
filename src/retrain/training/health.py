"""Warnings, in plain words and once, about what usually kills a run silently."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from retrain.advantages.credit import Credit
from retrain.types import Group

_PATIENCE = 5
_SHOWN_CHARACTERS = 300


@dataclass(slots=True)
class Health:
    """What has been seen so far; part of the checkpoint."""

    uninformative_steps: int = 0
    all_truncated_steps: int = 0
    rewarded: bool = False
    steps: int = 0
    told: list[str] = field(default_factory=list)

    def observe(self, groups: Sequence[Group], credit: Credit, max_tokens: int) -> list[str]:
        """New warnings after a step."""
        completions = [completion for group in groups for completion in group.completions]
        self.steps += 1
        self.rewarded = self.rewarded or any(group.rewards.any() for group in groups)
        truncated = bool(completions) and all(c.stop_reason == "length" for c in completions)
        self.all_truncated_steps = self.all_truncated_steps + 1 if truncated else 0
        uninformative = credit.informative_groups == 0
        self.uninformative_steps = self.uninformative_steps + 1 if uninformative else 0

        found: dict[str, str] = {}
        if self.all_truncated_steps >= 2:
            found["truncated"] = (
                f"every completion is cut off at max_tokens = {max_tokens}, so none can finish "
                "its answer; raise [training].max_tokens, or check that the model's end token is "
                "right"
            )
        if not self.rewarded and self.steps >= _PATIENCE and completions:
            text = completions[0].text
            shown = text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + " …"
            problem = next(group.problem for group in groups if group.completions)
            found["no_reward"] = (
                f"the reward has been 0 for all completions of the first {self.steps} steps; "
                "compare what the reward looks for with what the model writes. Problem "
                f"{problem.id}, reference {problem.answer!r}, completion: "
                f"{shown!r}"
            )
        elif self.uninformative_steps >= _PATIENCE:
            found["uninformative"] = (
                f"no group has been informative for {self.uninformative_steps} steps "
                f"({_causes(credit)}), so nothing is learnt; take problems of another "
                "difficulty, a larger group_size, or another temperature"
            )
        new = {name: text for name, text in found.items() if name not in self.told}
        self.told.extend(new)
        return list(new.values())

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def _causes(credit: Credit) -> str:
    words = {"all_correct": "all correct", "all_wrong": "all wrong", "other": "equal rewards"}
    counts = {words[c]: credit.causes.count(c) for c in credit.causes if c in words}
    return ", ".join(f"{count} groups {name}" for name, count in counts.items())
