"""`adapter_config.json`: what of PEFT's settings says how an adapter computes.

Read from PEFT 0.21's source: `LoraConfig`, `LoraModel._create_and_replace` and
`peft.utils.other.get_pattern_key`, which finds a layer's entry in rank_pattern and alpha_pattern.
Settings that only say how the adapter was made or where it sits are carried over unread.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from retrain.errors import InputError

ADAPTER_CONFIG = "adapter_config.json"

_Value = TypeVar("_Value", int, float)

_INTERPRETED = {
    "peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern",
    "init_lora_weights",
}  # fmt: skip

_CARRIED = {
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
    "inference_mode", "target_modules", "exclude_modules", "lora_dropout", "fan_in_fan_out", "bias",
    "modules_to_save", "layers_to_transform", "layers_pattern", "megatron_core",
    "trainable_token_indices", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
    "qalora_group_size", "alora_invocation_tokens", "layer_replication", "runtime_config",
    "lora_bias", "ensure_weight_tying",
}  # fmt: skip
"""None of these changes what B A is: they say which layers and tokens the adapter serves, how it
was trained, or name tensors beside the factors."""

_REFUSED = {
    "use_dora": "DoRA scales each row by a learned magnitude over the norm of W + B A, so cutting "
    "B A changes what the magnitudes mean; merge it into the model, or train without DoRA",
    "use_qalora": "QALoRA pools the inputs of a quantised layer",
    "use_bdlora": "BD-LoRA's factors are block-diagonal, which a cut of the rank does not keep",
    "kasa_config": "KaSA puts a diagonal between the factors and cuts the base weight by the rank",
    "monteclora_config": "MonteCLoRA samples around the factors; their product is not its update",
    "velora_config": "VeLoRA trains with projections of its own beside the factors",
    "arrow_config": "Arrow routes between several adapters by their factors; take each of them",
    "megatron_config": "Megatron keeps a part of each factor on each GPU; export the adapter first",
    "target_parameters": "factors of single parameters hold one block of ranks for each expert; "
    "adapt modules instead (target_modules)",
}

_HARMLESS_INITS = {True, False, "gaussian", "eva", "orthogonal"}
"""Starts that leave the base weights alone and ask nothing of the rank, once loaded. Of these
`orthogonal` refuses odd ranks when PEFT makes the layer, so it is written as `true`."""


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """Ranks and scalings of an adapter, and everything else its config says (`values`)."""

    where: str
    values: Mapping[str, Any]
    rank: int
    alpha: float
    rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]

    def rank_of(self, layer: str) -> int:
        """`r` of a layer, by its name in the model."""
        return _matching(self.rank_pattern, layer, self.rank)

    def alpha_of(self, layer: str) -> float:
        """`lora_alpha` of a layer, by its name in the model."""
        return _matching(self.alpha_pattern, layer, self.alpha)

    def scaling(self, alpha: float, rank: int) -> float:
        """What B A is multiplied by: alpha / r, or alpha / sqrt(r) (rsLoRA, arXiv 2312.03732)."""
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def alpha_for(self, alpha: float, rank: int, new_rank: int) -> float:
        """The alpha that keeps a layer's scaling at another rank; a float, never cut to an int."""
        ratio = new_rank / rank
        return alpha * (math.sqrt(ratio) if self.rslora else ratio)

    def with_ranks(self, layers: Mapping[str, tuple[int, float]], rank: int) -> dict[str, Any]:
        """The config of the adapter whose layers have these (rank, alpha), every other key kept.

        `r` and `lora_alpha` are what most layers of rank `rank` have (of all layers, when none
        has it). The others get an entry each: PEFT matches `(.*\\.)?(KEY)$` from the name's start,
        so `^` and an escaped full name mean that layer alone.
        """
        pairs = [pair for pair in layers.values() if pair[0] == rank] or list(layers.values())
        (r, alpha), _ = Counter(pairs).most_common(1)[0]
        values = dict(self.values)
        if values.get("init_lora_weights") == "orthogonal":
            values["init_lora_weights"] = True
        values["r"], values["lora_alpha"] = r, _number(alpha)
        values["rank_pattern"] = {
            f"^{re.escape(name)}": own for name, (own, _) in layers.items() if own != r
        }
        values["alpha_pattern"] = {
            f"^{re.escape(name)}": _number(own) for name, (_, own) in layers.items() if own != alpha
        }
        return values


