"""What it costs to analyse and cut a LoRA adapter of a 4B model, beside plainer ways.

An adapter of Qwen3-4B's 252 modules is made of random factors whose singular values fall, written
once, and analysed and cut to `--rank-to` as a user would. Then, on the modules of `--layers` of its
36 layers, in turns, module by module, each reading its factors from the file:

  squeeze      what retrain does: float64, only the triangles of both factors, singular values only
  householder  the same for an ill-conditioned adapter, where the fast triangle is refused
  plain loop   float32, full QR of both factors, full SVD of the core
  dense        float32, B A formed, its singular values; one module of each shape, once, because
               one takes seconds

and each is scaled to the whole adapter. Memory is what the process holds itself (RssAnon, sampled
every 2 ms) above what it held before; pages of the mapped file are not counted.

    python benchmarks/squeeze.py [--rank 128] [--layers 2] [--repeats 3] [--folder .] [--json]

The defaults take about 1.2 GB of the disk of `--folder` and two minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from durability import LAYERS, SHAPES
from shape import environment

if TYPE_CHECKING:
    from retrain.models.adapters.reader import Adapter, LoraModule

PREFIX = "base_model.model."


class PeakMemory:
    """The largest amount of memory of this process while it is watched, above the start."""

    def __init__(self) -> None:
        self.bytes = 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        start, over = anonymous_memory(), threading.Event()

        def watch() -> None:
            while not over.wait(0.002):
                self.bytes = max(self.bytes, anonymous_memory() - start)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()


def anonymous_memory() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rank", type=int, default=128, help="LoRA rank of the adapter")
    parser.add_argument("--rank-to", type=int, default=32, help="rank that it is cut to")
    parser.add_argument("--layers", type=int, default=2, help="layers measured in turns, of 36")
    parser.add_argument("--repeats", type=int, default=3, help="turns")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path(), help="where the adapter is written")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    options = parser.parse_args()
    if min(options.rank_to, options.layers, options.repeats, options.threads) < 1:
        parser.error("all numbers must be at least 1")
    if not options.rank_to <= options.rank or options.layers > LAYERS:
        parser.error(f"--rank-to is at most --rank, --layers at most {LAYERS}")
    if os.environ.get("OMP_NUM_THREADS") != str(options.threads):
        # Threads must be set before torch is imported.
        os.execve(sys.executable, [sys.executable, *sys.argv], environment(options.threads))
    with tempfile.TemporaryDirectory(prefix="squeeze_", dir=options.folder) as folder:
        source = Path(folder) / "adapter"
        make_adapter(source, options.rank)
        result = {
            "threads": options.threads,
            "rank": options.rank,
            "bytes": (source / "adapter_model.safetensors").stat().st_size,
            "whole": measure_whole(source, Path(folder) / "cut", options.rank_to),
            "turns": measure_turns(source, options.layers, options.repeats),
        }
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        print_result(result)
    return 0


def make_adapter(folder: Path, rank: int) -> None:
    """Random factors, in float32 as retrain trains them; singular values fall to 1/50."""
    import torch

    from retrain.models.adapters.settings import ADAPTER_CONFIG
    from retrain.models.adapters.tensors import WEIGHTS, TensorWriter

    layout: dict[str, tuple[str, tuple[int, ...]]] = {}
    for layer in range(LAYERS):
        for name, (fan_out, fan_in) in SHAPES.items():
            key = f"{PREFIX}model.layers.{layer}.{name}"
            layout[f"{key}.lora_A.weight"] = ("F32", (rank, fan_in))
            layout[f"{key}.lora_B.weight"] = ("F32", (fan_out, rank))
    generator = torch.Generator().manual_seed(0)
    decay = torch.logspace(0, -1.7, rank)
    rotation, _ = torch.linalg.qr(torch.randn(rank, rank, generator=generator))
    folder.mkdir()
    with (folder / WEIGHTS).open("wb") as file:
        writer = TensorWriter(file, layout)
        for name, (_, shape) in layout.items():
            factor = 0.01 * torch.randn(shape, generator=generator)
            writer.write(name, factor * decay @ rotation if "lora_B" in name else factor)
        writer.finish()
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": [name.rpartition(".")[2] for name in SHAPES],
    }
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config))


def measure_whole(source: Path, target: Path, rank_to: int) -> dict[str, Any]:
    """The two calls that a user makes, and the memory that they take."""
    import torch

    from retrain.squeeze import analyze_adapter, compress_adapter

    torch.linalg.svdvals(torch.eye(2))  # what torch loads once is not ours
    memory = {"analyse": PeakMemory(), "compress": PeakMemory()}
    started = time.perf_counter()
    with memory["analyse"].watched():
        analysis = analyze_adapter(source, device="cpu")
    analysed = time.perf_counter()
    with memory["compress"].watched():
        compress_adapter(source, target, rank=rank_to, device="cpu")
    done = time.perf_counter()
    largest = max(sum(module.shape) for module in analysis.modules) * analysis.source_rank
    return {
        "modules": analysis.num_layers,
        "recommended_rank": analysis.recommended_rank,
        "rank_to": rank_to,
        "analyse_s": analysed - started,
        "compress_s": done - analysed,
        "analyse_peak_bytes": memory["analyse"].bytes,
        "compress_peak_bytes": memory["compress"].bytes,
        "largest_module_float64_bytes": 8 * largest,
    }


def measure_turns(source: Path, layers: int, repeats: int) -> dict[str, Any]:
    """Seconds of each way on the same modules, and their ratios to ours in the same turn."""
    from retrain.models.adapters.reader import open_adapter

    ways = {"squeeze": squeeze, "householder": householder, "plain loop": plain_loop}
    seconds: defaultdict[str, list[float]] = defaultdict(list)
    with open_adapter(source) as adapter:
        chosen = [m for m in adapter.modules if int(m.name.split(".")[2]) < layers]
        for module in chosen:  # read once, so that no turn pays for the disk
            squeeze(adapter, module)
        for turn in range(repeats):
            spent = dict.fromkeys(ways, 0.0)
            for module in chosen:
                for way in list(ways) if turn % 2 else reversed(ways):
                    spent[way] += timed(ways[way], adapter, module)
            for way, total in spent.items():
                seconds[way].append(total)
        # One module of a shape stands for all modules of it or of its transpose.
        alike: defaultdict[tuple[int, ...], list[LoraModule]] = defaultdict(list)
        for module in chosen:
            alike[tuple(sorted((module.fan_out, module.fan_in)))].append(module)
        dense_s = ours_s = 0.0
        for same in alike.values():
            dense_s += len(same) * timed(dense, adapter, same[0])
            ours_s += len(same) * timed(squeeze, adapter, same[0])
        exact = agreement(adapter, chosen[0])
    factor = LAYERS / layers
    ratios = {
        way: statistics.median(
            other / own for other, own in zip(values, seconds["squeeze"], strict=True)
        )
        for way, values in seconds.items()
    }
    scaled = {way: factor * statistics.median(values) for way, values in seconds.items()}
    return {
        "layers": layers,
        "repeats": repeats,
        "seconds_whole": {**scaled, "dense": factor * dense_s},
        "over_squeeze": {**ratios, "dense": dense_s / ours_s},
        "relative_error": exact,
    }


def timed(way: Callable[[Adapter, LoraModule], Any], adapter: Adapter, module: LoraModule) -> float:
    started = time.perf_counter()
    way(adapter, module)
    return time.perf_counter() - started


def squeeze(adapter: Adapter, module: LoraModule) -> Any:
    import torch

    from retrain.squeeze import factors

    b, a = adapter.factors(module, torch.device("cpu"), torch.float64)
    return factors.singular_values(b, a)


def householder(adapter: Adapter, module: LoraModule) -> Any:
    """As `squeeze`, the fast triangle tried and refused."""
    from retrain.squeeze import factors

    limit, factors._CONDITION_ERROR = factors._CONDITION_ERROR, 0.0
    try:
        return squeeze(adapter, module)
    finally:
        factors._CONDITION_ERROR = limit


def plain_loop(adapter: Adapter, module: LoraModule) -> Any:
    import torch

    b, a = adapter.tensors.read(module.b), adapter.tensors.read(module.a)
    _, r_b = torch.linalg.qr(b)
    _, r_a = torch.linalg.qr(a.T)
    _, values, _ = torch.linalg.svd(r_b @ r_a.T)
    return values


def dense(adapter: Adapter, module: LoraModule) -> Any:
    import torch

    b, a = adapter.tensors.read(module.b), adapter.tensors.read(module.a)
    return torch.linalg.svdvals(b @ a)


def agreement(adapter: Adapter, module: LoraModule) -> dict[str, float]:
    """Largest relative error of a singular value, against Householder QR in float64."""
    reference = householder(adapter, module)
    return {
        way.__name__: float(((way(adapter, module).double() - reference) / reference).abs().max())
        for way in (squeeze, plain_loop)
    }


def print_result(result: dict[str, Any]) -> None:
    whole, turns = result["whole"], result["turns"]
    print(
        f"{whole['modules']} modules of a 4B model, rank {result['rank']}, "
        f"{result['bytes'] / 1e6:.0f} MB, {result['threads']} thread(s)"
    )
    for name in ("analyse", "compress"):
        to = f" to rank {whole['rank_to']}" if name == "compress" else ""
        print(
            f"  {name + to:<24}{whole[f'{name}_s']:8.2f} s   peak "
            f"{whole[f'{name}_peak_bytes'] / 1e6:5.0f} MB"
        )
    largest = whole["largest_module_float64_bytes"] / 1e6
    print(f"  largest module's factors in float64: {largest:.0f} MB")
    print(f"in turns on {turns['layers']} of {LAYERS} layers, scaled to all; over squeeze")
    for way, seconds in turns["seconds_whole"].items():
        print(f"  {way:<24}{seconds:8.2f} s {turns['over_squeeze'][way]:9.2f} x")
    errors = turns["relative_error"]
    print(
        "largest relative error of a singular value: "
        + ", ".join(f"{way.replace('_', ' ')} {error:.1e}" for way, error in errors.items())
    )


if __name__ == "__main__":
    raise SystemExit(main())
