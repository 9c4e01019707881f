"""For all tests of tracking."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.tracking.tiny_runs import CLOSED


@pytest.fixture(autouse=True)
def nobodys_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No key, no login, no network, a trackio of its own."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "TRACKIO_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", CLOSED)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "store"))
