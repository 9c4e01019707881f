"""Reading a TOML file, and what to say when it cannot be read."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from retrain.config.messages import near
from retrain.errors import ConfigError, ConfigIssue

DEFAULT_FILE = "retrain.toml"
_DEEPEST = 32


def parse(text: str) -> dict[str, Any]:
    """The tables of a TOML text. Raises TOMLDecodeError, also for what TOML allows and no config
    needs: deep nesting, numbers beyond 64 bits, the character NUL."""
    try:
        tables = tomllib.loads(text)
    except RecursionError:
        raise tomllib.TOMLDecodeError("tables or lists are nested too deep") from None
    except tomllib.TOMLDecodeError:
        raise
    except ValueError as error:
        raise tomllib.TOMLDecodeError("a whole number has too many digits") from error
    left: list[tuple[str, Any, int]] = [("", tables, 0)]
    while left:
        place, value, depth = left.pop()
        if depth > _DEEPEST:
            raise tomllib.TOMLDecodeError(f"{place[:60]}…: tables or lists are nested too deep")
        if isinstance(value, dict):
            left += [(f"{place}.{key}".lstrip("."), item, depth + 1) for key, item in value.items()]
        elif isinstance(value, list):
            left += [(place, item, depth + 1) for item in value]
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise tomllib.TOMLDecodeError(f"{place}: the whole number has too many digits")
        if "\0" in (value if isinstance(value, str) else place):
            raise tomllib.TOMLDecodeError(f"{place!r}: no text may hold the character NUL")
    return tables


def read_toml(path: Path) -> dict[str, Any]:
    """The file's tables. Raises ConfigError when there are none to be had."""
    try:
        return parse(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        message = _missing(path)
    except IsADirectoryError:
        message = _is_folder(path)
    except UnicodeDecodeError:
        message = "is not text in UTF-8; save it as plain UTF-8 text"
    except OSError as error:
        message = f"cannot be read: {error.strerror}"
    except tomllib.TOMLDecodeError as error:
        message = explain_syntax(str(error), path.read_text("utf-8-sig"))
    raise ConfigError([ConfigIssue("", message, file=str(path))])


def _missing(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return "no such file: its folder does not exist"
    if str(path) == DEFAULT_FILE:
        return "no such file here; name one (retrain my.toml), or write one with: retrain init"
    names = sorted(file.name for file in folder.glob("*.toml"))
    matches = near(path.stem, [name.removesuffix(".toml") for name in names])
    if matches:
        return f"no such file; did you mean {folder / matches[0]}.toml?"
    return "no such file" + (f"; {folder} has {', '.join(names[:5])}" if names else "")


def _is_folder(path: Path) -> str:
    names = sorted(file.name for file in path.glob("*.toml"))
    return "is a folder; name a TOML file" + (f", e.g. {path / names[0]}" if names else "")


_HINTS = (
    (r"=\s*(True|False)\b", "TOML writes true and false in small letters"),
    (r"=\s*(None|null|nil)\b", "TOML has no empty value; leave the key out to take its default"),
    (r"^\s*[\w.-]+\s*:\s", "TOML writes key = value, not key: value"),
    (r"^[^\"]*\"[^\"]*$|^[^']*'[^']*$", "the closing quote is missing"),
    (r"=\s*$", "the value is missing"),
    (r"^\s*\[{1,2}[^\]]*$", "the closing bracket of the heading is missing"),
    (r"=\s*[0-9.]+\s*(?![eE][-+0-9])[A-Za-z_/]", "text needs quotes, and a number has no unit"),
    (r"=\s*[A-Za-z_./~]", 'text needs quotes: key = "value"'),
)


def explain_syntax(error: str, text: str) -> str:
    """The line that tomllib means, and the usual cause, else tomllib's own words."""
    where = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)", error)
    if where is None:
        return error
    reason = error[: where.start()].rstrip(".")
    reason = reason[:1].lower() + reason[1:]
    lines = text.splitlines()
    number = int(where[1]) if where[1] else len(lines)
    line = lines[number - 1].strip() if 0 < number <= len(lines) else ""
    if reason.startswith(("cannot overwrite", "cannot declare")):
        hint = "it stands twice; keep one"
    else:
        hint = next((hint for pattern, hint in _HINTS if re.search(pattern, line)), "")
    return f"line {number} is not valid TOML: {line}: {hint or reason}"
