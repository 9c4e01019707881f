"""What a campaign is judged by: recorded before the first run, and followed to the number."""

import json

import pytest
from log_tree import Planned, metrics_row, write_campaign

from retrain.analysis.closing import shared_notes
from retrain.analysis.pooling import pool
from retrain.analysis.records import read_campaign
from retrain.analysis.report import write_report
from retrain.analysis.settings import ReportSettings
from retrain.analysis.summary import all_pairs, compare
from retrain.cli import main
from retrain.errors import InputError


def campaign(folder, values, **report):
    """One run for each seed and condition; `values[label]` are the accuracies after training, a
    word is the state of a run without one."""
    runs = []
    for label, column in values.items():
        for seed, value in enumerate(column):
            what = {"after": value} if not isinstance(value, str) else {"status": value, "steps": 4}
            runs.append(Planned(label, seed, what))
    return write_campaign(folder, runs, report=report)


EIGHT = {
    "a": (0.60, 0.61, 0.62, 0.63, 0.64, 0.65, 0.66, 0.67),
    "b": (0.63, 0.65, 0.65, 0.67, 0.67, 0.69, 0.69, 0.71),
    "c": (0.60, 0.61, 0.62, 0.63, 0.64, 0.65, 0.66, 0.67),
}


def judged(folder, **changes):
    return compare(read_campaign(folder), **changes)


def test_verdicts_of_worked_numbers(tmp_path):
    comparison = judged(campaign(tmp_path / "c", EIGHT))
    better, same = comparison.contrasts
    assert (better.treatment, better.baseline) == ("b", "a")
    assert better.judgement.verdict.text == (
        "better (+3.5 points, 95 % CI +3.1 to +3.9, p = 0.0078 after correction, 8/8 seeds)"
    )
    assert better.differences[1] == pytest.approx(0.04)
    assert same.judgement.verdict.kind == "equivalent"
    assert comparison.recorded
    assert not comparison.changes


def test_a_diverged_run_scores_the_floor_and_a_failed_one_is_missing(tmp_path):
    values = {"a": (0.6, 0.6, 0.6, 0.6), "b": (0.7, "diverged", "failed", 0.7)}
    comparison = judged(campaign(tmp_path / "c", values, floor=0.25))
    [contrast] = comparison.contrasts
    by_treatment = contrast.judgement.paired.contrast
    assert by_treatment.n == 3
    assert by_treatment.dropped == 1
    assert by_treatment.mean_difference == pytest.approx((0.1 - 0.35 + 0.1) / 3)
    assert contrast.complete.n == 2
    assert contrast.complete.mean_difference == pytest.approx(0.1)
    assert contrast.floored
    b = comparison.condition("b")
    assert b.value == pytest.approx(0.7)
    assert dict(b.scored) == {0: 0.7, 1: 0.25, 2: None, 3: 0.7}


def test_planned_contrasts_and_baseline_are_those_recorded(tmp_path):
    folder = campaign(tmp_path / "c", EIGHT, baseline="c", contrasts=["b vs a"])
    comparison = judged(folder)
    [contrast] = comparison.contrasts
    assert (contrast.treatment, contrast.baseline) == ("b", "a")
    assert contrast.judgement.method == "none"
    assert comparison.condition("c").contrast is None
    assert comparison.condition("b").contrast.mean_difference == pytest.approx(0.035)


def test_all_pairs_are_exploratory_and_corrected(tmp_path):
    pairs = all_pairs(judged(campaign(tmp_path / "c", EIGHT)))
    found = {(pair.treatment, pair.baseline): pair.p for pair in pairs}
    # Sign flips: 2/256 twice and 1 once; Benjamini and Hochberg: times 3/1 and 3/2, made monotone.
    expected = pytest.approx(2 / 256 * 3 / 2)
    assert found == {("b", "a"): expected, ("c", "b"): expected, ("c", "a"): 1.0}


def rows_of(folder, rows):
    text = "".join(json.dumps(metrics_row(i, "x", 0, **row)) + "\n" for i, row in enumerate(rows))
    (folder / "metrics.jsonl").write_text(text)


