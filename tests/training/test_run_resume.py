"""A run that was stopped anywhere and went on is, bit for bit, the run it would have been."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from retrain.config.schema import RunConfig
from retrain.errors import ConfigError, InputError
from retrain.files import RunRecord, append_jsonl, read_json, read_jsonl
from retrain.policies.local.policy import LocalPolicy
from retrain.tasks.arithmetic import ArithmeticTask
from retrain.training import loop as loop_module
from retrain.training import run as run_module
from retrain.training.checkpoint import checkpoint_folders
from retrain.training.loop import RunStopped
from retrain.training.run import BaseModels
from tests.training.runs import assert_same, config, content, rows, start

STEPS = 5
SHORT: dict[str, Any] = {"max_steps": STEPS, "max_tokens": 24, "keep_last": 1}


def sepa_run(folder: Path) -> RunConfig:
    """What the SEPA controller has seen, the epochs of a file, and the best checkpoint matter."""
    problems = ArithmeticTask().train_batch(3, 0, 13)
    path = folder / "problems.jsonl"
    for number, problem in enumerate(problems):
        split = "held_out" if number >= 9 else "train"
        append_jsonl(path, {"prompt": problem.prompt, "answer": problem.answer, "split": split})
    return config(
        algorithm={"advantage_mode": "maxrl", "transform_mode": "gtpo_sepa"},
        # 16 completions a step: var_0 is taken in step 3, and lambda is its from step 4 on.
        sepa={"steps": 20, "delay_steps": 1, "schedule": "auto", "correct_rate_gate": 0.01},
        training={**SHORT, "batch_size": 4},
        data={"source": "jsonl", "path": str(path)},
        evaluation={"num_problems": 2, "every": 1},
    )


def cosine_run(folder: Path) -> RunConfig:
    """Many optimizer steps, their order, and a learning rate that is another one every step."""
    return config(
        training={
            **SHORT,
            "batch_size": 2,
            "lr_schedule": "cosine",
            "warmup_steps": 2,
            "updates_per_batch": 2,
            "minibatches": 2,
            "weight_decay": 0.01,
        },
        loss={"type": "ppo", "kl_coef": 0.01},
        evaluation={"num_problems": 2, "greedy": False},
    )


@dataclass(frozen=True)
class Straight:
    """A run that nothing befell."""

    settings: RunConfig
    folder: Path


@pytest.fixture(scope="module", params=[sepa_run, cosine_run], ids=["sepa", "cosine"])
def straight(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Straight:
    folder = tmp_path_factory.mktemp("straight")
    settings = request.param(folder)
    start(settings, folder / "run")
    return Straight(settings, folder / "run")


def stop_after(steps: int) -> dict[str, Any]:
    """Arguments that ask a run to stop after so many more steps."""
    heard: list[object] = []
    return {"on_row": heard.append, "stop": lambda: len(heard) == steps}


def stopped(settings: RunConfig, folder: Path, steps: int) -> None:
    with pytest.raises(RunStopped):
        start(settings, folder, **stop_after(steps))


def test_the_runs_use_what_they_are_to_prove(straight: Straight) -> None:
    found, state = rows(straight.folder), newest_state(straight.folder)
    if straight.settings.training.lr_schedule == "cosine":
        assert len({row["lr"] for row in found}) >= STEPS - 2
        assert max(row["num_updates"] for row in found) == 4
        return
    assert state["sepa"]["var_0"] is not None
    assert state["sepa"]["gate_open"]
    assert found[-1]["sepa_lambda"] > 0
    assert all("held_out_accuracy" in row for row in found)


def newest_state(folder: Path) -> dict[str, Any]:
    newest = max((folder / "checkpoints").iterdir())
    return dict(read_json(newest / "state.json"))


@pytest.mark.parametrize("step", range(1, STEPS))
def test_asked_to_stop_after_any_step(straight: Straight, step: int, tmp_path: Path) -> None:
    stopped(straight.settings, tmp_path, step)
    record = read_json(tmp_path / "run.json")
    assert (record["status"], record["step"]) == ("stopped", step)
    assert len(rows(tmp_path)) == step
    heard: list[int] = []
    start(straight.settings, tmp_path, on_row=lambda row: heard.append(row["step"]))
    assert heard == list(range(step, STEPS)), "no step is trained twice"
    assert read_json(tmp_path / "run.json")["resumed_from"] == step
    assert_same(tmp_path, straight.folder)


class TroubleError(Exception):
    """What befalls a run in these tests."""


@pytest.mark.parametrize(
    ("step", "after_its_row"), [*((step, False) for step in range(STEPS)), (2, True)]
)
def test_an_error_in_any_step(
    straight: Straight,
    step: int,
    after_its_row: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail_after(row: Any) -> None:
        if after_its_row and row["step"] == step:
            raise TroubleError

    original = loop_module.assign_credit

    def fail_within(groups: Any, algorithm: Any, at: int, *args: Any, **kwargs: Any) -> Any:
        if not after_its_row and at == step:
            raise TroubleError
        return original(groups, algorithm, at, *args, **kwargs)

    monkeypatch.setattr(loop_module, "assign_credit", fail_within)
    with pytest.raises(TroubleError):
        start(straight.settings, tmp_path, on_row=fail_after)
    monkeypatch.undo()
    record = read_json(tmp_path / "run.json")
    assert (record["status"], record["step"]) == ("failed", step + after_its_row)
    start(straight.settings, tmp_path)
    assert read_json(tmp_path / "run.json")["resumed_from"] == ((step // 2 * 2) or None)
    assert_same(tmp_path, straight.folder)


def test_stopped_after_every_step(straight: Straight, tmp_path: Path) -> None:
    for _ in range(STEPS - 1):
        stopped(straight.settings, tmp_path, 1)
    result = start(straight.settings, tmp_path)
    assert read_json(tmp_path / "run.json")["attempts"] == STEPS
    assert result.wall_s >= sum(r["step_time_s"] for r in read_jsonl(tmp_path / "metrics.jsonl"))
    assert_same(tmp_path, straight.folder)


def test_killed_at_any_moment_of_a_checkpoint(
    straight: Straight, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a kill leaves is what lies there at that moment: the folder is copied before and after
    every rename, and at every sync, from the fourth step's row to the fifth's.

    Only the names of the files matter in what is tried: one copy each.
    """
    run_dir, copies = tmp_path / "run", tmp_path / "copies"
    watching = False

    def copy() -> None:
        if watching:
            shutil.copytree(run_dir, copies / f"{len(list(copies.iterdir())):03d}")

    def around(original: Callable[..., Any], *, before: bool) -> Callable[..., Any]:
        def watched(*args: Any) -> Any:
            if before:
                copy()
            done = original(*args)
            copy()
            return done

        return watched

    def on_row(row: Any) -> None:
        nonlocal watching
        watching = row["step"] == 3
        copy()

    copies.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", around(os.fsync, before=False))
        patch.setattr(Path, "rename", around(Path.rename, before=True))
        start(straight.settings, run_dir, on_row=on_row)
    distinct = {json.dumps(sorted(content(copy))): copy for copy in copies.iterdir()}
    assert len(distinct) >= 7
    for copied in distinct.values():
        (copied / ".lock").unlink()
        start(straight.settings, copied)
        assert_same(copied, straight.folder)


