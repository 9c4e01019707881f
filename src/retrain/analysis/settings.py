"""What a campaign's conditions are compared by, as it was recorded before the first run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, get_args

from retrain.analysis.reading import items, nested, number, text
from retrain.analysis.words import Unit

MetricName = Literal["accuracy", "greedy_accuracy", "reward"]
SummaryName = Literal["final", "area_by_step", "area_by_tokens"]
METRICS: tuple[MetricName, ...] = get_args(MetricName)
SUMMARIES: tuple[SummaryName, ...] = get_args(SummaryName)

METRIC_WORDS: Mapping[MetricName, str] = {
    "accuracy": "held-out accuracy",
    "greedy_accuracy": "greedy held-out accuracy",
    "reward": "mean reward",
}


@dataclass(frozen=True, slots=True)
class ReportSettings:
    """`[report]` with its defaults filled in; the keys are those of the table."""

    metric: MetricName = "accuracy"
    summary: SummaryName = "final"
    window: int = 1
    baseline: str = ""
    """Empty: the first condition."""
    contrasts: tuple[tuple[str, str], ...] = ()
    """(treatment, baseline) labels; empty: each condition against `baseline`."""
    margin: float = 0.02
    alpha: float = 0.05
    floor: float = 0.0

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Self | None:
        """Those recorded in a campaign's manifest; None where there are none."""
        given = nested(manifest, "report")
        metric = next((name for name in METRICS if name == text(given, "metric")), None)
        summary = next((name for name in SUMMARIES if name == text(given, "summary")), None)
        window, margin, alpha, floor = (
            number(given, key) for key in ("window", "margin", "alpha", "floor")
        )
        if metric is None or summary is None:
            return None
        if window is None or margin is None or alpha is None or floor is None:
            return None
        pairs = [pair for pair in items(given, "contrasts") if isinstance(pair, list)]
        return cls(
            metric=metric,
            summary=summary,
            window=int(window),
            baseline=text(given, "baseline"),
            contrasts=tuple((str(pair[0]), str(pair[1])) for pair in pairs if len(pair) == 2),
            margin=margin,
            alpha=alpha,
            floor=floor,
        )

    def baseline_of(self, labels: Sequence[str]) -> str:
        return self.baseline if self.baseline in labels else labels[0]

    def pairs(self, labels: Sequence[str]) -> list[tuple[str, str]]:
        """The planned comparisons among these conditions, (treatment, baseline)."""
        if self.contrasts:
            return [pair for pair in self.contrasts if set(pair) <= set(labels)]
        baseline = self.baseline_of(labels)
        return [(label, baseline) for label in labels if label != baseline]

    @property
    def is_plain(self) -> bool:
        """Whether a run is judged by what its last evaluation, or its last steps, measured."""
        by_reward = self.metric == "reward"
        last = self.metric == "accuracy" and self.window == 1
        return self.summary == "final" and (by_reward or last)

    @property
    def unit(self) -> Unit:
        """How differences are written."""
        return Unit(1.0, "", 3) if self.metric == "reward" else Unit()

    @property
    def words(self) -> str:
        """What one run is judged by: `held-out accuracy after training`."""
        name = METRIC_WORDS[self.metric]
        if self.summary == "area_by_step":
            return f"{name}, mean height of the curve over training steps"
        if self.summary == "area_by_tokens":
            return f"{name}, mean height of the curve over completion tokens"
        if self.metric == "reward":
            return f"{name} of the last {self.window} steps"
        if self.window > 1:
            return f"{name}, mean of the last {self.window} evaluations"
        return f"{name} after training"

    def changes(self, other: Self) -> list[str]:
        """Keys in which `other` differs, each as `margin 0.02 -> 0.01`."""
        mine, theirs = asdict(self), asdict(other)
        return [
            f"{field.name} {_shown(mine[field.name])} -> {_shown(theirs[field.name])}"
            for field in fields(self)
            if mine[field.name] != theirs[field.name]
        ]


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(f"{a} vs {b}" for a, b in value) or "each against the baseline"
    return str(value) or "the first condition"
