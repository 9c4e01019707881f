"""What a run takes of a device's memory, before it is trained and without torch."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

from retrain.config.schema import BackendConfig, RunConfig
from retrain.models.folder import inspect
from retrain.policies.inference.vllm import share_left
from retrain.policies.local.memory import (
    CPU_MICRO_BATCH,
    ENOUGH_TOKENS,
    MemoryModel,
    engine_kind,
    main_memory,
)

ASSUMED_PROMPT = 512
"""Tokens of a prompt where nothing limits them."""


def runs_on_cpu(backend: BackendConfig) -> bool:
    """Whether this machine needs no GPU for the policy, as far as one can tell without torch."""
    if backend.backend == "tinker":
        return True
    if backend.device != "auto":
        return backend.device == "cpu"
    return not has_gpu()


def has_gpu() -> bool:
    """Whether this machine has a GPU for CUDA, as far as one can tell without torch."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in {"", "-1"}
    return not hidden and any(Path("/dev").glob("nvidia[0-9]*"))


def run_memory(run: RunConfig, base_dir: Path, data_bytes: int = 0) -> dict[str, Any] | None:
    """Bytes at a run's peak, by what they are for, and the sizes that `auto` would take, as plain
    JSON; None when the model's files are not here, or it runs elsewhere.

    data_bytes: of the problems, which are in main memory.
    """
    if run.backend.backend == "tinker":
        return None
    found = inspect(run.model, base_dir)
    shape = found.shape
    if shape is None:
        return None
    device = "cpu" if runs_on_cpu(run.backend) else "cuda"
    each = 4 if run.model.dtype == "float32" or (run.model.dtype, device) == ("auto", "cpu") else 2
    total = main_memory() if device == "cpu" else gpu_memory()
    taken = 0
    if total is not None and device == "cuda":
        place = "cuda" if run.backend.device == "auto" else run.backend.device
        taken = int(total * (1.0 - share_left(run.inference, place)))
        total -= taken
    kind = engine_kind(str(found.config.get("model_type")), shape.parameters, device, each)
    targets = run.model.lora_targets
    adapter = shape.adapter_parameters(run.model.lora_rank, targets)
    model = MemoryModel(shape, kind, each, adapter, _room(run, found.context))
    rows, tokens, recomputing = _sizes(run, model, total, device)
    peak = model.peak(rows, tokens, recomputing)
    return {
        "device": device,
        "device_memory": total,
        "server_memory": taken,
        "engine": kind,
        "parameters": shape.parameters,
        "adapter_parameters": adapter,
        "decode_rows": rows,
        "micro_batch_tokens": tokens,
        "gradient_checkpointing": recomputing,
        "data": data_bytes,
        "peak": {
            **asdict(peak),
            "total": peak.total + (data_bytes if device == "cpu" else 0),
        },
    }


def _room(run: RunConfig, context: int | None) -> int:
    room = run.training.max_tokens + (run.data.max_prompt_tokens or ASSUMED_PROMPT)
    return min(room, context or room)


def _sizes(
    run: RunConfig, model: MemoryModel, total: int | None, device: str
) -> tuple[int, int, bool]:
    training = run.training
    every = training.batch_size * training.group_size
    recomputing = training.gradient_checkpointing
    given = None if recomputing == "auto" else recomputing
    if total is None:
        rows, tokens, found = every, ENOUGH_TOKENS, bool(given)
    else:
        rows = model.rows_that_fit(every, total, device)
        tokens, found = model.update_that_fits(total, device, given)
    if device == "cpu":
        tokens = min(tokens, CPU_MICRO_BATCH)
    if run.inference.engine != "local":
        # The server has the cache.
        rows = 0
    elif training.decode_rows != "auto":
        rows = min(every, training.decode_rows)
    if training.micro_batch_tokens != "auto":
        tokens = training.micro_batch_tokens
    # One row is the least that an update computes at once.
    return rows, max(tokens, model.room), found


def gpu_memory() -> int | None:
    """Bytes of the smallest GPU here, as its driver says; None if unknown."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
        return min(int(line) for line in answer.stdout.split()) * 2**20
    return None
