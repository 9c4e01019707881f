"""LoRA factors: which layers get them, their values, and how they are written in PEFT's format.

A linear layer's weight is `W + scale * B @ A` with `A: (rank, in)` and `B: (out, rank)`,
`scale = alpha / rank` (Hu et al. 2021, arXiv 2106.09685, eq. 3). All factors of an adapter and
their gradients live in one flat float32 tensor each, so that clipping, the finiteness check and
the optimizer are single operations.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from retrain import seeding
from retrain.errors import InputError
from retrain.models.adapters.reader import Adapter
from retrain.models.adapters.settings import ADAPTER_CONFIG
from retrain.models.adapters.tensors import WEIGHTS

_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class LoraSpec:
    """What adapter to make. `targets` is "all-linear" or names of modules (their last part, or
    more of their path)."""

    rank: int
    alpha: float
    targets: str | tuple[str, ...] = "all-linear"

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclass(frozen=True, slots=True)
class Factors:
    """The two factors of one layer and their gradients; views of the flat tensors.

    a: (rank, in); b: (out, rank).
    """

    a: Tensor
    b: Tensor
    grad_a: Tensor
    grad_b: Tensor


def target_modules(module: nn.Module, targets: str | Sequence[str]) -> dict[str, nn.Linear]:
    """Linear layers to adapt, by name in the model's order; never the output head.

    Raises InputError when a name in `targets` matches no linear layer.
    """
    head = _output_head(module)
    linear = {
        name: layer
        for name, layer in module.named_modules()
        if layer is not head and _is_linear(layer)
    }
    if not linear:
        raise InputError(
            "model.model: this architecture has no torch.nn.Linear layer to adapt; take another"
        )
    if targets == "all-linear":
        return linear
    wanted = (targets,) if isinstance(targets, str) else tuple(targets)
    chosen = {
        name: layer
        for name, layer in linear.items()
        if any(name == target or name.endswith("." + target) for target in wanted)
    }
    known = sorted({name.rsplit(".", 1)[-1] for name in linear})
    for target in wanted:
        if not any(name == target or name.endswith("." + target) for name in chosen):
            raise InputError(
                f"model.lora_targets: no linear layer is called {target!r}; this model has "
                f"{', '.join(known)}"
            )
    return chosen


def short_names(module: nn.Module, chosen: Sequence[str]) -> list[str]:
    """PEFT's `target_modules` for these layers: last parts of their names when those select
    exactly them of all modules, else the full names."""
    short = {name.rsplit(".", 1)[-1] for name in chosen}
    selected = {name for name, _ in module.named_modules() if name.rsplit(".", 1)[-1] in short}
    return sorted(short if selected == set(chosen) else chosen)


def _is_linear(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a layer is one, not only a kind of it that gives something else: routers of experts
    give two tensors, grouped layers take one group's input."""
    if not isinstance(layer, nn.Linear) or type(layer).forward is nn.Linear.forward:
        return isinstance(layer, nn.Linear)
    try:
        with torch.no_grad():
            output = layer(layer.weight.new_zeros(1, layer.in_features))
    except (RuntimeError, IndexError):
        return False
    return isinstance(output, Tensor) and output.shape == (1, layer.out_features)


def _output_head(module: nn.Module) -> nn.Module | None:
    get = getattr(module, "get_output_embeddings", None)
    head = get() if callable(get) else None
    return head if isinstance(head, nn.Module) else None


