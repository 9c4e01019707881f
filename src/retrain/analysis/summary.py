"""What a campaign's runs say about its conditions: the numbers of the closing table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from retrain.analysis.reading import last_rows, load_object, number
from retrain.analysis.records import CampaignRecord, RunView
from retrain.analysis.statistics import Contrast, mean, paired_contrast
from retrain.files import evaluation_files

REWARD_STEPS = 10
"""Without held-out evaluations a run is judged by its mean reward over so many last steps."""

MetricName = Literal["accuracy", "reward"]


@dataclass(frozen=True, slots=True)
class RunValues:
    """One run in numbers; None was not measured, or the run did not finish."""

    before: float | None = None
    after: float | None = None
    greedy_after: float | None = None


@dataclass(frozen=True, slots=True)
class ConditionSummary:
    """One condition over its seeds."""

    label: str
    planned: int
    """Runs that the plan has for it."""
    states: Mapping[str, int]
    """How many of them are in each state."""
    values: Mapping[int, float | None]
    """The value of each seed's run after training."""
    before: float | None
    """Mean over seeds before training."""
    after: float | None
    """Mean over seeds after training."""
    greedy_after: float | None
    contrast: Contrast | None
    """Against the first condition; None for the first itself."""

    @property
    def done(self) -> int:
        return self.states.get("done", 0)

    @property
    def troubled(self) -> dict[str, int]:
        """Runs that ended without a result, by state."""
        bad = ("failed", "diverged", "stopped", "lost")
        return {state: self.states[state] for state in bad if self.states.get(state)}


@dataclass(frozen=True, slots=True)
class Comparison:
    """All conditions of a campaign, each compared to the first."""

    metric: MetricName
    seeds: tuple[int, ...]
    conditions: tuple[ConditionSummary, ...]
    confidence: float

    @property
    def baseline(self) -> str:
        return self.conditions[0].label

    @property
    def done(self) -> int:
        return sum(condition.done for condition in self.conditions)

    @property
    def planned(self) -> int:
        return sum(condition.planned for condition in self.conditions)

    @property
    def pairs(self) -> list[int]:
        """How many seeds each comparison rests on."""
        return [c.contrast.n for c in self.conditions if c.contrast is not None]


def compare(campaign: CampaignRecord, confidence: float = 0.95) -> Comparison:
    """Each condition's mean over seeds, and its difference to the first, paired by seed.

    Only finished runs have a value. The value is held-out accuracy after training; when no
    finished run has one, the mean reward of the last steps.
    """
    values = {run.folder: _accuracies(run) for run in campaign.runs}
    metric: MetricName = "accuracy"
    if not any(value.after is not None for value in values.values()) and any(
        run.state == "done" for run in campaign.runs
    ):
        metric = "reward"
        values = {run.folder: RunValues(after=_last_reward(run)) for run in campaign.runs}
    conditions: list[ConditionSummary] = []
    for label in campaign.conditions:
        runs = campaign.of(label)
        own = [values[run.folder] for run in runs]
        by_seed = {run.seed: values[run.folder].after for run in runs if run.seed is not None}
        conditions.append(
            ConditionSummary(
                label=label,
                planned=len(runs),
                states=Counter(run.state for run in runs),
                values=by_seed,
                before=_mean(value.before for value in own),
                after=_mean(value.after for value in own),
                greedy_after=_mean(value.greedy_after for value in own),
                contrast=paired_contrast(by_seed, conditions[0].values, confidence)
                if conditions
                else None,
            )
        )
    return Comparison(metric, campaign.seeds, tuple(conditions), confidence)


def _accuracies(run: RunView) -> RunValues:
    if run.state != "done":
        return RunValues()
    result = run.result
    if result.accuracy_after is not None:
        return RunValues(result.accuracy_before, result.accuracy_after, result.greedy_after)
    files = evaluation_files(run.folder)
    last = max(files, default=0)
    if last == 0 or last != run.max_steps:
        return RunValues()
    after = load_object(files[last])
    before = load_object(files[0]) if 0 in files else {}
    return RunValues(
        number(before, "accuracy"), number(after, "accuracy"), number(after, "greedy_accuracy")
    )


def _last_reward(run: RunView) -> float | None:
    if run.state != "done":
        return None
    rows, _ = last_rows(run.metrics, REWARD_STEPS)
    return _mean(number(row, "mean_reward") for row in rows)


def _mean(values: Iterable[float | None]) -> float | None:
    return mean([value for value in values if value is not None])
