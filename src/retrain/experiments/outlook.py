"""`retrain resume-check`: from where runs would go on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from retrain.analysis.reading import items, text
from retrain.analysis.records import MANIFEST_FILE, CampaignRecord, RunView, find_records
from retrain.analysis.status_view import damaged_words
from retrain.causes import INFRASTRUCTURE
from retrain.config.dump import read_run_config
from retrain.errors import InputError
from retrain.experiments.paths import shown
from retrain.files import RUN_FILE, RunRecord
from retrain.models.adapters.settings import ADAPTER_CONFIG
from retrain.terminal import Terminal
from retrain.training.resume import ResumePoint, find_resume_point


@dataclass(frozen=True, slots=True)
class Outlook:
    """From where a run would go on, if it would."""

    name: str
    folder: Path
    state: str
    resumes: bool
    step: int
    max_steps: int | None
    trained: int
    checkpoint: str | None
    notes: tuple[str, ...]

    @property
    def lost_steps(self) -> int:
        """Steps that would be trained again."""
        return max(0, self.trained - self.step)


def resume_check(folder: Path, *, as_json: bool = False, console: Console | None = None) -> int:
    """Say whether and from which step each run in `folder` would resume; loads no model.

    Every file of the checkpoint in question is read and compared with its checksum. The exit code
    is 1 when a checkpoint or a record was found that is damaged or cannot be read.
    """
    console = console or Terminal()
    found = find_records([folder])
    outlooks = [
        *(_outlook(run, campaign) for campaign in found.campaigns for run in campaign.runs),
        *(_outlook(run) for run in found.runs),
    ]
    if not outlooks:
        raise InputError(nothing_in(folder))
    if as_json:
        document = [
            {
                "name": outlook.name,
                "folder": str(outlook.folder),
                "state": outlook.state,
                "resumes": outlook.resumes,
                "step": outlook.step,
                "max_steps": outlook.max_steps,
                "lost_steps": outlook.lost_steps,
                "checkpoint": outlook.checkpoint,
                "notes": list(outlook.notes),
            }
            for outlook in outlooks
        ]
        console.file.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    else:
        for manifest in found.damaged:
            console.print(Text(damaged_words(manifest), style="red"), soft_wrap=True)
        console.print(_outlook_table(outlooks))
        for outlook in outlooks:
            for note in outlook.notes:
                console.print(Text(f"{outlook.name}: {note}"), soft_wrap=True)
    bad = ("is damaged: ", "cannot be read now: ")
    noted = any(word in note for each in outlooks for note in each.notes for word in bad)
    return int(noted or bool(found.damaged))


def _outlook(view: RunView, campaign: CampaignRecord | None = None) -> Outlook:
    resumes = view.state not in {"done", "diverged", "running", "dropped"}
    try:
        point = find_resume_point(view.folder)
        notes = [f"{path.name} is damaged: {reason}" for path, reason in point.skipped]
    except OSError as error:
        point, resumes = ResumePoint(view.folder, None, ()), False
        notes = [f"{error.filename} cannot be read now: {error.strerror}"]
    if point.refusal:
        resumes = False
        notes.append(point.refusal)
    try:
        if RunRecord.exists(view.folder):
            RunRecord.read(view.folder)
    except InputError as error:
        # A campaign writes it again.
        resumes = resumes and campaign is not None
        notes.append(str(error))
    try:
        if resumes:
            read_run_config(view.config)
    except InputError as error:
        resumes = False
        notes.append(str(error))
    if view.state == "running":
        notes.append("it is being trained now")
    dropped = items(campaign.manifest, "dropped") if campaign else []
    if resumes and view.condition in [text(entry, "condition") for entry in dropped]:
        resumes = False
        notes.append("its condition was stopped for futility")
    elif view.state == "failed" and view.cause not in INFRASTRUCTURE:
        # A run that is resumed by its own name is tried again; a campaign leaves it alone.
        resumes = campaign is None
        only = ", so only with --retry-failed" if campaign else ""
        notes.append(f"it failed by an error of its own{only}: {view.message}")
    return Outlook(
        name=view.name,
        folder=view.folder,
        state=view.state,
        resumes=resumes,
        step=point.step,
        max_steps=view.max_steps,
        trained=view.step,
        checkpoint=point.checkpoint.folder.name if point.checkpoint else None,
        notes=tuple(notes),
    )


def _outlook_table(outlooks: Sequence[Outlook]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("run", "state", "resumes"):
        table.add_column(title)
    table.add_column("from step", justify="right")
    table.add_column("lost steps", justify="right")
    for outlook in outlooks:
        table.add_row(
            Text(outlook.name),
            outlook.state,
            "yes" if outlook.resumes else "no",
            f"{outlook.step}/{outlook.max_steps or '?'}" if outlook.resumes else "",
            str(outlook.lost_steps) if outlook.resumes else "",
        )
    return table


def nothing_in(folder: Path) -> str:
    """Why there is nothing to resume in a folder, and what could be meant."""
    if not folder.is_dir():
        return f"{folder}: no such folder; give the folder of a run or of a campaign"
    if (folder / ADAPTER_CONFIG).is_file():
        return (
            f"{folder} is an adapter, not a run; to start a new run from it set "
            f'[model].init_adapter = "{folder}"'
        )
    found = find_records([folder])
    inside = [campaign.folder for campaign in found.campaigns] + [run.folder for run in found.runs]
    if inside:
        return f"{folder} holds several; name one of them, e.g. {shown(inside[0])}"
    return f"{folder} holds no run and no campaign: {RUN_FILE} and {MANIFEST_FILE} are missing"
