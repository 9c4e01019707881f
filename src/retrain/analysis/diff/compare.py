"""Everything that `retrain diff` knows about two sides, and the same as a JSON document."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from retrain.analysis.diff.comparable import Comparable, compare_ground
from retrain.analysis.diff.configs import ConfigDifferences, compare_configs, read_config
from retrain.analysis.diff.cost import Costs, Reached, compare_costs, compare_reach
from retrain.analysis.diff.curves import Curve, Point, compare_curves
from retrain.analysis.diff.identical import Sameness, compare_rows
from retrain.analysis.diff.sides import Match, Plan, Side
from retrain.analysis.records import RunView
from retrain.analysis.series import SeriesReader

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs, or two conditions, side by side."""

    match: Match
    configs: ConfigDifferences
    ground: Comparable
    sameness: tuple[Sameness, ...]
    """Of the pairs that should agree bit for bit; empty when none should."""
    identical: bool
    """No number of any pair differs; of unlike configs, no reward and no gradient."""
    curves: tuple[Curve, ...]
    costs: Costs
    reached: Reached | None

    def curve(self, metric: str) -> Curve | None:
        return next((curve for curve in self.curves if curve.metric == metric), None)


def compare(match: Match) -> Comparison:
    """Read the files of both sides and compare them. Nothing is raised for what they hold."""
    reader = SeriesReader()
    runs = (*match.a.runs, *match.b.runs)
    configs = {run.folder: read_config(run) for run in runs}
    differences = compare_configs(match, configs)
    series = [(pair, reader.read(pair.a), reader.read(pair.b)) for pair in match.pairs]
    compared = [
        compare_rows(pair, configs[pair.a.folder], configs[pair.b.folder]) for pair in match.pairs
    ]
    identical = bool(compared) and all(
        each is not None and each.steps and each.parting is None for each in compared
    )
    alike = not identical and differences.same is False and bool(series)
    alike = alike and all(pair.seed is not None and a.learnt_as(b) for pair, a, b in series)
    return Comparison(
        match=match,
        configs=differences,
        ground=compare_ground(match, differences, identical, alike),
        sameness=tuple(each for each in compared if each is not None),
        identical=identical or alike,
        curves=compare_curves(series),
        costs=compare_costs(series),
        reached=compare_reach(series),
    )


def document(plan: Plan, comparisons: tuple[Comparison, ...]) -> dict[str, Any]:
    """What `--json` prints (docs/diff.md)."""
    return {
        "schema": SCHEMA,
        "kind": plan.kind,
        "a": plan.a,
        "b": plan.b,
        "only_a": list(plan.only_a),
        "only_b": list(plan.only_b),
        "comparisons": [_comparison(comparison) for comparison in comparisons],
    }


def _comparison(comparison: Comparison) -> dict[str, Any]:
    match, reached = comparison.match, comparison.reached
    return {
        "a": _side(match.a),
        "b": _side(match.b),
        "pairs": [
            {"name": pair.name, "seed": pair.seed, "a": pair.a.name, "b": pair.b.name}
            for pair in match.pairs
        ],
        "seeds_only_a": list(match.only_a),
        "seeds_only_b": list(match.only_b),
        "config": {"same": comparison.configs.same, **asdict(comparison.configs)},
        "comparable": {
            "comparable": comparison.ground.comparable,
            **asdict(comparison.ground),
        },
        "identical": comparison.identical,
        "bit_for_bit": [asdict(sameness) for sameness in comparison.sameness],
        "curves": [_curve(curve) for curve in comparison.curves],
        "cost": {
            "whole": comparison.costs.whole,
            "pairs": comparison.costs.pairs,
            "costs": [
                {"name": cost.name, "a": cost.a, "b": cost.b, "ratio": cost.ratio}
                for cost in comparison.costs.costs
            ],
        },
        "reached": None if reached is None else asdict(reached),
    }


def _side(side: Side) -> dict[str, Any]:
    return {
        "name": side.name,
        "condition": side.condition,
        "runs": [_run(run) for run in side.runs],
    }


def _run(run: RunView) -> dict[str, Any]:
    return {
        "name": run.name,
        "folder": str(run.folder),
        "seed": run.seed,
        "state": run.state,
        "step": run.step,
        "max_steps": run.max_steps,
        "device": run.device,
        "versions": dict(run.versions),
    }


def _curve(curve: Curve) -> dict[str, Any]:
    return {
        "metric": curve.metric,
        "points": [_point(point) for point in curve.points],
        "final": None if curve.final is None else asdict(curve.final),
    }


def _point(point: Point) -> dict[str, Any]:
    contrast = point.contrast
    return {
        "first": point.first,
        "last": point.last,
        "a": point.a,
        "b": point.b,
        "difference": contrast.mean_difference,
        "low": contrast.low,
        "high": contrast.high,
        "confidence": contrast.confidence,
        "pairs": contrast.n,
        "values": {name: list(pair) for name, pair in point.values.items()},
    }
