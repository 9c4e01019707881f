"""What is odd about `[inference]`, and about the correction for its sampler in `[loss]`."""

from __future__ import annotations

from collections.abc import Iterator, Set

from retrain.config.findings import Finding, idle, no_url
from retrain.config.inference import InferenceConfig
from retrain.config.messages import show
from retrain.config.schema import RunConfig


def check_inference(run: RunConfig, written: Set[str]) -> Iterator[Finding]:
    """Keys that the engine does not read, and what it needs."""
    engine, backend = run.inference.engine, run.backend.backend
    if engine == "local":
        for key in InferenceConfig.model_fields:
            if f"inference.{key}" in written:
                reason = 'engine = "local"; it is for "openai"'
                yield idle(f"inference.{key}", reason, "inference.engine", is_error=True)
    elif backend != "local":
        yield Finding(
            "inference.engine",
            f'{show(engine)} needs [backend] backend = "local", which does the updates; with '
            f"backend = {show(backend)} the service samples too",
            ("backend.backend",),
        )
    elif not run.inference.url:
        message = f'engine = {show(engine)} needs it, e.g. "http://localhost:8000"'
        yield Finding("inference.url", message, ("inference.engine",))
    elif problem := no_url(run.inference.url):
        yield Finding("inference.url", problem)
    if engine != "local" and "training.decode_rows" in written:
        reason = f"[inference] engine = {show(engine)}: completions are sampled at the server"
        yield idle("training.decode_rows", reason, "inference.engine", is_error=True)
    if backend == "local" and "loss.truncate" in written and not run.corrects_sampler:
        reason = f"sampler_correction = {show(run.loss.sampler_correction)}"
        if run.loss.sampler_correction == "auto":
            reason += ", which is off without an [inference] server"
        yield idle("loss.truncate", reason, "loss.sampler_correction", is_error=True)
