"""Which checkpoints remain, and that one that is not as it was written is never used."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrain.config.schema import RunConfig, TrainingConfig
from retrain.files import JOURNALS, append_jsonl, count_lines, evaluation_files
from retrain.training.checkpoint import (
    Checkpoint,
    Checkpoints,
    DamagedCheckpointError,
    checkpoint_folders,
    written_aside,
)
from retrain.training.resume import find_resume_point, go_back

FILES = ("adapter.safetensors", "state.json", "checkpoint.json")


def checkpoints_of(run_dir: Path, **training: object) -> Checkpoints:
    return Checkpoints(run_dir, RunConfig(training=TrainingConfig.model_validate(training)))


def save(checkpoints: Checkpoints, step: int, accuracy: float | None = None, rows: int = 0) -> None:
    counts = dict.fromkeys(JOURNALS, rows)
    with checkpoints.saving(step, {"step": step}, counts, accuracy) as folder:
        (folder / "adapter.safetensors").write_bytes(f"weights after {step}".encode())


def steps_in(run_dir: Path) -> list[int]:
    return [int(folder.name.removeprefix("step_")) for folder in checkpoint_folders(run_dir)]


def why_damaged(folder: Path) -> str:
    try:
        Checkpoint.read(folder).verify()
    except DamagedCheckpointError as error:
        return str(error)
    return ""


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run of 5 steps, evaluated after each, with checkpoints after 2 and 4."""
    checkpoints = checkpoints_of(tmp_path, save_every=2, max_steps=8)
    for folder in ("emergence", "evaluation"):
        (tmp_path / folder).mkdir()
    (tmp_path / "evaluation" / "step_000000.json").write_text("{}")
    for step in range(5):
        for name in JOURNALS:
            append_jsonl(tmp_path / name, {"step": step})
        (tmp_path / "evaluation" / f"step_{step + 1:06d}.json").write_text("{}")
        if checkpoints.due(step + 1):
            save(checkpoints, step + 1, rows=step + 1)
    return tmp_path


def lines(run_dir: Path) -> list[int]:
    return [count_lines(run_dir / name, 99) for name in JOURNALS]


class TestWrittenAside:
    def test_a_failing_block_leaves_what_was_there(self, tmp_path: Path) -> None:
        folder = tmp_path / "step_000001"
        with written_aside(folder) as aside:
            (aside / "data").write_text("old")

        def fail() -> None:
            with written_aside(folder) as aside:
                (aside / "data").write_text("half")
                raise RuntimeError

        with pytest.raises(RuntimeError):
            fail()
        assert (folder / "data").read_text() == "old"
        assert [p.name for p in tmp_path.iterdir()] == ["step_000001"]

    def test_nothing_is_visible_before_the_end(self, tmp_path: Path) -> None:
        with written_aside(tmp_path / "final") as aside:
            (aside / "data").write_text("x")
            assert not (tmp_path / "final").exists()
        assert (tmp_path / "final" / "data").exists()


class TestWhichRemain:
    @settings(max_examples=40)
    @given(
        save_every=st.integers(0, 4),
        keep_last=st.integers(0, 3),
        keep_best=st.booleans(),
        accuracies=st.lists(
            st.none() | st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=10
        ),
        stops=st.sets(st.integers(1, 9), max_size=3),
    )
    def test_the_newest_and_the_best(
        self,
        save_every: int,
        keep_last: int,
        keep_best: bool,
        accuracies: list[float | None],
        stops: set[int],
    ) -> None:
        """For any accuracies, and wherever the run is stopped on its way."""
        last = len(accuracies)
        with tempfile.TemporaryDirectory() as name:
            run_dir = Path(name)
            checkpoints = checkpoints_of(
                run_dir,
                save_every=save_every,
                max_steps=last,
                keep_last=keep_last,
                keep_best=keep_best,
            )
            for step, accuracy in enumerate(accuracies, start=1):
                if checkpoints.due(step) or (step in stops and step < last):
                    save(checkpoints, step, accuracy)
                    # Where a stopped run goes on from is there whatever else is kept.
                    assert steps_in(run_dir)[-1] == step
            checkpoints.remove_old(finished=True)
            found = steps_in(run_dir)
            assert (run_dir / "checkpoints").exists() == bool(found)

        regular = [s for s in range(1, last + 1) if save_every and (s % save_every == 0)]
        if save_every and last not in regular:
            regular.append(last)
        expected = set(regular[-keep_last:] if keep_last else regular)
        evaluated = [s for s in regular if accuracies[s - 1] is not None]
        if keep_best and keep_last and len(regular) > keep_last and evaluated:
            expected.add(max(evaluated, key=lambda s: (accuracies[s - 1], -s)))
        assert found == sorted(expected)

    def test_off(self, tmp_path: Path) -> None:
        checkpoints = checkpoints_of(tmp_path, save_every=0, max_steps=10)
        assert not any(checkpoints.due(step) for step in range(1, 11))

    def test_one_written_on_a_stop_goes_with_the_next(self, tmp_path: Path) -> None:
        checkpoints = checkpoints_of(tmp_path, save_every=2, keep_last=1, max_steps=8)
        for step, left in ((2, [2]), (3, [2, 3]), (4, [4]), (5, [4, 5]), (6, [6])):
            save(checkpoints, step)
            assert steps_in(tmp_path) == left

    def test_a_damaged_one_is_not_the_best(self, tmp_path: Path) -> None:
        checkpoints = checkpoints_of(tmp_path, save_every=1, keep_last=1, max_steps=8)
        save(checkpoints, 1, accuracy=0.9)
        save(checkpoints, 2, accuracy=0.1)
        (tmp_path / "checkpoints" / "step_000001" / "checkpoint.json").write_text("{")
        save(checkpoints, 3, accuracy=0.1)
        assert steps_in(tmp_path) == [2, 3]


