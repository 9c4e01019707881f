"""One number a run: what the conditions are compared by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retrain.analysis.curve_summaries import final_window, mean_height
from retrain.analysis.reading import last_rows, load_object, number
from retrain.analysis.records import RunView
from retrain.analysis.series import RunSeries, SeriesReader
from retrain.analysis.settings import ReportSettings
from retrain.files import evaluation_files
from retrain.types import FloatArray


@dataclass(frozen=True, slots=True)
class RunValues:
    """A finished run in numbers; None was not measured, or the run did not finish."""

    before: float | None = None
    """Held-out accuracy before training."""
    after: float | None = None
    greedy_after: float | None = None
    value: float | None = None
    """What the run is judged by."""


def run_values(
    runs: Sequence[RunView], settings: ReportSettings, reader: SeriesReader
) -> dict[Path, RunValues]:
    """The numbers of each run, by its folder. Only finished runs have any."""
    done = [run for run in runs if run.state == "done"]
    accuracies = {run.folder: accuracies_of(run) for run in done}
    values = _values(done, settings, reader, accuracies)
    return {
        run.folder: RunValues(*accuracies[run.folder], value=values[run.folder])
        if run.folder in accuracies
        else RunValues()
        for run in runs
    }


def accuracies_of(run: RunView) -> tuple[float | None, float | None, float | None]:
    """Held-out accuracy before and after training, and greedily after, of a finished run."""
    result = run.result
    if result.accuracy_after is not None:
        return result.accuracy_before, result.accuracy_after, result.greedy_after
    files = evaluation_files(run.folder)
    last = max(files, default=0)
    if last == 0 or last != run.max_steps:
        return None, None, None
    after = load_object(files[last])
    before = load_object(files[0]) if 0 in files else {}
    keys = ((before, "accuracy"), (after, "accuracy"), (after, "greedy_accuracy"))
    first, second, third = (number(source, key) for source, key in keys)
    return first, second, third


def _values(
    done: Sequence[RunView],
    settings: ReportSettings,
    reader: SeriesReader,
    accuracies: Mapping[Path, tuple[float | None, float | None, float | None]],
) -> dict[Path, float | None]:
    metric = settings.metric
    if settings.summary == "final" and metric == "reward":
        return {run.folder: _last_reward(run, settings.window) for run in done}
    if settings.summary == "final" and settings.window == 1:
        place = 1 if metric == "accuracy" else 2
        return {run.folder: accuracies[run.folder][place] for run in done}
    series = {run.folder: reader.read(run) for run in done}
    if settings.summary == "final":
        return {folder: _final(one, settings) for folder, one in series.items()}
    by_tokens = settings.summary == "area_by_tokens"
    curves = {folder: _curve(one, settings, by_tokens) for folder, one in series.items()}
    # The same budget for all: what the most frugal finished run has spent.
    until = min((float(x[-1]) for x, _ in curves.values() if x.size), default=None)
    return {folder: _area(x, y, until) for folder, (x, y) in curves.items()}


def _last_reward(run: RunView, window: int) -> float | None:
    rows, _ = last_rows(run.metrics, window)
    rewards = [value for row in rows if (value := number(row, "mean_reward")) is not None]
    return sum(rewards) / len(rewards) if rewards else None


def _final(series: RunSeries, settings: ReportSettings) -> float | None:
    _, values = _curve(series, settings, by_tokens=False)
    if values.size < settings.window:
        return None
    return float(final_window(values, settings.window))


def _curve(
    series: RunSeries, settings: ReportSettings, by_tokens: bool
) -> tuple[FloatArray, FloatArray]:
    """Places (n,) and values (n,) of the metric over training, without what was not measured."""
    if settings.metric == "reward":
        places = np.asarray(series.tokens if by_tokens else series.step + 1, dtype=np.float64)
        values = np.asarray(series.values["mean_reward"], dtype=np.float64)
    else:
        found = series.evaluations
        at = [e.tokens if by_tokens else e.step for e in found]
        places = np.asarray(at, dtype=np.float64)
        values = np.asarray([getattr(e, settings.metric) for e in found], dtype=np.float64)
    there = np.isfinite(values)
    return places[there], values[there]


def _area(x: FloatArray, y: FloatArray, until: float | None) -> float | None:
    if x.size < 2 or until is None or until <= x[0]:
        return None
    height = mean_height(x, y, until)
    return None if np.isnan(height) else height
