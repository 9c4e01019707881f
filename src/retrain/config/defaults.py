"""Defaults that hang on other keys. They are filled in where a config is loaded, so the config in a
run's folder writes them all, and a run that goes on keeps those that it began with."""

from __future__ import annotations

from collections.abc import Set
from typing import Any, TypeVar

from retrain.config.schema import RunConfig

EMBEDDED = "embedded"

ConfigT = TypeVar("ConfigT", bound=RunConfig)


def filled(run: ConfigT, written: Set[str]) -> ConfigT:
    """`run` with these defaults in every key that is not among `written` (`table.key`)."""
    embedded = run.model.model == EMBEDDED
    if run.data.source == "auto":
        written = written - {"data.source"}
    # A path alone is a mistake that has a message; MATH would be a guess about it.
    source = "arithmetic" if embedded or "data.path" in written else "math"
    if "data.source" in written:
        source = run.data.source
    found: dict[str, Any] = {"data.source": source}
    if source == "math":
        found["reward.type"] = "math"
    if run.loss.type == "gspo":
        found["loss.aggregation"] = "sequence_mean"
    if embedded:
        found["training.max_tokens"] = 64
    found |= _sepa(run, written)
    for place in found.keys() - written:
        table, _, key = place.partition(".")
        changed = getattr(run, table).model_copy(update={key: found[place]})
        run = run.model_copy(update={table: changed})
    return run


def _sepa(run: RunConfig, written: Set[str]) -> dict[str, int]:
    """A tenth of the run before the ramp, and full pooling in its last tenth: whatever one of the
    two keys says, the default of the other lets lambda reach 1 in the run, if it can."""
    transform = run.algorithm.algorithm_mode or run.algorithm.transform_mode
    if transform != "gtpo_sepa" and "." not in transform:
        return {}
    length, sepa = run.training.max_steps, run.sepa
    delay, steps = length // 10, 8 * length // 10
    if "sepa.delay_steps" in written:
        steps = min(steps, length - 1 - sepa.delay_steps)
    if "sepa.steps" in written:
        delay = min(delay, length - 1 - sepa.steps)
    return {"sepa.delay_steps": max(0, delay), "sepa.steps": max(1, steps)}
