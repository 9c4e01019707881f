"""How a vLLM server is started for runs: its command and its environment. Starts nothing."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from retrain.config.inference import InferenceConfig
from retrain.config.load import EMBEDDED
from retrain.config.schema import RunConfig
from retrain.errors import InputError
from retrain.models.folder import inspect

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What `--max-lora-rank` takes, but for 1."""

HOST = "127.0.0.1"

_CPU_BATCH = 16384
_SPREADS = {"-tp", "-pp", "-dp"} | {
    f"--{kind}-parallel-size" for kind in ("tensor", "pipeline", "data")
}
"""Arguments with which a server takes more than the first GPU."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One server, for all runs that can share it.

    program: as `[inference].command` names it. max_rank: of the adapters that it shall load.
    on_cpu: whether it computes there, as far as one can tell.
    """

    program: str
    model: str
    revision: str
    dtype: str
    offline: bool
    arguments: tuple[str, ...]
    gpus: str
    gpu_memory: float
    max_rank: int
    on_cpu: bool = False

    @classmethod
    def of(cls, run: RunConfig, *, on_cpu: bool) -> Launch:
        """on_cpu: whether the run's trainer computes there, whose place and dtype the server is to
        have."""
        model, inference = run.model, run.inference
        name = model.model
        if name == EMBEDDED:
            name = str(inspect(model, Path.cwd()).path)
        auto = "float32" if on_cpu else "bfloat16"
        return cls(
            program=inference.command,
            model=name,
            revision=model.revision,
            dtype=auto if model.dtype == "auto" else model.dtype,
            offline=model.local_files_only,
            arguments=tuple(inference.arguments),
            gpus=inference.gpus,
            gpu_memory=inference.gpu_memory,
            max_rank=next(rank for rank in RANKS if rank >= model.lora_rank),
            on_cpu=on_cpu,
        )

    def shares_with(self, other: Launch) -> bool:
        """Whether one server can serve both: rank alone may differ."""
        return replace(self, max_rank=0) == replace(other, max_rank=0)

    def command(self, program: Path, port: int, clients: int) -> list[str]:
        """clients: runs that sample at the same time, each with an adapter of its own."""
        options = [
            *("--host", HOST, "--port", str(port), "--dtype", self.dtype),
            *("--enable-lora", "--max-lora-rank", str(self.max_rank)),
            # A new adapter is loaded before the one in its place is unloaded.
            *("--max-loras", str(clients), "--max-cpu-loras", str(2 * clients)),
            # Of the distribution that is sampled from, and at nothing but what is asked for.
            *("--logprobs-mode", "processed_logprobs", "--generation-config", "vllm"),
            *("--gpu-memory-utilization", f"{self.gpu_memory:g}"),
            # A line for each of thousands of requests would bury what matters.
            "--disable-uvicorn-access-log",
        ]
        if self.on_cpu:
            # vLLM 0.32 ends when a prompt is cut in two whose request has a seed: generators of a
            # CPU cannot be rewound. So there is room for all that are asked for at once.
            options += ["--max-num-batched-tokens", str(_CPU_BATCH)]
        if self.revision:
            options += ["--revision", self.revision]
        return [str(program), "serve", self.model, *options, *self.arguments]

    def environment(self, key: str, base: Mapping[str, str]) -> dict[str, str]:
        """base: the environment to start from. key: asked of every client."""
        changed = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_API_KEY": key}
        if self.gpus:
            changed["CUDA_VISIBLE_DEVICES"] = visible(self.gpus, base.get("CUDA_VISIBLE_DEVICES"))
        if self.offline:
            changed["HF_HUB_OFFLINE"] = "1"
        # Nobody who starts a training expects a report of it elsewhere.
        return {"VLLM_NO_USAGE_STATS": "1", **base, **changed}


def together(launches: Iterable[Launch]) -> list[Launch]:
    """The servers for these runs, each once, with the largest rank that any of its runs has."""
    found: list[Launch] = []
    for launch in launches:
        for index, other in enumerate(found):
            if launch.shares_with(other):
                found[index] = max(launch, other, key=lambda one: one.max_rank)
                break
        else:
            found.append(launch)
    return found


def visible(gpus: str, seen: str | None) -> str:
    """`[inference].gpus` as numbers of the machine, where retrain itself may see only some.

    Raises InputError for one that it does not see.
    """
    wanted = [part.strip() for part in gpus.split(",")]
    if seen is None:
        return ",".join(wanted)
    ours = [part.strip() for part in seen.split(",") if part.strip()]
    missing = [number for number in wanted if int(number) >= len(ours)]
    if missing:
        raise InputError(
            f"inference.gpus: there is no GPU {missing[0]}: CUDA_VISIBLE_DEVICES = {seen} leaves "
            f"{len(ours)}, counted from 0"
        )
    return ",".join(ours[int(number)] for number in wanted)


def share_left(inference: InferenceConfig, device: str) -> float:
    """The share of the trainer's device that a server of its own leaves it.

    device: as torch names it, among those that retrain sees.
    """
    kind, _, number = device.partition(":")
    if inference.engine != "vllm" or kind != "cuda":
        return 1.0
    several = any(argument.partition("=")[0] in _SPREADS for argument in inference.arguments)
    if inference.gpus:
        taken = int(number or 0) in {int(part) for part in inference.gpus.split(",")}
    else:
        taken = several or int(number or 0) == 0
    return 1.0 - inference.gpu_memory if taken else 1.0


def program_of(command: str) -> Path | None:
    """The program that `[inference].command` names; None when there is none."""
    if "/" in command:
        return Path(command) if os.access(command, os.X_OK) and Path(command).is_file() else None
    # An environment need not be activated for its programs to be used.
    found = shutil.which(command, path=str(Path(sys.executable).parent)) or shutil.which(command)
    return Path(found) if found else None


def program_problem(command: str) -> str:
    """Why vLLM cannot be started; empty when nothing is known against it."""
    if program_of(command) is not None:
        return ""
    where = "is no program" if "/" in command else "is not installed here"
    return (
        f"{command} {where}; vLLM wants a PyTorch of its own, so give it an environment: python -m "
        "venv vllm-env && vllm-env/bin/pip install vllm, then "
        'command = "/path/to/vllm-env/bin/vllm"'
    )


def require_program(command: str) -> Path:
    """The program, or InputError."""
    found = program_of(command)
    if found is None:
        raise InputError(f"inference.command: {program_problem(command)}")
    return found
