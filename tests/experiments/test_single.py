"""A single run: its folder, its messages, its exit code. The training itself is replaced."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import pytest
from campaigns import load, plain_console

from retrain.causes import INFRASTRUCTURE
from retrain.config.dump import read_run_config
from retrain.config.load import LoadedConfig, config_from_mapping
from retrain.config.schema import RunConfig
from retrain.errors import InputError
from retrain.experiments.single import SingleResult, run_single
from retrain.files import RunRecord
from retrain.locks import FolderLock, LockedError
from retrain.processes import ProcessId
from retrain.training import run as training
from retrain.training.place import Place
from retrain.training.run import RunResult

OnRow = Callable[[Mapping[str, Any]], None]


def single(logs: Path) -> LoadedConfig:
    return config_from_mapping(
        {
            "algorithm": {"advantage_mode": "grpo", "transform_mode": "none"},
            "training": {"seed": 7, "max_steps": 3, "max_tokens": 16},
            "logging": {"log_dir": str(logs)},
        }
    )


def ending(status: str, message: str = "") -> RunResult:
    return RunResult(
        name="",
        condition="",
        seed=7,
        status=status,
        message=message,
        steps=3,
        accuracy_before=0.25,
        accuracy_after=0.75,
        greedy_before=None,
        greedy_after=None,
        mean_reward=0.5,
        wall_s=2.0,
    )


def pretend(monkeypatch: pytest.MonkeyPatch, outcome: RunResult | BaseException) -> None:
    """Let training write three rows and a warning, and then end in `outcome`.

    Like the real one it keeps the record that it finds; its end is left to the caller.
    """

    def train_run(
        config: RunConfig,
        run_dir: Path,
        *,
        name: str,
        condition: str,
        place: Place,
        on_row: OnRow,
        stop: Callable[[], bool],
        allow_changes: Collection[str],
        lock: FolderLock,
    ) -> RunResult:
        assert config.training.seed == 7
        assert place == Place(config.backend)
        assert not stop()
        assert not allow_changes
        lock.check()
        record = RunRecord.read(run_dir)
        assert (record.data["name"], record.data["condition"]) == (name, condition)
        record.update(status="running")
        for step in range(3):
            on_row({"step": step, "mean_reward": 0.5, "correct_rate": 0.5})
        logging.getLogger("retrain").warning("%s, step 2: reward is always 0", name)
        logging.getLogger("a.library").warning("no heartbeat")
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(training, "train_run", train_run)


def run(loaded: LoadedConfig, **options: Any) -> tuple[SingleResult, str]:
    console, output = plain_console()
    result = run_single(loaded, console=console, **options)
    return result, output.getvalue()


def test_a_run_gets_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, ending("done"))
    first, output = run(single(tmp_path))
    second, _ = run(single(tmp_path))
    assert first.run_dir != second.run_dir
    assert first.run_dir.parent == tmp_path
    assert first.run_dir.name.startswith("grpo+none_s7_2")
    assert (first.exit_code, first.status) == (0, "done")
    record = RunRecord.read(first.run_dir).data
    assert (record["name"], record["condition"]) == ("grpo+none_s7", "grpo+none")
    assert record["status"] == "done"
    assert "held-out accuracy: 25.0% before, 75.0% after" in output
    assert "greedy" not in output
    assert f"run:  {first.run_dir}" in output
    assert f"next: retrain status {first.run_dir}" in output
    assert "warning: grpo+none_s7: step 2: reward is always 0" in output
    log = (first.run_dir / "run.log").read_text()
    assert log.count("reward is always 0") == log.count("no heartbeat") == 1
    assert "no heartbeat" not in output


def test_name_condition_and_folder_can_be_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, ending("done"))
    folder = tmp_path / "deep" / "mine"
    result, _ = run(single(tmp_path), run_dir=folder, name="a_s7", condition="a")
    assert result.run_dir == folder
    record = RunRecord.read(folder).data
    assert (record["name"], record["condition"]) == ("a_s7", "a")


def test_a_folder_with_a_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, ending("done"))
    folder = tmp_path / "mine"
    run(single(tmp_path), run_dir=folder)
    before = (folder / "run.json").read_bytes()
    message = f"already holds a run; to go on: retrain resume {folder}; for a new one give another"
    with pytest.raises(InputError, match=message):
        run(single(tmp_path), run_dir=folder)
    # Another one than it is does not go on in its place.
    with pytest.raises(InputError, match=message):
        run(single(tmp_path), run_dir=folder, name="other_s7", condition="other")
    assert (folder / "run.json").read_bytes() == before
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        run(single(tmp_path), run_dir=tmp_path / "file")


def test_a_planned_run_may_be_trained_in_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, ending("done"))
    RunRecord.create(tmp_path / "a_s7", name="a_s7", condition="a", seed=7, max_steps=3)
    result, _ = run(single(tmp_path), run_dir=tmp_path / "a_s7")
    assert result.exit_code == 0


def test_the_command_of_a_planned_run_goes_on_when_it_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, KeyboardInterrupt())
    planned = {"run_dir": tmp_path / "rerun" / "a_s7", "name": "a_s7", "condition": "a"}
    result, _ = run(single(tmp_path), **planned)
    assert (result.exit_code, result.status) == (130, "stopped")
    pretend(monkeypatch, ending("done"))
    result, _ = run(single(tmp_path), **planned)
    assert (result.exit_code, result.status) == (0, "done")


def test_of_two_that_are_started_together_one_has_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second finds the first one training, and leaves its name and seed alone."""
    folder = tmp_path / "mine"

    def second(config: RunConfig, run_dir: Path, **_: Any) -> RunResult:
        before = (folder / "run.json").read_bytes()
        with pytest.raises(LockedError, match="mine is in use by process"):
            run(single(tmp_path), run_dir=folder, name="b_s7", condition="b")
        assert (folder / "run.json").read_bytes() == before
        return ending("done")

    monkeypatch.setattr(training, "train_run", second)
    assert run(single(tmp_path), run_dir=folder, name="a_s7", condition="a")[0].status == "done"
    assert RunRecord.read(folder).data["name"] == "a_s7"


