"""From the rows of a file or data set to problems: which field is what, ids, repeated rows.

Rows come as dicts, whatever they were stored as. A JSONL file with retrain's own keys is strict,
as it was written for retrain: an unknown key is a mistake. Rows that were written for others keep
what else they hold as the problem's metadata.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from retrain.analysis.words import plural
from retrain.config.data import DataConfig
from retrain.config.messages import did_you_mean
from retrain.errors import InputError
from retrain.types import Message, Problem

OWN_KEYS = frozenset({"prompt", "answer", "id", "domain", "split", "metadata"})
SPLITS = ("train", "held_out")
DEFAULT_DOMAIN = "default"
_INT64 = 2**63
_MOST_NAMES = 12
"""Fields that a message lists."""


@dataclass(frozen=True, slots=True)
class Fields:
    """Which field of a row is what.

    strict:     any field beside retrain's own is an error, and so is a row that is repeated.
    has_splits: a field `split` says whether a row is held out.
    skip_empty: leave out rows without a prompt or an answer, and say how many; else an error.
    """

    prompt: str = "prompt"
    answer: str = "answer"
    domain: str = "domain"
    strict: bool = True
    has_splits: bool = True
    skip_empty: bool = False

    @classmethod
    def of(cls, data: DataConfig) -> Fields:
        """As `[data]` says."""
        keys = (data.prompt_key, data.answer_key, data.domain_key)
        own = keys == ("prompt", "answer", "domain")
        is_jsonl = data.source == "jsonl"
        return cls(
            *keys,
            strict=is_jsonl and own,
            has_splits=data.source != "hub",
            skip_empty=not is_jsonl,
        )


@dataclass(slots=True)
class Collected:
    """The problems of some rows, by their `split` ("" where they have none)."""

    by_split: dict[str, list[Problem]] = field(
        default_factory=lambda: {"train": [], "held_out": [], "": []}
    )
    notes: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[Problem]:
        return [problem for problems in self.by_split.values() for problem in problems]


def collect(rows: Iterable[tuple[str, Any]], fields: Fields, key: str, what: str) -> Collected:
    """The problems of `rows`.

    rows: (place, row), e.g. ("line 3", {...}).
    key:  the config key that messages name; what: the file or data set.

    Raises InputError that names the row and the remedy.
    """
    collected = Collected()
    places: dict[str, str] = {}
    contents: dict[bytes, str] = {}
    left_out: Counter[str] = Counter()
    has_domain = False
    names: list[str] = []
    for place, row in rows:
        where = f"{key}: {what}, {place}"
        if not isinstance(row, Mapping):
            raise InputError(f"{where}: one JSON object a line is wanted, not {str(row)[:40]!r}")
        names = names or sorted(map(str, row))
        read = _Row(row, fields, where, f"{what}, {place}")
        if fields.skip_empty and (missing := read.missing()):
            left_out[f"has no {missing}"] += 1
            continue
        problem, split = read.problem()
        has_domain = has_domain or read.has_domain()
        digest = _digest([problem.prompt, problem.answer], 16)
        if not fields.strict and digest in contents:
            left_out["repeats the prompt and the answer of an earlier one"] += 1
            continue
        if problem.id in places:
            raise InputError(
                f"{where}: id {problem.id!r} is already on {places[problem.id]}"
                + ("" if fields.strict else _contradiction("id" in row))
            )
        places[problem.id] = place
        contents[digest] = place
        collected.by_split[split].append(problem)
    if fields.domain not in ("domain", "") and not has_domain and places:
        raise InputError(
            f"data.domain_key: {what}: no row has a field {fields.domain!r}; {_listed(names)}"
            f"{did_you_mean(fields.domain, names)}"
        )
    for reason, count in left_out.items():
        collected.notes.append(f"{what}: {plural(count, 'row')} left out: {reason}")
    return collected


def _contradiction(has_id: bool) -> str:
    content = "another prompt or answer" if has_id else "the same prompt and another answer"
    return f", with {content}; leave one of them out, or give every row an `id` of its own"


def answer_text(value: Any) -> str | None:
    """A reference answer as text; None when `value` is none.

    A number is written with the fewest digits that name it, without an exponent, and without a
    point when it is whole.
    """
    match value:
        case bool() | None:
            return None
        case str():
            return value if value.strip() else None
        case int():
            return str(value)
        # A column of whole numbers with gaps, which have 64 bits at most.
        case float() if value.is_integer() and abs(value) < _INT64:
            return str(int(value))
        case float() | Decimal():
            # numpy's floats are floats with another repr.
            exact = Decimal(float.__repr__(value)) if isinstance(value, float) else value
            if not exact.is_finite():
                return None
            text = format(exact, "f")
            return text.rstrip("0").rstrip(".") if "." in text else text
        case _:
            return None


def plain_rows(batch: Any) -> list[dict[str, Any]]:
    """The rows of an arrow table or batch. Floats of 16 and 32 bits become the shortest decimals
    that name them: 0.1 and not 0.10000000149011612."""
    import numpy as np
    import pyarrow as pa

    def shorter(kind: Any) -> Callable[[Any], Any] | None:
        """What is to be done to values of a type; None when nothing is."""
        if pa.types.is_float16(kind) or pa.types.is_float32(kind):
            narrow = np.float16 if pa.types.is_float16(kind) else np.float32
            return lambda value: float(str(narrow(value)))
        if pa.types.is_dictionary(kind):
            return shorter(kind.value_type)
        if pa.types.is_struct(kind):
            inner = {part.name: change for part in kind if (change := shorter(part.type))}
            return (lambda value: changed(value, inner)) if inner else None
        if hasattr(kind, "value_type") and (each := shorter(kind.value_type)):
            return lambda value: [None if item is None else each(item) for item in value]
        return None

    def changed(row: dict[str, Any], changes: dict[str, Callable[[Any], Any]]) -> dict[str, Any]:
        odd = {name: change(row[name]) for name, change in changes.items() if row[name] is not None}
        return {**row, **odd}

    changes = {part.name: change for part in batch.schema if (change := shorter(part.type))}
    rows: list[dict[str, Any]] = batch.to_pylist()
    return [changed(row, changes) for row in rows] if changes else rows


def problem_id(prompt: Any) -> str:
    """The id of a problem that was given none."""
    return _digest(prompt, 6).hex()


def _digest(value: Any, size: int) -> bytes:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=size).digest()


class _MissingError(Exception):
    """A field that is not there. holder: the field that should hold it, or empty for the row."""

    def __init__(self, holder: str, name: str, names: list[str]) -> None:
        super().__init__(name)
        self.holder = holder
        self.name = name
        self.names = names


def look_up(row: Mapping[str, Any], key: str) -> Any:
    """The value of a field; dots go into nested fields and, as numbers, into lists."""
    if key in row:
        return row[key]
    value: Any = row
    path: list[str] = []
    for name in key.split("."):
        holder = ".".join(path)
        if isinstance(value, Mapping):
            if name not in value:
                raise _MissingError(holder, name, sorted(map(str, value)))
            value = value[name]
        elif isinstance(value, list) and name.isdigit() and int(name) < len(value):
            value = value[int(name)]
        elif value is None and path:
            return None
        else:
            raise _MissingError(holder, name, [])
        path.append(name)
    return value


class _Row:
    """One row on its way to a problem."""

    def __init__(self, row: Mapping[str, Any], fields: Fields, where: str, shown: str) -> None:
        self._row = row
        self._fields = fields
        self._where = where
        self._shown = shown
        if fields.strict:
            self._check_keys()
        self._prompt = self._field("prompt", fields.prompt)
        self._answer = self._field("answer", fields.answer)

    def _check_keys(self) -> None:
        unknown = sorted(set(self._row) - OWN_KEYS)
        if unknown:
            raise InputError(
                f"{self._where}: unknown key {unknown[0]!r}; known are "
                f"{', '.join(sorted(OWN_KEYS))} (put anything else into `metadata`)"
            )

    def _field(self, role: str, key: str) -> Any:
        try:
            return look_up(self._row, key)
        except _MissingError as error:
            if self._fields.strict:
                raise InputError(f"{self._where}: `{role}` is missing") from error
            owner = f"in {error.holder!r}" if error.holder else "there"
            fields = _listed(error.names) if error.names else f"{error.holder} has no fields"
            raise InputError(
                f"data.{role}_key: {self._shown}: no field {error.name!r} {owner}; {fields}"
                f"{did_you_mean(error.name, error.names)}"
            ) from error

    def missing(self) -> str:
        """What the row has no value for: `prompt`, `answer`, or nothing."""
        if self._prompt is None or self._prompt == "" or self._prompt == []:
            return "prompt"
        empty = self._answer is None or (isinstance(self._answer, str) and not self._answer.strip())
        is_gap = isinstance(self._answer, float) and math.isnan(self._answer)
        return "answer" if empty or is_gap else ""

    def has_domain(self) -> bool:
        return self._domain() is not None

    def _domain(self) -> str | None:
        try:
            value = look_up(self._row, self._fields.domain) if self._fields.domain else None
        except _MissingError:
            return None
        return None if value is None else str(value)

    def problem(self) -> tuple[Problem, str]:
        """(the problem, its split)."""
        answer = answer_text(self._answer)
        if answer is None:
            name = self._fields.answer
            raise InputError(
                f"{self._where}: `{name}` must be text or a number, not {_short(self._answer)}"
            )
        split = self._split()
        prompt = self._clean_prompt()
        given = self._id()
        raw = self._prompt if self._fields.strict else prompt
        problem = Problem(
            id=problem_id(raw) if given is None else given,
            prompt=prompt,
            answer=answer,
            domain=self._domain() or DEFAULT_DOMAIN,
            metadata=self._metadata(given is not None),
        )
        return problem, split

    def _id(self) -> str | None:
        given = self._row.get("id")
        if self._fields.strict:
            return str(given) if "id" in self._row else None
        usable = isinstance(given, str | int) and not isinstance(given, bool) and given != ""
        return str(given) if usable else None

    def _split(self) -> str:
        if not self._fields.has_splits:
            return ""
        split = self._row.get("split", "")
        if split is None and not self._fields.strict:
            return ""
        if split not in ("", *SPLITS):
            raise InputError(
                f'{self._where}: `split` is {split!r}; it must be "train" or "held_out"'
            )
        return str(split)

    def _metadata(self, has_id: bool) -> Mapping[str, Any]:
        own = self._row.get("metadata")
        fields = self._fields
        if fields.strict:
            if not isinstance(own, Mapping) and "metadata" in self._row:
                raise InputError(f"{self._where}: `metadata` must be an object")
            return own or {}
        used = {fields.prompt, fields.answer, fields.domain}
        used |= {"id"} if has_id else set()
        used |= {"split"} if fields.has_splits else set()
        rest = {name: value for name, value in self._row.items() if name not in used}
        if isinstance(own, Mapping):
            rest = {**own, **{name: rest[name] for name in rest if name != "metadata"}}
        return rest

    def _clean_prompt(self) -> str | tuple[Message, ...]:
        prompt, name = self._prompt, self._fields.prompt
        if isinstance(prompt, str) and prompt:
            return prompt
        if not isinstance(prompt, list) or not prompt:
            raise InputError(
                f"{self._where}: `{name}` must be text or a list of chat messages, not "
                f"{_short(prompt)}"
            )
        messages = tuple(self._message(message, name) for message in prompt)
        if messages[-1]["role"] == "assistant" and not self._fields.strict:
            raise InputError(
                f"{self._where}: `{name}` ends with a message of the assistant, which is what the "
                "model is to write; name a field with the conversation before it"
            )
        return messages

    def _message(self, message: Any, name: str) -> Message:
        if not self._fields.strict and isinstance(message, Mapping):
            # A column of structs has every field in every message.
            message = {key: value for key, value in message.items() if value is not None}
        if (
            not isinstance(message, Mapping)
            or set(message) != {"role", "content"}
            or not all(isinstance(value, str) for value in message.values())
        ):
            raise InputError(
                f"{self._where}: a message of `{name}` must be "
                f'{{"role": "…", "content": "…"}}, not {_short(message)}'
            )
        return {"role": message["role"], "content": message["content"]}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMES]) + (", …" if len(names) > _MOST_NAMES else "")
    return f"the fields are {shown}"
