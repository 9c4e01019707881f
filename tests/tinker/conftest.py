from __future__ import annotations

import logging

import pytest

KEY = "tml-secret-of-the-tests"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    """The service's key, which nothing may write down."""
    monkeypatch.setenv("TINKER_API_KEY", KEY)
    monkeypatch.delenv("TINKER_BASE_URL", raising=False)
    return KEY


@pytest.fixture(autouse=True)
def no_late_words() -> None:
    """The SDK's own tasks leave errors that are logged while some later test runs."""
    from retrain.policies.tinker.service import GIVEN_UP

    logging.getLogger("asyncio").addFilter(GIVEN_UP)
