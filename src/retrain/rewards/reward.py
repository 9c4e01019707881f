"""What every reward offers, and how a rollout's completions are judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Self

from retrain.errors import RetrainError
from retrain.types import Completion, Group, OnDone, Problem, Score

Pending = Callable[[], Score | None]
"""Waits for a judgement. None: there is none to be had, and the completion leaves its group."""

_SHOWN_CHARACTERS = 400


class RewardFailedError(RetrainError):
    """A reward raised, returned something that is no reward, or could not be asked."""


class Reward:
    """Judges completions. A kind of reward defines `score`, or `begin` when judging takes a while
    and other things can be done meanwhile.

    early: whether it pays to begin while other completions are still decoded.
    """

    early = False

    def score(self, problem: Problem, completion: Completion) -> Score | None:
        """The completion's reward and outcome; None when it is to be left out of its group."""
        return self.begin(problem, completion)()

    def begin(self, problem: Problem, completion: Completion) -> Pending:
        """Start judging; call what is returned for the result. Must not block."""
        return partial(self.score, problem, completion)

    def probe(self, problem: Problem, completion: Completion) -> None:
        """What can be tried in milliseconds, without a server or another process. Raises
        InputError or RewardFailedError when the reward cannot work."""
        self.score(problem, completion)

    def recognises(self, problems: Sequence[Problem]) -> list[bool | None]:
        """Whether the reference of each problem can be right at all, apart from an answer that
        repeats its text; None where that is not known."""
        return [None] * len(problems)

    def begin_step(self) -> None:
        """What is judged from here on are the completions of another step or evaluation."""

    def open(self) -> None:
        """Get ready for a run. Raises RetrainError when what it needs cannot be had."""

    def close(self) -> None:
        """Let go of processes, threads and connections; what is not judged yet never will be."""

    def __enter__(self) -> Self:
        try:
            self.open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Scoring:
    """The judging of one rollout: begun as completions come in, waited for at the end.

    opens_thinking: whether the prompts end in `<think>`. A completion whose thinking never ends is
    then judged with that before it: without, it would pass for an answer.
    """

    def __init__(
        self, reward: Reward, problems: Sequence[Problem], opens_thinking: bool = False
    ) -> None:
        self._reward = reward
        self._opens_thinking = opens_thinking
        self._problems = problems
        reward.begin_step()
        # By the completion itself: of a group that lost some, the others have moved up.
        self._begun: dict[int, tuple[Completion, Pending]] = {}

    @property
    def on_done(self) -> OnDone | None:
        """For `Policy.sample`; None when the reward is too quick to be worth an early start."""
        return self._begin if self._reward.early else None

    def _begin(self, prompt: int, sample: int, completion: Completion) -> None:
        del sample
        pending = self._reward.begin(self._problems[prompt], self._judged(completion))
        self._begun[id(completion)] = (completion, pending)

    def scored(self, groups: Sequence[Group]) -> list[Group]:
        """The groups of the problems, in order, with every completion judged; those that cannot be
        are left out and counted in `masked`."""
        if self._reward.early:
            # All are begun before the first is waited for.
            for i, group in enumerate(groups):
                for j, completion in enumerate(group.completions):
                    if id(completion) not in self._begun:
                        self._begin(i, j, completion)
        return [self._scored(group) for group in groups]

    def _judged(self, completion: Completion) -> Completion:
        if self._opens_thinking and "</think>" not in completion.text:
            return replace(completion, text="<think>" + completion.text)
        return completion

    def _scored(self, group: Group) -> Group:
        kept: list[tuple[Completion, Score]] = []
        for completion in group.completions:
            begun = self._begun.pop(id(completion), None)
            score = (
                begun[1]() if begun else self._reward.score(group.problem, self._judged(completion))
            )
            if score is not None:
                kept.append((completion, score))
        return replace(
            group,
            completions=tuple(completion for completion, _ in kept),
            scores=tuple(score for _, score in kept),
            masked=len(group.completions) - len(kept),
        )


def score(groups: Sequence[Group], reward: Reward) -> list[Group]:
    """The groups with every completion judged."""
    return Scoring(reward, [group.problem for group in groups]).scored(groups)


def complaint(what: str, problem: Problem, completion: Completion) -> str:
    """A message about a failed reward that names the problem and shows the completion."""
    text = completion.text
    shown = text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + " …"
    return f"the reward {what}\nproblem {problem.id}, completion: {shown!r}"


def is_milestone(count: int) -> bool:
    """Whether the `count`-th of many alike events is worth a line in the log: 1, 10, 100, …"""
    return count > 0 and set(str(count)[1:]) <= {"0"} and str(count)[0] == "1"
