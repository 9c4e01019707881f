"""Small random models of several architectures, and policies on them."""

from __future__ import annotations

import os
import signal
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from retrain.models.lora import LoraAdapter, LoraSpec, short_names, target_modules

# A property draws the same examples every time, so that a change is judged by what it changes;
# `make fuzz` draws new ones.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("fuzz", deadline=None, max_examples=1000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

# What `nohup` or a shell's background job ignores, every program that a test starts would ignore.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

VOCABULARY = 97
CPU = torch.device("cpu")


def make_module(kind: str, tied: bool = True) -> Any:
    """A small random causal LM: grouped-query attention, weights large enough to matter."""
    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
    }
    with torch.random.fork_rng():
        torch.manual_seed(7)
        if kind == "qwen3":
            module: Any = Qwen3ForCausalLM(Qwen3Config(head_dim=8, **shape))
        elif kind == "llama":
            module = LlamaForCausalLM(LlamaConfig(attention_bias=True, mlp_bias=True, **shape))
        elif kind == "neox":
            module = GPTNeoXForCausalLM(
                GPTNeoXConfig(**{k: v for k, v in shape.items() if k != "num_key_value_heads"})
            )
        elif kind == "gemma2":
            module = Gemma2ForCausalLM(Gemma2Config(head_dim=8, sliding_window=4, **shape))
        elif kind == "qwen2":
            module = Qwen2ForCausalLM(Qwen2Config(**shape))
        else:
            module = GPT2LMHeadModel(
                GPT2Config(vocab_size=VOCABULARY, n_positions=128, n_embd=32, n_layer=2, n_head=4)
            )
        with torch.no_grad():
            for name, weight in module.named_parameters():
                if "norm" in name:
                    weight.add_(0.1 * torch.randn_like(weight))
    return module.eval().requires_grad_(False)


def make_adapter(
    module: Any, rank: int = 4, targets: str | list[str] = "all-linear", noise: float = 0.05
) -> LoraAdapter:
    """An adapter whose B factors are not zero, so that it changes every output."""
    chosen = target_modules(module, targets)
    shapes = {name: (layer.out_features, layer.in_features) for name, layer in chosen.items()}
    spec = LoraSpec(rank, 8.0, targets if isinstance(targets, str) else tuple(targets))
    adapter = LoraAdapter(
        spec, shapes, 3, CPU, target_names=short_names(module, list(chosen)), base_name="random"
    )
    noise_values = np.random.default_rng(5).normal(0, noise, adapter.params.shape)
    adapter.params.add_(torch.from_numpy(noise_values).float())
    return adapter


@pytest.fixture(scope="session", params=["qwen3", "llama", "qwen2"])
def llama_like(request: pytest.FixtureRequest) -> Any:
    return make_module(request.param)


@pytest.fixture(scope="session", params=[("qwen3", True), ("qwen3", False), ("llama", False)])
def any_module(request: pytest.FixtureRequest) -> Any:
    return make_module(*request.param)
