"""The verb `retrain diff` and its options. Imports nothing heavy: `retrain --help` reads it."""

from __future__ import annotations

from typing import Annotated

import typer


def diff(
    targets: Annotated[
        list[str],
        typer.Argument(metavar="A B", help="Run, campaign, CAMPAIGN:CONDITION or CAMPAIGN:RUN."),
    ],
    conditions: Annotated[
        tuple[str, str] | None,
        typer.Option("--conditions", metavar="X Y", help="Two conditions of one campaign."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show how two runs, conditions or campaigns differ: configs, curves paired by seed, cost.

    Differences are B - A and ratios B / A. Two runs of the same config and seed are compared bit
    for bit. Reads files only, also while the runs train.
    """
    from retrain.analysis.diff.command import diff_command

    diff_command(targets, conditions=conditions, as_json=as_json)
