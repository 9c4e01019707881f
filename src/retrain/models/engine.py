"""How a base model computes: the interface of the two engines, and the batch they work on.

`FusedEngine` is a functional forward pass for Llama-like models whose weights, with the adapter
merged in, fit in memory once more: the fast path for small models. `ModuleEngine` runs any
Hugging Face causal LM through its own module, with the adapter as low-rank side products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from retrain.models.lora import LoraAdapter
from retrain.types import IntArray


@dataclass(frozen=True, slots=True)
class Rows:
    """Completions and their prompts, as tensors on the model's device; both right-padded.

    prompts: (prompts, prompt tokens); prompt_mask: the same shape; prompt_index: (rows,)
    token_ids: (rows, tokens); mask: (rows, tokens)
    """

    prompts: Tensor
    prompt_mask: Tensor
    prompt_index: Tensor
    token_ids: Tensor
    mask: Tensor


class Cache(Protocol):
    """Keys and values of running rows."""

    def repeat(self, times: int) -> None:
        """Make every row `times` rows, next to each other."""

    def select(self, index: Tensor) -> None:
        """Keep the rows of `index` (kept,)."""


class Session(Protocol):
    """A base model with one adapter's current values, ready to compute.

    All logits are float32 (…, vocabulary) and not yet scaled by a temperature.
    """

    def prefill(self, prompts: Sequence[IntArray], max_new_tokens: int) -> tuple[Cache, Tensor]:
        """One pass over the prompts -> cache of one row a prompt, next-token logits
        (prompts, vocabulary)."""

    def decode(self, cache: Cache, token_ids: Tensor) -> Tensor:
        """Append one token a row (rows,) -> next-token logits (rows, vocabulary)."""

    def logprobs(self, rows: Rows, temperature: float) -> Tensor:
        """Log-probabilities (rows, tokens) of the rows' tokens at this temperature, 0 on
        padding; carries gradients when the session was opened for training."""

    def write_gradients(self) -> None:
        """After backward passes: add the gradients of the adapter's factors to
        `adapter.grads`. Called once, at the end of the session."""


class Engine(Protocol):
    """A base model that opens sessions; it keeps nothing of an adapter between them."""

    def session(self, adapter: LoraAdapter | None, train: bool = False) -> Session:
        """`adapter=None` is the base model alone."""


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


def token_logprobs(logits: Tensor, token_ids: Tensor, temperature: float) -> Tensor:
    """log softmax(logits / temperature) at the given tokens: (n, vocabulary), (n,) -> (n,)."""
    return -torch.nn.functional.cross_entropy(logits / temperature, token_ids, reduction="none")
