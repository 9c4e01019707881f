"""The weighted sum of several rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from retrain.rewards.reward import Pending, Reward
from retrain.types import Completion, Problem, Score


@dataclass(frozen=True, slots=True)
class Part:
    """One reward of the sum, by its name in the metrics."""

    name: str
    weight: float
    reward: Reward


class CompositeReward(Reward):
    """`sum of weight x reward`; correct when that reaches `correct_threshold`.

    An unverifiable part counts with its reward, 0; a sum that is then not correct is
    unverifiable. A part without a judgement leaves the whole completion without one.
    """

    def __init__(self, parts: Sequence[Part], correct_threshold: float) -> None:
        self._parts = tuple(parts)
        self._threshold = correct_threshold
        self.early = any(part.reward.early for part in parts)

    def begin(self, problem: Problem, completion: Completion) -> Pending:
        pending = [part.reward.begin(problem, completion) for part in self._parts]
        return lambda: self._sum([wait() for wait in pending])

    def probe(self, problem: Problem, completion: Completion) -> None:
        for part in self._parts:
            part.reward.probe(problem, completion)

    def recognises(self, problems: Sequence[Problem]) -> list[bool | None]:
        # False when a part says so, else True when one does.
        of_parts = (part.reward.recognises(problems) for part in self._parts)
        return [
            min((each for each in of_one if each is not None), default=None)
            for of_one in zip(*of_parts, strict=True)
        ]

    def begin_step(self) -> None:
        for part in self._parts:
            part.reward.begin_step()

    def open(self) -> None:
        for part in self._parts:
            part.reward.open()

    def close(self) -> None:
        for part in self._parts:
            part.reward.close()

    def _sum(self, scores: Sequence[Score | None]) -> Score | None:
        total, unverifiable = 0.0, False
        values: dict[str, float] = {}
        reasons: list[str] = []
        for part, score in zip(self._parts, scores, strict=True):
            if score is None:
                return None
            total += part.weight * score.reward
            unverifiable = unverifiable or score.outcome == "unverifiable"
            values[part.name] = score.reward
            values |= {f"{part.name}/{name}": value for name, value in score.parts.items()}
            reasons += [f"{part.name}: {score.why}"] if score.why else []
        why = "; ".join(reasons)
        if total >= self._threshold:
            return Score(total, "correct", values, why)
        return Score(total, "unverifiable" if unverifiable else "wrong", values, why)
