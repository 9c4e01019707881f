"""What is odd about `[inference]`, and about the correction for its sampler in `[loss]`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Set

from retrain.config.findings import Finding, idle, no_url
from retrain.config.inference import OPENAI_KEYS, VLLM_KEYS, InferenceConfig
from retrain.config.messages import show
from retrain.config.schema import RunConfig

SERVERS = ("openai", "vllm")

MAX_RANK = 512
"""The largest that vLLM loads."""

_OF_RETRAIN = {
    "--host": "the server is for this machine alone",
    "--port": "it takes the next free one",
    "--uds": "it is asked at a port",
    "--api-key": "it makes one up for each server",
    "--enable-lora": "it is always there",
    "--no-enable-lora": "without it there is nothing to train",
    "--max-lora-rank": "it follows [model].lora_rank",
    "--logprobs-mode": "losses need those of the distribution that is sampled from",
    "--generation-config": "a model's own sampling settings would change what is sampled",
    "--model": "it is [model].model",
    "--revision": "it is [model].revision",
    "--gpu-memory-utilization": "it is [inference].gpu_memory",
}
"""Arguments of vLLM that a training depends on, and why they cannot be given."""


def check_inference(run: RunConfig, written: Set[str]) -> Iterator[Finding]:
    """Keys that the engine does not read, and what it needs."""
    engine, backend = run.inference.engine, run.backend.backend
    for key, readers in _readers().items():
        if engine not in readers and f"inference.{key}" in written:
            wanted = " and ".join(f'"{reader}"' for reader in readers)
            reason = f"engine = {show(engine)}; it is for {wanted}"
            yield idle(f"inference.{key}", reason, "inference.engine", is_error=True)
    if engine != "local" and backend != "local":
        yield Finding(
            "inference.engine",
            f'{show(engine)} needs [backend] backend = "local", which does the updates; with '
            f"backend = {show(backend)} the service samples too",
            ("backend.backend",),
        )
    elif engine == "openai":
        yield from _openai(run)
    elif engine == "vllm":
        yield from _vllm(run)
    if engine != "local" and "training.decode_rows" in written:
        reason = f"[inference] engine = {show(engine)}: completions are sampled at the server"
        yield idle("training.decode_rows", reason, "inference.engine", is_error=True)
    if backend == "local" and "loss.truncate" in written and not run.corrects_sampler:
        reason = f"sampler_correction = {show(run.loss.sampler_correction)}"
        if run.loss.sampler_correction == "auto":
            reason += ", which is off without an [inference] server"
        yield idle("loss.truncate", reason, "loss.sampler_correction", is_error=True)


def _readers() -> dict[str, tuple[str, ...]]:
    """The engines that read each key."""
    found: dict[str, tuple[str, ...]] = dict.fromkeys(InferenceConfig.model_fields, SERVERS)
    del found["engine"]
    found.update(dict.fromkeys(OPENAI_KEYS, ("openai",)))
    found.update(dict.fromkeys(VLLM_KEYS, ("vllm",)))
    return found


def _openai(run: RunConfig) -> Iterator[Finding]:
    if not run.inference.url:
        message = 'engine = "openai" needs it, e.g. "http://localhost:8000"'
        yield Finding("inference.url", message, ("inference.engine",))
    elif problem := no_url(run.inference.url):
        yield Finding("inference.url", problem)


def _vllm(run: RunConfig) -> Iterator[Finding]:
    if run.model.lora_rank > MAX_RANK:
        message = f"{run.model.lora_rank} is more than vLLM loads; at most {MAX_RANK} is possible"
        yield Finding("model.lora_rank", message, ("inference.engine",))
    if run.inference.gpus and not re.fullmatch(r"\d+(\s*,\s*\d+)*", run.inference.gpus):
        message = f'{show(run.inference.gpus)} names no GPUs; "0" or "0,1" is wanted'
        yield Finding("inference.gpus", message)
    for argument in run.inference.arguments:
        # vLLM takes underscores for hyphens.
        name = argument.partition("=")[0].replace("_", "-")
        if why := _OF_RETRAIN.get(name):
            message = f"{show(argument)} is given by retrain: {why}; leave it out"
            yield Finding("inference.arguments", message)