class TestDamage:
    def test_an_undamaged_one_tells_what_it_holds(self, run_dir: Path) -> None:
        checkpoint = Checkpoint.read(run_dir / "checkpoints" / "step_000004")
        checkpoint.verify()
        assert (checkpoint.step, checkpoint.state()) == (4, {"step": 4})
        assert dict(checkpoint.rows) == dict.fromkeys(JOURNALS, 4)
        assert set(checkpoint.files) == {"adapter.safetensors", "state.json"}

    @pytest.mark.parametrize("name", FILES)
    @pytest.mark.parametrize("mask", [0x01, 0x10, 0x20, 0x80])
    def test_any_flipped_byte_is_found(self, name: str, mask: int, run_dir: Path) -> None:
        """Also in the index itself: a wrong number of rows would cut the metrics there."""
        folder = run_dir / "checkpoints" / "step_000004"
        good, path = Checkpoint.read(folder), folder / name
        data = path.read_bytes()
        for place in range(len(data)):
            path.write_bytes(data[:place] + bytes([data[place] ^ mask]) + data[place + 1 :])
            reason = why_damaged(folder)
            if reason:
                assert name in reason
            else:
                # JSON has several ways to write a space, and 4e-05 is 4E-05.
                assert name == "checkpoint.json"
                assert Checkpoint.read(folder) == good

    @pytest.mark.parametrize("name", FILES)
    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda path: path.write_bytes(path.read_bytes()[:-3]), "bytes instead of|read"),
            (lambda path: path.write_bytes(b""), "bytes instead of|read"),
            (lambda path: path.write_bytes(path.read_bytes() + b"}"), "bytes instead of|read"),
            (lambda path: path.unlink(), "missing|no such file"),
            (lambda path: (path.unlink(), path.mkdir()), "instead of|directory"),
        ],
        ids=["truncated", "emptied", "added to", "removed", "replaced by a folder"],
    )
    def test_the_one_before_is_used_and_the_damaged_one_set_aside(
        self, name: str, damage: Callable[[Path], object], message: str, run_dir: Path
    ) -> None:
        damaged = run_dir / "checkpoints" / "step_000004"
        damage(damaged / name)
        point = find_resume_point(run_dir)
        assert point.step == 2
        ((folder, reason),) = point.skipped
        assert folder == damaged
        assert name in reason
        assert any(part in reason for part in message.split("|"))
        assert damaged.is_dir(), "looking changes nothing"
        go_back(point)
        assert sorted(p.name for p in damaged.parent.iterdir()) == [
            "damaged_step_000004",
            "step_000002",
        ]
        assert lines(run_dir) == [2, 2, 2]
        assert list(evaluation_files(run_dir)) == [0, 1, 2]
        assert find_resume_point(run_dir).skipped == ()

    @pytest.mark.parametrize(
        ("spoil", "reason"),
        [
            (lambda rows: rows[:3], "metrics.jsonl has fewer than the 4 rows it should have"),
            (lambda rows: [*rows[:3], "{\n", *rows[3:]], "line 4 of metrics.jsonl is not the row"),
            (lambda rows: [*rows[:3], rows[2], *rows[3:]], "line 4 of metrics.jsonl is not the"),
            (lambda rows: [*rows[:3], "[" * 9999 + "\n"], "line 4 of metrics.jsonl is not the row"),
        ],
        ids=["cut off", "garbage", "twice", "nested"],
    )
    def test_rows_that_are_gone_make_a_checkpoint_useless(
        self, spoil: Callable[[list[str]], list[str]], reason: str, run_dir: Path
    ) -> None:
        path = run_dir / "metrics.jsonl"
        path.write_text("".join(spoil(path.read_text().splitlines(keepends=True))))
        point = find_resume_point(run_dir)
        assert point.step == 2
        assert point.skipped[0][1].startswith(reason)

    @pytest.mark.parametrize("name", ["emergence/steps.jsonl", "emergence/generations.jsonl"])
    def test_lost_samples_condemn_nothing(self, name: str, run_dir: Path) -> None:
        (run_dir / name).write_text("")
        point = find_resume_point(run_dir)
        assert (point.step, point.skipped) == (4, ())
        go_back(point)
        assert sorted(lines(run_dir)) == [0, 4, 4]

    def test_when_none_is_left_the_run_is_not_begun_again(self, run_dir: Path) -> None:
        for folder in checkpoint_folders(run_dir):
            (folder / "state.json").unlink()
        point = find_resume_point(run_dir)
        assert (point.step, len(point.skipped)) == (0, 2)
        assert point.refusal.startswith(
            "none of its 2 checkpoints can be trusted (of the newest, step_000004: state.json: no "
        )
        assert str(run_dir / "checkpoints") in point.refusal

    @pytest.mark.parametrize("name", FILES)
    def test_what_cannot_be_read_now_is_not_damaged(self, name: str, run_dir: Path) -> None:
        path = run_dir / "checkpoints" / "step_000004" / name
        path.rename(run_dir / "kept")
        path.symlink_to(path)
        with pytest.raises(OSError, match="symbolic links") as caught:
            find_resume_point(run_dir)
        assert caught.value.filename == str(path)

    def test_damaged_twice_at_one_step(self, run_dir: Path) -> None:
        checkpoints = checkpoints_of(run_dir, save_every=2, max_steps=8)
        for _ in range(2):
            (run_dir / "checkpoints" / "step_000004" / "state.json").unlink()
            go_back(find_resume_point(run_dir))
            for step in (2, 3):
                for name in JOURNALS:
                    append_jsonl(run_dir / name, {"step": step})
            save(checkpoints, 4, rows=4)
        assert find_resume_point(run_dir).step == 4
        assert steps_in(run_dir) == [2, 4]


