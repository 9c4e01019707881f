"""What a campaign's runs say about its conditions: numbers, planned contrasts, verdicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from retrain.analysis.alike import unlike
from retrain.analysis.futility import dropped_pairs
from retrain.analysis.multiplicity import benjamini_hochberg
from retrain.analysis.paired import intention_to_treat, paired_differences, sign_flip_p
from retrain.analysis.reading import items
from retrain.analysis.records import CampaignRecord
from retrain.analysis.series import SeriesReader
from retrain.analysis.settings import ReportSettings
from retrain.analysis.statistics import Contrast, mean, paired_contrast
from retrain.analysis.values import run_values
from retrain.analysis.verdict import Judgement, judge
from retrain.config.evidence import STEPS_OF_REWARD
from retrain.types import FloatArray


@dataclass(frozen=True, slots=True)
class ConditionSummary:
    """One condition over its seeds."""

    label: str
    planned: int
    """Runs that the plan has for it."""
    states: Mapping[str, int]
    """How many of them are in each state."""
    values: Mapping[int, float | None]
    """What each seed's run is judged by; None of a run that did not finish."""
    scored: Mapping[int, float | None]
    """The same, with the floor for runs that diverged: what contrasts rest on."""
    before: float | None
    """Held-out accuracy before training, mean over finished runs."""
    after: float | None
    greedy_after: float | None
    value: float | None
    """Mean over finished runs of what they are judged by."""
    contrast: Contrast | None
    """Against the baseline, by `scored`; None for the baseline itself."""

    @property
    def done(self) -> int:
        return self.states.get("done", 0)

    @property
    def troubled(self) -> dict[str, int]:
        """Runs that ended without a result, by state."""
        bad = ("failed", "diverged", "stopped", "lost", "dropped")
        return {state: self.states[state] for state in bad if self.states.get(state)}


@dataclass(frozen=True, slots=True)
class PlannedContrast:
    """One comparison that was planned, judged together with the others."""

    treatment: str
    baseline: str
    judgement: Judgement
    """By intention to treat: a run that diverged scores the floor."""
    complete: Contrast
    """Over the seeds under which both runs finished."""
    differences: Mapping[int, float]
    """By seed: what the judgement rests on."""

    @property
    def floored(self) -> bool:
        """Whether a run that diverged has a say."""
        return self.complete.n < self.judgement.paired.contrast.n


