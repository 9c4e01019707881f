from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrain.config.reward import RewardConfig
from retrain.errors import InputError
from retrain.rewards.custom import CustomReward, RewardFailedError
from retrain.rewards.match import MatchReward, last_boxed
from retrain.rewards.registry import build_reward
from retrain.rewards.reward import Scoring, score
from retrain.types import Completion, Group, Problem, Score


def completion(text: str) -> Completion:
    return Completion(np.arange(1), np.zeros(1), text, "stop")


def judged(text: str, answer: str) -> Score:
    return MatchReward().score(Problem("p", "?", answer), completion(text))


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        (r"so \boxed{72}", "72", True),
        (r"\boxed{71} no, \boxed{72}", "72", True),
        (r"\boxed{72} no, \boxed{71}", "72", False),
        (r"\boxed{ 7 2 }", "72", True),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}", True),
        (r"\boxed{\frac{1}{2}}", r"\boxed{\frac{1}{2}}", True),
        (r"\boxed{72", "72", False),
        # A last box that was cut off is no answer, and none before it is the last one.
        (r"\boxed{72} and \boxed{7", "72", False),
        (r"\boxed{72} and \boxed", "72", False),
        (r"\boxed{72}, in \boxed as asked", "72", True),
        (r"\boxed {72}", "72", True),
        ("\\boxed\n{72}", "72", True),
        (r"\boxed{\left\{ 1 \right.}", r"\left\{ 1 \right.", True),
        # Thinking is no answer.
        (r"<think>\boxed{72}", "72", False),
        (r"<think>\boxed{72}</think>", "72", False),
        (r"<think>\boxed{72}</think> So 72.", "72", False),
        (r"<think>\boxed{71}</think>\boxed{72}", "72", True),
        (r"it is \boxed{72}</think>", "72", False),
        (r"maybe \boxed{71}</think> \boxed{72}", "72", True),
        (r"<think>a</think>\boxed{72}<think>\boxed{71}", "72", True),
        (r"<think>a</think>\boxed{72}<think>b</think>\boxed{7", "72", False),
        (r"<thinking>\boxed{72}</thinking>", "72", False),
        (r"<THINK>\boxed{72}", "72", False),
        (r"<reasoning>\boxed{71}</reasoning><answer>\boxed{72}</answer>", "72", True),
        (r"◁think▷\boxed{72}", "72", False),
        (r"<|begin_of_thought|>\boxed{71}<|end_of_thought|>\boxed{72}", "72", True),
        (r"\boxed{[C]}", "C", True),
        (r"[THINK]\boxed{71}[/THINK]\boxed{72}", "72", True),
        # Letters of multiple choice.
        (r"\boxed{\text{C}}", "C", True),
        (r"\boxed{(C)}", "C", True),
        (r"\boxed{C. because}", "C", True),
        (r"\boxed{\textbf{(C)}\ 12}", "C", True),
        (r"\boxed{Answer: C}", "C", True),
        (r"\boxed{C}", "(C)", True),
        (r"\boxed{D. not C}", "C", False),
        (r"\boxed{A, C}", "C", False),
        (r"\boxed{C. 12}", "C. 13", False),
        (r"\boxed{AC}", "C", False),
        (r"\boxed{c}", "C", False),
        (r"\boxed{(x)(x+1)}", "(x)(x+2)", False),
        (r"72", "72", False),
        (r"\boxed{}", "", False),
        (r"\boxed{ }", " ", False),
        ("", "", False),
        (r"\boxed{072}", "72", False),
    ],
)
def test_match(text: str, answer: str, right: bool) -> None:
    found = judged(text, answer)
    assert found.reward == float(right)
    assert found.outcome == ("correct" if right else "wrong")


balanced = st.recursive(
    st.lists(st.sampled_from(["a", "1", " ", "\\frac", "\\{", "\\}", "\\\\"]), max_size=4).map(
        "".join
    ),
    lambda inner: st.lists(inner, max_size=3).map(lambda parts: "{" + "".join(parts) + "}"),
    max_leaves=8,
)


@given(st.text("x{}\\boxed", max_size=15), balanced)
def test_last_boxed_finds_what_was_put_there(before: str, content: str) -> None:
    assert last_boxed(f"{before} \\boxed{{{content}}}") == content


@given(st.text("{}\\boxed 1", max_size=40))
def test_last_boxed_never_fails(text: str) -> None:
    found = last_boxed(text)
    assert found is None or found in text


