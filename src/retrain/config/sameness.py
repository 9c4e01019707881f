"""Conditions that cannot come out differently, known from their configs alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from retrain.config.changes import identity
from retrain.config.checks import LOSS_KEYS, TRANSFORM_TABLES, without_idle
from retrain.config.conditions import Condition
from retrain.config.schema import RunConfig

WIDE = 1e-4
"""A clip that leaves this much room about 1 leaves ratios alone that are 1 but for rounding."""


def same_conditions(conditions: Sequence[Condition]) -> Iterator[str]:
    """A warning for each condition that differs from an earlier one in nothing that counts."""
    seen: dict[str, Condition] = {}
    for condition in conditions:
        first = seen.setdefault(repr(_that_counts(condition.config)), condition)
        now, before = (c.config.model_dump(mode="json") for c in (condition, first))
        keys = [
            f"{table}.{key}"
            for table in now
            for key in now[table]
            if now[table][key] != before[table][key]
        ]
        if not keys:
            continue
        warning = (
            f"{condition.place}: trains exactly what {first.label} trains, but for rounding: "
            f"nothing hangs on {', '.join(keys)}"
        )
        if any(key.startswith("loss.") for key in keys):
            warning += (
                " with one update a batch, when every ratio is 1; set updates_per_batch or "
                "minibatches in [training] to 2 or more"
            )
        yield warning


def _that_counts(run: RunConfig) -> dict[str, Any]:
    """`table.key` -> value of what decides what a run computes, with the simplest of all values
    that compute the same."""
    run = without_idle(run, warned=True)
    found = identity(run) | {
        "training.max_steps": run.training.max_steps,
        "evaluation.every": run.evaluation.every,
        "model.lora_alpha": run.model.alpha,
    }
    if _ratios_are_one(run) and _clips_widely(run):
        found |= {"loss.type": "importance_sampling"} | {f"loss.{key}": None for key in LOSS_KEYS}
    if run.algorithm.algorithm_mode or "." in run.algorithm.transform_mode:
        return found
    transform = found["algorithm.transform_mode"] = _simplest_transform(run)
    unread = {table for table, modes in TRANSFORM_TABLES.items() if transform not in modes}
    if "gtpo" in unread:
        unread.add("algorithm.uncertainty_kind")
    if {"hicra", "sepa"} <= unread:
        unread.add("logging.strategic_grams")
    return {
        place: value
        for place, value in found.items()
        if not {place, place.partition(".")[0]} & unread
    }


def _ratios_are_one(run: RunConfig) -> bool:
    """Whether every update is the first of its batch, of completions that the policy sampled."""
    training = run.training
    is_first = training.updates_per_batch == training.minibatches == 1
    own = run.backend.backend == "local" and run.inference.engine == "local"
    return is_first and own and training.top_p == 1 and not run.corrects_sampler


def _clips_widely(run: RunConfig) -> bool:
    loss = run.loss
    bounds = [loss.eps_low, loss.eps_high, loss.ratio_max and loss.ratio_max - 1]
    return all(bound is None or bound > WIDE for bound in bounds)


def _simplest_transform(run: RunConfig) -> str:
    transform, sepa = run.algorithm.transform_mode, run.sepa
    never = sepa.steps == 0 or sepa.delay_steps >= run.training.max_steps - 1
    if transform == "gtpo_hicra" and run.hicra.alpha == 0:
        transform = "gtpo"
    if transform == "gtpo_sepa" and (run.gtpo.beta == 0 or (sepa.schedule == "linear" and never)):
        transform = "gtpo"
    return "none" if transform == "gtpo" and run.gtpo.beta == 0 else transform
