"""The part of `retrain explain` that says in which order runs are trained, and which of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from retrain.analysis.words import plural
from retrain.config.load import LoadedConfig


def order(loaded: LoadedConfig) -> dict[str, Any] | None:
    """`seeds_first`, `max_runs` and `[campaign.stopping]` and what they come to; None of a run."""
    campaign = loaded.config.campaign
    if campaign is None:
        return None
    from retrain.experiments.manifest import stopping_rule
    from retrain.experiments.plan import first_runs, plan_runs

    runs = plan_runs(loaded)
    now = first_runs(runs, campaign.max_runs)
    return {
        "seeds_first": campaign.seeds_first,
        "max_runs": campaign.max_runs,
        "runs": len(runs),
        "runs_now": len(now),
        "steps_now": sum(run.max_steps for run in now),
        "seeds_now": len({run.seed for run in now}),
        "stopping": stopping_rule(loaded),
    }


def order_rows(explanation: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Headings and texts for the summary."""
    found = explanation["order"]
    if found is None:
        return
    if len(explanation["seeds"]) > 1 and len(explanation["conditions"]) > 1:
        if found["seeds_first"]:
            yield "order", "all conditions under one seed, then under the next"
        else:
            yield "order", "all seeds of one condition, then those of the next"
    if found["runs_now"] < found["runs"]:
        yield (
            "for now",
            f"{plural(found['runs_now'], 'run')}, {plural(found['steps_now'], 'step')}: "
            f"{plural(found['seeds_now'], 'seed')} of every condition; "
            f"{plural(found['runs'] - found['runs_now'], 'run')} left out, as max_runs = "
            f"{found['max_runs']}",
        )
    if rule := found["stopping"]:
        steps = ", ".join(map(str, rule["after_steps"]))
        many = "steps" if len(rule["after_steps"]) > 1 else "step"
        yield (
            "may stop",
            f"a condition after {many} {steps}, once {rule['min_seeds']} seeds have come so far: "
            f"when the {100 * rule['confidence']:g} % interval of its difference lies below "
            f"+{rule['margin']:g}",
        )
