"""What a model's folder is told to be wrong with, before torch is loaded."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from retrain.config.schema import BackendConfig, ModelConfig
from retrain.errors import ConfigError, InputError
from retrain.models.folder import inspect_model
from retrain.models.tiny import EMBEDDED_PATH
from retrain.policies.local.base import load_base
from retrain.preflight import load_checked
from retrain.tasks.hub import HubData, rows
from retrain.types import Problem

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{64 * '0'}\nsize 9\n"
IS_POINTER = "is Git LFS's pointer to the file and not the file: run `git lfs pull`"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EMBEDDED_PATH, tmp_path / "model"))


def errors(folder: Path) -> list[str]:
    """What `explain` says of a run of the model."""
    inspect_model.cache_clear()
    config = folder.parent / "x.toml"
    config.write_text(
        f'[model]\nmodel = "{folder}"\n[training]\nmax_tokens = 64\n'
        '[data]\nsource = "arithmetic"\n[reward]\ntype = "match"\n'
    )
    with pytest.raises(ConfigError) as caught:
        load_checked(config)
    return [f"{issue.key}: {issue.message}" for issue in caught.value.issues]


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_pointer_of_git_lfs(folder: Path, name: str) -> None:
    (folder / name).write_text(POINTER)
    assert errors(folder)[-1].startswith(f"model.model: {folder / name} {IS_POINTER}")


def test_weights_that_are_cut_off(folder: Path) -> None:
    weights = folder / "model.safetensors"
    whole = weights.stat().st_size
    os.truncate(weights, whole - 1000)
    message = f"is damaged: it has {whole - 1000:,} bytes of {whole:,}; download it again"
    assert errors(folder) == [f"model.model: {weights} {message}"]
    message = "is damaged, or no safetensors file: its header cannot be read"
    os.truncate(weights, 50)
    assert errors(folder) == [f"model.model: {weights} {message}"]
    for shape in (5, ["x", 2]):
        header = json.dumps({"a.weight": {"shape": shape, "data_offsets": [0, 0]}}).encode()
        weights.write_bytes(len(header).to_bytes(8, "little") + header)
        assert errors(folder) == [f"model.model: {weights} {message}"]


def test_files_that_nobody_loads_may_be_pointers(folder: Path) -> None:
    (folder / "consolidated.safetensors").write_text(POINTER)
    (folder / "pytorch_model.bin").write_text(POINTER)
    inspect_model.cache_clear()
    assert inspect_model(str(folder), folder.parent).problems == ()


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_a_token_that_the_model_has_no_embedding_of(folder: Path) -> None:
    change(folder / "config.json", vocab_size=40)
    (message,) = errors(folder)
    assert message.startswith("model.model: the prompts hold the token ")
    assert "the model has embeddings of 40 tokens only" in message


def test_the_worker_says_so_too() -> None:
    base = load_base(ModelConfig(), BackendConfig(device="cpu"))
    codec = base.codec
    codec._vocabulary = 3
    with pytest.raises(InputError, match=r"model\.model: the prompts hold the token \d+ \('.+'\)"):
        codec.encode(Problem("p", "What is 2 + 2?", "4"))


def test_data_that_are_pointers(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.parquet").write_text(POINTER)
    with pytest.raises(InputError, match=r"data\.path: .*train\.parquet is Git LFS's pointer"):
        list(rows(HubData(str(data)), "train", "data.split"))
    config = tmp_path / "y.toml"
    for source in ("jsonl", "parquet"):
        config.write_text(
            f'[data]\nsource = "{source}"\npath = "data/train.parquet"\n'
            "[training]\nmax_tokens = 64\n"
        )
        with pytest.raises(ConfigError, match=r"data\.path: .*train\.parquet is Git LFS's pointer"):
            load_checked(config)
