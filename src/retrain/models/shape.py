"""How large a model is, from its config and the headers of its weights; without torch."""

from __future__ import annotations

import json
import math
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

_BIDIRECTIONAL = (
    *("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie"),
    *("megatron-bert", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer"),
    *("xlm", "xlm-roberta", "xlm-roberta-xl", "xlnet", "xmod", "cpmant"),
)
_NO_LINEAR_LAYERS = ("gpt2", "gpt-sw3", "openai-gpt")
# Beyond Moshi's sliding window its cache holds other keys than a pass over the whole text.
_SCORED_OTHERWISE = ("moshi", "prophetnet")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The numbers that memory depends on.

    linear: (out, in) of every linear layer but the output head and experts, by name. parameters: of
    the whole model, tied weights once.
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
        config = _with_text(config)

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
        parameters = sum(math.prod(shape) for shape in weights.values())
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


def refused(config: Mapping[str, Any]) -> str | None:
    """Why no adapter can be trained on models of this type, from `config.json`; None if nothing is
    known against it. What cannot be told by name shows when the model is loaded."""
    kind = config.get("model_type")
    if kind in _BIDIRECTIONAL and not config.get("is_decoder"):
        return f"{kind} models look at later tokens too; take a causal language model"
    if config.get("is_encoder_decoder") and not any(
        str(name).endswith("ForCausalLM") for name in config.get("architectures") or ()
    ):
        return f"{kind} models have an encoder of their own; take a causal language model"
    if kind in _NO_LINEAR_LAYERS:
        return f"{kind} models have no torch.nn.Linear layer to adapt; take another"
    if kind in _SCORED_OTHERWISE:
        return f"{kind} models score a text otherwise than they sample it; take another"
    return None


def context_of(config: Mapping[str, Any]) -> int | None:
    """Tokens that prompt and completion may have together, from `config.json`; None if it does not
    say. With longrope no more than before the change of `longrope_limit`."""
    config = _with_text(config)
    keys = ("max_position_embeddings", "n_positions", "max_seq_len")
    found = [config[key] for key in keys if isinstance(config.get(key), int)][:1]
    return min([*found, *longrope_limit(config)], default=None)


def vocabulary_of(config: Mapping[str, Any]) -> int | None:
    """How many tokens the model has embeddings of, likewise; None if it does not say."""
    size = _with_text(config).get("vocab_size")
    return size if isinstance(size, int) else None


def longrope_limit(config: Mapping[str, Any]) -> list[int]:
    """Tokens of a text beyond which longrope turns every position by other angles, the earlier ones
    too (Ding et al. 2024, arXiv 2402.13753): what was sampled before is not what a forward pass
    over the whole text scores. Empty for other rotary embeddings."""
    config = _with_text(config)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    every = [rope, *rope.values()] if isinstance(rope, Mapping) else []
    limits = (
        one.get("original_max_position_embeddings")
        or config.get("original_max_position_embeddings")
        for one in every
        if isinstance(one, Mapping) and one.get("rope_type", one.get("type")) in ("longrope", "su")
    )
    return [limit for limit in limits if isinstance(limit, int)]


def experts_of(config: Mapping[str, Any]) -> int:
    """Experts of a layer, from `config.json`; 0 for a dense model."""
    config = _with_text(config)
    config = {**config, **(config.get("ffn_config") or {})}
    keys = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    counts = [config[key] for key in keys if isinstance(config.get(key), int)]
    return max([count for count in counts if count > 1], default=0)


def _with_text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config, what it says of its text model first."""
    text = config.get("text_config")
    return {**config, **text} if isinstance(text, Mapping) else config


def _is_table(name: str) -> bool:
    """Embeddings, the output head, and experts, which are one tensor in memory, not layers."""
    return any(part in name for part in ("embed", "wte", "wpe", "lm_head", ".experts."))


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


_UNREADABLE = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error),
)


def weight_shapes(folder: Path) -> dict[str, list[int]]:
    """Shapes of the tensors in a folder's safetensors files, from their headers alone; empty when
    there are none, or when one cannot be read."""
    found: dict[str, list[int]] = {}
    try:
        for path in sorted(folder.glob("*.safetensors")):
            found |= {name: tensor["shape"] for name, tensor in _header(path)[0].items()}
    except _UNREADABLE:
        return {}
    return found


def weights_problem(path: Path) -> str:
    """Why a safetensors file is none, or not the whole of one; empty for a whole one."""
    try:
        tensors, start = _header(path)
        size = start + max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
    except _UNREADABLE:
        return f"{path} is damaged, or no safetensors file: its header cannot be read"
    if size != (there := path.stat().st_size):
        return f"{path} is damaged: it has {there:,} bytes of {size:,}; download it again"
    return ""


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """(what the header says of each tensor, where their data begins)."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        if size > _MAX_HEADER:
            raise ValueError("the header is too large")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    for tensor in header.values():
        if not all(isinstance(size, int) for size in tensor["shape"]):
            raise ValueError("a shape is no list of whole numbers")
    return header, 8 + size
