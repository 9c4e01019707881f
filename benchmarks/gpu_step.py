"""A training step of a large model: rollout and update, against the limits of the device.

A Qwen3-4B-shaped model with random weights (from its config, no download) gets a LoRA adapter;
8 x 16 completions of so many forced tokens are sampled and learnt from. The device's memory
bandwidth and matrix speed are measured in the same run; the shares say how much of them the step
reaches. Peers, when asked for: transformers' `generate` and `generate_batch` on the same model.

    python benchmarks/gpu_step.py [--tokens 512,2048] [--peers generate,generate_batch] [--json]
    python benchmarks/gpu_step.py --tiny        a small model on a CPU, in seconds

See benchmarks/README.md for how to read the output.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from retrain import seeding
from retrain.config.schema import LossConfig
from retrain.models.lora import LoraSpec
from retrain.policies.local.base import BaseModel
from retrain.policies.local.policy import LocalPolicy
from retrain.policies.policy import OptimizerStep
from retrain.training.rollout import token_weights
from retrain.types import Completion, SamplingParams, TrainBatch, pad_mask, pad_rows

GIB = 2**30
STEP = OptimizerStep(lr=1e-5, betas=(0.9, 0.99), weight_decay=0.0, grad_clip=1.0)


@dataclass(frozen=True, slots=True)
class Shape:
    """The model and the step."""

    hidden: int = 2560
    intermediate: int = 9728
    layers: int = 36
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    vocabulary: int = 151936
    rank: int = 32
    problems: int = 8
    completions: int = 16
    prompt: int = 200

    @property
    def rows(self) -> int:
        return self.problems * self.completions


TINY = Shape(64, 128, 2, 4, 2, 16, 512, 4, 2, 3, 9)


class Silent:
    """A codec whose completions never end."""

    def __init__(self, vocabulary: int) -> None:
        self.eos_ids = (vocabulary,)

    def decode(self, _row: Any) -> str:
        return ""

    def decode_batch(self, rows: Sequence[Any]) -> list[str]:
        return [""] * len(rows)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", default="512,2048", help="completion lengths")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--peers", default="", help="generate, generate_batch")
    parser.add_argument("--repeats", type=int, default=2, help="the fastest is shown")
    parser.add_argument("--tiny", action="store_true", help="a small model on a CPU")
    parser.add_argument("--profile", metavar="FILE", help="write a torch profile of one step")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()
    shape = TINY if options.tiny else Shape()
    device = torch.device("cpu" if options.tiny else options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU here; --tiny runs on a CPU")
    lengths = [5, 9] if options.tiny else [int(part) for part in options.tokens.split(",")]
    bench = Bench(shape, device, options.repeats)
    peers = [peer for peer in options.peers.split(",") if peer]
    result = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "shape": asdict(shape),
        "parameters": bench.parameters,
        "limits": asdict(bench.limits),
        "steps": [bench.step(tokens, peers) for tokens in lengths],
    }
    if options.profile:
        bench.profile(lengths[0], options.profile)
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        show(result)
    return 0


@dataclass(frozen=True, slots=True)
class Limits:
    """What the device reaches alone: bytes a second of a copy (read and written), and
    floating-point operations a second of a square product in the weights' type."""

    bandwidth: float
    flops: float


