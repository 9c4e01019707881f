"""Log-probabilities in chunks: the same numbers and gradients, and never all logits at once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from retrain.models import head as heads
from retrain.models.head import head_logprobs, token_logprobs

HIDDEN, VOCABULARY = 6, 11


def linear(x: Tensor) -> Tensor:
    weight = torch.linspace(-1, 1, VOCABULARY * HIDDEN, dtype=torch.float64).view(
        VOCABULARY, HIDDEN
    )
    return F.linear(x, weight.sin().to(x.dtype))


def capped(x: Tensor) -> Tensor:
    return 2.0 * torch.tanh(linear(x) / 2.0)


@given(
    st.integers(1, 9),
    st.integers(1, 4),
    st.floats(0.3, 2.0),
    st.sampled_from([linear, capped]),
    st.integers(0, 99),
)
def test_chunks_give_the_same_numbers_and_gradients(
    tokens: int, chunk: int, temperature: float, head: heads.Head, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, HIDDEN, dtype=torch.float64, generator=draw)
    ids = torch.randint(0, VOCABULARY, (tokens,), generator=draw)
    weights = torch.randn(tokens, generator=draw)
    whole, parts = (hidden.clone().requires_grad_() for _ in range(2))
    expected = token_logprobs(head(whole), ids, temperature)
    (expected * weights).sum().backward()
    found = heads._Chunked.apply(parts, head, ids, temperature, chunk)
    (found * weights).sum().backward()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(parts.grad, whole.grad, rtol=0, atol=1e-5)


def test_no_more_than_a_chunk_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "LOGITS_CHUNK", 4 * VOCABULARY * 3)
    sizes = []

    def watched(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return linear(x)

    hidden = torch.randn(8, HIDDEN, requires_grad=True)
    found = head_logprobs(hidden, watched, VOCABULARY, torch.zeros(8, dtype=torch.long), 1.0)
    found.sum().backward()
    assert sizes == [3, 3, 2]
    with torch.no_grad():
        head_logprobs(hidden, watched, VOCABULARY, torch.zeros(8, dtype=torch.long), 1.0)
    assert sizes == [3, 3, 2, 3, 3, 2]


def test_a_vocabulary_larger_than_the_chunk_goes_token_by_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(heads, "LOGITS_CHUNK", 1)
    assert heads.chunk_tokens(VOCABULARY) == 1
