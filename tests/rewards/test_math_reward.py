"""The math reward: what is right, wrong and unverifiable, and what its processes bear."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrain.rewards import math_pool
from retrain.rewards.match import MatchReward, last_boxed
from retrain.rewards.math_pool import OVER_BUDGET, MathPool, Verdict
from retrain.rewards.math_text import plain
from retrain.rewards.mathematics import MathReward, at_once
from retrain.rewards.reward import RewardFailedError, Scoring
from retrain.types import Score
from tests.rewards.hostile import HOSTILE
from tests.rewards.judged import completion, eventually, group, judged, problem

LIMIT_S = 0.4


@pytest.fixture(scope="module")
def reward() -> Iterator[MathReward]:
    with MathReward(timeout=LIMIT_S, processes=1) as made:
        yield made


def pool_of(reward: MathReward) -> MathPool:
    assert reward._pool is not None
    return reward._pool


def processes(reward: MathReward) -> list[int]:
    return [live._process.pid for live in pool_of(reward)._live]


def fork_of(pid: int) -> int | None:
    """The process that does a checking process's work."""
    forks = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(forks[0]) if forks else None


RIGHT = [
    ("0.5", r"\frac{1}{2}"),
    (r"\frac{1}{2}", "0.5"),
    (r"\frac12", "1/2"),
    (r"\dfrac{1}{2}", r"\tfrac{2}{4}"),
    ("1234", "1,234"),
    ("-7", "-07"),
    ("5", "x=5"),
    ("x=5", "5"),
    ("50", r"\$50"),
    ("5", r"5\text{ cm}"),
    (r"90^\circ", "90"),
    (r"50\%", "50"),
    (r"2\sqrt{2}", r"\sqrt{8}"),
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"),
    ("x^2+2x+1", "(x+1)^2"),
    (r"\frac{1}{1-x}", r"\frac{1+x}{1-x^2}"),
    (r"\sin^2 x", r"1-\cos^2 x"),
    (r"\{1,2,3\}", "3, 1, 2"),
    ("(1,2)", r"\left( 1, 2 \right)"),
    ("[0,1)", "[0, 1)"),
    (r"[0,1]\cup[2,3]", r"[2,3]\cup[0,1]"),
    ("x<3", r"(-\infty,3)"),
    ("2x+3y=6", "3y=6-2x"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix}1\\\frac{4}{2}\end{bmatrix}"),
    (r"\text{Evelyn}", "Evelyn"),
    (r"\text{(B)}", "B"),
    ("5!", "120"),
    (r"\binom{5}{2}", "10"),
    (r"\log_2 8", "3"),
    ("2^{100}", "1267650600228229401496703205376"),
    ("x^2+y^2=1", "1-y^2=x^2"),
    ("10^{10^{10}}", "10^{10^{10}}"),
    (r"\boxed{7}", "7.0"),
]


@pytest.mark.parametrize(("reference", "answer"), RIGHT)
def test_the_same_in_other_words(reward: MathReward, reference: str, answer: str) -> None:
    text = f"first \\boxed{{12345}}, no: \\boxed{{{answer}}}."
    assert judged(reward, text, reference) == Score(1.0, "correct")


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("0.5", r"\frac{1}{3}"),
        ("5", "6"),
        ("5", "x=6"),
        ("(1,2)", "(2,1)"),
        ("[0,1)", "[0,1]"),
        (r"\{1,2,3\}", "1, 2"),
        ("x^2+2x+1", "(x-1)^2"),
        ("x<3", "x>3"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}"),
        (r"\text{Evelyn}", r"\text{Briana}"),
        (r"\sqrt{2}", "1.5"),
    ],
)
def test_something_else(reward: MathReward, reference: str, answer: str) -> None:
    assert judged(reward, f"\\boxed{{{answer}}}", reference) == Score(0.0, "wrong")


@pytest.mark.parametrize(
    ("reference", "text"),
    [("it depends {", r"\boxed{5}"), ("5", r"\boxed{it is (five}"), ("", r"\boxed{5}")],
)
def test_what_cannot_be_read_is_neither_right_nor_wrong(
    reward: MathReward, reference: str, text: str
) -> None:
    assert judged(reward, text, reference) == Score(0.0, "unverifiable")


