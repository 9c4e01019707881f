"""The verb `retrain samples` and its options. Imports nothing heavy: `retrain --help` reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def samples(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Of a run or a campaign.")],
    step: Annotated[
        list[str] | None,
        typer.Option("--step", metavar="N|A:B", help="7, 10:20, -1 (newest), -5:; repeatable."),
    ] = None,
    best: Annotated[int | None, typer.Option("--best", metavar="K", help="By reward.")] = None,
    worst: Annotated[int | None, typer.Option("--worst", metavar="K", help="By reward.")] = None,
    correct: Annotated[bool, typer.Option("--correct", help="Only correct ones.")] = False,
    wrong: Annotated[bool, typer.Option("--wrong", help="Only wrong ones.")] = False,
    outcome: Annotated[
        list[str] | None,
        typer.Option("--outcome", metavar="X", help="correct, wrong, unverifiable; repeatable."),
    ] = None,
    grep: Annotated[
        str | None, typer.Option("--grep", metavar="REGEX", help="Found in the completion.")
    ] = None,
    problem: Annotated[
        list[str] | None, typer.Option("--problem", metavar="ID", help="Problem; repeatable.")
    ] = None,
    domain: Annotated[
        list[str] | None, typer.Option("--domain", metavar="D", help="Domain; repeatable.")
    ] = None,
    run: Annotated[
        list[str] | None,
        typer.Option("--run", metavar="NAME", help="Run of a campaign; repeatable."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", help="How many; 5 in the terminal.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Do not fold long ones.")] = False,
    color: Annotated[
        str, typer.Option("--color", metavar="BY", help="advantage, uncertainty or none.")
    ] = "advantage",
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page instead.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what policies wrote, why it was rewarded, and which tokens got credit.

    Reads a run or a campaign, also while it trains. The newest step comes first. A token's colour
    is its advantage: training makes blue tokens likelier and orange ones less likely. Planning
    spans are underlined.
    """
    from retrain.analysis.samples.command import samples_command
    from retrain.analysis.samples.selection import Selection, Steps, pattern_of

    outcomes = {*(outcome or ()), *(["correct"] if correct else []), *(["wrong"] if wrong else [])}
    selection = Selection(
        steps=tuple(Steps.parse(value) for value in step or ()),
        outcomes=frozenset(outcomes),
        problems=frozenset(problem or ()),
        domains=frozenset(domain or ()),
        pattern=None if grep is None else pattern_of(grep),
        best=best,
        worst=worst,
    )
    samples_command(
        folder,
        selection,
        runs=run or (),
        limit=limit,
        color=color,
        full=full,
        html=html,
        as_json=as_json,
    )
