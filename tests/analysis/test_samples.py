"""`retrain samples`: what is read, what is chosen, and what is said when there is nothing."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st
from log_tree import write_run
from sample_rows import old_row, row, write_rows, write_sampled_campaign

from retrain import cli
from retrain.analysis.report import write_report
from retrain.analysis.samples.sample import read_sample
from retrain.analysis.samples.selection import Steps
from retrain.errors import InputError


def chosen(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict[str, Any]]:
    """The completions that the program chooses, as JSON."""
    code, out, err = program(capsys, *arguments, "--json")
    assert code == 0, err
    found: list[dict[str, Any]] = json.loads(out)["samples"]
    return found


def program(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as leave:
        cli.main(["samples", *map(str, arguments)])
    assert isinstance(leave.value.code, int)
    captured = capsys.readouterr()
    return leave.value.code, captured.out, captured.err


def steps(samples: list[dict[str, Any]]) -> list[int]:
    return [sample["step"] for sample in samples]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Ten steps of two completions; rewards 0, 0.1, …, 0.9, and the same again, negated."""
    rows = []
    for step in range(10):
        for place, sign in enumerate((1, -1)):
            rows.append(
                row(
                    step,
                    reward=sign * step / 10,
                    outcome="correct" if sign > 0 else "wrong",
                    problem_id=f"sum-{step}",
                    domain="sums" if step < 5 else "products",
                    sample=place,
                    pieces=(f"It is {step}", " or so", ""),
                )
            )
    return write_rows(tmp_path / "grpo+none_s42", rows, tail='{"step": 10, "completion": "half')


def test_the_newest_come_first_and_a_half_written_line_is_passed_over(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = chosen(capsys, run)
    assert steps(found) == [step for step in range(9, -1, -1) for _ in range(2)]
    assert [sample["sample"] for sample in found[:4]] == [0, 1, 0, 1]
    code, out, _ = program(capsys, run)
    assert (code, out.count("── step")) == (0, 5)
    assert "5 of 20 completions, the newest first; --limit 20 for all" in out


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--step", "3"], {3}),
        (["--step", "3:5"], {3, 4, 5}),
        (["--step", "8:"], {8, 9}),
        (["--step", ":1"], {0, 1}),
        (["--step", "-1"], {9}),
        (["--step", "-3:"], {7, 8, 9}),
        (["--step", "-3:-2"], {7, 8}),
        (["--step", "0", "--step", "-1"], {0, 9}),
        (["--step", "99"], set()),
        (["--domain", "products", "--correct"], {5, 6, 7, 8, 9}),
        (["--domain", "products", "--domain", "sums"], set(range(10))),
        (["--problem", "sum-4", "--problem", "sum-6"], {4, 6}),
        (["--grep", r"is [37]\b"], {3, 7}),
        (["--grep", "(?i)OR SO", "--step", ":2"], {0, 1, 2}),
        (["--limit", "3"], {8, 9}),
    ],
)
def test_filters(
    run: Path, capsys: pytest.CaptureFixture[str], options: list[str], expected: set[int]
) -> None:
    assert set(steps(chosen(capsys, run, *options))) == expected


def test_outcomes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options in (["--wrong"], ["--outcome", "wrong"]):
        assert {s["outcome"] for s in chosen(capsys, run, *options)} == {"wrong"}
    assert len(chosen(capsys, run, "--wrong", "--correct")) == 20
    assert chosen(capsys, run, "--outcome", "unverifiable") == []


