"""Checks of `[campaign.stopping]`, `max_runs` and `seeds_first`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from retrain.config.conditions import Condition
from retrain.config.findings import Finding
from retrain.config.messages import show
from retrain.config.schema import CampaignConfig, RetrainConfig

PLACE = "campaign.stopping"


def check_order(campaign: CampaignConfig, conditions: Sequence[Condition]) -> Iterator[Finding]:
    """What `max_runs` and `seeds_first` ask for together."""
    if not campaign.max_runs:
        return
    if not campaign.seeds_first:
        message = (
            f"{campaign.max_runs} runs are whole seeds, of every condition; drop "
            "seeds_first = false, or max_runs"
        )
        yield Finding("campaign.max_runs", message, ("campaign.seeds_first",))
    elif problem := too_few_runs(campaign.max_runs, len(conditions)):
        yield Finding("campaign.max_runs", problem, ("campaign.conditions",))


def too_few_runs(max_runs: int, conditions: int) -> str:
    """What is wrong with `max_runs`; empty when it holds a whole seed."""
    if not 0 < max_runs < conditions:
        return ""
    return (
        f"{max_runs} is less than one seed of the {conditions} conditions; take {conditions} or "
        "more, or 0 for all runs"
    )


def check_stopping(config: RetrainConfig, conditions: Sequence[Condition]) -> Iterator[Finding]:
    campaign = config.campaign
    stopping = campaign.stopping if campaign else None
    if campaign is None or stopping is None:
        return
    steps = stopping.after_steps
    if any(later <= earlier for earlier, later in pairwise(steps)):
        message = f"{show(steps)} does not ascend; write {show(sorted(set(steps)))}"
        yield Finding(f"{PLACE}.after_steps", message)
    yield from _steps(config, conditions, steps)
    if stopping.min_seeds > len(campaign.seeds):
        message = (
            f"{stopping.min_seeds} seeds are wanted, and there are {len(campaign.seeds)}: no "
            "condition is ever stopped"
        )
        yield Finding(f"{PLACE}.min_seeds", message, ("campaign.seeds",), is_error=False)
    if len(conditions) == 1:
        yield Finding(PLACE, "one condition has nothing to lose against", is_error=False)


def _steps(
    config: RetrainConfig, conditions: Sequence[Condition], steps: Sequence[int]
) -> Iterator[Finding]:
    """Steps at which nothing is measured, or which are the end."""
    key, metric = f"{PLACE}.after_steps", config.report.metric
    shortest = min(conditions, key=lambda condition: condition.config.training.max_steps)
    length = shortest.config.training.max_steps
    if late := [step for step in steps if step >= length]:
        who = f" of {shortest.label}" if shortest.config.training != config.training else ""
        message = (
            f"{late[0]} is not below the {length} steps{who}: at the end of a run there is nothing "
            "left to save; take earlier steps"
        )
        yield Finding(key, message, ("campaign.max_steps", "training.max_steps"))
    if metric == "reward" or late:
        return
    if not all(condition.config.evaluation.num_problems for condition in conditions):
        return  # `[report]` is in error, or it goes by the reward.
    for condition in conditions:
        every = condition.config.evaluation.every
        if missed := [step for step in steps if not every or step % every]:
            who = "" if every == config.evaluation.every else f" in {condition.label}"
            measured = f"is every {every} steps{who}" if every else f"is only at the end{who}"
            message = (
                f"{missed[0]} is no step of a held-out evaluation, which {measured}; set "
                f"[evaluation].every to {math.gcd(*steps)}, or take other steps"
            )
            yield Finding(key, message, ("evaluation.every",))
            return
