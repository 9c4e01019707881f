"""A functional forward pass for Llama-like models of any size and type, made for a GPU.

The adapter is two thin products beside each weight, in the weights' type, from float32 masters.
Training rows stand unpadded on the left and causal, which is what the fastest attention kernels
take; layers may recompute their activations in the backward pass; logits are never held for all
tokens (`head.py`). Decoding rows have a slot each (`slots.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from retrain.models.engine import Cache, Prompts, Rows, pad_ids, with_prompts
from retrain.models.head import head_logprobs
from retrain.models.llama import LlamaWeights, Stack, as_rows, flat
from retrain.models.lora import LoraAdapter
from retrain.models.shape import EngineKind
from retrain.models.slots import SlotCache
from retrain.types import IntArray

# Prompts are taken in so many padded tokens at a time.
_PREFILL_TOKENS = 16384


@dataclass(frozen=True, slots=True)
class FactoredPrompts:
    """Token ids of prompts and their mask, (prompts, tokens), right-padded."""

    ids: Tensor
    mask: Tensor


class FactoredEngine:
    """Llama-like model, any type and device, adapter as low-rank products."""

    kind: EngineKind = "factored"
    rows_hold_prompts = True
    refills = True

    def __init__(self, module: nn.Module) -> None:
        self.model = LlamaWeights(module)

    def session(
        self, adapter: LoraAdapter | None, train: bool = False, checkpointing: bool = False
    ) -> FactoredSession:
        return FactoredSession(self.model, adapter, train, checkpointing)


@dataclass(slots=True)
class _Factors:
    """The factors of a stack's adapted layers, joined: x -> x A^T B^T is the adapter's share of
    the whole stack, scale included.

    a: (adapted layers * rank, in); b: (all outs, adapted layers * rank), zero where a layer's
    outs meet another one's factors. Float32 leaves in training, else of the weights' type.
    """

    names: tuple[str, ...]
    rows: tuple[slice, ...]
    a: Tensor
    b: Tensor


@dataclass(slots=True)
class FactoredSession:
    """The engine with one adapter's factors."""

    model: LlamaWeights
    adapter: LoraAdapter | None
    train: bool
    checkpointing: bool
    factors: list[list[_Factors | None]] = field(init=False)

    def __post_init__(self) -> None:
        self.factors = [
            [self._join(product) for product in layer.products] for layer in self.model.layers
        ]

    def _join(self, product: Stack) -> _Factors | None:
        adapter = self.adapter
        if adapter is None:
            return None
        adapted = [(name, rows) for name, rows in product.slices() if name in adapter.factors]
        if not adapted:
            return None
        rank, outs = adapter.spec.rank, len(product.weight)
        a = torch.cat([adapter.factors[name].a for name, _ in adapted])
        b = a.new_zeros(outs, len(a))
        for place, (name, rows) in enumerate(adapted):
            b[rows, place * rank : (place + 1) * rank] = adapter.factors[name].b
        b.mul_(adapter.spec.scale)
        if self.train:
            a.requires_grad_()
            b.requires_grad_()
        else:
            a, b = a.to(self.model.dtype), b.to(self.model.dtype)
        names, spans = zip(*adapted, strict=True)
        return _Factors(names, spans, a, b)

    def finish(self) -> None:
        """From the joined factors' gradients to those of the adapter."""
        adapter = self.adapter
        assert adapter is not None
        rank = adapter.spec.rank
        for joined in (f for layer in self.factors for f in layer if f is not None):
            if joined.a.grad is None or joined.b.grad is None:
                continue
            for place, (name, rows) in enumerate(zip(joined.names, joined.rows, strict=True)):
                span = slice(place * rank, (place + 1) * rank)
                factors = adapter.factors[name]
                factors.grad_a.add_(joined.a.grad[span])
                factors.grad_b.add_(joined.b.grad[rows, span], alpha=adapter.spec.scale)

    def prefill(self, prompts: Sequence[IntArray], room: int) -> tuple[Cache, Tensor]:
        longest = max(len(prompt) for prompt in prompts)
        a_time = max(1, _PREFILL_TOKENS // longest)
        shape = (len(prompts), self.model.kv_heads, longest, self.model.head_dim)
        keys, values = (
            [self.model.embedding.new_zeros(shape) for _ in self.model.layers] for _ in range(2)
        )
        last: list[Tensor] = []
        for start in range(0, len(prompts), a_time):
            ids, mask = pad_ids(prompts[start : start + a_time], self.model.device)
            with torch.no_grad():
                x = self._forward(ids, (keys, values, start))
            ends = mask.sum(1) - 1
            last.append(x.view(*ids.shape, -1)[torch.arange(len(ids), device=x.device), ends])
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        cache = SlotCache(keys, values, lengths.numpy(), room)
        self.model.rotary_table(room)
        return cache, self._logits(torch.cat(last))

    def decode(self, cache: Cache, token_ids: Tensor) -> Tensor:
        assert isinstance(cache, SlotCache)
        cache.token_ids.copy_(token_ids)
        extent = cache.extent
        hidden = cache.runner.run(extent, lambda: self._step(cache, extent), self.model.device)
        cache.step_taken()
        return self._logits(hidden)

    def _step(self, cache: SlotCache, extent: int) -> Tensor:
        """Append `cache.token_ids` -> the last layer's output (slots, hidden). Whatever changes
        from step to step is in the cache's tensors, so that it can be recorded."""
        model, count = self.model, len(cache.token_ids)
        every_cos, every_sin = model.rotary_table(cache.room)
        cos = every_cos.index_select(0, cache.lengths)
        sin = every_sin.index_select(0, cache.lengths)
        hidden_from = cache.columns[:extent] > cache.lengths[:, None]
        low = torch.finfo(model.dtype).min
        bias = torch.zeros(hidden_from.shape, dtype=model.dtype, device=model.device).masked_fill_(
            hidden_from, low
        )[:, None, None]
        x = F.embedding(cache.token_ids, model.embedding)
        for index, layer in enumerate(model.layers):
            normed = model.norm(x, layer.input_norm)
            q, k, v = model.split_heads(self._product(normed, index, 0), layer, cos, sin)
            cache.write(index, k, v)
            # The queries that share a key head are so many queries at one position.
            q = q.view(count, model.kv_heads, model.heads // model.kv_heads, model.head_dim)
            mixed = F.scaled_dot_product_attention(
                q,
                cache.keys[index][:, :, :extent],
                cache.values[index][:, :, :extent],
                attn_mask=bias.expand(-1, -1, q.shape[2], -1),
            )
            x = self._finish_layer(x, mixed.reshape(count, -1), index)
        cache.lengths.add_(1)
        return x

    def prompts(self, prompts: Sequence[IntArray]) -> FactoredPrompts:
        return FactoredPrompts(*pad_ids(prompts, self.model.device))

    def logprobs(self, prompts: Prompts, rows: Rows, temperature: float) -> Tensor:
        assert isinstance(prompts, FactoredPrompts)
        ids, starts = with_prompts(prompts.ids, prompts.mask, rows)
        x = self._forward(ids).view(*ids.shape, -1)
        row, token = rows.mask.nonzero(as_tuple=True)
        found = head_logprobs(
            x[row, starts[row] - 1 + token],
            self._logits,
            len(self.model.head),
            rows.token_ids[row, token],
            temperature,
        )
        return found.new_zeros(rows.mask.shape).masked_scatter(rows.mask, found)

    def _forward(
        self, ids: Tensor, store: tuple[list[Tensor], list[Tensor], int] | None = None
    ) -> Tensor:
        """Rows (rows, tokens) from position 0 on -> the last layer's output (rows * tokens,
        hidden). store: where keys and values of each layer go, from which row on."""
        model = self.model
        r, t = ids.shape
        every_cos, every_sin = model.rotary_table(t)
        cos, sin = every_cos[:t].repeat(r, 1, 1), every_sin[:t].repeat(r, 1, 1)
        x = F.embedding(ids.flatten(), model.embedding)
        for index in range(len(model.layers)):
            if self.train and self.checkpointing:
                x = checkpoint(
                    self._layer,
                    *(x, index, r, cos, sin, None),
                    use_reentrant=False,
                    preserve_rng_state=False,
                )
            else:
                x = self._layer(x, index, r, cos, sin, store)
        return x

    def _layer(
        self,
        x: Tensor,
        index: int,
        rows: int,
        cos: Tensor,
        sin: Tensor,
        store: tuple[list[Tensor], list[Tensor], int] | None,
    ) -> Tensor:
        model, layer = self.model, self.model.layers[index]
        tokens = len(x) // rows
        qkv = self._product(model.norm(x, layer.input_norm), index, 0)
        q, k, v = (as_rows(z, rows, tokens) for z in model.split_heads(qkv, layer, cos, sin))
        if store is not None:
            keys, values, start = store
            keys[index][start : start + rows, :, :tokens] = k
            values[index][start : start + rows, :, :tokens] = v
        mixed = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=model.heads != model.kv_heads
        )
        return self._finish_layer(x, flat(mixed), index)

    def _finish_layer(self, x: Tensor, mixed: Tensor, index: int) -> Tensor:
        """Output product of the attention, residual, and the feed-forward block."""
        layer = self.model.layers[index]
        x = x + self._product(mixed, index, 1)
        gate, up = self._product(self.model.norm(x, layer.post_norm), index, 2).chunk(2, -1)
        return x + self._product(F.silu(gate) * up, index, 3)

    def _product(self, x: Tensor, index: int, which: int) -> Tensor:
        """One of a layer's products, with the adapter's share: (tokens, in) -> (tokens, outs)."""
        product, joined = self.model.layers[index].products[which], self.factors[index][which]
        y = F.linear(x, product.weight, product.bias)
        if joined is None:
            return y
        a, b = joined.a.to(x.dtype), joined.b.to(x.dtype)
        return y.addmm_(F.linear(x, a), b.T)

    def _logits(self, hidden: Tensor) -> Tensor:
        model = self.model
        return F.linear(model.norm(hidden, model.final_norm), model.head).float()
