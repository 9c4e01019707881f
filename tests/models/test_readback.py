"""Exported adapters, read by PEFT itself: every tensor arrives, and no layer lacks one."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file

from retrain.errors import InputError
from retrain.models.adapters.readback import readable_layers
from retrain.models.lora import LoraAdapter, LoraSpec, short_names, target_modules

SHAPE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LINEAR = {"linear_num_value_heads": 4, "linear_num_key_heads": 2}
LINEAR |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
MLA = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4}
DEEPSEEK = {**MLA, "v_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2}
DEEPSEEK |= {"moe_intermediate_size": 16, "first_k_dense_replace": 1, "num_key_value_heads": 4}
MAMBA = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1}
GATED = {"gate_proj", "up_proj", "down_proj"}
KINDS: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "DeepseekV3": ("Config", {**DEEPSEEK, "n_group": 1, "topk_group": 1}, GATED),
    "Qwen3Next": (
        "Config",
        {**EXPERTS, **LINEAR, "shared_expert_intermediate_size": 16}
        | {"layer_types": ["linear_attention", "full_attention"]},
        GATED,
    ),
    "Qwen3Moe": ("Config", EXPERTS, set()),
    "FalconH1": ("Config", {**MAMBA, "mamba_d_state": 8}, {"out_proj"}),
    # Layers called 0, 1, 2 beside those of the decoder.
    "Gemma3n": (
        "TextConfig",
        {"intermediate_size": [48, 48], "vocab_size_per_layer_input": 97, "laurel_rank": 4}
        | {"hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0}
        | {"layer_types": ["sliding_attention", "full_attention"]}
        | {"activation_sparsity_pattern": [0.0, 0.0]},
        set(),
    ),
}


def make(kind: str) -> Any:
    config, more, _ = KINDS[kind]
    with torch.random.fork_rng():
        settings = getattr(transformers, kind + config)(**{**SHAPE, **more})
        return getattr(transformers, f"{kind}ForCausalLM")(settings)


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_arrives(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module, spec, lost = make(kind), LoraSpec(4, 8.0), KINDS[kind][2]
    layers = readable_layers(module, spec)
    every = target_modules(module, "all-linear")
    left_out = {name.rsplit(".", 1)[-1] for name in every.keys() - layers.keys()}
    assert left_out == lost
    assert ("PEFT would not read back" in caplog.text) == bool(lost)
    shapes = {name: (layer.out_features, layer.in_features) for name, layer in layers.items()}
    names = short_names(module, list(layers))
    adapter = LoraAdapter(spec, shapes, 3, torch.device("cpu"), names, "random")
    adapter.params.normal_(generator=torch.Generator().manual_seed(0))
    adapter.save(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = PeftModel.from_pretrained(copy.deepcopy(module), str(tmp_path))
    arrived = get_peft_model_state_dict(model, save_embedding_layers=False)
    written = load_file(tmp_path / "adapter_model.safetensors")
    assert arrived.keys() == written.keys()
    assert all(torch.equal(arrived[name], tensor) for name, tensor in written.items())


def test_layers_that_are_asked_for_by_name_are_not_left_out() -> None:
    message = (
        r"model\.lora_targets: PEFT does not read .* of gate_proj back for a deepseek_v3; .*o_p"
    )
    with pytest.raises(InputError, match=message):
        readable_layers(make("DeepseekV3"), LoraSpec(4, 8.0, ("gate_proj", "o_proj")))
    with pytest.raises(InputError, match=r"out_proj back for a falcon_h1$"):
        readable_layers(make("FalconH1"), LoraSpec(4, 8.0, ("out_proj",)))
