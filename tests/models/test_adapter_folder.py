"""What is said of a folder that `[model].init_adapter` names, before torch is loaded."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from retrain.config.schema import ModelConfig
from retrain.models.adapter_folder import adapter_problems

CONFIG = {
    "r": 4,
    "lora_alpha": 8,
    "bias": "none",
    "use_rslora": False,
    "modules_to_save": None,
    "base_model_name_or_path": "embedded",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter as PEFT writes it."""
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    configure(adapter)
    save_file({"a": np.ones(3, dtype=np.float32)}, adapter / "adapter_model.safetensors")
    return adapter


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


@pytest.mark.parametrize("text", ["[]", '"text"', "\udcff"])
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
    [{"use_rslora": True}, {"use_dora": True}, {"bias": "all"}, {"modules_to_save": ["lm_head"]}],
)
def test_settings_that_would_be_ignored_are_refused(changes: dict[str, Any], folder: Path) -> None:
    configure(folder, **changes)
    ((key, message),) = problems(folder)
    assert key == "model.init_adapter"
    assert f"{next(iter(changes))} = " in message


def test_no_modules_to_save_is_written_in_two_ways(folder: Path) -> None:
    configure(folder, modules_to_save=[])
    assert problems(folder) == []
