"""What PEFT itself makes of the written adapters: the outputs of whole models."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from retrain.models.adapters.settings import _CARRIED, _INTERPRETED, _REFUSED
from retrain.models.lora import LoraAdapter, LoraSpec
from retrain.squeeze import analyze_adapter, compress_adapter
from tests.conftest import make_adapter, make_module
from tests.squeeze.adapters import best_approximation, read_config

TOKENS = torch.arange(1, 25).reshape(2, 12)
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def base() -> Any:
    return make_module("llama", tied=False).double()


def trained(model: Any, seed: int = 1) -> None:
    """Give every factor values, as training would: falling with the rank, so that a cut is good,
    and of different sizes, so that modules want different ranks."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias") and weight.requires_grad:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
            elif "lora_" in name:
                size = 0.1 + torch.rand((), generator=generator).double()
                noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
                axis = 0 if "_A" in name else 1
                decay = 0.7 ** torch.arange(weight.shape[axis], dtype=torch.float64)
                shape = [1] * weight.dim()
                shape[axis] = -1
                weight.copy_(0.5 * size * noise * decay.reshape(shape))


def saved(model: Any, folder: Path, **config: Any) -> Path:
    options = {"r": 8, "lora_alpha": 12, "target_modules": LINEAR, **config}
    peft_model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))
    trained(peft_model)
    peft_model.save_pretrained(str(folder))
    return folder


def outputs(model: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model.eval()(TOKENS).logits
    return logits


def truncated_outputs(folder: Path, ranks: Callable[[str], int]) -> Tensor:
    """Outputs of the base model with PEFT's own dense updates, each cut by its full SVD."""
    model = PeftModel.from_pretrained(base(), str(folder))
    with torch.no_grad():
        for name, layer in model.named_modules():
            if hasattr(layer, "lora_A") and hasattr(layer, "get_delta_weight"):
                delta = layer.get_delta_weight("default")
                flat = best_approximation(
                    delta.flatten(1).double(), ranks(name.removeprefix("base_model.model."))
                )
                layer.get_base_layer().weight.add_(flat.reshape(delta.shape))
                for factors in (layer.lora_B, layer.lora_embedding_B):
                    for factor in factors.values():
                        getattr(factor, "weight", factor).zero_()
    return outputs(model)


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"q_proj": 4, r"layers\.1\.mlp\..*": 6},
        "alpha_pattern": {"^model.layers.0.self_attn.v_proj": 40, "down_proj": 3},
    },
    "rslora patterns": {
        "use_rslora": True,
        "rank_pattern": {"o_proj": 2, "v_proj": 16},
        "alpha_pattern": {"k_proj": 5},
    },
    "alpha below rank": {"lora_alpha": 1},
    "embedding": {"target_modules": [*LINEAR, "embed_tokens", "lm_head"]},
    "layers": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "bias": {"lora_bias": True, "bias": "lora_only"},
}


@pytest.mark.filterwarnings("ignore:Adapter 'default'", "ignore:Setting `save_embedding")
@pytest.mark.parametrize("allocation", ["uniform", "per_module"])
@pytest.mark.parametrize("case", CASES)
def test_outputs_are_those_of_the_truncated_product(
    tmp_path: Path, case: str, allocation: Any
) -> None:
    source = saved(base(), tmp_path / "source", **CASES[case])
    result = compress_adapter(source, tmp_path / "cut", rank=3, allocation=allocation)
    expected = truncated_outputs(source, lambda name: result.ranks[name])
    loaded = PeftModel.from_pretrained(base(), str(result.output_path))
    torch.testing.assert_close(outputs(loaded), expected, rtol=1e-6, atol=1e-6)
    # Cutting changed something, and far less than the adapter does.
    full = outputs(PeftModel.from_pretrained(base(), str(source)))
    assert 0 < (expected - full).norm() < 0.7 * (outputs(base()) - full).norm()
    if allocation == "per_module":
        assert len(set(result.ranks.values())) > 1


def test_at_the_full_rank_nothing_changes(tmp_path: Path) -> None:
    source = saved(base(), tmp_path / "source", **CASES["rslora patterns"])
    result = compress_adapter(source, tmp_path / "cut", rank=16)
    assert result.pooled_variance == 1.0
    loaded = PeftModel.from_pretrained(base(), str(result.output_path))
    expected = outputs(PeftModel.from_pretrained(base(), str(source)))
    torch.testing.assert_close(outputs(loaded), expected, rtol=1e-6, atol=1e-6)


def test_every_other_key_of_the_config_is_carried_over(tmp_path: Path) -> None:
    source = saved(base(), tmp_path / "source", lora_dropout=0.25, revision="abc")
    written = read_config(compress_adapter(source, tmp_path / "cut", rank=3).output_path)
    before = read_config(source)
    changed = {key for key in before if before[key] != written[key]}
    assert set(written) == set(before)
    assert changed == {"r", "lora_alpha"}
    assert (written["r"], written["lora_alpha"]) == (3, 4.5)


def test_whole_layers_beside_the_factors_are_copied(tmp_path: Path) -> None:
    model = base()
    peft_model = get_peft_model(
        model,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=8,
            lora_alpha=16,
            target_modules=["q_proj"],
            modules_to_save=["lm_head"],
            trainable_token_indices={"embed_tokens": [1, 2, 5]},
        ),
    )
    trained(peft_model)
    with torch.no_grad():
        for name, weight in peft_model.named_parameters():
            if "modules_to_save" in name or "trainable_tokens" in name:
                weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(4)))
    peft_model.save_pretrained(str(tmp_path / "source"))
    result = compress_adapter(tmp_path / "source", tmp_path / "cut", rank=8)
    assert len(result.carried) == 2
    loaded = PeftModel.from_pretrained(base(), str(result.output_path))
    torch.testing.assert_close(outputs(loaded), outputs(peft_model), rtol=1e-6, atol=1e-6)