def peft_config(spec: LoraSpec, target_names: Sequence[str], base_name: str) -> dict[str, Any]:
    """`adapter_config.json` of an adapter."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": spec.rank,
        "lora_alpha": int(spec.alpha) if float(spec.alpha).is_integer() else spec.alpha,
        "lora_dropout": 0.0,
        "target_modules": list(target_names),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": None,
        "use_rslora": False,
        "use_dora": False,
    }


def factor_names(layer: str) -> tuple[str, str]:
    """What PEFT calls the factors A and B of a layer in a file."""
    return f"{_PREFIX}{layer}.lora_A.weight", f"{_PREFIX}{layer}.lora_B.weight"


def write_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """A safetensors file that is readable as any new file; the library keeps it to its owner."""
    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path, metadata)
    path.chmod(mode)


class LoraAdapter:
    """The trainable state of one policy.

    params, grads: (all factors,) float32; `factors[name]` are views of them.
    """

    def __init__(
        self,
        spec: LoraSpec,
        shapes: Mapping[str, tuple[int, int]],
        seed: int,
        device: torch.device,
        target_names: Sequence[str],
        base_name: str,
    ) -> None:
        """`shapes[name] = (out, in)` of each adapted layer; A is drawn from a keyed stream with
        PEFT's distribution (Kaiming uniform, a = sqrt 5) and B is zero. `target_names` and
        `base_name` are what the saved adapter's config says."""
        self.spec = spec
        self.target_names = list(target_names)
        self.base_name = base_name
        sizes = {
            name: (spec.rank * fan_in, out * spec.rank) for name, (out, fan_in) in shapes.items()
        }
        total = sum(a + b for a, b in sizes.values())
        self.params = torch.zeros(total, dtype=torch.float32, device=device)
        self.grads = torch.zeros_like(self.params)
        self.factors: dict[str, Factors] = {}
        offset = 0
        for name, (out, fan_in) in shapes.items():
            size_a, size_b = sizes[name]
            middle, end = offset + size_a, offset + size_a + size_b
            factors = Factors(
                a=self.params[offset:middle].view(spec.rank, fan_in),
                b=self.params[middle:end].view(out, spec.rank),
                grad_a=self.grads[offset:middle].view(spec.rank, fan_in),
                grad_b=self.grads[middle:end].view(out, spec.rank),
            )
            bound = 1.0 / math.sqrt(fan_in)
            draws = seeding.generator(seed, "lora_init", name).uniform(
                -bound, bound, factors.a.shape
            )
            factors.a.copy_(torch.from_numpy(draws))
            self.factors[name] = factors
            offset = end

    @property
    def num_params(self) -> int:
        return self.params.numel()

    def save(self, folder: Path) -> None:
        """Write the adapter in PEFT's format: adapter_config.json, adapter_model.safetensors."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, Tensor] = {}
        for name, factors in self.factors.items():
            for key, factor in zip(factor_names(name), (factors.a, factors.b), strict=True):
                tensors[key] = factor.detach().cpu().contiguous()
        write_tensors(tensors, folder / WEIGHTS, {"format": "pt"})
        config = peft_config(self.spec, self.target_names, self.base_name)
        (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n")

    def load(self, folder: Path) -> None:
        """Read factors that `save` wrote. Raises InputError when layers or shapes differ."""
        tensors = load_file(folder / WEIGHTS)
        for name, factors in self.factors.items():
            for key, target in zip(factor_names(name), (factors.a, factors.b), strict=True):
                stored = tensors.pop(key, None)
                if stored is None or stored.shape != target.shape:
                    found = "missing" if stored is None else f"of shape {tuple(stored.shape)}"
                    raise InputError(
                        f"{folder}: {key} is {found}; this run needs {tuple(target.shape)} "
                        "(same [model].model, lora_rank and lora_targets?)"
                    )
                target.copy_(stored)
        if tensors:
            raise InputError(
                f"{folder}: holds layers this run does not adapt: {sorted(tensors)[:3]}"
            )

    def take(self, other: Adapter) -> None:
        """Become what another adapter of the same layers computes. A layer of a lower rank keeps
        it: the rest of its factors is zero, and so is their gradient. A layer of another scaling
        has the difference in B.

        Raises InputError when layers or shapes differ, or values are not finite.
        """
        theirs = {module.name: module for module in other.modules}
        if extra := sorted([*other.carried, *(theirs.keys() - self.factors.keys())]):
            raise InputError(f"{other.where}: holds layers this run does not adapt: {extra[:3]}")
        if missing := sorted(self.factors.keys() - theirs.keys()):
            raise InputError(
                f"{other.where}: {missing[0]} is missing; this run adapts it "
                "(same [model].model and lora_targets?)"
            )
        self.params.zero_()
        for name, module in theirs.items():
            b, a = other.factors(module, self.params.device, torch.float32)
            own = self.factors[name]
            wanted = (own.b.shape[0], own.a.shape[1])
            if module.rank > self.spec.rank or (b.shape[0], a.shape[1]) != wanted:
                raise InputError(
                    f"{other.where}: {name} has {b.shape[0]} x {a.shape[1]}, rank {module.rank}; "
                    f"the model's layer has {wanted[0]} x {wanted[1]}, and this run rank "
                    f"{self.spec.rank}: is it an adapter of another model?"
                )
            own.a[: module.rank].copy_(a)
            own.b[:, : module.rank].copy_(b * (module.scaling / self.spec.scale))
