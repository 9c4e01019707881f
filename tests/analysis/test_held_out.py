"""Held-out answers problem by problem, from the files of a campaign."""

import json

import numpy as np
import pytest
from log_tree import Planned, write_campaign

from retrain.analysis.held_out import read_held_out
from retrain.analysis.page.problems import problem_section
from retrain.analysis.records import read_campaign
from retrain.analysis.summary import compare

DOMAINS = ("algebra", "algebra", "geometry", "logic")


def write(folder, answers):
    """`answers[label][seed]` are the correct completions of each problem, out of two."""
    runs = [
        Planned(label, seed, {"after": sum(of) / 8})
        for label, by_seed in answers.items()
        for seed, of in enumerate(by_seed)
    ]
    write_campaign(folder, runs, report={})
    for run in runs:
        path = folder / "runs" / run.name / "evaluation" / "step_000020.json"
        document = json.loads(path.read_text())
        document["problems"] = [
            {"id": f"<{i}>", "domain": domain, "correct": [1] * right + [0] * (2 - right)}
            for i, (domain, right) in enumerate(
                zip(DOMAINS, answers[run.condition][run.seed], strict=True)
            )
        ]
        path.write_text(json.dumps(document))
    return read_campaign(folder)


ANSWERS = {
    "a": [(0, 1, 1, 2), (0, 0, 1, 2), (1, 1, 0, 1), (0, 1, 1, 1)],
    "b": [(1, 1, 2, 2), (0, 1, 1, 2), (1, 2, 0, 2), (1, 1, 2, 1)],
}


@pytest.fixture
def campaign(tmp_path):
    return write(tmp_path / "c", ANSWERS)


def test_answers_become_arrays(campaign):
    held_out = read_held_out(campaign)
    for c, label in enumerate("ab"):
        assert np.array_equal(held_out.correct[c], np.array(ANSWERS[label], dtype=float))
    assert (held_out.drawn == 2).all()
    assert held_out.domains == DOMAINS


def test_domains_and_pass_at_k_of_worked_numbers(campaign):
    held_out = read_held_out(campaign)
    assert held_out.names == ["algebra", "geometry", "logic"]
    assert held_out.by_domain()[0, 0] == pytest.approx([0.25, 0.5, 1.0])
    ks, found = held_out.pass_at()
    assert ks == [1, 2]
    # pass@2 of two completions: at least one of them correct.
    solved = np.mean([right > 0 for row in ANSWERS["a"] for right in row])
    assert found[0] == pytest.approx([np.mean(ANSWERS["a"]) / 2, solved])


def test_an_interval_for_other_problems_is_wider_when_problems_differ(campaign):
    both = read_held_out(campaign).of_seeds_and_problems("b", "a", 0.95)
    assert both.mean == pytest.approx((np.mean(ANSWERS["b"]) - np.mean(ANSWERS["a"])) / 2)
    [contrast] = compare(campaign).contrasts
    over_seeds = contrast.judgement.paired.contrast
    assert both.high - both.low > over_seeds.high - over_seeds.low


def test_the_section_shows_them_escaped(campaign):
    html = problem_section(campaign, compare(campaign)).html
    assert "over seeds and problems" in html
    assert "k = 2" in html
    assert "geometry <small>1 problem</small>" in html
    # 4 seeds on 3 domains are 12 values: enough to pool.
    assert "IQM" in html
    assert "<0>" not in html


def test_a_missing_run_and_unjudged_completions_are_left_out(campaign):
    folder = campaign.folder / "runs" / "b_s1"
    (folder / "evaluation" / "step_000020.json").unlink()
    path = campaign.folder / "runs" / "a_s0" / "evaluation" / "step_000020.json"
    document = json.loads(path.read_text())
    document["problems"][0]["correct"] = []
    document["problems"][1]["correct"] = [1]
    path.write_text(json.dumps(document))
    held_out = read_held_out(campaign)
    assert np.isnan(held_out.correct[1, 1]).all()
    assert held_out.drawn[0, 0].tolist() == [0, 1, 2, 2]
    assert held_out.by_domain()[0, 0] == pytest.approx([1.0, 0.5, 1.0])
    assert np.isnan(held_out.by_domain()[1, 1]).all()
    assert held_out.of_seeds_and_problems("b", "a", 0.95).units == 3
    assert problem_section(campaign, compare(campaign)) is not None


def test_without_answers_there_is_no_section(tmp_path):
    folder = write_campaign(tmp_path / "c", [Planned("a", 0, {"before": None, "after": None})])
    campaign = read_campaign(folder)
    assert problem_section(campaign, compare(campaign)) is None
