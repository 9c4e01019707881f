"""The closing table of a campaign, for the terminal and for `report.md`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from retrain.analysis.records import CampaignRecord, read_campaign
from retrain.analysis.statistics import Contrast, t_quantile
from retrain.analysis.summary import REWARD_STEPS, Comparison, ConditionSummary, compare
from retrain.analysis.words import plural
from retrain.errors import InputError

BASELINE = "(baseline)"
MARK = "*"
"""Marks a condition with runs that ended without a result."""
FEW_SEEDS = 5


def closing_table(campaign_dir: Path) -> Table:
    """Conditions with their runs, their accuracy before and after, and how they differ.

    The difference is to the first condition, in percentage points, paired by seed, with a 95 % t
    interval. Runs that ended without a result are marked and explained below the table, which
    fits into 80 columns.
    """
    comparison = compare(load_campaign(campaign_dir))
    headers, rows = table_cells(comparison)
    table = Table(
        box=SIMPLE_HEAD,
        title=table_title(comparison),
        title_justify="left",
        title_style="bold",
        caption="\n".join(table_notes(comparison)) or None,
        caption_justify="left",
        caption_style="",
        padding=(0, 1),
        pad_edge=False,
    )
    for index, header in enumerate(headers):
        table.add_column(
            header,
            justify="left" if index in {0, len(headers) - 1} else "right",
            overflow="fold",
            no_wrap=index > 0,
            vertical="bottom",
        )
    for condition, cells in zip(comparison.conditions, rows, strict=True):
        style = "yellow" if condition.troubled else ""
        table.add_row(*(Text(cell, style=style if i < 2 else "") for i, cell in enumerate(cells)))
    return table


def load_campaign(folder: Path) -> CampaignRecord:
    """The campaign in `folder`, or an error that says what is wrong with it."""
    campaign = read_campaign(folder)
    if campaign is None:
        raise InputError(f"{folder} holds no campaign: its manifest.json is missing or damaged")
    return campaign


def table_cells(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Headers and rows as plain text."""
    accuracy = comparison.metric == "accuracy"
    greedy = accuracy and any(c.greedy_after is not None for c in comparison.conditions)
    if accuracy:
        headers = ["condition", "runs", "before", "after", *(["greedy\nafter"] if greedy else [])]
    else:
        headers = ["condition", "runs", "mean reward"]
    rows = []
    for condition in comparison.conditions:
        mark = MARK if condition.troubled else ""
        cells = [condition.label, f"{condition.done}/{condition.planned}{mark}"]
        if accuracy:
            measured = [condition.before, condition.after]
            measured += [condition.greedy_after] if greedy else []
            cells += ["-" if value is None else f"{100 * value:.1f}" for value in measured]
        else:
            cells.append("-" if condition.after is None else f"{condition.after:.3f}")
        rows.append([*cells, difference(condition.contrast, accuracy)])
    return [*headers, "difference [95 % CI]"], rows


def difference(contrast: Contrast | None, as_points: bool) -> str:
    """`+4.1 [-1.9, +10.1]`, in percentage points or in units of the reward."""
    if contrast is None:
        return BASELINE
    if contrast.mean_difference is None:
        return "-"
    scale, digits = (100.0, 1) if as_points else (1.0, 3)
    center = _signed(scale * contrast.mean_difference, digits)
    if contrast.all_equal:
        return f"{center} (all pairs equal)"
    if contrast.low is None or contrast.high is None:
        return f"{center} (one pair)"
    return f"{center} [{_signed(scale * contrast.low, digits)}, " + (
        f"{_signed(scale * contrast.high, digits)}]"
    )


def table_title(comparison: Comparison) -> str:
    """What the table's numbers are."""
    if comparison.metric == "accuracy":
        return "Held-out accuracy in %, mean over seeds"
    return f"Mean reward of the last {REWARD_STEPS} steps (no held-out evaluation), mean over seeds"


