from __future__ import annotations

import pytest

KEY = "tml-secret-of-the-tests"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    """The service's key, which nothing may write down."""
    monkeypatch.setenv("TINKER_API_KEY", KEY)
    monkeypatch.delenv("TINKER_BASE_URL", raising=False)
    return KEY
