"""The nouns that every part of retrain shares: problems, completions, groups, batches.

All are frozen. Arrays are numpy and read-only by convention; shapes stand beside each field.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]

Outcome = Literal["correct", "wrong", "unverifiable"]
StopReason = Literal["stop", "length"]


class Message(TypedDict):
    """One chat message, as chat templates take it."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Problem:
    """A prompt with a reference answer, a domain and a stable id.

    `prompt` is the user's text, or a whole conversation as chat messages. `id` never changes
    for the same problem, on any machine: results of different runs are paired by it.
    """

    id: str
    prompt: str | tuple[Message, ...]
    answer: str
    domain: str = "default"
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def messages(self) -> list[Message]:
        """The prompt as chat messages."""
        if isinstance(self.prompt, str):
            return [{"role": "user", "content": self.prompt}]
        return list(self.prompt)


@dataclass(frozen=True, slots=True)
class Completion:
    """Sampled tokens with the sampler's view of them.

    token_ids: (tokens,) with the end token when one was sampled.
    logprobs:  (tokens,) natural log-probability of each token under the distribution that was
               sampled from: temperature-scaled and, with top_p < 1, truncated and renormalised.
    entropies: (tokens,) Shannon entropy in nats of the temperature-scaled full distribution at
               each position; None unless asked for.
    text:      decoded without special tokens.
    stop_reason: "stop" when an end token was sampled, "length" at max_tokens.
    """

    token_ids: IntArray
    logprobs: FloatArray
    text: str
    stop_reason: StopReason
    entropies: FloatArray | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


OnDone = Callable[[int, int, Completion], None]
"""(index of the problem, index of the completion, the completion), when it is finished."""


@dataclass(frozen=True, slots=True)
class Score:
    """What a reward says of one completion: a number, an outcome, named parts of it, and why, in
    words, where the outcome alone does not tell."""

    reward: float
    outcome: Outcome
    parts: Mapping[str, float] = field(default_factory=dict)
    why: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Group:
    """One problem and its completions; `scores` is empty until they are scored.

    masked: completions that were left out because no judgement of them was to be had.
    lost: completions that a service failed to give.
    """

    problem: Problem
    prompt_ids: IntArray
    completions: tuple[Completion, ...]
    scores: tuple[Score, ...] = ()
    masked: int = 0
    lost: int = 0

    @property
    def rewards(self) -> FloatArray:
        """(completions,)"""
        return np.array([score.reward for score in self.scores], dtype=np.float64)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample. `temperature` 0 means greedy (log-probabilities then at temperature 1)."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    entropies: bool = False


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """What one optimizer step learns from.

    Mask, credit and weight are three tensors on purpose: a credit of zero never changes a
    denominator, and the loss of any subset of rows is a plain sum of its terms.

    prompts:       (prompts,) token ids of each distinct prompt, ragged.
    prompt_index:  (rows,) which prompt a row continues.
    token_ids:     (rows, tokens) completion tokens, right-padded with 0.
    mask:          (rows, tokens) True on completion tokens.
    logprobs:      (rows, tokens) the sampler's log-probabilities, 0 on padding.
    credit:        (rows, tokens) token advantages, 0 on padding.
    weight:        (rows, tokens) one over the denominator of the aggregation, 0 on padding;
                   made from the *whole* optimizer step.
    temperature:   of the sampling; the loss's log-probabilities are scaled alike.
    """

    prompts: Sequence[IntArray]
    prompt_index: IntArray
    token_ids: IntArray
    mask: BoolArray
    logprobs: FloatArray
    credit: FloatArray
    weight: FloatArray
    temperature: float

    @property
    def num_rows(self) -> int:
        return len(self.prompt_index)

    @property
    def num_tokens(self) -> int:
        """Completion tokens in the batch."""
        return int(self.mask.sum())

    def rows(self, index: IntArray) -> TrainBatch:
        """The batch of the given rows only; weights are kept, so sums over parts add up."""
        return self._take((index,))

    def cut(self, tokens: int) -> TrainBatch:
        """The same rows without the columns from `tokens` on (which must be padding)."""
        return self._take((slice(None), slice(0, tokens)))

    def with_weight(self, weight: FloatArray) -> TrainBatch:
        """The batch with other denominators."""
        return replace(self, weight=weight)

    def _take(self, where: tuple[Any, ...]) -> TrainBatch:
        return replace(
            self,
            prompt_index=self.prompt_index[where[0]],
            token_ids=self.token_ids[where],
            mask=self.mask[where],
            logprobs=self.logprobs[where],
            credit=self.credit[where],
            weight=self.weight[where],
        )


def pad_rows(rows: Sequence[NDArray[Any]], dtype: Any = np.float64) -> NDArray[Any]:
    """Ragged rows -> (rows, longest), right-padded with zeros."""
    width = max((len(row) for row in rows), default=0)
    padded = np.zeros((len(rows), width), dtype=dtype)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded


def pad_mask(lengths: Sequence[int] | IntArray) -> BoolArray:
    """(rows,) lengths -> (rows, longest), True where a row has a token."""
    lengths = np.asarray(lengths, dtype=np.int64)
    width = int(lengths.max(initial=0))
    return np.arange(width)[None, :] < lengths[:, None]
