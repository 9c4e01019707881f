"""Files that survive a crash."""

from __future__ import annotations

import json
import multiprocessing
import os
import stat
import tomllib
from pathlib import Path

import numpy as np
import pytest

from retrain import files
from retrain.errors import InputError
from retrain.files import (
    RunRecord,
    append_jsonl,
    atomic_write_json,
    atomic_write_text,
    atomic_write_toml,
    create_timestamped_folder,
    read_json,
    read_jsonl,
)
from retrain.processes import ProcessId


def test_atomic_write_replaces_and_leaves_nothing_aside(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    atomic_write_text(path, "one")
    atomic_write_text(path, "zwei\n", mode=0o755)
    assert path.read_text() == "zwei\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_write_that_fails_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    atomic_write_text(path, "old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        atomic_write_text(path, "new")
    assert path.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_json_holds_what_a_run_measures(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    value = {
        "mean": np.float64(0.5),
        "count": np.int64(3),
        "none": float("nan"),
        "large": np.float32("inf"),
        "flags": np.array([True, False]),
        "path": Path("/a"),
        "text": "é",
    }
    atomic_write_json(path, value)
    assert read_json(path) == {
        "mean": 0.5,
        "count": 3,
        "none": None,
        "large": None,
        "flags": [True, False],
        "path": "/a",
        "text": "é",
    }
    with pytest.raises(TypeError, match="cannot write object"):
        atomic_write_json(path, object())


def test_toml_round_trip(tmp_path: Path) -> None:
    tables = {"training": {"lr": 4e-5, "betas": [0.9, 0.99]}, "algorithm": {"params": {"a": 1}}}
    atomic_write_toml(tmp_path / "a.toml", tables)
    assert tomllib.loads((tmp_path / "a.toml").read_text()) == tables


def test_jsonl_appends_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert read_jsonl(path) == []
    append_jsonl(path, {"step": 0, "loss": float("nan")})
    append_jsonl(path, [{"step": 1}, {"step": 2, "text": "line\nbreak\u2028"}])
    append_jsonl(path, [])
    rows = [{"step": 0, "loss": None}, {"step": 1}, {"step": 2, "text": "line\nbreak\u2028"}]
    assert read_jsonl(path) == rows
    assert path.read_bytes().count(b"\n") == 3


@pytest.mark.parametrize("length", [1, 200_000])
def test_a_torn_line_is_ignored_and_then_removed(tmp_path: Path, length: int) -> None:
    path = tmp_path / "rows.jsonl"
    append_jsonl(path, {"step": 0})
    with path.open("ab") as file:
        file.write(b'{"step": 1, "text": "' + b"x" * length)
    assert read_jsonl(path) == [{"step": 0}]
    append_jsonl(path, {"step": 1})
    assert read_jsonl(path) == [{"step": 0}, {"step": 1}]
    assert path.read_bytes().endswith(b'{"step": 0}\n{"step": 1}\n')


def test_a_whole_line_without_newline_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"step": 0}')
    append_jsonl(path, {"step": 1})
    assert read_jsonl(path) == [{"step": 0}, {"step": 1}]


def test_a_file_torn_in_its_first_line_starts_over(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"st')
    append_jsonl(path, {"step": 0})
    assert path.read_bytes() == b'{"step": 0}\n'


def test_damage_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"step": 0}\n{"st\n{"step": 2}\n')
    with pytest.raises(InputError, match=r"rows\.jsonl: line 2 is not JSON"):
        read_jsonl(path)


def make_folder(parent: str) -> str:
    return str(create_timestamped_folder(Path(parent), "campaign"))


def test_processes_in_the_same_second_get_folders_of_their_own(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        folders = pool.map(make_folder, [str(tmp_path / "logs")] * 40, chunksize=1)
    assert len(set(folders)) == 40
    assert all(Path(folder).is_dir() for folder in folders)


def test_names_of_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.time, "strftime", lambda _format: "20260131_120000")
    names = [create_timestamped_folder(tmp_path, "campaign").name for _ in range(3)]
    assert names == [
        "campaign_20260131_120000",
        "campaign_20260131_120000_2",
        "campaign_20260131_120000_3",
    ]


def test_a_run_record_tells_the_life_of_a_run(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "grpo+none_s42"
    assert not RunRecord.exists(run_dir)
    record = RunRecord.create(
        run_dir, name="grpo+none_s42", condition="grpo+none", seed=42, max_steps=40
    )
    assert RunRecord.exists(run_dir)
    assert (record.status, record.is_final) == ("pending", False)
    assert record.data["started_at"] is None
    assert ProcessId.read(record.data) is None
    told = ("message", "cause", "attempts", "resumed_from", "changes")
    assert [record.data[key] for key in told] == ["", None, 0, None, []]
    record.update(status="running", device="cpu", attempts=1)
    running = RunRecord.read(run_dir).data
    assert ProcessId.read(running) == ProcessId.own()
    assert running["device"] == "cpu"
    assert running["started_at"]
    assert running["finished_at"] is None
    record.update(status="failed", step=20, message="it was killed", cause="killed")
    failed = RunRecord.read(run_dir)
    assert failed.is_final
    assert failed.data["finished_at"] >= failed.data["started_at"]
    # Another attempt: what the first one left is told no more.
    record.update(status="running", attempts=2, resumed_from=20)
    again = RunRecord.read(run_dir)
    assert not again.is_final
    assert [again.data[key] for key in told] == ["", None, 2, 20, []]
    assert again.data["finished_at"] is again.data["result"] is None
    record.update(status="done", step=40, result={"accuracy_after": 0.7})
    done = RunRecord.read(run_dir)
    assert done.is_final
    assert done.data["finished_at"] >= done.data["started_at"]
    assert done.data["result"] == {"accuracy_after": 0.7}
    # The process stays: a reader may want to know who it was.
    assert ProcessId.read(done.data) == ProcessId.own()
    assert set(done.data["versions"]) >= {"retrain", "python", "torch", "numpy"}
    with pytest.raises(ValueError, match="unknown run status 'finished'"):
        record.update(status="finished")


def test_reading_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no run: run\.json is missing"):
        RunRecord.read(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        RunRecord.read(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps([1]))
    with pytest.raises(InputError, match="Expected `object`"):
        RunRecord.read(tmp_path)
