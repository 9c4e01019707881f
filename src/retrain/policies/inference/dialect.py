"""What servers with the OpenAI API do each in their own way: adapters, and what they add to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from retrain.policies.lost import GoneError, RefusedError

_SEES = "and sees the folder under the same path ([inference].adapter_dir)"


@dataclass(frozen=True, slots=True)
class Dialect:
    """One kind of server.

    adapters:    before `/load_lora_adapter` and `/unload_lora_adapter`.
    names_as:    field of a request that names the adapter.
    fields:      further ones, by which the end token comes with the others, and the ids of all.
    forgotten:   what refusals say of an adapter that is not there; one that is answered 404 is
                 not there in any case.
    reserved:    tokens of the model's context that it keeps for itself.
    loads:       how it is started so that it loads adapters while it runs.
    tells_ids:   which of its versions tell the ids and log-probabilities of sampled tokens.
    at_temperature: how it is started so that these are at the temperature of sampling.
    """

    adapters: str
    names_as: str
    fields: Mapping[str, Any]
    forgotten: tuple[str, ...]
    reserved: int
    loads: str
    tells_ids: str
    at_temperature: str

    def addressed(self, adapter: str) -> dict[str, Any]:
        """What a request for a completion says beside what all servers know."""
        return {self.names_as: adapter, **self.fields}

    def has_forgotten(self, error: RefusedError | GoneError) -> bool:
        """Whether a request failed because its adapter is not there."""
        if isinstance(error, GoneError):
            return True
        return any(words in str(error) for words in self.forgotten)


VLLM = Dialect(
    adapters="/v1",
    names_as="model",
    fields={"return_tokens_as_token_ids": True, "include_stop_str_in_output": True},
    forgotten=(),
    reserved=0,
    loads=(
        "vLLM loads adapters while it runs when it was started with "
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, --enable-lora and a --max-lora-rank of "
        f"[model].lora_rank or more, {_SEES}"
    ),
    tells_ids="it must know vLLM's fields return_token_ids and logprobs",
    at_temperature="start vLLM with --logprobs-mode processed_logprobs",
)
"""Also for servers that are not known."""

SGLANG = Dialect(
    adapters="",
    names_as="lora_path",
    fields={},
    forgotten=("has never been loaded", "are not loaded", "Failed to implicitly load"),
    # Prompts up to that are refused, and completions cut off short of the end without a word.
    reserved=6,
    loads=(
        "SGLang loads adapters while it runs when it was started with --enable-lora, "
        "--lora-target-modules all and a --max-lora-rank of [model].lora_rank or more, "
        f"{_SEES}"
    ),
    tells_ids="SGLang tells them from 0.5.17 on",
    at_temperature="start SGLang without SGLANG_RETURN_ORIGINAL_LOGPROB",
)


def dialect_of(models: Sequence[Mapping[str, Any]]) -> Dialect:
    """Of the server that gave this list of its models."""
    owners = {str(model.get("owned_by")) for model in models}
    return SGLANG if "sglang" in owners else VLLM
