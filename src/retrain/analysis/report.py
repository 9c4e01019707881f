"""The report of a campaign: `report.md` with its pictures, and the page `report.html`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from retrain.analysis.closing import (
    cautions,
    difference,
    load_campaign,
    markdown_table,
    shared_notes,
    table_cells,
    table_notes,
    table_title,
    verdicts_title,
)
from retrain.analysis.curves import Curve, Curves, read_curves
from retrain.analysis.pictures import Drawing, Picture
from retrain.analysis.reading import nested
from retrain.analysis.records import CampaignRecord, RunView
from retrain.analysis.series import SeriesReader
from retrain.analysis.squeezed import squeeze_section
from retrain.analysis.summary import Comparison, compare
from retrain.analysis.words import duration, percent, plural
from retrain.errors import RetrainError
from retrain.files import GENERATIONS_FILE, atomic_write_text

REPORT_FILE = "report.md"
PAGE_FILE = "report.html"
REPORT_FOLDER = "report"
VERDICTS_CSV, VERDICTS_TEX = "verdicts.csv", "verdicts.tex"
SHOWN_FAILURES = 40
MANY_POINTS = 40


@dataclass(frozen=True, slots=True)
class Report:
    """The files of a report."""

    markdown: Path
    page: Path


def write_report(campaign_dir: Path) -> Report:
    """Write the report of the campaign in a folder, judged as was recorded before its first run.

    Works at any time: of a campaign that still runs it shows what there is.
    """
    campaign, reader = load_campaign(campaign_dir), SeriesReader()
    return write_files(campaign, compare(campaign, reader=reader), reader)


def write_files(campaign: CampaignRecord, comparison: Comparison, reader: SeriesReader) -> Report:
    """Write `report.md`, `report.html`, and into `report/` the pictures and the tables for a
    paper, all into the campaign's folder.

    Raises RetrainError when pictures could not be drawn; all else is written then.
    """
    from retrain.analysis.page.page import write_page
    from retrain.analysis.page.paper import latex_table, verdict_csv

    folder = campaign.folder
    config = campaign.first_config()
    curves, pictures = _curves(campaign, read_curves(campaign, reader))
    sections = [
        _heading(campaign, config),
        _verdicts(comparison) if comparison.done else "",
        _result(comparison),
        curves,
        _samples(campaign),
        squeeze_section(folder),
        _failures(campaign),
        _caution(comparison, config),
        _paper() if comparison.contrasts and comparison.done else "",
        _reproduce(campaign, config),
    ]
    markdown, page = folder / REPORT_FILE, folder / PAGE_FILE
    tables = folder / REPORT_FOLDER
    judged = bool(comparison.contrasts and comparison.done)
    if judged or pictures:
        tables.mkdir(exist_ok=True)
    drawing, problem = Drawing(pictures) if pictures else None, ""
    if judged:
        atomic_write_text(tables / VERDICTS_CSV, verdict_csv(comparison))
        atomic_write_text(tables / VERDICTS_TEX, latex_table(comparison, campaign.name))
    try:
        write_page(campaign, comparison, reader, page)
    finally:
        if drawing is not None:
            problem = drawing.finish()
    text = "\n\n".join(section for section in sections if section) + "\n"
    if problem:
        text = text.replace(curves, f"## Learning curves\n\nNot drawn: {problem}.")
    atomic_write_text(markdown, text)
    if problem:
        raise RetrainError(f"its pictures could not be drawn: {problem}")
    return Report(markdown, page)


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
    page = f"As a page with more pictures, to look through: [{PAGE_FILE}]({PAGE_FILE})."
    return (
        f"# {campaign.name}\n\n"
        f"{shape} = {plural(len(campaign.runs), 'run')}{steps}{subject}.\n"
        f"Started {began}{spent}. Runs: {states}.{going}\n\n{page}"
    )


def _subject(config: Mapping[str, Any]) -> str:
    model = nested(config, "model").get("model")
    task = nested(config, "data").get("source")
    parts = [f"the `{model}` model" if model else "", f"the `{task}` task" if task else ""]
    named = " and ".join(part for part in parts if part)
    return f", on {named}" if named else ""


def _verdicts(comparison: Comparison) -> str:
    """One row a planned comparison: what was asked, and what the seeds answer."""
    if not comparison.contrasts:
        return ""
    unit = comparison.settings.unit
    rows = []
    for contrast in comparison.contrasts:
        judged, paired = contrast.judgement, contrast.judgement.paired
        rows.append(
            [
                f"{contrast.treatment} vs {contrast.baseline}",
                judged.verdict.text,
                difference(paired.contrast, unit),
                "-" if judged.p is None else f"{judged.p:.2g}",
                f"{paired.wins}/{paired.contrast.n}",
                "-" if paired.correlation is None else f"{paired.correlation:+.2f}",
                unit.plain(paired.detectable),
                difference(contrast.complete, unit) if contrast.floored else "the same",
            ]
        )
    headers = ["comparison", "verdict", f"difference [{100 * comparison.confidence:g} % CI]"]
    headers += ["p, corrected", "seeds won", "correlation", "detectable", "finished pairs only"]
    title = verdicts_title(comparison)
    notes = [
        f"Judged by {comparison.settings.words}, one number a run, paired by seed.",
        "Recorded before the first run: metric, comparisons, margin, alpha and floor."
        if comparison.recorded and not comparison.changes
        else "",
        *shared_notes(comparison),
        "*Correlation*: between the two conditions over seeds; the higher, the more pairing saves. "
        "*Detectable*: the difference that these seeds find with 80 % power.",
    ]
    lines = "\n".join(f"- {note}" for note in notes if note)
    table = markdown_table(headers, rows, frozenset({1}))
    return f"## Verdicts\n\n{title}.\n\n{table}\n\n{lines}"


def _paper() -> str:
    return (
        "## For a paper\n\n"
        f"The verdicts as [CSV]({REPORT_FOLDER}/{VERDICTS_CSV}) and as a "
        f"[LaTeX table]({REPORT_FOLDER}/{VERDICTS_TEX}); a paragraph of methods is in "
        f"[{PAGE_FILE}]({PAGE_FILE}#paper)."
    )


def _result(comparison: Comparison) -> str:
    headers, rows = table_cells(comparison)
    headers = [header.replace("\n", " ") for header in headers]
    lines = [f"## Result\n\n{table_title(comparison)}.", markdown_table(headers, rows)]
    notes = [note.replace("*", "\\*") for note in table_notes(comparison)]
    if any(condition.after is not None for condition in comparison.conditions):
        notes.append(
            "*before* and *after* training: the share of correct answers when sampling at the "
            "evaluation temperature; *greedy*: when always taking the likeliest token."
        )
    return "\n\n".join([*lines, "\n".join(f"- {note}" for note in notes)])


def _curves(campaign: CampaignRecord, curves: Curves) -> tuple[str, list[Picture]]:
    """The section on learning curves, and the pictures that it shows."""
    parts, pictures = ["## Learning curves"], []
    folder = campaign.folder / REPORT_FOLDER
    if any(len(curve.points) > 1 for curve in curves.accuracy):
        text = f"Held-out accuracy by training step. {_how_drawn(curves.accuracy)}"
        picture = Picture(
            str(folder / "accuracy"),
            curves.accuracy,
            campaign.conditions,
            title="Held-out accuracy",
            subtitle="thick: mean over seeds; thin: one seed each",
            y_title="held-out accuracy",
            as_percent=True,
            markers=max(len(curve.points) for curve in curves.accuracy) <= MANY_POINTS,
        )
        pictures.append(picture)
        parts.append(_shown(picture, text))
    if any(len(curve.points) > 1 for curve in curves.reward):
        text = (
            "Mean reward of the training batches by step, smoothed by a centred moving average "
            f"over {curves.reward_window} steps. {_how_drawn(curves.reward)}"
        )
        picture = Picture(
            str(folder / "reward"),
            curves.reward,
            campaign.conditions,
            title="Mean reward in training",
            subtitle=f"moving average over {curves.reward_window} steps; "
            "thick: mean over seeds; thin: one seed each",
            y_title="mean reward",
        )
        pictures.append(picture)
        parts.append(_shown(picture, text))
    if len(parts) == 1:
        parts.append("No run has written enough steps to draw a curve.")
    return "\n\n".join(parts), pictures


def _shown(picture: Picture, text: str) -> str:
    source = f"{REPORT_FOLDER}/{Path(picture.stem).name}"
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
    # The runs of pooled campaigns lie elsewhere.
    relative = os.path.relpath(run.log, campaign.folder)
    return f"Log: [`{relative}`](<{relative}>)."


def _caution(comparison: Comparison, config: Mapping[str, Any]) -> str:
    notes = cautions(comparison)
    problems = nested(config, "evaluation").get("num_problems")
    judged_by_accuracy = comparison.settings.metric != "reward"
    if notes and judged_by_accuracy and isinstance(problems, int) and problems > 0:
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
