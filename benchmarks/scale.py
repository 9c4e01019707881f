"""How long a large campaign takes to look at: `retrain status`, `report` and `export`.

Makes a finished campaign of 20 conditions x 50 seeds x 500 steps in a temporary folder (about
1 GB), with the files of a real one and made-up numbers; a few runs failed or diverged. Then each
verb runs in a process of its own, which is measured from its start to its end. Beside them stand
two floors: a process that only prints the version, and reading the bytes of all metrics.

    python benchmarks/scale.py [--runs 1000] [--steps 500] [--keep FOLDER] [--json]

The files were just written, so they come from memory, not from the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrain.config.load import config_from_mapping
from retrain.experiments.campaign import create_campaign
from retrain.experiments.manifest import Manifest
from retrain.experiments.plan import PlannedRun, plan_runs
from retrain.files import METRICS_FILE, RUN_FILE, RunRecord

MODES = (
    ("grpo", "none"), ("maxrl", "none"), ("maxrl", "gtpo"), ("maxrl", "gtpo_hicra"),
    ("maxrl", "gtpo_sepa"),
)  # fmt: skip
RATES = (5e-4, 1e-3, 2e-3, 4e-3)
CONDITIONS = len(MODES) * len(RATES)
EVALUATIONS, PROBLEMS = 10, 128
BATCH, GROUP = 8, 16
TROUBLED = 50
"""One run in so many fails, the next one diverges."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a process took."""

    what: str
    wall_s: float
    cpu_s: float
    peak_mb: float
    """0 where nothing was started."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=1000, help="in 20 conditions")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--keep", type=Path, help="make the campaign here, and leave it")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    options = parser.parse_args()
    if min(options.runs, options.steps) < 2:
        parser.error("--runs and --steps must be at least 2")
    with tempfile.TemporaryDirectory(prefix="retrain_scale_") as aside:
        folder = make_campaign(options.keep or Path(aside), options.runs, options.steps)
        size = sum(path.stat().st_size for path in folder.glob(f"runs/*/{METRICS_FILE}"))
        found = measure(folder)
    if options.json:
        result = {"runs": options.runs, "steps": options.steps, "metrics_mb": size / 1e6}
        print(json.dumps({**result, "measured": [asdict(each) for each in found]}, indent=2))
        return 0
    print(f"{options.runs} runs x {options.steps} steps, {size / 1e6:.0f} MB of metrics\n")
    print(f"{'':<34}{'wall s':>8}{'CPU s':>8}{'peak MB':>9}")
    for each in found:
        peak = f"{each.peak_mb:.0f}" if each.peak_mb else ""
        print(f"{each.what:<34}{each.wall_s:>8.2f}{each.cpu_s:>8.2f}{peak:>9}")
    return 0


def measure(folder: Path) -> list[Measured]:
    """The floors and the verbs, one after another."""
    return [
        verb("retrain --version (floor)", "--version"),
        reading(folder),
        verb("retrain status", "status", str(folder)),
        verb("retrain report", "report", str(folder)),
        verb("retrain export --csv", "export", str(folder), "--csv"),
        verb("retrain export --parquet", "export", str(folder), "--parquet"),
        verb("retrain status, again", "status", str(folder)),
        verb("retrain status --json", "status", str(folder), "--json"),
    ]


LAUNCHER = """
import json, os, subprocess, sys, time
started = time.perf_counter()
command = [sys.executable, "-m", "retrain", *sys.argv[1:]]
process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(json.dumps([time.perf_counter() - started, usage.ru_utime + usage.ru_stime,
                  usage.ru_maxrss / 1024, os.waitstatus_to_exitcode(status)]))
