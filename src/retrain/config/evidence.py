"""`[report]`: what a campaign is to show, said before its first run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from retrain.config.table import Count, Table


class ReportConfig(Table):
    """`[report]`: what a campaign's conditions are compared by.

    It is recorded in the campaign's manifest before the first run, so that a reader sees that
    nothing of it was chosen after the results; see `docs/statistics.md`.
    """

    metric: Literal["auto", "accuracy", "greedy_accuracy", "reward"] = "auto"
    """What one run is judged by: held-out accuracy, greedy held-out accuracy, or the mean reward
    of the training batches. `auto`: held-out accuracy, or the reward where evaluation is off."""
    summary: Literal["final", "area_by_step", "area_by_tokens"] = "final"
    """How a run's curve becomes one number: its last values, or its mean height over training
    steps or over completion tokens up to what every finished run has spent."""
    window: Count = 0
    """For `final`: the mean of so many last evaluations, or of so many last steps when the metric
    is the reward. 0 takes 1 evaluation, or 10 steps."""
    baseline: str = ""
    """Label of the condition that the others are compared with; empty takes the first."""
    contrasts: list[str] = Field(default_factory=list)
    """The planned comparisons, e.g. `["maxrl+gtpo vs maxrl+none"]`; empty compares each condition
    with the baseline. They are corrected together: the fewer, the more each can show."""
    margin: Annotated[float, Field(gt=0.0)] = 0.02
    """The smallest difference that matters, in the unit of the metric: 0.02 is 2 points of
    accuracy. Conditions that surely differ by less are called equivalent."""
    alpha: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.05
    """Chance of calling any condition better or worse that is not."""
    floor: float = 0.0
    """What a diverged run scores."""


STEPS_OF_REWARD = 10
"""Steps that the mean reward of a run is taken over unless told otherwise."""

VERSUS = " vs "


def contrast_labels(contrast: str) -> tuple[str, str]:
    """`"a vs b"` -> ("a", "b"). Raises ValueError, in words, for anything else."""
    treatment, versus, baseline = (part.strip() for part in contrast.partition(VERSUS))
    if not (versus and treatment and baseline):
        raise ValueError('is no comparison; write two labels as "a vs b"')
    if treatment == baseline:
        raise ValueError("compares a condition with itself")
    return treatment, baseline


def recorded(report: ReportConfig, labels: Sequence[str], *, evaluates: bool) -> dict[str, Any]:
    """`[report]` with its defaults filled in, as the manifest keeps it; plain JSON.

    evaluates: whether runs have held-out evaluations. `contrasts` stays empty when every condition
    is compared with the baseline, so that conditions which are added later are as well.
    """
    metric = report.metric
    if metric == "auto":
        metric = "accuracy" if evaluates else "reward"
    return {
        "metric": metric,
        "summary": report.summary,
        "window": report.window or (STEPS_OF_REWARD if metric == "reward" else 1),
        "baseline": report.baseline or labels[0],
        "contrasts": [list(contrast_labels(contrast)) for contrast in report.contrasts],
        "margin": report.margin,
        "alpha": report.alpha,
        "floor": report.floor,
    }
