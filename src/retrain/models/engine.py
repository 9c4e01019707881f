"""How a base model computes: the interface of the engines, and the batch they work on.

`FusedEngine` and `FactoredEngine` are functional forward passes for Llama-like models: the first
with the adapter merged into a second copy of the weights, the fast path for small models on a CPU;
the second with the adapter as low-rank products beside weights of any size and type, the path for
a GPU. `ModuleEngine` runs any Hugging Face causal LM through its own module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from retrain.models.lora import LoraAdapter
from retrain.models.shape import EngineKind
from retrain.types import IntArray


@dataclass(frozen=True, slots=True)
class Rows:
    """Completions as tensors on the model's device, right-padded.

    prompt_index: (rows,) which of the session's prompts a row continues.
    token_ids, mask: (rows, tokens)
    """

    prompt_index: Tensor
    token_ids: Tensor
    mask: Tensor


class Prompts(Protocol):
    """Prompts that a session has taken in, for any number of completions."""

    @property
    def mask(self) -> Tensor:
        """(prompts, tokens), left-padded."""


class Cache(Protocol):
    """Keys and values of running rows."""

    def select(self, index: Tensor) -> None:
        """Take the rows of `index` (taken,), in that order; a row may be taken more than once."""


class RefillableCache(Cache, Protocol):
    """A cache whose finished rows can make room for others while the rest goes on."""

    def retire(self, places: Tensor) -> None:
        """What stands at `places` is not needed any more."""

    def replace(self, places: Tensor, other: Cache) -> None:
        """Put the rows of `other`, a cache with no more room than this one, at `places`."""


class Session(Protocol):
    """A base model with one adapter's current values, ready to compute.

    All logits are float32 (…, vocabulary) and not yet scaled by a temperature.
    """

    def prefill(self, prompts: Sequence[IntArray], room: int) -> tuple[Cache, Tensor]:
        """One pass over the prompts -> cache of one row a prompt, with room for so many tokens in
        all, and next-token logits (prompts, vocabulary)."""

    def decode(self, cache: Cache, token_ids: Tensor) -> Tensor:
        """Append one token a row (rows,) -> next-token logits (rows, vocabulary)."""

    def prompts(self, prompts: Sequence[IntArray]) -> Prompts:
        """Take in prompts whose completions `logprobs` is to score."""

    def logprobs(self, prompts: Prompts, rows: Rows, temperature: float) -> Tensor:
        """Log-probabilities (rows, tokens) of the rows' tokens at this temperature, 0 on
        padding; carries gradients when the session was opened for training."""

    def finish(self) -> None:
        """After all backward passes of a session opened for training: what is still missing
        from `adapter.grads` is added."""


class Engine(Protocol):
    """A base model that opens sessions; it keeps nothing of an adapter between them.

    kind:              its name in messages and estimates.
    rows_hold_prompts: whether `logprobs` computes a row's prompt anew, which then counts against
                       the size of a micro-batch.
    refills:           whether its caches are `RefillableCache`s.
    """

    kind: EngineKind
    rows_hold_prompts: bool
    refills: bool

    def session(
        self, adapter: LoraAdapter | None, train: bool = False, checkpointing: bool = False
    ) -> Session:
        """`adapter=None` is the base model alone. checkpointing: in training, layers compute
        their activations a second time in the backward pass instead of keeping them."""


def pad_ids(
    rows: Sequence[IntArray], device: torch.device, left: bool = False
) -> tuple[Tensor, Tensor]:
    """Ragged token ids -> (rows, longest) ids padded with 0, and their mask."""
    width = max((len(row) for row in rows), default=0)
    ids = torch.zeros((len(rows), width), dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, row in enumerate(rows):
        span = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, span] = torch.from_numpy(row)
        mask[i, span] = True
    return ids.to(device), mask.to(device)


def with_prompts(ids: Tensor, mask: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    """Each row's prompt, then its completion without the last token, then padding: (rows, longest);
    and where the completions begin (rows,). ids, mask: of the prompts, right-padded."""
    starts = mask.sum(1)[rows.prompt_index]
    lengths = host_lengths(mask)[rows.prompt_index.cpu().numpy()]
    width = int((lengths + host_lengths(rows.mask)).max()) - 1
    places = torch.arange(width, device=ids.device)[None]
    own = (places - starts[:, None]).clamp(0, rows.token_ids.shape[1] - 1)
    given = places.clamp_max(ids.shape[1] - 1).expand(len(starts), -1)
    joined = torch.where(
        places < starts[:, None],
        ids[rows.prompt_index].gather(1, given),
        rows.token_ids.gather(1, own),
    )
    return joined, starts


def host_lengths(mask: Tensor) -> IntArray:
    """(rows, tokens) mask -> (rows,) lengths, in main memory."""
    return np.asarray(mask.sum(1).cpu().numpy(), dtype=np.int64)
