"""Names of weights at the service, `tinker://<training run>/<kind>/<name>`, and the file in which
a checkpoint or a final adapter keeps one."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retrain.errors import InputError
from retrain.files import atomic_write_json, read_json

SCHEME = "tinker://"
STATE_FILE = "tinker.json"

WEIGHTS = "weights"
EXTERNAL = "external_weights"
_SAMPLER = "sampler_weights"
_PARTS = re.compile(r"tinker://([^/\s]+)/(weights|sampler_weights|external_weights)/([^/\s]+)")


@dataclass(frozen=True, slots=True)
class ServicePath:
    """run: the service's training run. kind: `weights` (can be trained on) or
    `external_weights` (can be downloaded)."""

    run: str
    kind: str
    name: str

    @classmethod
    def parse(cls, text: str) -> ServicePath:
        """Raises InputError for what names no weights, or weights that only sample."""
        found = _PARTS.fullmatch(text)
        if found is None:
            raise InputError(
                f"{text} names no weights of the service; they look like "
                "tinker://<training run>/weights/<name>"
            )
        if found[2] == _SAMPLER:
            raise InputError(
                f"{text} holds weights for sampling alone, which can be neither trained nor "
                "downloaded; name the run's weights/<name>"
            )
        return cls(*found.groups())

    def __str__(self) -> str:
        return f"{SCHEME}{self.run}/{self.kind}/{self.name}"


def is_service_path(text: str) -> bool:
    return text.startswith(SCHEME)


@dataclass(frozen=True, slots=True)
class SavedState:
    """What a checkpoint's folder holds of a policy whose weights are at the service.

    updates: optimizer steps behind it; they name the next states.
    """

    path: str
    base_model: str
    lora_rank: int
    updates: int

    def write(self, folder: Path) -> None:
        atomic_write_json(folder / STATE_FILE, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> SavedState:
        """Raises InputError when the folder holds no such state."""
        try:
            values: dict[str, Any] = read_json(folder / STATE_FILE)
            return cls(
                path=str(values["path"]),
                base_model=str(values["base_model"]),
                lora_rank=int(values["lora_rank"]),
                updates=int(values["updates"]),
            )
        except FileNotFoundError:
            message = f"{folder} holds no state of the service ({STATE_FILE} is missing)"
        except (OSError, ValueError, KeyError, TypeError) as error:
            message = f"{folder / STATE_FILE} is damaged: {error}"
        raise InputError(message)
