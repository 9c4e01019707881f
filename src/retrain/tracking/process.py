"""The process that hands a run's rows to one tracker.

    python -m retrain.tracking.process RUN_DIR TRACKER [SETTINGS]

It reads everything from the run's folder: the config, the names, `metrics.jsonl` as it grows, the
adapters, and in the end how the run ended. Its standard input says when that is: a line when the
run has ended, its end alone when the trainer was killed. On its standard output it says, in lines
of `words.py`, that it gives up, or that files are still on their way. What the tracker itself
prints goes to `<run>/<tracker>/tracker.log`.

A resumed run continues the same run of the tracker. Its id, and the number of steps that were
handed over, lie in `<run>/<tracker>/retrain.json`. As training is deterministic, the rows of steps
that are trained a second time are the same, and are left out. Where the tracker can tell what it
has, that counts.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrain.answers import without_key
from retrain.config.dump import read_run_config
from retrain.config.schema import LoggingConfig, RunConfig
from retrain.files import METRICS_FILE, RUN_CONFIG_FILE, RunRecord
from retrain.tracking.parcels import Parcels
from retrain.tracking.state import TRACKER_LOG, State, held
from retrain.tracking.trackers import TRACKERS, Handle, Opening, Parcel, Tracker, names_of
from retrain.tracking.words import DRAIN_S, GRACE_S, UPLOAD_S, loses, uploads, warns

POLL_S = 1.0
KEY_VARIABLE = "WANDB_API_KEY"
PATIENT = ("done", "diverged", "failed")
"""How a run has ended whose files may take their time; who stops a run wants it to be over."""


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row as floats; text, and what is not known, is left out."""
    return {
        key: float(value)
        for key, value in values.items()
        if isinstance(value, bool | int | float) and math.isfinite(value)
    }


@dataclass(frozen=True, slots=True)
class Settings:
    """How this time differs from what the run's config says; given by `retrain sync`.

    logging:    keys of `[logging]`.
    patience_s: how long the last rows, and files, may take.
    again:      as a new run, whatever was sent before.
    """

    logging: Mapping[str, Any]
    patience_s: float = DRAIN_S
    again: bool = False


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
    """Whether the run has ended, as standard input tells; and the end of this process."""

    def __init__(self, descriptor: int, patience_s: float) -> None:
        self._descriptor = descriptor
        self._said = threading.Event()
        self._patience_s = patience_s
        self._latest = math.inf
        self.trainer_died = False
        threading.Thread(target=self._wait, daemon=True).start()

    def wait(self, seconds: float) -> bool:
        return self._said.wait(seconds)

    def extend(self, seconds: float) -> None:
        """Let this process take so long from now on, at least."""
        self._latest = max(self._latest, time.monotonic() + seconds + 2 * GRACE_S)

    def _wait(self) -> None:
        self.trainer_died = not os.read(self._descriptor, 1)
        # Nobody is there to end this process if the tracker hangs now.
        self._latest = time.monotonic() + self._patience_s + 2 * GRACE_S
        self._said.set()
        while time.monotonic() < self._latest:
            time.sleep(0.1)
        os._exit(1)


