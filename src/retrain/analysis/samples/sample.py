"""One completion of `generations.jsonl` as a reader sees it.

Rows may be old (no tokens), cut or written by somebody else: what cannot be read is None or
empty, and a row without a completion is no sample. Nothing here raises for what a row holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from retrain.analysis.reading import items, nested, number, text

Span = tuple[int, int]
"""Characters [start, end) of a completion."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token: its characters [start, end) of the completion, none for the end token and for
    parts of a character; its credit; how uncertain the sampler was."""

    start: int
    end: int
    advantage: float | None
    uncertainty: float | None


@dataclass(frozen=True, slots=True)
class Message:
    """A part of a prompt; the role is empty where the prompt was plain text."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Sample:
    """A completion with all that was logged of it; None or empty is unknown."""

    run: str
    condition: str
    seed: int | None
    step: int
    place: int
    """Which of its step's logged completions it is, from 0: the same in every condition."""
    problem_id: str
    domain: str
    number: int | None
    """Which completion of its group it is, from 0."""
    prompt: tuple[Message, ...]
    answer: str
    completion: str
    stop_reason: str
    reward: float | None
    outcome: str
    parts: Mapping[str, float]
    advantage: float | None
    num_tokens: int | None
    planning: tuple[Span, ...]
    tokens: tuple[Token, ...]
    """In order, covering the completion; empty where they were not logged."""

    @property
    def stopped(self) -> Token | None:
        """The end token, when there is one and its credit is known."""
        last = self.tokens[-1] if self.tokens else None
        ended = last is not None and last.start == last.end and self.stop_reason == "stop"
        return last if ended else None

    def document(self) -> dict[str, Any]:
        """For `--json`; its fields are in `docs/samples.md`."""
        fields = asdict(self)
        del fields["place"]
        fields["sample"] = fields.pop("number")
        fields["planning_spans"] = fields.pop("planning")
        fields["tokens"] = [
            {
                "text": self.completion[token.start : token.end],
                "advantage": token.advantage,
                "uncertainty": token.uncertainty,
            }
            for token in self.tokens
        ]
        return fields


def read_sample(
    row: Mapping[str, Any], *, run: str, condition: str, seed: int | None, place: int
) -> Sample | None:
    """A row as a sample; None when it holds no completion or no step."""
    completion, step = row.get("completion"), number(row, "step")
    if not isinstance(completion, str) or step is None:
        return None
    return Sample(
        run=run,
        condition=condition,
        seed=seed,
        step=int(step),
        place=place,
        problem_id=text(row, "problem_id"),
        domain=text(row, "domain"),
        number=_whole(row, "sample"),
        prompt=_prompt(row.get("prompt")),
        answer=text(row, "answer"),
        completion=completion,
        stop_reason=text(row, "stop_reason"),
        reward=number(row, "reward"),
        outcome=text(row, "outcome"),
        parts={
            name: value
            for name in nested(row, "parts")
            if (value := number(nested(row, "parts"), name)) is not None
        },
        advantage=number(row, "advantage"),
        num_tokens=_whole(row, "num_tokens"),
        planning=_spans(row, len(completion)),
        tokens=_tokens(row, len(completion)),
    )


def _whole(row: Mapping[str, Any], key: str) -> int | None:
    value = number(row, key)
    return None if value is None else int(value)


def _prompt(value: Any) -> tuple[Message, ...]:
    if isinstance(value, str):
        return (Message("", value),)
    found = [part for part in value if isinstance(part, dict)] if isinstance(value, list) else []
    return tuple(Message(text(part, "role"), text(part, "content")) for part in found)


def _spans(row: Mapping[str, Any], length: int) -> tuple[Span, ...]:
    """In order, within the text, none overlapping another."""
    given = [
        (span[0], min(length, span[1]))
        for span in items(row, "planning_spans")
        if isinstance(span, list) and len(span) == 2 and all(isinstance(at, int) for at in span)
    ]
    spans: list[Span] = []
    for start, end in sorted(given):
        start = max(start, spans[-1][1] if spans else 0)
        if start < end:
            spans.append((start, end))
    return tuple(spans)


def _tokens(row: Mapping[str, Any], length: int) -> tuple[Token, ...]:
    lengths = items(row, "token_lengths")
    if not all(isinstance(size, int) and size >= 0 for size in lengths) or sum(lengths) != length:
        return ()
    advantages = _values(row, "token_advantages", len(lengths))
    uncertainties = _values(row, "token_uncertainties", len(lengths))
    tokens, start = [], 0
    for size, advantage, uncertainty in zip(lengths, advantages, uncertainties, strict=True):
        tokens.append(Token(start, start + size, advantage, uncertainty))
        start += size
    return tuple(tokens)


def _values(row: Mapping[str, Any], key: str, count: int) -> list[float | None]:
    """One value a token; a single number is that of all."""
    given = row.get(key)
    if isinstance(given, list):
        values = [number({key: value}, key) for value in given]
        return values if len(values) == count else [None] * count
    return [number(row, key)] * count
