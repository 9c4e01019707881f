"""What is said of a folder that `[model].init_adapter` names, before torch is loaded."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from retrain.config.schema import ModelConfig
from retrain.models.adapters.initial import adapter_problems

CONFIG = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 8,
    "bias": "none",
    "use_rslora": False,
    "modules_to_save": None,
    "base_model_name_or_path": "embedded",
}


LAYER = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter as PEFT writes it."""
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    configure(adapter)
    store(adapter, LAYER)
    return adapter


def store(folder: Path, *layers: str, rank: int = 4, **more: tuple[int, ...]) -> None:
    shapes = {f"{layer}.lora_A.weight": (rank, 6) for layer in layers}
    shapes |= {f"{layer}.lora_B.weight": (3, rank) for layer in layers} | more
    tensors = {
        f"base_model.model.{name}": np.ones(shape, "float32") for name, shape in shapes.items()
    }
    save_file(tensors, folder / "adapter_model.safetensors")


def configure(folder: Path, **changes: Any) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **changes}))


def problems(folder: Path | str, **model: Any) -> list[tuple[str, str]]:
    settings = ModelConfig(**{"lora_rank": 4, "init_adapter": str(folder), **model})
    return list(adapter_problems(settings))


def test_a_good_one(folder: Path) -> None:
    assert problems(folder) == []
    assert problems(folder, lora_alpha=8.0) == []


def test_none_is_asked_for() -> None:
    assert problems("") == []


def test_no_such_folder_names_one_beside_it(folder: Path) -> None:
    ((key, message),) = problems(folder.with_name("adaptor"))
    assert key == "model.init_adapter"
    assert message == f"no such folder: {folder.with_name('adaptor')}; did you mean adapter?"
    assert problems("/no/such/place") == [(key, "no such folder: /no/such/place")]


@pytest.mark.parametrize("final", [True, False])
def test_a_run_instead_of_its_adapter(final: bool, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    if final:
        (tmp_path / "final").mkdir()
    ((_, message),) = problems(tmp_path)
    expected = f"its adapter is {tmp_path / 'final'}" if final else "it has no final adapter yet"
    assert expected in message
    assert f"--resume {tmp_path}" in message


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_without_one_of_its_files_it_is_no_adapter(name: str, damage: str, folder: Path) -> None:
    path = folder / name
    path.unlink() if damage == "missing" else path.write_bytes(path.read_bytes()[:-2])
    ((key, message),) = problems(folder)
    assert key == "model.init_adapter"
    assert name in message
    assert damage in message


@pytest.mark.parametrize("text", ["[]", '"text"', "\udcff", "[" * 100_000])
def test_a_config_that_is_none(text: str, folder: Path) -> None:
    (folder / "adapter_config.json").write_bytes(text.encode(errors="surrogateescape"))
    ((_, message),) = problems(folder)
    assert "is damaged" in message


@pytest.mark.parametrize(
    ("model", "key", "message"),
    [
        ({"lora_rank": 8}, "model.lora_rank", "8, but the adapter in .* has rank 4"),
        ({"lora_alpha": 5.0}, "model.lora_alpha", "5, but the adapter in .* trained with 8"),
        ({"model": "org/other"}, "model.model", "org/other, but .* was trained on embedded"),
    ],
)
def test_an_adapter_of_another_model(
    model: dict[str, Any], key: str, message: str, folder: Path
) -> None:
    ((found, text),) = problems(folder, **model)
    assert found == key
    assert re.match(message, text)


@pytest.mark.parametrize(
    "base",
    ["org/name", "name", "/models/name", "/hub/models--org--name/snapshots/0a1b2c", "", None],
)
def test_one_base_model_has_several_names(base: str | None, folder: Path) -> None:
    configure(folder, base_model_name_or_path=base)
    assert problems(folder, model="org/name") == []
    assert problems(folder, model="/elsewhere/name") == []


@pytest.mark.parametrize(
    "changes",
    [
        *(
            {"init_lora_weights": way}
            for way in ("pissa", "pissa_niter_4", "olora", "corda", "loftq")
        ),
        {"use_dora": True},
        {"bias": "all"},
        {"lora_bias": True},
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": [1, 2]},
        {"fan_in_fan_out": True},
        {"layers_to_transform": 0},
        {"layers_to_transform": [1]},
        {"layers_pattern": "h"},
        {"exclude_modules": ["k_proj"]},
        {"layer_replication": [[0, 2], [0, 2]]},
        {"alora_invocation_tokens": [5]},
        {"target_parameters": ["experts.up"]},
        {"target_modules": ["k_proj"]},
        {"target_modules": r".*\.k_proj"},
        {"target_modules": "("},
        {"a_setting_of_tomorrow": 3},
    ],
)
def test_settings_that_would_be_ignored_are_refused(changes: dict[str, Any], folder: Path) -> None:
    configure(folder, **changes)
    ((key, message),) = problems(folder)
    assert key == "model.init_adapter"
    assert f"{next(iter(changes))} = " in message


def test_no_modules_to_save_is_written_in_two_ways(folder: Path) -> None:
    configure(folder, modules_to_save=[])
    assert problems(folder) == []


@pytest.mark.parametrize("targets", [["q_proj"], [LAYER], r".*\.[qk]_proj", "all-linear", None])
def test_targets_that_select_what_the_file_has(targets: Any, folder: Path) -> None:
    configure(folder, target_modules=targets, init_lora_weights="eva", use_rslora=True)
    assert problems(folder) == []


def test_the_rank_is_the_largest_of_a_layer(folder: Path) -> None:
    store(folder, LAYER, rank=8)
    configure(folder, rank_pattern={"q_proj": 8}, alpha_pattern={"q_proj": 2})
    assert problems(folder, lora_rank=8, lora_alpha=8) == []
    ((key, message),) = problems(folder, lora_rank=4, lora_alpha=8)
    assert (key, "has rank 8; write lora_rank = 8" in message) == ("model.lora_rank", True)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"lm_head.weight": (3, 6)}, "lm_head.weight' is no factor"),
        ({f"{LAYER}.bias": (3,)}, "q_proj.bias' is no factor"),
        ({"embed.lora_embedding_A": (4, 9), "embed.lora_embedding_B": (3, 4)}, "no linear layer"),
        ({"conv.lora_A.weight": (4, 3, 2), "conv.lora_B.weight": (3, 4, 1)}, "no linear layer"),
        ({"other.lora_A.weight": (4, 3), "other.lora_B.weight": (3, 4)}, "leaves out other"),
    ],
)
def test_tensors_that_would_be_ignored_are_refused(
    tensors: dict[str, Any], message: str, folder: Path
) -> None:
    store(folder, LAYER, **tensors)
    configure(folder, target_modules=["q_proj", "embed", "conv"])
    ((key, text),) = problems(folder)
    assert (key, message in text) == ("model.init_adapter", True), text


def test_layers_that_the_run_does_not_adapt(folder: Path) -> None:
    assert problems(folder, lora_targets=["self_attn.q_proj"]) == []
    ((_, message),) = problems(folder, lora_targets=["k_proj"])
    assert f"this run does not adapt: {LAYER} is not among lora_targets" in message


def test_pickled_weights_are_refused_by_name(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    ((_, message),) = problems(folder)
    assert "adapter_model.bin is a pickle" in message


def test_nothing_of_it_needs_torch(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from retrain.config.schema import ModelConfig; "
        "from retrain.models.adapters.initial import adapter_problems; "
        f"model = ModelConfig(lora_rank=4, init_adapter={str(folder)!r}); "
        "print(list(adapter_problems(model)), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[] False\n"
