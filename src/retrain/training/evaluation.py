"""Held-out accuracy, sampled and greedy, with the results of every problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrain import seeding
from retrain.config.schema import EvaluationConfig, TrainingConfig
from retrain.policies.policy import Policy
from retrain.rewards.reward import Reward, RewardFailedError, Scoring
from retrain.training.rollout import sample_groups
from retrain.types import Group, Problem, SamplingParams


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """accuracy: of all sampled completions; greedy_accuracy: of one greedy completion a problem,
    None when not asked for. `record` is what `evaluation/step_NNNNNN.json` holds, `groups` the
    sampled completions of each problem."""

    accuracy: float
    greedy_accuracy: float | None
    record: dict[str, Any]
    groups: tuple[Group, ...]


def evaluate(
    policy: Policy,
    problems: Sequence[Problem],
    reward: Reward,
    config: EvaluationConfig,
    training: TrainingConfig,
    steps_done: int,
) -> EvaluationResult:
    """Sample and judge the held-out problems. Completions that cannot be judged do not count.

    A completion's uniform numbers are keyed by (seed, problem id, sample index), not by the
    step: before and after, and all conditions under a seed, are compared with the same luck.
    """
    keys = np.array(
        [
            [
                seeding.key(training.seed, "evaluation", problem.id, sample)
                for sample in range(config.samples_per_problem)
            ]
            for problem in problems
        ],
        dtype=np.uint64,
    )
    sampling = SamplingParams(training.max_tokens, config.temperature)
    sampled = _judged(policy, problems, keys, sampling, reward)
    greedy: list[Group] = []
    if config.greedy:
        greedy_sampling = SamplingParams(training.max_tokens, temperature=0.0)
        greedy = _judged(policy, problems, keys[:, :1], greedy_sampling, reward)
    correct = [_correct(group) for group in sampled]
    # None where the completion could not be judged.
    greedy_correct = [next(iter(_correct(group)), None) for group in greedy]
    completions = [completion for group in sampled for completion in group.completions]
    scores = [score for group in sampled for score in group.scores]
    accuracy = float(np.mean([each for of_problem in correct for each in of_problem]))
    judged = [each for each in greedy_correct if each is not None]
    greedy_accuracy = float(np.mean(judged)) if greedy else None
    rows: list[dict[str, Any]] = []
    for index, problem in enumerate(problems):
        row: dict[str, Any] = {
            "id": problem.id,
            "domain": problem.domain,
            "correct": correct[index],
        }
        if greedy:
            row["greedy"] = greedy_correct[index]
        rows.append(row)
    return EvaluationResult(
        accuracy,
        greedy_accuracy,
        {
            "step": steps_done,
            "num_problems": len(problems),
            "samples_per_problem": config.samples_per_problem,
            "temperature": config.temperature,
            "accuracy": accuracy,
            "greedy_accuracy": greedy_accuracy,
            "unverifiable_rate": float(np.mean([s.outcome == "unverifiable" for s in scores])),
            "masked_completions": sum(group.masked for group in (*sampled, *greedy)),
            "lost_completions": sum(group.lost for group in (*sampled, *greedy)),
            "mean_tokens": float(np.mean([c.num_tokens for c in completions])),
            "max_token_hit_rate": float(np.mean([c.stop_reason == "length" for c in completions])),
            "problems": rows,
        },
        tuple(sampled),
    )


def _judged(
    policy: Policy,
    problems: Sequence[Problem],
    keys: NDArray[np.uint64],
    sampling: SamplingParams,
    reward: Reward,
) -> list[Group]:
    """Completions of each problem, judged. Raises RewardFailedError when none of them could be:
    an evaluation that measured nothing must not pass for one."""
    scoring = Scoring(reward, problems, policy.codec.opens_thinking)
    groups = scoring.scored(sample_groups(policy, problems, keys, sampling, scoring.on_done))
    if not any(group.scores for group in groups):
        raise RewardFailedError(
            "no completion of the held-out problems could be judged, so there is no accuracy"
        ) from ConnectionError("no verdict")
    return groups


def _correct(group: Group) -> list[int]:
    return [int(item.outcome == "correct") for item in group.scores]
