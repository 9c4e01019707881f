"""Learning curves by step, tokens and seconds: mean over seeds, bands, single runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from retrain.analysis.curves import smoothing_window
from retrain.analysis.page.markup import MISSING, chart, folded, name, table
from retrain.analysis.page.section import Section
from retrain.analysis.page.tracks import (
    AXES,
    Axis,
    MeanCurve,
    Track,
    difference_curve,
    mean_curve,
    rounded,
    smoothed,
    thinned,
)
from retrain.analysis.records import CampaignRecord, RunView
from retrain.analysis.series import RunSeries, SeriesReader
from retrain.analysis.summary import Comparison
from retrain.analysis.webpage import safe
from retrain.types import FloatArray

POINTS = 200
"""Points of a drawn curve at most: more cannot be told apart in a picture."""
RUNS = 200
"""Runs that are drawn one by one at most; beyond, the first seeds of each condition."""
RUN_POINTS = 24_000
"""Points of all single runs of one quantity together."""
FEWEST_POINTS = 60
GRID = 40
"""Places of a mean by tokens or seconds, for held-out accuracy, which is measured rarely."""
TABLE_PLACES = 9


ByAxis = dict[Axis, list[MeanCurve | None]]


@dataclass(frozen=True, slots=True)
class Quantity:
    """One that has learning curves."""

    key: str
    title: str
    percent: bool
    tracks: tuple[Track, ...]
    grid: int
    window: int = 1
    """Steps of the moving average that its tracks went through."""


def learning_section(
    campaign: CampaignRecord, comparison: Comparison, reader: SeriesReader
) -> Section:
    quantities = _quantities(campaign, reader)
    if not quantities:
        text = "No run has written enough steps to draw a curve."
        return Section("curves", "Learning curves", f'<p class="empty">{text}</p>')
    length = max(run.step for run in campaign.runs)
    seeds = _drawn_seeds(campaign)
    data: dict[str, Any] = {}
    parts = ['<div class="controls" id="curve-controls"></div><div class="legend"></div>']
    for quantity in quantities:
        means, differences = _curves(
            quantity, campaign.conditions, comparison.baseline, length, comparison.confidence
        )
        data[quantity.key] = {
            "percent": quantity.percent,
            "means": _curve_data(means),
            "differences": _curve_data(differences),
            "runs": _runs(quantity, seeds, length),
        }
        parts.append(_figure(quantity, means["step"], campaign))
    parts.append(_notes(campaign, comparison, seeds))
    return Section("curves", "Learning curves", "\n".join(parts), data)


def _quantities(campaign: CampaignRecord, reader: SeriesReader) -> list[Quantity]:
    accuracy: list[Track] = []
    greedy: list[Track] = []
    reward: list[Track] = []
    window = smoothing_window(max((run.step for run in campaign.runs), default=0))
    place = {label: index for index, label in enumerate(campaign.conditions)}
    for run in campaign.runs:
        series, condition = reader.read(run), place[run.condition]
        for tracks, key in ((accuracy, "accuracy"), (greedy, "greedy_accuracy")):
            _add(tracks, run, condition, *_evaluated(series, key))
        rewards = smoothed(series.values["mean_reward"], window)
        places = np.stack([series.step.astype(np.float64), series.tokens, series.seconds])
        _add(reward, run, condition, places, rewards)
    found = [
        Quantity("accuracy", "Held-out accuracy", True, tuple(accuracy), GRID),
        Quantity("greedy", "Held-out accuracy, greedy", True, tuple(greedy), GRID),
        Quantity("reward", "Mean reward in training", False, tuple(reward), POINTS // 2, window),
    ]
    return [q for q in found if any(track.y.size > 1 for track in q.tracks)]


def _evaluated(series: RunSeries, key: str) -> tuple[FloatArray, FloatArray]:
    """Places (3, n) and values (n,) of the held-out evaluations."""
    found = series.evaluations
    places = np.asarray([(e.step, e.tokens, e.seconds) for e in found], dtype=np.float64)
    values = np.asarray([getattr(e, key) for e in found], dtype=np.float64)
    return places.reshape(-1, 3).T, values


def _add(
    tracks: list[Track], run: RunView, condition: int, places: FloatArray, values: FloatArray
) -> None:
    there = np.isfinite(values)
    if there.any():
        step, tokens, seconds = places[:, there]
        done = run.state == "done"
        tracks.append(Track(condition, run.seed, done, (step, tokens, seconds), values[there]))


def _curves(
    quantity: Quantity, labels: Sequence[str], baseline: str, length: int, confidence: float
) -> tuple[ByAxis, ByAxis]:
    """By axis, one curve a condition: means, and paired differences to the baseline."""
    own = [[t for t in quantity.tracks if t.condition == c] for c in range(len(labels))]
    base = labels.index(baseline)
    means: ByAxis = {axis: [] for axis in AXES}
    differences: ByAxis = {axis: [] for axis in AXES}
    for condition, tracks in enumerate(own):
        for axis in AXES:
            mean = mean_curve(tracks, axis, quantity.grid, confidence)
            paired = None
            if condition != base:
                paired = difference_curve(tracks, own[base], axis, quantity.grid, confidence)
            for curve, curves in ((mean, means[axis]), (paired, differences[axis])):
                if curve is not None and axis == "step":
                    curve = curve.at(thinned(curve.x, length, POINTS))
                curves.append(curve)
    return means, differences


def _drawn_seeds(campaign: CampaignRecord) -> frozenset[int | None]:
    """The seeds whose runs are drawn one by one, the same for every condition."""
    most = max(1, RUNS // max(1, len(campaign.conditions)))
    return (
        frozenset(campaign.seeds[:most])
        if len(campaign.runs) > RUNS
        else frozenset(run.seed for run in campaign.runs)
    )


def _curve_data(curves: ByAxis) -> dict[str, list[dict[str, Any] | None]]:
    return {
        axis: [None if curve is None else curve.data() for curve in found]
        for axis, found in curves.items()
    }


def _runs(quantity: Quantity, seeds: frozenset[int | None], length: int) -> list[dict[str, Any]]:
    drawn = [track for track in quantity.tracks if track.seed in seeds]
    points = max(FEWEST_POINTS, min(POINTS, RUN_POINTS // max(1, len(drawn))))
    found = []
    for track in drawn:
        places = thinned(track.x[0], length, points)
        found.append(
            {
                "c": track.condition,
                "s": track.seed,
                "done": int(track.done),
                "x": [rounded(axis[places]) for axis in track.x],
                "y": rounded(track.y[places]),
            }
        )
    return found


def _figure(
    quantity: Quantity, curves: Sequence[MeanCurve | None], campaign: CampaignRecord
) -> str:
    shown = {
        label: curve
        for label, curve in zip(campaign.conditions, curves, strict=True)
        if curve is not None
    }
    finding = f"{quantity.title} by training step, mean over seeds. " + " ".join(
        f"{label}: from {_value(curve, 0, quantity)} to {_value(curve, -1, quantity)}."
        for label, curve in shown.items()
    )
    smoothing = (
        f", centred moving average over {quantity.window} steps" if quantity.window > 1 else ""
    )
    return (
        f'<figure data-quantity="{quantity.key}"><h3>{quantity.title}'
        f"<small>{smoothing}</small></h3>{chart(f'curve-{quantity.key}', finding, kind='curve')}"
        f"{folded('Show as table', mean_table(shown, campaign.conditions, quantity.percent))}"
        "</figure>"
    )


def mean_table(curves: Mapping[str, MeanCurve], conditions: Sequence[str], percent: bool) -> str:
    """Means with half their interval at a few steps, spread over training."""
    steps = np.unique(np.concatenate([curve.x for curve in curves.values()] or [np.empty(0)]))
    if steps.size > TABLE_PLACES:
        steps = steps[np.linspace(0, steps.size - 1, TABLE_PLACES).round().astype(int)]
    scale = 100.0 if percent else 1.0
    rows = []
    for label, curve in curves.items():
        cells = [name(label, list(conditions).index(label))]
        for step in steps:
            at = int(np.searchsorted(curve.x, step))
            if at == curve.x.size or curve.x[at] != step:
                cells.append(MISSING)
                continue
            half = curve.half[at]
            spread = f" <small>± {scale * half:.3g}</small>" if np.isfinite(half) else ""
            cells.append(f"{scale * curve.mean[at]:.3g}{spread}")
        rows.append([*cells, str(curve.runs)])
    unit = " in %" if percent else ""
    head = ["condition", *(f"step {step:g}" for step in steps), "runs"]
    return table(head, rows, caption=f"Mean over runs{unit}, ± half its t interval")


def _value(curve: MeanCurve, at: int, quantity: Quantity) -> str:
    value = float(curve.mean[at])
    return f"{100 * value:.1f} %" if quantity.percent else f"{value:.3g}"


def _notes(campaign: CampaignRecord, comparison: Comparison, seeds: frozenset[int | None]) -> str:
    texts = [
        "A thick line is the mean over a condition's finished runs (over all of them while none has"
        " finished), at the steps that all of these have; by tokens and time runs are interpolated "
        "onto a common grid before the mean, up to where the shortest of them ends. Tokens are "
        "completion tokens of training, time is training time."
    ]
    if len(campaign.seeds) > 1:
        texts.append(
            f"The band is the mean's {100 * comparison.confidence:g} % t interval, place by place, "
            "or from the lowest to the highest run. It holds what seeds do to all conditions alike:"
            " overlapping bands do not say that a paired difference is chance."
        )
    if len(campaign.conditions) > 1:
        texts.append(
            f"Differences to {safe(comparison.baseline)} are paired by seed, and so is their band."
        )
    if any(run.state not in {"done", "pending"} for run in campaign.runs):
        texts.append("A dashed thin line is a run that did not finish, as far as it came.")
    if len(campaign.runs) > RUNS:
        texts.append(
            f"Thin lines are drawn for the first {len(seeds)} seeds alone; means and bands are "
            f"over all {len(campaign.seeds)}."
        )
    return "".join(f'<p class="how">{text}</p>' for text in texts)