class Words:
    """What this process says to the trainer, which may be gone."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def say(self, line: str) -> None:
        try:
            os.write(self._descriptor, line.encode() + b"\n")
        except OSError:
            return


class Sending:
    """One attempt to hand a run over; see the module."""

    def __init__(
        self, run_dir: Path, tracker: Tracker, settings: Settings, end: End, words: Words
    ) -> None:
        self._run_dir = run_dir
        self._folder = run_dir / tracker.name
        self._tracker = tracker
        self._settings = settings
        self._end = end
        self._words = words
        self._config = _with(read_run_config(run_dir / RUN_CONFIG_FILE), settings.logging)
        self._failed: dict[str, str] = {}
        self._on_the_way: dict[str, Parcel] = {}

    def go(self) -> None:
        """Follow the run to its end. Raises what the tracker raises, and TimeoutError when it did
        not take the last rows in time."""
        logging, record = self._config.logging, RunRecord.read(self._run_dir).data
        state = State.of(
            self._folder, logging.wandb_project, logging.wandb_entity, again=self._settings.again
        )
        state.sent, state.problem = {}, ""
        state.write(self._folder)
        condition, name = str(record["condition"]), str(record["name"])
        names = names_of(logging, name, condition, int(record["seed"]))
        dumped = self._config.model_dump(mode="json", exclude_none=True)
        handle = self._tracker.open_run(
            Opening(
                **names,
                id=state.id,
                config={**dumped, "condition": condition},
                folder=self._run_dir,
                steps=state.steps,
                patience_s=self._settings.patience_s,
            )
        )
        parcels = Parcels(self._run_dir, self._folder, self._config, names["name"])
        done = self._follow(handle, state, parcels)
        status = "failed"
        if not self._end.trainer_died:
            record = RunRecord.read(self._run_dir).data
            status, result = str(record["status"]), numbers(record["result"] or {})
            summary = {f"result/{key}": value for key, value in result.items()}
            handle.summary({**summary, "status": status})
        else:
            handle.summary({"status": status})
        if parcels.wanted:
            self._send_the_rest(handle, state, parcels, status)
        handle.finish(status)
        if not self._end.trainer_died:
            state.sent = {"status": status, "steps": done, "mode": handle.mode}
        if self._failed:
            what = "; ".join(f"{label}: {reason}" for label, reason in self._failed.items())
            state.sent, state.problem = {}, f"not every file could be sent: {what}"
            self._words.say(warns(f"{state.problem}; to try again: retrain sync {self._run_dir}"))
        state.write(self._folder)

    def _follow(self, handle: Handle, state: State, parcels: Parcels) -> int:
        """Until the run has ended; how many steps the tracker was handed."""
        done, ended = handle.steps, False
        rows = Rows(self._run_dir / METRICS_FILE)
        while not ended:
            ended = self._end.wait(POLL_S)
            # The file of a trainer that was killed may be cut back at any moment.
            for row in () if self._end.trainer_died else rows.new():
                if row["step"] >= done:
                    handle.log(numbers(row), step=row["step"])
                    done = int(row["step"]) + 1
            if done != state.steps:
                state.steps = done
                state.write(self._folder)
            if parcels.wanted and not ended:
                self._send_new(handle, state, parcels, ended=False)
                self._note_arrived(handle, state, parcels)
        return done

    def _unsent(self, handle: Handle, state: State, parcels: Parcels, *, ended: bool) -> list[str]:
        known = {*self._on_the_way, *self._failed}
        labels = parcels.labels(RunRecord.read(self._run_dir).data, ended=ended)
        return [
            label
            for label in labels
            if label not in known and not state.has_parcel(label, handle.mode)
        ]

    def _send_new(self, handle: Handle, state: State, parcels: Parcels, *, ended: bool) -> None:
        record = RunRecord.read(self._run_dir).data
        for label in self._unsent(handle, state, parcels, ended=ended):
            with self._noting(label):
                if parcel := parcels.make(label, record):
                    handle.send(parcel)
                    self._on_the_way[label] = parcel

    def _note_arrived(self, handle: Handle, state: State, parcels: Parcels) -> None:
        for label, parcel in tuple(self._on_the_way.items()):
            with self._noting(label):
                if handle.arrived(parcel):
                    del self._on_the_way[label]
                    state.parcels[label] = handle.mode
                    state.write(self._folder)
                    if not handle.keeps_files:
                        parcels.remove(label)
            if label in self._failed:
                self._on_the_way.pop(label, None)

    def _send_the_rest(self, handle: Handle, state: State, parcels: Parcels, status: str) -> None:
        """Send what there is at the end, and wait until it has arrived; the trainer need not."""
        patience = self._settings.patience_s
        may_wait = status in PATIENT and not self._end.trainer_died
        limit = max(UPLOAD_S, patience) if may_wait else patience
        self._note_arrived(handle, state, parcels)
        files = len(self._on_the_way) + len(self._unsent(handle, state, parcels, ended=True))
        if files and may_wait:
            self._words.say(uploads(files))
            self._end.extend(limit + patience)
        deadline = time.monotonic() + limit
        self._send_new(handle, state, parcels, ended=True)
        self._note_arrived(handle, state, parcels)
        while self._on_the_way:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{', '.join(self._on_the_way)}: not uploaded within {limit:g} s; to try "
                    f"again: retrain sync {self._run_dir}"
                )
            time.sleep(0.1)
            self._note_arrived(handle, state, parcels)

    def _noting(self, label: str) -> _Noting:
        return _Noting(label, self._failed)


class _Noting:
    """A file that cannot be sent is noted; the rows go on."""

    def __init__(self, label: str, failed: dict[str, str]) -> None:
        self._label, self._failed = label, failed

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception):
            return False
        _print(error)
        self._failed[self._label] = reason_of(error)
        return True


def reason_of(error: Exception) -> str:
    """In one line, without the tracker's key."""
    text = " ".join(str(error).split()) or type(error).__name__
    return without_key(text, KEY_VARIABLE)


def _print(error: Exception) -> None:
    trace = "".join(traceback.format_exception(error))
    sys.stderr.write(without_key(trace, KEY_VARIABLE))


def _with(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    logging = LoggingConfig.model_validate({**config.logging.model_dump(), **changes})
    return config.model_copy(update={"logging": logging})


def leave_pipes() -> int:
    """Give the tracker's own processes, which inherit 0 to 2, nothing to meddle with; the
    descriptor of what was the standard output."""
    words = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    return words


def main() -> int:
    """The entry point: 0 when everything was handed over."""
    run_dir, tracker = Path(sys.argv[1]), TRACKERS[sys.argv[2]]
    settings = Settings(**json.loads(sys.argv[3]) if len(sys.argv) > 3 else {"logging": {}})
    end = End(os.dup(0), settings.patience_s)
    words = Words(leave_pipes())
    # The end of standard input is what ends this process; a scheduler's signals, which go to
    # every process of a job, must not end it before the trainer.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.nice(10)
    folder = run_dir / tracker.name
    try:
        with held(folder):
            try:
                Sending(run_dir, tracker, settings, end, words).go()
            except Exception as error:
                _note(folder, reason_of(error))
                raise
    except Exception as error:
        _print(error)
        text = reason_of(error)
        if not str(error).strip():
            text += f", see {folder / TRACKER_LOG}"
        words.say(loses(text))
        sys.stderr.flush()
        # The tracker's own clean-up would wait for the network again.
        os._exit(1)
    return 0


def _note(folder: Path, problem: str) -> None:
    """For who looks later, as at the end of a campaign."""
    state = State.read(folder)
    if state is not None:
        state.problem = problem
        try:
            state.write(folder)
        except OSError as error:
            _print(error)


if __name__ == "__main__":
    raise SystemExit(main())
