"""Sizes that fit, and estimates that count what is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from retrain.models.factored import FactoredEngine
from retrain.models.shape import ModelShape, weight_shapes
from retrain.policies.local.memory import (
    ENOUGH_TOKENS,
    LARGEST_MICRO_BATCH,
    MemoryModel,
    engine_kind,
    fit_update,
)
from tests.conftest import make_adapter, make_module

GIB = 2**30
QWEN3_4B = {
    "model_type": "qwen3",
    "num_hidden_layers": 36,
    "hidden_size": 2560,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 9728,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}


def qwen3_4b(room: int = 2560) -> MemoryModel:
    shape = ModelShape.of(QWEN3_4B, {})
    return MemoryModel(shape, "factored", 2, shape.adapter_parameters(32, "all-linear"), room)


def test_a_model_that_everyone_knows() -> None:
    shape = ModelShape.of(QWEN3_4B, {})
    assert shape.parameters == pytest.approx(4.02e9, rel=0.01)
    assert shape.adapter_parameters(32, "all-linear") == 66_060_288
    assert shape.adapter_parameters(32, ["q_proj", "v_proj"]) == 11_796_480
    # 2 x 36 layers x 8 heads x 128 numbers of 2 bytes a token, and the draw's 20 bytes a word.
    assert qwen3_4b(1000).cache(2) == 2 * (1000 * 147_456 + 151936 * 20)


@pytest.mark.parametrize("kind", ["qwen3", "llama", "qwen2", "neox", "gemma2"])
def test_shapes_are_those_of_the_module(kind: str, tmp_path: Path) -> None:
    module = make_module(kind)
    module.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    shape = ModelShape.of(config, weight_shapes(tmp_path))
    assert shape.adapter_parameters(4, "all-linear") == make_adapter(module).num_params
    assert shape.parameters == sum(p.numel() for p in module.parameters())
    assert (shape.layers, shape.heads) == (2, 4)


def test_damaged_weights_have_no_shapes(tmp_path: Path) -> None:
    save_file({"a.weight": torch.zeros(2, 3)}, tmp_path / "model.safetensors")
    assert weight_shapes(tmp_path) == {"a.weight": [2, 3]}
    (tmp_path / "more.safetensors").write_bytes(b"\xff" * 20)
    assert weight_shapes(tmp_path) == {}


def test_the_cache_takes_what_is_said() -> None:
    module = make_module("qwen3")
    session = FactoredEngine(module).session(None)
    with torch.no_grad():
        cache, _ = session.prefill([torch.arange(5).numpy()] * 3, 40)
    held = sum(t.numel() * t.element_size() for t in [*cache.keys, *cache.values])
    model = MemoryModel(ModelShape.of(module.config.to_dict(), {}), "factored", 4, 0, 40)
    assert model.cache(3) == held + 3 * 20 * module.config.vocab_size


def test_a_4b_model_on_usual_gpus() -> None:
    model = qwen3_4b()
    assert model.rows_that_fit(128, 80 * GIB, "cuda") == 128
    assert 20 < model.rows_that_fit(128, 24 * GIB, "cuda") < 40
    assert model.rows_that_fit(128, 8 * GIB, "cuda") == 1
    tokens, recomputed = model.update_that_fits(80 * GIB, "cuda", None)
    assert tokens >= ENOUGH_TOKENS
    tokens, recomputed = model.update_that_fits(24 * GIB, "cuda", None)
    assert recomputed
    assert tokens >= 4096


@given(
    st.integers(0, 10**9),
    st.integers(1, 10**7),
    st.floats(0.01, 1.0),
    st.integers(0, 10**12),
    st.sampled_from(["cpu", "cuda"]),
    st.sampled_from([None, True, False]),
)
def test_what_is_found_fits_and_is_not_too_little(
    fixed: int, per_token: int, share: float, left: int, device: str, given_: bool | None
) -> None:
    def measure(tokens: int, checkpointing: bool) -> int:
        return fixed + int(tokens * per_token * (share if checkpointing else 1.0))

    tokens, recomputed = fit_update(measure, left, device, given_)
    most = 768 if device == "cpu" else LARGEST_MICRO_BATCH
    assert 1 <= tokens <= most
    if given_ is not None:
        assert recomputed == given_
    if tokens > 1:
        assert measure(tokens, recomputed) <= left + 2 * per_token
    if tokens < most and left > measure(1, True) and left > measure(1, False):
        assert measure(tokens + 2, recomputed) > left - 2 * per_token
    if given_ is None and recomputed:
        assert measure(min(most, ENOUGH_TOKENS), False) > left - 2 * per_token


@given(st.integers(1, 4096), st.booleans())
def test_more_tokens_take_more_and_recomputing_takes_less(tokens: int, recomputed: bool) -> None:
    model = qwen3_4b()
    assert model.update(tokens + 1, recomputed) > model.update(tokens, recomputed)
    assert model.update(tokens, True) < model.update(tokens, False)


def test_engines_by_kind_and_size() -> None:
    assert engine_kind("qwen3", 10**6, "cpu", 4) == "fused"
    assert engine_kind("qwen3", 10**9, "cpu", 4) == "factored"
    assert engine_kind("qwen3", 10**6, "cpu", 2) == "factored"
    assert engine_kind("llama", 10**6, "cuda", 2) == "factored"
    assert engine_kind("gemma2", 10**6, "cpu", 4) == "modules"
