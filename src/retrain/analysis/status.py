"""`retrain status`: what runs, how far it is, what went wrong, how long it will take."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from retrain.analysis.progress import campaign_progress, run_seconds_left
from retrain.analysis.records import CampaignRecord, Found, RunView, find_records
from retrain.analysis.status_view import render
from retrain.errors import InputError
from retrain.terminal import Terminal

SCHEMA = 1
DEFAULT_LOGS = Path("logs")
REFRESH_S = 2.0


def status_command(
    paths: Sequence[Path],
    as_json: bool = False,
    watch: bool = False,
    console: Console | None = None,
    refresh_s: float = REFRESH_S,
) -> int:
    """Show the state of what lies under `paths` and return the exit code.

    Each path is a log folder, a campaign folder or a run folder; none given takes `logs`. With
    `watch` the view is refreshed in place until everything has finished (exit code 0) or Ctrl-C
    (130); on an output that is no terminal only the last view is printed. With `as_json` one
    JSON document is printed (`docs/status.md`), with `watch` as well one a line at each refresh.
    """
    console = console or Terminal()
    chosen = [Path(path) for path in paths] or [DEFAULT_LOGS]
    missing = [str(path) for path in paths if not Path(path).exists()]
    if missing:
        raise InputError(
            f"no such file or folder: {', '.join(missing)}; give a log folder, a campaign folder "
            "or a run folder"
        )
    try:
        if as_json:
            _show_json(chosen, watch, console, refresh_s)
        else:
            _show(chosen, watch, console, refresh_s)
    except KeyboardInterrupt:
        return 130
    return 0


def status_document(found: Found, now: float) -> dict[str, Any]:
    """The JSON document of `retrain status --json`; its fields are in `docs/status.md`."""
    return {
        "schema": SCHEMA,
        "now": _iso(now),
        "finished": found.finished,
        "campaigns": [_campaign_document(campaign) for campaign in found.campaigns],
        "runs": [_run_document(run) for run in found.runs],
        "damaged": [str(path) for path in found.damaged],
    }


def _show(paths: Sequence[Path], watch: bool, console: Console, refresh_s: float) -> None:
    found = find_records(paths)
    if not found.campaigns and not found.runs:
        places = ", ".join(str(path) for path in paths)
        console.print(
            f"No campaign and no run in {places}.\n"
            "`retrain FILE.toml` starts one; `retrain init` writes a file to start from.",
            markup=False,
            highlight=False,
        )
        return
    if not watch:
        console.print(render(found, console))
        return
    with Live(render(found, console), console=console, auto_refresh=False) as live:
        while not found.finished:
            time.sleep(refresh_s)
            found = find_records(paths)
            live.update(render(found, console), refresh=True)


def _show_json(paths: Sequence[Path], watch: bool, console: Console, refresh_s: float) -> None:
    while True:
        now = time.time()
        found = find_records(paths, now)
        document = status_document(found, now)
        # Straight to the file: the console would wrap long lines.
        console.file.write(json.dumps(document, indent=None if watch else 2) + "\n")
        console.file.flush()
        if not watch or found.finished:
            return
        time.sleep(refresh_s)


def _campaign_document(campaign: CampaignRecord) -> dict[str, Any]:
    progress = campaign_progress(campaign)
    return {
        "name": campaign.name,
        "folder": str(campaign.folder),
        "status": campaign.status,
        "state": campaign.state,
        "finished": campaign.finished,
        "started_at": _iso(campaign.started_at),
        "updated_at": _iso(campaign.updated_at),
        "conditions": list(campaign.conditions),
        "seeds": list(campaign.seeds),
        "max_steps": campaign.max_steps,
        "counts": dict(sorted(campaign.counts().items())),
        "steps_done": progress.steps_done,
        "steps_total": progress.steps_total,
        "step_time_s": progress.step_time_s,
        "row_age_s": progress.row_age_s,
        "seconds_left": progress.seconds_left,
        "runs": [_run_document(run) for run in campaign.runs],
    }


def _run_document(run: RunView) -> dict[str, Any]:
    return {
        "name": run.name,
        "folder": str(run.folder),
        "condition": run.condition,
        "seed": run.seed,
        "state": run.state,
        "message": run.message,
        "cause": run.cause or None,
        "step": run.step,
        "max_steps": run.max_steps,
        "accuracy_before": run.result.accuracy_before,
        "accuracy": run.accuracy,
        "mean_reward": run.mean_reward,
        "row_age_s": run.row_age_s,
        "step_time_s": run.step_time_s,
        "seconds_left": run_seconds_left(run),
        "started_at": _iso(run.started_at),
        "updated_at": _iso(run.updated_at),
    }


def _iso(moment: float | None) -> str | None:
    if moment is None:
        return None
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")
