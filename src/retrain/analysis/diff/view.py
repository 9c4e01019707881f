"""The terminal view of two runs or two conditions."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, Group, RenderableType
from rich.text import Text

from retrain.analysis.diff.compare import Comparison
from retrain.analysis.diff.cost import Cost
from retrain.analysis.diff.curves import Curve
from retrain.analysis.diff.head import (
    configs_view,
    grid,
    identical_view,
    indented,
    sides_view,
    warnings_view,
)
from retrain.analysis.diff.intervals import Block, Row, interval_lines, unit_of
from retrain.analysis.words import duration, plural

NEGLIGIBLE_KL = 1e-8
"""In the first update of a batch the policy is the sampler: what is left is rounding."""

LEAST_TIME = 0.01
"""Seconds below which a time is not worth a number."""

COSTS = {
    "steps": "steps",
    "tokens": "completion tokens",
    "seconds": "time of the steps",
    "sampling_seconds": "  sampling",
    "reward_seconds": "  rewards",
    "update_seconds": "  updates",
    "evaluation_seconds": "  evaluations",
    "seconds_a_step": "time a step, without evaluations",
    "peak_memory_mb": "peak memory",
}


def comparison_view(comparison: Comparison, console: Console) -> RenderableType:
    """Everything about two runs or two conditions, in at most `console.width` columns."""
    blocks = [
        sides_view(comparison.match),
        configs_view(comparison.configs),
        _ground(comparison),
        identical_view(comparison.sameness),
        _curves(comparison, console),
        _costs(comparison),
    ]
    return spaced(block for block in blocks if block is not None)


def _ground(comparison: Comparison) -> RenderableType:
    ground = comparison.ground
    named = {
        "model": ground.same_model,
        "task": ground.same_task,
        "reward": ground.same_reward,
        "held-out problems": ground.same_held_out,
    }
    same = [name for name, value in named.items() if value]
    unknown = [name for name, value in named.items() if value is None]
    parts = [f"same {', '.join(same)}"] if same else []
    parts += [f"unknown: {', '.join(unknown)}"] if unknown else []
    style = "bold" if ground.comparable else "bold red"
    text = f": {ground.verdict}; {'; '.join(parts)}".rstrip("; ")
    return Group(Text.assemble(("Comparable", style), text), *warnings_view(ground.warnings))


def _curves(comparison: Comparison, console: Console) -> RenderableType | None:
    if comparison.identical or not comparison.match.pairs:
        return None
    shown = [curve for curve in comparison.curves if not _is_nothing(curve)]
    if not shown:
        return Text("No step in common yet: nothing to compare.", style="dim")
    lines = interval_lines([block_of(curve) for curve in shown], console)
    notes = [note] if (note := _final(comparison.curve("accuracy"))) else []
    notes.append("A range of steps is the mean over them.")
    if comparison.match.kind == "conditions" and len(comparison.match.pairs) > 1:
        notes.append(
            "Each 95 % t interval is for its own line alone, not corrected for looking at many."
        )
    return Group(*lines, *(Text(note, style="dim") for note in notes))


def block_of(curve: Curve) -> Block:
    points = curve.shown
    unit, behind = unit_of(curve.metric, [value for p in points for value in (p.a, p.b)])
    rows = [
        Row(str(p.first) if p.first == p.last else f"{p.first}-{p.last}", p.a, p.b, p.contrast)
        for p in points
    ]
    return Block(f"{curve.title}{behind}", rows, unit)


def _is_nothing(curve: Curve) -> bool:
    largest = max(max(abs(point.a), abs(point.b)) for point in curve.points)
    if curve.metric == "max_token_hit_rate":
        return largest == 0
    return curve.metric == "kl_to_sampler" and largest < NEGLIGIBLE_KL


def _final(accuracy: Curve | None) -> str:
    if accuracy is None or accuracy.final is None:
        return ""
    final = accuracy.final
    text = (
        f"Held-out accuracy after {accuracy.points[-1].last} steps: B is higher under "
        f"{final.wins} of {plural(final.contrast.n, 'seed')}, lower under {final.losses}"
    )
    if final.p_sign_flip is not None:
        text += f"; sign-flip p = {final.p_sign_flip:.2g} (this comparison alone)"
    if final.correlation is not None:
        text += f"; correlation over seeds {final.correlation:+.2f}"
    return text + "."


def _costs(comparison: Comparison) -> RenderableType | None:
    costs, reached = comparison.costs, comparison.reached
    known = [cost for cost in costs.costs if cost.a is not None]
    if not known:
        return None
    what = "a whole run" if costs.whole else "the steps that both have"
    mean = f", mean over {costs.pairs} pairs" if costs.pairs > 1 else ""
    table = grid(f"Cost of {what}{mean}", "A", "B", "B / A", numbers=True)
    table.columns[0].header_style = "bold"
    for cost in known:
        table.add_row(
            COSTS[cost.name], amount(cost.name, cost.a), amount(cost.name, cost.b), ratio(cost)
        )
    if reached is not None:
        a, b = reached.a, reached.b
        of = f" ({reached.pairs} pairs)" if reached.pairs < costs.pairs else ""
        table.add_row(f"until {100 * reached.accuracy:.1f} % held-out accuracy{of}")
        rows = [
            ("  steps", "steps", float(a.step), float(b.step)),
            ("  completion tokens", "tokens", a.tokens, b.tokens),
            ("  time of the steps", "seconds", a.seconds, b.seconds),
        ]
        for title, name, x, y in rows:
            table.add_row(title, amount(name, x), amount(name, y), ratio(Cost(name, x, y)))
    note = Text("  Times also tell what else the machine was doing.", style="dim")
    return Group(indented(table), note)


def ratio(cost: Cost) -> str:
    """B over A: `1.04`."""
    return "-" if cost.ratio is None else f"{cost.ratio:.2f}"


def amount(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name == "peak_memory_mb":
        return f"{value:,.0f} MB"
    if "seconds" in name and 0 < value < LEAST_TIME:
        return f"<{LEAST_TIME} s"
    return duration(value) if "seconds" in name else f"{value:,.0f}"


def spaced(blocks: Iterable[RenderableType]) -> Group:
    parts: list[RenderableType] = []
    for block in blocks:
        parts += [block, Text()]
    return Group(*parts[:-1])
