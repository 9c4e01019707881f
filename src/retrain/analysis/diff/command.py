"""What `retrain diff` does: find the two sides, compare them, show them."""

from __future__ import annotations

import json
from collections.abc import Sequence

import typer
from rich.console import Console

from retrain.analysis.diff.compare import compare, document
from retrain.analysis.diff.overview import campaigns_view
from retrain.analysis.diff.sides import plan_of
from retrain.analysis.diff.view import comparison_view
from retrain.terminal import Terminal


def diff_command(
    targets: Sequence[str],
    *,
    conditions: tuple[str, str] | None = None,
    as_json: bool = False,
    console: Console | None = None,
) -> None:
    """Show how two runs, conditions or campaigns differ.

    targets: as on the command line. conditions: two labels, for a single campaign.

    Raises InputError for what is not there or cannot be compared.
    """
    plan = plan_of(targets, conditions)
    comparisons = tuple(compare(match) for match in plan.matches)
    if as_json:
        # ASCII: names come from files and may hold what a terminal would obey.
        typer.echo(json.dumps(document(plan, comparisons), indent=2, allow_nan=False))
        return
    console = console or Terminal(highlight=False)
    if plan.kind == "campaigns":
        console.print(campaigns_view(plan, comparisons, console))
    else:
        console.print(comparison_view(comparisons[0], console))
