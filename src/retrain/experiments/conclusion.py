"""How a campaign ended: its result, and what the terminal says of it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from retrain.analysis.squeezed import read_squeeze, squeeze_text
from retrain.analysis.words import plural
from retrain.causes import INFRASTRUCTURE, describe, remedy
from retrain.config.load import EMBEDDED
from retrain.experiments.manifest import Manifest
from retrain.experiments.paths import shown
from retrain.experiments.plan import PlannedRun
from retrain.experiments.stopping import saved_words
from retrain.files import GENERATIONS_FILE, RUN_LOG_FILE
from retrain.terminal import say


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """How one run of a campaign ended; `status` as in `run.json`."""

    name: str
    condition: str
    seed: int
    status: str
    message: str
    run_dir: Path
    result: Mapping[str, Any] | None

    @property
    def log(self) -> Path:
        return self.run_dir / RUN_LOG_FILE


@dataclass(frozen=True, slots=True)
class CampaignResult:
    """How a campaign ended: `status` is done, failed or stopped."""

    exit_code: int
    campaign_dir: Path
    status: str
    runs: tuple[RunOutcome, ...]

    @property
    def failed(self) -> tuple[RunOutcome, ...]:
        """The runs without a result to compare."""
        return tuple(run for run in self.runs if run.status in {"failed", "diverged"})


def conclude(manifest: Manifest, runs: Sequence[PlannedRun], console: Console) -> CampaignResult:
    """Say how the campaign stands and write its report: the closing table, what failed and why,
    and what to do next."""
    result = _outcome(manifest)
    folder = shown(result.campaign_dir)
    report: Path | None = None
    if result.failed or any(run.status == "done" for run in result.runs):
        try:
            from retrain.analysis.closing import closing_table
            from retrain.analysis.report import write_report

            console.print(closing_table(result.campaign_dir))
            if squeezed := read_squeeze(result.campaign_dir):
                say(console, f"\nLoRA squeeze of {manifest.data['squeeze']['run']}")
                say(console, squeeze_text(squeezed) + "\n")
            if result.status != "stopped":
                report = write_report(result.campaign_dir).page
        except Exception as error:
            # The runs are done and safe: what cannot be drawn must not look like their failure.
            say(console, f"the report is not whole: {describe(error)}", "yellow")
            result = replace(result, exit_code=result.exit_code or 1)
    if result.failed:
        count = f"{len(result.failed)} of {plural(len(result.runs), 'run')}"
        say(console, f"{count} gave no result:", "red")
        alike: dict[tuple[str, str], list[RunOutcome]] = {}
        for run in result.failed:
            alike.setdefault((run.status, run.message), []).append(run)
        for (status, message), failed in alike.items():
            say(console, f"  {', '.join(run.name for run in failed)} {status}: {message}")
            say(console, f"    log: {shown(failed[0].log)}")
    if result.status == "stopped":
        awaited = [run.status for run in result.runs if run.name not in manifest.left_out]
        unfinished = awaited.count("stopped") + awaited.count("pending")
        say(console, f"stopped: {plural(unfinished, 'run')} of {len(result.runs)} not finished")
    if saved := saved_words(manifest):
        say(console, saved)
    if manifest.left_out:
        say(console, _left_out_words(manifest, len(result.runs)))
    say(console, f"campaign: {folder}")
    if report is not None:
        say(console, f"report:   {shown(report)}")
    if any((run.run_dir / GENERATIONS_FILE).exists() for run in result.runs):
        command = f"retrain samples {shlex.quote(folder)}"
        say(console, f"samples:  {command}   (what the policies wrote)")
    for cause in _causes(manifest):
        if text := remedy(cause, folder):
            say(console, f"{cause}: {text}", "yellow")
    say(console, f"next:     {_next(result, manifest, runs)}")
    return result


def _left_out_words(manifest: Manifest, runs: int) -> str:
    """`12 of 40 runs left out: max_runs = 28`."""
    max_runs = manifest.data["left_out"]["max_runs"]
    return f"{len(manifest.left_out)} of {plural(runs, 'run')} left out: max_runs = {max_runs}"


def _causes(manifest: Manifest) -> list[str]:
    """Why runs failed, in the order of the first of each."""
    runs = manifest.data["runs"]
    return list(dict.fromkeys(run["cause"] or "" for run in runs if run["status"] == "failed"))


def _next(result: CampaignResult, manifest: Manifest, runs: Sequence[PlannedRun]) -> str:
    folder = shlex.quote(shown(result.campaign_dir))
    if (
        result.status == "stopped"
        or _lacks_squeeze(manifest)
        or INFRASTRUCTURE.intersection(_causes(manifest))
    ):
        return f"retrain resume {folder}"
    if manifest.left_out and result.status == "done":
        return f"retrain resume {folder} --set campaign.max_runs=0"
    if result.failed:
        return f"less {shlex.quote(shown(result.failed[0].log))}"
    if result.status == "done" and runs and runs[0].config.model.model == EMBEDDED:
        return "retrain init campaign   (writes a commented file for a campaign of your own)"
    return f"retrain status {folder}"


def _lacks_squeeze(manifest: Manifest) -> bool:
    """Whether its squeeze was lost, and the next resume makes it."""
    squeeze = manifest.data.get("squeeze")
    return squeeze is not None and squeeze["status"] == "pending" and squeeze["run"] is not None


def _outcome(manifest: Manifest) -> CampaignResult:
    outcomes = tuple(
        RunOutcome(
            name=entry["name"],
            condition=entry["condition"],
            seed=entry["seed"],
            status=entry["status"],
            message=entry["message"],
            run_dir=manifest.run_folder(entry["name"]),
            result=entry["result"],
        )
        for entry in manifest.data["runs"]
    )
    status = str(manifest.data["status"])
    exit_code = {"done": int(_lacks_squeeze(manifest)), "stopped": 130}.get(status, 1)
    return CampaignResult(exit_code, manifest.folder, status, outcomes)
