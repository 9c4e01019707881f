"""Architectures that keep a text in ways of their own, each as a tiny random model: samples, scores
and gradients against the plain module with the adapter merged into its weights."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tests.conftest import VOCABULARY, make_adapter
from torch import Tensor

from retrain.errors import ConfigError, InputError
from retrain.models.engine import Rows, pad_ids
from retrain.models.lora import LoraAdapter, target_modules
from retrain.models.modules import ModuleEngine, ModuleSession, UncachedSession
from retrain.models.shape import ModelShape, context_of, experts_of, refused
from retrain.models.tiny import EMBEDDED_PATH
from retrain.preflight import load_checked

CPU = torch.device("cpu")
PROMPTS = [np.arange(3, 3 + n) for n in (5, 9, 2)]
LENGTHS = (4, 1, 7, 3)
PROMPT_INDEX = (0, 1, 1, 2)

MAMBA = {"mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2}
MAMBA2 = {**MAMBA, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1}
DELTA = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}
STATES = {"state_size": 8, "time_step_rank": 4}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3_5_text": DELTA,
    "qwen3_next": {**DELTA, **EXPERTS, "moe_intermediate_size": 16},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "jamba": {**MAMBA, **EXPERTS, "attn_layer_period": 2, "attn_layer_offset": 1},
    "bamba": {**MAMBA2, "attn_layer_indices": [1]},
    "granitemoehybrid": {**MAMBA2, **EXPERTS, "layer_types": ["mamba", "attention"]},
    "falcon_h1": {**MAMBA2, "mamba_d_ssm": 64},
    "mamba": STATES,
    "falcon_mamba": STATES,
    "minimax": {**EXPERTS, "layer_types": ["linear_attention", "full_attention"]},
    "recurrent_gemma": {"lru_width": 32, "attention_window_size": 8, "num_hidden_layers": 3},
    "rwkv": {"attention_hidden_size": 32},
    "llama4_text": {**EXPERTS, "intermediate_size_mlp": 48, "attention_chunk_size": 8},
    "phimoe": EXPERTS,
    "gpt_oss": {**EXPERTS, "sliding_window": 4},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "bart": {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4},
}
UNCACHED = {"minimax", "recurrent_gemma", "rwkv", "bart"}


def module_of(family: str, **more: Any) -> Any:
    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        "init_std": 0.2,
        "pad_token_id": 0,
    }
    if family in {"mamba", "falcon_mamba", "rwkv", "phimoe"}:
        del shape["head_dim"]
    shape = {**shape, **FAMILIES.get(family, {}), **more}
    config = transformers.AutoConfig.for_model(family, **shape)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        module = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return module.eval().requires_grad_(False)


def merged(module: Any, adapter: LoraAdapter) -> tuple[Any, dict[str, Tensor]]:
    """The module with W + scale B A in place of W, and those weights by name, learning."""
    plain = copy.deepcopy(module)
    weights = {}
    for name, layer in target_modules(plain, "all-linear").items():
        factors = adapter.factors[name]
        layer.weight.data += adapter.spec.scale * factors.b @ factors.a
        weights[name] = layer.weight.requires_grad_()
    return plain, weights


def plain_logprobs(module: Any, prompt: np.ndarray, completion: np.ndarray) -> Tensor:
    """(tokens,) of one text, alone and whole."""
    ids = torch.from_numpy(np.concatenate([prompt, completion]))
    logits = module(input_ids=ids[None], use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, ids[len(prompt) :, None])[:, 0]


@pytest.mark.parametrize("family", FAMILIES)
def test_numbers_are_those_of_the_plain_module(family: str) -> None:
    module = module_of(family)
    adapter = make_adapter(module)
    for name in adapter.factors:
        if name.endswith("dt_proj"):
            # Mamba reads the weight and never calls the layer, so no adapter on it can learn.
            adapter.factors[name].b.zero_()
    plain, weights = merged(module, adapter)
    engine = ModuleEngine(module)
    assert engine.sessions is (UncachedSession if family in UNCACHED else ModuleSession)
    rng = np.random.default_rng(0)
    completions = [rng.integers(0, VOCABULARY, size=n) for n in LENGTHS]
    wanted = [
        plain_logprobs(plain, PROMPTS[i], c) for i, c in zip(PROMPT_INDEX, completions, strict=True)
    ]
    scales = [torch.linspace(0.5, 2.0, len(found)) for found in wanted]
    sum((x * w).sum() for x, w in zip(wanted, scales, strict=True)).backward()
    rows = Rows(torch.tensor(PROMPT_INDEX), *pad_ids(completions, CPU))

    for recompute in (False, True):
        adapter.grads.zero_()
        session = engine.session(adapter, train=True, checkpointing=recompute)
        found = session.logprobs(session.prompts(PROMPTS), rows, 1.0)
        for row, expected in zip(found, wanted, strict=True):
            torch.testing.assert_close(row[: len(expected)], expected, rtol=0, atol=1e-3)
        sum((x[: len(w)] * w).sum() for x, w in zip(found, scales, strict=True)).backward()
        session.finish()
        for name, weight in weights.items():
            factors, grad = adapter.factors[name], weight.grad
            if grad is not None and not name.endswith("dt_proj"):
                for ours, exact in (
                    (factors.grad_a, factors.b.T @ grad),
                    (factors.grad_b, grad @ factors.a.T),
                ):
                    error = ours - adapter.spec.scale * exact
                    assert error.norm() <= 1e-3 * (adapter.spec.scale * exact).norm() + 1e-5, name

    session = engine.session(adapter)
    texts = [list(PROMPTS[i]) for i in (0, 0, 1, 2)]
    with torch.no_grad():
        cache, logits = session.prefill(PROMPTS, 13)
        cache.select(torch.tensor([0, 0, 1, 2]))
        logits = logits[[0, 0, 1, 2]]
        for step in range(4):
            if step == 2:
                cache.select(torch.tensor([3, 1]))
                texts, logits = [texts[3], texts[1]], logits[[3, 1]]
            for text, row in zip(texts, logits, strict=True):
                expected = plain(input_ids=torch.tensor(text)[None], use_cache=False).logits[0, -1]
                torch.testing.assert_close(row, expected, rtol=0, atol=2e-3)
            tokens = torch.from_numpy(rng.integers(0, VOCABULARY, size=len(texts)))
            texts = [[*text, int(token)] for text, token in zip(texts, tokens, strict=True)]
            logits = session.decode(cache, tokens)


@pytest.mark.parametrize("family", ["opt", "bart"])
def test_finished_rows_stay_in_the_table_of_positions(family: str) -> None:
    """They wait for others to finish, and go on being decoded until then."""
    session = ModuleEngine(module_of(family, max_position_embeddings=16)).session(None)
    cache, logits = session.prefill([np.arange(3, 18), np.arange(3, 5)], 30)
    alone, wanted = session.prefill([np.arange(3, 5)], 14)
    for token in range(10, 20):
        torch.testing.assert_close(logits[1], wanted[0], rtol=0, atol=1e-3)
        logits = session.decode(cache, torch.tensor([token, token]))
        wanted = session.decode(alone, torch.tensor([token]))


def test_a_base_session_leaves_recomputing_as_it_is() -> None:
    """With a KL penalty one is open beside the one that learns."""
    module = module_of("opt")
    engine, kept = ModuleEngine(module), []
    for base in (False, True):
        session = engine.session(make_adapter(module), train=True, checkpointing=True)
        if base:
            engine.session(None)
        sizes: list[int] = []

        def count(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        rows = Rows(torch.tensor([0]), *pad_ids([np.arange(8)], CPU))
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            session.logprobs(session.prompts(PROMPTS), rows, 1.0)
        kept.append(sum(sizes))
    assert kept[0] == kept[1]


def test_models_that_look_ahead_are_refused() -> None:
    with pytest.raises(InputError, match="bert model depend on later tokens"):
        ModuleEngine(module_of("bert"))
    assert "later tokens" in str(refused({"model_type": "bert"}))
    assert "torch.nn.Linear" in str(refused({"model_type": "gpt2"}))
    t5 = {"is_encoder_decoder": True, "architectures": ["T5ForConditionalGeneration"]}
    assert "encoder" in str(refused({"model_type": "t5", **t5}))
    assert refused({"model_type": "bert", "is_decoder": True}) is None
    assert refused({"model_type": "qwen3_next"}) is None
    causal = ModuleEngine(module_of("bert", is_decoder=True))
    assert causal.sessions is ModuleSession


def test_longrope_ends_where_its_angles_change() -> None:
    """Beyond it a longer neighbour would change a row, and a row's end its beginning."""
    factors = {"type": "longrope", "long_factor": [4.0] * 4, "short_factor": [1.0] * 4}
    old = {"max_position_embeddings": 4096, "original_max_position_embeddings": 512}
    assert context_of({**old, "rope_scaling": factors}) == 512
    assert context_of({**old, "rope_scaling": {**factors, "type": "su"}}) == 512
    assert context_of({**old, "rope_scaling": {"type": "yarn", "factor": 8.0}}) == 4096
    module = module_of(
        "phi3", original_max_position_embeddings=16, rope_scaling=factors, head_dim=8
    )
    assert context_of(module.config.to_dict()) == 16


