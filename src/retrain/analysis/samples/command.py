"""What `retrain samples` does: find the runs, choose completions, show them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

import typer
from rich.console import Console
from rich.text import Text

from retrain.analysis.reading import load_tables, nested
from retrain.analysis.records import RunView, find_records
from retrain.analysis.samples.look import one_line
from retrain.analysis.samples.sample import Sample
from retrain.analysis.samples.selection import OUTCOMES, Seen, Selection, choose
from retrain.analysis.samples.terminal import show
from retrain.errors import InputError
from retrain.files import GENERATIONS_FILE, atomic_write_text
from retrain.terminal import Terminal

SCHEMA = 1
SHOWN, SHOWN_ELSEWHERE = 5, 2000
"""Completions shown unless told otherwise: in the terminal, and on a page or as JSON."""
COLORS = ("advantage", "uncertainty", "none")


def samples_command(
    folder: Path,
    selection: Selection,
    *,
    runs: Sequence[str] = (),
    limit: int | None = None,
    color: str = "advantage",
    full: bool = False,
    html: Path | None = None,
    as_json: bool = False,
    console: Console | None = None,
) -> None:
    """Show the chosen completions of the run or campaign in `folder`.

    runs:  names of the runs to look at; empty for all.
    limit: how many; None for what suits the output. Of best and worst, the selection says it.
    html:  write a page instead of printing.

    Raises InputError for what is not there or cannot be meant.
    """
    _check(selection, limit, color, html, as_json)
    found = _runs(folder, runs)
    elsewhere = html is not None or as_json
    selection = replace(selection, limit=limit or (SHOWN_ELSEWHERE if elsewhere else SHOWN))
    chosen, seen = choose(found, selection)
    if not seen.total:
        raise InputError(_why_nothing(folder, found))
    if unknown := selection.outcomes - {*OUTCOMES, *seen.outcomes}:
        known = ", ".join(dict.fromkeys([*OUTCOMES, *sorted(seen.outcomes - {""})]))
        raise InputError(f"--outcome {min(unknown)}: no such outcome; there are {known}")
    if html is not None:
        from retrain.analysis.samples.page import page

        _write(html, page(chosen, seen, _title(folder), color))
        typer.echo(f"wrote {html} ({html.stat().st_size / 1e6:.1f} MB)", err=as_json)
        typer.echo(_count(chosen, seen, selection), err=as_json)
    elif as_json:
        document = {
            "schema": SCHEMA,
            "logged": seen.total,
            "matching": seen.matching,
            "samples": [sample.document() for sample in chosen],
        }
        # ASCII: model text may hold what a terminal would obey.
        typer.echo(json.dumps(document, indent=2))
    else:
        console = console or Terminal(highlight=False)
        show(chosen, console, by=color, pattern=selection.pattern, full=full)
        console.print(Text(_count(chosen, seen, selection), style="dim"), soft_wrap=True)


def _check(
    selection: Selection, limit: int | None, color: str, html: Path | None, as_json: bool
) -> None:
    if color not in COLORS:
        raise InputError(f"--color {color}: write one of {', '.join(COLORS)}")
    for option, count in (
        *(("--limit", limit), ("--best", selection.best)),
        ("--worst", selection.worst),
    ):
        if count is not None and count < 1:
            raise InputError(f"{option} {count}: write a number of 1 or more")
    if limit is not None and selection.ranked:
        raise InputError("--limit does not go with --best and --worst, which say how many")
    if html is not None and as_json:
        raise InputError("--html and --json do not go together: choose one")
    if html is not None and html.is_dir():
        raise InputError(f"--html {html} is a folder; name a file, e.g. {html / 'samples.html'}")
    if html is not None and not html.absolute().parent.is_dir():
        raise InputError(f"--html {html}: the folder {html.parent} does not exist")


def _runs(folder: Path, names: Sequence[str]) -> list[RunView]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the folder of a run or of a campaign")
    found = find_records([folder])
    campaigns = found.campaigns
    if len(campaigns) + bool(found.runs) > 1:
        newest = shlex.quote(str(campaigns[0].folder))
        raise InputError(
            f"{folder} holds several campaigns or runs; give one of them: retrain samples {newest}"
        )
    runs = list(campaigns[0].runs if campaigns else found.runs)
    if not runs:
        raise InputError(
            f"{folder} holds no run: give the folder of a run (with run.json) or of a campaign "
            "(with manifest.json)"
        )
    by_name = {run.name: run for run in runs}
    for name in names:
        if name not in by_name:
            near = get_close_matches(name, by_name, n=1, cutoff=0.3)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise InputError(f"--run {name}: no such run in {folder}{hint}")
    return [run for run in runs if not names or run.name in names]


def _why_nothing(folder: Path, runs: Sequence[RunView]) -> str:
    silent = [run for run in runs if not _logs(run)]
    if silent and len(silent) == len(runs):
        return (
            f"{folder}: no completions were logged: log_generations = 0 in [logging] of "
            f"{silent[0].config}; train with log_generations = 4, say (a run that is resumed may "
            "change it: --set logging.log_generations=4)"
        )
    if len(runs) == 1:
        return (
            f"{runs[0].folder}: no completions yet: {GENERATIONS_FILE} is missing or empty; they "
            "come with the run's first step"
        )
    return f"{folder}: none of its {len(runs)} runs has logged a completion yet"


def _logs(run: RunView) -> bool:
    return nested(load_tables(run.config), "logging").get("log_generations") != 0


def _count(chosen: Sequence[Sample], seen: Seen, selection: Selection) -> str:
    """How many were shown of how many, and what to do to see others."""
    logged = f"{seen.total:,} logged"
    if not seen.matching:
        steps = f"steps {min(seen.steps)} to {max(seen.steps)}"
        domains = ", ".join(sorted(one_line(d) for d in seen.domains if d)[:8])
        text = f"none of {logged} completions matches; there are {steps}"
        text += f", of {domains}" if domains else ""
        for problem in sorted(selection.problems - seen.problems):
            near = get_close_matches(problem, seen.problems, n=1)
            hint = f"; did you mean {one_line(near[0])}?" if near else ""
            text += f"\nno completion of {problem} was logged{hint}"
        return text
    text = f"{len(chosen):,} of {seen.matching:,}"
    text += " completions" if seen.matching == seen.total else f" matching ({logged})"
    if selection.ranked:
        ends = [("best", selection.best), ("worst", selection.worst)]
        text += f": the {' and '.join(f'{end} {count}' for end, count in ends if count)} by reward"
    elif len(chosen) < seen.matching:
        text += f", the newest first; --limit {seen.matching} for all"
    return text


def _title(folder: Path) -> str:
    return folder.resolve().name


def _write(path: Path, document: str) -> None:
    try:
        atomic_write_text(path, document)
    except OSError as error:
        raise InputError(f"--html {path} cannot be written: {error.strerror}") from None
