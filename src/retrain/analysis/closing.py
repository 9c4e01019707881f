"""The closing table of a campaign, for the terminal and for `report.md`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from retrain.analysis.records import CampaignRecord, read_campaign
from retrain.analysis.settings import ReportSettings
from retrain.analysis.statistics import Contrast, t_quantile
from retrain.analysis.summary import Comparison, ConditionSummary, PlannedContrast, compare
from retrain.analysis.words import Unit, plural
from retrain.errors import InputError

BASELINE = "(baseline)"
MARK = "*"
"""Marks a condition with runs that ended without a result."""
FEW_SEEDS = 5
NO_EVALUATION = " (no held-out evaluation)"
VERDICT_STYLES = {"better": "green", "worse": "red", "equivalent": "cyan", "dropped": "yellow"}


def closing_table(campaign_dir: Path) -> RenderableType:
    """What the terminal shows of a campaign that ended; see `closing`."""
    return closing(compare(load_campaign(campaign_dir)))


def closing(comparison: Comparison) -> RenderableType:
    """Conditions with their runs, their accuracy before and after, and how they differ, in 80
    columns; below it the verdict on each planned comparison.

    A difference is to the baseline, in the metric's unit, paired by seed, with a t interval. Runs
    that ended without a result are marked and explained.
    """
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
    return Group(table, *_verdicts(comparison))


def _verdicts(comparison: Comparison) -> list[RenderableType]:
    if not comparison.contrasts or not comparison.done:
        return []
    grid = Table.grid(padding=(0, 2))
    grid.add_column(overflow="fold", max_width=36)
    grid.add_column(overflow="fold")
    for contrast in comparison.contrasts:
        verdict = contrast.judgement.verdict
        label = contrast_name(contrast, comparison)
        grid.add_row(Text(label), Text(verdict.text, style=VERDICT_STYLES.get(verdict.kind, "")))
    lines: list[RenderableType] = [Text(), Text(verdicts_title(comparison), style="bold")]
    notes = shared_notes(comparison)
    return [*lines, Padding(grid, (0, 0, 0, 1)), *(Text(note) for note in notes)]


def contrast_name(contrast: PlannedContrast, comparison: Comparison) -> str:
    """`maxrl+gtpo`, with what it is compared with unless that is the baseline."""
    if contrast.baseline == comparison.baseline:
        return contrast.treatment
    return f"{contrast.treatment} vs {contrast.baseline}"


def verdicts_title(comparison: Comparison) -> str:
    """`Verdicts against grpo+none (margin 2 points, alpha 5 %, maxT over 4)`."""
    settings = comparison.settings
    against = {contrast.baseline for contrast in comparison.contrasts}
    to = f" against {comparison.baseline}" if against == {comparison.baseline} else ""
    method = comparison.contrasts[0].judgement.method
    corrected = f", {method} over {len(comparison.contrasts)}" if method != "none" else ""
    margin = settings.unit.size(settings.margin)
    return f"Verdicts{to} (margin {margin}, alpha {100 * settings.alpha:g} %{corrected})"


def shared_notes(comparison: Comparison) -> list[str]:
    """What has to be known beside the verdicts, each thing once with those it is about."""
    about: dict[str, list[str]] = {}
    for contrast in comparison.contrasts:
        for note in contrast.judgement.verdict.notes:
            about.setdefault(note, []).append(contrast_name(contrast, comparison))
    lines = list(comparison.unlike)
    for note, names in about.items():
        who = "" if len(names) == len(comparison.contrasts) else f"{', '.join(names)}: "
        lines.append(who + (note if who else note[0].upper() + note[1:]) + ".")
    if not comparison.recorded:
        lines.append("These settings were not recorded before the first run.")
    if comparison.pooled > 1:
        lines.append(
            f"The seeds of {comparison.pooled} campaigns are pooled; if the results of one decided "
            "that there would be another, p values are too small."
        )
    if comparison.added:
        lines.append(
            f"{plural(comparison.added, 'run')} joined the plan after others had begun; if their "
            "results decided that, p values are too small."
        )
    if comparison.changes:
        lines.append(f"Other settings than those recorded: {'; '.join(comparison.changes)}.")
    return lines


def load_campaign(folder: Path) -> CampaignRecord:
    """The campaign in `folder`, or an error that says what is wrong with it."""
    campaign = read_campaign(folder)
    if campaign is None:
        raise InputError(f"{folder} holds no campaign: its manifest.json is missing or damaged")
    return campaign


def table_cells(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Headers and rows as plain text."""
    settings, unit = comparison.settings, comparison.settings.unit
    accuracy = any(c.after is not None for c in comparison.conditions)
    greedy = accuracy and any(c.greedy_after is not None for c in comparison.conditions)
    headers = ["condition", "runs"]
    if accuracy or settings.metric != "reward":
        headers += ["before", "after", *(["greedy\nafter"] if greedy else [])]
    # The number that is judged has a column of its own unless it is one of these.
    own = settings.summary != "final" or settings.metric == "reward" or settings.window > 1
    headers += [_value_header(settings)] if own else []
    rows = []
    for condition in comparison.conditions:
        mark = MARK if condition.troubled else ""
        cells = [condition.label, f"{condition.done}/{condition.planned}{mark}"]
        if accuracy or settings.metric != "reward":
            measured = [condition.before, condition.after]
            measured += [condition.greedy_after] if greedy else []
            cells += ["-" if value is None else f"{100 * value:.1f}" for value in measured]
        cells += [unit.plain(condition.value)] if own else []
        shown = BASELINE if condition.contrast is None else difference(condition.contrast, unit)
        rows.append([*cells, shown])
    return [*headers, f"difference [{100 * comparison.confidence:g} % CI]"], rows


