"""The verb `retrain sync`; what it does is in `sync.py`, which is imported when it is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from retrain.errors import InputError

_MODES = ("online", "offline")


def sync(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Of a run, a campaign, or many.")
    ],
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="TRACKER", help="wandb or trackio, instead of [logging]'s."),
    ] = None,
    project: Annotated[
        str | None, typer.Option("--project", metavar="NAME", help="Instead of the runs' own.")
    ] = None,
    entity: Annotated[
        str | None, typer.Option("--entity", metavar="NAME", help="User or team that it is of.")
    ] = None,
    mode: Annotated[
        str | None, typer.Option("--mode", metavar="MODE", help="online or offline.")
    ] = None,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Also what was stopped or failed, as it stands.")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Send everything anew, as other runs.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Send finished runs to a tracker, from what they wrote; what it has is not sent twice.

    The exit code is 1 when one could not be sent.
    """
    from retrain.config.messages import show
    from retrain.tracking.sync import sync as send
    from retrain.tracking.trackers import TRACKERS

    for option, value, known in (("--to", to, tuple(TRACKERS)), ("--mode", mode, _MODES)):
        if value is not None and value not in known:
            raise InputError(f"{option} {show(value)} is not known; {' or '.join(known)} is wanted")
    for option, value in (("--project", project), ("--entity", entity)):
        if value is not None and not value.strip():
            raise InputError(f"{option} is empty; give a name, or leave it out")
    given = {"wandb_project": project, "wandb_entity": entity, "wandb_mode": mode}
    changes: dict[str, object] = {key: value for key, value in given.items() if value is not None}
    if to is not None:
        changes["trackers"] = [to]
    raise typer.Exit(
        send(folder, changes=changes, again=again, unfinished=unfinished, as_json=as_json)
    )
