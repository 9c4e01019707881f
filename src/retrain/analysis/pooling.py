"""Several campaigns of the same design as one: their seeds pooled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from retrain.analysis.reading import items
from retrain.analysis.records import CampaignRecord, RunView
from retrain.analysis.settings import ReportSettings
from retrain.config.changes import CONTENTS, differences, identity
from retrain.config.dump import read_run_config
from retrain.config.messages import show
from retrain.errors import InputError


def pool(campaigns: Sequence[CampaignRecord], folder: Path, *, chosen: bool) -> CampaignRecord:
    """The campaigns as one record, whose report belongs into `folder`.

    chosen: the settings of the report are given, so that those recorded may differ.

    Raises InputError when they are not of the same design: other conditions, a condition with
    another config, a seed in two of them, or other settings of the report.
    """
    first, *others = campaigns
    seen = dict.fromkeys(first.seeds, first)
    for other in others:
        _require_same_conditions(first, other)
        for seed in other.seeds:
            if seed in seen:
                raise InputError(
                    f"seed {seed} is in {seen[seed].folder} and in {other.folder}: pooled, its "
                    "runs would count twice; give campaigns whose seeds differ"
                )
            seen[seed] = other
        _require_same_settings(first, other, chosen=chosen)
    return replace(
        first,
        folder=folder,
        title=" + ".join(campaign.name for campaign in campaigns),
        pooled=len(campaigns),
        planned=all(ReportSettings.of(campaign.manifest) for campaign in campaigns),
        manifest={
            **first.manifest,
            **{
                key: [entry for campaign in campaigns for entry in items(campaign.manifest, key)]
                for key in ("runs", "dropped")
            },
        },
        seeds=tuple(seen),
        runs=tuple(run for campaign in campaigns for run in campaign.runs),
        status=next((c.status for c in campaigns if not c.finished), first.status),
        started_at=min(campaign.started_at for campaign in campaigns),
        updated_at=max(campaign.updated_at for campaign in campaigns),
        finished=all(campaign.finished for campaign in campaigns),
    )


def _require_same_conditions(first: CampaignRecord, other: CampaignRecord) -> None:
    if set(first.conditions) != set(other.conditions):
        odd = sorted(set(first.conditions) ^ set(other.conditions))
        holder = first if odd[0] in first.conditions else other
        raise InputError(
            f"{first.folder} and {other.folder} cannot be pooled: only {holder.folder} has the "
            f"condition {odd[0]}"
        )
    for label in first.conditions:
        one, another = _readable(first.of(label)), _readable(other.of(label))
        if one is None or another is None:
            continue
        mine, theirs = read_run_config(one.config), read_run_config(another.config)
        found = differences(identity(mine, one.contents), theirs, another.contents)
        changes = [change for change in found if change.key != "training.seed"]
        if mine.training.max_steps != theirs.training.max_steps:
            steps = mine.training.max_steps, theirs.training.max_steps
            raise InputError(_unlike(first, other, label, "training.max_steps", *steps))
        if changes:
            change = changes[0]
            raise InputError(_unlike(first, other, label, change.key, change.before, change.now))


def _unlike(
    first: CampaignRecord, other: CampaignRecord, label: str, key: str, a: object, b: object
) -> str:
    values = f"{show(a)} in the first and {show(b)} in the second"
    what = f"{CONTENTS[key]} of {label} have content" if key in CONTENTS else f"{label} has {key} ="
    return f"{first.folder} and {other.folder} cannot be pooled: {what} {values}"


def _require_same_settings(first: CampaignRecord, other: CampaignRecord, *, chosen: bool) -> None:
    mine, theirs = ReportSettings.of(first.manifest), ReportSettings.of(other.manifest)
    if chosen or mine is None or theirs is None:
        return
    if changes := mine.changes(theirs):
        raise InputError(
            f"{first.folder} and {other.folder} recorded different [report] settings: "
            f"{'; '.join(changes)}; say which to use, e.g. --{changes[0].split()[0]} …"
        )


def _readable(runs: Sequence[RunView]) -> RunView | None:
    return next((run for run in runs if run.config.is_file()), None)
