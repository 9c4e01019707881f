"""Problems and completions for the tests of rewards."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from retrain.rewards.reward import Reward
from retrain.types import Completion, Group, Problem, Score


def completion(text: str) -> Completion:
    return Completion(np.arange(1), np.zeros(1), text, "stop")


def problem(answer: str = "5", name: str = "p", **fields: Any) -> Problem:
    return Problem(name, "What is it?", answer, **fields)


def judged(reward: Reward, text: str, answer: str) -> Score:
    found = reward.score(problem(answer), completion(text))
    assert found is not None
    return found


def group(answer: str, *texts: str, name: str = "p") -> Group:
    return Group(problem(answer, name), np.arange(2), tuple(completion(text) for text in texts))


def eventually(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Whether it comes true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return condition()