class Bench:
    def __init__(self, shape: Shape, device: torch.device, repeats: int) -> None:
        self.shape, self.device, self.repeats = shape, device, repeats
        self.dtype = torch.bfloat16
        module = make_module(shape, device, self.dtype)
        self.parameters = sum(p.numel() for p in module.parameters())
        codec: Any = Silent(shape.vocabulary)
        self.base = BaseModel(module, codec, "random")
        self.policy = LocalPolicy(self.base, LoraSpec(shape.rank, 2.0 * shape.rank), 1)
        stream = np.random.default_rng(0)
        self.prompts = [
            stream.integers(0, shape.vocabulary, size=shape.prompt) for _ in range(shape.problems)
        ]
        self.limits = self._limits()

    def step(self, tokens: int, peers: Sequence[str]) -> dict[str, Any]:
        """Seconds, tokens a second, memory, and shares of the limits, at one length."""
        groups, rollout_s, rollout_peak = self._timed(lambda: self._rollout(tokens))
        batch = self._batch(groups, tokens)
        # The first one finds its sizes by a dry pass.
        self.policy.update(batch, LossConfig(), STEP)
        _, update_s, update_peak = self._timed(
            lambda: self.policy.update(batch, LossConfig(), STEP)
        )
        total = self.shape.rows * tokens
        return {
            "tokens": tokens,
            "rollout_s": rollout_s,
            "rollout_tokens_per_s": total / rollout_s,
            "rollout_share_of_bandwidth": self._rollout_bytes(tokens)
            / self.limits.bandwidth
            / rollout_s,
            "rollout_peak_gib": rollout_peak,
            "update_s": update_s,
            "update_tokens_per_s": total / update_s,
            "update_share_of_flops": self._update_flops(tokens) / self.limits.flops / update_s,
            "update_peak_gib": update_peak,
            "sizes": asdict(self.policy.sizes),
            "peers": {peer: self._peer(peer, tokens) for peer in peers},
        }

    def profile(self, tokens: int, path: str) -> None:
        from torch.profiler import ProfilerActivity, profile

        activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
        with profile(activities=activities[: 1 + (self.device.type == "cuda")]) as found:
            groups = self._rollout(min(tokens, 64))
            self.policy.update(self._batch(groups, min(tokens, 64)), LossConfig(), STEP)
        found.export_chrome_trace(path)
        print(found.key_averages().table(sort_by="self_cuda_time_total", row_limit=25))

    def _rollout(self, tokens: int) -> list[list[Completion]]:
        shape = self.shape
        keys = np.array(
            [
                [seeding.key(1, "bench", i, j) for j in range(shape.completions)]
                for i in range(shape.problems)
            ],
            dtype=np.uint64,
        )
        return self.policy.sample(self.prompts, keys, SamplingParams(tokens))

    def _batch(self, groups: Sequence[Sequence[Completion]], tokens: int) -> TrainBatch:
        rows = [completion for group in groups for completion in group]
        mask = pad_mask([row.num_tokens for row in rows])
        assert mask.all(), "completions have the length that was asked for"
        credit = np.random.default_rng(1).normal(size=(len(rows), 1)) * mask
        return TrainBatch(
            prompts=self.prompts,
            prompt_index=np.repeat(np.arange(self.shape.problems), self.shape.completions),
            token_ids=pad_rows([row.token_ids for row in rows], np.int64),
            mask=mask,
            logprobs=pad_rows([row.logprobs for row in rows]),
            credit=credit,
            weight=token_weights(mask, "token_mean", tokens),
            temperature=1.0,
        )

    def _timed(self, work: Callable[[], Any]) -> tuple[Any, float, float]:
        """(result, seconds of the fastest, peak GiB)"""
        best, peak, result = float("inf"), 0.0, None
        for _ in range(self.repeats):
            self.base.free_unused()
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self.device)
                torch.cuda.synchronize(self.device)
            started = time.perf_counter()
            result = work()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
                peak = max(peak, torch.cuda.max_memory_allocated(self.device) / GIB)
            best = min(best, time.perf_counter() - started)
        return result, best, peak

    def _rollout_bytes(self, tokens: int) -> float:
        """What has to be read: all weights at every token, and the keys and values so far. The
        output head is one of the weights; the embedding is only looked up in."""
        shape, each = self.shape, self.dtype.itemsize
        a_token = 2 * shape.layers * shape.kv_heads * shape.head_dim * each
        seen = tokens * shape.prompt + tokens * (tokens + 1) / 2
        return tokens * self.parameters * each + shape.rows * seen * a_token

    def _update_flops(self, tokens: int) -> float:
        """What has to be computed: forward, and gradients of activations; each prompt once, no
        recomputing. The adapter's own products are left out: they are 1 %."""
        shape = self.shape
        head = shape.vocabulary * shape.hidden
        linear = self.parameters - head
        inputs = shape.problems * shape.prompt + shape.rows * tokens
        attended = shape.rows * (tokens * shape.prompt + tokens**2 / 2)
        attention = 4 * shape.layers * shape.heads * shape.head_dim * attended
        # Attention's backward pass has two and a half times its products.
        return 4 * linear * inputs + 4 * head * shape.rows * tokens + 3.5 * attention

    def _peer(self, peer: str, tokens: int) -> dict[str, Any]:
        """Tokens a second of another sampler on the same model, the adapter left out."""
        from transformers import GenerationConfig

        rows = [p.tolist() for p in self.prompts for _ in range(self.shape.completions)]
        settings = GenerationConfig(
            max_new_tokens=tokens, min_new_tokens=tokens, do_sample=True, eos_token_id=None,
            pad_token_id=0, top_k=0,
        )  # fmt: skip
        module = self.base.module
        try:
            if peer == "generate_batch":
                work = lambda: module.generate_batch(rows, generation_config=settings)  # noqa: E731
            else:
                ids = torch.tensor(rows, device=self.device)
                work = lambda: module.generate(ids, generation_config=settings)  # noqa: E731
            with torch.no_grad():
                _, seconds, peak = self._timed(work)
        except Exception as error:
            return {"error": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}
        rate = self.shape.rows * tokens / seconds
        return {"seconds": seconds, "tokens_per_s": rate, "peak_gib": peak}

    def _limits(self) -> Limits:
        large = self.device.type == "cuda"
        block = torch.empty(2 * GIB if large else GIB // 16, dtype=torch.uint8, device=self.device)
        other = torch.empty_like(block)
        _, copied, _ = self._timed(lambda: [other.copy_(block) for _ in range(10)])
        bandwidth = 20 * block.numel() / copied
        side = 8192 if large else 512
        a = torch.randn(side, side, device=self.device).to(self.dtype)
        _, multiplied, _ = self._timed(lambda: [a @ a for _ in range(10)])
        return Limits(bandwidth, 20.0 * side**3 / multiplied)


def make_module(shape: Shape, device: torch.device, dtype: torch.dtype) -> Any:
    """A Qwen3 model with random weights, made on the device in its type."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=40960,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            module: Any = Qwen3ForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    return module.eval().requires_grad_(False)


def show(result: dict[str, Any]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
    limits, shape = result["limits"], result["shape"]
    console.print(
        f"{result['device']}, torch {result['torch']}: {limits['bandwidth'] / 1e9:,.0f} GB/s, "
        f"{limits['flops'] / 1e12:,.2f} TFLOP/s\n"
        f"{result['parameters'] / 1e9:.2f} billion parameters, LoRA rank {shape['rank']}, "
        f"{shape['problems']} problems x {shape['completions']} completions, prompts of "
        f"{shape['prompt']} tokens"
    )
    table = Table()
    for heading in ("tokens", "phase", "s", "tokens/s", "of the limit", "peak GiB", "sizes"):
        table.add_column(heading, justify="left" if heading in ("phase", "sizes") else "right")
    for step in result["steps"]:
        sizes = step["sizes"]
        for phase, share in (("rollout", "bandwidth"), ("update", "flops")):
            table.add_row(
                str(step["tokens"]),
                phase,
                f"{step[f'{phase}_s']:.2f}",
                f"{step[f'{phase}_tokens_per_s']:,.0f}",
                f"{step[f'{phase}_share_of_{share}']:.0%} {share}",
                f"{step[f'{phase}_peak_gib']:.1f}",
                ""
                if phase == "rollout"
                else f"{sizes['micro_batch_tokens']}"
                + (", recomputing" if sizes["checkpointing"] else ""),
            )
        for peer, found in step["peers"].items():
            if "error" in found:
                table.add_row(str(step["tokens"]), peer, "", "", "", "", found["error"])
            else:
                table.add_row(
                    *(str(step["tokens"]), peer, f"{found['seconds']:.2f}"),
                    *(f"{found['tokens_per_s']:,.0f}", "", f"{found['peak_gib']:.1f}", ""),
                )
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
