"""`[inference]`: where completions are sampled."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from retrain.config.table import PositiveInt, Table


class InferenceConfig(Table):
    """`[inference]`: where completions are sampled, while this machine does the updates."""

    engine: Literal["local", "openai", "vllm"] = "local"
    """`local`: here. `openai`: at a server (vLLM, SGLang) that has the OpenAI API, takes and tells
    token ids, and loads LoRA adapters while it runs. `vllm`: at a vLLM that retrain starts, and
    ends with the campaign; see `docs/inference.md`."""
    url: str = ""
    """For `openai`: address of the server, e.g. `"http://localhost:8000"`."""
    api_key_env: str = "VLLM_API_KEY"
    """For `openai`: the environment variable that holds the key; it may be unset for a server that
    wants none. The key itself is never written anywhere."""
    adapter_dir: str = ""
    """For `openai`: folder for the adapters that the server shall load; it must see it under the
    same path. Empty: `adapters` in the run's folder."""
    command: Annotated[str, Field(min_length=1)] = "vllm"
    """For `vllm`: its program. vLLM wants a PyTorch of its own, so it may be in another environment
    than retrain: `"/path/to/venv/bin/vllm"`."""
    arguments: list[str] = Field(default_factory=list)
    """For `vllm`: further arguments of `vllm serve`, e.g. `["--max-model-len", "4096"]`."""
    gpus: str = ""
    """For `vllm`: GPUs of the server, e.g. `"0"` or `"0,1"` (its `CUDA_VISIBLE_DEVICES`); empty
    leaves it all that retrain sees, of which it takes the first."""
    gpu_memory: Annotated[float, Field(gt=0.0, le=1.0)] = 0.4
    """For `vllm`: share of a GPU's memory that the server takes; the trainer needs the rest, where
    it is on the same one."""
    start_timeout: Annotated[float, Field(gt=0.0)] = 1800.0
    """For `vllm`: seconds from its start to its first answer, after which it counts as failed; so
    long runs wait, too, when it has died and is started again."""
    max_mismatch: Annotated[float, Field(gt=0.0)] = 0.03
    """For a server: largest mean difference, in nats a token, between its and the trainer's
    log-probabilities of the same tokens with which a run starts; a larger one later is a warning.
    Two implementations in bfloat16 differ by about 0.01."""
    concurrency: PositiveInt = 256
    """For a server: requests at the same time."""
    timeout: Annotated[float, Field(gt=0.0)] = 600.0
    """For a server: seconds for one completion, after which it is asked for again."""
    away_timeout: Annotated[float, Field(ge=0.0)] = 300.0
    """For `openai`: seconds without any answer after which the server counts as lost and the run
    stops, to be resumed."""


OPENAI_KEYS = ("url", "api_key_env", "adapter_dir", "away_timeout")
VLLM_KEYS = ("command", "arguments", "gpus", "gpu_memory", "start_timeout")
