"""The terminal view of two campaigns: a line a condition."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console, Group, RenderableType
from rich.text import Text

from retrain.analysis.diff.compare import Comparison
from retrain.analysis.diff.configs import Difference
from retrain.analysis.diff.curves import TRAINING
from retrain.analysis.diff.head import (
    configs_view,
    grid,
    identical_view,
    indented,
    warnings_view,
)
from retrain.analysis.diff.intervals import Block, Row, interval_lines, unit_of
from retrain.analysis.diff.sides import Plan
from retrain.analysis.diff.view import amount, ratio, spaced
from retrain.analysis.samples.look import one_line
from retrain.analysis.words import plural

METRICS = ("accuracy", "greedy_accuracy", "mean_reward")
"""Of each condition, the last place of these."""
COSTS = ("tokens", "seconds", "peak_memory_mb")
LONGEST_LABEL = 24


def campaigns_view(
    plan: Plan, comparisons: Sequence[Comparison], console: Console
) -> RenderableType:
    """Two campaigns of one design, condition by condition."""
    sameness = [
        replace(each, pair=f"{one_line(comparison.match.a.condition)}, {each.pair}")
        for comparison in comparisons
        for each in comparison.sameness
    ]
    example = comparisons[0].match
    words = ("retrain", "diff", example.a.name, example.b.name)
    hint = f"more of one condition: {' '.join(shlex.quote(word) for word in words)}"
    blocks = [
        _sides(plan, comparisons),
        _configs(comparisons),
        _ground(comparisons),
        identical_view(sameness),
        _ends(comparisons, console),
        _costs(comparisons),
        Text(hint, style="dim", overflow="fold"),
    ]
    return spaced(block for block in blocks if block is not None)


def _sides(plan: Plan, comparisons: Sequence[Comparison]) -> RenderableType:
    shared = f"   {plural(len(comparisons), 'condition')} in both"
    for name, alone in (("A", plan.only_a), ("B", plan.only_b)):
        if alone:
            shared += f"; only {name} has {', '.join(one_line(label) for label in alone)}"
    return Group(
        Text.assemble(("A  ", "bold"), one_line(plan.a), overflow="fold"),
        Text.assemble(("B  ", "bold"), one_line(plan.b), overflow="fold"),
        Text(shared, style="dim"),
    )


def _configs(comparisons: Sequence[Comparison]) -> RenderableType:
    """Conditions that differ alike are told together."""

    def told(differences: Sequence[Difference]) -> str:
        return repr([(each.key, each.a, each.b) for each in differences])

    groups: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        configs = comparison.configs
        key = told(configs.decisive) + told(configs.bookkeeping) + told(configs.environment)
        groups.setdefault(f"{key}{configs.resumed}{configs.same}", []).append(comparison)
    views: list[RenderableType] = []
    for members in groups.values():
        if len(groups) > 1:
            views.append(Text(f"{_labels(members)}:", style="dim"))
        views.append(configs_view(members[0].configs))
    return Group(*views)


def _ground(comparisons: Sequence[Comparison]) -> RenderableType:
    against = [comparison for comparison in comparisons if not comparison.ground.comparable]
    line = Text("Comparable", style="bold red" if against else "bold")
    where = f" ({_labels(against)})" if len(against) < len(comparisons) else ""
    verdicts = {comparison.ground.verdict for comparison in comparisons}
    known = "yes" if verdicts == {"yes"} else "as far as known"
    line.append(f": no{where}" if against else f": {known}", style="not bold")
    said: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        for warning in comparison.ground.warnings:
            said.setdefault(warning, []).append(comparison)
    return Group(
        line,
        *warnings_view(
            warning if len(members) == len(comparisons) else f"{warning} ({_labels(members)})"
            for warning, members in said.items()
        ),
    )


def _ends(comparisons: Sequence[Comparison], console: Console) -> RenderableType | None:
    if all(comparison.identical or not comparison.match.pairs for comparison in comparisons):
        return None
    blocks = []
    for metric in METRICS:
        found = [
            (comparison, curve, curve.points[-1])
            for comparison in comparisons
            if (curve := comparison.curve(metric)) is not None
        ]
        if not found:
            continue
        unit, behind = unit_of(metric, [value for *_, p in found for value in (p.a, p.b)])
        lasts = {(point.first, point.last) for *_, point in found}
        at = ""
        if len(lasts) == 1:
            first, last = lasts.pop()
            steps = f", steps {first}-{last}" if first < last else f", step {last}"
            at = steps if metric in TRAINING else f" after {last} steps"
        rows = [
            Row(short(comparison.match.a.condition), point.a, point.b, point.contrast)
            for comparison, _, point in found
        ]
        blocks.append(Block(f"{found[0][1].title}{at}{behind}", rows, unit))
    if not blocks:
        return Text("No step in common yet: nothing to compare.", style="dim")
    return Group(*interval_lines(blocks, console, "condition"))


def _costs(comparisons: Sequence[Comparison]) -> RenderableType | None:
    table = grid("Cost of a run, A and B / A", "tokens", "time", "peak memory", numbers=True)
    partial = []
    for comparison in comparisons:
        costs = {cost.name: cost for cost in comparison.costs.costs}
        if costs["steps"].a is None:
            continue
        if not comparison.costs.whole:
            partial.append(comparison)
        cells = [f"{amount(n, costs[n].a)}  {ratio(costs[n]):>5}" for n in COSTS]
        table.add_row(Text(short(comparison.match.a.condition)), *cells)
    if not table.row_count:
        return None
    note = Text(f"Not all runs are done: steps that both have ({_labels(partial)}).", style="dim")
    return Group(indented(table), *([note] if partial else []))


def _labels(comparisons: Sequence[Comparison]) -> str:
    return ", ".join(one_line(comparison.match.a.condition) for comparison in comparisons)


def short(label: str) -> str:
    """A label that leaves room for numbers: what a long one begins and ends with tells it apart."""
    label = one_line(label)
    half = LONGEST_LABEL // 2
    return label if len(label) <= LONGEST_LABEL else f"{label[: half - 1]}…{label[-half:]}"
