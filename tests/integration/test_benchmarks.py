"""Benchmarks at a tiny size: the one that needs a GPU, and the one that takes a large tree."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_gpu_step_runs_at_a_tiny_size() -> None:
    answer = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "gpu_step.py", "--tiny", "--json"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    found = json.loads(answer.stdout)
    assert [step["tokens"] for step in found["steps"]] == [5, 9]
    for step in found["steps"]:
        for phase in ("rollout", "update"):
            assert step[f"{phase}_s"] > 0
            assert step[f"{phase}_tokens_per_s"] > 0
        assert 0 < step["rollout_share_of_bandwidth"] < 1.5
        assert 0 < step["update_share_of_flops"] < 1.5
    assert found["limits"]["flops"] > 0


def test_a_campaign_of_the_scale_benchmark_is_read_like_a_real_one() -> None:
    answer = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "scale.py", "--runs=20", "--steps=4", "--json"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    found = json.loads(answer.stdout)
    assert (found["runs"], found["steps"]) == (20, 4)
    for measured in found["measured"]:
        assert measured["wall_s"] > 0
        assert measured["peak_mb"] > 10 or "floor" in measured["what"]
