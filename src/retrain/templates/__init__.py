"""Configs to start from: `retrain init`. Each is a TOML file beside this one."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from retrain.errors import InputError

FOLDER = Path(__file__).parent
NAMES = ("quickstart", "experiment", "campaign")


def read(name: str) -> str:
    """A template's text."""
    if name not in NAMES:
        near = get_close_matches(name, NAMES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"{name}: no such template; there are {', '.join(NAMES)}{hint}")
    return (FOLDER / f"{name}.toml").read_text(encoding="utf-8")


def summaries() -> dict[str, str]:
    """Template -> its first line."""
    return {name: read(name).partition("\n")[0].removeprefix("# ") for name in NAMES}


def write(name: str, to: Path) -> None:
    """Write a template to a new file."""
    text = read(name)
    if to.is_dir():
        raise InputError(f"{to} is a folder; name a file, e.g. --to {to / 'retrain.toml'}")
    if not to.parent.is_dir():
        raise InputError(f"{to}: the folder {to.parent} does not exist")
    try:
        with to.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        message = f"{to} exists and is left as it is; write elsewhere with --to FILE"
        raise InputError(message) from None
    except OSError as error:
        raise InputError(f"{to} cannot be written: {error.strerror}") from None
