"""The verbs of `retrain`. Heavy modules are imported inside a verb, so that help is instant.

Help is plain text (`rich_markup_mode=None`): importing what draws boxes around it would take
longer than everything else together.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from retrain import __version__
from retrain.analysis.diff.verb import diff
from retrain.analysis.report_verb import report
from retrain.analysis.samples.verb import samples
from retrain.entry import leave, with_verb
from retrain.errors import InputError
from retrain.options import parse_seeds, takes_overrides
from retrain.output import complain
from retrain.tracking.verb import sync

if TYPE_CHECKING:
    from retrain.config.load import LoadedConfig, Override

app = typer.Typer(
    name="retrain",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigPath = Annotated[
    Path | None, typer.Argument(metavar="X.toml", help="The config; without it, ./retrain.toml.")
]
Overrides = Sequence["Override"]
Seeds = Annotated[str | None, typer.Option("--seeds", metavar="1,2,…", help="Seeds of a campaign.")]
AllowChange = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-change",
        metavar="TABLE.KEY",
        help="A key in which a resumed run may become another one, or data, reward, algorithm, "
        "model, init_adapter, whose content may be another; repeatable.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"retrain {__version__}")
        raise typer.Exit


VERSION = typer.Option(
    "--version", help="Print the version and leave.", is_eager=True, callback=_print_version
)


@app.callback()
def root(version: Annotated[bool, VERSION] = False) -> None:
    """Train language models by reinforcement learning: a TOML file in, evidence out.

    retrain X.toml trains what the file describes, one run or a whole campaign.
    """


@app.command(short_help="Train a run or a campaign; this verb may be left out.")
@takes_overrides
def run(
    path: ConfigPath = None,
    *,
    overrides: Overrides,
    seeds: Seeds = None,
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", help="Folder of a single run.")
    ] = None,
    resume_from: Annotated[
        Path | None,
        typer.Option("--resume", metavar="FOLDER", help="Go on with this run or campaign instead."),
    ] = None,
    allow_change: AllowChange = None,
    name: Annotated[str | None, typer.Option("--name", hidden=True)] = None,
    condition: Annotated[str | None, typer.Option("--condition", hidden=True)] = None,
) -> None:
    """Train what a config describes: a run, or a campaign (the verb may be left out)."""
    loaded, warnings = _load(path, overrides, seeds, begun=resume_from is not None)
    resume_from = resume_from or loaded.resume_from
    if resume_from is None and allow_change:
        raise InputError("--allow-change belongs to --resume")
    for option, value in (("--run-dir", run_dir), ("--name", name), ("--condition", condition)):
        if loaded.is_campaign and value is not None:
            raise InputError(f"{option} is for a single run, and {loaded.name} is a campaign")
        if resume_from is not None and value is not None:
            raise InputError(f"{option} is for a new run; with --resume everything has its place")
    # A run of a campaign that is trained again was warned about as a part of its campaign.
    for warning in warnings if condition is None else ():
        complain(f"warning: {warning}")
    if resume_from is not None:
        from retrain.experiments.resume import resume as go_on

        result = go_on(resume_from, loaded=loaded, allow_changes=allow_change or ())
        raise typer.Exit(result.exit_code)
    if loaded.is_squeeze:
        from retrain.experiments.squeezing import squeeze_alone

        squeeze_alone(loaded)
        raise typer.Exit
    if loaded.is_campaign:
        from retrain.experiments.campaign import run_campaign

        raise typer.Exit(run_campaign(loaded).exit_code)
    from retrain.experiments.single import run_single

    raise typer.Exit(run_single(loaded, run_dir=run_dir, name=name, condition=condition).exit_code)


@app.command(short_help="Go on with a run or a campaign.")
@takes_overrides
def resume(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Of a run or a campaign.")],
    *,
    overrides: Overrides,
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", help="Also try runs again that failed by their own error."),
    ] = False,
    extend: Annotated[
        Path | None,
        typer.Option("--extend", metavar="X.toml", help="Add this file's new runs to a campaign."),
    ] = None,
    allow_change: AllowChange = None,
) -> None:
    """Go on with a run or a campaign from its last checkpoints; what is finished stays as it is.

    Of a campaign, options may change how its runs are trained, e.g. --set campaign.max_workers=4,
    and where, e.g. --set inference.url=http://localhost:8001, but not what they compute.
    """
    from retrain.experiments.resume import resume as go_on

    loaded = None
    if extend is not None:
        loaded, warnings = _load(extend, overrides, None)
        for warning in warnings:
            complain(f"warning: {warning}")
        overrides = ()
    result = go_on(
        folder,
        loaded=loaded,
        overrides=overrides,
        allow_changes=allow_change or (),
        retry_failed=retry_failed,
        extend=extend is not None,
    )
    raise typer.Exit(result.exit_code)


@app.command("resume-check", short_help="Show from where runs would go on.")
def resume_check(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Of a run, a campaign, or many.")
    ],
    as_json: Json = False,
) -> None:
    """Show whether and from which step each run would go on. Loads no model, changes nothing.

    The exit code is 1 when a checkpoint is damaged or cannot be read.
    """
    from retrain.experiments.outlook import resume_check as check

    raise typer.Exit(check(folder, as_json=as_json))


@app.command(short_help="Find the LoRA rank worth keeping.")
def squeeze(
    target: Annotated[
        str,
        typer.Argument(
            metavar="ADAPTER|X.toml",
            help="An adapter, here or as tinker://…, or a file with [squeeze].",
        ),
    ],
    min_variance_retention: Annotated[
        float | None, typer.Option(help="Share that the recommended rank keeps.")
    ] = None,
    adapter_name: Annotated[
        str | None, typer.Option(help="Which one, when there are several.")
    ] = None,
    source_rank: Annotated[
        int | None, typer.Option(help="Rank that the adapter must have.")
    ] = None,
    compress_to: Annotated[
        int | None, typer.Option(help="Rank to cut to; 0 takes the recommended one.")
    ] = None,
    output_path: Annotated[
        str | None, typer.Option(help="Folder for the compressed adapter.")
    ] = None,
    allocation: Annotated[str | None, typer.Option(help="uniform or per_module.")] = None,
    check: Annotated[
        bool | None, typer.Option("--check", help="Evaluate it beside the original.")
    ] = None,
    finetune_steps: Annotated[
        int | None, typer.Option(help="Steps to train it on after the check.")
    ] = None,
    log_dir: Annotated[
        str | None, typer.Option(help="Folder under which results are written.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show how much of an adapter each LoRA rank keeps, and write it cut to the rank worth it."""
    from retrain.config.load import Override, read_config, read_mapping
    from retrain.experiments.squeezing import squeeze_alone
    from retrain.preflight import check_reading

    options = {
        "min_variance_retention": min_variance_retention,
        "adapter_name": adapter_name,
        "source_rank": source_rank,
        "compress_to": compress_to,
        "output_path": output_path,
        "allocation": allocation,
        "check": check,
        "finetune_steps": finetune_steps,
    }
    overrides = [
        Override("squeeze", key, value, "--" + key.replace("_", "-"))
        for key, value in options.items()
        if value is not None
    ]
    if log_dir is not None:
        overrides.append(Override("logging", "log_dir", log_dir, "--log-dir"))
    if target.endswith(".toml"):
        reading = read_config(target, overrides)
    else:
        reading = read_mapping({"squeeze": {"adapter_path": target}}, overrides)
    loaded, warnings = check_reading(reading)
    if not loaded.is_squeeze:
        raise InputError(f"{target} has no [squeeze] table, or a [campaign], which squeezes itself")
    for warning in warnings:
        complain(f"warning: {warning}")
    squeeze_alone(loaded, as_json=as_json)


