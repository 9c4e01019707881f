"""Where the answer of a completion stands, and the reward that compares it as text."""

from __future__ import annotations

import re
from collections.abc import Sequence

from retrain.rewards.math_text import choice
from retrain.rewards.reward import Reward
from retrain.types import Completion, Problem, Score

NO_ANSWER = "no answer in a \\boxed{}"
# A box that was cut off before its brace is the last one, too.
_BOX = re.compile(r"\\boxed\s*(?:\{|\Z)")
_BRACES = re.compile(r"\\[\\{}]|[{}]")
_THINKING = re.compile(
    r"(?i:<(/?)(?:think|thinking|thought|reasoning) *>)|\[(/?)THINK\]|◁(/?)think▷"
    r"|<\|(?:begin|(end))_of_thought\|>"
)


class MatchReward(Reward):
    """1 when the last boxed answer equals the reference, white space aside; else 0.

    The letters of multiple choice are equal however they are written. An empty answer never equals
    anything, not even an empty reference.
    """

    def score(self, problem: Problem, completion: Completion) -> Score:
        found, wanted = final_answer(completion) or "", reference_of(problem)
        same = without_space(found) == without_space(wanted) != ""
        if same or same_choice(wanted, found) is True:
            return Score(1.0, "correct")
        return Score(0.0, "wrong", why="" if found else NO_ANSWER)

    def recognises(self, problems: Sequence[Problem]) -> list[bool | None]:
        texts = [reference_of(problem) for problem in problems]
        return [last_boxed(f"\\boxed{{{text}}}") == text for text in texts]


def final_answer(completion: Completion) -> str | None:
    """What stands in the last box outside of the completion's thinking; None when there is none."""
    found = last_boxed(without_thinking(completion.text))
    return None if found is None else found.strip()


def without_thinking(text: str) -> str:
    """What stands after the last `</think>`, and before a `<think>` that is never closed.

    A template that ends in `<think>` leaves only `</think>` in the completion.
    """
    start, end = 0, len(text)
    for mark in _THINKING.finditer(text):
        if any(mark.groups()):
            start, end = mark.end(), len(text)
        elif end == len(text):
            end = mark.start()
    return text[start:end]


def reference_of(problem: Problem) -> str:
    """The reference answer; what stands in its last box when it has one."""
    return last_boxed(problem.answer) or problem.answer


def last_boxed(text: str) -> str | None:
    """What stands in the last `\\boxed{…}`; None when there is none, or it is never closed.

    Braces are counted as LaTeX does, which takes `\\{` for a sign. Takes time in proportion to the
    text, whatever the text is.
    """
    start = -1
    for box in _BOX.finditer(text):
        start = box.end()
    if start == -1:
        return None
    depth = 1
    for brace in _BRACES.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[start : brace.start()]
    return None


def same_choice(reference: str, answer: str) -> bool | None:
    """Whether both are the same letter of multiple choice; None when one is no such letter, or
    when what each says after the same letter has to be compared."""
    one = choice(reference)
    other = choice(answer) if one else None
    if one is None or other is None or (one[0] == other[0] and one[1] and other[1]):
        return None
    return one[0] == other[0]


def without_space(text: str) -> str:
    """`text` without its white space."""
    return "".join(text.split())
