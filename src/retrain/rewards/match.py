"""The last `\\boxed{}` equals the reference answer, as text."""

from __future__ import annotations

from retrain.types import Completion, Problem, Score

_OPENING = "\\boxed{"


class MatchReward:
    """1 when the last boxed answer equals the reference, white space aside; else 0.

    An empty answer never equals anything, not even an empty reference.
    """

    def score(self, problem: Problem, completion: Completion) -> Score:
        found = _squeeze(last_boxed(completion.text) or "")
        wanted = _squeeze(last_boxed(problem.answer) or problem.answer)
        right = bool(found) and found == wanted
        return Score(float(right), "correct" if right else "wrong")


def last_boxed(text: str) -> str | None:
    """What stands in the last `\\boxed{…}` whose braces balance; None when there is none."""
    start = text.rfind(_OPENING)
    while start != -1:
        content = _balanced(text, start + len(_OPENING))
        if content is not None:
            return content
        start = text.rfind(_OPENING, 0, start)
    return None


def _balanced(text: str, start: int) -> str | None:
    depth = 1
    for position in range(start, len(text)):
        if text[position] == "{":
            depth += 1
        elif text[position] == "}":
            depth -= 1
            if depth == 0:
                return text[start:position]
    return None


def _squeeze(text: str) -> str:
    return "".join(text.split())