class TestGoBack:
    def test_what_came_after_the_checkpoint_is_dropped(self, run_dir: Path) -> None:
        with (run_dir / "metrics.jsonl").open("a") as file:
            file.write('{"step": 5, "mean_rew')
        go_back(find_resume_point(run_dir))
        assert lines(run_dir) == [4, 4, 4]
        assert (run_dir / "metrics.jsonl").read_text().endswith('{"step": 3}\n')
        assert list(evaluation_files(run_dir)) == [0, 1, 2, 3, 4]
        assert steps_in(run_dir) == [2, 4]

    def test_what_dead_writers_left_aside_is_ignored_and_removed(self, run_dir: Path) -> None:
        half = [
            run_dir / "checkpoints" / ".step_000006.123.tmp",
            run_dir / "checkpoints" / ".step_000002.123.old.tmp",
            run_dir / ".final.123.tmp",
        ]
        for folder in half:
            folder.mkdir()
            (folder / "state.json").write_text("{")
        for path in (run_dir / ".run.json.123.tmp", run_dir / "evaluation" / ".step_1.json.9.tmp"):
            path.write_text("{")
        point = find_resume_point(run_dir)
        assert (point.step, point.skipped) == (4, ())
        go_back(point)
        assert not list(run_dir.rglob("*.tmp"))
        assert steps_in(run_dir) == [2, 4]

    def test_damaged_ones_set_aside_before_stay(self, run_dir: Path) -> None:
        aside = run_dir / "checkpoints" / "damaged_step_000006"
        aside.mkdir()
        go_back(find_resume_point(run_dir))
        save(checkpoints_of(run_dir, save_every=2, keep_last=1, max_steps=8), 6)
        assert aside.is_dir()
        assert steps_in(run_dir) == [6]

    def test_again_changes_nothing(self, run_dir: Path) -> None:
        go_back(find_resume_point(run_dir))
        before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
        go_back(find_resume_point(run_dir))
        assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")} == before


def test_two_runs_of_one_config_write_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "other"):
        save(checkpoints_of(tmp_path / name, save_every=2), 2, accuracy=0.5, rows=2)
    index = Path("checkpoints/step_000002/checkpoint.json")
    assert (tmp_path / "one" / index).read_bytes() == (tmp_path / "other" / index).read_bytes()
    assert json.loads((tmp_path / "one" / index).read_text())["accuracy"] == 0.5
