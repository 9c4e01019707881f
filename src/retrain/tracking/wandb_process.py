"""The process that hands a run's rows to Weights & Biases.

    python -m retrain.tracking.wandb_process RUN_DIR

It reads everything from the run's folder: the config, the names, `metrics.jsonl` as it grows, and
in the end how the run ended. Its standard input says when that is: a line when the run has ended,
its end alone when the trainer was killed. On its standard output it says, in one line, why it gives
up. What wandb itself prints goes to `wandb/tracker.log`.

A resumed run continues the same run of wandb. Its id, and the number of steps that were handed
over, lie in `wandb/retrain.json`. As training is deterministic, the rows of steps that are trained
a second time are the same, and are left out. What counts online is what the server has.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import secrets
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retrain.config.dump import read_run_config
from retrain.config.schema import LoggingConfig
from retrain.files import METRICS_FILE, RUN_CONFIG_FILE, RunRecord, atomic_write_json, read_json
from retrain.tracking.wandb_tracker import DRAIN_S, GRACE_S, TRACKER_LOG, WANDB_FOLDER, lost

STATE_FILE = "retrain.json"
LOCK_FILE = "retrain.lock"
INIT_TIMEOUT_S = 60.0
POLL_S = 1.0
LONGEST_TAG = 64
DISCREET: dict[str, Any] = {
    "silent": True,
    "console": "off",
    "save_code": False,
    "disable_git": True,
    "x_disable_machine_info": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}
"""What is sent is what docs/tracking.md says: no code, packages, host or load."""
EXIT_CODES = {"done": 0, "stopped": 255}
"""What makes wandb show a run as finished, or as killed; anything else is failed."""


def init_arguments(settings: LoggingConfig, name: str, condition: str, seed: int) -> dict[str, Any]:
    """Where a run goes and what it is called, as `wandb.init` takes it; given values win."""
    tags = [condition[:LONGEST_TAG], f"seed{seed}", *settings.wandb_tags]
    return {
        "project": settings.wandb_project,
        "entity": settings.wandb_entity or None,
        "name": settings.wandb_run_name or name,
        "group": settings.wandb_group or condition,
        "tags": list(dict.fromkeys(tags)),
        "mode": settings.wandb_mode,
    }


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row as floats; text, and what is not known, is left out."""
    return {
        key: float(value)
        for key, value in values.items()
        if isinstance(value, bool | int | float) and math.isfinite(value)
    }


@dataclass(slots=True)
class State:
    """`wandb/retrain.json`: which run of wandb this is, and how many steps it was given."""

    id: str
    project: str
    entity: str
    steps: int = 0

    @classmethod
    def of(cls, folder: Path, settings: LoggingConfig) -> State:
        """The state so far. A run in another project, or somebody else's, is another run."""
        new = cls(secrets.token_hex(4), settings.wandb_project, settings.wandb_entity)
        if (folder / STATE_FILE).exists():
            old = cls(**read_json(folder / STATE_FILE))
            if (old.project, old.entity) == (new.project, new.entity):
                return old
        new.write(folder)
        return new

    def write(self, folder: Path) -> None:
        atomic_write_json(folder / STATE_FILE, asdict(self))


class Rows:
    """The rows of a growing `metrics.jsonl`, each once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    def new(self) -> Iterator[dict[str, Any]]:
        """Whole rows that came since the last call."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._read += len(line)
                yield json.loads(line)


class End:
    """Whether the run has ended, as standard input tells."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._said = threading.Event()
        self.trainer_died = False
        threading.Thread(target=self._wait, daemon=True).start()

    def wait(self, seconds: float) -> bool:
        return self._said.wait(seconds)

    def _wait(self) -> None:
        self.trainer_died = not os.read(self._descriptor, 1)
        self._said.set()
        # Nobody is there to end this process if wandb hangs now.
        last = threading.Timer(DRAIN_S + 2 * GRACE_S, os._exit, (1,))
        last.daemon = True
        last.start()


def track(run_dir: Path, end: End) -> None:
    """Follow the run to its end. Raises what wandb raises, and TimeoutError when it did not take
    the last rows in time."""
    import wandb

    folder = run_dir / WANDB_FOLDER
    config = read_run_config(run_dir / RUN_CONFIG_FILE)
    data = RunRecord.read(run_dir).data
    state = State.of(folder, config.logging)
    condition = str(data["condition"])
    run = wandb.init(
        **init_arguments(config.logging, str(data["name"]), condition, int(data["seed"])),
        id=state.id,
        resume="allow",
        dir=run_dir,
        config={**config.model_dump(mode="json", exclude_none=True), "condition": condition},
        allow_val_change=True,
        settings=wandb.Settings(
            init_timeout=INIT_TIMEOUT_S,
            finish_timeout=DRAIN_S,
            finish_timeout_raises=True,
            **DISCREET,
        ),
    )
    offline = config.logging.wandb_mode == "offline"
    done = state.steps if offline else int(run.step)
    rows, ended = Rows(run_dir / METRICS_FILE), False
    while not ended:
        ended = end.wait(POLL_S)
        # The file of a trainer that was killed may be cut back at any moment.
        for row in () if end.trainer_died else rows.new():
            if row["step"] >= done:
                run.log(numbers(row), step=row["step"], commit=True)
                done = int(row["step"]) + 1
        if done > state.steps:
            state.steps = done
            state.write(folder)
    status = "failed"
    if not end.trainer_died:
        data = RunRecord.read(run_dir).data
        status, result = str(data["status"]), numbers(data["result"] or {})
        run.summary.update({f"result/{key}": value for key, value in result.items()})
    run.summary.update({"status": status})
    synced = Path(run.dir).parent
    try:
        run.finish(exit_code=EXIT_CODES.get(status, 1))
    except TimeoutError as error:
        raise TimeoutError(
            f"the last rows did not arrive within {DRAIN_S:g} s; to send them again: "
            f"wandb sync --no-skip-online {synced}"
        ) from error


def main() -> int:
    """The entry point: 0 when everything was handed over."""
    run_dir = Path(sys.argv[1])
    end, words = End(os.dup(0)), os.dup(1)
    # wandb's own process inherits 0 to 2, and must not meddle with what is said on them.
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    # The end of standard input is what ends this process; a scheduler's signals, which go to
    # every process of a job, must not end it before the trainer.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.nice(10)
    os.environ.pop("WANDB_SERVICE", None)
    # What wandb tells its makers about errors; a server that does not take it costs seconds at
    # the end.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        with (run_dir / WANDB_FOLDER / LOCK_FILE).open("w") as lock:
            # The process of an attempt that was killed may still be finishing.
            fcntl.flock(lock, fcntl.LOCK_EX)
            track(run_dir, end)
    except Exception as error:
        traceback.print_exc()
        log = run_dir / WANDB_FOLDER / TRACKER_LOG
        text = " ".join(str(error).split()) or f"{type(error).__name__}, see {log}"
        os.write(words, (lost(text) + "\n").encode())
        sys.stderr.flush()
        # wandb's own clean-up would wait for the network again.
        os._exit(1)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
