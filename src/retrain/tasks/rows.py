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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from retrain.analysis.words import plural
from retrain.config.data import DataConfig
from retrain.config.messages import did_you_mean
from retrain.errors import InputError
from retrain.tasks.conversation import TooLongError, read_prompt, short
from retrain.tasks.fields import MissingError, answer_text, found_in, look_up
from retrain.tasks.problems import Wanted, is_held_out
from retrain.tasks.reading import BadRowError
from retrain.types import Problem

OWN_KEYS = frozenset({"prompt", "answer", "id", "domain", "split", "metadata"})
SPLITS = ("", "train", "held_out")
DEFAULT_DOMAIN = "default"
NO_ANSWER = frozenset({"proof", "notfound", "not found"})
"""What data sets write for an answer where there is none."""
_CONTRADICTS = "has the id of another one, or its prompt with another answer"
_MOST_NAMES = 12
"""Fields, and rows that cannot be used, that a message lists."""

Unmarked = Literal["tenth", "train", "held_out"]
"""The side of rows without a `split`; of `tenth`, a tenth is held out."""


@dataclass(frozen=True, slots=True)
class Fields:
    """Which field of a row is what.

    strict:     any field beside retrain's own is an error.
    split:      says whether a row is held out; empty for none.
    pattern:    `[data].answer_pattern`.
    skip_long:  leave out rows whose prompt is far too long, and say how many; else they are bad.
    metadata:   keep what the rows hold besides.
    """

    prompt: str = "prompt"
    answer: str = "answer"
    domain: str = "domain"
    strict: bool = True
    split: str = "split"
    pattern: str = ""
    skip_long: bool = False
    metadata: bool = True

    @classmethod
    def of(cls, data: DataConfig, metadata: bool = True) -> Fields:
        """As `[data]` says."""
        keys = (data.prompt_key, data.answer_key, data.domain_key)
        return cls(
            *keys,
            strict=data.source == "jsonl" and keys == ("prompt", "answer", "domain"),
            split="" if data.source == "hub" else data.split_key,
            pattern=data.answer_pattern,
            skip_long=data.max_prompt_tokens > 0,
            metadata=metadata,
        )

    def columns(self, names: Sequence[str]) -> list[str] | None:
        """Of a table's columns, those to read; None for all."""
        read = [key if key in names else key.split(".")[0] for key in (self.prompt, self.answer)]
        if self.metadata or not set(read) <= set(names):
            return None
        others = {self.domain, self.domain.split(".")[0], "id", self.split}
        return [name for name in names if name in {*read, *others}]


@dataclass(slots=True)
class Collected:
    """The problems of some rows.

    key, what: the config key and the file or data set that messages name.
    splits:    how many rows have each `split`, "" for none.
    bad:       (place and what is wrong,) of rows that cannot be used, the first ones; kinds: how
               many there are of each kind.
    whole:     whether all rows were read.
    contradicted: how many others, not among these, have the id of one that is.
    """

    key: str
    what: str
    train: list[Problem] = field(default_factory=list)
    held_out: list[Problem] = field(default_factory=list)
    splits: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    whole: bool = True
    contradicted: int = 0

    @property
    def problems(self) -> list[Problem]:
        return [*self.train, *self.held_out]

    def leave_out(self, place: str, row: BadRowError) -> None:
        self.kinds[row.kind] += 1
        if len(self.bad) < _MOST_NAMES:
            self.bad.append(f"{self.what}, {place}: {row}")

    def note(self, count: int, text: str) -> None:
        self.notes.append(f"{self.what}: {plural(count, 'row')} {text}")


def settle(parts: Sequence[Collected], data: DataConfig) -> list[str]:
    """What to tell of these. Raises InputError with all rows that cannot be used, unless
    `[data].bad_rows` leaves them out."""
    found = [part for part in parts if part.bad]
    if found and data.bad_rows == "error":
        count = sum(part.kinds.total() for part in found)
        lines = [line for part in found for line in part.bad]
        remedy = 'write bad_rows = "skip" to leave such rows out, counted'
        if count == 1:
            raise InputError(f"{found[0].key}: {lines[0]}; mend it, or {remedy}")
        listed = lines[:_MOST_NAMES]
        more = [f"… and {count - len(listed)} more"] if count > len(listed) else []
        text = "\n  ".join([*listed, *more])
        raise InputError(f"{found[0].key}: {count} rows cannot be used:\n  {text}\n{remedy}")
    for part in found:
        part.kinds[_CONTRADICTS] += part.contradicted
        for kind, count in (+part.kinds).items():
            part.note(count, f"left out: {kind}")
    return [note for part in parts for note in part.notes]


