"""How large a model is, from its config and the headers of its weights; without torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

EngineKind = Literal["fused", "factored", "modules"]
"""The engines of `engine.py`."""

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose forward pass is written out in `llama.py`."""

LOGITS_CHUNK = 256 * 2**20
"""Bytes of float32 logits that an update holds at once. Their log-softmax and its gradient take as
much each."""

_MAX_HEADER = 100 * 2**20


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The numbers that memory depends on.

    linear: (out, in) of every linear layer but the output head, by name. parameters: of the whole
    model, tied weights once.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    parameters: int
    linear: Mapping[str, tuple[int, int]]

    @staticmethod
    def of(config: Mapping[str, Any], weights: Mapping[str, Sequence[int]]) -> ModelShape:
        """From `config.json` and the shapes of the weights, by name. Numbers that the config does
        not give count as one layer, one head, or what follows from the others; without weights the
        linear layers are those of a Llama-like model."""
        text = config.get("text_config")
        config = {**config, **text} if isinstance(text, Mapping) else config

        def first(keys: str, otherwise: int) -> int:
            found = [config[key] for key in keys.split() if isinstance(config.get(key), int)]
            return found[0] if found and found[0] > 0 else otherwise

        layers = first("num_hidden_layers n_layer num_layers", 1)
        hidden = first("hidden_size n_embd d_model", 1)
        heads = first("num_attention_heads n_head num_heads", 1)
        vocabulary = first("vocab_size", 1)
        kv_heads = first("num_key_value_heads", heads)
        head_dim = first("head_dim", max(1, hidden // heads))
        intermediate = first("intermediate_size n_inner ffn_dim", 4 * hidden)
        linear = {
            name.removesuffix(".weight"): (int(shape[0]), int(shape[1]))
            for name, shape in weights.items()
            if len(shape) == 2 and name.endswith(".weight") and not _is_table(name)
        }
        if not linear:
            linear = _llama_layers(layers, hidden, heads, kv_heads, head_dim, intermediate)
        parameters = sum(_product(shape) for shape in weights.values())
        if not parameters:
            tables = 1 if config.get("tie_word_embeddings") else 2
            parameters = sum(out * into for out, into in linear.values())
            parameters += tables * vocabulary * hidden
        return ModelShape(
            layers, hidden, heads, kv_heads, head_dim, intermediate, vocabulary, parameters, linear
        )

    def adapter_parameters(self, rank: int, targets: str | Sequence[str]) -> int:
        """Of a LoRA adapter on these layers: `"all-linear"`, or names."""
        names = None if isinstance(targets, str) else tuple(targets)
        return sum(
            rank * (out + into)
            for name, (out, into) in self.linear.items()
            if names is None or any(name == n or name.endswith("." + n) for n in names)
        )


def context_of(config: Mapping[str, Any]) -> int | None:
    """Tokens that prompt and completion may have together, from `config.json`; None if it does not
    say."""
    text = config.get("text_config")
    sources = [config, text if isinstance(text, Mapping) else {}]
    found = (
        source[key]
        for source in sources
        for key in ("max_position_embeddings", "n_positions", "max_seq_len")
        if isinstance(source.get(key), int)
    )
    return next(found, None)


def _is_table(name: str) -> bool:
    """Embeddings and the output head."""
    return any(part in name for part in ("embed", "wte", "wpe", "lm_head"))


def _product(shape: Sequence[int]) -> int:
    total = 1
    for size in shape:
        total *= int(size)
    return total


def _llama_layers(
    layers: int, hidden: int, heads: int, kv_heads: int, head_dim: int, intermediate: int
) -> dict[str, tuple[int, int]]:
    one = {
        "self_attn.q_proj": (heads * head_dim, hidden),
        "self_attn.k_proj": (kv_heads * head_dim, hidden),
        "self_attn.v_proj": (kv_heads * head_dim, hidden),
        "self_attn.o_proj": (hidden, heads * head_dim),
        "mlp.gate_proj": (intermediate, hidden),
        "mlp.up_proj": (intermediate, hidden),
        "mlp.down_proj": (hidden, intermediate),
    }
    return {f"model.layers.{i}.{name}": size for i in range(layers) for name, size in one.items()}


def weight_shapes(folder: Path) -> dict[str, list[int]]:
    """Shapes of the tensors in a folder's safetensors files, from their headers alone; empty when
    there are none, or when one cannot be read."""
    found: dict[str, list[int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with path.open("rb") as file:
                (size,) = struct.unpack("<Q", file.read(8))
                if size > _MAX_HEADER:
                    return {}
                header = json.loads(file.read(size))
            found |= {k: v["shape"] for k, v in header.items() if k != "__metadata__"}
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
            struct.error,
        ):
            return {}
    return found