def custom(function: Any, threshold: float = 0.5) -> CustomReward:
    return CustomReward(function, "mine.reward", threshold)


def test_custom_functions() -> None:
    problem = Problem("p", "?", "7", metadata={"level": 3})
    plain = custom(lambda response, reference: float(response == reference))
    assert plain.score(problem, completion("7")) == Score(1.0, "correct")
    assert plain.score(problem, completion("8")) == Score(0.0, "wrong")
    graded = custom(lambda response, reference: 0.3, threshold=0.2)
    assert graded.score(problem, completion("")).outcome == "correct"

    def with_problem(response: str, reference: str, problem: Problem) -> Score:
        return Score(0.5, "unverifiable", {"level": problem.metadata["level"]})

    assert custom(with_problem).score(problem, completion("")).parts == {"level": 3}
    assert custom(lambda response, reference: True).score(problem, completion("")).reward == 1.0
    assert (
        custom(lambda response, reference: np.float32(0.25)).score(problem, completion("")).reward
        == 0.25
    )


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda response, reference: 1 / 0, "raised ZeroDivisionError"),
        (lambda response, reference: None, "returned None"),
        (lambda response, reference: "1", "returned '1'"),
        (lambda response, reference: float("nan"), "returned nan"),
        (lambda response, reference: Score(float("inf"), "correct"), "returned inf"),
    ],
)
def test_what_is_no_reward_is_an_error_that_shows_the_completion(
    function: Any, message: str
) -> None:
    with pytest.raises(RewardFailedError, match=message) as caught:
        custom(function).score(Problem("p-17", "?", "7"), completion("I say 7"))
    assert "p-17" in str(caught.value)
    assert "I say 7" in str(caught.value)


def test_registry(tmp_path: Path) -> None:
    assert isinstance(build_reward(RewardConfig()), MatchReward)
    (tmp_path / "own_reward_module.py").write_text("def fn(response, reference):\n    return 1\n")
    settings = RewardConfig(type="custom", custom_module="own_reward_module", custom_function="fn")
    reward = build_reward(settings, [tmp_path])
    assert reward.score(Problem("p", "?", ""), completion("")).reward == 1.0
    with pytest.raises(InputError, match=r"reward\.custom_function: .*has no 'function'"):
        build_reward(settings.model_copy(update={"custom_function": "function"}), [tmp_path])


def test_thinking_that_the_prompt_began_and_nothing_ended_is_no_answer() -> None:
    texts = [r"\boxed{7}", r"maybe \boxed{6}</think>\boxed{7}", r"\boxed{7}</think>"]
    group = Group(Problem("p", "?", "7"), np.arange(1), tuple(map(completion, texts)))
    for opens_thinking, rewards in ((True, [0.0, 1.0, 0.0]), (False, [1.0, 1.0, 0.0])):
        scoring = Scoring(MatchReward(), [group.problem], opens_thinking)
        (scored,) = scoring.scored([group])
        assert scored.rewards.tolist() == rewards
        assert [each.text for each in scored.completions] == texts


def test_score_keeps_the_order() -> None:
    group = Group(
        Problem("p", "?", "7"), np.arange(1), (completion(r"\boxed{7}"), completion("no"))
    )
    assert score([group], MatchReward())[0].rewards.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("\\boxed{" * 100_000, None),
        ("\\boxed{1}" + "\\boxed{" * 100_000, None),
        ("\\boxed" + " " * 100_000 + "{1}", "1"),
        (("\\boxed" + " " * 1000) * 1000, None),
        ("\\" * 100_000 + "\\boxed{1}", "1"),
        ("\\boxed{" * 100_000 + "1" + "}" * 100_000, "1"),
        ("\\boxed{1}" * 100_000 + "{" * 100_000, "1"),
        ("}" * 100_000 + "\\boxed{1}" + "\\boxed{{" * 100_000 + "}", None),
    ],
)
def test_the_last_box_of_a_hostile_text_is_found_at_once(text: str, found: str | None) -> None:
    """In quadratic time each of these would take hours."""
    assert last_boxed(text) == found


@given(st.lists(st.sampled_from(["\\boxed{", "{", "}", "x", " "]), max_size=12).map("".join))
def test_the_last_box_ends_where_its_braces_balance(text: str) -> None:
    def closed(start: int) -> str | None:
        depth = 1
        for position in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if depth == 0:
                return text[start:position]
        return None

    starts = [i + 7 for i in range(len(text)) if text.startswith("\\boxed{", i)]
    assert last_boxed(text) == (closed(starts[-1]) if starts else None)
