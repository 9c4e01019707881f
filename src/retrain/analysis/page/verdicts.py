"""The planned comparisons: a table of verdicts with the forest plot."""

from __future__ import annotations

from typing import Any

import numpy as np

from retrain.analysis.page.markup import (
    MISSING,
    chart,
    interval,
    listed,
    minus,
    p_value,
    swatch,
    table,
)
from retrain.analysis.page.section import Section
from retrain.analysis.page.tracks import rounded
from retrain.analysis.summary import Comparison, ConditionSummary, PlannedContrast
from retrain.analysis.verdict import Verdict
from retrain.analysis.webpage import safe
from retrain.analysis.words import plural

SIGNS = {"better": "▲", "worse": "▼", "equivalent": "=", "undecided": "?", "dropped": "✕"}
CORRECTIONS = {
    "maxT": "step-down maxT (Westfall and Young)",
    "Holm": "Holm's method",
    "none": "no correction, there is one comparison",
}


def verdict_section(comparison: Comparison) -> Section:
    """The table and the plot beside it; says why where there is nothing to compare."""
    if not comparison.contrasts:
        text = "There is one condition: nothing is compared."
        if len(comparison.conditions) > 1:
            text = "No comparison was planned among these conditions."
        return Section("verdicts", "Verdicts", f'<p class="empty">{text}</p>')
    unit = comparison.settings.unit
    head = ["comparison", "verdict", "", _header(comparison), "p", "seeds<br>won", "r"]
    head.append("detectable")
    rows = []
    for contrast in comparison.contrasts:
        paired = contrast.judgement.paired
        wins = f"{paired.wins}/{paired.contrast.n}" if paired.contrast.n else MISSING
        rows.append(
            [
                _who(contrast, comparison),
                badge(contrast.judgement.verdict),
                "",
                interval(paired.contrast, unit) + _complete(contrast, comparison),
                p_value(contrast.judgement.p),
                wins + (f" <small>{paired.ties} tied</small>" if paired.ties else ""),
                MISSING if paired.correlation is None else minus(f"{paired.correlation:.2f}"),
                MISSING if paired.detectable is None else unit.plain(paired.detectable),
            ]
        )
    html = (
        table(head, rows, kind="verdicts", text=frozenset({1, 2}))
        + (_forest(comparison) if any(c.differences for c in comparison.contrasts) else "")
        + _notes(comparison)
    )
    return Section("verdicts", "Verdicts", html, _data(comparison))


def _forest(comparison: Comparison) -> str:
    finding = "Forest plot of the differences. " + " ".join(
        f"{contrast.treatment} against {contrast.baseline}: {contrast.judgement.verdict.text}."
        for contrast in comparison.contrasts
    )
    return (
        f"<figure>{chart('forest', finding)}<figcaption>{_legend(comparison)}</figcaption></figure>"
    )


def badge(verdict: Verdict) -> str:
    """The verdict with its sign. Of a clear one the word alone: its numbers have columns."""
    word, _, rest = verdict.text.partition(":")
    if verdict.kind in {"better", "worse"}:
        word, rest = verdict.kind, ""
    elif not rest:
        word, bracket, rest = verdict.text.partition(" (")
        rest = f"({rest}" if bracket else ""
    sign = SIGNS.get(verdict.kind, "")
    more = f"<small>{safe(rest)}</small>" if rest else ""
    return (
        f'<span class="verdict {safe(verdict.kind)}"><b><i aria-hidden="true">{sign}</i> '
        f"{safe(word)}</b></span>{more}"
    )


def _header(comparison: Comparison) -> str:
    unit = comparison.settings.unit
    name = f", {unit.name}" if unit.name else ""
    return f"difference{name}<br>[{100 * comparison.confidence:g} % CI]"


