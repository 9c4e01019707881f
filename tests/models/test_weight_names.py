"""Checkpoints that do not hold what their config.json describes are refused, by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.training.runs import config
from tests.training.test_real_models import make_folder

from retrain.errors import InputError
from retrain.models.folder import inspect_model
from retrain.policies.local.base import load_base

Tensors = dict[str, torch.Tensor]
Q = "model.layers.1.self_attn.q_proj"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("whole") / "llama", "llama")


def changed(
    whole: Path, to: Path, change: Callable[[Tensors], Any] = lambda _: None, **settings: Any
) -> Path:
    """A copy with other tensors or another config."""
    shutil.copytree(whole, to)
    tensors = load_file(whole / "model.safetensors")
    tensors = change(tensors) or tensors
    save_file(tensors, to / "model.safetensors", {"format": "pt"})
    path = to / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return to


def load(folder: Path) -> Any:
    wanted = config(model={"model": str(folder)})
    return load_base(wanted.model, wanted.backend).module


def explained(folder: Path) -> str:
    inspect_model.cache_clear()
    return "; ".join(inspect_model(str(folder), folder.parent).problems)


def without(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {k: v for k, v in tensors.items() if not k.startswith(names)}


def renamed(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


def with_more(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: torch.ones(2) for name in names}


ONE_LESS = f"1 are missing \\({Q}.weight\\)"


@pytest.mark.parametrize(
    ("change", "settings", "message", "is_explained"),
    [
        (without(f"{Q}.weight"), {}, ONE_LESS, True),
        (renamed("module."), {}, r"are missing .*not in the model \(module\.", True),
        (renamed("base_model.model."), {}, r"are missing .*not in the model \(base_model", True),
        (None, {"num_hidden_layers": 3}, r"9 are missing \(model\.layers\.2\.", True),
        (None, {"num_hidden_layers": 1}, r"9 are not in the model \(model\.layers\.1\.", False),
        (None, {"attention_bias": True}, r"8 are missing \(.*k_proj\.bias", False),
        (with_more(f"{Q}.bias"), {}, r"1 are not in the model \(.*q_proj\.bias\)", False),
        (without("lm_head"), {}, r"1 are missing \(lm_head\.weight\)", False),
        (without("model.embed_tokens"), {}, r"1 are missing \(model\.embed_tokens", False),
        (
            None,
            {"num_key_value_heads": 4},
            r"k_proj\.weight: \(32, 32\) instead|have another",
            True,
        ),
        (
            None,
            {"intermediate_size": 64},
            r"another shape \(.*\(32, 48\) instead of \(32, 64\)",
            True,
        ),
        (None, {"model_type": "qwen3", "head_dim": 8}, r"4 are missing \(.*k_norm\.weight", False),
        (with_more(f"{Q}.weight_scale_inv"), {}, r"not in the model \(.*weight_scale_inv", False),
        (
            lambda held: {k.replace("model.layers", "transformer.h"): v for k, v in held.items()},
            {},
            r"18 are missing .*; 18 are not in the model \(transformer\.h",
            True,
        ),
    ],
)
def test_what_is_missing_is_not_drawn_at_random(
    change: Any,
    settings: dict[str, Any],
    message: str,
    is_explained: bool,
    whole: Path,
    tmp_path: Path,
) -> None:
    folder = changed(whole, tmp_path / "other", change or (lambda _: None), **settings)
    with pytest.raises(InputError, match=message):
        load(folder)
    assert ("does not hold the tensors" in explained(folder)) == is_explained


@pytest.mark.parametrize(
    ("change", "settings"),
    [
        (None, {}),
        (
            with_more("model.layers.0.self_attn.rotary_emb.inv_freq", "mtp.layers.0.w", "v_head.b"),
            {},
        ),
        (with_more("model.layers.2.mlp.w"), {"num_nextn_predict_layers": 1}),
        (with_more("visual.patch.weight", "model.layers.0.self_attn.k_scale"), {}),
        (without("lm_head"), {"tie_word_embeddings": True}),
        # Saved from the model without its head.
        (
            lambda held: {name.removeprefix("model."): tensor for name, tensor in held.items()},
            {},
        ),
    ],
)
def test_what_does_no_harm_is_taken(
    change: Any, settings: dict[str, Any], whole: Path, tmp_path: Path
) -> None:
    folder = changed(whole, tmp_path / "other", change or (lambda _: None), **settings)
    assert explained(folder) == ""
    loaded, expected = load(folder), load_file(whole / "model.safetensors")
    assert torch.equal(loaded.get_parameter(f"{Q}.weight"), expected[f"{Q}.weight"])


def test_pickled_weights_are_refused_by_name(whole: Path, tmp_path: Path) -> None:
    folder = changed(whole, tmp_path / "other")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    assert explained(folder) == ""
    (folder / "model.safetensors").unlink()
    assert "pytorch_model.bin is a pickle" in explained(folder)
    with pytest.raises(InputError, match="cannot be loaded"):
        load(folder)


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("config.json", {"model_type": "my_own", "auto_map": {"AutoConfig": "code.Config"}}),
        (
            "tokenizer_config.json",
            {"tokenizer_class": "MyOwn", "auto_map": {"AutoTokenizer": ["code.Tokens", None]}},
        ),
    ],
)
def test_code_of_a_model_s_own_is_not_run(
    file: str, values: dict[str, Any], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is the terminal asked whether to."""
    folder = changed(whole, tmp_path / "other")
    (folder / "code.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\nConfig = Tokens = None\n"
    )
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    monkeypatch.setattr("builtins.input", lambda _="": "y")
    assert "brings code of its own" in explained(folder)
    with pytest.raises(InputError, match="brings code of its own"):
        load(folder)
    assert not (tmp_path / "ran").exists()


def test_a_model_that_transformers_knows_may_bring_code(whole: Path, tmp_path: Path) -> None:
    folder = changed(whole, tmp_path / "other", auto_map={"AutoConfig": "code.Config"})
    assert explained(folder) == ""
    load(folder)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_files_that_are_nested_too_deep(file: str, whole: Path, tmp_path: Path) -> None:
    folder = changed(whole, tmp_path / "other")
    (folder / file).write_text("[" * 100_000)
    assert ("config.json is missing or damaged" in explained(folder)) == (file == "config.json")
