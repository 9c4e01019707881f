"""The planning mask: the cases of its definition, and its speed."""

import time

import numpy as np
import pytest

from retrain.advantages.planning import (
    DEFAULT_GRAMS,
    PlanningMatcher,
    parse_strategic_grams,
)

MATCHER = PlanningMatcher()


def planned(pieces, matcher=MATCHER):
    """The text of the planning tokens."""
    return "|".join(p for p, m in zip(pieces, matcher.mask(pieces), strict=True) if m)


def test_the_default_grams():
    assert len(DEFAULT_GRAMS) == len(set(DEFAULT_GRAMS)) == 18
    for gram in DEFAULT_GRAMS:
        assert MATCHER.spans(f"x {gram} y") == [(2, 2 + len(gram))]


def test_the_example_of_the_definition():
    pieces = ["so", " wait", ",", " let", " me", " see"]
    assert MATCHER.mask(pieces).tolist() == [False, True, True, True, True, False]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["so try an", "other", " way", "."], ""),
        (["so try", " an", "other", " way", " to", "."], " an|other| way| to"),
        (["Let", " me", " ver", "ify", " it"], "Let| me| ver|ify"),
        (["Let me\n", "\n", "check", "\n"], "Let me\n|\n|check"),
        (["NOTICE", " THAT"], "NOTICE| THAT"),
        (["that", "’s", " not", " right"], "that|’s| not| right"),
        (["that", "'s", " not", " right"], "that|'s| not| right"),
        (["that", " s", " not", " right"], ""),
        (["double", "-", "check"], "double|-|check"),
        (["wait", "... **", "let", "_", "me", "**"], "wait|... **|let|_|me"),
        (["wait. Let", " me", " think"], "wait. Let| me| think"),
        (["notice", " that", "'s", " it"], ""),
        (["await", " let", " me"], ""),
        (["o’", "wait", " let", " me"], ""),
        (["‘", "wait", " let", " me", "’", " he"], "wait| let| me"),
        (["so ", "wait", " let", " me", " ", "see"], "wait| let| me"),
        (["wait", " let", " men"], ""),
        (["the", " key", " is", "n't"], ""),
        (["the key is", "", " x"], "the key is"),
        ([], ""),
        ([""], ""),
    ],
)
def test_masks(pieces, expected):
    assert planned(pieces) == expected


def test_overlapping_grams_both_count_and_become_one_span():
    pieces = ["wait", " let", " me", " think", " more"]
    assert planned(pieces) == "wait| let| me| think"
    assert MATCHER.spans("".join(pieces)) == [(0, 17)]


def test_a_gram_that_begins_another_does_not_hide_it():
    matcher = PlanningMatcher(["let me", "let me think"])
    assert matcher.spans("let me think; let me") == [(0, 12), (14, 20)]


def test_positions_survive_characters_whose_lower_case_is_longer():
    assert MATCHER.spans("İİ notice that") == [(3, 14)]
    assert all(len(chr(i).lower()) == 1 for i in range(0x110000) if chr(i) != "İ")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, DEFAULT_GRAMS),
        ("", DEFAULT_GRAMS),
        ("  ", DEFAULT_GRAMS),
        ([], ()),
        ("[]", ()),
        ('["Hold on", "so, far"]', ("hold on", "so far")),
        ("hold on, so far,", ("hold on", "so far")),
        (["Hold  on!", "hold on", "it’s"], ("hold on", "it's")),
        ("hmm", ("hmm",)),
    ],
)
def test_parsing(value, expected):
    assert parse_strategic_grams(value) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('["a"', "no JSON list"),
        (["..."], r"strategic gram '\.\.\.' holds no word"),
        ("[1, 2]", "strategic gram 1 holds no word"),
        ("a, ..", "holds no word"),
    ],
)
def test_parsing_errors(value, message):
    with pytest.raises(ValueError, match=message):
        parse_strategic_grams(value)


def test_grams_are_text_and_not_expressions():
    matcher = PlanningMatcher(["a.b", "c (d)"])
    assert matcher.grams == ("a b", "c d")
    assert matcher.spans("axb a b c-d") == [(4, 7), (8, 11)]


def test_no_grams_plan_nothing():
    assert not PlanningMatcher([]).mask(["let me think"]).any()


def test_a_long_run_of_separators_is_read_once():
    start = time.process_time()
    assert MATCHER.spans(("let me" + " " * 2000) * 200) == []
    assert time.process_time() - start < 2


@pytest.mark.parametrize(("rows", "tokens", "seconds"), [(128, 64, 0.05), (128, 10_000, 3.0)])
def test_fast_enough(rows, tokens, seconds):
    # Limits are ten times what it takes, for a busy machine.
    draw = np.random.default_rng(0)
    words = np.array([" the", " sum", " of", " we", " let", " get", " me", " 12", ",", " think"])
    batch = [list(words[draw.integers(0, len(words), tokens)]) for _ in range(rows)]
    start = time.process_time()
    for pieces in batch:
        MATCHER.mask(pieces)
    assert time.process_time() - start < seconds
