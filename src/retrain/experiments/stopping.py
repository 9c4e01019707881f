"""Stopping conditions that cannot win, while their campaign runs.

What is looked at stands in files: the evaluations and metrics of the runs. A decision is in the
manifest before anything is done about it, so whoever goes on with the campaign finds it there, or
makes it again from the same numbers.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Mapping
from functools import cache
from itertools import product, takewhile
from typing import Any

from retrain.analysis.reading import iter_rows, load_object, number
from retrain.analysis.records import RunView, read_run
from retrain.analysis.settings import ReportSettings
from retrain.analysis.words import percent, plural
from retrain.causes import INFRASTRUCTURE
from retrain.config.stopping import StoppingConfig
from retrain.errors import InputError
from retrain.experiments.manifest import Manifest
from retrain.files import METRICS_FILE, RunRecord, evaluation_files, utc_now

DROPPED = "dropped"
OUTCOMES = frozenset({"done", "diverged"})
OVER = OUTCOMES | {"failed", DROPPED}


class Stopping:
    """Judges the conditions of a campaign; never stops one without `[campaign.stopping]`."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        given = manifest.data.get("stopping")
        self._rule = StoppingConfig.model_validate(given) if given else None
        self._settings = ReportSettings.of(manifest.data) or ReportSettings()

    @property
    def steps(self) -> list[int]:
        """Steps after which conditions are judged."""
        return sorted(self._rule.after_steps) if self._rule else []

    def message(self, condition: str) -> str:
        """Why the condition was stopped; empty when it was not."""
        from retrain.analysis.futility import dropped_in

        found = [d for d in dropped_in(self._manifest.data).values() if d.condition == condition]
        if not found:
            return ""
        unit = self._settings.unit
        against = "; ".join(f"{d.baseline}: {d.numbers(unit)}, {d.seeds} seeds" for d in found)
        return f"stopped for futility at step {found[0].step} (against {against})"

    def is_dropped(self, condition: str) -> bool:
        """Whether the condition was stopped."""
        return condition in self._manifest.dropped

    def decide(self, news_of: str = "") -> list[str]:
        """The conditions that are stopped now, which the manifest has already.

        news_of: the condition that has a new value; only comparisons with it are looked at. A
        condition without a run left to train is not judged: it would lose its comparison, and
        nothing would be saved.

        Which worker is faster, or was killed, must have no say: what is looked at is always the
        first so many seeds of the plan, when all of them have come so far or are over.
        """
        if self._rule is None:
            return []
        stopped: list[str] = []
        value = cache(self._value)
        for label, baselines in self._contenders(news_of).items():
            if futile := self._first_futile(label, baselines, value):
                self._manifest.drop(futile)
                stopped.append(label)
        return stopped

    def _first_futile(
        self, label: str, baselines: list[str], value: Callable[[str, int], float]
    ) -> list[dict[str, Any]]:
        """The manifest's entries for the first look by which the condition cannot win."""
        assert self._rule is not None
        runs = {(run["condition"], run["seed"]): run for run in self._manifest.data["runs"]}
        seeds, labels = self._manifest.data["seeds"], (label, *baselines)
        for count, step in product(range(self._rule.min_seeds, len(seeds) + 1), self.steps):
            values: dict[str, list[float]] = {each: [] for each in labels}
            awaited = False
            for each, seed in product(labels, seeds[:count]):
                run = runs.get((each, seed))
                values[each].append(value(run["name"], step) if run else math.nan)
                if run and run["status"] not in OVER and math.isnan(values[each][-1]):
                    later = (s for s in self.steps if s > step)
                    awaited |= all(math.isnan(value(run["name"], s)) for s in later)
            if not awaited:
                found = [self._entry(label, baseline, step, values) for baseline in baselines]
                futile = [entry for entry in found if entry is not None]
                if len(futile) == len(baselines):
                    return futile
        return []

    def _contenders(self, news_of: str) -> dict[str, list[str]]:
        """The conditions that can be stopped, each with what it is compared with."""
        data = self._manifest.data
        pairs = self._settings.pairs([str(condition["label"]) for condition in data["conditions"]])
        unfinished = {run["condition"] for run in data["runs"] if run["status"] not in OVER}
        kept = {baseline for _, baseline in pairs} | set(self._manifest.dropped)
        found: dict[str, list[str]] = {}
        for treatment, baseline in pairs:
            if treatment in unfinished - kept:
                found.setdefault(treatment, []).append(baseline)
        if not news_of:
            return found
        return {label: others for label, others in found.items() if news_of in (label, *others)}

    def _entry(
        self, label: str, baseline: str, step: int, values: Mapping[str, list[float]]
    ) -> dict[str, Any] | None:
        """The manifest's entry when the condition cannot beat this baseline any more."""
        # scipy takes half a second, which a campaign without a decision to make need not wait.
        from retrain.analysis.futility import look

        rule = self._rule
        assert rule is not None
        margin = rule.margin or self._settings.margin
        found = look(values[label], values[baseline], margin, rule.confidence, rule.min_seeds)
        if not found.futile:
            return None
        return {
            "condition": label,
            "baseline": baseline,
            "step": step,
            "seeds": int(found.seeds),
            "difference": float(found.difference),
            "low": float(found.low),
            "high": float(found.high),
            "margin": margin,
            "confidence": rule.confidence,
            "at": utc_now(),
            "steps_saved": 0,
        }

    def _value(self, name: str, step: int) -> float:
        """What a run has after so many steps; NaN is not there yet."""
        if self._manifest.status_of(name) == "diverged":
            return self._settings.floor
        folder = self._manifest.run_folder(name)
        if self._settings.metric != "reward":
            file = evaluation_files(folder).get(step)
            measured = number(load_object(file), self._settings.metric) if file else None
            return math.nan if measured is None else measured
        rows = list(
            takewhile(lambda row: row.get("step", step) < step, iter_rows(folder / METRICS_FILE))
        )
        if len(rows) < step:
            return math.nan
        window = [number(row, "mean_reward") for row in rows[-self._settings.window :]]
        rewards = [reward for reward in window if reward is not None]
        return sum(rewards) / len(rewards) if rewards else math.nan


