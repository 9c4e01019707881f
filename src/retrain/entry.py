"""How the programs begin and end: the verb that may be left out, errors as messages, exit codes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import typer

from retrain.errors import ConfigError, InputError, RetrainError


def with_verb(app: typer.Typer, arguments: Sequence[str]) -> list[str]:
    """`X.toml --lr 1` -> `run X.toml --lr 1`.

    Raises InputError for a word that is no file and nearly a verb.
    """
    verbs = [
        command.name or command.callback.__name__
        for command in app.registered_commands
        if command.callback
    ]
    first = arguments[0] if arguments else ""
    if first in (*verbs, "-h", "--help", "--version"):
        return list(arguments)
    if first and not first.startswith("-") and "." not in first and not Path(first).exists():
        from difflib import get_close_matches

        near = get_close_matches(first, verbs, n=1)
        if near:
            raise InputError(f"{first}: no such file, and no such verb; did you mean {near[0]}?")
    return ["run", *arguments]


def leave(program: Callable[..., Any], arguments: Sequence[str], name: str) -> NoReturn:
    """Run a program and leave: 0 done, 1 a run failed, 2 the input is wrong, 130 interrupted."""
    try:
        program(list(arguments), prog_name=name)
    except RetrainError as error:
        _say_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        sys.exit(130)
    except OSError as error:
        # A full disk or a folder without permission is no bug.
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
    except Exception:
        import traceback

        typer.echo(traceback.format_exc(), err=True)
        typer.echo("this is a bug in retrain: please report it with the lines above", err=True)
        sys.exit(1)
    sys.exit(0)


def _say_error(error: RetrainError) -> None:
    count = len(error.issues) if isinstance(error, ConfigError) else 1
    heading = "error: " if count == 1 else f"{count} errors, nothing was started:\n"
    typer.echo(f"{heading}{error}", err=True)