@app.command(short_help="Check a config and show what it would do.")
@takes_overrides
def explain(
    path: ConfigPath = None,
    *,
    overrides: Overrides,
    seeds: Seeds = None,
    as_json: Json = False,
) -> None:
    """Check a config and show what it would do: values, runs, steps, time. Trains nothing."""
    loaded, warnings = _load(path, overrides, seeds)
    from retrain.config import explain as explaining

    explanation = explaining.explain(loaded, warnings)
    if as_json:
        _print_json(explanation)
    else:
        explaining.render(explanation)


@app.command(short_help="Show how campaigns and runs stand.")
def status(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FOLDER…", help="Log, campaign or run folders; without any, logs."),
    ] = None,
    as_json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until all is done.")] = False,
) -> None:
    """Show how campaigns and runs stand."""
    from retrain.analysis.status import status_command

    raise typer.Exit(status_command(paths or [], as_json=as_json, watch=watch))


app.command(short_help="Judge a campaign and write its report.")(report)
app.command(short_help="Compare two runs, conditions or campaigns.")(diff)


@app.command(short_help="Write metrics and evaluations as tables.")
def export(
    paths: Annotated[
        list[Path], typer.Argument(metavar="CAMPAIGN…", help="Campaign, run or log folders.")
    ],
    csv: Annotated[bool, typer.Option("--csv", help="CSV files, the default.")] = False,
    parquet: Annotated[bool, typer.Option("--parquet", help="Parquet files.")] = False,
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="FOLDER", help="Instead of export/ in the campaign's folder."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write what runs measured as tidy tables: runs, metrics, evaluations, problems."""
    from retrain.analysis.export import export_command

    export_command(paths, csv=csv, parquet=parquet, to=to, as_json=as_json)


app.command(short_help="Show what policies wrote, with each token's credit.")(samples)
app.command(short_help="Send finished runs to a tracker.")(sync)


@app.command(short_help="Ask a reward about answers.")
def score(
    file: Annotated[
        Path, typer.Argument(metavar="FILE.jsonl|RUN", help="Rows, or what a run has written.")
    ],
    kind: Annotated[
        str | None,
        typer.Option("--type", metavar="TYPE", help="match, math, judge, custom or composite."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="X.toml", help="Take its [reward].")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a row.")] = False,
) -> None:
    """Judge answers as training would: rows with `reference` and `response`, or a run's samples."""
    from retrain.rewards.score_command import score_command

    score_command(file, kind=kind, config=config, as_json=as_json)


@app.command(short_help="List modes, losses, tasks, rewards.")
def plugins(path: ConfigPath = None, as_json: Json = False) -> None:
    """List modes, losses, tasks and rewards: the built-in ones, and the functions that a config
    could name because they lie beside it or in its search paths."""
    from retrain import catalogue

    entries = catalogue.catalogue(path)
    if as_json:
        _print_json(entries)
    else:
        catalogue.render(entries)


@app.command(short_help="Write a commented config to start from.")
def init(
    template: Annotated[
        str, typer.Argument(metavar="TEMPLATE", help="quickstart, experiment or campaign.")
    ] = "quickstart",
    to: Annotated[Path, typer.Option("--to", metavar="FILE", help="Where to write it.")] = Path(
        "retrain.toml"
    ),
    list_all: Annotated[bool, typer.Option("--list", help="List the templates.")] = False,
) -> None:
    """Write a commented config to start from; never over an existing file."""
    from retrain import templates

    if list_all:
        for name, summary in templates.summaries().items():
            typer.echo(f"{name:<12}{summary}")
        return
    templates.write(template, to)
    argument = "" if to == Path("retrain.toml") else f" {to}"
    typer.echo(f"wrote {to}")
    typer.echo(f"look at it: retrain explain{argument}")
    typer.echo(f"train:      retrain{argument}")


@app.command(short_help="Show what this machine has and lacks.")
def doctor(as_json: Json = False) -> None:
    """Show what this machine has, and what each missing part would give.

    The exit code is 1 when something that every run needs is missing.
    """
    from retrain import doctor as examining

    examination = examining.examine()
    if as_json:
        _print_json(examination)
    else:
        examining.render(examination)
    raise typer.Exit(0 if examination["ok"] else 1)


def _load(
    path: Path | None, overrides: Sequence[Override], seeds: str | None, *, begun: bool = False
) -> tuple[LoadedConfig, list[str]]:
    from retrain.preflight import load_checked

    return load_checked(path, overrides, parse_seeds(seeds), begun=begun)


def _print_json(value: Any) -> None:
    import json

    # ASCII: any screen takes it, and it holds nothing that a terminal would obey.
    typer.echo(json.dumps(value, indent=2))


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The program."""
    given = sys.argv[1:] if arguments is None else arguments
    leave(lambda rest, prog_name: app(with_verb(app, rest), prog_name=prog_name), given, "retrain")
