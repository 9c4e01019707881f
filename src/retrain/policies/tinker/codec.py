"""Text <-> tokens of a model of the service."""

from __future__ import annotations

from typing import Any

from retrain.config.load import EMBEDDED
from retrain.config.schema import ModelConfig
from retrain.errors import InputError
from retrain.models.codec import ChatCodec


def load_codec(model: ModelConfig, tokenizer_id: str | None) -> ChatCodec:
    """The tokenizer that the service names, from the hub or from a folder; no code of a model's is
    run. Raises InputError when it cannot be had."""
    tokenizer: Any
    if model.model == EMBEDDED:
        from retrain.models.tiny.codec import TinyTokenizer

        tokenizer = TinyTokenizer()
        return ChatCodec.of(tokenizer, [tokenizer.eos_token_id], model)
    from transformers import AutoTokenizer, GenerationConfig

    source = tokenizer_id or _hub_id(model.model)
    here: dict[str, Any] = {"local_files_only": model.local_files_only}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **here)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(
            f"model.model: the tokenizer {source} of {model.model!r} cannot be loaded: "
            f"{str(error).strip().splitlines()[0]}"
        ) from error
    ends: set[int] = set()
    for value in (_generation_ends(GenerationConfig, source, here), tokenizer.eos_token_id):
        if value is not None:
            ends.update(value if isinstance(value, list) else [value])
    return ChatCodec.of(tokenizer, ends, model)


def _generation_ends(reader: Any, source: str, here: dict[str, Any]) -> Any:
    """End tokens of `generation_config.json`; a place that only holds a tokenizer has none."""
    try:
        return reader.from_pretrained(source, **here).eos_token_id
    except (OSError, ValueError):
        return None


def _hub_id(name: str) -> str:
    """`org/name` of what the service may call `org/name/variant` or `org/name:variant`."""
    return "/".join(name.split(":")[0].split("/")[:2])