def test_an_adapter_of_ours(tmp_path: Path) -> None:
    module = make_module("qwen3")
    ours = make_adapter(module, rank=4)
    ours.save(tmp_path / "source")
    result = compress_adapter(tmp_path / "source", tmp_path / "cut", rank=2)
    chosen = {name: tuple(f.b.shape[:1]) + tuple(f.a.shape[1:]) for name, f in ours.factors.items()}
    again = LoraAdapter(
        LoraSpec(2, ours.spec.alpha / 2, "all-linear"), chosen, 0, torch.device("cpu"), [], ""
    )
    again.load(result.output_path)
    assert read_config(result.output_path)["lora_alpha"] == again.spec.alpha
    for name, factors in ours.factors.items():
        dense = ours.spec.scale * factors.b.double() @ factors.a.double()
        cut = again.spec.scale * again.factors[name].b.double() @ again.factors[name].a.double()
        torch.testing.assert_close(cut, best_approximation(dense, 2), rtol=0, atol=1e-6)
    PeftModel.from_pretrained(make_module("qwen3"), str(result.output_path))


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 12, 3, padding=1)
        self.point = nn.Conv2d(12, 6, 1)
        self.line = nn.Conv1d(6, 9, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.line(self.point(self.wide(x)).flatten(2))
        return out


def test_convolutions(tmp_path: Path) -> None:
    def model() -> Convolutions:
        torch.manual_seed(3)
        return Convolutions().double()

    config = LoraConfig(r=6, lora_alpha=6, target_modules=["wide", "point", "line"])
    full = get_peft_model(model(), config)  # type: ignore[arg-type]
    trained(full)
    full.save_pretrained(str(tmp_path / "source"))
    result = compress_adapter(tmp_path / "source", tmp_path / "cut", rank=4)
    loaded = PeftModel.from_pretrained(model(), str(result.output_path))  # type: ignore[arg-type]
    for name in ("wide", "point", "line"):
        full_layer, cut_layer = (getattr(each.base_model.model, name) for each in (full, loaded))
        delta = full_layer.get_delta_weight("default")
        expected = best_approximation(delta.flatten(1), 4).reshape(delta.shape)
        torch.testing.assert_close(cut_layer.get_delta_weight("default"), expected)


def test_names_are_matched_from_their_start(tmp_path: Path) -> None:
    """`layers.1.x` must not lend its rank to `layers.11.x` or to `other.layers.1.x`, and a dot in a
    name is a dot: PEFT reads pattern keys as regular expressions."""

    def linear() -> nn.Module:
        return nn.Linear(8, 8, bias=False)

    def model() -> nn.Module:
        torch.manual_seed(0)
        one = nn.ModuleDict({"1": linear(), "11": linear()})
        other = nn.ModuleDict({"a": nn.ModuleDict({"1": linear()})})
        return nn.ModuleDict({"a": one, "ax1": linear(), "b": other}).double()

    names = ["a.1", "a.11", "ax1", "b.a.1"]
    config = LoraConfig(
        r=6,
        lora_alpha=6,
        target_modules=["1", "11", "ax1"],
        rank_pattern={r"^a\.1": 2, "a.11": 3, "b.a.1": 5},
    )
    full = get_peft_model(model(), config)  # type: ignore[arg-type]
    trained(full)
    full.save_pretrained(str(tmp_path / "source"))
    result = compress_adapter(tmp_path / "source", tmp_path / "cut", rank=4)
    assert dict(result.ranks) == dict(zip(names, (2, 3, 4, 4), strict=True))
    loaded = PeftModel.from_pretrained(model(), str(result.output_path))  # type: ignore[arg-type]
    for name in names:
        before = full.base_model.model.get_submodule(name).get_delta_weight("default")
        after = loaded.base_model.model.get_submodule(name).get_delta_weight("default")
        torch.testing.assert_close(after, best_approximation(before, result.ranks[name]))


def test_several_adapters_in_subfolders(tmp_path: Path) -> None:
    model = get_peft_model(
        base(), LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj"])
    )
    model.add_adapter("other", LoraConfig(r=6, lora_alpha=3, target_modules=["v_proj"]))
    trained(model)
    model.save_pretrained(str(tmp_path))
    assert analyze_adapter(tmp_path).source_rank == 4
    assert analyze_adapter(tmp_path, adapter_name="default").source_rank == 4
    other = analyze_adapter(tmp_path, adapter_name="other")
    assert other.source_rank == 6
    assert {module.module_type for module in other.modules} == {"v_proj"}


def test_every_setting_of_the_installed_peft_is_known() -> None:
    """A PEFT that brings a new setting must be looked at before its adapters are taken."""
    assert set(LoraConfig().to_dict()) <= _INTERPRETED | _CARRIED | set(_REFUSED)


@pytest.mark.parametrize("seed", range(3))
def test_scaling_is_peft_s(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    config = {
        "r": int(rng.integers(2, 9)),
        "lora_alpha": int(rng.integers(1, 40)),
        "use_rslora": bool(seed % 2),
        "rank_pattern": {"mlp.*": 5, "q_proj": 3},
        "alpha_pattern": {r"0\.mlp.up_proj": 7},
    }
    source = saved(base(), tmp_path / "s", **config)
    model = PeftModel.from_pretrained(base(), str(source))
    for module in analyze_adapter(source).modules:
        layer = model.base_model.model.get_submodule(module.name)
        assert math.isclose(layer.scaling["default"], module.scaling)
        assert layer.r["default"] == module.rank
