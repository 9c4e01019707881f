"""Whether a folder holds an adapter that a run can start from, read without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from retrain.config.messages import did_you_mean
from retrain.config.schema import ModelConfig
from retrain.files import FINAL_FOLDER, RUN_FILE, lfs_pointer
from retrain.policies.tinker.paths import is_service_path

ADAPTER_CONFIG = "adapter_config.json"

_PLAIN = {"use_rslora": False, "use_dora": False, "bias": "none", "modules_to_save": None}
"""Settings of PEFT's that change what an adapter computes, with the only values known here."""


def adapter_problems(model: ModelConfig) -> Iterator[tuple[str, str]]:
    """(`table.key`, message) of everything wrong with `[model].init_adapter`, if it is set."""
    if not model.init_adapter:
        return
    folder, key = Path(model.init_adapter), "model.init_adapter"
    if is_service_path(model.init_adapter):
        message = f"{model.init_adapter} is at the Tinker service: that is for backend = "
        yield key, message + '"tinker"; retrain squeeze downloads it'
        return
    if not folder.is_dir():
        beside = folder.parent
        names = [path.name for path in beside.iterdir() if path.is_dir()] if beside.is_dir() else []
        yield key, f"no such folder: {folder}{did_you_mean(folder.name, names)}"
        return
    if (folder / RUN_FILE).exists():
        final = folder / FINAL_FOLDER
        remedy = f"its adapter is {final}" if final.is_dir() else "it has no final adapter yet"
        message = f"{folder} is a run; {remedy}. To go on with the run itself: --resume {folder}"
        yield key, message
        return
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        yield key, f"{folder} holds no adapter: adapter_config.json is missing"
        return
    except ValueError as error:
        yield key, f"{folder / ADAPTER_CONFIG} is damaged: {error}"
        return
    if not isinstance(config, dict):
        yield key, f"{folder / ADAPTER_CONFIG} is damaged: it holds no JSON object"
        return
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        yield key, f"{folder} holds no adapter: adapter_model.safetensors is missing"
        return
    if pointer := lfs_pointer(weights):
        yield key, pointer
        return
    other = list(_another_kind(model, folder, config))
    yield from other
    if other:
        return
    try:
        with safe_open(weights, framework="numpy"):
            pass
    except (OSError, SafetensorError) as error:
        yield key, f"{weights} is damaged: {error}"


def _another_kind(
    model: ModelConfig, folder: Path, config: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """Where the adapter is not of the kind that the run trains, by its `adapter_config.json`."""
    if config.get("r") != model.lora_rank:
        yield (
            "model.lora_rank",
            f"{model.lora_rank}, but the adapter in {folder} has rank {config.get('r')}; write "
            f"lora_rank = {config.get('r')}",
        )
    elif config.get("lora_alpha") != model.alpha:
        yield (
            "model.lora_alpha",
            f"{model.alpha:g}, but the adapter in {folder} was trained with "
            f"{config.get('lora_alpha')}: its weights would mean something else; write lora_alpha "
            f"= {config.get('lora_alpha')}",
        )
    base = str(config.get("base_model_name_or_path") or "")
    if base and _short(base) != _short(model.model):
        yield (
            "model.model",
            f"{model.model}, but the adapter in {folder} was trained on {base}; if that is the "
            f"same model, write so in {folder / ADAPTER_CONFIG}, base_model_name_or_path",
        )
    for setting, plain in _PLAIN.items():
        if config.get(setting, plain) not in (plain, [] if plain is None else plain):
            message = f"{folder} has {setting} = {config[setting]!r}, which retrain does not know"
            yield "model.init_adapter", message


def _short(model: str) -> str:
    """The last part of a hub id or of a folder's path, which the two ways to name a model share.

    The hub's own cache keeps `org/name` in `models--org--name/snapshots/<commit>`.
    """
    path = Path(model)
    if path.parent.name == "snapshots":
        return path.parent.parent.name.rsplit("--", 1)[-1]
    return path.name
