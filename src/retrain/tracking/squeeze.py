"""A squeeze at its trackers: one run named `squeeze-analysis`.

    python -m retrain.tracking.squeeze FOLDER TRACKER < settings.json

All of a tracker lives in a process of its own, as for runs, so that a squeeze can neither fail nor
hang for it. FOLDER holds `squeeze.json`; the tracker's state and files go to `<tracker>/` beside
it. One that was sent already is completed, and not sent twice.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retrain.analysis.squeezed import SQUEEZE_FILE, SqueezeRecord
from retrain.config.schema import LoggingConfig
from retrain.files import read_record
from retrain.processes import module_command
from retrain.tracking.state import State, held
from retrain.tracking.trackers import TRACKERS, Opening, Tracker, trackers_of

RUN_NAME = "squeeze-analysis"
TIMEOUT_S = 90.0
CURVES = ("mean_variance", "min_variance", "max_variance", "pooled_variance")
SUMMARY = ("recommended_rank", "source_rank", "num_layers", "min_variance_retention")
DONE = "done"


def track_squeeze(settings: LoggingConfig, folder: Path) -> str:
    """Send what is in `folder` to its trackers; what could not be sent and why, or an empty
    text."""
    chosen = trackers_of(settings)
    problems = {tracker: send_squeeze(settings, folder, tracker) for tracker in chosen}
    return "\n".join(
        f"no tracking with {tracker.title}: {problem}"
        for tracker, problem in problems.items()
        if problem
    )


def send_squeeze(
    settings: LoggingConfig, folder: Path, tracker: Tracker, *, again: bool = False
) -> str:
    """Send it to one tracker; why it could not be sent, or an empty text."""
    try:
        done = subprocess.run(
            [
                *module_command("retrain.tracking.squeeze"),
                *(str(folder.absolute()), tracker.name, "again" if again else ""),
            ],
            input=settings.model_dump_json(),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"{tracker.title} did not take it within {TIMEOUT_S:.0f} s"
    if done.returncode == 0:
        return ""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"its process ended with exit code {done.returncode}"


def history(document: Mapping[str, Any]) -> list[dict[str, float]]:
    """A row a rank, from 1: what it keeps, by curve."""
    ranks = range(1, int(document["source_rank"]) + 1)
    return [
        {f"squeeze/{curve}": float(document[curve][str(rank)]) for curve in CURVES}
        for rank in ranks
    ]


def summary(document: Mapping[str, Any]) -> dict[str, float | str]:
    """What it found, and the numbers of its checks."""
    found: dict[str, float | str] = {f"squeeze/{key}": document[key] for key in SUMMARY}
    for stage in ("check", "finetuned"):
        for key, value in (document[stage] or {}).items():
            if isinstance(value, int | float):
                found[f"squeeze/{stage}/{key}"] = value
    return found


def main() -> int:
    """Send it. The table holds the ranks that the terminal shows."""
    folder, tracker, again = Path(sys.argv[1]), TRACKERS[sys.argv[2]], bool(sys.argv[3])
    settings = LoggingConfig.model_validate_json(sys.stdin.read())
    # What a tracker prints is no reason why it failed.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    with held(folder / tracker.name):
        _send(settings, folder, tracker, again)
    return 0


def _send(settings: LoggingConfig, folder: Path, tracker: Tracker, again: bool) -> None:
    document = read_record(folder / SQUEEZE_FILE, SqueezeRecord)
    place, ranks = folder / tracker.name, int(document["source_rank"])
    state = State.of(place, settings.wandb_project, settings.wandb_entity, again=again)
    is_new, state.sent = not state.steps, {}
    state.write(place)
    run = tracker.open_run(
        Opening(
            id=state.id,
            project=settings.wandb_project,
            entity=settings.wandb_entity,
            name=RUN_NAME,
            group="",
            tags=["squeeze", *settings.wandb_tags],
            mode=settings.wandb_mode,
            config={"adapter": document["adapter"]},
            folder=folder,
            steps=state.steps,
            patience_s=TIMEOUT_S - 30,
            kind="squeeze",
        )
    )
    first = run.steps
    for rank, row in enumerate(history(document), start=1):
        if rank >= first:
            run.log(row, step=rank)
    if is_new or not first:
        rows = [
            [rank, *(document[curve][str(rank)] for curve in CURVES)] for rank in document["ranks"]
        ]
        run.table("squeeze/variance", ["rank", *CURVES], rows)
    run.summary(summary(document))
    run.finish(DONE)
    state.steps, state.sent = ranks + 1, {"status": DONE, "steps": ranks, "mode": run.mode}
    state.write(place)


if __name__ == "__main__":
    raise SystemExit(main())