def collect(
    rows: Iterable[tuple[str, Any]],
    fields: Fields,
    key: str,
    what: str,
    unmarked: Unmarked = "tenth",
    wanted: Wanted = Wanted(),  # noqa: B008
) -> Collected:
    """The problems of `rows`, as many as are wanted.

    rows: (place, row or BadRowError), e.g. ("line 3", {...}).
    key:  the config key that messages name; what: the file or data set.

    Raises InputError, with the remedy, for a field that no row has.
    """
    collected = Collected(key, what)
    places: dict[str, str] = {}
    contents: set[bytes] = set()
    contradicted: set[str] = set()
    absent: dict[str, tuple[int, str]] = {}
    objects = repeated = long = dropped = solved = 0
    has_domain = False
    names: list[str] = []
    for place, row in rows:
        if wanted.reached(collected.train, collected.held_out):
            collected.whole = False
            break
        try:
            read = _Row(row, fields, key, f"{what}, {place}")
            names, objects = names or sorted(map(str, row)), objects + 1
            problem, split = read.problem()
        except _AbsentError as error:
            count, text = absent.get(error.role, (0, error.in_all))
            absent[error.role] = (count + 1, text)
            collected.leave_out(place, error)
            continue
        except TooLongError as error:
            long += fields.skip_long
            if not fields.skip_long:
                collected.leave_out(place, error)
            continue
        except BadRowError as error:
            collected.leave_out(place, error)
            continue
        dropped, solved = dropped + read.drops_answer, solved + read.is_solved
        has_domain = has_domain or read.has_domain()
        digest = _digest([problem.prompt, problem.answer], 16)
        if digest in contents:
            repeated += 1
            continue
        contents.add(digest)
        if problem.id in places:
            same = "the same prompt and another answer"
            content = "another prompt or answer" if "id" in row else same
            first = f"id {problem.id!r} is already on {places[problem.id]}"
            collected.leave_out(place, BadRowError(_CONTRADICTS, f"{first}, with {content}"))
            contradicted.add(problem.id)
            continue
        places[problem.id] = place
        collected.splits[split] += 1
        side = split or unmarked
        if side == "held_out" or (side == "tenth" and is_held_out(problem.id)):
            most, problems = wanted.held_out, collected.held_out
        else:
            most, problems = wanted.train, collected.train
        if most is None or len(problems) < most:
            problems.append(problem)
    for count, text in () if fields.strict else absent.values():
        if count == objects:
            raise InputError(text)
    if fields.domain not in ("domain", "") and not has_domain and places:
        raise InputError(
            f"data.domain_key: {what}: no row has a field {fields.domain!r}; {_listed(names)}"
            f"{did_you_mean(fields.domain, names)}"
        )
    # Of two rows that contradict each other neither is known to be right.
    collected.contradicted = len(contradicted)
    collected.train = [p for p in collected.train if p.id not in contradicted]
    collected.held_out = [p for p in collected.held_out if p.id not in contradicted]
    if repeated:
        collected.note(repeated, "left out: repeats the prompt and the answer of an earlier one")
    if long:
        collected.note(long, f"left out: {TooLongError.kind}")
    if dropped:
        taken = "end with a message of the assistant, which is no part of the prompt"
        collected.note(dropped, taken + (f"; it is the reference of {solved}" if solved else ""))
    return collected


def problem_id(prompt: Any) -> str:
    """The id of a problem that was given none."""
    return _digest(prompt, 6).hex()


def _digest(value: Any, size: int) -> bytes:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=size).digest()


class _AbsentError(BadRowError):
    """A row without a field that is named. in_all: what to say when no row has it."""

    def __init__(self, role: str, missing: MissingError, shown: str, strict: bool) -> None:
        owner = f"in {missing.holder!r}" if missing.holder else "there"
        text = f"`{role}` is missing" if strict else f"no field {missing.name!r} {owner}"
        super().__init__(f"has no {role}", text)
        fields = _listed(missing.names) if missing.names else f"{missing.holder} has no fields"
        self.role = role
        self.in_all = (
            f"data.{role}_key: {shown}: {text}; {fields}{did_you_mean(missing.name, missing.names)}"
        )


