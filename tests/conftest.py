"""How tests are run; small random models of several architectures.

Torch and transformers are imported where they are used: most single files, and the process that
only hands out tests, need neither.
"""

from __future__ import annotations

import gc
import os
import signal
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from retrain.models.lora import LoraAdapter

# A property draws the same examples every time, so that a change is judged by what it changes;
# `make fuzz` draws new ones.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("fuzz", deadline=None, max_examples=1000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

# What `nohup` or a shell's background job ignores, every program that a test starts would ignore.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Every program that a test starts would compile the whole package again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# What is imported now stays: no collection needs to walk through all of torch, now or later.
gc.disable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    gc.freeze()
    gc.enable()


TOGETHER = {
    *("tests/rewards/test_math_reward.py", "tests/integration/test_disasters.py"),
    *("tests/integration/test_campaign.py", "tests/integration/test_squeeze_campaign.py"),
    "tests/tracking/test_sync.py",
}
"""Files whose tests share what takes long to make: one process runs all of them."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadgroup`: the files in `TOGETHER` as wholes, all other tests one by one. (The
    mark `xdist_group` does nothing with pytest 9.2 and pytest-xdist 3.8.)"""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            return path if path in TOGETHER else nodeid

    return ByFile(config, log) if config.getvalue("dist") == "loadgroup" else None


VOCABULARY = 97


def make_module(kind: str, tied: bool = True) -> Any:
    """A small random causal LM: grouped-query attention, weights large enough to matter."""
    import torch
    import transformers

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
            module: Any = transformers.Qwen3ForCausalLM(
                transformers.Qwen3Config(head_dim=8, **shape)
            )
        elif kind == "llama":
            module = transformers.LlamaForCausalLM(
                transformers.LlamaConfig(attention_bias=True, mlp_bias=True, **shape)
            )
        elif kind == "neox":
            module = transformers.GPTNeoXForCausalLM(
                transformers.GPTNeoXConfig(
                    **{k: v for k, v in shape.items() if k != "num_key_value_heads"}
                )
            )
        elif kind == "gemma2":
            module = transformers.Gemma2ForCausalLM(
                transformers.Gemma2Config(head_dim=8, sliding_window=4, **shape)
            )
        elif kind == "qwen2":
            module = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**shape))
        else:
            module = transformers.GPT2LMHeadModel(
                transformers.GPT2Config(
                    vocab_size=VOCABULARY, n_positions=128, n_embd=32, n_layer=2, n_head=4
                )
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
    import torch

    from retrain.models.lora import LoraAdapter, LoraSpec, short_names, target_modules

    cpu = torch.device("cpu")
    chosen = target_modules(module, targets)
    shapes = {name: (layer.out_features, layer.in_features) for name, layer in chosen.items()}
    spec = LoraSpec(rank, 8.0, targets if isinstance(targets, str) else tuple(targets))
    adapter = LoraAdapter(
        spec, shapes, 3, cpu, target_names=short_names(module, list(chosen)), base_name="random"
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
