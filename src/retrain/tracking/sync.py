"""`retrain sync`: runs that have ended are sent to a tracker, from what they wrote.

A run goes the way that it goes while it trains, through `tracking/process.py`; only that its end
has come already, and that somebody waits. What a tracker has is in `<run>/<tracker>/retrain.json`:
nothing is sent twice, and what arrived in part is completed.
"""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from retrain.analysis.reading import subfolders
from retrain.analysis.records import RunView, find_records
from retrain.analysis.squeezed import SQUEEZE_FILE, SQUEEZE_FOLDER
from retrain.config.dump import read_run_config
from retrain.config.schema import LoggingConfig, RunConfig
from retrain.config.tracking_checks import check_tracking
from retrain.errors import InputError, RetrainError
from retrain.files import METRICS_FILE, RunRecord, read_jsonl
from retrain.terminal import Terminal
from retrain.tracking.follower import start_process
from retrain.tracking.parcels import Parcels
from retrain.tracking.squeeze import RUN_NAME, send_squeeze
from retrain.tracking.state import TRACKER_LOG, State, is_busy
from retrain.tracking.trackers import TRACKERS, Tracker, trackers_of
from retrain.tracking.words import END, GRACE_S, UPLOAD_S

FINISHED = ("done", "diverged")
ENDED = (*FINISHED, "stopped", "dropped", "failed", "lost")
PATIENCE_S = UPLOAD_S
"""How long one run may take to arrive."""
SENT, ALREADY, SKIPPED, FAILED = "sent", "already sent", "skipped", "failed"
_OPTIONS = {"wandb_project": "--project", "wandb_entity": "--entity", "wandb_mode": "--mode"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one run at one tracker; `outcome` is sent, already sent, skipped or failed."""

    folder: str
    name: str
    tracker: str
    project: str
    outcome: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class _Item:
    """A run, or a squeeze, that may be sent. `run` is None for a squeeze."""

    folder: Path
    name: str
    run: RunView | None
    config: RunConfig | None
    problem: str = ""

    def outcome(self, outcome: str, message: str, tracker: Tracker | None = None) -> Outcome:
        project = self.config.logging.wandb_project if self.config else ""
        where = tracker.name if tracker else ""
        return Outcome(str(self.folder), self.name, where, project, outcome, message)


def sync(
    folder: Path,
    *,
    changes: Mapping[str, Any],
    again: bool = False,
    unfinished: bool = False,
    as_json: bool = False,
    console: Console | None = None,
) -> int:
    """Send every finished run in `folder`, and its squeeze; the exit code: 1 when one failed.

    folder:     of a run, a campaign or a squeeze, or one that holds some.
    changes:    keys of `[logging]` that count instead of the runs' own.
    again:      send them as new runs, whatever was sent before.
    unfinished: also those that were stopped, failed or lost, as they stand.

    Raises InputError, before anything is sent, when there is nothing to send or nowhere to.
    """
    console = console or Terminal()
    items = list(_items(folder, changes, ENDED if unfinished else FINISHED))
    if not items:
        raise InputError(f"{folder}: there is no run, campaign or squeeze in it")
    _check(folder, items, changes)
    outcomes: list[Outcome] = []
    columns = (TextColumn("sending"), BarColumn(), MofNCompleteColumn())
    hidden = as_json or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task("runs", total=len(items))
        for outcome in _send_all(items, again, done=lambda: progress.advance(task)):
            outcomes.append(outcome)
            if not as_json:
                console.print(Text(_line(outcome)), soft_wrap=True)
    if as_json:
        console.file.write(json.dumps([asdict(o) for o in outcomes], indent=2) + "\n")
    else:
        _conclude(console, items, outcomes)
    return int(any(outcome.outcome == FAILED for outcome in outcomes))


def _items(folder: Path, changes: Mapping[str, Any], states: Sequence[str]) -> Iterator[_Item]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give that of a run or a campaign")
    if (folder / SQUEEZE_FILE).is_file():
        yield _squeeze(folder, RunConfig(), changes)
        return
    squeezes = [path for path in subfolders(folder) if (path / SQUEEZE_FILE).is_file()]
    found = find_records([folder])
    for campaign in reversed(found.campaigns):
        members = [_run(run, changes, states) for run in campaign.runs]
        yield from members
        place = campaign.folder / SQUEEZE_FOLDER
        if (place / SQUEEZE_FILE).is_file():
            configs = [item.config for item in members if item.config]
            yield _squeeze(place, configs[0] if configs else RunConfig(), changes)
            squeezes = [path for path in squeezes if path.resolve() != place.resolve()]
    for run in reversed(found.runs):
        yield _run(run, changes, states)
    for place in squeezes:
        yield _squeeze(place, RunConfig(), changes)


def _run(run: RunView, changes: Mapping[str, Any], states: Sequence[str]) -> _Item:
    try:
        config = _with(read_run_config(run.config), changes)
    except InputError as error:
        return _Item(run.folder, run.name, run, None, str(error))
    why = "" if run.state in states else _why_not(run)
    return _Item(run.folder, run.name, run, config, why)


def _squeeze(folder: Path, config: RunConfig, changes: Mapping[str, Any]) -> _Item:
    return _Item(folder, RUN_NAME, None, _with(config, changes))


def _with(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    logging = config.logging.model_copy(update=dict(changes))
    return config.model_copy(update={"logging": logging})


def _why_not(run: RunView) -> str:
    if run.state in {"running", "stalled"}:
        return "it is being trained"
    if run.state == "pending":
        return "it has not begun"
    return f"it is {run.state} at step {run.step}; --unfinished sends it as it stands"


def _check(folder: Path, items: Iterable[_Item], changes: Mapping[str, Any]) -> None:
    """Raise InputError for what would go wrong with every run."""
    used: dict[str, Tracker] = {}
    for item in items:
        if item.config is None or item.problem:
            continue
        logging = item.config.logging
        if not logging.wandb_project:
            raise InputError(
                f"{folder}: {item.name} has no project ([logging].wandb_project is empty); say "
                "where it goes: --project NAME"
            )
        for finding in check_tracking(item.config, set()):
            if finding.is_error:
                key = finding.key.removeprefix("logging.")
                where = _OPTIONS[key] if key in changes else f"{item.name}: {finding.key}"
                raise InputError(f"{where}: {finding.message}")
        used |= {tracker.name: tracker for tracker in trackers_of(logging)}
    for tracker in used.values():
        if not tracker.is_installed():
            raise InputError(f"the package {tracker.name} is not installed; run: {tracker.remedy}")
    idle = [key for key in ("wandb_entity", "wandb_mode") if key in changes]
    if used and idle and all(tracker.is_local for tracker in used.values()):
        names = " and ".join(used)
        raise InputError(f"{_OPTIONS[idle[0]]} is not for {names}, which stays on this machine")


def _send_all(items: Sequence[_Item], again: bool, done: Any) -> Iterator[Outcome]:
    """One after another. Two that fail in a row for the same reason are enough: without a key or a
    network each would take its minute."""
    reasons: dict[str, list[str]] = {}
    for item in items:
        if item.config is None:
            yield item.outcome(FAILED, item.problem)
        elif item.problem:
            yield item.outcome(SKIPPED, item.problem)
        else:
            for tracker in trackers_of(item.config.logging):
                last = reasons.setdefault(tracker.name, [])
                if len(last) > 1 and last[-1] == last[-2]:
                    yield item.outcome(FAILED, "not tried, as the last two failed alike", tracker)
                    continue
                outcome = _send(item, tracker, again)
                if outcome.outcome == FAILED:
                    last.append(outcome.message)
                elif outcome.outcome == SENT:
                    last.clear()
                yield outcome
        done()


def _send(item: _Item, tracker: Tracker, again: bool) -> Outcome:
    assert item.config is not None
    place, logging = item.folder / tracker.name, item.config.logging
    if is_busy(place):
        return item.outcome(SKIPPED, "another process is sending it", tracker)
    state = State.of(place, logging.wandb_project, logging.wandb_entity, again=again)
    try:
        if item.run is None:
            if state.sent.get("mode") in {tracker.mode_of(logging), "online"}:
                return item.outcome(ALREADY, "", tracker)
            problem = send_squeeze(logging, item.folder, tracker, again=again)
            return item.outcome(FAILED if problem else SENT, problem, tracker)
        steps = _steps(item.folder)
        if _is_sent(item.folder, item.config, state, tracker, steps):
            return item.outcome(ALREADY, f"{steps} steps", tracker)
        problem = _hand_over(item.folder, logging, tracker, again)
        return item.outcome(FAILED if problem else SENT, problem or f"{steps} steps", tracker)
    except (RetrainError, OSError, ValueError) as error:
        return item.outcome(FAILED, str(error), tracker)


def _steps(run_dir: Path) -> int:
    rows = read_jsonl(run_dir / METRICS_FILE)
    return int(rows[-1]["step"]) + 1 if rows else 0


def _is_sent(run_dir: Path, config: RunConfig, state: State, tracker: Tracker, steps: int) -> bool:
    record, mode = RunRecord.read(run_dir).data, tracker.mode_of(config.logging)
    parcels = Parcels(run_dir, run_dir / tracker.name, config, str(record["name"]))
    files = parcels.labels(record, ended=True)
    return state.is_sent(str(record["status"]), steps, mode) and all(
        state.has_parcel(label, mode) for label in files
    )


def _hand_over(run_dir: Path, logging: LoggingConfig, tracker: Tracker, again: bool) -> str:
    """Why it did not work; an empty text when it did."""
    place = run_dir / tracker.name
    place.mkdir(exist_ok=True)
    keys = (*_OPTIONS, "trackers")
    settings = json.dumps(
        {
            "logging": {key: getattr(logging, key) for key in keys},
            "patience_s": PATIENCE_S,
            "again": again,
        }
    )
    with (place / TRACKER_LOG).open("ab") as log:
        process = start_process(run_dir, tracker, settings, stderr=log)
        try:
            # It ends itself; this is for one that cannot.
            said, _ = process.communicate(END, timeout=2 * PATIENCE_S + 10 * GRACE_S)
        except subprocess.TimeoutExpired:
            return f"it took longer than {2 * PATIENCE_S:.0f} s; see {place / TRACKER_LOG}"
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    for line in said.splitlines():
        words = json.loads(line)
        if text := words.get("lost") or words.get("warning"):
            return str(text)
    if process.returncode:
        return f"its process ended with exit code {process.returncode}; see {place / TRACKER_LOG}"
    return ""


def _line(outcome: Outcome) -> str:
    title = TRACKERS[outcome.tracker].title if outcome.tracker else ""
    where = f" to {title}, project {outcome.project}" if title else ""
    rest = f": {outcome.message}" if outcome.message else ""
    return f"{outcome.name}: {outcome.outcome}{where}{rest}"


def _conclude(console: Console, items: Sequence[_Item], outcomes: Sequence[Outcome]) -> None:
    counts = Counter(outcome.outcome for outcome in outcomes)
    parts = [f"{counts[kind]} {kind}" for kind in (SENT, ALREADY, SKIPPED, FAILED) if counts[kind]]
    console.print(Text(", ".join(parts)), soft_wrap=True)
    sent = {outcome.folder for outcome in outcomes if outcome.outcome == SENT}
    offline = [
        item.folder
        for item in items
        if str(item.folder) in sent
        and item.config is not None
        and "wandb" in item.config.logging.trackers
        and item.config.logging.wandb_mode == "offline"
    ]
    if offline:
        folders = " ".join(f"{folder}/wandb/offline-run-*" for folder in offline)
        console.print(Text(f"written offline; to send it: wandb sync {folders}"), soft_wrap=True)