CASES = [
    json.loads(line)
    for line in Path(__file__)
    .with_name("math_cases.jsonl")
    .read_text(encoding="utf-8")
    .splitlines()
]


@pytest.fixture(scope="module")
def judgements() -> list[tuple[dict[str, str], str]]:
    """Each case with its outcome, judged as one rollout."""
    with MathReward() as reward:
        pending = [
            reward.begin(problem(case["reference"]), completion(f"\\boxed{{{case['answer']}}}"))
            for case in CASES
        ]
        return [
            (case, score.outcome if (score := wait()) else "none")
            for case, wait in zip(CASES, pending, strict=True)
        ]


@pytest.mark.parametrize("kind", dict.fromkeys(case["kind"] for case in CASES))
def test_answers_that_look_alike(judgements: list[tuple[dict[str, str], str]], kind: str) -> None:
    """`math_cases.jsonl`: right and wrong answers of the kinds that are easily mistaken."""
    of_kind = [(case, outcome) for case, outcome in judgements if case["kind"] == kind]
    assert [(case, outcome) for case, outcome in of_kind if outcome != case["right"]] == []
    assert min(Counter(case["right"] for case, _ in of_kind).values()) > 0


_LATEX = (
    r"\text{ \frac \sqrt \boxed{ \{ \in \circ \, { } ( ) [ ; , . ^ _ ' $ ~ = - / 12 345 e x or cm"
)
_PIECES = st.sampled_from(
    [*_LATEX.split(), " ", "base ", "...", "\N{MINUS SIGN}", "\N{DEGREE SIGN}"]
)


@given(st.lists(_PIECES, max_size=30).map("".join))
def test_any_text_has_a_plain_form(text: str) -> None:
    assert plain(text) == plain(f"\\[ {text} \\]")
    if text.strip():
        assert at_once(text.strip(), text.strip()) == Score(1.0, "correct")