def test_best_and_worst_are_by_reward(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [s["reward"] for s in chosen(capsys, run, "--worst", 3)] == [-0.9, -0.8, -0.7]
    assert [s["reward"] for s in chosen(capsys, run, "--best", 2, "--wrong")] == [0, -0.1]
    both = chosen(capsys, run, "--best", 1, "--worst", 1)
    assert [s["reward"] for s in both] == [0.9, -0.9]
    # Nothing is shown twice.
    assert len(chosen(capsys, run, "--best", 99, "--worst", 99)) == 20
    assert "20 completions: the best 1 by reward" in program(capsys, run, "--best", 1)[1]


def test_ties_go_by_advantage_and_unknown_rewards_come_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = [(0.0, -1.0), (0.0, -2.0), (None, -9.0), (1.0, None)]
    rows = [row(reward=reward, advantage=advantage) for reward, advantage in values]
    write_rows(tmp_path / "r", rows)
    for option, order in (("--worst", [1, 0, 3, 2]), ("--best", [3, 0, 1, 2])):
        found = chosen(capsys, tmp_path / "r", option, 4)
        assert [(s["reward"], s["advantage"]) for s in found] == [values[i] for i in order]


def test_a_campaign_puts_conditions_side_by_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the same place under the same seed conditions saw the same problem."""
    names = ["a_s1", "a_s2", "b_s1", "b_s2"]
    rows = {
        name: [row(step, problem_id=f"p{step}-{k}") for step in (0, 1) for k in (0, 1)]
        for name in names
    }
    folder = write_sampled_campaign(tmp_path / "campaign_1", rows)
    found = [(s["step"], s["run"], s["problem_id"]) for s in chosen(capsys, folder)]
    assert found[:8] == [
        (1, f"{condition}_s{seed}", f"p1-{place}")
        for seed in (1, 2)
        for place in (0, 1)
        for condition in "ab"
    ]
    assert {s["run"] for s in chosen(capsys, folder, "--run", "a_s2", "--run", "b_s1")} == {
        *("a_s2", "b_s1")
    }
    code, _, err = program(capsys, folder, "--run", "a_s3")
    assert (code, "--run a_s3: no such run" in err, "did you mean a_s" in err) == (2, True, True)
    # The last step is each run's own.
    write_rows(folder / "runs" / "a_s1", [row(step) for step in range(8)])
    assert {(s["run"], s["step"]) for s in chosen(capsys, folder, "--step", "-1")} == {
        *(("a_s1", 7), ("a_s2", 1), ("b_s1", 1), ("b_s2", 1))
    }
    several = program(capsys, tmp_path)
    assert several[0] == 0
    write_sampled_campaign(tmp_path / "campaign_2", {"a_s1": [row()]})
    code, _, err = program(capsys, tmp_path)
    assert (code, "holds several campaigns or runs; give one of them" in err) == (2, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--grep", "("], r"--grep (: not a regular expression: missing )"),
        (["--step", "x"], "--step x: write a step (7), a range (10:20"),
        (["--step", ":"], "--step :: write a step"),
        (["--step", "1-3"], "--step 1-3: write a step"),
        (["--outcome", "crrect"], "no such outcome; there are correct, wrong, unverifiable"),
        (["--color", "red"], "--color red: write one of advantage, uncertainty, none"),
        (["--limit", "0"], "--limit 0: write a number of 1 or more"),
        (["--best", "-1"], "--best -1: write a number of 1 or more"),
        (["--best", "2", "--limit", "3"], "--limit does not go with --best and --worst"),
        (["--html", "x.html", "--json"], "choose one"),
        (["--html", "."], "is a folder; name a file"),
        (["--html", "missing/x.html"], "the folder missing does not exist"),
    ],
)
def test_mistakes(
    run: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(run)
    code, out, err = program(capsys, run, *options)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_nothing_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "missing: no such folder" in program(capsys, tmp_path / "missing")[2]
    code, _, err = program(capsys, tmp_path)
    assert (code, "holds no run: give the folder of a run" in err) == (2, True)
    silent = write_run(tmp_path / "silent")
    assert "no completions yet" in program(capsys, silent)[2]
    (silent / "config.toml").write_text(tomli_w.dumps({"logging": {"log_generations": 0}}))
    code, _, err = program(capsys, silent)
    assert (code, "log_generations = 0 in [logging] of " in err) == (2, True)


def test_nothing_matches(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = program(capsys, run, "--problem", "sum-11")
    assert code == 0
    assert "none of 20 logged completions matches; there are steps 0 to 9" in out
    assert "no completion of sum-11 was logged; did you mean sum-1?" in out


def test_json_holds_tokens_and_nothing_a_terminal_obeys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pieces = ("a\x1b[2J", "\x9b", "é", "")
    made = row(
        pieces=pieces,
        token_advantages=[1, -2, 3.5, 0],
        planning_spans=[[0, 1]],
        parts={"match": 1.0},
        prompt=[{"role": "user", "content": "Hi"}],
    )
    write_rows(tmp_path / "r", [made])
    code, out, _ = program(capsys, tmp_path / "r", "--json")
    assert code == 0
    assert all(sign == "\n" or " " <= sign <= "~" for sign in out)
    document = json.loads(out)
    assert (document["schema"], document["logged"], document["matching"]) == (1, 1, 1)
    sample = document["samples"][0]
    assert [token["text"] for token in sample["tokens"]] == list(pieces)
    assert [token["advantage"] for token in sample["tokens"]] == [1, -2, 3.5, 0]
    assert sample["prompt"] == [{"role": "user", "content": "Hi"}]
    assert (sample["parts"], sample["planning_spans"]) == ({"match": 1.0}, [[0, 1]])


def test_old_rows_are_viewable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(tmp_path / "r", [old_row(pieces=("Let me check", ": 4"), planning_spans=[[0, 12]])])
    code, out, _ = program(capsys, tmp_path / "r")
    assert code == 0
    assert "⟦Let me check⟧: 4" in out
    assert "tokens were not logged" in out
    assert chosen(capsys, tmp_path / "r")[0]["tokens"] == []


WILD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(
    st.fixed_dictionaries({"completion": st.text(max_size=9), "step": st.integers(0, 9)}),
    st.dictionaries(st.sampled_from(sorted(row())), WILD, max_size=6),
)
def test_any_row_is_read_or_passed_over(good: dict[str, Any], wild: dict[str, Any]) -> None:
    sample = read_sample({**good, **wild}, run="r", condition="c", seed=None, place=0)
    if sample is None:
        return
    text = sample.completion
    if sample.tokens:
        assert "".join(text[token.start : token.end] for token in sample.tokens) == text
    edges = [edge for span in sample.planning for edge in span]
    assert edges == sorted(edges)
    assert all(0 <= edge <= len(text) for edge in edges)


@given(st.integers(0, 20), st.integers(-25, 25), st.integers(-25, 25))
def test_steps_are_those_of_a_list(newest: int, first: int, last: int) -> None:
    """Negative numbers count from the end, and the last one is included."""
    every = list(range(newest + 1))
    chosen = [step for step in every if Steps.parse(f"{first}:{last}").holds(step, newest)]
    begin, end = (at + newest + 1 if at < 0 else at for at in (first, last))
    assert chosen == [step for step in every if begin <= step <= end]


@given(st.text(max_size=6))
def test_any_steps_are_understood_or_refused(value: str) -> None:
    with contextlib.suppress(InputError):
        Steps.parse(value).holds(3, 9)


def test_the_viewer_needs_no_torch(run: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom retrain.cli import main\n"
        f"try: main(['samples', {str(run)!r}, '--html', {str(tmp_path / 'x.html')!r}])\n"
        "except SystemExit as leave: assert leave.code == 0\n"
        "print([n for n in ('torch', 'transformers', 'numpy', 'scipy') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_report_says_how_to_read_them(tmp_path: Path) -> None:
    folder = write_sampled_campaign(tmp_path / "campaign_1", {"a_s1": []})
    assert "retrain samples . --html" in write_report(folder).markdown.read_text()
    (folder / "runs" / "a_s1" / "emergence" / "generations.jsonl").unlink()
    assert "retrain samples" not in write_report(folder).markdown.read_text()
