"""A run's resolved config as TOML, to a file and back."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from retrain.config.files import parse
from retrain.config.schema import RunConfig
from retrain.errors import InputError


def run_config_toml(config: RunConfig) -> str:
    """Every key of the config, also the defaults; keys whose value is unset are left out."""
    return tomli_w.dumps(_without_none(config.model_dump(mode="json")))


def read_run_config(path: Path) -> RunConfig:
    """What `run_config_toml` wrote. Raises InputError when it is missing or was damaged."""
    remedy = "bring it back from a copy: without it the run cannot go on"
    try:
        return RunConfig.model_validate(parse(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InputError(f"{path} is missing; {remedy}") from None
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except UnicodeDecodeError:
        reason = "it is not text in UTF-8"
    except tomllib.TOMLDecodeError as error:
        reason = str(error)
    raise InputError(f"{path} is damaged: {reason}; {remedy}")


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value