def table_notes(comparison: Comparison) -> list[str]:
    """What a reader must know to read the table: short lines for below it."""
    notes: list[str] = []
    for condition in comparison.conditions:
        if condition.troubled:
            counts = ", ".join(f"{count} {state}" for state, count in condition.troubled.items())
            notes.append(f"{MARK} {condition.label}: {counts}; left out")
    unfinished = comparison.planned - sum(
        c.done + sum(c.troubled.values()) for c in comparison.conditions
    )
    if unfinished:
        notes.append(f"{plural(unfinished, 'run')} of {comparison.planned} not finished yet.")
    if not comparison.done:
        return [*notes, "No run has finished: there is nothing to compare."]
    if len(comparison.conditions) > 1:
        unit = " in points" if comparison.metric == "accuracy" else ""
        notes.append(f"Differences{unit} to {comparison.baseline}, paired by seed.")
    incomplete = [c for c in comparison.conditions if _lost_pairs(c, comparison)]
    if incomplete:
        whole = plural(len(comparison.seeds), "pair")
        if len(incomplete) <= 3:
            pairs = ", ".join(f"{c.label} {c.contrast.n}" for c in incomplete if c.contrast)
            notes.append(f"Fewer than {whole} of seeds: {pairs}.")
        else:
            notes.append(
                f"Fewer than {whole} of seeds in {len(incomplete)} differences; the fewest: "
                f"{min(comparison.pairs)}."
            )
    if 1 in comparison.pairs:
        notes.append("One pair of seeds gives no interval: the difference may be chance.")
    return notes


def cautions(comparison: Comparison) -> list[str]:
    """How far the numbers can be trusted, in whole sentences for the report."""
    notes: list[str] = []
    pairs = [n for n in comparison.pairs if n > 0]
    if not pairs:
        return notes
    fewest = min(pairs)
    if fewest == 1:
        notes.append(
            "With one seed there is no interval: how much of a difference is chance cannot be "
            "told. Add seeds (`[campaign] seeds`) before you believe any of them."
        )
    elif fewest < FEW_SEEDS:
        notes.append(
            f"With {fewest} seeds a 95 % interval is wide, because the spread between seeds is "
            f"itself hardly known: it reaches {_t(fewest):.1f} standard errors to each side, with "
            f"8 seeds {_t(8):.1f}. An interval that contains 0 does not say that the conditions "
            "are equal, only that this campaign cannot tell them apart."
        )
    else:
        notes.append(
            "If the campaign were repeated with other seeds many times, 95 % of such intervals "
            "would contain the true difference. An interval that contains 0 does not say that the "
            "conditions are equal."
        )
    if len(pairs) > 1:
        notes.append(
            f"There are {len(pairs)} comparisons, each with its own 95 % interval and none "
            "widened for their number: the more there are, the likelier one misses 0 by chance."
        )
    if any(c.contrast is not None and c.contrast.all_equal for c in comparison.conditions):
        notes.append(
            "Where every seed differs by exactly the same amount the interval has no width. With "
            "so few numbers that is coincidence, not certainty."
        )
    if any(condition.troubled for condition in comparison.conditions):
        notes.append(
            "Means and differences are over finished runs only. If a condition fails or diverges "
            "more often than another, that is a difference too, and this table does not count it."
        )
    return notes


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the columns between the first and the last are aligned right."""
    last = len(headers) - 1
    rule = ["---:" if 0 < index < last else "---" for index in range(len(headers))]
    lines = [headers, rule, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _lost_pairs(condition: ConditionSummary, comparison: Comparison) -> bool:
    return condition.contrast is not None and condition.contrast.n < len(comparison.seeds)


def _signed(value: float, digits: int) -> str:
    # Rounded first: -0.04 would otherwise become "-0.0".
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def _t(pairs: int) -> float:
    return t_quantile(0.975, pairs - 1)
