"""What the training loop asks of a policy, wherever it lives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from retrain.config.schema import LossConfig
from retrain.types import (
    Completion,
    FloatArray,
    IntArray,
    OnDone,
    Problem,
    SamplingParams,
    TrainBatch,
)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a kind of policy can do; `explain` checks a config against it before anything starts.

    exact_resume:      `save` and `load` restore the state bit for bit.
    token_entropies:   completions can carry the entropy of the full distribution.
    losses:            values of `[loss].type` that `update` knows.
    kl_to_base:        `[loss].kl_coef` can be above 0.
    tempered_loss:     the loss's log-probabilities are those of the sampling, whatever its
                       temperature; otherwise training samples plainly, at temperature 1.
    dual_clip:         `[loss].dual_clip` can be set.
    """

    exact_resume: bool
    token_entropies: bool
    losses: frozenset[str]
    kl_to_base: bool
    tempered_loss: bool
    dual_clip: bool


@dataclass(frozen=True, slots=True)
class OptimizerStep:
    """The optimizer's settings at one step (AdamW with decoupled weight decay)."""

    lr: float
    betas: tuple[float, float]
    weight_decay: float
    grad_clip: float
    """Largest gradient norm; 0 is off."""


@dataclass(frozen=True, slots=True)
class UpdateStats:
    """What one optimizer step did. Means are over the tokens of completions that carry credit
    (or a KL penalty); None when there was none.

    grad_norm is before clipping, None where it is not told. `stepped` is False when no token
    carried credit. sampler_ess is the effective sample size of the loss's own importance weights
    over their number, where `[loss].sampler_correction` truncates them.
    """

    loss: float
    grad_norm: float | None
    stepped: bool
    ratio_mean: float | None
    ratio_max: float | None
    log_ratio_mean: float | None
    clip_fraction: float | None
    kl_to_sampler: float | None
    kl_to_base: float | None
    sampler_ess: float | None = None


class NonFiniteUpdateError(Exception):
    """The loss or the gradient was not finite; the weights are untouched."""


class Codec(Protocol):
    """Text <-> tokens of the policy's model."""

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Tokens that end a completion."""

    @property
    def opens_thinking(self) -> bool:
        """Whether prompts end in `<think>`, so that completions begin with thinking."""

    def encode(self, problem: Problem) -> IntArray:
        """The prompt's token ids (tokens,), through the chat template, ready to be continued."""

    def decode(self, token_ids: IntArray) -> str:
        """Text without special tokens."""

    def decode_batch(self, rows: list[IntArray]) -> list[str]:
        """`decode` of many rows at once."""

    def pieces(self, token_ids: IntArray) -> list[str]:
        """Each token's share of `decode(token_ids)`; joined, they are that text."""


class Policy(Protocol):
    """One LoRA adapter on a base model: the thing that samples and learns."""

    @property
    def codec(self) -> Codec:
        """Text <-> tokens of the policy's model."""

    @property
    def capabilities(self) -> Capabilities:
        """What this kind of policy can do."""

    @property
    def device(self) -> str:
        """Where it lives, for the record."""

    @property
    def context(self) -> int:
        """Tokens of prompt and completion together that its model holds."""

    @property
    def measured(self) -> Mapping[str, float]:
        """Numbers of its own for the present step's row of metrics."""

    def sample(
        self,
        prompts: Sequence[IntArray],
        keys: NDArray[np.uint64],
        sampling: SamplingParams,
        on_done: OnDone | None = None,
    ) -> Sequence[Sequence[Completion | None]]:
        """`keys.shape[1]` completions of each prompt; None for one that a service failed to give.

        keys: (prompts, completions); each row's stream of uniform numbers
        (`retrain.seeding.uniforms`). What a row draws depends on its key alone.
        on_done: called in this thread for every completion as soon as it is finished, while
        others are still decoded; in any order.
        """

    def update(self, batch: TrainBatch, loss: LossConfig, optimizer: OptimizerStep) -> UpdateStats:
        """One optimizer step. Raises NonFiniteUpdateError and leaves the weights as they were."""

    def save(self, folder: Path) -> None:
        """Write the exact state, adapter and optimizer, or where it is kept."""

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote."""

    def export(self, folder: Path) -> None:
        """Write the adapter alone, in PEFT format where it can be had so."""


@runtime_checkable
class ScoresTokens(Protocol):
    """A policy whose own log-probabilities of given completions can be had."""

    def completion_logprobs(self, batch: TrainBatch) -> FloatArray:
        """(rows, tokens) log-probabilities of the batch's completion tokens under the weights as
        they are and at the batch's temperature; 0 on padding."""


@runtime_checkable
class RoundsTokens(Protocol):
    """A policy that samples and trains in a precision in which the two do not quite agree."""

    def old_logprobs(self, batch: TrainBatch) -> FloatArray | None:
        """(rows, tokens) what a clip needs in place of the sampler's log-probabilities, as
        `ScoresTokens.completion_logprobs`; None where the sampler's own are near enough."""
