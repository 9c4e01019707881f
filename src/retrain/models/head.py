"""From hidden states to log-probabilities of tokens, without (tokens x vocabulary) in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from retrain.models.shape import LOGITS_CHUNK

Head = Callable[[Tensor], Tensor]
"""Hidden states (tokens, hidden) -> logits (tokens, vocabulary), each row for itself."""


def token_logprobs(logits: Tensor, token_ids: Tensor, temperature: float) -> Tensor:
    """log softmax(logits / temperature) at the given tokens: (n, vocabulary), (n,) -> (n,)."""
    return -F.cross_entropy(logits.float() / temperature, token_ids, reduction="none")


def head_logprobs(
    hidden: Tensor, head: Head, vocabulary: int, token_ids: Tensor, temperature: float
) -> Tensor:
    """The same from hidden states (n, hidden), float32 (n,); at most `LOGITS_CHUNK` of logits are
    held at once, in the backward pass too. The head itself has nothing to learn."""
    chunk = chunk_tokens(vocabulary)
    if len(hidden) <= chunk:
        return token_logprobs(head(hidden), token_ids, temperature)
    found: Tensor = _Chunked.apply(hidden, head, token_ids, temperature, chunk)  # type: ignore[no-untyped-call]
    return found


def chunk_tokens(vocabulary: int) -> int:
    """Tokens whose logits are held at once."""
    return max(1, LOGITS_CHUNK // (4 * vocabulary))


class _Chunked(torch.autograd.Function):
    """A token's log-probability depends on its own hidden state alone. So its gradient there is
    made with the logits at hand, and the backward pass only scales it: one vector a token is kept,
    and no product is computed twice."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Head, token_ids: Tensor, temperature: float, chunk: int
    ) -> Tensor:
        found = torch.empty(len(hidden), device=hidden.device)
        learns = ctx.needs_input_grad[0]
        gradients = torch.empty_like(hidden) if learns else None
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            with torch.set_grad_enabled(learns):
                some = hidden[part].detach().requires_grad_(learns)
                logprobs = token_logprobs(head(some), token_ids[part], temperature)
            found[part] = logprobs.detach()
            if gradients is not None:
                ones = torch.ones_like(logprobs)
                (gradients[part],) = torch.autograd.grad(logprobs, some, ones)
        if gradients is not None:
            ctx.save_for_backward(gradients)
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradients,) = ctx.saved_tensors
        scaled = (gradients * grads[0][:, None]).to(gradients.dtype)
        return (scaled, None, None, None, None)
