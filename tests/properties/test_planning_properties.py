"""The planning mask against a slow reader of words."""

import itertools
import re

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from retrain.advantages.planning import DEFAULT_GRAMS, PlanningMatcher

MATCHER = PlanningMatcher()
WORDS = sorted({word for gram in DEFAULT_GRAMS for word in gram.split()})
SEPARATORS = [" ", "\n", ", ", "... ", "-", " — ", "_", "  \t", '" "', "'", "’", "“", ""]

word = st.one_of(
    st.sampled_from(WORDS),
    st.sampled_from([w.upper() for w in WORDS]),
    st.sampled_from(["other", "That’s", "x2", "İ", "ß", "_", "'", "Σς"]),
)
texts = st.one_of(
    st.lists(st.tuples(word, st.sampled_from(SEPARATORS)), max_size=14).map(
        lambda parts: "".join(w + s for w, s in parts)
    ),
    st.lists(
        st.one_of(st.sampled_from(DEFAULT_GRAMS), word).flatmap(
            lambda w: st.sampled_from(SEPARATORS[:6]).map(lambda s: w + s)
        ),
        max_size=6,
    ).map("".join),
    st.text(max_size=30),
)


def slow_characters(text, grams):
    """Which characters lie in a match, by comparing runs of whole words."""
    lowered = [c.lower() if len(c.lower()) == 1 else "i" for c in text]
    found = list(re.finditer(r"[^\W_]+(?:['’‘ʼ`][^\W_]+)*", "".join(lowered)))
    words = [re.sub("[’‘ʼ`]", "'", match.group()).replace("ς", "σ") for match in found]
    inside = [False] * len(text)
    for gram in grams:
        parts = gram.split(" ")
        for i in range(len(words) - len(parts) + 1):
            if words[i : i + len(parts)] == parts:
                for c in range(found[i].start(), found[i + len(parts) - 1].end()):
                    inside[c] = True
    return inside


def cut(text, places):
    edges = sorted({0, len(text), *(p for p in places if p < len(text))})
    return [text[a:b] for a, b in itertools.pairwise(edges)]


@given(text=texts)
def test_spans_are_the_runs_of_whole_words(text):
    inside = [False] * len(text)
    spans = MATCHER.spans(text)
    for start, end in spans:
        assert 0 <= start < end <= len(text)
        inside[start:end] = [True] * (end - start)
    assert inside == slow_characters(text, MATCHER.grams)
    assert MATCHER.matches(text) == any(inside)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))


cuts = st.one_of(st.lists(st.integers(1, 60)), st.just(list(range(1, 200))))


@given(text=texts, places=cuts)
def test_a_token_plans_when_one_of_its_characters_does(text, places):
    pieces = cut(text, places)
    inside, position, expected = slow_characters(text, MATCHER.grams), 0, []
    for piece in pieces:
        expected.append(any(inside[position : position + len(piece)]))
        position += len(piece)
    assert MATCHER.mask(pieces).tolist() == expected


@given(text=texts, places=cuts, where=st.integers(0, 60))
def test_a_token_without_text_changes_no_other(text, places, where):
    pieces = cut(text, places)
    where = min(where, len(pieces))
    mask = MATCHER.mask([*pieces[:where], "", *pieces[where:]])
    assert np.array_equal(np.delete(mask, where), MATCHER.mask(pieces))


@given(text=texts)
def test_case_does_not_matter(text):
    ascii_text = text.encode("ascii", "ignore").decode()
    assert MATCHER.spans(ascii_text.upper()) == MATCHER.spans(ascii_text)


@given(grams=st.lists(st.sampled_from(DEFAULT_GRAMS), unique=True, max_size=4), text=texts)
def test_fewer_grams_mark_no_more(grams, text):
    some, every = PlanningMatcher(grams), MATCHER
    assert not (some.mask(list(text)) & ~every.mask(list(text))).any()
