"""What an adapter that was cut to a lower rank still does, beside the one it was cut from.

Both are evaluated on the same held-out problems with the same uniform random numbers, so that the
difference is the cut's and not the luck's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retrain.analysis.statistics import contrast_of_differences
from retrain.config.schema import RunConfig
from retrain.errors import InputError
from retrain.models.adapters.reader import Adapter, open_adapter
from retrain.models.lora import LoraSpec, target_modules
from retrain.policies.local.base import BaseModel
from retrain.policies.local.policy import LocalPolicy
from retrain.rewards.registry import build_reward
from retrain.tasks.prompts import counting
from retrain.tasks.registry import task_of
from retrain.training.evaluation import EvaluationResult, evaluate
from retrain.types import Group, TrainBatch, pad_rows


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean over problems of (other minus original), with its 95 % paired-t interval."""

    mean: float | None
    low: float | None
    high: float | None
    problems: int


@dataclass(frozen=True, slots=True)
class AdapterCheck:
    """Accuracies are shares of the held-out problems' completions.

    mean_token_kl: KL(original || other) per token of the original's completions, by the k3
    estimate (Schulman, "Approximating KL divergence", 2020); in nats.
    """

    accuracy: float
    original_accuracy: float
    difference: Difference
    greedy_accuracy: float | None
    original_greedy_accuracy: float | None
    greedy_difference: Difference | None
    mean_token_kl: float


class AdapterChecker:
    """Evaluates adapters of one base model on the held-out problems of one config.

    Raises InputError when the model, the task or the adapter does not fit.
    """

    def __init__(
        self, config: RunConfig, base: BaseModel, original: Path, adapter_name: str | None = None
    ) -> None:
        """adapter_name: which one, when `original` holds several."""
        self._config = config
        self._base = base
        search_paths = config.plugins.search_paths
        task = task_of(config, counting(base.codec), base.context)
        self._reward = build_reward(config.reward, search_paths, config.logging.log_dir)
        self._problems = task.held_out(config.evaluation.num_problems)
        if not self._problems:
            raise InputError(f"evaluation.num_problems: {task.name} gives no held-out problem")
        self._policy = self._load(original, adapter_name)
        self._original = self._evaluate(self._policy)

    def compare(self, adapter: Path) -> AdapterCheck:
        """Evaluate another adapter beside the original."""
        policy = self._load(adapter)
        result, original = self._evaluate(policy), self._original
        has_greedy = result.greedy_accuracy is not None
        return AdapterCheck(
            accuracy=result.accuracy,
            original_accuracy=original.accuracy,
            difference=_difference(result.record, original.record, "correct"),
            greedy_accuracy=result.greedy_accuracy,
            original_greedy_accuracy=original.greedy_accuracy,
            greedy_difference=(
                _difference(result.record, original.record, "greedy") if has_greedy else None
            ),
            mean_token_kl=_token_kl(
                self._policy, policy, original.groups, self._config.evaluation.temperature
            ),
        )

    def _load(self, folder: Path, adapter_name: str | None = None) -> LocalPolicy:
        with open_adapter(folder, adapter_name) as adapter:
            return load_policy(adapter, self._base, self._config)

    def _evaluate(self, policy: LocalPolicy) -> EvaluationResult:
        config, reward = self._config, self._reward
        with reward:
            return evaluate(policy, self._problems, reward, config.evaluation, config.training, 0)


def load_policy(adapter: Adapter, base: BaseModel, config: RunConfig) -> LocalPolicy:
    """A policy that computes what the adapter does, whatever its ranks and scalings.

    Raises InputError when the adapter has layers that the base model lacks, or more than factors of
    linear layers.
    """
    names = tuple(module.name for module in adapter.modules)
    if missing := sorted(set(names) - target_modules(base.module, "all-linear").keys()):
        raise InputError(
            f"{adapter.where}: {config.model.model} has no linear layer {missing[0]}; is it an "
            "adapter of another model?"
        )
    policy = LocalPolicy(base, LoraSpec(adapter.rank, adapter.rank, names), config.training.seed)
    policy.adapter.take(adapter)
    return policy


def _difference(one: Mapping[str, Any], other: Mapping[str, Any], key: str) -> Difference:
    pairs = zip(one["problems"], other["problems"], strict=True)
    # What could not be judged is [] or None.
    values = [
        float(np.mean(a[key]) - np.mean(b[key]))
        for a, b in pairs
        if all(each[key] not in ([], None) for each in (a, b))
    ]
    contrast = contrast_of_differences(values)
    return Difference(contrast.mean_difference, contrast.low, contrast.high, contrast.n)


def _token_kl(
    original: LocalPolicy, other: LocalPolicy, groups: Sequence[Group], temperature: float
) -> float:
    batch = _batch(groups, temperature)
    total, tokens = 0.0, 0
    for before, after, mask in _parts(original, other, batch):
        log_ratio = (after - before)[mask].double()
        total += float((log_ratio.expm1() - log_ratio).sum())
        tokens += int(mask.sum())
    return total / max(tokens, 1)


def _parts(
    original: LocalPolicy, other: LocalPolicy, batch: TrainBatch
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    both = zip(original.logprobs(batch), other.logprobs(batch), strict=True)
    for (before, mask), (after, _) in both:
        yield before, after, mask


def _batch(groups: Sequence[Group], temperature: float) -> TrainBatch:
    rows = [completion for group in groups for completion in group.completions]
    token_ids = pad_rows([row.token_ids for row in rows], np.int64)
    lengths = np.array([row.num_tokens for row in rows])
    mask = np.arange(token_ids.shape[1]) < lengths[:, None]
    nothing = np.zeros(mask.shape)
    return TrainBatch(
        prompts=[group.prompt_ids for group in groups],
        prompt_index=np.repeat(np.arange(len(groups)), [len(g.completions) for g in groups]),
        token_ids=token_ids,
        mask=mask,
        logprobs=nothing,
        credit=nothing,
        weight=nothing,
        temperature=temperature,
    )