def _who(contrast: PlannedContrast, comparison: Comparison) -> str:
    """Both sides, each with its runs that have no result: a verdict is read beside them."""
    place = [c.label for c in comparison.conditions].index(contrast.treatment)
    own, other = (
        f'<small class="fate bad">{fate}</small>' if fate else ""
        for fate in (
            troubles(comparison.condition(contrast.treatment)),
            troubles(comparison.condition(contrast.baseline)),
        )
    )
    return (
        f'<span class="name">{swatch(place)}{safe(contrast.treatment)}</span>{own}'
        f'<small class="versus">vs {safe(contrast.baseline)}</small>{other}'
    )


def _complete(contrast: PlannedContrast, comparison: Comparison) -> str:
    """The difference without the runs that diverged, where there are any."""
    if not contrast.floored:
        return ""
    pairs = plural(contrast.complete.n, "complete pair")
    return (
        f'<small class="complete">{pairs}: '
        f"{interval(contrast.complete, comparison.settings.unit)}</small>"
    )


def troubles(condition: ConditionSummary) -> str:
    """`1 failed, 2 diverged`; empty when all is well."""
    return ", ".join(f"{count} {safe(state)}" for state, count in condition.troubled.items())


def _legend(comparison: Comparison) -> str:
    settings = comparison.settings
    name = f" in {settings.unit.name}" if settings.unit.name else ""
    return (
        f"Difference to the other condition{name}: a mark and a bar are the mean over seeds and its"
        f" {100 * comparison.confidence:g} % interval, a small dot is one seed, an arrow "
        "at the edge lies beyond the axis; the band is the "
        f"margin of {safe(settings.unit.size(settings.margin))}, within which differences do not "
        "matter."
    )


def _notes(comparison: Comparison) -> str:
    count = len(comparison.contrasts)
    method = comparison.contrasts[0].judgement.method
    after = f" after {CORRECTIONS[method]} over all {count} comparisons" if count > 1 else ""
    diverged = comparison.settings.unit.plain(comparison.settings.floor)
    lines = [
        *comparison.unlike,
        "Differences are paired by seed: both runs of a pair see the same problems and the same "
        "random numbers. The interval is a paired t interval, of each comparison by itself.",
        f"p: exact sign-flip test{after}. r: correlation of the two conditions over seeds; the "
        "higher it is, the more runs pairing saves. Detectable: the smallest difference that these "
        "seeds find with 80 % power.",
    ]
    if any(contrast.floored for contrast in comparison.contrasts):
        lines.append(
            f"A run that diverged counts with {diverged}, which was set beforehand (intention to "
            "treat); below it the same over the seeds under which both runs finished."
        )
    by_note: dict[str, list[str]] = {}
    for contrast in comparison.contrasts:
        for note in contrast.judgement.verdict.notes:
            by_note.setdefault(note, []).append(contrast.treatment)
    for note, labels in by_note.items():
        whom = "" if len(labels) == count else f"{', '.join(labels)}: "
        lines.append(f"{whom}{note}.")
    return listed(lines)


def _data(comparison: Comparison) -> dict[str, Any]:
    """Differences in the unit's scale; `d` are the seeds' differences."""
    settings = comparison.settings
    scale = settings.unit.scale
    labels = [condition.label for condition in comparison.conditions]
    rows = []
    for contrast in comparison.contrasts:
        whole = contrast.judgement.paired.contrast
        numbers = (whole.mean_difference, whole.low, whole.high)
        values = np.asarray(numbers, dtype=np.float64)
        differences = np.asarray(list(contrast.differences.values()), dtype=np.float64)
        rows.append(
            {
                "t": labels.index(contrast.treatment),
                "b": labels.index(contrast.baseline),
                "kind": contrast.judgement.verdict.kind,
                "m": rounded(np.round(scale * values, settings.unit.digits)),
                "seeds": list(contrast.differences),
                "d": rounded(scale * differences),
            }
        )
    return {"margin": scale * settings.margin, "digits": settings.unit.digits, "rows": rows}