@pytest.fixture
def curves(tmp_path):
    """Two runs of 4 steps with an evaluation every second; run b spends twice the tokens."""
    runs = [
        Planned(label, 0, {"before": 0.2, "after": 0.6, "every": 2, "steps": 4}) for label in "ab"
    ]
    folder = write_campaign(tmp_path / "c", runs, max_steps=4, report={})
    for label, tokens in (("a", 10), ("b", 20)):
        accuracies = {1: {"held_out_accuracy": 0.4}, 3: {"held_out_accuracy": 0.6}}
        rows_of(
            folder / "runs" / f"{label}_s0",
            [{"tokens": tokens, "mean_reward": i / 4, **accuracies.get(i, {})} for i in range(4)],
        )
    return folder


@pytest.mark.parametrize(
    ("settings", "a", "b"),
    [
        ({"window": 2}, 0.5, 0.5),
        ({"window": 3}, 0.4, 0.4),
        ({"metric": "reward", "window": 2}, 0.625, 0.625),
        # (0, .2), (2, .4), (4, .6): the mean height is .4.
        ({"summary": "area_by_step"}, 0.4, 0.4),
        # Tokens 0, 20, 40 and 0, 40, 80, both up to 40: heights .4 and .3.
        ({"summary": "area_by_tokens"}, 0.4, 0.3),
    ],
)
def test_summaries_of_a_curve(curves, settings, a, b):
    comparison = judged(curves, settings=ReportSettings(**settings))
    assert comparison.condition("a").value == pytest.approx(a)
    assert comparison.condition("b").value == pytest.approx(b)


def test_greedy_accuracy_can_be_what_is_judged(tmp_path):
    comparison = judged(campaign(tmp_path / "c", EIGHT, metric="greedy_accuracy"))
    assert comparison.condition("a").value == pytest.approx(0.835)


def test_seeds_of_two_campaigns_pool(tmp_path):
    first = read_campaign(campaign(tmp_path / "one", {k: v[:4] for k, v in EIGHT.items()}))
    later = {k: v[4:] for k, v in EIGHT.items()}
    runs = [
        Planned(label, seed, {"after": value})
        for label, column in later.items()
        for seed, value in enumerate(column, start=4)
    ]
    second = read_campaign(write_campaign(tmp_path / "two", runs, report={}))
    pooled = pool([first, second], tmp_path / "both", chosen=False)
    whole = judged(campaign(tmp_path / "whole", EIGHT))
    assert compare(pooled).contrasts == whole.contrasts
    assert pooled.name == "one + two"
    assert compare(pooled).recorded
    assert any("The seeds of 2 campaigns are pooled" in n for n in shared_notes(compare(pooled)))


def test_pooled_with_one_that_recorded_nothing_nothing_was_planned(tmp_path):
    runs = [Planned(label, 8, {"after": 0.5}) for label in "abc"]
    old = read_campaign(write_campaign(tmp_path / "old", runs))
    first = read_campaign(campaign(tmp_path / "new", EIGHT))
    assert not compare(pool([first, old], tmp_path, chosen=False)).recorded


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "seed 0 is in .*one and in .*two: pooled, its runs would count twice"),
        ({"label": "x"}, "only .*one has the condition b"),
        ({"batch_size": 4}, "b has training.batch_size = 8 in the first and 4 in the second"),
        ({"report": {"margin": 0.01}}, r"settings: margin 0.02 -> 0.01; .* --margin"),
    ],
)
def test_campaigns_of_another_design_do_not_pool(tmp_path, change, message):
    def make(name, seed=0, label="b", report=None, **run):
        runs = [Planned("a", seed, {"after": 0.5}), Planned(label, seed, {"after": 0.6, **run})]
        return read_campaign(write_campaign(tmp_path / name, runs, report=report or {}))

    one, two = make("one"), make("two", seed=1 if change else 0, **change)
    with pytest.raises(InputError, match=message):
        pool([one, two], tmp_path, chosen=False)


