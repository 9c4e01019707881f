"""References that no answer can match are told before training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from retrain import data_preflight
from retrain.config.load import read_mapping
from retrain.preflight import check_reading
from retrain.rewards import mathematics
from retrain.rewards.math_pool import MathPool

ODD = ("is it (", r"\frac{1}{2}}", "is it (")
MATH = {"type": "math"}


def warnings(folder: Path, reward: dict[str, Any], *answers: str) -> list[str]:
    """What is said of the references of two conditions with the same data."""
    rows = [{"prompt": f"p{i}", "answer": answer} for i, answer in enumerate(answers)]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tables = {
        "data": {"source": "jsonl", "path": str(folder / "data.jsonl")},
        "reward": reward,
        "training": {"max_tokens": 64, "batch_size": 2},
        "evaluation": {"num_problems": 0},
        "campaign": {
            "seeds": [1],
            "conditions": [{"name": "a"}, {"name": "b", "training": {"lr": 1e-4}}],
        },
    }
    found = check_reading(read_mapping(tables, base_dir=folder))[1]
    return [text for text in found if text.startswith("reward.type: the reward cannot read")]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The references that are looked at."""
    found: list[str] = []
    check = MathPool.check

    def noted(pool: MathPool, reference: str, answer: str) -> Any:
        found.append(reference)
        return check(pool, reference, answer)

    monkeypatch.setattr(MathPool, "check", noted)
    return found


def test_they_are_counted_and_each_is_tried_once(tmp_path: Path, asked: list[str]) -> None:
    right = [r"\frac{1}{3}", "0.5", r"\frac{1}{3}", *(str(i) for i in range(20))]
    (warning,) = warnings(tmp_path, MATH, *right, *ODD)
    assert warning.startswith(
        "reward.type: the reward cannot read 2 of 24 different references: at most an answer with "
        "the same text is right there, e.g. 'is it (' (problem "
    )
    assert sorted(asked) == sorted({r"\frac{1}{3}", "0.5", *ODD})


def test_of_many_some_are_tried(
    tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_preflight, "TRIED_REFERENCES", 5)
    (warning,) = warnings(tmp_path, MATH, *(f"({i}" for i in range(40)))
    assert "cannot read 5 of 5 different references tried (of 40): " in warning
    assert len(asked) == 5


def test_it_takes_no_longer_than_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mathematics, "GLANCE_S", 0.0)
    assert warnings(tmp_path, MATH, "1", "2", *(f"({i}" for i in range(40))) == []


def test_other_rewards(tmp_path: Path) -> None:
    (warning,) = warnings(tmp_path, {"type": "match"}, "1", "is it (", r"\frac{1}{2}}")
    assert "cannot read 1 of 3" in warning
    assert repr(r"\frac{1}{2}}") in warning
    parts = [{"type": "match"}, {"type": "match", "name": "again"}]
    composite = {"type": "composite", "components": parts}
    assert len(warnings(tmp_path, composite, "1", "2", "}")) == 1
    assert warnings(tmp_path, composite, "1", "2") == []
