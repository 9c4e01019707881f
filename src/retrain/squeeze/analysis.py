"""How much of an adapter each rank keeps.

Retention(k) of a module is the share of its squared singular values in the k largest: the rest is
the squared Frobenius error of the best rank-k approximation. A module whose B A is zero has no
retention; it is counted and left out. A module of a smaller rank than others keeps all from its
own rank on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from retrain.errors import InputError
from retrain.models.adapters.reader import Adapter, open_adapter

Progress = Callable[[int, int], None]
"""Called with (modules done, modules in all)."""
Device = str
Dtype = Literal["float64", "float32"]

ROUND_OFF = 1e-12
"""A retention this close to the threshold has reached it: 1.0 must be reachable."""

_LAYER = re.compile(r"(?:(?P<before>.*?)\.)?(?P<index>\d+)\.(?P<kind>.+)")


@dataclass(frozen=True, slots=True)
class ModuleSpectrum:
    """One module that is not zero.

    shape:           (out, in) of B A.
    rank, scaling:   of the adapter; `scaling * B A` is what it adds to the layer.
    singular_values: of B A, largest first, `rank` of them.
    effective_rank:  the smallest rank that keeps the threshold's share of this module.
    layer:           the number in its name, None without one; module_type: the rest of the name.
    """

    name: str
    shape: tuple[int, int]
    rank: int
    scaling: float
    singular_values: tuple[float, ...]
    effective_rank: int
    layer: int | None
    module_type: str

    @property
    def scaled_singular_values(self) -> tuple[float, ...]:
        """Singular values of what the module adds to the layer."""
        return tuple(abs(self.scaling) * value for value in self.singular_values)

    def error(self, rank: int) -> tuple[float, float]:
        """(Frobenius, spectral) distance from the best approximation of a rank, scaling included"""
        tail = self.scaled_singular_values[rank:]
        return float(np.linalg.norm(tail)), tail[0] if tail else 0.0


@dataclass(frozen=True, slots=True)
class SqueezeAnalysis:
    """Retentions of an adapter, as mappings from every rank 1..source_rank.

    mean, min and max are over modules; pooled_variance weighs them by their scaled squared
    singular values, as one matrix that holds them all would. `ranks` are those worth showing:
    powers of two, the asked ones, the recommended one and the source rank. recommended_rank is
    the smallest of all ranks whose mean_variance reaches min_variance_retention.
    """

    adapter: str
    source_rank: int
    ranks: tuple[int, ...]
    mean_variance: Mapping[int, float]
    min_variance: Mapping[int, float]
    max_variance: Mapping[int, float]
    pooled_variance: Mapping[int, float]
    recommended_rank: int
    min_variance_retention: float
    zero_modules: tuple[str, ...]
    modules: tuple[ModuleSpectrum, ...]

    @property
    def num_layers(self) -> int:
        """Modules analysed, those that are not zero."""
        return len(self.modules)

    def summary(self) -> dict[str, Any]:
        """Everything but the modules, as JSON can hold it (a rank is a string there)."""
        curves = ("mean_variance", "min_variance", "max_variance", "pooled_variance")
        return {
            "adapter": self.adapter,
            "source_rank": self.source_rank,
            "recommended_rank": self.recommended_rank,
            "min_variance_retention": self.min_variance_retention,
            "num_layers": self.num_layers,
            "zero_modules": list(self.zero_modules),
            "ranks": list(self.ranks),
            **{name: {str(k): v for k, v in getattr(self, name).items()} for name in curves},
        }

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON can hold it; singular values are those of B A, without scaling."""
        modules = [
            {
                "name": module.name,
                "layer": module.layer,
                "module_type": module.module_type,
                "shape": list(module.shape),
                "rank": module.rank,
                "scaling": module.scaling,
                "effective_rank": module.effective_rank,
                "singular_values": list(module.singular_values),
            }
            for module in self.modules
        ]
        return {**self.summary(), "modules": modules}


def analyze_adapter(
    path: str | Path,
    *,
    min_variance_retention: float = 0.95,
    source_rank: int = 0,
    target_ranks: Sequence[int] = (),
    adapter_name: str | None = None,
    device: Device = "auto",
    dtype: Dtype = "float64",
    on_module: Progress | None = None,
) -> SqueezeAnalysis:
    """Analyse a PEFT LoRA adapter: a folder, a .safetensors file or an archive.

    source_rank, if not 0, is the rank that the adapter must have. One module's factors are in
    memory at a time. Raises InputError for whatever cannot be analysed.
    """
    check_threshold(min_variance_retention)
    with open_adapter(path, adapter_name) as adapter:
        return analyze_open(
            adapter, min_variance_retention, source_rank, target_ranks, device, dtype, on_module
        )


