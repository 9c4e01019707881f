"""`retrain score`: every reward, bad rows, what a run wrote, and files larger than memory."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from retrain import cli
from retrain.rewards import score_command
from retrain.rewards.match import MatchReward
from retrain.rewards.score_command import AT_A_TIME, Row, judged
from tests.rewards.judge_server import fake_server, verdict
from tests.rewards.judged import completion, problem

ROWS: tuple[dict[str, Any], ...] = (
    {"reference": "1/2", "response": r"so \boxed{0.5}", "id": "half"},
    {"reference": 0.00001, "response": r"\boxed{0.00002}"},
    {"reference": "7", "response": "seven"},
    {"reference": "is it (", "response": r"\boxed{5.1}"},
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, *rows: dict[str, Any] | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows) + "\n")
    return path


def score(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as leave:
        cli.main(["score", *map(str, arguments)])
    assert isinstance(leave.value.code, int)
    return leave.value.code


@pytest.fixture
def documents(capsys: pytest.CaptureFixture[str]) -> Any:
    """The JSON objects that the command prints."""

    def printed(*arguments: str | Path) -> list[dict[str, Any]]:
        assert score(*arguments, "--json") == 0, capsys.readouterr().err
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return printed


def test_math_and_match(folder: Path, documents: Any) -> None:
    path = write(folder / "a.jsonl", *ROWS)
    unread = "the reference cannot be read as mathematics"
    unboxed = r"no answer in a \boxed{}"
    assert documents(path, "--type", "math") == [
        {"line": 1, "id": "half", "score": 1.0, "outcome": "correct", "why": ""},
        {"line": 2, "score": 0.0, "outcome": "wrong", "why": ""},
        {"line": 3, "score": 0.0, "outcome": "wrong", "why": unboxed},
        {"line": 4, "score": 0.0, "outcome": "unverifiable", "why": unread},
    ]
    matched = documents(path, "--type", "match")
    assert [row["outcome"] for row in matched] == ["wrong"] * 4


def test_the_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide = {"reference": "漢" * 30, "response": "\\boxed{\x1b[31m}", "outcome": "correct"}
    assert score(write(folder / "a.jsonl", *ROWS, "", wide), "--type", "match") == 0
    head, *lines, total, changed = capsys.readouterr().out.splitlines()
    assert head.split() == ["line", "outcome", "score", "reference", "answer", "why"]
    assert lines[1] == "      2  wrong              0  0.00001                 0.00002"
    assert lines[2].endswith(r"seven                           no answer in a \boxed{}")
    assert lines[4].startswith("      6  wrong              0  " + "漢" * 11)
    assert "\x1b" not in lines[4]
    assert total == (
        "5 rows: 0 correct (0.0%), 5 wrong (100.0%), 0 unverifiable (0.0%); mean score 0"
    )
    assert changed == "other than in the file: 1 correct -> wrong"


def test_what_a_run_wrote_is_judged_again(folder: Path, documents: Any) -> None:
    row = {"prompt": "?", "answer": "0.5", "completion": r"\boxed{1/2}", "problem_id": "p1"}
    generations = folder / "run" / "emergence" / "generations.jsonl"
    write(generations, {**row, "outcome": "wrong", "stop_reason": "length", "step": 3})
    with generations.open("a") as file:
        file.write('{"prompt": "being wri')
    expected = [{"line": 1, "id": "p1", "score": 1.0, "outcome": "correct", "why": ""}]
    assert documents("run", "--type", "math") == expected
    matched = documents(generations, "--type", "match")
    assert matched == [{**expected[0], "score": 0.0, "outcome": "wrong"}]


REWARD = """
def graded(response, reference, metadata):
    return len(response) / metadata["extra_info"]["longest"]
def source(response, reference, problem):
    assert problem.messages[-1]["content"] == "How?"
    return float(problem.metadata["data_source"] == response)
