"""Adapters on disk, made from factors, and what they add to each layer in float64."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

PREFIX = "base_model.model."
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "random",
    "lora_dropout": 0.0,
    "bias": "none",
    "target_modules": ["q_proj", "v_proj"],
}
Factors = Mapping[str, tuple[Tensor, Tensor]]


def random_factors(
    layers: int = 2,
    rank: int = 8,
    fan_out: int = 20,
    fan_in: int = 12,
    decay: float = 0.7,
    seed: int = 0,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer -> (B: (out, rank), A: (rank, in)), whose singular values fall by about `decay`."""
    rng = np.random.default_rng(seed)
    factors = {}
    for number in range(layers):
        for kind in ("q_proj", "v_proj"):
            b = rng.normal(size=(fan_out, rank)) * decay ** np.arange(rank)
            rotation, _ = np.linalg.qr(rng.normal(size=(rank, rank)))
            a = rng.normal(size=(rank, fan_in))
            name = f"model.layers.{number}.self_attn.{kind}"
            factors[name] = (torch.from_numpy(b @ rotation), torch.from_numpy(rotation.T @ a))
    return factors


def write_adapter(
    folder: Path,
    factors: Factors,
    *,
    dtype: torch.dtype = torch.float64,
    adapter_name: str = "",
    extra: Mapping[str, Tensor] | None = None,
    **config: Any,
) -> Path:
    """Write factors as PEFT does; `config` changes adapter_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = dict(extra or {})
    infix = f".{adapter_name}" if adapter_name else ""
    for name, (b, a) in factors.items():
        for letter, factor in (("A", a), ("B", b)):
            key = f"{PREFIX}{name}.lora_{letter}{infix}.weight"
            tensors[key] = factor.to(dtype).contiguous().clone()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    rank = max((a.shape[0] for _, a in factors.values()), default=8)
    write_config(folder, {**CONFIG, "r": rank, "lora_alpha": 2 * rank, **config})
    return folder


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))


def read_config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    return config


def read_tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def product(folder: Path, layer: str, scaling: float = 1.0) -> Tensor:
    """scaling * B A of a layer, in float64."""
    tensors = read_tensors(folder)
    b, a = (tensors[f"{PREFIX}{layer}.lora_{letter}.weight"].double() for letter in "BA")
    return scaling * b @ a


def best_approximation(matrix: Tensor, rank: int) -> Tensor:
    """By the full SVD of the dense matrix."""
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]