def settle_dropped(manifest: Manifest, name: str, message: str, *, alive: bool = False) -> str:
    """Record that a run was given up, in its `run.json` too; the status that it has.

    One that came to its end in the meantime keeps that. `alive`: a worker is still at it, which
    alone may write its `run.json`.
    """
    with contextlib.suppress(InputError):
        record = RunRecord.read(manifest.run_folder(name))
        if record.status in OUTCOMES:
            data = record.data
            manifest.set_run(name, record.status, str(data["message"]), data["result"])
            return record.status
        if not alive and record.status != DROPPED:
            record.update(status=DROPPED, message=message, cause=None)
    manifest.set_run(name, DROPPED, message)
    return DROPPED


def give_up_dropped(manifest: Manifest, views: dict[str, RunView]) -> None:
    """At a resume: settle what is left of conditions that were stopped before. Updates `views`."""
    stopping = Stopping(manifest)
    for entry in manifest.data["runs"]:
        view = views[entry["name"]]
        own_error = view.state == "failed" and view.cause not in INFRASTRUCTURE
        if view.state in OUTCOMES or own_error or not stopping.is_dropped(view.condition):
            continue
        alive = view.state in {"running", "stalled"}
        settle_dropped(manifest, view.name, stopping.message(view.condition), alive=alive)
        views[view.name] = read_run(view.folder, entry)


def tally(manifest: Manifest) -> None:
    """Write into the manifest how many steps were not trained."""
    if not manifest.dropped:
        return
    total = 0
    saved: dict[str, int] = {}
    for entry in manifest.data["runs"]:
        view = read_run(manifest.run_folder(entry["name"]), entry)
        steps = view.max_steps or 0
        total += steps
        if entry["status"] == DROPPED:
            left = max(0, steps - view.step)
            saved[view.condition] = saved.get(view.condition, 0) + left
    manifest.set_saved(saved, total)


def saved_words(manifest: Manifest) -> str:
    """What stopping early saved, in words; empty when nothing was stopped."""
    saved = manifest.data.get("saved")
    if not saved:
        return ""
    who = ", ".join(manifest.dropped)
    share = percent(saved["share"])
    return (
        f"stopped for futility: {who}; that saved {plural(saved['steps'], 'step')} of "
        f"{saved['of']}, {share} of the campaign"
    )


def decided(stopping: Stopping, condition: str, names: Collection[str]) -> str:
    """The line that is said when a condition is stopped, and with it these runs."""
    return f"{condition} {stopping.message(condition)}; ends {plural(len(names), 'run')}"