"""


def test_rewards_of_a_config(folder: Path, documents: Any) -> None:
    """They get what they get in training, and what is wrong with the training is no matter."""
    (folder / "my").mkdir()
    (folder / "my" / "own_rewards.py").write_text(REWARD)
    row = {
        "reference": "x",
        "response": "gsm8k",
        "prompt": [{"role": "user", "content": "How?"}],
        "data_source": "gsm8k",
        "extra_info": {"longest": 20},
    }
    path = write(folder / "a.jsonl", row, {**row, "response": "gsm8k" * 4})
    custom = 'type = "custom"\ncustom_module = "own_rewards"\ncustom_function = '
    config = folder / "my" / "x.toml"
    config.write_text(f'[reward]\n{custom}"graded"\n[training]\nmax_tokens = 99999\n')
    found = documents(path, "--config", config)
    assert [(row["score"], row["outcome"]) for row in found] == [(0.25, "wrong"), (1.0, "correct")]
    config.write_text(
        '[reward]\ntype = "composite"\n[[reward.components]]\ntype = "match"\n'
        f'[[reward.components]]\n{custom}"source"\nweight = 0.5\n'
    )
    found = documents(path, "--config", config)
    assert [(row["score"], row["parts"]) for row in found] == [
        (0.5, {"match": 0.0, "custom": 1.0}),
        (0.0, {"match": 0.0, "custom": 0.0}),
    ]
    assert found[1]["why"] == r"match: no answer in a \boxed{}"


def test_a_judge(folder: Path, documents: Any) -> None:
    path = write(folder / "a.jsonl", *ROWS[:2])
    config = folder / "x.toml"
    with fake_server() as server:
        config.write_text(
            f'[reward]\ntype = "judge"\nbase_url = "{server.url}"\nmodel = "judge-1"\n'
            'on_failure = "mask"\n'
        )
        server.answer = lambda body: verdict(0.75 if "0.5" in str(body) else "none")
        good, masked = documents(path, "--config", config)
    assert (good["score"], good["outcome"]) == (0.75, "correct")
    assert (masked["score"], masked["outcome"]) == (None, "unverifiable")
    assert "a run would leave it out" in masked["why"]


def test_all_bad_rows_are_told_at_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(
        folder / "a.jsonl",
        {"response": 5, "prompt": 3},
        "{",
        [1],  # type: ignore[arg-type]
        *ROWS,
        {"refrence": 1, "response": "a"},
        {"reference": True, "response": "a"},
    )
    assert score(path, "--type", "math", "--json") == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    heading, *lines = printed.err.splitlines()
    assert heading == "5 errors, nothing was started:"
    assert lines == [
        f"{path}, line 1: `response` must be text, not 5; `reference` is missing; `prompt` must be "
        'text or a list of messages {"role": "…", "content": "…"}, not 3',
        f"{path}, line 2: one JSON object a line is wanted, not one over many",
        f"{path}, line 3: one JSON object a line is wanted, not [1]",
        f"{path}, line 8: `reference` is missing; did you mean refrence?",
        f"{path}, line 9: `reference` must be text or a number, not true",
    ]
    write(path, *["x"] * 60)
    assert score(path, "--type", "math") == 2
    assert f"10 other lines of {path} are wrong as well" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.jsonl"], "name the reward: --type math, or --config X.toml"),
        (["a.jsonl", "--type", "mth"], "did you mean math?"),
        (["a.jsonl", "--type", "judge"], "--type judge needs reward.base_url, reward.model: write"),
        (["a.jsonl", "--config", "no.toml"], "no.toml: no such file"),
        (["b.jsonl", "--type", "math"], "no such file: b.jsonl"),
        (["empty.jsonl", "--type", "math"], "empty.jsonl holds no row"),
        (["many", "--type", "math"], "give one of its runs, e.g. many/runs/a"),
    ],
)
def test_mistakes(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    write(folder / "a.jsonl", *ROWS)
    write(folder / "empty.jsonl")
    write(folder / "many" / "runs" / "a" / "emergence" / "generations.jsonl")
    assert score(*arguments) == 2
    assert message in capsys.readouterr().err


def test_a_reward_that_fails_names_the_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "failing_reward.py").write_text("def fails(response, reference):\n    return {}[1]\n")
    (folder / "x.toml").write_text(
        '[reward]\ntype = "custom"\ncustom_module = "failing_reward"\ncustom_function = "fails"\n'
    )
    assert score(write(folder / "a.jsonl", "", ROWS[1]), "--config", "x.toml") == 1
    assert "raised KeyError: 1\nproblem line 2, completion" in capsys.readouterr().err


def test_rows_are_read_as_they_are_judged() -> None:
    drawn = itertools.count()

    def endless() -> Iterator[Row]:
        for line in drawn:
            yield Row(line, problem("7"), completion(r"\boxed{7}"), "")

    rows = judged(endless(), MatchReward())
    assert [row.line for row, _ in itertools.islice(rows, 1000)] == list(range(1000))
    assert next(drawn) <= 1000 + AT_A_TIME


SLOW = "import time\ndef slow(response, reference):\n    time.sleep(0.1)\n    return 1.0\n"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_bar_is_drawn_on_a_terminal_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    (folder / "slow_reward.py").write_text(SLOW)
    (folder / "x.toml").write_text(
        '[reward]\ntype = "custom"\ncustom_module = "slow_reward"\ncustom_function = "slow"\n'
    )
    seen = io.StringIO()
    console = Console(file=seen, force_terminal=is_terminal)
    monkeypatch.setattr(score_command, "BAR_AFTER_S", 0.0)
    monkeypatch.setattr(score_command, "Terminal", lambda **_: console)
    assert score(write(folder / "a.jsonl", *ROWS), "--config", "x.toml") == 0
    assert ("judging" in seen.getvalue()) == is_terminal
