"""Where a server is to be found, and how long it is worth waiting for."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from retrain.config.inference import InferenceConfig
from retrain.errors import InputError
from retrain.processes import ProcessId

_HERE = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server as its clients see it.

    url:      without `/v1`.
    key:      sent as a bearer token; empty for none.
    away_s:   seconds without any answer after which it counts as lost.
    given_up: a file that, once it is there, says why the server will not come back; empty when
              nobody knows.
    owner:    the process that starts it again when it dies; None when nobody does.
    """

    url: str
    key: str = field(default="", repr=False)
    away_s: float = 300.0
    given_up: str = ""
    owner: ProcessId | None = None

    @classmethod
    def of(cls, config: InferenceConfig) -> Self:
        """The server that the config names. Raises InputError when it names none, or the key cannot
        be one."""
        if not config.url:
            raise InputError(
                "inference.url: nobody has started a server for this run; campaigns and single "
                'runs do for engine = "vllm", and "openai" needs the address of one'
            )
        url = config.url.rstrip("/").removesuffix("/v1")
        return cls(url, _key(config.api_key_env), config.away_timeout)

    @classmethod
    def read(cls, fields: Mapping[str, Any] | None) -> Self | None:
        """From what `fields` made, across a pipe."""
        if fields is None:
            return None
        owner = ProcessId.read(fields["owner"]) if fields["owner"] else None
        return cls(**{**fields, "owner": owner})

    def fields(self) -> dict[str, Any]:
        """As plain JSON. It holds the key: for pipes, not for files."""
        return asdict(self)

    @property
    def is_here(self) -> bool:
        """Whether it is on this machine, where no proxy stands between."""
        return urlsplit(self.url).hostname in _HERE

    def last_word(self) -> str:
        """Why it will not come back; empty while it may."""
        if self.given_up:
            with contextlib.suppress(OSError):
                return Path(self.given_up).read_text(encoding="utf-8").strip()
        if self.owner is not None and self.owner.is_alive() is False:
            return f"{self.owner}, which had started it, is gone"
        return ""


def _key(variable: str) -> str:
    key = os.environ.get(variable, "").strip() if variable else ""
    if not (key.isascii() and key.isprintable()) or " " in key:
        # A library's error would show it.
        raise InputError(
            f"inference.api_key_env: {variable} holds characters that no key has, such as a line "
            "break or a space; set it anew"
        )
    return key
