"""Async reward functions, and what a function may ask for."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from retrain.rewards.custom import CustomReward, RewardFailedError
from retrain.rewards.reward import Scoring
from retrain.types import Problem, Score
from tests.rewards.judged import completion, eventually, group, judged, problem


def custom(function: Any) -> CustomReward:
    return CustomReward(function, "mine.reward", 0.5)


def test_the_calls_of_an_async_function_go_on_side_by_side() -> None:
    """Each call waits until all have begun: one after another they would wait for ever."""
    inside = 0
    everyone = asyncio.Event()

    async def together(response: str, reference: str) -> float:
        nonlocal inside
        inside += 1
        if inside == 6:
            everyone.set()
        await asyncio.wait_for(everyone.wait(), 20)
        return float(response == reference)

    groups = [group("a", "a", "b", "a"), group("b", "b", "b", "c")]
    with custom(together) as reward:
        scoring = Scoring(reward, [each.problem for each in groups])
        assert scoring.on_done is not None
        scoring.on_done(1, 2, groups[1].completions[2])
        assert eventually(lambda: inside == 1), "begun before the others are there"
        scored = scoring.scored(groups)
    assert [each.rewards.tolist() for each in scored] == [[1, 0, 1], [1, 1, 0]]
    assert "retrain-async-reward" not in {thread.name for thread in threading.enumerate()}


def test_a_plain_function_is_not_called_while_decoding() -> None:
    assert Scoring(custom(lambda response, reference: 1), []).on_done is None


def test_a_reward_can_be_used_again_after_it_was_closed() -> None:
    async def half(response: str, reference: str) -> float:
        return 0.5

    reward = custom(half)
    for _ in range(2):
        with reward:
            assert judged(reward, "", "") == Score(0.5, "correct")


def test_what_a_function_asks_for_it_gets() -> None:
    async def level(response: str, reference: str, metadata: Any, problem: Problem) -> Any:
        return metadata["level"] / len(problem.id)

    asked = problem(name="four", metadata={"level": 1})
    with custom(level) as reward:
        assert reward.score(asked, completion("")) == Score(0.25, "wrong")


def test_an_object_with_an_async_call_and_a_function_that_returns_an_awaitable() -> None:
    class Judge:
        async def __call__(self, response: str, reference: str) -> bool:
            return response == reference

    async def later() -> Score:
        return Score(2.0, "unverifiable", {"part": 1.0})

    with custom(Judge()) as reward:
        assert reward.early
        assert judged(reward, "x", "x").reward == 1.0
    with custom(lambda response, reference: later()) as reward:
        assert judged(reward, "x", "x") == Score(2.0, "unverifiable", {"part": 1.0})


def test_what_an_async_function_raises_names_the_problem() -> None:
    async def broken(response: str, reference: str) -> float:
        raise KeyError(response)

    with (
        custom(broken) as reward,
        pytest.raises(RewardFailedError, match=r"(?s)raised KeyError.*problem p-9.*'what I said'"),
    ):
        reward.score(problem(name="p-9"), completion("what I said"))


def test_closing_ends_what_is_awaited() -> None:
    ended = []

    async def endless(response: str, reference: str) -> float:
        try:
            await asyncio.sleep(1000)
        finally:
            ended.append(response)
        return 0.0

    reward = custom(endless)
    pending = reward.begin(problem(), completion("x"))
    assert eventually(lambda: reward._loop._loop is not None)
    reward.close()
    with pytest.raises(RewardFailedError, match="raised CancelledError"):
        pending()
    assert ended in ([], ["x"])


def test_a_function_that_leaves_the_program_has_failed() -> None:
    async def later(response: str, reference: str) -> float:
        raise SystemExit(0)

    def now(response: str, reference: str) -> float:
        raise SystemExit(0)

    for function, said in ((now, "raised SystemExit: 0"), (later, r"it called sys.exit\(0\)")):
        with custom(function) as reward, pytest.raises(RewardFailedError, match=said):
            judged(reward, "", "")