def analyze_open(
    adapter: Adapter,
    min_variance_retention: float,
    source_rank: int,
    target_ranks: Sequence[int],
    device: Device,
    dtype: Dtype,
    on_module: Progress | None,
) -> SqueezeAnalysis:
    """`analyze_adapter` of an adapter that is open already."""
    check_ranks(adapter, source_rank, target_ranks)
    from retrain.squeeze import factors

    where, precision = factors.choose_device(device, dtype)
    places = positions(module.name for module in adapter.modules)
    spectra: list[ModuleSpectrum] = []
    zero: list[str] = []
    for done, module in enumerate(adapter.modules, start=1):
        b, a = adapter.factors(module, where, precision)
        values = np.array(factors.singular_values(b, a).tolist())
        if values[0] > 0:
            layer, kind = places[module.name]
            own = retention(values, module.rank)
            spectra.append(
                ModuleSpectrum(
                    name=module.name,
                    shape=(module.fan_out, module.fan_in),
                    rank=module.rank,
                    scaling=module.scaling,
                    singular_values=tuple(values.tolist()),
                    effective_rank=smallest_rank(own, min_variance_retention),
                    layer=layer,
                    module_type=kind,
                )
            )
        else:
            zero.append(module.name)
        if on_module is not None:
            on_module(done, len(adapter.modules))
    if not spectra:
        raise InputError(
            f"{adapter.where}: all {len(zero)} modules are zero, so there is nothing to squeeze; "
            "was the adapter trained? (PEFT starts with B = 0)"
        )
    return _summarized(
        adapter.where, spectra, tuple(zero), adapter.rank, min_variance_retention, target_ranks
    )


def _summarized(
    where: str,
    spectra: Sequence[ModuleSpectrum],
    zero: tuple[str, ...],
    source_rank: int,
    threshold: float,
    target_ranks: Sequence[int],
) -> SqueezeAnalysis:
    retentions_MR = np.array(
        [retention(np.array(module.singular_values), source_rank) for module in spectra]
    )
    energy_M = np.array([np.sum(np.square(module.scaled_singular_values)) for module in spectra])
    weight_M = energy_M / energy_M.sum()
    # As 1 minus what is lost, so that nothing lost is exactly 1.
    pooled_R = 1.0 - weight_M @ (1.0 - retentions_MR)
    mean_R = retentions_MR.mean(axis=0)
    recommended = smallest_rank(mean_R, threshold)
    powers = {1 << i for i in range(source_rank.bit_length()) if 1 << i <= source_rank}
    return SqueezeAnalysis(
        adapter=where,
        source_rank=source_rank,
        ranks=tuple(sorted(powers | {*target_ranks, recommended, source_rank})),
        mean_variance=_by_rank(mean_R),
        min_variance=_by_rank(retentions_MR.min(axis=0)),
        max_variance=_by_rank(retentions_MR.max(axis=0)),
        pooled_variance=_by_rank(pooled_R),
        recommended_rank=recommended,
        min_variance_retention=threshold,
        zero_modules=zero,
        modules=tuple(spectra),
    )


def retention(values: npt.NDArray[np.float64], length: int) -> npt.NDArray[np.float64]:
    """Retention at ranks 1..length of one module. values: (rank,), rank <= length -> (length,).

    Computed from the tails, smallest first: exactly 1 where nothing is lost, and never falling.
    """
    energy = np.square(values / values.max())
    tails = np.append(np.cumsum(energy[::-1])[::-1], 0.0)
    kept = 1.0 - tails[1:] / tails[0]
    return np.append(kept, np.ones(length - len(kept)))


def smallest_rank(retentions: npt.NDArray[np.float64], threshold: float) -> int:
    """The smallest rank whose retention reaches the threshold. retentions[i]: of rank i + 1."""
    return int(np.argmax(retentions >= threshold - ROUND_OFF)) + 1


def positions(names: Iterable[str]) -> dict[str, tuple[int | None, str]]:
    """(layer, module type) of each module: what stands before and after its first number.

    `model.layers.3.self_attn.q_proj` is (3, "q_proj"), experts are `experts.*.up_proj`, and a
    module without a number is its own type. Types are shortened to their last part when that tells
    them apart; where several stacks of layers exist, they keep the name of theirs.
    """
    matches = {name: _LAYER.fullmatch(name) for name in names}
    stacks = {match["before"] for match in matches.values() if match}
    kinds: dict[str, str] = {}
    for name, match in matches.items():
        kind = re.sub(r"(?<=\.)\d+(?=\.|$)", "*", match["kind"]) if match else name
        kinds[name] = f"{match['before']}.{kind}" if match and len(stacks) > 1 else kind
    types = set(kinds.values())
    last = {kind: kind.rsplit(".", 1)[-1] for kind in types}
    if len(set(last.values())) < len(types):
        last = {kind: kind for kind in types}
    return {
        name: (int(match["index"]) if match else None, last[kinds[name]])
        for name, match in matches.items()
    }


def check_threshold(threshold: float) -> None:
    if not 0 < threshold <= 1:
        raise InputError(
            f"min_variance_retention: {threshold} is not a share; more than 0 and at most 1 is "
            "wanted (0.95 keeps 95 %)"
        )


def check_ranks(adapter: Adapter, source_rank: int, target_ranks: Sequence[int]) -> None:
    """Raise InputError where the given ranks contradict the adapter."""
    if source_rank not in (0, adapter.rank, adapter.settings.rank):
        raise InputError(
            f"source_rank: {source_rank}, but the adapter in {adapter.where} has rank "
            f"{adapter.rank}; write {adapter.rank}, or 0 to take the adapter's"
        )
    for rank in target_ranks:
        check_rank(adapter, rank, "target_ranks")


def check_rank(adapter: Adapter, rank: int, key: str) -> None:
    """Raise InputError for a rank that the adapter cannot be cut to."""
    if not 1 <= rank <= adapter.rank:
        raise InputError(
            f"{key}: {rank}, but the adapter in {adapter.where} has rank {adapter.rank}; "
            f"1 to {adapter.rank} is possible"
        )


def _by_rank(values: npt.NDArray[np.float64]) -> dict[int, float]:
    return {rank: float(value) for rank, value in enumerate(values, start=1)}