class _Row:
    """One row on its way to a problem. Raises BadRowError, and InputError for a misspelt key.

    drops_answer: its prompt went on with what the assistant answers, which is left out.
    is_solved:    that is its reference, as it has no other.
    """

    def __init__(self, row: Any, fields: Fields, key: str, shown: str) -> None:
        if not isinstance(row, Mapping):
            if isinstance(row, BadRowError):
                raise row
            message = f"one JSON object a line, or a list of them, is wanted, not {str(row)[:40]!r}"
            raise BadRowError("is no object", message)
        self._row = row
        self._fields = fields
        self._where = f"{key}: {shown}"
        self._shown = shown

    def problem(self) -> tuple[Problem, str]:
        """(the problem, its split)."""
        fields = self._fields
        if fields.strict and (unknown := sorted(set(self._row) - OWN_KEYS)):
            raise InputError(
                f"{self._where}: unknown key {unknown[0]!r}; known are "
                f"{', '.join(sorted(OWN_KEYS))} (put anything else into `metadata`)"
            )
        given = self._field("prompt", fields.prompt)
        prompt, solution = read_prompt(given, fields.prompt)
        self.drops_answer, self.is_solved = solution is not None, False
        answer = self._answer(solution)
        own_id = self._id()
        raw = given if fields.strict and solution is None else prompt
        problem = Problem(
            id=problem_id(raw) if own_id is None else own_id,
            prompt=prompt,
            answer=answer,
            domain=self._domain() or DEFAULT_DOMAIN,
            metadata=self._metadata(own_id is not None),
        )
        return problem, self._split()

    def _field(self, role: str, key: str) -> Any:
        try:
            return look_up(self._row, key)
        except MissingError as error:
            raise _AbsentError(role, error, self._shown, self._fields.strict) from error

    def _answer(self, solution: str | None) -> str:
        """The reference; `solution` is what to take where no field holds it."""
        name = self._fields.answer
        try:
            value = self._field("answer", name)
        except _AbsentError:
            if solution is None:
                raise
            value = None
        if value is None and solution is not None:
            value, name, self.is_solved = solution, self._fields.prompt, True
        text = answer_text(value)
        if text is None:
            is_gap = isinstance(value, float) and math.isnan(value)
            empty = value is None or is_gap or isinstance(value, str)
            raise BadRowError(
                "has no answer" if empty else "has an answer of another type",
                f"`{name}` must be text or a number, not {short(value)}",
            )
        if isinstance(value, str) and self._fields.pattern:
            text = found_in(text, self._fields.pattern) or ""
            if not text:
                message = f"answer_pattern finds nothing in `{name}`: {short(value)}"
                raise BadRowError("has no answer that answer_pattern finds", message)
        if text.strip().lower() in NO_ANSWER:
            raise BadRowError("has no answer", f"`{name}` is {text!r}, which stands for none")
        return text

    def has_domain(self) -> bool:
        return self._domain() is not None

    def _domain(self) -> str | None:
        try:
            value = look_up(self._row, self._fields.domain) if self._fields.domain else None
        except MissingError:
            return None
        return None if value is None else str(value)

    def _id(self) -> str | None:
        given = self._row.get("id")
        if self._fields.strict:
            return None if given is None else str(given)
        usable = isinstance(given, str | int) and not isinstance(given, bool) and given != ""
        return str(given) if usable else None

    def _split(self) -> str:
        name = self._fields.split
        split = (self._row.get(name) if name else None) or ""
        if split not in SPLITS:
            raise BadRowError(
                f"has a `{name}` that is neither train nor held_out",
                f'`{name}` is {short(split)}; it must be "train" or "held_out" (split_key = "" '
                "in [data] takes no heed of it)",
            )
        return str(split)

    def _metadata(self, has_id: bool) -> Mapping[str, Any]:
        own = self._row.get("metadata")
        fields = self._fields
        if fields.strict and not isinstance(own, Mapping) and "metadata" in self._row:
            raise BadRowError("has metadata of another type", "`metadata` must be an object")
        if not fields.metadata:
            return {}
        if fields.strict:
            return own or {}
        used = {fields.prompt, fields.answer, fields.domain}
        used |= {"id"} if has_id else set()
        used |= {fields.split} if fields.split else set()
        rest = {name: value for name, value in self._row.items() if name not in used}
        if isinstance(own, Mapping):
            rest = {**own, **{name: rest[name] for name in rest if name != "metadata"}}
        return rest


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMES]) + (", …" if len(names) > _MOST_NAMES else "")
    return f"the fields are {shown}"