"""
"""A process inherits the peak memory of the one that forks it, so a small one does that."""


def verb(what: str, *arguments: str) -> Measured:
    """One process from its start to its end, as the kernel accounts for it."""
    launched = [sys.executable, "-c", LAUNCHER, *arguments]
    answer = subprocess.run(launched, check=True, stdout=subprocess.PIPE, text=True).stdout
    wall_s, cpu_s, peak_mb, code = json.loads(answer)
    if code:
        raise SystemExit(f"retrain {' '.join(arguments)} ended with {code}")
    return Measured(what, wall_s, cpu_s, peak_mb)


def reading(folder: Path) -> Measured:
    """What no reader of all metrics can do without."""
    started, cpu = time.perf_counter(), time.process_time()
    for path in folder.glob(f"runs/*/{METRICS_FILE}"):
        path.read_bytes()
    cpu_s = time.process_time() - cpu
    return Measured("bytes of all metrics (floor)", time.perf_counter() - started, cpu_s, 0.0)


def make_campaign(logs: Path, runs: int, steps: int) -> Path:
    """A finished campaign, planned by the program itself and filled with made-up numbers."""
    conditions = [
        {
            "name": f"{advantage}+{transform}~lr={rate}",
            "advantage_mode": advantage,
            "transform_mode": transform,
            "training": {"lr": rate},
        }
        for rate in RATES
        for advantage, transform in MODES
    ]
    count = min(CONDITIONS, runs)
    loaded = config_from_mapping(
        {
            "campaign": {
                "seeds": list(range(1, max(1, runs // count) + 1)),
                "max_steps": steps,
                "conditions": conditions[:count],
            },
            "training": {"batch_size": BATCH, "group_size": GROUP},
            "evaluation": {"num_problems": PROBLEMS},
            "logging": {"log_dir": str(logs.absolute())},
        }
    )
    planned = plan_runs(loaded)
    manifest = create_campaign(loaded, planned)
    generations = manifest.folder / ".generations"
    generations.write_text("".join(generation_rows(steps)))
    for index, run in enumerate(planned):
        fill_run(manifest, run, index, generations)
    generations.unlink()
    manifest.set_status("failed", workers=2)
    return manifest.folder


def fill_run(manifest: Manifest, run: PlannedRun, index: int, generations: Path) -> None:
    """What a run leaves, but for its adapters."""
    folder = manifest.folder / run.folder
    draw = np.random.default_rng([index, 7])
    trouble = {TROUBLED - 2: "failed", TROUBLED - 1: "diverged"}.get(index % TROUBLED)
    steps = run.max_steps // 2 if trouble else run.max_steps
    quality = 0.02 * (index % CONDITIONS) / CONDITIONS + draw.normal(0.0, 0.01)
    at = np.arange(steps + 1) / run.max_steps
    accuracy = np.clip(0.33 + (0.4 + quality) * np.sqrt(at), 0.0, 1.0)
    every = max(1, run.max_steps // EVALUATIONS)
    evaluated = [step for step in range(steps + 1) if step % every == 0 or step == run.max_steps]
    (folder / "emergence").mkdir()
    (folder / "evaluation").mkdir()
    records = {step: evaluation(step, float(accuracy[step]), draw) for step in evaluated}
    for step, measured in records.items():
        path = folder / "evaluation" / f"step_{step:06d}.json"
        path.write_text(json.dumps(measured, indent=2) + "\n")
    with (folder / METRICS_FILE).open("w") as file:
        for row in metrics_rows(run, accuracy[1:], draw):
            if after := records.get(row["step"] + 1):
                row["held_out_accuracy"] = after["accuracy"]
                row["held_out_greedy_accuracy"] = after["greedy_accuracy"]
            file.write(json.dumps(row) + "\n")
    # All runs share one file, which takes no room and is read like any other.
    os.link(generations, folder / "emergence" / "generations.jsonl")
    message = {"failed": "RuntimeError: made up", "diverged": "the loss is not finite"}
    (folder / "run.log").write_text(message.get(trouble or "", "") + "\n")
    first, last = records[evaluated[0]], records[evaluated[-1]]
    result = {
        "steps": steps,
        "accuracy_before": first["accuracy"],
        "accuracy_after": last["accuracy"],
        "greedy_before": first["greedy_accuracy"],
        "greedy_after": last["greedy_accuracy"],
        "mean_reward": float(accuracy[-1]),
        "wall_s": 0.5 * steps,
    }
    ended = {
        "status": trouble or "done",
        "message": message.get(trouble or "", ""),
        "cause": "error" if trouble == "failed" else None,
        "result": None if trouble else result,
    }
    record = RunRecord.read(folder).data
    moments = dict.fromkeys(("started_at", "finished_at"), record["updated_at"])
    record |= {**ended, **moments, "attempts": 1, "step": steps, "device": "cpu", "threads": 1}
    (folder / RUN_FILE).write_text(json.dumps(record, indent=2) + "\n")
    manifest.data["runs"][index].update(ended)


def metrics_rows(
    run: PlannedRun, accuracy: NDArray[np.float64], draw: np.random.Generator
) -> Iterator[dict[str, Any]]:
    """Rows with the keys of docs/files.md, and as many digits as real ones."""
    steps = len(accuracy)
    noise = draw.random((steps, 20)).tolist()
    reward = np.clip(accuracy + draw.normal(0.0, 0.03, steps), 0.0, 1.0).tolist()
    correct = 0.0
    for step, (u, mean_reward) in enumerate(zip(noise, reward, strict=True)):
        correct += mean_reward
        tokens = 3600 + int(100 * u[0])
        step_time = round(0.4 + u[1] / 5, 6)
        yield {
            "step": step,
            "condition": run.condition,
            "seed": run.seed,
            "batch_size": BATCH,
            "group_size": GROUP,
            "mean_reward": mean_reward,
            "correct_rate": mean_reward,
            "unverifiable_rate": 0.0,
            "masked_completions": 0,
            "num_datums": 96,
            "informative_groups": 5 + step % 3,
            "groups_all_correct": 3 - step % 3,
            "groups_all_wrong": 0,
            "groups_other": 0,
            "max_token_hit_rate": u[2] / 100,
            "mean_completion_tokens": tokens / (BATCH * GROUP),
            "tokens": tokens,
            "exec_uncertainty_mean": u[3],
            "exec_uncertainty_var": u[4],
            "plan_uncertainty_mean": u[5],
            "plan_uncertainty_var": u[6],
            "planning_fraction": u[7] / 10,
            "advantage_abs_mean": u[8],
            "reward_components/total_reward/mean": mean_reward,
            "running_correct_rate": correct / (step + 1),
            "sepa_lambda": step / steps,
            "sepa_gate_open": True,
            "loss": u[9] / 100,
            "grad_norm": u[10],
            "ratio_mean": 1.0 + u[11] / 1e4,
            "ratio_max": 1.0 + u[12] / 1e3,
            "log_ratio_mean": u[13] / 1e6,
            "clip_fraction": u[14] / 100,
            "kl_to_sampler": u[15] / 1e6,
            "kl_to_base": None,
            "lr": run.config.training.lr,
            "num_updates": 1,
            "step_time_s": step_time,
            "sample_time_s": round(step_time * 0.4, 6),
            "reward_time_s": round(u[16] / 1e3, 6),
            "update_time_s": round(step_time * 0.6, 6),
            "evaluation_time_s": 0.0,
            "tokens_per_second": round(tokens / step_time, 3),
            "peak_memory_mb": round(500 + u[17], 1),
        }


def evaluation(step: int, accuracy: float, draw: np.random.Generator) -> dict[str, Any]:
    """A file of `evaluation/`: every problem sampled once, and answered greedily."""
    sampled = (draw.random(PROBLEMS) < accuracy).astype(int).tolist()
    greedy = (draw.random(PROBLEMS) < min(1.0, accuracy + 0.2)).astype(int).tolist()
    return {
        "step": step,
        "num_problems": PROBLEMS,
        "samples_per_problem": 1,
        "temperature": 1.0,
        "accuracy": sum(sampled) / PROBLEMS,
        "greedy_accuracy": sum(greedy) / PROBLEMS,
        "unverifiable_rate": 0.0,
        "masked_completions": 0,
        "mean_tokens": 28.4,
        "max_token_hit_rate": 0.01,
        "problems": [
            {
                "id": f"arithmetic:{17 * n}-{n}*3",
                "domain": "arithmetic",
                "correct": [sampled[n]],
                "greedy": greedy[n],
            }
            for n in range(PROBLEMS)
        ],
    }


def generation_rows(steps: int) -> Iterator[str]:
    """Four completions a step."""
    draw = random.Random(7)
    text = "First, 8*6 is 48. Then 48-37 is 11. So the answer is \\boxed{11}."
    for step in range(steps):
        for sample in range(4):
            advantages = [float(f"{draw.uniform(-1, 1):.5g}") for _ in text.split()]
            row = {
                "step": step,
                "problem_id": f"arithmetic:{step}-{sample}",
                "domain": "arithmetic",
                "sample": sample * 4,
                "prompt": "Compute 8*6-37.",
                "answer": "11",
                "completion": text,
                "stop_reason": "stop",
                "reward": float(sample % 2),
                "outcome": "correct" if sample % 2 else "wrong",
                "parts": {},
                "num_tokens": len(advantages),
                "advantage": advantages[0],
                "planning_spans": [[0, 5]],
                "token_lengths": [len(word) + 1 for word in text.split()],
                "token_advantages": advantages,
                "token_uncertainties": [abs(value) for value in advantages],
            }
            yield json.dumps(row) + "\n"


if __name__ == "__main__":
    sys.exit(main())
