"""How the programs begin and end: the verb that may be left out, errors as messages, exit codes."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import typer

from retrain.errors import ConfigError, InputError, RetrainError
from retrain.output import complain, guard_output, lost_output


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
    """Run a program and leave: 0 done, 1 a run failed, 2 the input is wrong, 130 interrupted.

    Output that is lost ends nothing, and is no failure but of a document that was asked for.
    """
    guard_output()
    code = _run(program, arguments, name)
    lost = lost_output()
    if lost is not None and lost.errno != errno.EPIPE:
        complain(f"not everything could be written to the standard output: {lost.strerror}")
        code = code or int("--json" in arguments)
    sys.exit(code)


def _run(program: Callable[..., Any], arguments: Sequence[str], name: str) -> str | int | None:
    try:
        program(list(arguments), prog_name=name)
    except SystemExit as end:
        return end.code
    except RetrainError as error:
        _say_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        complain("interrupted")
        return 130
    except BaseException as error:
        # A native library's panic is no Exception. What the machine does to us is no bug.
        from retrain.causes import ERROR, cause_of, describe, remedy

        cause = cause_of(error, Path())
        if isinstance(error, OSError) or cause != ERROR:
            told = str(error) if isinstance(error, OSError) else describe(error)
            complain("; ".join(filter(None, [f"error: {told}", remedy(cause, "it")])))
            return 1
        import traceback

        complain(traceback.format_exc())
        complain("this is a bug in retrain: please report it with the lines above")
        return 1
    return 0


def _say_error(error: RetrainError) -> None:
    count = len(error.issues) if isinstance(error, ConfigError) else 1
    heading = "error: " if count == 1 else f"{count} errors, nothing was started:\n"
    complain(f"{heading}{error}")
