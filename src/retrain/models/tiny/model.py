"""The embedded model without transformers, whose import takes longer than a small run's training.

What is here is what the functional engines read of a Qwen3: its parameters under their names, in
their order, its config and its rotary angles. It cannot run by itself.
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from retrain.models.tiny import EMBEDDED_PATH


class TinyConfig(SimpleNamespace):
    """`config.json`, as far as needed in the manner of transformers' configs."""

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def get_text_config(self) -> TinyConfig:
        return self


class TinyModel(nn.Module):
    """A Qwen3's parameters; without values until they are loaded."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        self.model = _Decoder(config)
        self.lm_head = _linear(config.vocab_size, config.hidden_size)

    @property
    def dtype(self) -> torch.dtype:
        return self.lm_head.weight.dtype

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head


class _Weight(nn.Module):
    """An embedding or a norm; torch's own would draw values, and import its compiler to do so."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape, device="meta"))


class _Decoder(nn.Module):
    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.embed_tokens = _Weight(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = _Weight(config.hidden_size)
        self.rotary_emb = _Rotary(config)


class _Layer(nn.Module):
    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.self_attn = _Attention(config)
        self.mlp = _MLP(config)
        self.input_layernorm = _Weight(config.hidden_size)
        self.post_attention_layernorm = _Weight(config.hidden_size)


class _Attention(nn.Module):
    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        size, heads, kv_heads = (
            config.head_dim,
            config.num_attention_heads,
            config.num_key_value_heads,
        )
        self.q_proj = _linear(heads * size, config.hidden_size)
        self.k_proj = _linear(kv_heads * size, config.hidden_size)
        self.v_proj = _linear(kv_heads * size, config.hidden_size)
        self.o_proj = _linear(config.hidden_size, heads * size)
        self.q_norm = _Weight(size)
        self.k_norm = _Weight(size)


class _MLP(nn.Module):
    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.gate_proj = _linear(config.intermediate_size, config.hidden_size)
        self.up_proj = _linear(config.intermediate_size, config.hidden_size)
        self.down_proj = _linear(config.hidden_size, config.intermediate_size)


class _Rotary(nn.Module):
    """Angles of the rotary position embedding (Su et al. 2021, arXiv 2104.09864, eq. 15)."""

    inv_freq: Tensor
    rope_type = "default"

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        size, base = config.head_dim, config.rope_parameters["rope_theta"]
        inv_freq = 1.0 / (base ** (torch.arange(0, size, 2, dtype=torch.float) / size))
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    def forward(self, like: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions (rows, tokens) -> cos and sin (rows, tokens, head size), of the dtype of
        `like`."""
        angles = positions[..., None].float() * self.inv_freq
        both = torch.cat([angles, angles], -1)
        return both.cos().to(like.dtype), both.sin().to(like.dtype)


def _linear(out: int, into: int) -> nn.Linear:
    return nn.Linear(into, out, bias=False, device="meta")


def load_tiny(dtype: torch.dtype) -> TinyModel:
    """The shipped weights in this dtype, in main memory."""
    config = TinyConfig(**json.loads((EMBEDDED_PATH / "config.json").read_text(encoding="utf-8")))
    model = TinyModel(config)
    weights = load_file(EMBEDDED_PATH / "model.safetensors")
    weights = {name: weight.to(dtype) for name, weight in weights.items()}
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights, assign=True)
    model.lm_head.weight = model.model.embed_tokens.weight
    return model
