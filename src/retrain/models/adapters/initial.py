"""Whether a folder holds an adapter that a run can start from, read without torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from retrain.config.messages import did_you_mean
from retrain.config.schema import ModelConfig
from retrain.errors import InputError
from retrain.files import FINAL_FOLDER, RUN_FILE
from retrain.models.adapters.reader import Adapter, open_adapter
from retrain.models.adapters.settings import ADAPTER_CONFIG, short
from retrain.policies.tinker.paths import is_service_path

_OTHER_MODELS = (
    "bias", "lora_bias", "modules_to_save", "trainable_token_indices", "fan_in_fan_out",
    "layers_to_transform", "layers_pattern", "exclude_modules", "layer_replication",
    "alora_invocation_tokens",
)  # fmt: skip
"""Settings with which an adapter is more, or less, than its factors on linear layers."""


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
        with open_adapter(folder) as adapter:
            found = list(_differences(model, adapter))
    except InputError as error:
        found = [(key, str(error))]
    yield from found


def _differences(model: ModelConfig, adapter: Adapter) -> Iterator[tuple[str, str]]:
    """Where the adapter is not of the kind that the run trains."""
    where, settings = adapter.where, adapter.settings
    if adapter.rank != model.lora_rank:
        yield (
            "model.lora_rank",
            f"{model.lora_rank}, but the adapter in {where} has rank {adapter.rank}; write "
            f"lora_rank = {adapter.rank}",
        )
    elif settings.alpha != model.alpha:
        yield (
            "model.lora_alpha",
            f"{model.alpha:g}, but the adapter in {where} was trained with {settings.alpha}: its "
            f"weights would mean something else; write lora_alpha = {settings.alpha}",
        )
    base = str(settings.values.get("base_model_name_or_path") or "")
    if base and _short(base) != _short(model.model):
        yield (
            "model.model",
            f"{model.model}, but the adapter in {where} was trained on {base}; if that is the "
            f"same model, write so in {adapter.folder / ADAPTER_CONFIG}, base_model_name_or_path",
        )
    key = "model.init_adapter"
    for setting in _OTHER_MODELS:
        value = settings.values.get(setting)
        # Not by truth: 0 is a layer.
        if value is not None and value is not False and value not in ("none", "", [], {}):
            yield key, f"{where} has {setting} = {short(value)}, which cannot be trained on here"
    yield from ((key, problem) for problem in _strange_tensors(model, adapter))


def _strange_tensors(model: ModelConfig, adapter: Adapter) -> Iterator[str]:
    """Tensors that no layer of the run would take, or that PEFT would leave out."""
    for name in adapter.carried:
        yield f"{adapter.tensors.where(name)} is no factor of a linear layer"
        return
    targets, theirs = model.lora_targets, adapter.settings.values.get("target_modules")
    for module in adapter.modules:
        if module.written_a.endswith("lora_embedding_A") or len(module.a_shape) > 2:
            yield f"{adapter.tensors.where(module.a)} adapts no linear layer"
            return
        if not _selects(theirs, module.name):
            yield (
                f"{adapter.settings.where}: target_modules = {short(theirs)} leaves out "
                f"{module.name}, whose factors the file has; PEFT would not load them"
            )
            return
        if targets != "all-linear" and not _selects(targets, module.name):
            yield (
                f"{adapter.where} holds layers this run does not adapt: {module.name} is not among "
                "lora_targets"
            )
            return


def _selects(targets: object, layer: str) -> bool:
    """PEFT's rule (`check_target_module_exists`): a list of endings of names, or an expression for
    whole names; without either, its own choice for the kind of model."""
    if targets is None or targets == "all-linear":
        return True
    if isinstance(targets, list | tuple):
        return any(layer == name or layer.endswith(f".{name}") for name in targets)
    try:
        return re.fullmatch(str(targets), layer) is not None
    except re.error:
        return False


def _short(model: str) -> str:
    """The last part of a hub id or of a folder's path, which the two ways to name a model share.

    The hub's own cache keeps `org/name` in `models--org--name/snapshots/<commit>`.
    """
    path = Path(model)
    if path.parent.name == "snapshots":
        return path.parent.parent.name.rsplit("--", 1)[-1]
    return path.name
