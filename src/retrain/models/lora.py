"""LoRA factors: which layers get them, their values, and PEFT's file format.

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
from typing import TypeGuard

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from retrain import seeding
from retrain.errors import InputError

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
    exactly them, else the full names."""
    short = {name.rsplit(".", 1)[-1] for name in chosen}
    selected = {
        name for name in target_modules(module, "all-linear") if name.rsplit(".", 1)[-1] in short
    }
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
            tensors[f"{_PREFIX}{name}.lora_A.weight"] = factors.a.detach().cpu().contiguous()
            tensors[f"{_PREFIX}{name}.lora_B.weight"] = factors.b.detach().cpu().contiguous()
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        alpha = self.spec.alpha
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base_name,
            "r": self.spec.rank,
            "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
            "lora_dropout": 0.0,
            "target_modules": self.target_names,
            "bias": "none",
            "fan_in_fan_out": False,
            "init_lora_weights": True,
            "inference_mode": True,
            "modules_to_save": None,
            "use_rslora": False,
            "use_dora": False,
        }
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")

    def load(self, folder: Path) -> None:
        """Read factors that `save` wrote. Raises InputError when layers or shapes differ."""
        tensors = load_file(folder / "adapter_model.safetensors")
        for name, factors in self.factors.items():
            for letter, target in (("A", factors.a), ("B", factors.b)):
                key = f"{_PREFIX}{name}.lora_{letter}.weight"
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