@pytest.mark.parametrize(
    ("outcome", "exit_code", "status", "message", "cause"),
    [
        (
            ending("diverged", "diverged at step 2: loss"),
            *(1, "diverged", "diverged at step 2: loss", None),
        ),
        (ValueError("it broke\n[here]"), 1, "failed", "ValueError: it broke [here]", "error"),
        (InputError("no such file: data.jsonl"), 2, "failed", "no such file: data.jsonl", "error"),
        (MemoryError(), 1, "failed", "MemoryError", "out of memory"),
        (ConnectionError("refused"), 1, "failed", "ConnectionError: refused", "lost service"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            *(1, "failed", "OSError: [Errno 28] No space left on device", "disk"),
        ),
        (KeyboardInterrupt(), 130, "stopped", "", None),
    ],
)
def test_how_a_run_ends(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    outcome: RunResult | BaseException,
    exit_code: int,
    status: str,
    message: str,
    cause: str | None,
) -> None:
    pretend(monkeypatch, outcome)
    result, output = run(single(tmp_path))
    assert (result.exit_code, result.status, result.message) == (exit_code, status, message)
    assert result.cause == cause
    record = RunRecord.read(result.run_dir)
    assert (record.status, record.data["message"]) == (status, message)
    assert record.data["cause"] == cause
    assert (f"{status}: {message}" if message else status) in output
    log = result.run_dir / "run.log"
    assert ("Traceback" in log.read_text()) == (status == "failed")
    assert not message or output.count(message) == 1
    # Where a plugin or retrain is at fault the log helps; what the user has to mend is told
    # already; else it may simply go on.
    mended = exit_code == 2
    assert (f"when that is mended: retrain resume {result.run_dir}" in output) == mended
    assert read_run_config(result.run_dir / "config.toml").training.seed == 7
    by_itself = status == "stopped" or cause in INFRASTRUCTURE
    assert (f"next: retrain resume {result.run_dir}" in output) == by_itself
    assert (f"next: less {log}" in output) == (not by_itself and not mended)
    assert ("before it goes on, " in output) == (cause in INFRASTRUCTURE)


def test_a_run_that_another_process_trains_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = LockedError(tmp_path / "mine" / ".lock", ProcessId("node7", 12), "2026-01-31")
    pretend(monkeypatch, locked)
    with pytest.raises(LockedError, match="mine is in use by process 12 on node7, since 2026"):
        run(single(tmp_path), run_dir=tmp_path / "mine")
    assert RunRecord.read(tmp_path / "mine").status == "running"
    assert "Traceback" not in (tmp_path / "mine" / "run.log").read_text()


def test_handlers_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, ending("done"))
    before = list(logging.getLogger("retrain").handlers)
    run(single(tmp_path))
    assert logging.getLogger("retrain").handlers == before


def test_a_campaign_is_no_single_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a campaign"):
        run_single(load(tmp_path, {"a": {}}))
