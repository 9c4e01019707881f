"""`[inference]`: where completions are sampled."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from retrain.config.table import PositiveInt, Table


class InferenceConfig(Table):
    """`[inference]`: where completions are sampled, while this machine does the updates."""

    engine: Literal["local", "openai"] = "local"
    """`local`: here. `openai`: at a server with the OpenAI API, vLLM's extensions of it and LoRA
    adapters that are loaded while it runs; see `docs/inference.md`."""
    url: str = ""
    """For `openai`: address of the server, e.g. `"http://localhost:8000"`."""
    api_key_env: str = "VLLM_API_KEY"
    """For `openai`: the environment variable that holds the key; it may be unset for a server that
    wants none. The key itself is never written anywhere."""
    adapter_dir: str = ""
    """For `openai`: folder for the adapters that the server shall load; it must see it under the
    same path. Empty: `adapters` in the run's folder."""
    max_mismatch: Annotated[float, Field(gt=0.0)] = 0.03
    """For `openai`: largest mean difference, in nats a token, between the server's and the
    trainer's log-probabilities of the same tokens with which a run starts; a larger one later is a
    warning. Two implementations in bfloat16 differ by about 0.01."""
    concurrency: PositiveInt = 256
    """For `openai`: requests at the same time."""
    timeout: Annotated[float, Field(gt=0.0)] = 600.0
    """For `openai`: seconds for one completion, after which it is asked for again."""
    away_timeout: Annotated[float, Field(ge=0.0)] = 300.0
    """For `openai`: seconds without any answer after which the server counts as lost and the run
    stops, to be resumed."""
