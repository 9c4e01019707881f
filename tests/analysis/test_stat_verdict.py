"""The sentence that a campaign ends with."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrain.analysis.multiplicity import correct_planned, holm
from retrain.analysis.paired import compare_pairs, equivalence_p
from retrain.analysis.power import needed_seeds
from retrain.analysis.verdict import decide, judge
from retrain.analysis.words import Unit

SEEDS = 8
BASELINE = np.array([0.61, 0.58, 0.64, 0.60, 0.66, 0.57, 0.62, 0.63])
STEADY = np.array([0.045, 0.012, 0.061, 0.033, 0.078, 0.020, 0.055, 0.024])
NOISE = np.array([0.031, -0.028, 0.044, -0.039, 0.010, -0.022, 0.035, -0.030])
TINY = np.array([0.001, -0.002, 0.003, 0.0015, -0.001, 0.002, -0.003, -0.0005])


def campaign(*differences):
    return np.column_stack([BASELINE, *(BASELINE + d for d in differences)])


def test_better_worse_and_their_mirror():
    [up] = judge(campaign(STEADY), margin=0.02)
    assert up.verdict.text == ("better (+4.1 points, 95 % CI +2.2 to +6.0, p = 0.0078, 8/8 seeds)")
    assert (up.method, up.p, up.verdict.kind) == ("none", 2 / 256, "better")
    [down] = judge(campaign(-STEADY), margin=0.02)
    assert down.verdict.text == ("worse (-4.1 points, 95 % CI -6.0 to -2.2, p = 0.0078, 8/8 seeds)")


def test_several_contrasts_are_corrected_together():
    up, noisy, same = judge(campaign(STEADY, NOISE, TINY), margin=0.02)
    assert up.method == "maxT"
    assert up.verdict.kind == "better"
    assert "after correction, 8/8 seeds" in up.verdict.text
    assert up.p >= up.paired.p_sign_flip
    assert same.verdict.text == "no difference larger than 2 points"
    assert same.verdict.kind == "equivalent"
    needed = needed_seeds(NOISE.std(ddof=1), 0.02, contrasts=3, either_way=True)
    assert noisy.verdict.more_seeds == needed - 8
    assert noisy.verdict.text == (
        f"undecided: {needed - 8} more seeds would decide a difference of 2 points"
    )


def test_the_sentence_of_the_design_note():
    paired = compare_pairs(BASELINE + STEADY, BASELINE)
    text = decide(paired, 0.02, p=0.016, contrasts=4).text
    assert text == (
        "better (+4.1 points, 95 % CI +2.2 to +6.0, p = 0.016 after correction, 8/8 seeds)"
    )
    assert ", p < 0.001 after" in decide(paired, 0.02, p=0.0004, contrasts=4).text


def test_three_seeds_cannot_be_significant_and_it_says_so():
    [judged] = judge(campaign(STEADY)[:3], margin=0.02)
    assert judged.verdict.kind == "undecided"
    assert judged.verdict.notes[0] == (
        "3 seeds that differ cannot give a p value below 0.25; 6 can reach 0.05"
    )
    assert "3 or fewer" in judged.verdict.notes[1]
    assert 3 + judged.verdict.more_seeds >= 6


def test_a_small_difference_that_is_sure():
    [judged] = judge(campaign(0.005 + TINY / 2), margin=0.02)
    assert judged.verdict.kind == "better"
    assert judged.verdict.notes[0] == "the difference is smaller than 2 points"


def test_identical_runs():
    [judged] = judge(campaign(np.zeros(8)), margin=0.02)
    assert judged.verdict.text == "no difference larger than 2 points (identical under all 8 seeds)"
    [few] = judge(campaign(np.zeros(8))[:4], margin=0.02)
    assert few.verdict.text == "undecided: 2 more seeds would decide a difference of 2 points"


def test_the_same_difference_under_every_seed():
    [judged] = judge(campaign(np.full(8, 0.03)), margin=0.02)
    assert judged.verdict.text == (
        "better (+3.0 points, 95 % CI +3.0 to +3.0, p = 0.0078, 8/8 seeds)"
    )
    assert "no width" in judged.verdict.notes[0]


def test_missing_runs():
    values = campaign(STEADY, NOISE)
    values[2, 1] = math.nan
    up, noisy = judge(values, margin=0.02)
    assert (up.method, up.paired.contrast.n, noisy.paired.contrast.n) == ("Holm", 7, 8)
    assert "1 seed left out: a run is missing" in up.verdict.notes
    values[:, 1] = math.nan
    none, noisy = judge(values, margin=0.02)
    assert none.verdict.text == "undecided: no seed has a run of both conditions"
    assert (none.p, none.p_equivalence) == (None, None)
    assert noisy.verdict.kind == "undecided"
    values[0, 1] = 0.7
    one, _ = judge(values, margin=0.02)
    assert one.verdict.text.startswith("undecided: one seed shows no spread; at least 6 more seeds")


def test_without_a_margin():
    up, noisy = judge(campaign(STEADY, NOISE))
    assert up.verdict.kind == "better"
    detectable = 100 * noisy.paired.detectable
    assert noisy.verdict.text == f"undecided: 8 seeds would find {detectable:.1f} points or more"
    [few] = judge(campaign(NOISE)[:4])
    assert few.verdict.text == "undecided with 4 seeds"


def test_other_units_and_other_pairs():
    [judged] = judge(campaign(STEADY, NOISE), 0.02, pairs=[(2, 0)], unit=Unit(1, "", 3))
    assert (judged.treatment, judged.baseline) == (2, 0)
    assert judged.verdict.text.endswith("would decide a difference of 0.02")
    [up] = judge(campaign(STEADY), unit=Unit(1, "", 3))
    assert up.verdict.text.startswith("better (+0.041, 95 % CI +0.022")
    both = judge(campaign(STEADY, NOISE), 0.02, pairs=[(2, 1), (2, 0)])
    assert [(j.treatment, j.baseline, j.verdict.kind) for j in both] == [
        (2, 1, "worse"),
        (2, 0, "undecided"),
    ]
    assert judge(campaign(STEADY), pairs=[]) == []


def test_an_unreachable_margin():
    [judged] = judge(campaign(NOISE), 1e-6)
    assert judged.verdict.text == "undecided: no affordable number of seeds decides 0.0001 points"
    assert judged.verdict.more_seeds is None


tables = st.tuples(st.integers(2, 8), st.integers(2, 4), st.integers(0, 2**32 - 1))


@given(tables, st.sampled_from([0.005, 0.02, 0.1]))
def test_the_verdict_follows_its_rule(design, margin):
    seeds, conditions, seed = design
    rng = np.random.default_rng(seed)
    values = 0.6 + 0.02 * rng.standard_normal((seeds, conditions)) + rng.choice([0, 0.05])
    values[:, 1] += rng.choice([0, 0.08, -0.08])
    values[rng.random(values.shape) < 0.1] = np.nan
    p = correct_planned(values[:, 1:] - values[:, :1]).p
    same = holm(equivalence_p((values[:, 1:] - values[:, :1]).T, margin))
    for judged, p_k, same_k in zip(judge(values, margin), p, same, strict=True):
        verdict, mean = judged.verdict, judged.paired.contrast.mean_difference
        expected = "undecided"
        if p_k <= 0.05:
            expected = "better" if mean > 0 else "worse"
        elif same_k <= 0.05:
            expected = "equivalent"
        assert verdict.kind == expected
        assert verdict.text.split()[0].rstrip(":") in ("better", "worse", "no", "undecided")
        assert verdict.more_seeds is None or (
            verdict.kind == "undecided" and verdict.more_seeds > 0
        )


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: judge(campaign(STEADY), margin=0.0), "margin"),
        (lambda: judge(BASELINE), "conditions"),
        (lambda: judge(campaign(STEADY), pairs=[(2, 0)]), "no such condition"),
        (lambda: judge(campaign(STEADY), pairs=[(1, 1)]), "itself"),
        (lambda: judge(campaign(STEADY), alpha=1.0), "confidence"),
        (lambda: decide(compare_pairs([1, 2], [0, 0]), contrasts=2), "corrected"),
        (lambda: decide(compare_pairs([1, 2], [0, 0]), -1.0), "margin"),
    ],
)
def test_misuse_is_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()
