"""The benchmark that needs a GPU, at a tiny size without one."""

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
