"""What it costs that nothing can be lost: checkpoints, journals, locks.

First a run of the quickstart's `grpo+none` on the embedded model, with a clock around everything
that only serves to survive: the share of the run that it takes. Then the checkpoint of a LoRA
adapter of a 4B model (random tensors of its shapes): seconds and bytes a checkpoint, beside one
plain write of the same bytes to the same disk in turns (the floor), and what a resume reads back.

    python benchmarks/durability.py [--rank 32] [--repeats 5] [--folder .] [--json]

The 4B part takes about 2 GB of memory and 3 GB of the disk of `--folder`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import sys
import tempfile
import time
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from shape import environment

if TYPE_CHECKING:
    from retrain.policies.local.policy import LocalPolicy

LAYERS, HIDDEN, MIDDLE, QUERY, KEY_VALUE = 36, 2560, 9728, 4096, 1024
"""Of Qwen3-4B."""
SHAPES = {
    "self_attn.q_proj": (QUERY, HIDDEN),
    "self_attn.k_proj": (KEY_VALUE, HIDDEN),
    "self_attn.v_proj": (KEY_VALUE, HIDDEN),
    "self_attn.o_proj": (HIDDEN, QUERY),
    "mlp.gate_proj": (MIDDLE, HIDDEN),
    "mlp.up_proj": (MIDDLE, HIDDEN),
    "mlp.down_proj": (HIDDEN, MIDDLE),
}
BLOCK = 1 << 24


class Spent:
    """Seconds and calls of the functions that `timed` wraps."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: defaultdict[str, int] = defaultdict(int)
        self._inside = False

    @contextmanager
    def clock(self, name: str) -> Iterator[None]:
        """Calls within calls count once, for the outer one."""
        if self._inside:
            yield
            return
        self._inside = True
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - started
            self.calls[name] += 1
            self._inside = False

    def timed(self, owner: Any, method: str, name: str) -> None:
        """Wrap a method for the rest of this process."""
        inner = getattr(owner, method)

        def wrapped(*arguments: Any, **options: Any) -> Any:
            with self.clock(name):
                return inner(*arguments, **options)

        setattr(owner, method, wrapped)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rank", type=int, default=32, help="LoRA rank of the 4B adapter")
    parser.add_argument("--repeats", type=int, default=5, help="4B checkpoints to write")
    parser.add_argument("--folder", type=Path, default=Path(), help="on the disk to measure")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    options = parser.parse_args()
    if min(options.rank, options.repeats) < 1:
        parser.error("--rank and --repeats must be at least 1")
    if os.environ.get("OMP_NUM_THREADS") != "1":
        # Threads must be set before torch is imported.
        os.execve(sys.executable, [sys.executable, *sys.argv], environment(1))
    with tempfile.TemporaryDirectory(prefix="durability_", dir=options.folder) as folder:
        large = measure_large(Path(folder), options.rank, options.repeats)
        small = measure_small(Path(folder))
    if options.json:
        print(json.dumps({"embedded": small, "large": large}, indent=2))
    else:
        print_small(small)
        print_large(large)
    return 0


def measure_small(folder: Path) -> dict[str, Any]:
    """A whole run of the quickstart's shape, and what of it went into durability."""
    import retrain
    from retrain import templates
    from retrain.files import RunRecord
    from retrain.locks import FolderLock
    from retrain.tracking.journal import Journal
    from retrain.training.checkpoint import Checkpoint, Checkpoints

    spent = Spent()
    saving = Checkpoints.saving

    @contextmanager
    def timed_saving(self: Checkpoints, *arguments: Any) -> Iterator[Path]:
        with spent.clock("checkpoints"), saving(self, *arguments) as aside:
            yield aside

    Checkpoints.saving = timed_saving  # type: ignore[method-assign]
    spent.timed(Journal, "sync", "syncing the journals")
    spent.timed(Journal, "record", "journal rows")
    spent.timed(RunRecord, "update", "run.json")
    spent.timed(FolderLock, "acquire", "the lock")
    spent.timed(FolderLock, "release", "the lock")
    values = tomllib.loads(templates.read("quickstart"))
    steps = values.pop("campaign")["max_steps"]
    values["training"]["max_steps"] = steps
    values["algorithm"] = {"advantage_mode": "grpo", "transform_mode": "none"}
    values["logging"] = {"log_dir": str(folder / "logs")}
    del values["sepa"]
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        result = retrain.train(values)
    wall_s = time.perf_counter() - started
    assert result.status == "done", result.message
    checkpoints = sorted((result.run_dir / "checkpoints").glob("step_*"))
    every = Checkpoint.read(checkpoints[0]).step
    size = sum(path.stat().st_size for path in checkpoints[-1].iterdir())
    return {
        "steps": steps,
        "wall_s": wall_s,
        "seconds": dict(spent.seconds),
        "calls": dict(spent.calls),
        "share": sum(spent.seconds.values()) / wall_s,
        "save_every": every,
        "checkpoint_bytes": size,
        "bytes_a_step": size / every,
    }


