"""Labels of conditions: folder names, tags, and what the reports call them.

A label is the condition's `name`, else `maxrl+gtpo_sepa`. Conditions that would share such a label
get their changes appended, sorted by key: `grpo+none~lr=0.0001`. Labels hold only characters that
every file system and tracker takes, and no two differ by case alone.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from retrain.config.schema import RunConfig

Changes = Mapping[str, Mapping[str, Any]]
"""table -> key -> value"""

MAX_LENGTH = 64
"""Trackers cut or refuse longer tags."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=~,-]*")
_UNSAFE = re.compile(r"[^A-Za-z0-9._+=~,-]+")
_DIGEST_LENGTH = 6


def check_name(name: str) -> str:
    """What is wrong with a name given by the user; empty when nothing is."""
    if len(name) > MAX_LENGTH:
        return f'"{name}" has {len(name)} characters; at most {MAX_LENGTH} fit'
    if not _NAME.fullmatch(name) or name.endswith("."):
        return (
            f'"{name}" cannot name a folder on every system; use letters, digits and . _ + = ~ , - '
            f'(for example "{safe(name)}")'
        )
    return ""


def safe(text: str) -> str:
    """`text` with only the characters of a label; distinct texts stay distinct."""
    cleaned = _UNSAFE.sub("-", text).strip("-._+=~,") or "x"
    return cleaned if cleaned == text else f"{cleaned}-{_digest(text)}"


def make_labels(conditions: Sequence[tuple[str, str, Changes]]) -> list[str]:
    """(name, modes, changes) of every condition -> its label."""
    bare = [fit(name or safe(modes)) for name, modes, _ in conditions]
    times = Counter(label.lower() for label in bare)
    return [
        label if name or times[label.lower()] == 1 else fit(label + suffix(changes))
        for label, (name, _, changes) in zip(bare, conditions, strict=True)
    ]


def suffix(changes: Changes) -> str:
    """`~key=value` for every change, sorted by key."""
    parts = sorted(
        f"~{safe(_short_key(table, key))}{path}={safe(value)}"
        for table, keys in changes.items()
        for key, written in keys.items()
        for path, value in _leaves(written)
    )
    return "".join(parts)


def fit(label: str) -> str:
    """A label short enough for a tag; a cut one ends in a digest of the whole."""
    if len(label) <= MAX_LENGTH:
        return label
    return f"{label[: MAX_LENGTH - _DIGEST_LENGTH - 1]}-{_digest(label)}"


def _short_key(table: str, key: str) -> str:
    """`lr`, or `loss.type` where more than one table has such a key."""
    homes = [
        name
        for name, field in RunConfig.model_fields.items()
        if key in getattr(field.annotation, "model_fields", {})
    ]
    return key if len(homes) == 1 else f"{table}.{key}"


def _leaves(value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            for path, leaf in _leaves(inner):
                yield f".{safe(str(key))}{path}", leaf
    elif isinstance(value, (list, tuple)):
        yield "", ",".join(_text(item) for item in value)
    else:
        yield "", _text(value)


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()[:_DIGEST_LENGTH]
