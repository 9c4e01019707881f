"""A base model, loaded once in a process, that hands out policies."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from retrain.config.load import EMBEDDED
from retrain.config.schema import BackendConfig, ModelConfig
from retrain.errors import InputError
from retrain.files import expanded
from retrain.models.adapters.readback import readable_layers
from retrain.models.codec import ChatCodec
from retrain.models.engine import Engine
from retrain.models.factored import FactoredEngine
from retrain.models.folder import RUNS_CODE
from retrain.models.fused import FusedEngine
from retrain.models.llama import supports
from retrain.models.lora import LoraSpec, short_names, target_modules
from retrain.models.modules import ModuleEngine
from retrain.models.shape import ModelShape, context_of, vocabulary_of
from retrain.models.tiny.codec import TinyTokenizer
from retrain.models.tiny.model import load_tiny
from retrain.models.weight_names import loading_problem
from retrain.policies.local.memory import MemoryModel, engine_kind, main_memory

# Tokens of context of a model that has no positions to run out of.
_ENDLESS = 2**20
# Of a machine that does not tell.
_UNKNOWN_MEMORY = 8 * 2**30


class BaseModel:
    """Frozen weights, codec and engine. Policies share it; it keeps nothing of theirs."""

    def __init__(self, module: Any, codec: ChatCodec, name: str) -> None:
        self.module = module
        self.codec = codec
        self.name = name
        self.device: torch.device = next(module.parameters()).device
        self.context = context_of(module.config.get_text_config().to_dict()) or _ENDLESS
        self.shape = ModelShape.of(
            module.config.to_dict(), {n: p.shape for n, p in module.named_parameters()}
        )
        self._readable: dict[LoraSpec, dict[str, nn.Linear]] = {}
        self.total_memory = total_memory(self.device)
        parameters = sum(p.numel() for p in module.parameters())
        each = module.dtype.itemsize
        kind = engine_kind(module.config.model_type, parameters, self.device.type, each)
        if not supports(module):
            self.engine: Engine = ModuleEngine(module)
        else:
            self.engine = FusedEngine(module) if kind == "fused" else FactoredEngine(module)

    def memory(self, adapter_parameters: int, room: int) -> MemoryModel:
        """What a policy on this base takes. room: tokens of the longest prompt and completion."""
        each = self.module.dtype.itemsize
        return MemoryModel(self.shape, self.engine.kind, each, adapter_parameters, room)

    def free_unused(self) -> None:
        """Give a GPU's memory back that torch keeps for later: a rollout's cache and an update's
        activations come in other sizes."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def adapter_shapes(self, spec: LoraSpec) -> dict[str, tuple[int, int]]:
        """(out, in) of each layer that `spec` adapts."""
        layers = self._adapted(spec).items()
        return {name: (layer.out_features, layer.in_features) for name, layer in layers}

    def adapter_target_names(self, spec: LoraSpec) -> list[str]:
        """`target_modules` as PEFT's config wants them."""
        return short_names(self.module, list(self._adapted(spec)))

    def _adapted(self, spec: LoraSpec) -> dict[str, nn.Linear]:
        if self.engine.kind != "modules":
            return target_modules(self.module, spec.targets)
        if spec not in self._readable:
            self._readable[spec] = readable_layers(self.module, spec)
        return self._readable[spec]


def total_memory(device: torch.device) -> int:
    """Bytes of the device, whoever uses them just now."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return main_memory() or _UNKNOWN_MEMORY


def choose_device(device: str) -> torch.device:
    """`[backend].device` -> a device that exists. Raises InputError when it does not."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = torch.device(device)
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f'backend.device: {device!r}, but torch finds no GPU here; use "cpu" or "auto", '
            "or install a CUDA build of torch"
        )
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"backend.device: {device!r}, but this machine has {torch.cuda.device_count()} GPU(s)"
        )
    return chosen


def load_base(model: ModelConfig, backend: BackendConfig) -> BaseModel:
    """Load the base model of a config. Raises InputError when it cannot be had."""
    device = choose_device(backend.device)
    if device.type == "cpu":
        torch.set_num_threads(backend.threads or 1)
    dtype = {
        "auto": torch.bfloat16 if device.type == "cuda" else torch.float32,
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
    }[model.dtype]
    tokenizer: Any
    if model.model == EMBEDDED:
        module: Any = load_tiny(dtype)
        tokenizer = TinyTokenizer()
        ends: set[int] = {tokenizer.eos_token_id}
    else:
        module, tokenizer = _from_hugging_face(model, device, dtype)
        ends = set()
        for value in (module.generation_config.eos_token_id, tokenizer.eos_token_id):
            if value is not None:
                ends.update(value if isinstance(value, list) else [value])
    module.requires_grad_(False)
    module.eval()
    module.to(device)
    vocabulary = vocabulary_of(module.config.get_text_config().to_dict())
    codec = ChatCodec.of(tokenizer, ends, model, vocabulary)
    return BaseModel(module, codec, model.model)


def _from_hugging_face(
    model: ModelConfig, device: torch.device, dtype: torch.dtype
) -> tuple[Any, Any]:
    """Model and tokenizer of a folder or a hub id."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    loud = transformers_logging.get_verbosity()
    source = os.fspath(expanded(model.model))
    if not Path(source).is_dir():
        source = model.model
    # Without a word about it transformers would ask on the terminal whether to run a model's code.
    from_hub: dict[str, Any] = {
        "local_files_only": model.local_files_only,
        "trust_remote_code": False,
    }
    if model.revision:
        from_hub["revision"] = model.revision
    loader: Any = AutoModelForCausalLM
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **from_hub)
        # What does not fit is told below, by name.
        transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        module, found = loader.from_pretrained(
            source,
            dtype=dtype,
            attn_implementation=_attention(model, device, dtype),
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **from_hub,
        )
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        text = str(error).strip()
        if "trust_remote_code" in text:
            raise InputError(f"model.model: {model.model!r} {RUNS_CODE}") from error
        raise InputError(
            f"model.model: {model.model!r} cannot be loaded: {text.splitlines()[0]}\n"
            "Give a folder that holds config.json, the weights and the tokenizer, or a hub id "
            'that this machine can download; "embedded" always works.'
        ) from error
    finally:
        transformers_logging.set_verbosity(loud)
    if problem := loading_problem(found, module.config.get_text_config().to_dict()):
        raise InputError(f"model.model: {model.model!r} {problem}")
    return module, tokenizer


def _attention(model: ModelConfig, device: torch.device, dtype: torch.dtype) -> str | None:
    """Which attention the module's own code takes; None leaves it to transformers, which prefers
    torch's to plain products."""
    if model.attention != "auto":
        return model.attention
    has_flash = importlib.util.find_spec("flash_attn") is not None
    fits = device.type == "cuda" and dtype == torch.bfloat16
    return "flash_attention_2" if has_flash and fits else None