def test_experts_are_counted_and_not_adapted() -> None:
    module = module_of("gpt_oss")
    assert experts_of(module.config.to_dict()) == 4
    assert experts_of({"num_local_experts": 0, "num_experts": 1}) == 0
    assert not any("expert" in name for name in target_modules(module, "all-linear"))
    stored = {f"model.layers.0.mlp.experts.{i}.up_proj.weight": (48, 32) for i in range(4)}
    shape = ModelShape.of({}, {**stored, "model.layers.0.self_attn.q_proj.weight": (32, 32)})
    assert shape.adapter_parameters(2, "all-linear") == 2 * (32 + 32)


def model_folder(folder: Path, **config: Any) -> str:
    """A folder that looks like a model; for a check that reads no weights."""
    folder.mkdir()
    for file in EMBEDDED_PATH.iterdir():
        if "token" in file.name or file.name == "chat_template.jinja":
            shutil.copy(file, folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    return str(folder)


def checked(folder: str, max_tokens: int = 64) -> list[str]:
    path = Path(folder) / "run.toml"
    path.write_text(
        f"[model]\nmodel = {json.dumps(folder)}\n[training]\nmax_tokens = {max_tokens}\n"
        '[data]\nsource = "arithmetic"\n[reward]\ntype = "match"\n'
    )
    return load_checked(path)[1]


def test_what_a_config_tells_is_told_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="bert models look at later tokens too"):
        checked(model_folder(tmp_path / "bert", model_type="bert"))
    longrope = {"rope_type": "longrope", "original_max_position_embeddings": 128}
    phi = model_folder(tmp_path / "phi", max_position_embeddings=4096, rope_scaling=longrope)
    with pytest.raises(ConfigError, match=r"holds 128 in all.*angles of all their positions"):
        checked(phi, max_tokens=512)
    mixture = model_folder(tmp_path / "moe", model_type="mixtral", num_local_experts=8)
    assert any("the 8 experts of a layer" in warning for warning in checked(mixture))
