"""What follows the figures: exploratory comparisons, runs without a result, the squeeze."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import replace
from html import escape

from retrain.analysis.page.markup import MISSING, folded, interval, name, p_value, table
from retrain.analysis.page.section import Section
from retrain.analysis.records import CampaignRecord, RunView
from retrain.analysis.series import SeriesReader
from retrain.analysis.settings import SummaryName
from retrain.analysis.squeezed import PICTURES, SQUEEZE_FOLDER, read_squeeze, squeeze_text
from retrain.analysis.statistics import mean, paired_contrast
from retrain.analysis.summary import Comparison, all_pairs
from retrain.analysis.values import run_values
from retrain.analysis.webpage import safe
from retrain.analysis.words import percent, plural
from retrain.output import visible

SHOWN_FAILURES = 60
FINE = frozenset({"done", "pending", "running"})
LARGEST_PICTURE = 400_000
"""Bytes of a picture that is put into the page."""
AREAS: Mapping[SummaryName, str] = {
    "area_by_step": "mean height of the curve by step",
    "area_by_tokens": "mean height of the curve by tokens",
}


def exploratory_section(
    campaign: CampaignRecord, comparison: Comparison, reader: SeriesReader
) -> Section | None:
    """None when there is nothing to compare."""
    if len(comparison.conditions) < 2 or not comparison.done:
        return None
    parts = [
        '<p class="how">Nobody planned these comparisons before the runs: they suggest what to try '
        "next, they prove nothing.</p>"
    ]
    if pairs := _pairs(comparison):
        parts.append(folded(f"All pairs of conditions ({pairs[0]})", pairs[1]))
    if areas := _areas(campaign, comparison, reader):
        parts.append(folded("Secondary summaries: height of the learning curves", areas))
    return Section("exploratory", "Exploratory", "".join(parts)) if len(parts) > 1 else None


def _pairs(comparison: Comparison) -> tuple[int, str] | None:
    found = all_pairs(comparison)
    if not found:
        return None
    place = {condition.label: i for i, condition in enumerate(comparison.conditions)}
    unit = comparison.settings.unit
    rows = [
        [
            f"{name(one.treatment, place[one.treatment])} <small>vs {safe(one.baseline)}</small>",
            interval(one.contrast, unit),
            p_value(one.p),
            str(one.contrast.n),
        ]
        for one in found
    ]
    caption = (
        "Exploratory: paired differences, sign-flip p values after Benjamini and Hochberg's "
        "correction over all pairs (of those called different, about the level's share is not)"
    )
    head = ["pair", f"difference [{100 * comparison.confidence:g} % CI]", "p (BH)", "seeds"]
    return len(found), table(head, rows, caption=caption)


def _areas(campaign: CampaignRecord, comparison: Comparison, reader: SeriesReader) -> str:
    settings, confidence = comparison.settings, comparison.confidence
    columns, head = [], ["condition"]
    for key, title in AREAS.items():
        if key == settings.summary:
            continue
        values = run_values(campaign.runs, replace(settings, summary=key), reader)
        by_label = {
            label: {
                r.seed: values[r.folder].value for r in campaign.of(label) if r.seed is not None
            }
            for label in _labels(comparison)
        }
        if all(v is None for scores in by_label.values() for v in scores.values()):
            continue
        columns.append(by_label)
        head += [title, f"difference to {safe(comparison.baseline)}"]
    rows = []
    for index, label in enumerate(_labels(comparison)):
        cells = [name(label, index)]
        for by_label in columns:
            known = [value for value in by_label[label].values() if value is not None]
            cells.append(settings.unit.plain(mean(known), MISSING))
            contrast = None
            if label != comparison.baseline:
                base = by_label[comparison.baseline]
                contrast = paired_contrast(by_label[label], base, confidence)
            cells.append(interval(contrast, settings.unit))
        rows.append(cells)
    caption = (
        "Area under the curve over its length, of finished runs, up to the budget that all of them "
        "have spent; differences are paired by seed and not corrected"
    )
    return table(head, rows, caption=caption) if columns else ""


def _labels(comparison: Comparison) -> list[str]:
    return [condition.label for condition in comparison.conditions]


def failure_section(campaign: CampaignRecord) -> Section | None:
    """Runs that ended, or hang, without a result; None when there is none."""
    bad = [run for run in campaign.runs if run.state not in FINE]
    if not bad:
        return None
    rows = [
        [safe(run.name), _state(run), str(run.step), safe(run.cause) or MISSING, _message(run)]
        for run in bad[:SHOWN_FAILURES]
    ]
    head = ["run", "state", "steps", "cause", "message"]
    html = table(head, rows, kind="failures", text=frozenset({1, 3, 4}))
    if len(bad) > SHOWN_FAILURES:
        more = plural(len(bad) - SHOWN_FAILURES, "other run")
        html += f'<p class="how">… and {more}: `retrain status` lists them.</p>'
    return Section("failures", "Runs without a result", html)


def _state(run: RunView) -> str:
    return f'<span class="tag state-{safe(run.state)}">{safe(run.state)}</span>'


def _message(run: RunView) -> str:
    return safe(run.message) or "no message"


def squeeze_section(campaign: CampaignRecord) -> Section | None:
    """What the LoRA squeeze found; None without one."""
    document = read_squeeze(campaign.folder)
    if document is None:
        return None
    retention = percent(document["min_variance_retention"])
    text = (
        f"Rank {document['recommended_rank']} of {document['source_rank']} is the lowest that "
        f"keeps {retention} of the variance of the adapter of the first run that succeeded. "
        "Variance is not accuracy"
    )
    text += ": see the check." if document["check"] else "."
    parts = [
        f"<p>{safe(text)}</p>",
        f'<div class="scroll" tabindex="0" role="group" aria-label="table"><pre>'
        f"{escape(visible(squeeze_text(document)))}</pre></div>",
    ]
    for stem, words in PICTURES.items():
        try:
            picture = (campaign.folder / SQUEEZE_FOLDER / f"{stem}.png").read_bytes()
        except OSError:
            continue
        if len(picture) <= LARGEST_PICTURE:
            source = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
            parts.append(
                f'<figure class="picture"><img src="{source}" alt="{safe(words)}">'
                f"<figcaption>{safe(words)}</figcaption></figure>"
            )
    return Section("squeeze", "LoRA squeeze", "".join(parts))
