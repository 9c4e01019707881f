"""How long `retrain status` takes on a large log folder.

Makes a tree of finished, running and pending runs in a temporary folder (half a gigabyte at the
default size) and prints the time of one `status_command`, of the same with `--json`, and of a
whole fresh process.

    python benchmarks/status_scale.py [--runs 1000] [--steps 500] [--campaigns 25]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from retrain.analysis.status import status_command

CONDITIONS = ("grpo+none", "maxrl+none", "maxrl+gtpo", "maxrl+gtpo_hicra", "maxrl+gtpo_sepa")
# fmt: off
KEYS = (
    "loss", "mean_reward", "correct_rate", "unverifiable_rate", "running_correct_rate",
    "num_datums", "informative_groups", "groups_all_correct", "groups_all_wrong",
    "groups_other", "max_token_hit_rate", "mean_completion_tokens", "tokens",
    "exec_uncertainty_mean", "exec_uncertainty_var", "plan_uncertainty_mean",
    "plan_uncertainty_var", "planning_fraction", "sepa_lambda", "advantage_abs_mean",
    "grad_norm", "ratio_mean", "ratio_max", "log_ratio_mean", "clip_fraction", "kl_to_sampler",
    "lr", "num_updates", "step_time_s", "sample_time_s", "reward_time_s", "update_time_s",
    "evaluation_time_s", "tokens_per_second", "peak_memory_mb",
)
# fmt: on


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--campaigns", type=int, default=25)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="retrain_status_") as folder:
        logs = Path(folder) / "logs"
        size = make_tree(logs, options.runs, options.steps, options.campaigns)
        print(f"{options.runs} runs x {options.steps} steps, {size / 1e6:.0f} MB of metrics")
        print(f"status           {measure(lambda: show(logs, as_json=False)):.2f} s")
        print(f"status --json    {measure(lambda: show(logs, as_json=True)):.2f} s")
        print(f"fresh process    {measure(lambda: fresh(logs)):.2f} s")


def measure(work: Callable[[], None], repeats: int = 5) -> float:
    """Median seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def show(logs: Path, *, as_json: bool) -> None:
    status_command([logs], as_json=as_json, console=Console(file=io.StringIO(), width=120))


def fresh(logs: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from retrain.analysis.status import status_command;"
        "sys.exit(status_command([Path(sys.argv[1])]))"
    )
    subprocess.run([sys.executable, "-c", code, str(logs)], check=True, stdout=subprocess.DEVNULL)


def make_tree(logs: Path, runs: int, steps: int, campaigns: int) -> int:
    """Campaigns of five conditions; of the newest, half the runs are still to do."""
    rows = [
        json.dumps(
            {"step": step, "condition": CONDITIONS[-1], "seed": 42, "batch_size": 8}
            | dict.fromkeys(KEYS, 0.123456789012345 + step)
        )
        for step in range(steps)
    ]
    whole = ("\n".join(rows) + "\n").encode()
    half = ("\n".join(rows[: steps // 2]) + "\n" + rows[0][:40]).encode()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    size = 0
    for number in range(campaigns):
        folder = logs / f"campaign_20260101_{number:06d}"
        count = runs // campaigns + (number < runs % campaigns)
        entries = []
        for index in range(count):
            condition, seed = CONDITIONS[index % 5], index // 5
            unfinished = number == campaigns - 1 and index % 2 == 1
            status = "running" if unfinished else "done"
            result = {"accuracy_before": 0.33, "accuracy_after": 0.71, "wall_s": 250.0}
            name = f"{condition}_s{seed}"
            identity = {"name": name, "condition": condition, "seed": seed, "status": status}
            entries.append(
                identity | {"config": f"runs/{name}/config.toml", "message": "", "result": None}
            )
            run = folder / "runs" / name
            run.mkdir(parents=True)
            record = identity | {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "started_at": now,
                "updated_at": now,
                "step": 0 if unfinished else steps,
                "max_steps": steps,
                "versions": {"retrain": "0.1.0", "python": "3.11.7", "torch": "2.13.0"},
                "result": None if unfinished else result,
            }
            (run / "run.json").write_text(json.dumps(record, indent=2))
            data = half if unfinished else whole
            (run / "metrics.jsonl").write_bytes(data)
            size += len(data)
        manifest = {
            "schema": 1,
            "timestamp": now,
            "status": "running" if number == campaigns - 1 else "done",
            "conditions": [{"label": label} for label in CONDITIONS],
            "seeds": list(range((count + 4) // 5)),
            "max_steps": steps,
            "parallel": True,
            "max_workers": 8,
            "runs": entries,
        }
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=2))
    return size


if __name__ == "__main__":
    main()
