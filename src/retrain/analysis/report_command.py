"""What `retrain report` does: read campaigns, judge them, write the files."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from retrain.analysis.closing import closing, load_campaign
from retrain.analysis.pooling import pool
from retrain.analysis.records import CampaignRecord
from retrain.analysis.report import Report, write_files
from retrain.analysis.report_document import report_document
from retrain.analysis.series import SeriesReader
from retrain.analysis.settings import ReportSettings
from retrain.analysis.summary import Comparison, compare
from retrain.config.campaign_checks import label_problems
from retrain.config.evidence import recorded
from retrain.config.schema import RetrainConfig
from retrain.config.validation import validate
from retrain.errors import ConfigError, ConfigIssue, InputError
from retrain.experiments.paths import shown
from retrain.terminal import Terminal

REFRESH_S = 10.0
POOLED_FOLDER = Path("pooled_report")


def report_command(
    folders: Sequence[Path],
    changes: Mapping[str, Any],
    *,
    to: Path | None = None,
    watch: bool = False,
    show: bool = False,
    as_json: bool = False,
    console: Console | None = None,
    refresh_s: float = REFRESH_S,
) -> int:
    """Write the report of one campaign, or of several of the same design; the exit code.

    changes: keys of `[report]` that are to be others than those recorded before the first run.
    to:      folder for the files; a campaign's own by default, `pooled_report` for several.
    """
    console = console or Terminal()
    if as_json and (show or to):
        raise InputError("--json writes no files, so --open and --to do not go with it")
    reader = SeriesReader()
    try:
        while True:
            campaign, comparison = _judged(folders, changes, to, reader)
            if as_json:
                document = report_document(campaign, comparison)
                # ASCII: labels and messages may hold what a terminal would obey.
                typer.echo(json.dumps(document, indent=None if watch else 2))
            else:
                campaign.folder.mkdir(parents=True, exist_ok=True)
                written = write_files(campaign, comparison, reader)
                _tell(campaign, comparison, written, console, watch=watch)
                if show:
                    typer.launch(str(written.page.absolute()))
                    show = False
            if not watch or campaign.finished:
                return 0
            time.sleep(refresh_s)
    except KeyboardInterrupt:
        return 130


def _judged(
    folders: Sequence[Path], changes: Mapping[str, Any], to: Path | None, reader: SeriesReader
) -> tuple[CampaignRecord, Comparison]:
    campaigns = []
    for folder in dict.fromkeys(folder.absolute() for folder in folders):
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; give the folder of a campaign")
        campaigns.append(load_campaign(folder))
    campaign = campaigns[0]
    if len(campaigns) > 1:
        campaign = pool(campaigns, (to or POOLED_FOLDER).absolute(), chosen=bool(changes))
    elif to is not None:
        campaign = replace(campaign, folder=to.absolute(), title=campaign.name)
    comparison = compare(campaign, _settings(campaign, changes), reader)
    if changes and comparison.done and all(c.value is None for c in comparison.conditions):
        raise InputError(
            f"no finished run has a value of {comparison.settings.words}; it was not measured"
        )
    return campaign, comparison


def _settings(campaign: CampaignRecord, changes: Mapping[str, Any]) -> ReportSettings | None:
    """Those recorded with `changes`; None without changes. Raises ConfigError, naming options."""
    if not changes:
        return None
    before = asdict(ReportSettings.of(campaign.manifest) or ReportSettings())
    before["contrasts"] = [f"{a} vs {b}" for a, b in before["contrasts"]]
    if "metric" in changes or "summary" in changes:
        # A window of evaluations is none of steps.
        before["window"] = 0
    outcome = validate(RetrainConfig, {"report": {**before, **changes}})
    problems = [(key, message) for _, key, message in outcome.problems]
    problems = problems or list(label_problems(outcome.config.report, campaign.conditions))
    if problems:
        raise ConfigError([ConfigIssue(f"--{key}", message) for key, message in problems])
    found = recorded(outcome.config.report, campaign.conditions, evaluates=True)
    return ReportSettings.of({"report": found})


def _tell(
    campaign: CampaignRecord,
    comparison: Comparison,
    written: Report,
    console: Console,
    *,
    watch: bool,
) -> None:
    if not watch or campaign.finished:
        console.print(closing(comparison))
        console.print()
    if watch:
        ended = sum(run.state not in {"pending", "running"} for run in campaign.runs)
        console.print(f"{ended} of {len(campaign.runs)} runs have ended", highlight=False)
    for path in (written.page, written.markdown):
        console.print(f"wrote {shown(path)}", highlight=False, markup=False, soft_wrap=True)
