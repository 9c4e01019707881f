"""A worker whose training costs nothing, and which misbehaves where it is told to.

`trouble.json` in the log folder says so for each condition: `trouble` is one of the names below,
`trouble_seed` the seed it befalls (all by default), `trouble_attempts` how many of its first
attempts it befalls (all by default), `pause` the seconds a step takes (under `pause_seed`),
`levels` the held-out accuracy under each seed.

Like `train_run` it keeps the `run.json` that it finds, and returns a finished run as it is. It goes
on after the rows that are there, as if each step left a checkpoint.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from campaigns import TROUBLE_FILE

from retrain.causes import cause_of
from retrain.config.schema import RunConfig
from retrain.errors import RetrainError
from retrain.experiments import worker
from retrain.experiments.worker import main
from retrain.files import RunRecord, append_jsonl, atomic_write_json, read_jsonl
from retrain.training.place import Place

TROUBLE_STEP = 2
worker.ORPHAN_GRACE_S = 1


@dataclass(frozen=True)
class FakeResult:
    name: str
    condition: str
    seed: int
    status: str
    message: str
    steps: int
    accuracy_before: float | None = 0.25
    accuracy_after: float | None = 0.75
    greedy_before: float | None = None
    greedy_after: float | None = None
    mean_reward: float | None = 0.5
    wall_s: float = 1.0

    def measured(self) -> dict[str, Any]:
        own = ("name", "condition", "seed", "status", "message")
        return {key: value for key, value in asdict(self).items() if key not in own}


def fake_train(
    config: RunConfig,
    run_dir: Path,
    *,
    name: str,
    condition: str,
    place: Place,
    on_row: Callable[[Mapping[str, Any]], None],
    stop: Callable[[], bool],
) -> FakeResult:
    file = Path(config.logging.log_dir) / TROUBLE_FILE
    params = json.loads(file.read_text()).get(condition, {}) if file.exists() else {}
    seed, steps = config.training.seed, config.training.max_steps
    if RunRecord.exists(run_dir):
        record = RunRecord.read(run_dir)
    else:
        record = RunRecord.create(
            run_dir, name=name, condition=condition, seed=seed, max_steps=steps
        )
    done = len(read_jsonl(run_dir / "metrics.jsonl"))
    if record.status == "diverged" or (record.status == "done" and done >= steps):
        message = record.data["message"]
        return FakeResult(name, condition, seed, record.status, message, **record.data["result"])
    attempts = record.data["attempts"] + 1
    trouble = params.get("trouble", "")
    if params.get("trouble_seed", seed) != seed or attempts > params.get("trouble_attempts", 99):
        trouble = ""
    record.update(
        status="running",
        step=done,
        attempts=attempts,
        resumed_from=done or None,
        device=place.backend.device,
        threads=int(os.environ["OMP_NUM_THREADS"]),
    )
    pause = params.get("pause", 0.0) if params.get("pause_seed", seed) == seed else 0.0
    level, every = params.get("levels", {}).get(str(seed)), config.evaluation.every
    print("a stray line on stdout")
    os.write(1, b'{"event": "row"} straight to the descriptor\n')
    try:
        for step in range(done, steps):
            if step == TROUBLE_STEP:
                make(trouble, run_dir)
            print("a step begins")
            time.sleep(pause)
            if level is not None and every and (step + 1) % every == 0:
                evaluation = {"step": step + 1, "accuracy": level, "greedy_accuracy": None}
                (run_dir / "evaluation").mkdir(exist_ok=True)
                atomic_write_json(run_dir / f"evaluation/step_{step + 1:06d}.json", evaluation)
            row = {"step": step, "condition": condition, "seed": seed}
            row["mean_reward"] = (seed * 31 + step * 7) % 100 / 100
            append_jsonl(run_dir / "metrics.jsonl", row)
            done = step + 1
            on_row(row)
            if done < steps and stop():
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        record.update(status="stopped", step=done)
        raise
    except BaseException as error:
        record.update(
            status="failed",
            step=done,
            message=f"{type(error).__name__}: {error}",
            cause=cause_of(error, run_dir),
        )
        raise
    status = "diverged" if trouble == "diverge" else "done"
    message = "diverged at step 2: loss" if trouble == "diverge" else ""
    result = FakeResult(name, condition, seed, status, message, steps)
    record.update(status=status, message=message, step=steps, result=result.measured())
    return result


def make(trouble: str, run_dir: Path) -> None:
    if trouble == "raise":
        raise ValueError("the plugin broke [here]")
    if trouble == "explain":
        raise RetrainError("the data ran out; add more")
    if trouble == "leave":
        sys.exit(3)
    if trouble == "full":
        raise OSError(errno.ENOSPC, "No space left on device")
    if trouble == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if trouble == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if trouble == "warn":
        logging.getLogger("retrain.training").warning("no group was informative for 20 steps")
    if trouble == "hang":
        time.sleep(3600)
    if trouble == "deaf":
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        time.sleep(3600)
    if trouble == "child":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
        (run_dir / "child.pid").write_text(str(child.pid))


def load() -> Callable[..., FakeResult]:
    if os.environ.get("FAKE_WORKER_BROKEN"):
        raise ImportError("libtorch_cpu.so: cannot open shared object file")
    return fake_train


if __name__ == "__main__":
    raise SystemExit(main(load))
