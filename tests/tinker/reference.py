"""The forward pass of a Llama-like model with LoRA beside every layer, written out plainly, so that
what the stand-in computes does not hang on the engines of the policy that it is held against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def logits(
    module: Any, tokens: Tensor, factors: Mapping[str, tuple[Tensor, Tensor]], scale: float
) -> Tensor:
    """(rows, tokens) ids, right-padded -> (rows, tokens, vocabulary).

    factors: layer -> A (rank, in) and B (out, rank); its output is W x + scale B A x.
    """
    config = module.config
    rows, length = tokens.shape
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads

    def linear(name: str, x: Tensor) -> Tensor:
        layer = module.get_submodule(name)
        y = F.linear(x, layer.weight, layer.bias)
        if name in factors:
            a, b = factors[name]
            y = y + scale * (x @ a.T @ b.T)
        return y

    def norm(layer: Any, x: Tensor) -> Tensor:
        scale: Tensor = (
            layer.weight / (x.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps).sqrt()
        )
        return scale * x

    def split(x: Tensor, count: int, layer: Any | None) -> Tensor:
        x = x.view(rows, length, count, size)
        return (x if layer is None else norm(layer, x)).transpose(1, 2)

    x = F.embedding(tokens, module.model.embed_tokens.weight)
    cos, sin = module.model.rotary_emb(x, torch.arange(length)[None])

    def rotate(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        turned: Tensor = x * cos[:, None] + torch.cat([-second, first], -1) * sin[:, None]
        return turned

    causal = torch.ones(length, length, dtype=torch.bool).tril()
    for i, layer in enumerate(module.model.layers):
        name, attention = f"model.layers.{i}", layer.self_attn
        h = norm(layer.input_layernorm, x)
        q, k, v = (linear(f"{name}.self_attn.{part}_proj", h) for part in "qkv")
        q = rotate(split(q, heads, getattr(attention, "q_norm", None)))
        k = rotate(split(k, groups, getattr(attention, "k_norm", None)))
        k, v = (y.repeat_interleave(heads // groups, 1) for y in (k, split(v, groups, None)))
        scores = (q @ k.transpose(-1, -2) / size**0.5).masked_fill(~causal, -torch.inf)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(rows, length, heads * size)
        x = x + linear(f"{name}.self_attn.o_proj", mixed)
        h = norm(layer.post_attention_layernorm, x)
        gate, up = (linear(f"{name}.mlp.{part}_proj", h) for part in ("gate", "up"))
        x = x + linear(f"{name}.mlp.down_proj", F.silu(gate) * up)
    return F.linear(norm(module.model.norm, x), module.lm_head.weight)
