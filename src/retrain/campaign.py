"""`python -m retrain.campaign`: plan a campaign and print its commands; `--execute` trains it.

    python -m retrain.campaign                              plan the five standard conditions
    python -m retrain.campaign --execute                    and train them
    python -m retrain.campaign --config base.toml --seeds 101,102 --max-steps 200
    python -m retrain.campaign --wandb-project NAME         track them with Weights & Biases

A dry run writes the campaign's folder with its manifest and `run_all.sh`, prints one command a
run, and starts nothing. The commands train the planned runs in their places, from any folder and
in any order; `run_all.sh` trains all of them anew; `retrain resume` trains what is missing.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from retrain import templates
from retrain.analysis.words import plural
from retrain.config.files import read_toml
from retrain.config.load import LoadedConfig, Override, read_config, read_mapping
from retrain.entry import leave
from retrain.errors import ConfigError, ConfigIssue
from retrain.experiments.plan import PlannedRun, plan_runs
from retrain.options import parse_seeds
from retrain.output import complain
from retrain.preflight import check_reading
from retrain.processes import module_command

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(context_settings={"help_option_names": ["-h", "--help"]})
def plan(
    execute: Annotated[
        bool, typer.Option("--execute", help="Train all runs (the default only plans them).")
    ] = False,
    seeds: Annotated[
        str | None, typer.Option("--seeds", metavar="101,102,…", help="Seeds.")
    ] = None,
    max_steps: Annotated[
        int | None, typer.Option("--max-steps", help="Training steps a run.")
    ] = None,
    wandb_project: Annotated[
        str | None,
        typer.Option(
            "--wandb-project", metavar="NAME", help="Track with Weights & Biases, in this project."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="X.toml",
            help="Base config; without it the embedded model with the quickstart's settings.",
        ),
    ] = None,
) -> None:
    """Plan a campaign and print one command a run; --execute trains them."""
    loaded = _load(config, seeds, max_steps, wandb_project)
    if loaded.resume_from is not None:
        message = f"goes on with what is there, and this plans anew; run: retrain {loaded.name}"
        raise ConfigError([ConfigIssue("resume.from", message, file=loaded.name)])
    if execute:
        from retrain.experiments.campaign import run_campaign

        raise typer.Exit(run_campaign(loaded).exit_code)
    from retrain.experiments.campaign import create_campaign
    from retrain.experiments.paths import shown

    runs = plan_runs(loaded)
    folder = create_campaign(loaded, runs).folder
    typer.echo(
        f"# dry run: {plural(len(loaded.conditions), 'condition')} x "
        f"{plural(len(loaded.seeds), 'seed')}, {plural(len(runs), 'run')}; nothing was started"
    )
    for run in runs:
        typer.echo(shlex.join(command(folder, run)))
    place = shlex.quote(shown(folder))
    typer.echo(f"# campaign: {place}")
    typer.echo(f"# train all of it here: retrain resume {place}")


def command(folder: Path, run: PlannedRun) -> list[str]:
    """What trains a planned run in its place, from any folder."""
    program = ["retrain"] if shutil.which("retrain") else module_command("retrain")
    config, run_dir = folder / run.config_path, folder / run.folder
    return [
        *(*program, "run", str(config.absolute()), "--run-dir", str(run_dir.absolute())),
        *("--name", run.name, "--condition", run.condition),
    ]


def _load(
    config: Path | None, seeds: str | None, max_steps: int | None, wandb_project: str | None
) -> LoadedConfig:
    """The base config as a campaign; one without `[campaign]` gets the standard one."""
    overrides = []
    if max_steps is not None:
        overrides.append(Override("training", "max_steps", max_steps, "--max-steps"))
    if wandb_project is not None:
        overrides.append(Override("logging", "wandb_project", wandb_project, "--wandb-project"))
    numbers = parse_seeds(seeds)
    if config is None:
        values = tomllib.loads(templates.read("quickstart"))
        values["campaign"] = {"parallel": True}
        reading = read_mapping(values, overrides, numbers)
    elif "campaign" in read_toml(config):
        reading = read_config(config, overrides, numbers)
    else:
        values = {**read_toml(config), "campaign": {}}
        reading = read_mapping(values, overrides, numbers, config.parent)
    try:
        loaded, warnings = check_reading(reading)
    except ConfigError as error:
        # Read as a mapping, the file's mistakes do not know where they stand.
        named = [replace(issue, file=issue.file or str(config or "")) for issue in error.issues]
        raise ConfigError(named) from None
    for warning in warnings:
        complain(f"warning: {warning}")
    return loaded


def main(arguments: Sequence[str] | None = None) -> None:
    """The program; exit codes as of `retrain`."""
    leave(app, sys.argv[1:] if arguments is None else arguments, "python -m retrain.campaign")


if __name__ == "__main__":
    main()
