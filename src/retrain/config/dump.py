"""A resolved config as TOML, and its fingerprint."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import tomli_w

from retrain.config.schema import RunConfig


def run_config_toml(config: RunConfig) -> str:
    """Every key of the config, also the defaults; keys whose value is unset are left out."""
    return tomli_w.dumps(_without_none(config.model_dump(mode="json")))


def fingerprint(config: RunConfig) -> str:
    """A short hash that changes when any value does."""
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return value