def test_campaigns_with_other_contents_do_not_pool(tmp_path):
    def make(name, seed, data):
        runs = [Planned(label, seed, {"after": 0.5, "contents": {"data": data}}) for label in "ab"]
        return read_campaign(write_campaign(tmp_path / name, runs, report={}))

    one, same, other = make("one", 0, "x"), make("two", 1, "x"), make("three", 2, "y")
    assert pool([one, same], tmp_path, chosen=False).seeds == (0, 1)
    message = 'the problems of a have content "x" in the first and "y" in the second'
    with pytest.raises(InputError, match=message):
        pool([one, other], tmp_path, chosen=False)


def test_runs_that_are_not_what_was_planned_are_told(tmp_path):
    contents = {"data": "x", "reward": "r"}
    runs = [
        Planned(label, seed, {"after": 0.5, "contents": {**contents, "data": data}})
        for label in "ab"
        for seed, data in enumerate("xxy")
    ]
    folder = write_campaign(tmp_path / "c", runs, report={}, contents=contents)
    (note,) = compare(read_campaign(folder)).unlike
    assert note.startswith(
        "The problems changed while the campaign was trained: 2 runs (a_s2, b_s2) have not"
    )
    assert note in shared_notes(compare(read_campaign(folder)))
    assert note in write_report(folder).markdown.read_text()


@pytest.mark.parametrize(
    ("change", "told"), [({}, True), ({"device": "cuda"}, False), ({"engine": "vllm"}, False)]
)
def test_one_model_that_answers_otherwise_before_training_is_told(tmp_path, change, told):
    """Unless it was on another device, or behind a server."""
    runs = [
        Planned(label, seed, {"after": 0.5, "before": 0.4 if (label, seed) == ("b", 1) else 0.3})
        for label in "ab"
        for seed in range(3)
    ]
    folder = write_campaign(tmp_path / "c", runs, report={})
    record = folder / "runs" / "b_s1" / "run.json"
    record.write_text(record.read_text().replace('"cpu"', f'"{change.get("device", "cpu")}"'))
    config = folder / "runs" / "b_s1" / "config.toml"
    engine = change.get("engine", "local")
    config.write_text(config.read_text() + f'[inference]\nengine = "{engine}"\n')
    notes = compare(read_campaign(folder)).unlike
    assert len(notes) == told
    for note in notes:
        assert note.startswith("Before training, a answered 30.0% of the held-out problems and b ")
        assert "40.0% (seed 1)" in note


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as left:
        main(["report", *map(str, arguments)])
    return left.value.code, capsys.readouterr()


def test_other_settings_are_marked(tmp_path, capsys):
    folder = campaign(tmp_path / "c", EIGHT)
    code, output = run(capsys, folder, "--json")
    document = json.loads(output.out)
    assert code == 0
    assert document["settings"]["recorded_before_the_first_run"] is True
    assert document["contrasts"][0]["verdict"] == "better"
    assert document["contrasts"][0]["p"] == pytest.approx(2 / 256)
    assert not (folder / "report.md").exists()

    code, output = run(capsys, folder, "--margin", "0.04", "--json")
    settings = json.loads(output.out)["settings"]
    assert settings["recorded_before_the_first_run"] is False
    assert settings["changes"] == ["margin 0.02 -> 0.04"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--baseline", "d"], '--baseline: no condition "d"; the conditions are a, b, c'),
        (["--contrasts", "b"], '--contrasts: "b" is no comparison; write two labels as "a vs b"'),
        (["--metric", "acuracy"], 'is not known; one of "auto", "accuracy"'),
        (["--alpha", "0.7"], "--alpha: 0.7 does not fit; a number above 0 and below 0.5"),
        (["--window", "99"], "no finished run has a value of held-out accuracy, mean of the last"),
        (["--json", "--open"], "--json writes no files"),
    ],
)
def test_wrong_options_are_told(tmp_path, capsys, options, message):
    code, output = run(capsys, campaign(tmp_path / "c", EIGHT), *options)
    assert code == 2
    assert message in " ".join(output.err.split())
