"""Llama-like models as plain tensors: what the two functional engines share.

Query/key/value and gate/up products are stacked into one weight each. The module's own parameters
become views of the stacks, so that the weights exist once.

Left out of the architectures: sliding windows, attention and residual dropout (always off here),
mixtures of experts, and every model type that is not in `shape.SUPPORTED`; those run through
`ModuleEngine`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retrain.models.shape import SUPPORTED

# Those whose angles depend on the position alone, not on the length of the text.
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")


def supports(module: Any) -> bool:
    """Whether this causal LM is of a kind whose forward pass is written out here."""
    config = module.config
    return (
        config.model_type in SUPPORTED
        and config.hidden_act == "silu"
        and getattr(config, "sliding_window", None) is None
        and module.model.rotary_emb.rope_type in _ROPE_TYPES
    )


@dataclass(frozen=True, slots=True)
class Stack:
    """Linear layers that share their input, as one weight (all outs, in)."""

    names: tuple[str, ...]
    layers: tuple[nn.Linear, ...]
    weight: Tensor
    bias: Tensor | None

    @staticmethod
    def of(named: Sequence[tuple[str, nn.Linear]]) -> Stack:
        layers = tuple(layer for _, layer in named)
        bias: Tensor | None = None
        if any(layer.bias is not None for layer in layers):
            parts: list[Tensor] = [
                layer.bias if layer.bias is not None else layer.weight.new_zeros(layer.out_features)
                for layer in layers
            ]
            bias = torch.cat(parts).detach()
        stack = Stack(
            names=tuple(name for name, _ in named),
            layers=layers,
            weight=torch.cat([layer.weight for layer in layers]).detach(),
            bias=bias,
        )
        for (_, rows), layer in zip(stack.slices(), layers, strict=True):
            layer.weight = nn.Parameter(stack.weight[rows], requires_grad=False)
        return stack

    def slices(self) -> list[tuple[str, slice]]:
        """Each layer's rows of the stacked weight."""
        spans: list[tuple[str, slice]] = []
        start = 0
        for name, layer in zip(self.names, self.layers, strict=True):
            spans.append((name, slice(start, start + layer.out_features)))
            start += layer.out_features
        return spans


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer's frozen parts."""

    input_norm: Tensor
    post_norm: Tensor
    qk_norm: Tensor | None  # (heads + kv heads, head size): of every query and key head
    products: tuple[Stack, Stack, Stack, Stack]  # qkv, o, gate-up, down


class LlamaWeights:
    """The frozen weights of a Llama-like model on its device, and its rotary angles."""

    def __init__(self, module: nn.Module) -> None:
        model: Any = module
        config = model.config
        self.heads: int = config.num_attention_heads
        self.kv_heads: int = config.num_key_value_heads
        self.head_dim: int = (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        self.eps: float = config.rms_norm_eps
        self.embedding: Tensor = model.model.embed_tokens.weight.detach()
        self.head: Tensor = model.lm_head.weight.detach()
        self.final_norm: Tensor = model.model.norm.weight.detach()
        self.device = self.embedding.device
        self.dtype = self.embedding.dtype
        self._rotary: Any = model.model.rotary_emb
        self._cos = self._sin = torch.empty(0, 1, self.head_dim, device=self.device)
        self.layers = [
            self._layer(f"model.layers.{i}", layer) for i, layer in enumerate(model.model.layers)
        ]

    def _layer(self, prefix: str, layer: Any) -> Layer:
        attention, mlp = layer.self_attn, layer.mlp

        def named(owner: str, module: Any, *parts: str) -> Stack:
            return Stack.of([(f"{prefix}.{owner}.{p}", getattr(module, p)) for p in parts])

        qk_norm = None
        if hasattr(attention, "q_norm"):
            heads = (self.heads, self.kv_heads)
            norms = (attention.q_norm.weight, attention.k_norm.weight)
            qk_norm = torch.cat(
                [w.detach().expand(n, -1) for w, n in zip(norms, heads, strict=True)]
            )
        return Layer(
            input_norm=layer.input_layernorm.weight.detach(),
            post_norm=layer.post_attention_layernorm.weight.detach(),
            qk_norm=qk_norm,
            products=(
                named("self_attn", attention, "q_proj", "k_proj", "v_proj"),
                named("self_attn", attention, "o_proj"),
                named("mlp", mlp, "gate_proj", "up_proj"),
                named("mlp", mlp, "down_proj"),
            ),
        )

    def rotary_table(self, length: int) -> tuple[Tensor, Tensor]:
        """cos and sin (at least length, 1, head size) of positions 0, 1, …, as `rotate` wants
        them."""
        if length > len(self._cos):
            every = torch.arange(2 * length, device=self.device)
            cos, sin = self._rotary(self.embedding, every[None])
            first, second = sin[0].chunk(2, -1)
            self._cos = cos[0].unsqueeze(1)
            self._sin = torch.cat([-first, second], -1).unsqueeze(1)
        return self._cos, self._sin

    def split_heads(
        self, qkv: Tensor, layer: Layer, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(tokens, all outs) of the query-key-value product -> q (tokens, heads, size), k and v
        (tokens, kv heads, size), q and k normed and rotated."""
        h, g, d = self.heads, self.kv_heads, self.head_dim
        qk, v = torch.split(qkv.view(-1, h + 2 * g, d), [h + g, g], 1)
        if layer.qk_norm is not None:
            qk = F.rms_norm(qk, (d,), None, self.eps) * layer.qk_norm
        q, k = torch.split(rotate(qk, cos, sin), [h, g], 1)
        return q, k, v

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, self.eps)


def as_rows(x: Tensor, rows: int, tokens: int) -> Tensor:
    """(rows * tokens, heads, size) -> (rows, heads, tokens, size)"""
    return x.view(rows, tokens, *x.shape[1:]).transpose(1, 2)


def flat(x: Tensor) -> Tensor:
    """(rows, heads, tokens, size) -> (rows * tokens, heads * size)"""
    r, h, t, d = x.shape
    return x.transpose(1, 2).reshape(r * t, h * d)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding (Su et al. 2021, arXiv 2104.09864, eq. 34), half-split layout;
    the first half of `sin` carries the minus sign."""
    first, second = x.chunk(2, -1)
    return torch.addcmul(x * cos, torch.cat([second, first], -1), sin)
