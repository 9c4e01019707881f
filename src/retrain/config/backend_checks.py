"""What is odd about `[backend]`, and about keys that only one kind of backend reads."""

from __future__ import annotations

from collections.abc import Iterator, Set

from retrain.config.findings import Finding, idle, no_device, no_url
from retrain.config.messages import show
from retrain.config.schema import RunConfig

LOCAL_KEYS = {
    "model.revision": "the service has one version of each model",
    "model.lora_alpha": "the service scales adapters by itself",
    "model.lora_targets": "the service adapts every linear layer but the output head",
    "model.attention": "the model runs at the service",
    "model.dtype": "the model runs at the service",
    "loss.sampler_correction": "the service's losses know none",
    "loss.truncate": "the service's losses know no correction",
    "training.micro_batch_tokens": "the update is computed at the service",
    "training.gradient_checkpointing": "the update is computed at the service",
    "training.decode_rows": "completions are sampled at the service",
    "backend.device": "the model runs at the service",
    "backend.threads": "the model runs at the service",
}
"""Keys that `local` alone reads, and why `tinker` does not."""

TINKER_KEYS = ("model.base_url", "backend.max_concurrent", "backend.throttle_dir")


def check_backend(run: RunConfig, written: Set[str]) -> Iterator[Finding]:
    """Keys that the backend does not read, and values that it does not know."""
    backend = run.backend.backend
    if backend == "local":
        for key in TINKER_KEYS:
            if key in written:
                reason = 'backend = "local"; it is for "tinker"'
                yield idle(key, reason, "backend.backend", is_error=True)
        if problem := no_device(run.backend.device):
            yield Finding("backend.device", problem)
        return
    for key, why in LOCAL_KEYS.items():
        if key in written:
            reason = f"backend = {show(backend)}, and {why}"
            yield idle(key, reason, "backend.backend", is_error=True)
    if problem := no_url(run.model.base_url):
        yield Finding("model.base_url", problem)
