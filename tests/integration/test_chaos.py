"""A few kills of the long program `make chaos`, so that it stays true with every change."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from chaos import SAVE_EVERY, Chaos


def test_killed_campaigns_end_as_undisturbed_ones(tmp_path: Path) -> None:
    said: list[str] = []
    report = Chaos(tmp_path, seed=7, say=said.append, steps=25).run(kills=2)
    assert report.differences == [], said
    assert report.killed >= 2
    assert report.compared > 100
    assert report.worst_loss <= SAVE_EVERY
    assert report.left_over == 0
