from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.conftest import make_adapter, make_module

from retrain.errors import InputError
from retrain.models.adapters.reader import open_adapter
from retrain.models.lora import LoraSpec, short_names, target_modules


def test_all_linear_is_every_linear_layer_but_the_head() -> None:
    module = make_module("qwen3", tied=False)
    names = set(target_modules(module, "all-linear"))
    assert len(names) == 2 * 7
    assert "lm_head" not in names
    assert "model.layers.1.mlp.down_proj" in names


def test_targets_by_last_part_or_by_path() -> None:
    module = make_module("qwen3")
    assert set(target_modules(module, ["q_proj"])) == {
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
    }
    assert set(target_modules(module, ["layers.1.self_attn.q_proj"])) == {
        "model.layers.1.self_attn.q_proj"
    }


def test_unknown_target_names_what_the_model_has() -> None:
    with pytest.raises(InputError, match=r"no linear layer is called 'wq'.*q_proj"):
        target_modules(make_module("llama"), ["q_proj", "wq"])


def test_a_model_without_linear_layers_is_refused() -> None:
    with pytest.raises(InputError, match=r"no torch.nn.Linear"):
        target_modules(make_module("gpt2"), "all-linear")


def test_short_names_only_when_they_select_the_same_layers() -> None:
    module = make_module("qwen3")
    every = list(target_modules(module, "all-linear"))
    assert "q_proj" in short_names(module, every)
    one = list(target_modules(module, ["layers.1.self_attn.q_proj"]))
    assert short_names(module, one) == one


def test_initial_values_are_keyed_and_change_nothing() -> None:
    module = make_module("qwen3")
    first, second = make_adapter(module, noise=0.0), make_adapter(module, noise=0.0)
    assert torch.equal(first.params, second.params)
    for name, layer in target_modules(module, "all-linear").items():
        factors = first.factors[name]
        assert not factors.b.any()
        bound = 1 / math.sqrt(layer.in_features)
        assert factors.a.abs().max() <= bound
        # A uniform on [-bound, bound] has standard deviation bound / sqrt 3.
        assert abs(float(factors.a.std()) - bound / math.sqrt(3)) < 0.2 * bound


def test_save_and_load_are_exact(tmp_path: Path) -> None:
    module = make_module("llama")
    saved, loaded = make_adapter(module), make_adapter(module, noise=0.0)
    saved.save(tmp_path)
    loaded.load(tmp_path)
    assert torch.equal(saved.params, loaded.params)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (4, 8, "LORA")


@pytest.mark.parametrize(
    "settings",
    [
        {"rank_pattern": {"q_proj": 3, r"1\.mlp\.up_proj": 6}},
        {"alpha_pattern": {"mlp.*": 5, r"0\.self_attn\.q_proj": 1}},
        {"use_rslora": True, "rank_pattern": {"down_proj": 2}, "alpha_pattern": {"o_proj": 3}},
    ],
)
def test_patterns_mean_what_they_mean_to_peft(settings: dict[str, Any], tmp_path: Path) -> None:
    module = make_module("qwen2")
    targets = ["q_proj", "o_proj", "up_proj", "down_proj"]
    theirs: Any = get_peft_model(
        make_module("qwen2"),
        LoraConfig(r=4, lora_alpha=9, target_modules=targets, init_lora_weights=False, **settings),
    )
    theirs.save_pretrained(tmp_path)
    ours = make_adapter(module, rank=6, targets=targets)
    with open_adapter(tmp_path) as adapter:
        ours.take(adapter)
    for name, factors in ours.factors.items():
        layer = theirs.base_model.model.get_submodule(name)
        product = ours.spec.scale * factors.b @ factors.a
        torch.testing.assert_close(product, layer.get_delta_weight("default"))
        # Training cannot raise the rank of a layer: where both are zero, so is their gradient.
        rank = layer.r["default"]
        assert not factors.a[rank:].any()
        assert not factors.b[:, rank:].any()


def test_a_plain_adapter_is_taken_bit_for_bit(tmp_path: Path) -> None:
    module = make_module("llama")
    saved, taken = make_adapter(module), make_adapter(module, noise=0.0)
    saved.save(tmp_path)
    with open_adapter(tmp_path) as adapter:
        taken.take(adapter)
    assert torch.equal(saved.params, taken.params)


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_files_are_for_whom_the_umask_says(umask: int, tmp_path: Path) -> None:
    adapter = make_adapter(make_module("llama"))
    before = os.umask(umask)
    try:
        adapter.save(tmp_path)
        adapter.save(tmp_path)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(
        ["adapter_config.json", "adapter_model.safetensors"], 0o666 & ~umask
    )


def test_loading_another_shape_names_the_layer_and_the_remedy(tmp_path: Path) -> None:
    module = make_module("llama")
    make_adapter(module, rank=4).save(tmp_path)
    with pytest.raises(InputError, match=r"lora_A\.weight is of shape .*lora_rank"):
        make_adapter(module, rank=8).load(tmp_path)
    with pytest.raises(InputError, match="layers this run does not adapt"):
        make_adapter(module, rank=4, targets=["q_proj"]).load(tmp_path)


def test_scale() -> None:
    assert LoraSpec(8, 16.0).scale == 2.0
