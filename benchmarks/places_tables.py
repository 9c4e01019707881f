"""What the runs of `places.py` did, compared with those here, and the tables of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import stdev
from typing import Any

import numpy as np

from retrain.analysis.records import RunView, read_campaign
from retrain.analysis.series import RunSeries, SeriesReader
from retrain.analysis.statistics import Contrast, paired_contrast
from retrain.files import iter_jsonl
from retrain.types import FloatArray

HERE = "here"
LAST = 10
"""Steps that the reward at the end is a mean over."""

Run = tuple[str, int]
"""Condition and seed."""


@dataclass(frozen=True, slots=True)
class Learnt:
    """What one run did."""

    series: RunSeries
    completions: tuple[tuple[Any, ...], ...]
    """Of each step, with their prompts."""
    mismatch: float | None
    """The largest of the run; None without a server."""

    def __getitem__(self, column: str) -> FloatArray:
        """(steps,) a column of `metrics.jsonl`."""
        return self.series.values[column]

    @property
    def accuracies(self) -> FloatArray:
        """(evaluations,) on held-out problems, the first before training."""
        return np.array([one.accuracy for one in self.series.evaluations], dtype=np.float64)

    @property
    def step_s(self) -> float:
        """Median over steps, without evaluations."""
        return float(np.median(self["step_time_s"] - self["evaluation_time_s"]))


MEASURES: Mapping[str, Callable[[Learnt], float]] = {
    "reward, all steps": lambda run: float(run["mean_reward"].mean()),
    f"reward, last {LAST}": lambda run: float(run["mean_reward"][-LAST:].mean()),
    "held-out accuracy": lambda run: float(run.accuracies[-1]),
}


@dataclass(frozen=True, slots=True)
class Compared:
    """A run beside that of the same condition and seed here."""

    place: str
    condition: str
    seed: int
    steps: int
    reward: float
    """Mean of the last steps."""
    accuracy: float
    """Held-out, at the end."""
    same_steps: int
    """Steps in which every completion is the same."""
    reward_apart: float
    """Largest difference of a step's mean reward."""
    accuracy_apart: float
    """Likewise of an evaluation."""
    loss_apart: float | None
    """Largest difference of the loss, in the same steps."""
    mismatch: float | None
    step_s: float


@dataclass(frozen=True, slots=True)
class Difference:
    """A place minus here, by one measure, over the seeds of a condition."""

    place: str
    condition: str
    measure: str
    contrast: Contrast
    spread: float | None
    """Standard deviation between the seeds here."""


def read_place(folder: Path) -> dict[Run, Learnt]:
    """The runs that are done of the one campaign in a folder."""
    found = [campaign for path in folder.iterdir() if (campaign := read_campaign(path))]
    if len(found) != 1:
        raise SystemExit(f"{folder} holds {len(found)} campaigns and not one")
    done = [run for run in found[0].runs if run.state == "done"]
    return {(run.condition, int(run.seed or 0)): _learnt(run) for run in done}


def _learnt(run: RunView) -> Learnt:
    series = SeriesReader().read(run)
    completions = defaultdict(list)
    for row in iter_jsonl(run.folder / "emergence/generations.jsonl"):
        told = (row["prompt"], row["sample"], row["completion"], row["token_lengths"])
        completions[row["step"]].append(told)
    mismatches = (row.get("sampler_mismatch") for row in iter_jsonl(run.metrics))
    return Learnt(
        series,
        tuple(tuple(completions[step]) for step in series.step.tolist()),
        max((value for value in mismatches if value is not None), default=None),
    )


