"""Which layers can be adapted so that PEFT reads their factors back. PEFT is asked itself, with a
model that has no weights: its rules differ by architecture and change with its versions.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from retrain.errors import InputError
from retrain.models.lora import LoraSpec, factor_names, peft_config, short_names, target_modules

_log = logging.getLogger("retrain")


def readable_layers(module: Any, spec: LoraSpec) -> dict[str, nn.Linear]:
    """The layers that `spec.targets` means in a model of transformers; of "all-linear" only those
    that PEFT would not lose.

    Raises InputError when it would lose one that is asked for by name.
    """
    chosen = target_modules(module, spec.targets)
    if _reads_back(module, spec, chosen):
        return chosen
    kinds: dict[str, dict[str, nn.Linear]] = {}
    for name, layer in chosen.items():
        kinds.setdefault(name.rsplit(".", 1)[-1], {})[name] = layer
    kept = {kind: layers for kind, layers in kinds.items() if _reads_back(module, spec, layers)}
    lost = ", ".join(sorted(kinds.keys() - kept.keys()))
    found = {name: layer for name, layer in chosen.items() if name.rsplit(".", 1)[-1] in kept}
    if spec.targets != "all-linear" or not found or not _reads_back(module, spec, found):
        known = f"; it reads {', '.join(sorted(kept))}" if kept else ""
        raise InputError(
            f"model.lora_targets: PEFT does not read an adapter of {lost or 'these layers'} back "
            f"for a {module.config.model_type}{known}"
        )
    _log.warning('"all-linear" leaves out %s, whose factors PEFT would not read back', lost)
    return found


def _reads_back(module: Any, spec: LoraSpec, layers: Mapping[str, nn.Linear]) -> bool:
    """Whether PEFT finds a place for each factor, and a factor for each place."""
    from peft import LoraConfig, PeftModelForCausalLM, set_peft_model_state_dict

    config = peft_config(spec, short_names(module, list(layers)), "")
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        tensors = {}
        for name, layer in layers.items():
            key_a, key_b = factor_names(name)
            tensors[key_a] = torch.empty(spec.rank, layer.in_features)
            tensors[key_b] = torch.empty(layer.out_features, spec.rank)
        try:
            model = PeftModelForCausalLM(
                type(module)(copy.deepcopy(module.config)),
                LoraConfig(**config),
                low_cpu_mem_usage=True,
            )
            result: Any = set_peft_model_state_dict(model, tensors, low_cpu_mem_usage=True)
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError):
            return False
    return not result.unexpected_keys and not any("lora_" in key for key in result.missing_keys)
