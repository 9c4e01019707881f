"""What else differs between conditions while they train: small panels of the step's numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from retrain.analysis.curves import smoothing_window
from retrain.analysis.page.learning import mean_table
from retrain.analysis.page.markup import chart, folded
from retrain.analysis.page.section import Section
from retrain.analysis.page.tracks import MeanCurve, mean_of, shared_steps, smoothed, thinned
from retrain.analysis.records import CampaignRecord
from retrain.analysis.series import RunSeries, SeriesReader
from retrain.analysis.summary import Comparison
from retrain.types import FloatArray

POINTS = 120
NOTHING = 1e-9
"""What never exceeds this is only rounding, as the KL between equal policies."""
ALL_POINTS = 40_000
"""Points of all panels and conditions together."""


@dataclass(frozen=True, slots=True)
class Panel:
    key: str
    title: str
    values: Callable[[RunSeries], FloatArray]
    """(n,) of the n rows."""
    percent: bool = False


def _column(key: str) -> Callable[[RunSeries], FloatArray]:
    return lambda series: series.values[key]


def _of_batch(key: str) -> Callable[[RunSeries], FloatArray]:
    def share(series: RunSeries) -> FloatArray:
        groups = series.values["batch_size"]
        known: FloatArray = np.where(groups > 0, groups, np.nan)
        return series.values[key] / known

    return share


PANELS = (
    Panel("informative", "Informative groups", _of_batch("informative_groups"), True),
    Panel("all_correct", "Groups that are all correct", _of_batch("groups_all_correct"), True),
    Panel("all_wrong", "Groups that are all wrong", _of_batch("groups_all_wrong"), True),
    Panel("cut", "Completions cut off", _column("max_token_hit_rate"), True),
    Panel("length", "Completion length, tokens", _column("mean_completion_tokens")),
    Panel("kl_sampler", "KL to the sampler, nats a token", _column("kl_to_sampler")),
    Panel("kl_base", "KL to the base model, nats a token", _column("kl_to_base")),
    Panel("gradient", "Gradient norm", _column("grad_norm")),
    Panel("clipped", "Clipped tokens", _column("clip_fraction"), True),
    Panel("uncertainty", "Uncertainty of execution tokens", _column("exec_uncertainty_mean")),
    Panel("planning", "Planning tokens", _column("planning_fraction"), True),
    Panel("advantage", "Size of token advantages", _column("advantage_abs_mean")),
    Panel("sepa", "SEPA lambda", _column("sepa_lambda")),
    Panel("lr", "Learning rate", _column("lr")),
)


def mechanism_section(
    campaign: CampaignRecord, comparison: Comparison, reader: SeriesReader
) -> Section | None:
    """None when no run has a row."""
    length = max((run.step for run in campaign.runs), default=0)
    window = smoothing_window(length)
    found = _curves(campaign, reader, window, comparison.confidence)
    kept = [(panel, curves) for panel, curves in found if _says_something(curves)]
    if not kept:
        return None
    points = max(30, min(POINTS, ALL_POINTS // (len(kept) * len(campaign.conditions))))
    figures, data = [], []
    for panel, curves in kept:
        short = [c and c.at(thinned(c.x, length, points)) for c in curves]
        data.append(
            {
                "key": panel.key,
                "percent": panel.percent,
                "curves": [curve and curve.data() for curve in short],
            }
        )
        figures.append(_figure(panel, short, campaign))
    html = (
        '<p class="how">Means over the same runs and with the same bands as above, by step, '
        f"smoothed by a centred moving average over {window} steps. What is the same throughout, "
        'or the same in all conditions, is left out.</p><div class="legend"></div>'
        f'<div class="panels">{"".join(figures)}</div>'
    )
    return Section("mechanisms", "Why they differ", html, data)


def _curves(
    campaign: CampaignRecord, reader: SeriesReader, window: int, confidence: float
) -> list[tuple[Panel, list[MeanCurve | None]]]:
    found: list[tuple[Panel, list[MeanCurve | None]]] = [(panel, []) for panel in PANELS]
    for label in campaign.conditions:
        runs = [(run, reader.read(run)) for run in campaign.of(label)]
        written = [(run, series) for run, series in runs if series.step.size]
        done = [series for run, series in written if run.state == "done"]
        chosen = done or [series for _, series in written]
        steps = shared_steps([one.step.astype(np.float64) for one in chosen]) if chosen else None
        if steps is None or not steps.size:
            for _, curves in found:
                curves.append(None)
            continue
        rows = [np.searchsorted(series.step, steps) for series in chosen]
        for panel, curves in found:
            values_RX = np.stack(
                [panel.values(series)[at] for series, at in zip(chosen, rows, strict=True)]
            )
            values_RX = smoothed(values_RX, window)
            there = np.isfinite(values_RX).all(axis=0)
            curves.append(
                mean_of(steps[there], values_RX[:, there], confidence) if there.any() else None
            )
    return found


def _says_something(curves: list[MeanCurve | None]) -> bool:
    """Whether the means change over training, and not alike in all conditions."""
    drawn = [curve for curve in curves if curve is not None]
    if not drawn or max(curve.x.size for curve in drawn) < 2:
        return False
    means = np.concatenate([curve.mean for curve in drawn])
    low, high = float(means.min()), float(means.max())
    size = max(abs(low), abs(high))
    if size <= NOTHING or high - low <= 1e-9 * size:
        return False
    first = drawn[0]
    alike = len(drawn) > 1 and all(
        np.array_equal(curve.x, first.x) and np.allclose(curve.mean, first.mean, rtol=1e-9, atol=0)
        for curve in drawn[1:]
    )
    return not alike


def _figure(panel: Panel, curves: list[MeanCurve | None], campaign: CampaignRecord) -> str:
    scale, unit = (100.0, " %") if panel.percent else (1.0, "")
    shown = {
        label: curve
        for label, curve in zip(campaign.conditions, curves, strict=True)
        if curve is not None
    }
    finding = f"{panel.title} by step, mean over seeds. " + " ".join(
        f"{label}: from {scale * curve.mean[0]:.3g} to {scale * curve.mean[-1]:.3g}{unit}."
        for label, curve in shown.items()
    )
    return (
        f"<figure><h3>{panel.title}</h3>{chart(f'panel-{panel.key}', finding, kind='panel')}"
        f"{folded('Show as table', mean_table(shown, campaign.conditions, panel.percent))}</figure>"
    )