@dataclass(frozen=True, slots=True)
class ExploratoryContrast:
    """One of all pairs of conditions; nobody planned it."""

    treatment: str
    baseline: str
    contrast: Contrast
    p: float | None
    """Sign-flip p after Benjamini and Hochberg's correction over all pairs."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """All conditions of a campaign, and the comparisons of them that were planned."""

    settings: ReportSettings
    recorded: bool
    """Whether `settings` are what the manifest held before the first run."""
    changes: tuple[str, ...]
    """Where `settings` differ from what was recorded."""
    pooled: int
    """Campaigns whose seeds are pooled."""
    added: int
    """Runs that were planned only after others had begun."""
    baseline: str
    seeds: tuple[int, ...]
    conditions: tuple[ConditionSummary, ...]
    contrasts: tuple[PlannedContrast, ...]
    unlike: tuple[str, ...] = ()
    """What runs should have in common and have not."""

    @property
    def confidence(self) -> float:
        return 1.0 - self.settings.alpha

    @property
    def done(self) -> int:
        return sum(condition.done for condition in self.conditions)

    @property
    def planned(self) -> int:
        return sum(condition.planned for condition in self.conditions)

    @property
    def pairs(self) -> list[int]:
        """How many seeds each difference to the baseline rests on."""
        return [c.contrast.n for c in self.conditions if c.contrast is not None]

    def condition(self, label: str) -> ConditionSummary:
        return next(c for c in self.conditions if c.label == label)


def compare(
    campaign: CampaignRecord,
    settings: ReportSettings | None = None,
    reader: SeriesReader | None = None,
) -> Comparison:
    """Each condition over its seeds, and the planned contrasts between them, paired by seed.

    settings: other ones than those recorded before the first run. reader: one that knows the
    campaign's files already.

    A finished run has a value, a diverged one scores the floor, any other is missing. A campaign
    that recorded nothing is judged by held-out accuracy, or by reward when no finished run has an
    accuracy.
    """
    planned = ReportSettings.of(campaign.manifest)
    chosen = settings or planned or ReportSettings()
    reader = reader or SeriesReader()
    values = run_values(campaign.runs, chosen, reader)
    done = any(run.state == "done" for run in campaign.runs)
    measured = any(value.value is not None for value in values.values())
    if planned is None and settings is None and done and not measured:
        chosen = replace(chosen, metric="reward", window=STEPS_OF_REWARD)
        values = run_values(campaign.runs, chosen, reader)
    labels, seeds = campaign.conditions, campaign.seeds
    baseline = chosen.baseline_of(labels)
    summaries: dict[str, ConditionSummary] = {}
    for label in dict.fromkeys((baseline, *labels)):
        runs = campaign.of(label)
        own = [values[run.folder] for run in runs]
        raw = {run.seed: values[run.folder].value for run in runs if run.seed is not None}
        diverged = {run.seed for run in runs if run.state == "diverged"}
        scored = {seed: chosen.floor if seed in diverged else raw[seed] for seed in raw}
        to_baseline = None
        if label != baseline:
            to_baseline = paired_contrast(scored, summaries[baseline].scored, 1.0 - chosen.alpha)
        summaries[label] = ConditionSummary(
            label=label,
            planned=len(runs),
            states=Counter(run.state for run in runs),
            values=raw,
            scored=scored,
            before=_mean(value.before for value in own),
            after=_mean(value.after for value in own),
            greedy_after=_mean(value.greedy_after for value in own),
            value=_mean(value.value for value in own),
            contrast=to_baseline,
        )
    return Comparison(
        settings=chosen,
        recorded=planned is not None and campaign.planned,
        pooled=campaign.pooled,
        changes=tuple(planned.changes(chosen)) if planned and settings else (),
        added=sum("added" in run for run in items(campaign.manifest, "runs")),
        baseline=baseline,
        seeds=seeds,
        conditions=tuple(summaries[label] for label in labels),
        contrasts=_contrasts(chosen, labels, seeds, summaries, campaign.manifest),
        unlike=unlike(campaign),
    )


def all_pairs(comparison: Comparison) -> list[ExploratoryContrast]:
    """Every pair of conditions, corrected for the share of false claims among the claims."""
    conditions = comparison.conditions
    if len(conditions) < 3:
        return []
    scored_SC = _matrix(comparison.seeds, [c.scored for c in conditions])
    pairs = list(combinations(range(len(conditions)), 2))
    differences_KS = np.stack(
        [paired_differences(scored_SC[:, b], scored_SC[:, a]) for a, b in pairs]
    )
    p_K = benjamini_hochberg(sign_flip_p(differences_KS))
    return [
        ExploratoryContrast(
            conditions[b].label,
            conditions[a].label,
            paired_contrast(conditions[b].scored, conditions[a].scored, comparison.confidence),
            None if np.isnan(p) else float(p),
        )
        for (a, b), p in zip(pairs, p_K, strict=True)
    ]


def _contrasts(
    settings: ReportSettings,
    labels: Sequence[str],
    seeds: Sequence[int],
    summaries: Mapping[str, ConditionSummary],
    manifest: Mapping[str, Any],
) -> tuple[PlannedContrast, ...]:
    pairs = settings.pairs(labels)
    if not pairs:
        return ()
    column = {label: index for index, label in enumerate(labels)}
    scored_SC = _matrix(seeds, [summaries[label].scored for label in labels])
    raw_SC = _matrix(seeds, [summaries[label].values for label in labels])
    diverged_SC = np.isnan(raw_SC) & ~np.isnan(scored_SC)
    judged = judge(
        intention_to_treat(raw_SC, diverged_SC, settings.floor),
        settings.margin,
        settings.alpha,
        pairs=[(column[treatment], column[baseline]) for treatment, baseline in pairs],
        unit=settings.unit,
        dropped_K=dropped_pairs(manifest, pairs),
    )
    found = []
    for (treatment, baseline), judgement in zip(pairs, judged, strict=True):
        differences = paired_differences(
            scored_SC[:, column[treatment]], scored_SC[:, column[baseline]]
        )
        by_seed = {
            seed: float(d) for seed, d in zip(seeds, differences, strict=True) if not np.isnan(d)
        }
        complete = paired_contrast(
            summaries[treatment].values, summaries[baseline].values, 1.0 - settings.alpha
        )
        found.append(PlannedContrast(treatment, baseline, judgement, complete, by_seed))
    return tuple(found)


def _matrix(seeds: Sequence[int], columns: Sequence[Mapping[int, float | None]]) -> FloatArray:
    """Seeds by columns; NaN where a column has no value."""
    rows = [[column.get(seed) for column in columns] for seed in seeds]
    return np.asarray(rows, dtype=np.float64).reshape(len(seeds), len(columns))


def _mean(values: Iterable[float | None]) -> float | None:
    return mean([value for value in values if value is not None])
