"""`report.md` and its pictures: what came out of a campaign, and how to get it again."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from retrain.analysis.charts import line_chart, write_chart
from retrain.analysis.closing import (
    cautions,
    closing_table,
    load_campaign,
    markdown_table,
    table_cells,
    table_notes,
    table_title,
)
from retrain.analysis.curves import Curve, read_curves
from retrain.analysis.reading import nested
from retrain.analysis.records import CampaignRecord, RunView
from retrain.analysis.squeezed import squeeze_section
from retrain.analysis.summary import Comparison, compare
from retrain.analysis.words import duration, percent, plural
from retrain.files import GENERATIONS_FILE, atomic_write_text

__all__ = ["closing_table", "write_report"]

REPORT_FILE = "report.md"
PICTURES_FOLDER = "report"
SHOWN_FAILURES = 40
MANY_POINTS = 40


def write_report(campaign_dir: Path) -> Path:
    """Write `report.md` and the pictures in `report/`, and return the report's path.

    Works at any time: of a campaign that still runs it shows what there is.
    """
    campaign = load_campaign(campaign_dir)
    comparison = compare(campaign)
    config = _config(campaign)
    sections = [
        _heading(campaign, config),
        _result(comparison),
        _pictures(campaign),
        _samples(campaign),
        squeeze_section(campaign_dir),
        _failures(campaign),
        _caution(comparison, config),
        _reproduce(campaign, config),
    ]
    path = campaign_dir / REPORT_FILE
    atomic_write_text(path, "\n\n".join(section for section in sections if section) + "\n")
    return path


def _heading(campaign: CampaignRecord, config: Mapping[str, Any]) -> str:
    counts = campaign.counts()
    conditions = plural(len(campaign.conditions), "condition")
    steps = f" of {campaign.max_steps} training steps" if campaign.max_steps else ""
    shape = f"{conditions} x {plural(len(campaign.seeds), 'seed')}"
    subject = _subject(config)
    began = datetime.fromtimestamp(campaign.started_at, UTC).strftime("%Y-%m-%d %H:%M UTC")
    walls = [run.result.wall_s for run in campaign.runs if run.result.wall_s is not None]
    spent = f"; the finished runs trained for {duration(sum(walls))} in total" if walls else ""
    states = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    going = (
        "" if campaign.finished else "\n\n**This campaign is not finished:** numbers may change."
    )
    return (
        f"# {campaign.name}\n\n"
        f"{shape} = {plural(len(campaign.runs), 'run')}{steps}{subject}.\n"
        f"Started {began}{spent}. Runs: {states}.{going}"
    )


def _subject(config: Mapping[str, Any]) -> str:
    model = nested(config, "model").get("model")
    task = nested(config, "data").get("source")
    parts = [f"the `{model}` model" if model else "", f"the `{task}` task" if task else ""]
    named = " and ".join(part for part in parts if part)
    return f", on {named}" if named else ""


def _result(comparison: Comparison) -> str:
    headers, rows = table_cells(comparison)
    headers = [header.replace("\n", " ") for header in headers]
    lines = [f"## Result\n\n{table_title(comparison)}.", markdown_table(headers, rows)]
    notes = [note.replace("*", "\\*") for note in table_notes(comparison)]
    if comparison.metric == "accuracy" and comparison.done:
        notes.append(
            "*before* and *after* training: the share of correct answers when sampling at the "
            "evaluation temperature; *greedy*: when always taking the likeliest token."
        )
    return "\n\n".join([*lines, "\n".join(f"- {note}" for note in notes)])


def _pictures(campaign: CampaignRecord) -> str:
    curves = read_curves(campaign)
    parts = ["## Learning curves"]
    if any(len(curve.points) > 1 for curve in curves.accuracy):
        text = f"Held-out accuracy by training step. {_how_drawn(curves.accuracy)}"
        document = line_chart(
            curves.accuracy,
            campaign.conditions,
            title="Held-out accuracy",
            subtitle="thick: mean over seeds; thin: one seed each",
            y_title="held-out accuracy",
            as_percent=True,
            markers=max(len(curve.points) for curve in curves.accuracy) <= MANY_POINTS,
        )
        parts.append(_picture(campaign, "accuracy", document, text))
    if any(len(curve.points) > 1 for curve in curves.reward):
        text = (
            "Mean reward of the training batches by step, smoothed by a centred moving average "
            f"over {curves.reward_window} steps. {_how_drawn(curves.reward)}"
        )
        document = line_chart(
            curves.reward,
            campaign.conditions,
            title="Mean reward in training",
            subtitle=f"moving average over {curves.reward_window} steps; "
            "thick: mean over seeds; thin: one seed each",
            y_title="mean reward",
        )
        parts.append(_picture(campaign, "reward", document, text))
    if len(parts) == 1:
        parts.append("No run has written enough steps to draw a curve.")
    return "\n\n".join(parts)


def _picture(campaign: CampaignRecord, name: str, document: dict[str, Any], text: str) -> str:
    folder = campaign.folder / PICTURES_FOLDER
    folder.mkdir(exist_ok=True)
    write_chart(document, folder / name)
    source = f"{PICTURES_FOLDER}/{name}"
    return f"![{text}]({source}.png)\n\n{text} ([SVG]({source}.svg))"


def _samples(campaign: CampaignRecord) -> str:
    if not any((run.folder / GENERATIONS_FILE).exists() for run in campaign.runs):
        return ""
    return (
        "## What the policies wrote\n\n"
        "Logged completions, why they were rewarded, and the credit of each token; from this "
        "folder:\n\n"
        "```sh\n"
        "retrain samples .                        # the newest, in the terminal\n"
        "retrain samples . --html samples.html    # a page to look through and to hand on\n"
        "```"
    )


def _how_drawn(curves: Sequence[Curve]) -> str:
    text = "A thin line is one seed, a thick line the mean of its condition."
    done = {curve.condition for curve in curves if curve.state == "done"}
    if any(curve.state != "done" and curve.condition in done for curve in curves):
        text += " Runs that did not finish are drawn as far as they came, but are in no mean."
    return text


def _failures(campaign: CampaignRecord) -> str:
    bad = [run for run in campaign.runs if run.state not in {"done", "pending", "running"}]
    if not bad:
        return ""
    lines = ["## Runs without a result"]
    for run in bad[:SHOWN_FAILURES]:
        lines.append(f"- **{run.name}**: {_cause(run)} {_log(campaign, run)}")
    if len(bad) > SHOWN_FAILURES:
        lines.append(f"- … and {plural(len(bad) - SHOWN_FAILURES, 'other run')}")
    return lines[0] + "\n\n" + "\n".join(lines[1:])


def _cause(run: RunView) -> str:
    what = f"{run.state} at step {run.step}"
    message = " ".join(run.message.split()).removeprefix(f"{what}: ")
    return f"{what}: {message}." if message else f"{what}, with no message."


def _log(campaign: CampaignRecord, run: RunView) -> str:
    if not run.log.exists():
        return "It left no log."
    relative = run.log.relative_to(campaign.folder)
    return f"Log: [`{relative}`](<{relative}>)."


def _caution(comparison: Comparison, config: Mapping[str, Any]) -> str:
    notes = cautions(comparison)
    problems = nested(config, "evaluation").get("num_problems")
    if notes and comparison.metric == "accuracy" and isinstance(problems, int) and problems > 0:
        smallest = percent(1.0 / problems)
        notes.append(
            f"Accuracy is measured on {problems} held-out problems: one more or less is {smallest}."
        )
    return "## How to read these numbers\n\n" + "\n".join(f"- {n}" for n in notes) if notes else ""


def _reproduce(campaign: CampaignRecord, config: Mapping[str, Any]) -> str:
    lines = ["## How to reproduce this", "Run all of it again, from this folder:"]
    commands = [
        f"bash {name}  # {what}" if name.endswith(".sh") else f"retrain {name}  # {what}"
        for name, what in (
            ("campaign.toml", "as a new campaign"),
            ("run_all.sh", "run by run"),
        )
        if (campaign.folder / name).exists()
    ]
    lines.append(
        "```sh\n" + "\n".join(commands or ["retrain <the campaign's TOML file>"]) + "\n```"
    )
    seeds = ", ".join(str(seed) for seed in campaign.seeds)
    facts = [("seeds", seeds)]
    versions = next((run.versions for run in campaign.runs if run.versions), {})
    if versions or campaign.retrain_version:
        known = versions or {"retrain": campaign.retrain_version}
        facts.append(("versions", ", ".join(f"{name} {value}" for name, value in known.items())))
    devices = sorted({run.device for run in campaign.runs if run.device})
    if devices:
        facts.append(("device", ", ".join(devices)))
    for table, keys in (
        ("model", ("model", "revision", "lora_rank")),
        ("training", ("batch_size", "group_size", "max_tokens", "lr", "temperature")),
        ("loss", ("type", "aggregation")),
        ("evaluation", ("num_problems", "samples_per_problem", "temperature")),
    ):
        values = [(key, nested(config, table).get(key)) for key in keys]
        shown = ", ".join(f"{key} {value}" for key, value in values if value not in (None, ""))
        if shown:
            facts.append((f"`[{table}]`", shown))
    lines.append(markdown_table(["", "of the first run"], facts))
    lines.append(
        "Each run's resolved config is its `config.toml`; the plan and the results are in "
        "[`manifest.json`](manifest.json)."
    )
    return "\n\n".join(lines)


def _config(campaign: CampaignRecord) -> Mapping[str, Any]:
    """The resolved config of the first run that has one."""
    for run in campaign.runs:
        try:
            return tomllib.loads(run.config.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
    return {}
