"""From problems to groups of completions, and from groups with credit to batches to learn from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from retrain import seeding
from retrain.advantages.credit import Credit
from retrain.config.schema import RunConfig, TrainingConfig
from retrain.policies.policy import Policy
from retrain.types import (
    BoolArray,
    FloatArray,
    Group,
    OnDone,
    Problem,
    SamplingParams,
    TrainBatch,
    pad_rows,
)


def rollout(
    policy: Policy,
    problems: Sequence[Problem],
    training: TrainingConfig,
    step: int,
    entropies: bool,
    on_done: OnDone | None = None,
) -> list[Group]:
    """`group_size` completions of each problem; `on_done` hears of each as soon as it is there.

    Each row's uniform numbers are keyed by (seed, step, problem index, sample index): the same
    for every condition under this seed.
    """
    keys = np.array(
        [
            [
                seeding.key(training.seed, "rollout", step, index, sample)
                for sample in range(training.group_size)
            ]
            for index in range(len(problems))
        ],
        dtype=np.uint64,
    )
    return sample_groups(
        policy,
        problems,
        keys,
        SamplingParams(training.max_tokens, training.temperature, training.top_p, entropies),
        on_done,
    )


def sample_groups(
    policy: Policy,
    problems: Sequence[Problem],
    keys: NDArray[np.uint64],
    sampling: SamplingParams,
    on_done: OnDone | None = None,
) -> list[Group]:
    """keys (problems, completions) -> a group a problem."""
    prompts = [policy.codec.encode(problem) for problem in problems]
    sampled = policy.sample(prompts, keys, sampling, on_done)
    return [
        Group(
            problem,
            prompt,
            tuple(completion for completion in completions if completion is not None),
            lost=sum(completion is None for completion in completions),
        )
        for problem, prompt, completions in zip(problems, prompts, sampled, strict=True)
    ]


def optimizer_batches(
    groups: Sequence[Group],
    credit: Credit,
    config: RunConfig,
    step: int,
    correct: Callable[[TrainBatch], TrainBatch] = lambda batch: batch,
) -> Iterator[TrainBatch]:
    """The step's optimizer steps in order: `updates_per_batch` passes over the completions, each
    cut into `minibatches` equal shares in an order from a keyed stream. Shares that hold nothing,
    as completions were left out, are left out too.

    correct: applied to the whole batch when the first is asked for, before any update.
    """
    training = config.training
    rows = [completion for group in groups for completion in group.completions]
    whole = TrainBatch(
        prompts=[group.prompt_ids for group in groups],
        prompt_index=np.repeat(np.arange(len(groups)), [len(g.completions) for g in groups]),
        token_ids=pad_rows([row.token_ids for row in rows], np.int64),
        mask=credit.mask,
        logprobs=pad_rows([row.logprobs for row in rows]),
        credit=credit.token_advantages,
        weight=np.zeros(credit.mask.shape),
        temperature=training.temperature,
    )
    if whole.num_rows:
        whole = correct(whole)
    for update in range(training.updates_per_batch):
        order = np.arange(whole.num_rows)
        if training.minibatches > 1:
            order = seeding.generator(training.seed, "minibatches", step, update).permutation(order)
        for share in np.array_split(order, training.minibatches):
            if len(share):
                yield weigh(whole.rows(share), config)


def weigh(batch: TrainBatch, config: RunConfig) -> TrainBatch:
    """The batch of one optimizer step with its denominators filled in."""
    return batch.with_weight(
        token_weights(batch.mask, config.loss.aggregation, config.training.max_tokens)
    )


def token_weights(mask: BoolArray, aggregation: str, max_tokens: int) -> FloatArray:
    """One over each token's denominator, (rows, tokens), 0 on padding.

    mask holds one optimizer step. `token_mean` divides by its completion tokens,
    `sequence_mean` by its rows and each row's tokens, `constant` by rows x max_tokens (Liu et al.
    2025, arXiv 2503.20783), `sum` by 1.
    """
    tokens = mask.sum(axis=1, keepdims=True)
    denominator = {
        "token_mean": np.full(tokens.shape, max(int(tokens.sum()), 1)),
        "sequence_mean": len(mask) * np.maximum(tokens, 1),
        "constant": np.full(tokens.shape, len(mask) * max_tokens),
        "sum": np.ones(tokens.shape),
    }[aggregation]
    return np.asarray(mask / denominator, dtype=np.float64)
