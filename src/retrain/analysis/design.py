"""What a planned campaign can show, before it runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrain.analysis.power import attained_level, detectable_effect, fewest_seeds, smallest_p
from retrain.analysis.reading import (
    items,
    load_object,
    load_tables,
    modified_at,
    nested,
    number,
    subfolders,
    text,
)

EARLIER = 8
"""Newest campaigns that are looked at for how much seeds differ."""

FEWEST_PAIRS = 3

DECISIVE = (
    *(("model", "model"), ("data", "source"), ("data", "path")),
    *(("evaluation", "num_problems"), ("evaluation", "samples_per_problem")),
)
"""Keys in which a campaign has to be the same for its spread to say anything."""


@dataclass(frozen=True, slots=True)
class Design:
    """What so many seeds can show."""

    seeds: int
    contrasts: int
    alpha: float
    margin: float
    smallest_p: float
    """What no p value can fall below, whatever comes out."""
    fewest_seeds: int
    """Seeds from which on a p value can reach alpha."""
    effect: float | None
    """Standardised difference found with 80 % power; None where nothing can be significant."""
    spread: float | None
    """Standard deviation of paired differences, in the unit of the metric."""
    spread_from: str
    """Where the spread is from: a campaign's name, or empty when it is that of the held-out
    problems alone, which it cannot fall below by more problems than there are."""

    @property
    def detectable(self) -> float | None:
        """The smallest difference found with 80 % power, in the unit of the metric."""
        return None if self.effect is None or self.spread is None else self.effect * self.spread


def design(
    report: Mapping[str, Any],
    conditions: int,
    seeds: int,
    *,
    log_dir: Path,
    config: Mapping[str, Any],
) -> Design:
    """What a campaign can show that is judged as `report` (the manifest's form) says.

    The spread of paired differences is the median over the contrasts of the newest finished
    campaign in `log_dir` on the same model, task and evaluation with three or more seeds. Without
    one it is `sqrt(2) * 0.5 / sqrt(answers)`, what two independent sets of that many held-out
    answers differ by at an accuracy of one half: a guess from below where seeds differ, from above
    where common random numbers make answers alike.

    Each contrast is taken to be tested at alpha over their number, which asks a little more than
    maxT does; where no p value reaches that, at the smallest p there is.
    """
    contrasts = len(report["contrasts"]) or conditions - 1
    alpha = float(report["alpha"])
    level = attained_level(seeds, alpha / max(1, contrasts)) or smallest_p(seeds)
    can = smallest_p(seeds) <= alpha
    spread, source = _spread(report, log_dir, config)
    return Design(
        seeds=seeds,
        contrasts=contrasts,
        alpha=alpha,
        margin=float(report["margin"]),
        smallest_p=smallest_p(seeds),
        fewest_seeds=fewest_seeds(alpha),
        effect=detectable_effect(seeds, level) if can else None,
        spread=spread,
        spread_from=source,
    )


def _spread(
    report: Mapping[str, Any], log_dir: Path, config: Mapping[str, Any]
) -> tuple[float | None, str]:
    if report["metric"] == "reward" or report["summary"] != "final":
        return None, ""
    key = "accuracy_after" if report["metric"] == "accuracy" else "greedy_after"
    folders = [f for f in subfolders(log_dir) if (f / "manifest.json").is_file()]
    folders.sort(key=lambda f: (modified_at(f / "manifest.json") or 0.0, f.name), reverse=True)
    for folder in folders[:EARLIER]:
        manifest = load_object(folder / "manifest.json")
        spreads = list(_spreads(manifest, key))
        if spreads and _alike(folder, manifest, config):
            return statistics.median(spreads), folder.name
    evaluation = nested(config, "evaluation")
    answers = number(evaluation, "num_problems") or 0.0
    if report["metric"] == "accuracy":
        answers *= number(evaluation, "samples_per_problem") or 1.0
    return (math.sqrt(0.5 / answers) if answers else None), ""


def _spreads(manifest: Mapping[str, Any], key: str) -> Iterator[float]:
    """Standard deviations of the differences to the first condition that has results."""
    values: dict[str, dict[Any, float]] = {}
    for run in items(manifest, "runs"):
        value = number(nested(run, "result"), key) if isinstance(run, dict) else None
        if value is not None and run.get("status") == "done":
            values.setdefault(text(run, "condition"), {})[run.get("seed")] = value
    first, *others = values.values() or [{}]
    for other in others:
        shared = [other[seed] - first[seed] for seed in other if seed in first]
        if len(shared) >= FEWEST_PAIRS and (spread := statistics.stdev(shared)) > 0:
            yield spread


def _alike(folder: Path, manifest: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    for run in items(manifest, "runs"):
        if not isinstance(run, dict):
            return False
        other = load_tables(folder / text(run, "config"))
        return all(nested(other, t).get(k) == nested(config, t).get(k) for t, k in DECISIVE)
    return False
