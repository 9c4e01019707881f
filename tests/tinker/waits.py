"""The SDK's waits between its own attempts, shortened: it has no settings for them."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

_MODULES = ("internal_client_holder", "api_future_impl", "retry_handler", "session_futures_poller")
# Heartbeats and the like come every 10 s or more; they stay as they are.
_LONGEST = 6.0


def shorten(monkeypatch: pytest.MonkeyPatch, factor: float = 0.01) -> None:
    """Waits of up to 6 s take `factor` of their time."""

    async def sleep(seconds: float, *args: Any) -> Any:
        return await asyncio.sleep(seconds * factor if seconds <= _LONGEST else seconds, *args)

    names = {name: getattr(asyncio, name) for name in dir(asyncio) if not name.startswith("__")}
    quick = SimpleNamespace(**{**names, "sleep": sleep})
    for module in _MODULES:
        monkeypatch.setattr(f"tinker.lib.{module}.asyncio", quick)
    # Between attempts inside one request: 0.5 s and more.
    monkeypatch.setattr("tinker._base_client.INITIAL_RETRY_DELAY", 0.5 * factor)
    monkeypatch.setattr("tinker._base_client.MAX_RETRY_DELAY", 10.0 * factor)
