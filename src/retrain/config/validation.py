"""Validation that goes on after the first error: every problem, and a config without them."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from retrain.config.messages import LISTED, NESTED, issue_at
from retrain.config.schema import RunConfig

ConfigT = TypeVar("ConfigT", bound=RunConfig)


@dataclass(frozen=True, slots=True)
class Outcome(Generic[ConfigT]):
    """config: what is left when every wrong value is taken out. problems: (table, key, message)."""

    config: ConfigT
    problems: list[tuple[str, str, str]]


def validate(model: type[ConfigT], values: Mapping[str, Any]) -> Outcome[ConfigT]:
    """Values -> config, with the message for each value that is wrong."""
    values = deepcopy(dict(values))
    problems: dict[str, str] = {}
    while True:
        try:
            config = model.model_validate(values)
        except ValidationError as error:
            # Places first, removals after: pydantic reports a union once an alternative.
            places: dict[tuple[str | int, ...], str] = {}
            for item in error.errors(include_url=False, include_context=False):
                location = _place(item["loc"])
                place = places.setdefault(location, item["type"])
                key, message = issue_at(list(location), place, _look_up(values, location))
                problems.setdefault(key, message)
            for location in places:
                _take_out(values, location)
        else:
            split = [(*_split(place), message) for place, message in problems.items()]
            return Outcome(config, split)


def _split(place: str) -> tuple[str, str]:
    table, _, key = place.partition(".")
    return table, key


def _place(location: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """The part of pydantic's location that names a key, without items and union alternatives."""
    table = ".".join(map(str, location[:2]))
    if table in NESTED:
        return location[:3]
    return location[:4] if table in LISTED and len(location) > 2 else location[:2]


def _look_up(values: Any, location: tuple[str | int, ...]) -> Any:
    for part in location:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            return None
    return values


def _take_out(values: Any, location: tuple[str | int, ...]) -> None:
    if ".".join(map(str, location[:2])) in NESTED:
        # Whole: a key that it cannot be without may be the wrong one.
        location = location[:2]
    *path, last = location
    holder = _look_up(values, tuple(path))
    component = location[:2] == ("reward", "components")
    # An empty condition keeps the numbers of those after it; a component needs a type.
    empty = {"type": "match"} if component else {}
    if isinstance(holder, dict):
        holder.pop(last, None)
        if component and last in empty:
            holder.update(empty)
    elif isinstance(holder, list) and isinstance(last, int):
        holder[last] = empty
