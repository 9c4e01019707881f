"""What the page is about: the campaign's shape, how far it is, and what it is judged by."""

from __future__ import annotations

from datetime import UTC, datetime

from retrain.analysis.reading import nested
from retrain.analysis.records import CampaignRecord
from retrain.analysis.summary import Comparison
from retrain.analysis.webpage import safe
from retrain.analysis.words import duration, plural

STATES = ("done", "running", "pending", "stalled", "dropped", "stopped", "lost", "diverged")


def heading(campaign: CampaignRecord, comparison: Comparison, note: str) -> str:
    """The page's first lines."""
    parts = [
        f"<h1>{safe(campaign.name)}</h1>",
        f'<p class="shape">{_shape(campaign)}</p>',
        f'<p class="states">{_states(campaign)}</p>',
    ]
    if not campaign.finished:
        parts.append(
            '<p class="mark warn"><b>Not finished.</b> The campaign still runs: numbers and '
            "verdicts may change.</p>"
        )
    parts.append(_settings(comparison))
    if note:
        parts.append(f'<p class="mark">{safe(note)}</p>')
    return "\n".join(parts)


def _shape(campaign: CampaignRecord) -> str:
    conditions, seeds = len(campaign.conditions), len(campaign.seeds)
    parts = [
        f"<b>{plural(conditions, 'condition')} × {plural(seeds, 'seed')}</b>",
        f"{campaign.max_steps:,} training steps" if campaign.max_steps else "",
    ]
    config = campaign.first_config()
    for title, table, key in (("model", "model", "model"), ("task", "data", "source")):
        value = nested(config, table).get(key)
        parts.append(f"{title} <code>{safe(str(value))}</code>" if value else "")
    began = datetime.fromtimestamp(campaign.started_at, UTC).strftime("%Y-%m-%d %H:%M UTC")
    parts.append(f"started {began}")
    walls = [run.result.wall_s for run in campaign.runs if run.result.wall_s is not None]
    parts.append(f"{duration(sum(walls))} of training in finished runs" if walls else "")
    return " · ".join(part for part in parts if part)


def _states(campaign: CampaignRecord) -> str:
    counts = campaign.counts()
    known = [state for state in STATES if counts[state]]
    others = sorted(state for state in counts if state not in STATES)
    total = plural(len(campaign.runs), "run")
    tags = "".join(
        f'<span class="tag state-{safe(state)}"><b>{counts[state]}</b> {safe(state)}</span>'
        for state in (*known, *others)
    )
    return f"{total}: {tags}"


def _settings(comparison: Comparison) -> str:
    settings = comparison.settings
    what = (
        f"Runs are judged by {safe(settings.words)}; differences below "
        f"{safe(settings.unit.size(settings.margin))} do not matter; level "
        f"{100 * settings.alpha:g} %."
    )
    if comparison.changes:
        changes = "; ".join(safe(change) for change in comparison.changes)
        return (
            '<p class="mark warn"><b>⚠ Not the settings that were recorded before the first '
            f"run:</b> {changes}. Read the verdicts as exploratory. {what}</p>"
        )
    if comparison.recorded:
        return (
            '<p class="mark good"><b>✓ Recorded before the first run:</b> metric, comparisons, '
            f"margin and level. {what}</p>"
        )
    return (
        '<p class="mark"><b>Not recorded before the first run:</b> this campaign kept no '
        f"[report] settings. {what}</p>"
    )
