"""The planning mask: which tokens of a completion plan rather than execute.

A token is planning when its characters overlap a match of a *strategic gram*, a short phrase
like "let me check" (after HICRA, arXiv 2509.03646, which mines such phrases from a corpus;
here they are a list that the user can replace).

Text is read as words: runs of letters and digits, joined by single apostrophes, regardless of
case. Whatever stands between two words, punctuation or white space, is the same to a gram: it
matches a run of consecutive whole words. So "wait let me" matches in "so wait,\\nlet me", and
"notice that" does not match in "notice that's".
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import numpy as np

from retrain.types import BoolArray

DEFAULT_GRAMS: tuple[str, ...] = (
    "wait let me",
    "let me think",
    "on second thought",
    "let me check",
    "let me verify",
    "is this right",
    "double check",
    "try another approach",
    "go back and",
    "start over",
    "that's not right",
    "that doesn't work",
    "another way to",
    "or we could",
    "what if we",
    "notice that",
    "the key is",
    "the key insight",
)

_LETTER = r"[^\W_]"
_APOSTROPHE = "['’‘ʼ`]"
_WORD = re.compile(f"{_LETTER}+(?:{_APOSTROPHE}{_LETTER}+)*")
_WORD_START = f"(?<!{_LETTER})(?<!{_LETTER}{_APOSTROPHE})"
_WORD_END = f"(?!{_LETTER})(?!{_APOSTROPHE}{_LETTER})"
# Possessive: a run of separators is never given back, so a long one costs one pass.
_BETWEEN = _WORD_END + r"[\W_]++"


def parse_strategic_grams(value: str | Sequence[str] | None) -> tuple[str, ...]:
    """`[logging].strategic_grams` -> grams, normalised and without repeats.

    value: a list of phrases; a string that holds a JSON list or phrases separated by commas;
           None or a blank string for the 18 default grams. An empty list means no grams.

    Raises ValueError for a phrase without a word, and for broken JSON.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return DEFAULT_GRAMS
    phrases = _split(value) if isinstance(value, str) else list(value)
    grams = []
    for phrase in phrases:
        if not isinstance(phrase, str) or not _words(phrase):
            raise ValueError(f"strategic gram {phrase!r} holds no word")
        grams.append(" ".join(_words(phrase)))
    return tuple(dict.fromkeys(grams))


class PlanningMatcher:
    """Finds strategic grams in text and in tokens. Immutable; one compiled expression."""

    def __init__(self, grams: Sequence[str] = DEFAULT_GRAMS) -> None:
        self.grams = parse_strategic_grams(list(grams))
        # Longest first: of two grams that start alike, the match at a place is the longer one.
        bodies = [_expression(gram) for gram in sorted(self.grams, key=len, reverse=True)]
        self._pattern = re.compile(f"{_WORD_START}(?:{'|'.join(bodies)})") if bodies else None

    def matches(self, text: str) -> bool:
        """Whether any gram matches; cheaper than `spans`."""
        return self._pattern is not None and self._pattern.search(_lower(text)) is not None

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where grams match: character ranges [start, end), in order, overlapping ones merged."""
        spans: list[tuple[int, int]] = []
        if self._pattern is None:
            return spans
        lowered = _lower(text)
        match = self._pattern.search(lowered)
        while match:
            start, end = match.span()
            if spans and start < spans[-1][1]:
                spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
            else:
                spans.append((start, end))
            # From the next character, not from the end: in "wait, let me think" two grams overlap.
            match = self._pattern.search(lowered, start + 1)
        return spans

    def mask(self, pieces: Sequence[str]) -> BoolArray:
        """Which tokens plan.

        pieces: (tokens,) the text of each token; joined, they are the completion's text. A
                token without text of its own (a part of a character) counts as planning when
                it lies strictly inside a match.

        Returns (tokens,), True on planning tokens.
        """
        mask = np.zeros(len(pieces), dtype=np.bool_)
        spans = self.spans("".join(pieces))
        if not spans:
            return mask
        lengths = np.fromiter(map(len, pieces), dtype=np.int64, count=len(pieces))
        ends = lengths.cumsum()
        starts = ends - lengths
        for start, end in spans:
            first = np.searchsorted(ends, start, side="right")
            last = np.searchsorted(starts, end, side="left")
            mask[first:last] = True
        return mask


def _split(value: str) -> list[str]:
    if not value.lstrip().startswith("["):
        return [phrase for phrase in value.split(",") if phrase.strip()]
    try:
        phrases = json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"strategic_grams is no JSON list: {error}") from error
    return list(phrases)


def _words(phrase: str) -> list[str]:
    return [re.sub(_APOSTROPHE, "'", word) for word in _WORD.findall(_lower(phrase))]


def _expression(gram: str) -> str:
    words = [re.escape(word).replace("'", _APOSTROPHE) for word in gram.split(" ")]
    return _BETWEEN.join(words) + _WORD_END


def _lower(text: str) -> str:
    """Lower case of the same length, so that positions are those of the text."""
    lowered = text.lower()
    # "İ" is the one character whose lower case has two, which would shift all that follows.
    return lowered if len(lowered) == len(text) else text.replace("İ", "i").lower()
