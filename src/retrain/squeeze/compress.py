"""An adapter cut to a smaller rank, as PEFT loads it, with every scaling as it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from retrain.errors import InputError
from retrain.files import atomic_write_json, expanded
from retrain.models.adapters.reader import Adapter, open_adapter
from retrain.models.adapters.settings import ADAPTER_CONFIG
from retrain.models.adapters.tensors import WEIGHTS, TensorWriter
from retrain.squeeze.allocation import layers_ranks
from retrain.squeeze.analysis import (
    Device,
    Dtype,
    Progress,
    SqueezeAnalysis,
    analyze_open,
    check_rank,
    check_threshold,
    retention,
)
from retrain.squeeze.pictures import PICTURES

Allocation = Literal["uniform", "per_module"]

RESULT_FILE = "squeeze.json"
_OURS = {ADAPTER_CONFIG, WEIGHTS, RESULT_FILE, *PICTURES}


@dataclass(frozen=True, slots=True)
class SqueezeResult:
    """What was written.

    rank: of all modules that had more, or the one whose parameters `per_module` spent elsewhere.
    ranks: of every module, zero ones included. parameters: of the factors, after and before.
    mean_variance, min_variance, pooled_variance: kept by those ranks.
    carried: tensors beside the factors, copied as they are.
    """

    output_path: Path
    rank: int
    allocation: Allocation
    ranks: Mapping[str, int]
    parameters: int
    source_parameters: int
    mean_variance: float
    min_variance: float
    pooled_variance: float
    carried: tuple[str, ...]
    analysis: SqueezeAnalysis

    def summary(self) -> dict[str, Any]:
        """As `squeeze.json` in the written folder has it."""
        return {
            "kind": "compressed adapter",
            "rank": self.rank,
            "allocation": self.allocation,
            "parameters": self.parameters,
            "source_parameters": self.source_parameters,
            "mean_variance": self.mean_variance,
            "min_variance": self.min_variance,
            "pooled_variance": self.pooled_variance,
            "ranks": dict(self.ranks),
            "carried": list(self.carried),
            "analysis": self.analysis.summary(),
        }


def compress_adapter(
    path: str | Path,
    output_path: str | Path,
    *,
    rank: int = 0,
    allocation: Allocation = "uniform",
    min_variance_retention: float = 0.95,
    source_rank: int = 0,
    target_ranks: tuple[int, ...] = (),
    adapter_name: str | None = None,
    device: Device = "auto",
    dtype: Dtype = "float64",
    on_module: Progress | None = None,
) -> SqueezeResult:
    """Write the adapter at `path`, cut to `rank` (0: the recommended one), to `output_path`.

    With `per_module` the parameters of that rank go where they keep most. The folder is
    adapter_config.json, adapter_model.safetensors in the source's dtypes, and squeeze.json; it
    appears at once or not at all. The same source gives the same bytes on the same machine.
    Analysing and writing each pass over the modules once, which `on_module` counts together.

    Raises InputError for an adapter that cannot be squeezed, a rank above its own, and a folder
    that holds anything but an earlier result.
    """
    check_threshold(min_variance_retention)
    if allocation not in ("uniform", "per_module"):
        raise InputError(f"allocation: {allocation!r} is not known; uniform or per_module")
    output = expanded(output_path)
    with open_adapter(path, adapter_name) as adapter:
        if rank:
            check_rank(adapter, rank, "rank")
        _check_output(output, expanded(path), adapter)
        if allocation == "per_module":
            _check_free_ranks(adapter)
        total = len(adapter.modules)
        analysis = analyze_open(
            adapter,
            min_variance_retention,
            source_rank,
            target_ranks,
            device,
            dtype,
            None if on_module is None else lambda done, _: on_module(done, 2 * total),
        )
        rank = rank or analysis.recommended_rank
        ranks = layers_ranks(adapter.modules, analysis, rank, allocation)
        result = _result(output, adapter, analysis, rank, allocation, ranks)
        progress = None if on_module is None else lambda done: on_module(total + done, 2 * total)
        _write(output, adapter, result, device, dtype, progress)
    return result


def _result(
    output: Path,
    adapter: Adapter,
    analysis: SqueezeAnalysis,
    rank: int,
    allocation: Allocation,
    ranks: Mapping[str, int],
) -> SqueezeResult:
    kept_M = np.array(
        [
            retention(np.array(module.singular_values), module.rank)[ranks[module.name] - 1]
            for module in analysis.modules
        ]
    )
    energy_M = np.array([np.sum(np.square(m.scaled_singular_values)) for m in analysis.modules])
    return SqueezeResult(
        output_path=output,
        rank=rank,
        allocation=allocation,
        ranks=ranks,
        parameters=sum(m.parameters_a_rank * ranks[m.name] for m in adapter.modules),
        source_parameters=sum(m.parameters_a_rank * m.rank for m in adapter.modules),
        mean_variance=float(kept_M.mean()),
        min_variance=float(kept_M.min()),
        pooled_variance=float(1.0 - energy_M / energy_M.sum() @ (1.0 - kept_M)),
        carried=tuple(sorted(adapter.carried.values())),
        analysis=analysis,
    )


def _write(
    output: Path,
    adapter: Adapter,
    result: SqueezeResult,
    device: Device,
    dtype: Dtype,
    progress: Callable[[int], None] | None,
) -> None:
    """Write the folder, one module in memory at a time."""
    # Here, because it is not needed to analyse.
    from retrain.squeeze import factors
    from retrain.training.checkpoint import written_aside

    where, precision = factors.choose_device(device, dtype)
    tensors, settings = adapter.tensors, adapter.settings
    layout = {
        written: (tensors.dtype(name), tensors.shape(name))
        for name, written in adapter.carried.items()
    }
    layers: dict[str, tuple[int, float]] = {}
    for module in adapter.modules:
        rank = result.ranks[module.name]
        a_shape = (rank, *module.a_shape[1:])
        b_shape = (module.fan_out, rank, *module.b_shape[2:])
        layout[module.written_a] = (tensors.dtype(module.a), a_shape)
        layout[module.written_b] = (tensors.dtype(module.b), b_shape)
        layers[module.name] = (rank, settings.alpha_for(module.alpha, module.rank, rank))
    zero = set(result.analysis.zero_modules)
    output.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(output) as aside:
        with (aside / WEIGHTS).open("wb") as file:
            writer = TensorWriter(file, layout)
            for name, written in adapter.carried.items():
                writer.write(written, tensors.read(name))
            for done, module in enumerate(adapter.modules, start=1):
                b, a = adapter.factors(module, where, precision)
                cut = factors.cut_zero if module.name in zero else factors.truncated
                new_b, new_a = cut(b, a, result.ranks[module.name])
                for name, written, new in (
                    (module.a, module.written_a, new_a),
                    (module.b, module.written_b, new_b),
                ):
                    writer.write(written, new.to(factors.stored_dtype(tensors.dtype(name))))
                if progress is not None:
                    progress(done)
            writer.finish()
        text = json.dumps(settings.with_ranks(layers, result.rank), indent=2, ensure_ascii=False)
        (aside / ADAPTER_CONFIG).write_text(text + "\n", encoding="utf-8")
        atomic_write_json(aside / RESULT_FILE, result.summary())


def _check_output(output: Path, source: Path, adapter: Adapter) -> None:
    """Raise InputError unless `output` is free, empty, or an earlier result, and not the source."""
    if output.exists() and not output.is_dir():
        raise InputError(f"output_path: {output} is a file; name a folder")
    inside = adapter.folder.resolve()
    for place in (inside, source.resolve()):
        if place == output.resolve() or output.resolve() in place.parents:
            raise InputError(f"output_path: {output} holds the adapter itself; name another folder")
    if not output.is_dir():
        return
    held = {path.name for path in output.iterdir()}
    if held and (RESULT_FILE not in held or not _is_ours(output / RESULT_FILE)):
        raise InputError(
            f"output_path: {output} is not empty and no earlier result; name another folder"
        )
    if held - _OURS:
        other = ", ".join(sorted(held - _OURS)[:3])
        raise InputError(
            f"output_path: {output} holds more than an earlier result ({other}), which would be "
            "lost; move it away or name another folder"
        )


def _is_ours(file: Path) -> bool:
    try:
        return bool(json.loads(file.read_bytes())["kind"] == "compressed adapter")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _check_free_ranks(adapter: Adapter) -> None:
    """Raise InputError where PEFT needs several layers to have one rank."""
    where = adapter.settings.where
    if adapter.settings.values.get("ensure_weight_tying"):
        raise InputError(
            f"{where}: ensure_weight_tying = true makes layers share their factors, which need "
            'one rank; take allocation = "uniform"'
        )
    experts = next((m.name for m in adapter.modules if ".experts." in m.name), None)
    if experts:
        raise InputError(
            f"{where}: experts ({experts}) are fused when they are loaded and need one rank; take "
            'allocation = "uniform"'
        )
