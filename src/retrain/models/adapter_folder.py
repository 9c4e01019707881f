"""Whether a folder holds an adapter that a run can start from, read without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from retrain.config.schema import ModelConfig
from retrain.files import FINAL_FOLDER, RUN_FILE

ADAPTER_CONFIG = "adapter_config.json"

_PLAIN = {"use_rslora": False, "use_dora": False, "bias": "none", "modules_to_save": None}
"""Settings of PEFT's that change what an adapter computes, with the only values known here."""


def adapter_problems(model: ModelConfig) -> Iterator[tuple[str, str]]:
    """(`table.key`, message) of everything wrong with `[model].init_adapter`, if it is set."""
    if not model.init_adapter:
        return
    folder, key = Path(model.init_adapter), "model.init_adapter"
    if not folder.is_dir():
        yield key, f"no such folder: {folder}"
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
    if not (folder / "adapter_model.safetensors").is_file():
        yield key, f"{folder} holds no adapter: adapter_model.safetensors is missing"
    if config.get("r") != model.lora_rank:
        yield (
            "model.lora_rank",
            f"{model.lora_rank}, but the adapter in {folder} has rank {config.get('r')}",
        )
    elif config.get("lora_alpha") != model.alpha:
        yield (
            "model.lora_alpha",
            f"{model.alpha:g}, but the adapter in {folder} was trained with "
            f"{config.get('lora_alpha')}: its weights would mean something else",
        )
    for setting, plain in _PLAIN.items():
        if config.get(setting, plain) not in (plain, [] if plain is None else plain):
            yield key, f"{folder} has {setting} = {config[setting]!r}, which retrain does not know"