def _value_header(settings: ReportSettings) -> str:
    if settings.summary != "final":
        return "area by\n" + settings.summary.removeprefix("area_by_").removesuffix("s")
    if settings.metric == "reward":
        return "mean reward"
    return f"last {settings.window}"


def difference(contrast: Contrast, unit: Unit) -> str:
    """`+4.1 [-1.9, +10.1]`, in the metric's unit."""
    if contrast.mean_difference is None:
        return "-"
    center = unit.signed(contrast.mean_difference)
    if contrast.all_equal:
        return f"{center} (all pairs equal)"
    if contrast.low is None or contrast.high is None:
        return f"{center} (one pair)"
    return f"{center} [{unit.signed(contrast.low)}, {unit.signed(contrast.high)}]"


def table_title(comparison: Comparison) -> str:
    """What the table's numbers are."""
    settings = comparison.settings
    if settings.metric == "reward" and settings.summary == "final":
        none = "" if any(c.after is not None for c in comparison.conditions) else NO_EVALUATION
        return f"Mean reward of the last {settings.window} steps{none}, mean over seeds"
    return "Held-out accuracy in %, mean over seeds"


def table_notes(comparison: Comparison) -> list[str]:
    """What a reader must know to read the table: short lines for below it."""
    notes: list[str] = []
    for condition in comparison.conditions:
        if condition.troubled:
            counts = ", ".join(f"{count} {state}" for state, count in condition.troubled.items())
            fate = _fate(condition, comparison)
            notes.append(f"{MARK} {condition.label}: {counts}; {fate}")
    unfinished = comparison.planned - sum(
        c.done + sum(c.troubled.values()) for c in comparison.conditions
    )
    if unfinished:
        notes.append(f"{plural(unfinished, 'run')} of {comparison.planned} not finished yet.")
    if not comparison.done:
        return [*notes, "No run has finished: there is nothing to compare."]
    if len(comparison.conditions) > 1:
        unit = f" in {comparison.settings.unit.name}" if comparison.settings.unit.name else ""
        of = "" if comparison.settings.is_plain else f"of {comparison.settings.words} "
        notes.append(f"Differences{unit} {of}to {comparison.baseline}, paired by seed.")
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
    if len(comparison.contrasts) > 1:
        notes.append(
            f"Each interval is that of its own comparison. The verdicts rest on p values that are "
            f"corrected for all {len(comparison.contrasts)} planned comparisons together, so the "
            f"chance of any false 'better' or 'worse' is {100 * comparison.settings.alpha:g} %."
        )
    if any(c.contrast is not None and c.contrast.all_equal for c in comparison.conditions):
        notes.append(
            "Where every seed differs by exactly the same amount the interval has no width. With "
            "so few numbers that is coincidence, not certainty."
        )
    if any("diverged" in condition.troubled for condition in comparison.conditions):
        floor = comparison.settings.unit.plain(comparison.settings.floor)
        notes.append(
            "Means are over finished runs. In differences and verdicts a run that diverged scores "
            f"the floor of {floor} that was set before (intention to treat)."
        )
    if any(set(condition.troubled) - {"diverged"} for condition in comparison.conditions):
        notes.append(
            "A run that failed for another reason is missing, with its pair. If a condition fails "
            "more often than another, that is a difference too, and no verdict here counts it."
        )
    return notes


def markdown_table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    texts: frozenset[int] = frozenset(),
) -> str:
    """A Markdown table. The first and the last column and those in `texts` are words, the others
    numbers, aligned right."""
    words = {0, len(headers) - 1, *texts}
    rule = ["---" if index in words else "---:" for index in range(len(headers))]
    lines = [headers, rule, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _fate(condition: ConditionSummary, comparison: Comparison) -> str:
    """What becomes of its runs without a result."""
    if "diverged" not in condition.troubled:
        return "left out"
    floor = comparison.settings.unit.plain(comparison.settings.floor)
    others = set(condition.troubled) - {"diverged"}
    return f"diverged counts as {floor}" + (", others are left out" if others else "")


def _lost_pairs(condition: ConditionSummary, comparison: Comparison) -> bool:
    return condition.contrast is not None and condition.contrast.n < len(comparison.seeds)


def _t(pairs: int) -> float:
    return t_quantile(0.975, pairs - 1)