def read_settings(file: Path, where: str) -> LoraSettings:
    """Read and check an `adapter_config.json`; `where` is what messages call it.

    Raises InputError when it is damaged, is not LoRA, or says that something else than
    `scaling * B A` is added to the weights.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{where} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is damaged: {error}; copy the adapter again") from error
    if not isinstance(values, dict):
        raise InputError(f"{where} is damaged: it holds no JSON object; copy the adapter again")
    kind = values.get("peft_type")
    if kind != "LORA":
        raise InputError(f"{where}: peft_type is {kind!r}; only LORA adapters are understood")
    _refuse_other_kinds(values, where)
    rslora = values.get("use_rslora") or False
    if not isinstance(rslora, bool):
        raise InputError(f"{where}: use_rslora is {rslora!r}; true or false is wanted")
    return LoraSettings(
        where=where,
        values=values,
        rank=_rank(values.get("r"), f"{where}: r"),
        alpha=_alpha(values.get("lora_alpha"), f"{where}: lora_alpha"),
        rslora=rslora,
        rank_pattern={
            key: _rank(value, f"{where}: rank_pattern[{key!r}]")
            for key, value in _pattern(values, "rank_pattern", where).items()
        },
        alpha_pattern={
            key: _alpha(value, f"{where}: alpha_pattern[{key!r}]")
            for key, value in _pattern(values, "alpha_pattern", where).items()
        },
    )


def _refuse_other_kinds(values: Mapping[str, Any], where: str) -> None:
    for key, value in values.items():
        if not value or key in _INTERPRETED or key in _CARRIED:
            continue
        reason = _REFUSED.get(key)
        if reason:
            raise InputError(f"{where}: {key} = {short(value)} is not supported: {reason}")
        raise InputError(
            f"{where}: {key} = {short(value)} is not known here and may change what the adapter "
            "computes; remove the key if it does not"
        )
    init = values.get("init_lora_weights", True)
    if not isinstance(init, bool | str) or init not in _HARMLESS_INITS:
        raise InputError(
            f"{where}: init_lora_weights = {short(init)} changes the base weights, by the rank, "
            "each time that the adapter is loaded; convert it to a plain adapter first "
            "(PEFT: save_pretrained with path_initial_model_for_weight_conversion)"
        )


def _pattern(values: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    pattern = values.get(key) or {}
    if not isinstance(pattern, dict):
        raise InputError(f"{where}: {key} is {short(pattern)}; an object is wanted")
    for expression in pattern:
        try:
            re.compile(expression)
        except re.error as error:
            raise InputError(
                f"{where}: {key} has {expression!r}, which is no regular expression: {error}"
            ) from error
    return pattern


def _matching(pattern: Mapping[str, _Value], layer: str, default: _Value) -> _Value:
    """As PEFT's get_pattern_key: the first entry that matches; else one of exactly that name."""
    for key, value in pattern.items():
        if re.match(rf"(.*\.)?({key})$", layer):
            return value
    return pattern.get(layer, default)


def _rank(value: object, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{what} is {value!r}; a whole number of at least 1 is wanted")
    return value


def _alpha(value: object, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{what} is {value!r}; a number is wanted")
    if value == 0:
        raise InputError(f"{what} is 0, which multiplies the whole adapter by 0; set it right")
    return value


def _number(value: float) -> float:
    """Whole numbers as PEFT writes them itself."""
    return int(value) if float(value).is_integer() else value


def short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