@pytest.mark.parametrize(
    "piece", ["\\boxed{", "\\text{", "(", "\\, ", "...", ",", "1 ", "\\text{a} ", "^(", "a or "]
)
def test_the_plain_form_of_a_hostile_text_takes_no_quadratic_time(piece: str) -> None:
    """In cubic time, as patterns with several runs of spaces take, each of these would take
    minutes."""
    for text in (piece * (2000 // len(piece)), "1" + piece * (1990 // len(piece)) + "\\}"):
        assert plain(text) is not None


def test_an_answer_without_a_box_is_wrong(reward: MathReward) -> None:
    assert judged(reward, "The answer is 5.", "5").outcome == "wrong"


def test_a_reference_that_cannot_be_read_still_equals_itself(reward: MathReward) -> None:
    assert judged(reward, r"\boxed{it depends (}", "it depends (").outcome == "correct"


@given(st.integers(-(10**20), 10**20), st.integers(-(10**20), 10**20))
def test_whole_numbers_need_no_process(one: int, other: int) -> None:
    assert at_once(str(one), f"{one:+d}") == Score(1.0, "correct")
    found = at_once(str(one), str(other))
    assert found is not None
    assert (found.outcome == "correct") == (one == other)


@settings(max_examples=40)
@given(st.integers(-30, 30), st.integers(1, 12), st.integers(-30, 30), st.integers(1, 12))
def test_fractions_are_compared_as_numbers(
    reward: MathReward, a: int, b: int, c: int, d: int
) -> None:
    found = judged(reward, f"\\boxed{{\\frac{{{c}}}{{{d}}}}}", f"\\frac{{{a}}}{{{b}}}")
    assert (found.outcome == "correct") == (a * d == b * c)


@given(st.text("x{}\\boxed ", max_size=60))
def test_what_match_accepts_math_accepts(reward_text: str) -> None:
    inside = last_boxed(reward_text)
    if inside and MatchReward().score(problem(inside), completion(reward_text)).reward:
        assert at_once(inside, inside) == Score(1.0, "correct")


# The peer of a whole rollout: at one process and 0.4 s of CPU a case the set takes well under this.
SET_LIMIT_S = 240
MEMORY_LIMIT_KB = 900 * 1024


@pytest.fixture(scope="module")
def verdicts(reward: MathReward) -> dict[str, Score | None]:
    """All hostile completions, judged as one rollout."""
    folder = Path(tempfile.gettempdir())
    before = (
        set(folder.glob("pwned")) | set(Path.cwd().glob("pwned")) | set(Path("/").glob("pwned"))
    )
    assert not before
    pending = {
        name: reward.begin(problem(reference, name), completion(text))
        for name, text, reference in HOSTILE
    }
    found: dict[str, Score | None] = {}

    def wait_for_all() -> None:
        for name, wait in pending.items():
            found[name] = wait()

    waiting = threading.Thread(target=wait_for_all, daemon=True)
    waiting.start()
    waiting.join(SET_LIMIT_S)
    assert not waiting.is_alive(), f"{len(found)} of {len(HOSTILE)} done"
    return found


@pytest.mark.parametrize("name", [name for name, _, _ in HOSTILE])
def test_no_hostile_answer_hangs_crashes_or_scores(
    verdicts: dict[str, Score | None], name: str
) -> None:
    score = verdicts[name]
    assert score is not None
    assert score.reward == 0.0
    assert score.outcome in ("wrong", "unverifiable")


def test_no_hostile_answer_gets_what_it_asks_for(verdicts: dict[str, Score | None]) -> None:
    assert len(verdicts) == len(HOSTILE) >= 60
    for folder in (Path.cwd(), Path("/"), Path(tempfile.gettempdir())):
        assert not (folder / "pwned").exists()


def test_the_processes_are_limited_by_the_kernel(
    reward: MathReward, verdicts: dict[str, Score | None]
) -> None:
    judged(reward, r"\boxed{\frac{1}{3}}", "0.25")
    pid = fork_of(*processes(reward))
    limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
    by_name = {line[:25].strip(): line[25:].split() for line in limits}
    assert int(by_name["Max address space"][0]) < 2 * 2**30
    assert by_name["Max file size"][0] == "0"
    status = Path(f"/proc/{pid}/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    assert int(peak.split()[1]) < MEMORY_LIMIT_KB
    environment = Path(f"/proc/{pid}/environ").read_text()
    assert "PYTHONHASHSEED=0" in environment
    assert "HOME=" not in environment


def test_after_all_that_the_right_answer_is_right(
    reward: MathReward, verdicts: dict[str, Score | None]
) -> None:
    assert judged(reward, r"\boxed{\frac{11}{2}}", "5.5").outcome == "correct"


@pytest.mark.parametrize(
    "code",
    [
        "open('FOLDER/made', 'w').write('x')",
        "__import__('os').mkdir('FOLDER/made')",
        "__import__('subprocess').Popen(['touch', 'FOLDER/made'])",
        "__import__('socket').socket()",
        "__import__('os').system('touch FOLDER/made')",
        "eval('1')",
        "exec('x = 1')",
        "compile('1', '<string>', 'eval')",
        "__import__('sympy').sympify('[].append')",
        "__import__('sympy').lambdify([], __import__('sympy').Symbol('x'))",
        "__import__('sympy.utilities.lambdify').utilities.lambdify.lambdify([], 1)",
    ],
)
def test_a_checking_process_may_do_nothing_else(tmp_path: Path, code: str) -> None:
    """Even if something in it ran code of the model's."""
    script = Path(math_pool.__file__).with_name("math_process.py")
    program = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("checks", {str(script)!r})
checks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(checks)
code = compile({code.replace("FOLDER", str(tmp_path))!r}, "evil.py", "eval")
compare = checks._load() if "sympy" in {code!r} else None
checks._limit(2**29)
sys.addaudithook(checks._refuse)
try:
    eval(code)
except Exception as error:
    print("refused", type(error).__name__)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.startswith("refused"), done.stdout + done.stderr
    assert not (tmp_path / "made").exists()


def test_one_answer_given_by_many_is_checked_once(
    reward: MathReward, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    pool = pool_of(reward)
    check = pool.check
    monkeypatch.setattr(pool, "check", lambda *pair: asked.append(pair) or check(*pair))
    pending = [
        reward.begin(problem(r"\frac{3}{7}"), completion(f"{i}: \\boxed{{\\frac{{6}}{{14}}}}"))
        for i in range(16)
    ]
    assert {wait().outcome for wait in pending} == {"correct"}  # type: ignore[union-attr]
    assert len(asked) == 1


def test_a_killed_process_costs_one_answer_at_most_and_is_replaced(reward: MathReward) -> None:
    judged(reward, r"\boxed{\frac{1}{5}}", "0.125")
    (before,) = processes(reward)
    os.kill(before, signal.SIGKILL)
    assert eventually(lambda: gone(before))
    assert judged(reward, r"\boxed{\frac{1}{5}}", "0.2").outcome == "correct"
    (after,) = processes(reward)
    assert after != before
    fork = fork_of(after)
    os.kill(fork, signal.SIGKILL)
    assert eventually(lambda: fork_of(after) != fork)
    assert judged(reward, r"\boxed{\frac{1}{5}}", "1/7").outcome == "wrong"
    assert processes(reward) == [after]


def test_ctrl_c_is_not_for_the_processes(reward: MathReward) -> None:
    judged(reward, r"\boxed{\frac{1}{9}}", "0.125")
    (pid,) = processes(reward)
    os.kill(pid, signal.SIGINT)
    assert judged(reward, r"\boxed{\frac{2}{9}}", "0.125").outcome == "wrong"
    assert processes(reward) == [pid]
    assert os.getpgid(pid) != os.getpgid(0)


def test_out_of_time_and_unread_references_are_told_once(
    reward: MathReward, caplog: pytest.LogCaptureFixture
) -> None:
    fresh = MathReward(timeout=LIMIT_S)
    fresh._pool = pool_of(reward)
    with caplog.at_level(logging.WARNING, logger="retrain"):
        for name in ("a", "a", "b", "c"):
            asked = problem("is it (", name)
            assert fresh.score(asked, completion(r"\boxed{5.1}")) == Score(0.0, "unverifiable")
        endless = completion(r"\boxed{\prod_{k=1}^{99999999} k}")
        assert fresh.score(problem("5.5"), endless) == Score(0.0, "unverifiable")
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert "Problem a: 'is it ('" in messages[0]
    assert "[reward].timeout" in messages[1]


class Pretended:
    """A checking process for answers that say how many seconds they take."""

    begin = threading.Event()

    def __init__(self) -> None:
        self.checks, self.is_fit = 0, True

    def check(self, task: Any) -> tuple[Verdict, float]:
        assert self.begin.wait(60)
        seconds = float(task.answer)
        if seconds > task.limit:
            return Verdict("unverifiable", "time"), task.limit
        return Verdict("correct"), seconds

    def kill(self) -> None:
        """Nothing is there."""


def test_what_a_step_has_time_for_is_spread_over_its_answers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(math_pool, "_Process", Pretended)
    pool = MathPool(timeout=5.0, size=1)
    pool.begin_step()
    # 47 answers have 30 + 47 x 0.05 = 32.35 s. Their first tries take 42 x 0.1 + 5 x 0.01, the
    # second ones 42 x 0.4, and in what is left 12 answers are checked, two a problem in turns.
    asked = [("a", "1.0")] * 40 + [("b", "1.0")] * 2 + [("c", "0.01")] * 5
    checked = [(reference, pool.check(reference, answer)) for reference, answer in asked]
    Pretended.begin.set()
    outcomes = Counter(
        (reference, "over" if check.exception(60) else check.result().outcome)
        for reference, check in checked
    )
    assert outcomes == {
        ("a", "correct"): 10,
        ("a", "over"): 30,
        ("b", "correct"): 2,
        ("c", "correct"): 5,
    }
    with caplog.at_level(logging.WARNING, logger="retrain"):
        pool.begin_step()
        assert pool.check("a", "4.0").result(60).outcome == "correct"
        pool.close()
    (message,) = (record.getMessage() for record in caplog.records)
    assert "30 of 47 answers of a step could not be checked" in message
    assert "longer than 32.4 s together" in message


def test_answers_that_take_long_cost_the_others_of_a_step_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (("FIRST_S", 0.05), ("STEP_LIMITS", 1.0)):
        monkeypatch.setattr(math_pool, name, value)
    endless = [completion(rf"\boxed{{\prod_{{k=1}}^{{9999999{n}}} k}}") for n in range(8)]
    quick = group("0.25", r"\boxed{\frac{1}{4}}", r"\boxed{\frac{1}{3}}", name="quick")
    groups = [replace(quick, problem=problem("5.5"), completions=tuple(endless)), quick]
    with MathReward(timeout=0.2, processes=1) as reward:
        hogs, others = Scoring(reward, [each.problem for each in groups]).scored(groups)
        assert [score.outcome for score in others.scores] == ["correct", "wrong"]
        assert {score.outcome for score in hogs.scores} == {"unverifiable"}
        assert OVER_BUDGET in {score.why for score in hogs.scores}
        # Another step has time for what this one had none for.
        Scoring(reward, [groups[0].problem])
        late = [score.why for score in hogs.scores].index(OVER_BUDGET)
        again = reward.score(groups[0].problem, endless[late])
        assert again.why == "the check took too long"  # type: ignore[union-attr]


def test_what_is_begun_while_decoding_is_scored_in_order(reward: MathReward) -> None:
    groups = [group("0.5", r"\boxed{1/2}", "no"), group("2", r"\boxed{\sqrt{4}}", r"\boxed{(}")]
    scoring = Scoring(reward, [each.problem for each in groups])
    assert scoring.on_done is not None
    scoring.on_done(1, 1, groups[1].completions[1])
    scoring.on_done(0, 0, groups[0].completions[0])
    scored = scoring.scored(groups)
    assert [[s.outcome for s in each.scores] for each in scored] == [
        ["correct", "wrong"],
        ["correct", "unverifiable"],
    ]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def test_closing_leaves_no_process_and_ends_a_check() -> None:
    reward = MathReward(timeout=30.0, processes=2)
    with reward:
        endless = r"\boxed{\prod_{k=1}^{99999999} k}"
        pending = [reward.begin(problem(f"{n}.5"), completion(endless)) for n in range(4)]
        assert eventually(lambda: sum(p.checks for p in pool_of(reward)._live) == 2)
        running = processes(reward)
    assert all(eventually(lambda pid=pid: gone(pid)) for pid in running)  # type: ignore[misc]
    outcomes: list[Any] = []
    for wait in pending:
        try:
            outcomes.append(wait())
        except RewardFailedError as error:
            outcomes.append(str(error).splitlines()[0])
    assert set(outcomes) == {"the reward math was closed before it had judged"}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_outlives_its_trainer(number: int) -> None:
    program = """
import time
from retrain.rewards.mathematics import MathReward
from retrain.types import Completion, Problem
import numpy as np
reward = MathReward(timeout=60.0, processes=1)
reward.open()
done = Completion(np.arange(1), np.zeros(1), "\\\\boxed{1/2}", "stop")
print(reward.score(Problem("p", "?", "0.5"), done).outcome, flush=True)
endless = Completion(np.arange(1), np.zeros(1), "\\\\boxed{\\\\prod_{k=1}^{99999999} k}", "stop")
reward.begin(Problem("p", "?", "0.5"), endless)
print(*(live._process.pid for live in reward._pool._live), flush=True)
time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as trainer:
        assert trainer.stdout is not None
        assert trainer.stdout.readline() == "correct\n"
        pid = int(trainer.stdout.readline())
        trainer.send_signal(number)
    assert eventually(lambda: gone(pid))


def test_a_library_that_is_missing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "math_verify.py").write_text("raise ImportError('not today')")
    real = math_pool._environment
    monkeypatch.setattr(
        math_pool,
        "_environment",
        lambda: {**real(), "PYTHONPATH": f"{tmp_path}{os.pathsep}{real()['PYTHONPATH']}"},
    )
    with (
        MathReward(processes=1) as reward,
        pytest.raises(RewardFailedError, match="not today; see that math-verify is installed"),
    ):
        reward.score(problem("0.5"), completion(r"\boxed{1/2}"))
