"""The memory that `retrain explain` estimates, beside what a rollout and an update really take.

Each model is made with random weights from its config and runs in a process of its own. On a GPU
the peaks are those of torch's allocator; on a CPU those of the process (`VmHWM`, set back before
each part) above what it held before.

    python benchmarks/memory.py [--device cuda] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

MIB = 2**20

SHAPES: dict[str, dict[str, Any]] = {
    "Qwen3, 60 M, float32": {
        "kind": "qwen3", "hidden": 512, "inner": 1536, "layers": 8, "heads": 8, "kv": 4,
        "vocabulary": 32000, "dtype": "float32", "rows": (4, 8), "prompt": 100, "tokens": 300,
        "micro": 768, "recompute": False,
    },
    "Llama, 260 M, bfloat16": {
        "kind": "llama", "hidden": 1024, "inner": 2816, "layers": 12, "heads": 16, "kv": 4,
        "vocabulary": 64000, "dtype": "bfloat16", "rows": (2, 8), "prompt": 150, "tokens": 300,
        "micro": 1024, "recompute": False,
    },
    "the same, recomputing": {
        "kind": "llama", "hidden": 1024, "inner": 2816, "layers": 12, "heads": 16, "kv": 4,
        "vocabulary": 64000, "dtype": "bfloat16", "rows": (2, 8), "prompt": 150, "tokens": 300,
        "micro": 2048, "recompute": True,
    },
    "Qwen3, 150 k words, bfloat16": {
        "kind": "qwen3", "hidden": 512, "inner": 1536, "layers": 6, "heads": 8, "kv": 4,
        "vocabulary": 151936, "dtype": "bfloat16", "rows": (4, 8), "prompt": 60, "tokens": 100,
        "micro": 1024, "recompute": False,
    },
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(SHAPES[options.only], options.device)))
        return 0
    results = {}
    for name in SHAPES:
        command = [sys.executable, __file__, "--device", options.device, "--only", name]
        # glibc keeps what was freed, for every thread apart; that is not what is measured here.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
        answer = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
        results[name] = json.loads(answer.stdout)
    if options.json:
        print(json.dumps(results, indent=1))
    else:
        show(results)
    return 0


class Watch:
    """Bytes above those before."""

    def __init__(self, device: Any) -> None:
        self.device = device

    def now(self) -> int:
        import torch

        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device)
        return _status("VmRSS")

    def peak_of(self, work: Any) -> int:
        """The most that was held while `work` ran."""
        import torch

        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            work()
            return torch.cuda.max_memory_allocated(self.device)
        Path("/proc/self/clear_refs").write_text("5")
        work()
        return _status("VmHWM")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def measure(shape: dict[str, Any], device_name: str) -> dict[str, Any]:
    import gc

    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    from gpu_step import STEP, Silent
    from retrain import seeding
    from retrain.config.schema import LossConfig
    from retrain.models.lora import LoraSpec
    from retrain.policies.local.base import BaseModel
    from retrain.policies.local.policy import LocalPolicy
    from retrain.training.rollout import token_weights
    from retrain.types import SamplingParams, TrainBatch, pad_mask, pad_rows

    device = torch.device(device_name)
    torch.set_default_dtype(getattr(torch, shape["dtype"]))
    config_of, model_of = {
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
    }[shape["kind"]]

    def made(scale: int) -> Any:
        config = config_of(
            vocab_size=shape["vocabulary"] // scale,
            hidden_size=shape["hidden"] // scale,
            intermediate_size=shape["inner"] // scale,
            num_hidden_layers=shape["layers"],
            num_attention_heads=shape["heads"],
            num_key_value_heads=shape["kv"],
            head_dim=shape["hidden"] // shape["heads"] // scale,
            tie_word_embeddings=True,
        )
        with device:
            module = model_of(config).eval().requires_grad_(False)
        codec: Any = Silent(shape["vocabulary"])
        return BaseModel(module, codec, "random")

    def policy_on(base: Any) -> Any:
        return LocalPolicy(
            base,
            LoraSpec(32, 64.0),
            1,
            micro_batch_tokens=shape["micro"],
            gradient_checkpointing=shape["recompute"],
        )

    count, times = shape["rows"]
    keys = np.array(
        [[seeding.key(1, "bench", i, j) for j in range(times)] for i in range(count)],
        dtype=np.uint64,
    )

    def rollout(policy: Any, vocabulary: int, tokens: int) -> TrainBatch:
        stream = np.random.default_rng(0)
        prompts = [stream.integers(0, vocabulary, size=shape["prompt"]) for _ in range(count)]
        groups = policy.sample(prompts, keys, SamplingParams(tokens))
        rows = [completion for group in groups for completion in group]
        mask = pad_mask([row.num_tokens for row in rows])
        return TrainBatch(
            prompts=prompts,
            prompt_index=np.repeat(np.arange(count), times),
            token_ids=pad_rows([row.token_ids for row in rows], np.int64),
            mask=mask,
            logprobs=pad_rows([row.logprobs for row in rows]),
            credit=np.ones(mask.shape),
            weight=token_weights(mask, "token_mean", tokens),
            temperature=1.0,
        )

    # Code, threads and workspaces that the first use of anything brings along.
    small = policy_on(made(4))
    small.update(rollout(small, shape["vocabulary"] // 4, 4), LossConfig(), STEP)
    del small
    gc.collect()

    watch = Watch(device)
    start = watch.now()
    base = made(1)
    policy = policy_on(base)
    gc.collect()
    base.free_unused()
    weights = watch.now() - start
    held: dict[str, Any] = {}

    def sampled() -> None:
        held["batch"] = rollout(policy, shape["vocabulary"], shape["tokens"])

    rollout_peak = watch.peak_of(sampled) - start
    gc.collect()
    update_peak = watch.peak_of(lambda: policy.update(held["batch"], LossConfig(), STEP)) - start
    room = shape["prompt"] + shape["tokens"]
    model = base.memory(policy.adapter.num_params, room)
    # The longest row is the least that an update computes at once.
    peak = model.peak(count * times, max(shape["micro"], room), shape["recompute"])
    always = peak.weights + peak.adapter + peak.optimizer
    return {
        "engine": base.engine.kind,
        "parameters": base.shape.parameters,
        "held": weights,
        "rollout": {"estimated": always - peak.optimizer + peak.cache, "measured": rollout_peak},
        "update": {"estimated": always + peak.update, "measured": update_peak},
        "peak": {"estimated": peak.total, "measured": max(rollout_peak, update_peak)},
    }


def show(results: dict[str, Any]) -> None:
    table = Table()
    for heading in (
        "model",
        "engine",
        "part",
        "estimated MiB",
        "measured MiB",
        "estimate / measured",
    ):
        table.add_column(heading, justify="right" if "MiB" in heading or "/" in heading else "left")
    for name, result in results.items():
        for part in ("rollout", "update", "peak"):
            estimated, measured = result[part]["estimated"], result[part]["measured"]
            table.add_row(
                name if part == "rollout" else "",
                result["engine"] if part == "rollout" else "",
                part,
                f"{estimated / MIB:,.0f}",
                f"{measured / MIB:,.0f}",
                f"{estimated / measured:.2f}",
            )
        table.add_section()
    Console(width=None if sys.stdout.isatty() else 110, highlight=False).print(table)


if __name__ == "__main__":
    sys.exit(main())
