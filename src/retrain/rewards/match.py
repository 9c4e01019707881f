"""The last `\\boxed{}` equals the reference answer, as text."""

from __future__ import annotations

import re
from collections.abc import Sequence

from retrain.rewards.reward import Reward
from retrain.types import Completion, Problem, Score

NO_ANSWER = "no answer in a \\boxed{}"
_OPENING = "\\boxed{"
_BRACES = re.compile(r"[{}]")
_BOXES_AND_BRACES = re.compile(r"\\boxed\{|[{}]")


class MatchReward(Reward):
    """1 when the last boxed answer equals the reference, white space aside; else 0.

    An empty answer never equals anything, not even an empty reference.
    """

    def score(self, problem: Problem, completion: Completion) -> Score:
        found = without_space(last_boxed(completion.text) or "")
        wanted = without_space(reference_of(problem))
        right = bool(found) and found == wanted
        if right:
            return Score(1.0, "correct")
        return Score(0.0, "wrong", why="" if found else NO_ANSWER)

    def recognises(self, problems: Sequence[Problem]) -> list[bool | None]:
        texts = [reference_of(problem) for problem in problems]
        return [last_boxed(f"\\boxed{{{text}}}") == text for text in texts]


def reference_of(problem: Problem) -> str:
    """The reference answer; what stands in its last box when it has one."""
    return last_boxed(problem.answer) or problem.answer


def last_boxed(text: str) -> str | None:
    """What stands in the last `\\boxed{…}` whose braces balance; None when there is none.

    Takes time in proportion to the text, whatever the text is.
    """
    start = text.rfind(_OPENING)
    if start == -1:
        return None
    depth = 1
    for brace in _BRACES.finditer(text, start + len(_OPENING)):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return text[start + len(_OPENING) : brace.start()]
    return _last_balanced(text)


def _last_balanced(text: str) -> str | None:
    """The same when the last box is never closed: one pass over all braces."""
    open_braces: list[tuple[int, bool]] = []
    best: tuple[int, int] | None = None
    for token in _BOXES_AND_BRACES.finditer(text):
        if token[0] != "}":
            open_braces.append((token.end(), token[0] != "{"))
        elif open_braces:
            start, boxed = open_braces.pop()
            if boxed and (best is None or start > best[0]):
                best = (start, token.start())
    return text[slice(*best)] if best else None


def without_space(text: str) -> str:
    """`text` without its white space."""
    return "".join(text.split())
