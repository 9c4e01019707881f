"""One row a step: the numbers of `metrics.jsonl` (documented in docs/files.md)."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from retrain.advantages.credit import Credit
from retrain.config.schema import RunConfig, TrainingConfig
from retrain.policies.policy import UpdateStats
from retrain.rewards.math_pool import OVER_BUDGET
from retrain.training.evaluation import EvaluationResult
from retrain.training.schedule import learning_rate
from retrain.types import Group, Score


class Clock:
    """Wall seconds of a step and of its named parts."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self.parts: dict[str, float] = {
            "sample": 0.0,
            "reward": 0.0,
            "update": 0.0,
            "evaluation": 0.0,
        }

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.parts[part] += time.perf_counter() - start

    @property
    def total(self) -> float:
        return time.perf_counter() - self._start


def rollout_metrics(groups: Sequence[Group], credit: Credit) -> dict[str, Any]:
    """What a step's completions and their credit look like."""
    completions = [completion for group in groups for completion in group.completions]
    scores = [score for group in groups for score in group.scores]
    tokens = [completion.num_tokens for completion in completions]
    return {
        "mean_reward": _mean([score.reward for score in scores]),
        "correct_rate": _mean([score.outcome == "correct" for score in scores]),
        "unverifiable_rate": _mean([score.outcome == "unverifiable" for score in scores]),
        "unchecked_completions": sum(OVER_BUDGET in score.why for score in scores),
        "masked_completions": sum(group.masked for group in groups),
        "lost_completions": sum(group.lost for group in groups),
        "lost_groups": sum(bool(group.lost) and not group.completions for group in groups),
        "num_datums": int((credit.token_advantages != 0).any(axis=1).sum()),
        "informative_groups": credit.causes.count("informative"),
        "groups_all_correct": credit.causes.count("all_correct"),
        "groups_all_wrong": credit.causes.count("all_wrong"),
        "groups_other": credit.causes.count("other"),
        "max_token_hit_rate": _mean([c.stop_reason == "length" for c in completions]),
        "mean_completion_tokens": _mean(tokens),
        "tokens": sum(tokens),
        **credit.stats,
        "advantage_abs_mean": _mean(np.abs(credit.advantages).tolist()),
        **_component_metrics(scores),
    }


def _component_metrics(scores: Sequence[Score]) -> dict[str, float | None]:
    """The parts that the rewards were made of; the total is there for every reward."""
    found: dict[str, float | None] = {
        "reward_components/total_reward/mean": _mean([score.reward for score in scores])
    }
    for name in sorted({name for score in scores for name in score.parts}):
        values = [score.parts[name] for score in scores if name in score.parts]
        for statistic in ("mean", "std", "min", "max"):
            found[f"reward_components/{name}/{statistic}"] = float(getattr(np, statistic)(values))
    return found


def update_metrics(
    updates: Sequence[UpdateStats], training: TrainingConfig, step: int
) -> dict[str, Any]:
    """What the step's optimizer steps did; means over those that stepped."""
    stepped = [update for update in updates if update.stepped]
    return {
        "loss": _mean([update.loss for update in stepped]) or 0.0,
        "grad_norm": _mean([update.grad_norm for update in stepped]) if stepped else 0.0,
        "ratio_mean": _mean([update.ratio_mean for update in stepped]),
        "ratio_max": max((u.ratio_max for u in stepped if u.ratio_max is not None), default=None),
        "log_ratio_mean": _mean([update.log_ratio_mean for update in stepped]),
        "clip_fraction": _mean([update.clip_fraction for update in stepped]),
        "kl_to_sampler": _mean([update.kl_to_sampler for update in stepped]),
        "kl_to_base": _mean([update.kl_to_base for update in stepped]),
        "lr": learning_rate(training, step),
        "num_updates": len(stepped),
    }


def sampler_metrics(
    config: RunConfig,
    measured: Mapping[str, float],
    updates: Sequence[UpdateStats],
    ess: float | None,
) -> dict[str, Any]:
    """What is known of a sampler that is not the trainer itself; nothing for one that is.

    measured: the policy's own numbers. ess: of weights that are in the credit.
    """
    found: dict[str, Any] = dict(measured)
    if config.corrects_sampler:
        own = _mean([update.sampler_ess for update in updates if update.stepped])
        found["sampler_ess"] = own if ess is None else ess
    return found


def evaluation_metrics(result: EvaluationResult | None) -> dict[str, Any]:
    """Held-out accuracy, in steps that have one."""
    if result is None:
        return {}
    found = {"held_out_accuracy": result.accuracy}
    if result.greedy_accuracy is not None:
        found["held_out_greedy_accuracy"] = result.greedy_accuracy
    return found


def time_metrics(clock: Clock, tokens: int) -> dict[str, Any]:
    """Seconds and memory: the only numbers that the config does not determine."""
    total = clock.total
    return {
        "step_time_s": round(total, 6),
        **{f"{part}_time_s": round(seconds, 6) for part, seconds in clock.parts.items()},
        "tokens_per_second": round(tokens / total, 3) if total > 0 else None,
        "peak_memory_mb": round(_peak_memory_mb(), 1),
    }


def _mean(values: Sequence[Any]) -> float | None:
    present = [float(value) for value in values if value is not None]
    return sum(present) / len(present) if present else None


def _peak_memory_mb() -> float:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return float(torch.cuda.max_memory_allocated() / 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
