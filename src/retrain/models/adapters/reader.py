"""A PEFT LoRA adapter on disk: its layers, checked before any of them is read.

    base_model.model.<layer>.lora_A.weight                      (rank, in), or (rank, in, kernel…)
    base_model.model.<layer>.lora_B.weight                      (out, rank), or (out, rank, 1…)
    base_model.model.<layer>.lora_embedding_A, lora_embedding_B (rank, tokens), (width, rank)

with `.<adapter name>` after lora_A and its like where a file holds several adapters. An
embedding's update is (B A) transposed, which has the same singular values, so all three kinds are
one: `B: (out, rank)` times `A: (rank, in)`, a convolution's kernel being part of `in`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from retrain.config.messages import did_you_mean
from retrain.errors import InputError
from retrain.files import FINAL_FOLDER, RUN_FILE, expanded
from retrain.models.adapters.archive import unpacked
from retrain.models.adapters.settings import ADAPTER_CONFIG, LoraSettings, read_settings
from retrain.models.adapters.tensors import (
    PICKLES,
    TensorReader,
    check_dtypes,
    open_tensors,
    pickle_error,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_PREFIX = "base_model.model."
_FACTOR = re.compile(
    r"(?P<module>.+)\.(?:"
    r"(?P<linear>lora_[AB])(?:\.(?P<linear_name>[^.]+))?\.(?P<what>weight|bias)|"
    r"(?P<embedding>lora_embedding_[AB])(?:\.(?P<embedding_name>[^.]+))?)"
)
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_DEFAULT = "default"
"""What PEFT calls an adapter that was given no name; it stands in no file."""


@dataclass(frozen=True, slots=True)
class LoraModule:
    """One adapted layer. `a`, `b` name its tensors; `written_a`, `written_b` without adapter name.

    a_shape: (rank, in…); b_shape: (out, rank, 1…).
    """

    name: str
    a: str
    b: str
    written_a: str
    written_b: str
    a_shape: tuple[int, ...]
    b_shape: tuple[int, ...]
    alpha: float
    scaling: float

    @property
    def rank(self) -> int:
        return self.a_shape[0]

    @property
    def fan_in(self) -> int:
        return math.prod(self.a_shape[1:])

    @property
    def fan_out(self) -> int:
        return self.b_shape[0]

    @property
    def parameters_a_rank(self) -> int:
        """Parameters that one rank costs."""
        return self.fan_in + self.fan_out


@dataclass(frozen=True, slots=True)
class Adapter:
    """An open adapter. carried: tensor -> the name it is written under; no part of any B A."""

    where: str
    folder: Path
    settings: LoraSettings
    tensors: TensorReader
    modules: tuple[LoraModule, ...]
    carried: dict[str, str]

    @property
    def rank(self) -> int:
        """The largest rank of a module."""
        return max(module.rank for module in self.modules)

    def factors(
        self, module: LoraModule, device: torch.device, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """(B: (out, rank), A: (rank, in)) of a module, read now.

        Raises InputError for values that are not finite.
        """
        read = []
        for name in (module.b, module.a):
            tensor = self.tensors.read(name).to(device=device, dtype=dtype).flatten(1)
            if not bool(tensor.isfinite().all()):
                bad = int((~tensor.isfinite()).sum())
                raise InputError(
                    f"{self.tensors.where(name)} has {bad} values of {tensor.numel()} that are NaN "
                    "or infinite: its training diverged, or the file is damaged; take an earlier "
                    "checkpoint"
                )
            read.append(tensor)
        return read[0], read[1]


@contextmanager
def open_adapter(path: str | Path, adapter_name: str | None = None) -> Iterator[Adapter]:
    """Open a folder, a .safetensors file beside its config, or an archive of either.

    Raises InputError when nothing there is a LoRA adapter that is understood.
    """
    with ExitStack() as stack:
        folder, label, weights = _locate(path, stack)
        inside, inner = _adapter_folder(folder, label, adapter_name)
        settings = read_settings(inside / ADAPTER_CONFIG, f"{inner}/{ADAPTER_CONFIG}")
        # An adapter that its folder was chosen by has no name in the file.
        wanted = adapter_name if inside == folder else None
        tensors = stack.enter_context(open_tensors(inside, inner, weights))
        factors, carried = _sorted_names(tensors, inner, wanted)
        check_dtypes(tensors, list(carried))
        modules = tuple(
            _module(name, parts, settings, tensors) for name, parts in sorted(factors.items())
        )
        yield Adapter(inner, inside, settings, tensors, modules, carried)


def _locate(path: str | Path, stack: ExitStack) -> tuple[Path, str, Path | None]:
    """(folder, what messages call it, the one file to read or None)."""
    if "://" in str(path):
        raise InputError(f"{path}: download the adapter first and give its folder or archive")
    place = expanded(path)
    if place.is_dir():
        return place, str(place), None
    if not place.exists():
        names = [entry.name for entry in place.parent.iterdir()] if place.parent.is_dir() else []
        raise InputError(f"no such adapter: {place}{did_you_mean(place.name, names)}")
    if place.suffix == ".safetensors":
        return place.parent, str(place.parent), place
    if place.suffix in PICKLES:
        raise pickle_error(str(place))
    return stack.enter_context(unpacked(place)), str(place), None


def _adapter_folder(folder: Path, label: str, name: str | None) -> tuple[Path, str]:
    """Where the config lies: here, in the subfolder `name`, or in the only one that has one."""
    if name and (folder / name / ADAPTER_CONFIG).is_file():
        return folder / name, f"{label}/{name}"
    if (folder / ADAPTER_CONFIG).is_file():
        return folder, label
    if (folder / RUN_FILE).is_file():
        final = folder / FINAL_FOLDER
        remedy = f"its adapter is {final}" if final.is_dir() else "it has no final adapter yet"
        raise InputError(f"{label} is a run; {remedy}")
    inner = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    adapters = [entry for entry in inner if (folder / entry / ADAPTER_CONFIG).is_file()]
    if name and adapters:
        raise InputError(f"{label} holds no adapter {name!r}; it has {', '.join(adapters)}")
    if len(adapters) > 1:
        raise InputError(
            f"{label} holds several adapters: {', '.join(adapters)}; choose one by adapter_name"
        )
    if adapters or len(inner) == 1:
        only = (adapters or inner)[0]
        return _adapter_folder(folder / only, f"{label}/{only}", name)
    raise InputError(f"{label} holds no adapter: {ADAPTER_CONFIG} is missing")


def _sorted_names(
    tensors: TensorReader, label: str, wanted: str | None
) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Tensor names: (module -> {"lora_A": name, …} of the wanted adapter, carried -> written)."""
    found: dict[str | None, dict[str, dict[str, str]]] = {}
    biases: dict[str | None, dict[str, str]] = {}
    carried: dict[str, str] = {}
    for name in tensors.names:
        match = _FACTOR.fullmatch(name)
        if match is None:
            _check_carried(tensors, name)
            carried[name] = name
            continue
        adapter = match["linear_name"] or match["embedding_name"]
        kind = match["linear"] or match["embedding"]
        if match["what"] == "bias":
            if kind != "lora_B":
                raise InputError(f"{tensors.where(name)}: PEFT has no bias there")
            # The bias is multiplied by the scaling, which stays as it is.
            biases.setdefault(adapter, {})[name] = f"{match['module']}.lora_B.bias"
            continue
        if ".base_layer." in name:
            raise InputError(
                f"{tensors.where(name)} adapts a part of a layer (nn.MultiheadAttention or a "
                "parameter), whose rank has no name of its own; that is not supported"
            )
        found.setdefault(adapter, {}).setdefault(match["module"], {})[kind] = name
    if not found:
        raise InputError(f"{label} holds no LoRA factors (lora_A, lora_B); is it another adapter?")
    chosen = _chosen(list(found), label, wanted)
    return found[chosen], carried | biases.get(chosen, {})


