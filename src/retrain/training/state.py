"""What a run carries from step to step besides the policy; part of every checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from retrain.advantages.credit import Credit
from retrain.advantages.sepa import SepaController, SepaSchedule
from retrain.training.health import Health
from retrain.types import Group


class LoopState:
    """step: finished steps. correct, completions: totals since step 0."""

    def __init__(self, schedule: SepaSchedule) -> None:
        self.step = 0
        self.correct = 0
        self.completions = 0
        self.sepa = SepaController(schedule)
        self.health = Health()

    def finish_step(self, groups: Sequence[Group], credit: Credit, max_tokens: int) -> list[str]:
        """Take in a step; returns new warnings."""
        scores = [score for group in groups for score in group.scores]
        correct = sum(score.outcome == "correct" for score in scores)
        self.step += 1
        self.correct += correct
        self.completions += len(scores)
        self.sepa.observe(correct / len(scores) if scores else None, credit.execution_variances)
        return self.health.observe(groups, credit, max_tokens)

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "step": self.step,
            "correct": self.correct,
            "completions": self.completions,
            "sepa": self.sepa.state_dict(),
            "health": self.health.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.step = state["step"]
        self.correct = state["correct"]
        self.completions = state["completions"]
        self.sepa.load_state_dict(state["sepa"])
        self.health = Health(**state["health"])