def test_a_save_that_fails_half_way(
    straight: Straight, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: LocalPolicy, folder: Path) -> None:
        (folder / "adapter_model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    stopped(straight.settings, tmp_path, 3)
    monkeypatch.setattr(LocalPolicy, "save", full)
    with pytest.raises(OSError, match="No space left"):
        start(straight.settings, tmp_path)
    monkeypatch.undo()
    record = read_json(tmp_path / "run.json")
    assert (record["status"], record["cause"], record["step"]) == ("failed", "disk", 4)
    start(straight.settings, tmp_path)
    assert_same(tmp_path, straight.folder)


def torn_row(run_dir: Path) -> None:
    for name in ("metrics.jsonl", "emergence/steps.jsonl", "emergence/generations.jsonl"):
        with (run_dir / name).open("a") as file:
            file.write('{"step": 3, "mean_rew')


def rows_beyond(run_dir: Path) -> None:
    """Of a writer that wrote on after its last checkpoint, and then one half."""
    for step in (3, 4):
        append_jsonl(run_dir / "metrics.jsonl", {"step": step, "mean_reward": 9.0})
        append_jsonl(run_dir / "emergence/generations.jsonl", {"step": step})
    (run_dir / "evaluation" / "step_000004.json").write_text('{"accuracy": 1.0}')
    torn_row(run_dir)


def half_written(run_dir: Path) -> None:
    aside = run_dir / "checkpoints" / ".step_000004.999.tmp"
    aside.mkdir()
    (aside / "state.json").write_text("{")
    (run_dir / ".run.json.999.tmp").write_text("{")


def damaged_newest(run_dir: Path) -> None:
    path = run_dir / "checkpoints" / "step_000003" / "optimizer.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def no_checkpoint(run_dir: Path) -> None:
    shutil.rmtree(run_dir / "checkpoints")


@pytest.mark.parametrize(
    "befallen", [torn_row, rows_beyond, half_written, damaged_newest, no_checkpoint]
)
def test_what_else_may_have_befallen_the_folder(
    straight: Straight,
    befallen: Callable[[Path], None],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stopped(straight.settings, tmp_path, 3)
    befallen(tmp_path)
    with caplog.at_level(logging.WARNING, logger="retrain"):
        start(straight.settings, tmp_path)
    damaged = tmp_path / "checkpoints" / "damaged_step_000003"
    assert damaged.exists() == (befallen is damaged_newest)
    if damaged.exists():
        told = [record.getMessage() for record in caplog.records]
        assert told == [
            "c_s7: checkpoint step_000003 is damaged (optimizer.safetensors does not match its "
            "checksum); it is kept as damaged_step_000003, and the run goes on from step 2"
        ]
        shutil.rmtree(damaged)
    assert_same(tmp_path, straight.folder)


def test_what_cannot_be_read_or_trusted_changes_nothing(straight: Straight, tmp_path: Path) -> None:
    stopped(straight.settings, tmp_path, 3)
    state = tmp_path / "checkpoints/step_000003/state.json"
    kept = state.rename(tmp_path / "kept")
    state.symlink_to(state)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    with pytest.raises(OSError, match="symbolic links"):
        start(straight.settings, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()} == before
    state.unlink()
    kept.rename(state)
    aside = [folder / "state.json" for folder in checkpoint_folders(tmp_path)]
    for path in aside:
        path.rename(path.with_suffix(".aside"))
    with pytest.raises(InputError, match=r"c_s7: none of its . checkpoints can be trusted"):
        start(straight.settings, tmp_path)
    for path in aside:
        path.with_suffix(".aside").rename(path)
    start(straight.settings, tmp_path)
    assert_same(tmp_path, straight.folder)


def test_without_checkpoints_a_stop_keeps_one_until_the_end(tmp_path: Path) -> None:
    settings = config(training={"save_every": 0}, evaluation={"num_problems": 0})
    start(settings, tmp_path / "straight")
    stopped(settings, tmp_path / "stopped", 1)
    assert (tmp_path / "stopped" / "checkpoints" / "step_000001").is_dir()
    start(settings, tmp_path / "stopped")
    assert_same(tmp_path / "stopped", tmp_path / "straight")


def test_before_anything_was_learnt(tmp_path: Path) -> None:
    """The optimizer has no state yet; that is saved and loaded as well."""
    settings = stingy(tmp_path, max_steps=3)
    start(settings, tmp_path / "straight")
    stopped(settings, tmp_path / "stopped", 2)
    start(settings, tmp_path / "stopped")
    assert_same(tmp_path / "stopped", tmp_path / "straight")


def stingy(folder: Path, max_steps: int) -> RunConfig:
    (folder / "stingy.py").write_text("def nothing(response, reference):\n    return 0.0\n")
    return config(
        training={"max_steps": max_steps, "max_tokens": 4},
        reward={"type": "custom", "custom_module": "stingy", "custom_function": "nothing"},
        plugins={"search_paths": [str(folder)]},
        evaluation={"num_problems": 0},
    )


class TestWarnings:
    """What health.py counts goes on counting, and what it said is not said again."""

    @pytest.fixture
    def told(self, caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
        def take() -> list[str]:
            found = [record.getMessage() for record in caplog.records]
            caplog.clear()
            return found

        with caplog.at_level(logging.WARNING, logger="retrain"):
            yield take

    def test_no_reward(self, told: Callable[[], list[str]], tmp_path: Path) -> None:
        settings, run_dir = stingy(tmp_path, max_steps=8), tmp_path / "run"
        stopped(settings, run_dir, 3)
        assert [text for text in told() if "reward has been 0" in text] == []
        stopped(settings, run_dir, 3)
        (warning,) = (text for text in told() if "reward has been 0" in text)
        assert "of the first 5 steps" in warning
        start(settings, run_dir)
        assert told() == []

    def test_all_truncated(self, told: Callable[[], list[str]], tmp_path: Path) -> None:
        settings = config(training={"max_tokens": 2}, evaluation={"num_problems": 0})
        stopped(settings, tmp_path, 1)
        assert told() == []
        stopped(settings, tmp_path, 1)
        assert len(told()) == 1
        start(settings, tmp_path)
        assert told() == []


class TestLonger:
    @pytest.fixture
    def long(self, tmp_path: Path) -> Path:
        start(self.settings(8), tmp_path / "long")
        return tmp_path / "long"

    @staticmethod
    def settings(max_steps: int, **training: Any) -> RunConfig:
        return config(
            training={"max_steps": max_steps, "max_tokens": 24, **training},
            evaluation={"num_problems": 4, "every": 2},
        )

    def test_a_finished_run_with_more_steps_is_the_longer_run(
        self, long: Path, tmp_path: Path
    ) -> None:
        for steps in (2, 4, 8):
            assert start(self.settings(steps), tmp_path / "grown").steps == steps
        assert_same(tmp_path / "grown", long)

    def test_off_the_grid_only_the_evaluation_at_its_end_is_added(
        self, long: Path, tmp_path: Path
    ) -> None:
        grown = tmp_path / "grown"
        start(self.settings(5), grown)
        start(self.settings(8), grown)
        (grown / "evaluation" / "step_000005.json").unlink()
        one, other = content(grown), content(long)
        for key in ("held_out_accuracy", "held_out_greedy_accuracy"):
            del one["metrics.jsonl"][4][key]
        assert [name for name in one | other if one.get(name) != other.get(name)] == []

    @pytest.mark.parametrize("schedule", ["linear", "cosine"])
    def test_refused_where_the_learning_rate_falls(self, schedule: str, tmp_path: Path) -> None:
        start(self.settings(2, lr_schedule=schedule), tmp_path)
        before = content(tmp_path)
        with pytest.raises(ConfigError, match=r"training\.max_steps: was 2 .* is now 4"):
            start(self.settings(4, lr_schedule=schedule), tmp_path)
        assert content(tmp_path) == before

    def test_fewer_steps_than_there_are(self, tmp_path: Path) -> None:
        stopped(self.settings(6), tmp_path, 3)
        with pytest.raises(ConfigError, match=r"c_s7 has 3 steps already"):
            start(self.settings(2), tmp_path)
        assert RunRecord.read(tmp_path).status == "stopped"

    def test_a_finished_run_is_left_alone(self, tmp_path: Path) -> None:
        first = start(self.settings(2), tmp_path)
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        assert start(self.settings(2), tmp_path) == first
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


class TestChanges:
    @staticmethod
    def settings(lr: float = 2e-3, **training: Any) -> RunConfig:
        return config(
            training={"max_tokens": 16, "lr": lr, **training}, evaluation={"num_problems": 0}
        )

    def test_refused_before_anything_is_touched(self, tmp_path: Path) -> None:
        stopped(self.settings(), tmp_path, 2)
        append_jsonl(tmp_path / "metrics.jsonl", {"step": 2})
        before = content(tmp_path)
        with pytest.raises(ConfigError, match=r"(?s)training\.lr: .*--allow-change training\.lr"):
            start(self.settings(lr=1e-4), tmp_path)
        assert content(tmp_path) == before

    def test_allowed_ones_are_recorded_and_asked_for_once(self, tmp_path: Path) -> None:
        stopped(self.settings(), tmp_path, 2)
        recorded = [{"step": 2, "key": "training.lr", "before": 2e-3, "now": 1e-4}]

        def fail(row: Any) -> None:
            raise TroubleError

        with pytest.raises(TroubleError):
            start(self.settings(lr=1e-4), tmp_path, on_row=fail, allow_changes=["training.lr"])
        assert read_json(tmp_path / "run.json")["changes"] == recorded
        # It failed before its next checkpoint, so the newest one is still of the old config.
        stopped(self.settings(lr=1e-4), tmp_path, 1)
        with pytest.raises(ConfigError, match=r"training\.lr"):
            start(self.settings(), tmp_path)
        start(self.settings(lr=1e-4), tmp_path)
        assert read_json(tmp_path / "run.json")["changes"] == recorded
        assert [row["lr"] for row in rows(tmp_path)] == [2e-3, 2e-3, 1e-4, 1e-4]

    def test_free_ones_need_no_word(self, tmp_path: Path) -> None:
        start(self.settings(), tmp_path / "straight")
        stopped(self.settings(), tmp_path / "stopped", 1)
        start(self.settings(save_every=3, keep_last=1), tmp_path / "stopped")
        assert rows(tmp_path / "stopped") == rows(tmp_path / "straight")

    def test_other_libraries_are_told(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        stopped(self.settings(), tmp_path, 1)
        versions = {**run_module.library_versions(), "torch": "99.0"}
        monkeypatch.setattr(run_module, "library_versions", lambda: versions)
        with caplog.at_level(logging.WARNING, logger="retrain"):
            start(self.settings(), tmp_path)
        (record,) = caplog.records
        assert "up to step 1 and goes on with 99.0" in record.getMessage()

    def test_a_diverged_run_goes_on_only_with_a_change(self, tmp_path: Path) -> None:
        stopped(self.settings(), tmp_path, 2)
        RunRecord.read(tmp_path).update(
            status="diverged", message="diverged at step 2", result=measured()
        )
        assert start(self.settings(), tmp_path).status == "diverged"
        changed = self.settings(lr=1e-4)
        assert start(changed, tmp_path, allow_changes=["training.lr"]).status == "done"
        assert len(rows(tmp_path)) == 4


def measured() -> dict[str, Any]:
    names = ("accuracy_before", "accuracy_after", "greedy_before", "greedy_after", "mean_reward")
    return {**dict.fromkeys(names), "steps": 2, "wall_s": 1.0}


def test_a_model_that_cannot_be_loaded_again_does_not_set_a_run_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = TestChanges.settings()
    stopped(settings, tmp_path, 3)

    def gone(*args: Any) -> None:
        raise TroubleError

    monkeypatch.setattr(BaseModels, "get", gone)
    with pytest.raises(TroubleError):
        start(settings, tmp_path)
    record = read_json(tmp_path / "run.json")
    assert (record["status"], record["step"]) == ("failed", 3)