def compare(places: Mapping[str, Mapping[Run, Learnt]]) -> list[Compared]:
    """Every run beside its own here."""
    found = []
    for place, runs in places.items():
        for (condition, seed), one in runs.items():
            here = places[HERE][condition, seed]
            same_N = np.array(
                [a == b for a, b in zip(one.completions, here.completions, strict=True)]
            )
            loss_apart_N = np.abs(one["loss"] - here["loss"])[same_N]
            found.append(
                Compared(
                    place,
                    condition,
                    seed,
                    steps=len(same_N),
                    reward=float(one["mean_reward"][-LAST:].mean()),
                    accuracy=float(one.accuracies[-1]),
                    same_steps=int(same_N.sum()),
                    reward_apart=float(np.abs(one["mean_reward"] - here["mean_reward"]).max()),
                    accuracy_apart=float(np.abs(one.accuracies - here.accuracies).max()),
                    loss_apart=float(loss_apart_N.max()) if loss_apart_N.size else None,
                    mismatch=one.mismatch,
                    step_s=one.step_s,
                )
            )
    return found


def differences(places: Mapping[str, Mapping[Run, Learnt]]) -> list[Difference]:
    """Each other place minus here, paired by seed."""
    found = []
    for place, runs in places.items():
        for condition in dict.fromkeys(condition for condition, _ in runs if place != HERE):
            for measure, value_of in MEASURES.items():
                there = {
                    seed: value_of(run) for (label, seed), run in runs.items() if label == condition
                }
                here = {seed: value_of(places[HERE][condition, seed]) for seed in there}
                spread = stdev(here.values()) if len(here) > 1 else None
                contrast = paired_contrast(there, here)
                found.append(Difference(place, condition, measure, contrast, spread))
    return found


def print_runs(found: Sequence[Compared], titles: Mapping[str, str]) -> None:
    headers = (
        "place", "condition", "seed", f"reward, last {LAST}", "accuracy", "same steps",
        "reward apart", "accuracy apart", "loss apart", "mismatch", "s a step",
    )  # fmt: skip
    rows = []
    for one in found:
        apart = ["", "", "", ""]
        if one.place != HERE:
            apart = [
                f"{one.same_steps}/{one.steps}",
                f"{one.reward_apart:.3f}",
                f"{one.accuracy_apart:.3f}",
                _small(one.loss_apart),
            ]
        name = (titles[one.place], one.condition, str(one.seed))
        learnt = (f"{one.reward:.3f}", f"{one.accuracy:.3f}")
        rows.append((*name, *learnt, *apart, _small(one.mismatch), f"{one.step_s:.2f}"))
    _print_aligned(headers, rows, texts=2)


def print_differences(found: Sequence[Difference], titles: Mapping[str, str]) -> None:
    headers = ("minus here", "condition", "points of", "mean", "95 % interval", "sd of seeds")
    rows = [
        (
            titles[one.place],
            one.condition,
            one.measure,
            _points(one.contrast.mean_difference),
            f"[{_points(one.contrast.low)}, {_points(one.contrast.high)}]",
            _points(one.spread).lstrip("+"),
        )
        for one in found
    ]
    _print_aligned(headers, rows, texts=3)


def summary(found: Sequence[Compared], apart: Sequence[Difference], title: str) -> str:
    """One place in a line. found, apart: those of the place."""
    same, steps = sum(one.same_steps for one in found), sum(one.steps for one in found)
    words = f"{title}: {same} of {steps} steps have the same completions"
    if all(one.contrast.low == one.contrast.high == 0 for one in apart):
        return f"{words}; every run ends with the same numbers"
    ends = [(one.contrast.low, one.contrast.high) for one in apart]
    within = [low <= 0 <= high for low, high in ends if low is not None and high is not None]
    if not within:
        return f"{words}; one seed has no interval"
    return f"{words}; {sum(within)} of {len(within)} mean differences have an interval that holds 0"


def _print_aligned(headers: Sequence[str], rows: Sequence[Sequence[str]], texts: int) -> None:
    """texts: so many columns on the left are words, the others numbers."""
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    for cells in (headers, *rows):
        padded = [
            cell.ljust(width) if index < texts else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        print("  ".join(padded).rstrip())
    print()


def _small(value: float | None) -> str:
    return "-" if value is None else "0" if value == 0 else f"{value:.0e}"


def _points(value: float | None) -> str:
    # Adding 0 makes -0.0 what it is.
    return "-" if value is None else f"{round(100 * value, 1) + 0.0:+.1f}"
