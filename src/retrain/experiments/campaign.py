"""A campaign: every condition under every seed, into one folder."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from retrain.config.dump import run_config_toml
from retrain.config.load import LoadedConfig
from retrain.errors import InputError
from retrain.experiments.conclusion import CampaignResult, conclude
from retrain.experiments.data import fetch_data
from retrain.experiments.manifest import CAMPAIGN_FILE, Manifest
from retrain.experiments.plan import PlannedRun, first_runs, plan_runs, rerun_script
from retrain.experiments.session import MakeExecutor, train_campaign
from retrain.files import (
    RunRecord,
    atomic_write_bytes,
    atomic_write_text,
    atomic_write_toml,
    create_timestamped_folder,
)
from retrain.locks import FolderLock
from retrain.training.contents import Contents, planned_contents

RERUN_SCRIPT = "run_all.sh"


def run_campaign(
    loaded: LoadedConfig,
    *,
    console: Console | None = None,
    executor: MakeExecutor | None = None,
) -> CampaignResult:
    """Train every run of the campaign, and say what came out.

    A failed run never stops the others. Ctrl-C ends the workers after the step they are in, a
    second one at once; `resume_campaign` goes on from there.

    console:  where progress and the closing table go; the standard output by default.
    executor: makes what runs the workers, given the campaign's folder; by default subprocesses of
              this machine.
    """
    console = console or Console()
    fetch_data(loaded, console)
    runs = plan_runs(loaded)
    manifest = create_campaign(loaded, runs)
    with FolderLock(manifest.folder).acquire() as lock:
        settings = manifest.execution()
        now = first_runs(runs, settings.max_runs)
        names = {run.name for run in now}
        manifest.leave_out([run.name for run in runs if run.name not in names], settings.max_runs)
        train_campaign(manifest, now, settings, console=console, executor=executor, lock=lock)
        return conclude(manifest, runs, console)


def create_campaign(loaded: LoadedConfig, runs: Sequence[PlannedRun]) -> Manifest:
    """Write a campaign's folder with everything but results; starts nothing.

    The folder appears with all of its files in one instant: a campaign that can be seen can be
    resumed. Raises InputError when its data cannot be read.
    """
    if loaded.config.campaign is None:
        raise InputError(f"{loaded.name} has no [campaign] table")
    contents = contents_by_condition(runs)
    # The first run's folder is absolute, and log_dir is no matter of conditions.
    folder = create_timestamped_folder(Path(runs[0].config.logging.log_dir), "campaign")
    aside = folder.with_name(f".{folder.name}.tmp")
    try:
        aside.mkdir()
        write_plan(aside, loaded, runs, contents)
        atomic_write_text(aside / RERUN_SCRIPT, rerun_script(runs), mode=0o755)
        Manifest.create(aside, loaded, runs, contents)
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise
    return Manifest.read(folder)


def contents_by_condition(runs: Sequence[PlannedRun]) -> dict[str, Contents]:
    """What the runs of each condition are made of, which is the same under every seed."""
    configs = {run.condition: run.config for run in reversed(runs)}
    return dict(zip(configs, planned_contents(configs.values()), strict=True))


def write_plan(
    folder: Path,
    loaded: LoadedConfig,
    runs: Sequence[PlannedRun],
    contents: Mapping[str, Contents],
) -> None:
    """The campaign's file and the folders of these runs, each pending."""
    if loaded.path is not None:
        atomic_write_bytes(folder / CAMPAIGN_FILE, loaded.path.read_bytes())
    else:
        tables = loaded.config.model_dump(mode="json", exclude_none=True)
        atomic_write_toml(folder / CAMPAIGN_FILE, tables)
    for run in runs:
        RunRecord.create(
            folder / run.folder,
            name=run.name,
            condition=run.condition,
            seed=run.seed,
            max_steps=run.max_steps,
            contents=contents[run.condition],
        )
        atomic_write_text(folder / run.config_path, run_config_toml(run.config))
