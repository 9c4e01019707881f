"""Conditions one by one: a table, their outcomes seed by seed, and slopes between them."""

from __future__ import annotations

from typing import Any

import numpy as np

from retrain.analysis.page.markup import MISSING, chart, folded, name, table
from retrain.analysis.page.section import Section
from retrain.analysis.page.tracks import rounded
from retrain.analysis.page.verdicts import troubles
from retrain.analysis.records import CampaignRecord
from retrain.analysis.series import SeriesReader
from retrain.analysis.statistics import Contrast, contrast_of_differences
from retrain.analysis.summary import Comparison, ConditionSummary
from retrain.analysis.webpage import safe
from retrain.analysis.words import Unit, duration

SEEDS_IN_TABLE = 60
COMPARE = (
    "Compare conditions by the paired differences above: seeds shift all conditions together, so "
    "these bars are wider than what a comparison rests on."
)


def condition_section(
    campaign: CampaignRecord, comparison: Comparison, reader: SeriesReader
) -> Section:
    settings = comparison.settings
    unit = settings.unit
    html = _table(campaign, comparison, reader)
    if comparison.done:
        scored = [_outcome(condition, comparison) for condition in comparison.conditions]
        finding = f"{settings.words}, seed by seed. " + " ".join(
            f"{condition.label}: mean {unit.plain(mean.mean_difference)} of {mean.n} runs."
            for condition, mean in zip(comparison.conditions, scored, strict=True)
            if mean.mean_difference is not None
        )
        diverged = any(contrast.floored for contrast in comparison.contrasts)
        html += (
            f"<figure><h3>Outcomes</h3>{chart('outcomes', finding)}<figcaption>"
            f"{_judged(comparison)}: a dot is one seed's run, the large mark and its bar the mean "
            f"with its {100 * comparison.confidence:g} % t interval. "
            + ("A hollow dot at the edge is a run that diverged. " if diverged else "")
            + (COMPARE if comparison.contrasts else "")
            + "</figcaption></figure>"
        )
        if comparison.contrasts:
            html += (
                "<figure><h3>Seed by seed</h3>"
                f"{chart('slopes', _slopes_finding(comparison), kind='multiples')}<figcaption>"
                "A line is one seed, from its run of the one condition to its run of the other; "
                "the thick line is the mean.</figcaption></figure>"
            )
        html += folded("Numbers of each seed", _by_seed(comparison))
    return Section("conditions", "Conditions", html, _data(comparison))


def _judged(comparison: Comparison) -> str:
    words = comparison.settings.words
    unit = " in %" if comparison.settings.metric != "reward" else ""
    return safe(words[:1].upper() + words[1:] + unit)


def _table(campaign: CampaignRecord, comparison: Comparison, reader: SeriesReader) -> str:
    settings, conditions = comparison.settings, comparison.conditions
    greedy = any(c.greedy_after is not None for c in conditions)
    accuracy = any(c.after is not None for c in conditions)
    points = Unit()
    plain = settings.metric == "accuracy" and settings.summary == "final" and settings.window == 1
    head = ["condition", "runs done"]
    head += ["before", "after"] if accuracy else []
    head += ["greedy after"] if greedy else []
    head += [] if plain and accuracy else [safe(settings.words)]
    head += ["tokens a run", "training a run"]
    rows = []
    for index, condition in enumerate(conditions):
        fate = troubles(condition)
        label = name(condition.label, index)
        if condition.label == comparison.baseline and len(conditions) > 1:
            label += " <small>baseline</small>"
        done = f"{condition.done}/{condition.planned}"
        cells = [label, done + (f' <small class="bad">{fate}</small>' if fate else "")]
        if accuracy:
            cells += [_plain(points, condition.before), _plain(points, condition.after)]
        if greedy:
            cells.append(_plain(points, condition.greedy_after))
        if not (plain and accuracy):
            cells.append(_plain(settings.unit, condition.value))
        rows.append(cells + _cost(campaign, condition, reader))
    caption = "Means over finished runs" + ("; accuracies in %" if accuracy else "")
    return table(head, rows, caption=caption)


def _plain(unit: Unit, value: float | None) -> str:
    return unit.plain(value, MISSING)


def _cost(campaign: CampaignRecord, condition: ConditionSummary, reader: SeriesReader) -> list[str]:
    series = [reader.read(run) for run in campaign.of(condition.label) if run.state == "done"]
    spent = [(float(one.tokens[-1]), float(one.seconds[-1])) for one in series if one.tokens.size]
    if not spent:
        return [MISSING, MISSING]
    tokens, seconds = (sum(column) / len(spent) for column in zip(*spent, strict=True))
    return [_count(tokens), duration(seconds)]


def _count(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.0f}"


def _outcome(condition: ConditionSummary, comparison: Comparison) -> Contrast:
    """The mean of what its runs score, with its t interval."""
    values = [value for value in condition.scored.values() if value is not None]
    return contrast_of_differences(values, comparison.confidence)


def _slopes_finding(comparison: Comparison) -> str:
    return "Each seed from one condition to the other. " + " ".join(
        f"{contrast.treatment} is higher than {contrast.baseline} under "
        f"{contrast.judgement.paired.wins} of {contrast.judgement.paired.contrast.n} seeds."
        for contrast in comparison.contrasts
    )


def _by_seed(comparison: Comparison) -> str:
    unit, seeds = comparison.settings.unit, comparison.seeds[:SEEDS_IN_TABLE]
    rows = []
    for index, condition in enumerate(comparison.conditions):
        cells = [name(condition.label, index)]
        for seed in seeds:
            value = condition.scored.get(seed)
            floored = value is not None and condition.values.get(seed) is None
            cells.append(_plain(unit, value) + ("*" if floored else ""))
        rows.append(cells)
    caption = f"{_judged(comparison)} by seed; {MISSING} has no result, * diverged"
    if len(comparison.seeds) > len(seeds):
        caption += f"; the first {len(seeds)} of {len(comparison.seeds)} seeds"
    return table(["condition", *(str(seed) for seed in seeds)], rows, caption=caption)


def _data(comparison: Comparison) -> dict[str, Any]:
    """`o`: by condition its seeds' scores, whether each is the floor, and mean, low, high;
    `pairs`: (treatment, baseline) of the slopes."""
    scale = comparison.settings.unit.scale
    labels = [condition.label for condition in comparison.conditions]
    outcomes = []
    for condition in comparison.conditions:
        scored = {s: v for s, v in condition.scored.items() if v is not None}
        mean = _outcome(condition, comparison)
        numbers = np.asarray([mean.mean_difference, mean.low, mean.high], dtype=np.float64)
        outcomes.append(
            {
                "seeds": list(scored),
                "v": rounded(scale * np.asarray(list(scored.values()), dtype=np.float64)),
                "floor": [int(condition.values.get(seed) is None) for seed in scored],
                "m": rounded(scale * numbers),
            }
        )
    pairs = [(labels.index(c.treatment), labels.index(c.baseline)) for c in comparison.contrasts]
    percent = "%" if comparison.settings.metric != "reward" else ""
    return {"unit": percent, "o": outcomes, "pairs": pairs}
