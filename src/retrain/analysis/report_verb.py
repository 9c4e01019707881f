"""The verb `retrain report` and its options. Imports nothing heavy: `retrain --help` reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

OTHERWISE = "Judge otherwise than was recorded; marked in the report"


def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="CAMPAIGN…", help="Folders; several of one design pool their seeds."
        ),
    ],
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FOLDER", help="Write the files here.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Write it anew until the campaign has finished.")
    ] = False,
    show: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
    metric: Annotated[
        str | None, typer.Option(help=f"{OTHERWISE}: accuracy, greedy_accuracy or reward.")
    ] = None,
    summary: Annotated[
        str | None, typer.Option(help=f"{OTHERWISE}: final, area_by_step or area_by_tokens.")
    ] = None,
    window: Annotated[int | None, typer.Option(help=f"{OTHERWISE}: last evaluations.")] = None,
    baseline: Annotated[str | None, typer.Option(help=f"{OTHERWISE}: a label.")] = None,
    contrasts: Annotated[
        list[str] | None,
        typer.Option("--contrasts", metavar="'A vs B'", help=f"{OTHERWISE}; repeatable."),
    ] = None,
    margin: Annotated[float | None, typer.Option(help=f"{OTHERWISE}: 0.02 is 2 points.")] = None,
    alpha: Annotated[float | None, typer.Option(help=f"{OTHERWISE}: level of the tests.")] = None,
    floor: Annotated[float | None, typer.Option(help=f"{OTHERWISE}: of diverged runs.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and write no files.")] = False,
) -> None:
    """Write a campaign's report anew: report.html to look through, report.md, and tables.

    It says for each planned comparison whether the condition is better, worse, equivalent or
    undecided. Works while the campaign runs.
    """
    from retrain.analysis.report_command import report_command

    changes = {
        "metric": metric,
        "summary": summary,
        "window": window,
        "baseline": baseline,
        "contrasts": contrasts or None,
        "margin": margin,
        "alpha": alpha,
        "floor": floor,
    }
    chosen = {key: value for key, value in changes.items() if value is not None}
    code = report_command(folders, chosen, to=to, watch=watch, show=show, as_json=as_json)
    raise typer.Exit(code)