def _check_carried(tensors: TensorReader, name: str) -> None:
    """Whole layers and biases beside the factors are copied; all that could be a third factor is
    refused."""
    parts = name.split(".")
    if "lora_magnitude_vector" in parts:
        raise InputError(
            f"{tensors.where(name)} is a DoRA magnitude, which fits only the uncut B A; merge the "
            "adapter into the model, or train without DoRA"
        )
    if any(part.startswith("lora_") for part in parts):
        raise InputError(
            f"{tensors.where(name)} is no factor that PEFT's LoRA has; convert the adapter to "
            "PEFT's format first"
        )
    if "original_module" in parts or "modules_to_save" in parts:
        raise InputError(
            f"{tensors.where(name)} comes from a raw state dict; save the adapter with PEFT's "
            "save_pretrained"
        )


def _chosen(names: list[str | None], label: str, wanted: str | None) -> str | None:
    shown = ", ".join(sorted(name or _DEFAULT for name in names))
    if wanted is None:
        if len(names) > 1:
            raise InputError(f"{label} holds several adapters: {shown}; choose one by adapter_name")
        return names[0]
    for name in names:
        if wanted == (name or _DEFAULT):
            return name
    raise InputError(f"{label} holds no adapter {wanted!r}; it has {shown}")


def _module(
    key: str, parts: dict[str, str], settings: LoraSettings, tensors: TensorReader
) -> LoraModule:
    """Check the pair of factors of one layer."""
    present = next(iter(parts.values()))
    kinds = ("lora_embedding_A", "lora_embedding_B") if "embed" in min(parts) else None
    kinds = kinds or ("lora_A", "lora_B")
    for kind in kinds:
        if kind not in parts:
            raise InputError(
                f"{tensors.where(present)} has no partner: {kind} of {key} is missing; the adapter "
                "was saved incompletely, copy it again"
            )
    if len(parts) > 2:
        raise InputError(f"{tensors.where(present)}: {key} has factors of a layer and an embedding")
    a, b = (parts[kind] for kind in kinds)
    a_shape, b_shape = tensors.shape(a), tensors.shape(b)
    name = key.removeprefix(_PREFIX)
    rank = settings.rank_of(name)
    for tensor, shape, axis in ((a, a_shape, 0), (b, b_shape, 1)):
        if tensors.dtype(tensor) not in _DTYPES:
            raise InputError(
                f"{tensors.where(tensor)} has dtype {tensors.dtype(tensor)}; "
                f"{', '.join(_DTYPES.values())} are understood"
            )
        if len(shape) < 2 or 0 in shape:
            raise InputError(
                f"{tensors.where(tensor)} has shape {list(shape)}, which is no matrix: was a shard "
                "not gathered before saving (DeepSpeed ZeRO-3, FSDP)?"
            )
        if shape[axis] != rank:
            raise InputError(
                f"{tensors.where(tensor)} has shape {list(shape)}, but {settings.where} gives its "
                f"layer rank {rank}; put r or rank_pattern right, or copy the adapter again"
            )
    if math.prod(b_shape[2:]) != 1 or len(a_shape) != len(b_shape):
        raise InputError(
            f"{tensors.where(b)} has shape {list(b_shape)} beside {list(a_shape)} of lora_A; a "
            "linear layer, an embedding or a convolution is wanted"
        )
    weight = ".weight" if kinds[0] == "lora_A" else ""
    alpha = settings.alpha_of(name)
    return LoraModule(
        name=name,
        a=a,
        b=b,
        written_a=f"{key}.{kinds[0]}{weight}",
        written_b=f"{key}.{kinds[1]}{weight}",
        a_shape=a_shape,
        b_shape=b_shape,
        alpha=alpha,
        scaling=settings.scaling(alpha, rank),
    )
