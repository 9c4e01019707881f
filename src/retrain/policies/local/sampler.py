"""Sampling completions: one prefill a prompt, then token by token, finished rows leaving."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retrain import seeding
from retrain.errors import InputError
from retrain.models.codec import ChatCodec
from retrain.models.engine import Session
from retrain.types import Completion, IntArray, SamplingParams

# Dropping finished rows copies the cache, so it waits until this share of the rows is done.
_DROP_SHARE = 0.15
# Positions whose uniform numbers are computed at once.
_UNIFORM_BLOCK = 64


@dataclass(frozen=True, slots=True)
class Draw:
    """One sampled token a row. token_ids (rows,); logprobs (rows,) under the distribution that
    was sampled from; entropies (rows,) of the untruncated one, or None."""

    token_ids: Tensor
    logprobs: Tensor
    entropies: Tensor | None


def draw_tokens(logits: Tensor, uniforms: Tensor, sampling: SamplingParams) -> Draw:
    """Sample one token a row by inverse CDF: the first token, in order of ids, at which the
    cumulative probability exceeds the row's uniform number.

    logits (rows, vocabulary); uniforms (rows,) float64 in [0, 1). Temperature 0 takes the most
    likely token and reports log-probabilities at temperature 1. With top_p < 1 only the smallest
    set of most likely tokens whose probability reaches top_p can be drawn (Holtzman et al. 2020,
    arXiv 1904.09751), and log-probabilities are those of the renormalised set.
    """
    greedy = sampling.temperature == 0
    logprobs = torch.log_softmax(logits if greedy else logits / sampling.temperature, -1)
    probs = logprobs.exp()
    entropies = None
    if sampling.entropies:
        entropies = -(probs * logprobs.clamp_min(torch.finfo(logprobs.dtype).min)).sum(-1)
    if greedy:
        token_ids = logits.argmax(-1)
    else:
        if sampling.top_p < 1.0:
            probs = probs * _nucleus(probs, sampling.top_p)
        cdf = probs.cumsum(-1, dtype=torch.float64)
        targets = uniforms * cdf[:, -1]
        token_ids = torch.searchsorted(cdf, targets[:, None], right=True)[:, 0]
        token_ids = token_ids.clamp_max(logits.shape[-1] - 1)
        if sampling.top_p < 1.0:
            logprobs = logprobs - probs.sum(-1, keepdim=True).log()
    found = logprobs.gather(1, token_ids[:, None])[:, 0]
    return Draw(token_ids, found, entropies)


def _nucleus(probs: Tensor, top_p: float) -> Tensor:
    """(rows, vocabulary) True on the smallest set of likely tokens that reaches top_p."""
    ordered, order = probs.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    return torch.zeros_like(probs, dtype=torch.bool).scatter(1, order, before < top_p)


@torch.no_grad()
def sample(
    session: Session,
    codec: ChatCodec,
    prompts: Sequence[IntArray],
    keys: NDArray[np.uint64],
    sampling: SamplingParams,
    context: int,
    device: torch.device,
) -> list[list[Completion]]:
    """`keys.shape[1]` completions of each prompt; `keys (prompts, completions)` name the rows'
    streams of uniform numbers. Rows end at an end token, at `max_tokens`, or where the model's
    context of `context` tokens is full."""
    count, times = keys.shape
    room = [context - len(prompt) for prompt in prompts]
    if min(room) < 1:
        longest = max(len(prompt) for prompt in prompts)
        raise InputError(
            f"a prompt has {longest} tokens, and the model's context holds {context}; "
            "leave out longer problems or take a model with a longer context"
        )
    limits = np.repeat(np.minimum(sampling.max_tokens, room), times)
    longest_new = int(limits.max())
    rows = count * times
    row_keys = keys.reshape(rows)
    tokens = np.zeros((rows, longest_new), dtype=np.int64)
    logprobs = np.zeros((rows, longest_new))
    entropies = np.zeros((rows, longest_new)) if sampling.entropies else None
    lengths = np.zeros(rows, dtype=np.int64)
    stopped = np.zeros(rows, dtype=bool)

    cache, logits = session.prefill(prompts, longest_new)
    if times > 1:
        cache.repeat(times)
        logits = logits.repeat_interleave(times, 0)
    end_ids = np.array(codec.eos_ids)
    index = np.arange(rows)  # which row each row of the cache is
    running = np.ones(rows, dtype=bool)  # of the rows in the cache
    for position in range(longest_new):
        column = position % _UNIFORM_BLOCK
        if column == 0:
            positions = np.arange(position, position + _UNIFORM_BLOCK)
            uniforms = seeding.uniforms(row_keys[:, None], positions)
        uniform = torch.from_numpy(uniforms[index, column]).to(device)
        drawn = draw_tokens(logits, uniform, sampling)
        ids = drawn.token_ids.cpu().numpy()
        alive = index[running]
        tokens[alive, position] = ids[running]
        logprobs[alive, position] = drawn.logprobs.cpu().numpy()[running]
        if entropies is not None and drawn.entropies is not None:
            entropies[alive, position] = drawn.entropies.cpu().numpy()[running]
        lengths[alive] = position + 1
        ended = (ids[:, None] == end_ids).any(axis=1)
        stopped[index[running & ended]] = True
        running &= ~ended & (limits[index] > position + 1)
        left = int(running.sum())
        if left == 0:
            break
        next_ids = drawn.token_ids
        if left <= (1 - _DROP_SHARE) * len(index):
            kept = torch.from_numpy(np.flatnonzero(running)).to(device)
            cache.select(kept)
            next_ids = next_ids.index_select(0, kept)
            index, running = index[running], np.ones(left, dtype=bool)
        logits = session.decode(cache, next_ids)

    rows_ids = [tokens[row, : lengths[row]] for row in range(rows)]
    completions = [
        Completion(
            token_ids=ids,
            logprobs=logprobs[row, : lengths[row]],
            text=text,
            stop_reason="stop" if stopped[row] else "length",
            entropies=None if entropies is None else entropies[row, : lengths[row]],
        )
        for row, (ids, text) in enumerate(zip(rows_ids, codec.decode_batch(rows_ids), strict=True))
    ]
    return [completions[i * times : (i + 1) * times] for i in range(count)]