def measure_large(folder: Path, rank: int, repeats: int) -> dict[str, Any]:
    """Checkpoints of a 4B model's adapter and its optimizer."""
    from retrain.config.schema import RunConfig
    from retrain.training.checkpoint import Checkpoint, Checkpoints, written_aside

    policy = large_policy(rank)
    config = RunConfig()
    checkpoints = Checkpoints(folder, config)
    every = config.training.save_every
    rows = {"metrics.jsonl": every}
    times: defaultdict[str, list[float]] = defaultdict(list)

    def measure(name: str, work: Callable[[], None]) -> None:
        os.sync()
        started = time.perf_counter()
        work()
        times[name].append(time.perf_counter() - started)

    target = folder / "checkpoints" / f"step_{every:06d}"

    def checkpoint() -> None:
        with checkpoints.saving(every, {"step": every}, rows, None) as aside:
            policy.save(aside)

    def without_checksums() -> None:
        with written_aside(folder / "unchecked") as aside:
            policy.save(aside)

    def verify() -> None:
        Checkpoint.read(target).verify()

    payload = bytes(BLOCK)
    for _ in range(repeats):
        measure("checkpoint", checkpoint)
        size = sum(path.stat().st_size for path in target.iterdir())
        measure("without checksums", without_checksums)
        measure("plain write", partial(write_plain, folder / "plain", payload, size))
        measure("verify", verify)
        measure("load", lambda: policy.load(target))
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = [
        one / other for one, other in zip(times["checkpoint"], times["plain write"], strict=True)
    ]
    return {
        "rank": rank,
        "params": policy.adapter.num_params,
        "checkpoint_bytes": size,
        "save_every": every,
        "bytes_a_step": size / every,
        "seconds": medians,
        "seconds_a_step": medians["checkpoint"] / every,
        "over_plain_write": statistics.median(ratios),
        "step_s_for_2_percent": medians["checkpoint"] / every / 0.02,
    }


def large_policy(rank: int) -> LocalPolicy:
    """The policy of a 4B model without the model: all that a checkpoint needs."""
    import torch

    from retrain.models.lora import LoraSpec
    from retrain.policies.local.policy import LocalPolicy
    from retrain.policies.policy import OptimizerStep

    shapes = {
        f"model.layers.{layer}.{name}": shape
        for layer in range(LAYERS)
        for name, shape in SHAPES.items()
    }
    base: Any = SimpleNamespace(
        codec=None,
        device=torch.device("cpu"),
        name="4B",
        adapter_shapes=lambda _: shapes,
        adapter_target_names=lambda _: [name.rpartition(".")[2] for name in SHAPES],
    )
    policy = LocalPolicy(base, LoraSpec(rank, 2.0 * rank), seed=0)
    generator = torch.Generator().manual_seed(0)
    policy.adapter.params.normal_(std=0.01, generator=generator)
    policy.adapter.grads.normal_(std=0.01, generator=generator)
    policy._optimizer.step(OptimizerStep(0.0, (0.9, 0.999), 0.0, grad_clip=0.0))
    return policy


def write_plain(path: Path, payload: bytes, size: int) -> None:
    """The same number of bytes, in one file, made durable."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        for start in range(0, size, len(payload)):
            file.write(payload[: size - start])
        file.flush()
        os.fsync(file.fileno())


def print_small(small: dict[str, Any]) -> None:
    print(f"embedded model, {small['steps']} steps of the quickstart, {small['wall_s']:.1f} s")
    for name, seconds in sorted(small["seconds"].items(), key=lambda item: -item[1]):
        calls = small["calls"][name]
        print(f"  {name:<22}{seconds:8.3f} s  {calls:3d} x {1000 * seconds / calls:6.1f} ms")
    print(f"  share of the run      {small['share']:8.2%}")
    print(
        f"  a checkpoint has {small['checkpoint_bytes'] / 1e6:.2f} MB, every "
        f"{small['save_every']} steps: {small['bytes_a_step'] / 1e3:.0f} kB a step"
    )


def print_large(large: dict[str, Any]) -> None:
    size = large["checkpoint_bytes"]
    print(
        f"LoRA of a 4B model, rank {large['rank']}: {large['params'] / 1e6:.1f} M parameters, "
        f"{size / 1e6:.0f} MB a checkpoint"
    )
    for name, seconds in large["seconds"].items():
        print(f"  {name:<22}{seconds:8.2f} s  {size / seconds / 1e6:6.0f} MB/s")
    print(f"  over a plain write    {large['over_plain_write']:8.2f} x (median of ratios in turns)")
    print(
        f"  every {large['save_every']} steps: {large['seconds_a_step']:.3f} s and "
        f"{large['bytes_a_step'] / 1e6:.1f} MB a step; under 2 % of a run whose steps take "
        f"{large['step_s_for_2_percent']:.1f} s or more"
    )


if __name__ == "__main__":
    raise SystemExit(main())
