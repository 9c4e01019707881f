"""Adapters at trackers: the real packages, read back."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from retrain.config.load import config_from_mapping
from retrain.experiments.campaign import run_campaign
from retrain.files import read_json, read_jsonl
from retrain.tracking.parcels import Parcels
from retrain.tracking.process import numbers
from retrain.tracking.state import is_busy
from retrain.tracking.uploads import wait_for_uploads
from retrain.training.loop import RunStopped
from tests.tracking.fake_server import FakeServer
from tests.tracking.tiny_runs import OFFLINE, TINY, config, own, start
from tests.tracking.wandb_files import written


def said(run_dir: Path) -> list[str]:
    """What waiting for its uploads says."""
    told: list[str] = []
    wait_for_uploads([run_dir], told.append)
    return told


def both_have(run_dir: Path, label: str) -> bool:
    files = [run_dir / tracker / "retrain.json" for tracker in ("wandb", "trackio")]
    return all(path.exists() and label in read_json(path)["parcels"] for path in files)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_final_adapter_and_the_checkpoints_are_written_for_a_later_sync(
    tmp_path: Path,
) -> None:
    """In both trackers at once; checkpoints that training has removed are there as well."""
    settings = config(**OFFLINE, trackers=["wandb", "trackio"], wandb_artifacts="checkpoints")
    training = settings.training.model_copy(update={"keep_last": 1, "keep_best": False})
    settings = settings.model_copy(update={"training": training})

    def on_row(row: Mapping[str, Any]) -> None:
        if row["step"] == 2:
            # The checkpoint after step 2 is seen, and then goes.
            deadline = time.monotonic() + 60
            while not both_have(tmp_path, "step_000002") and time.monotonic() < deadline:
                time.sleep(0.05)

    result = start(settings, tmp_path, on_row=on_row)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_000004"]
    said(tmp_path)
    (found,) = written(tmp_path)
    *checkpoints, final = found.artifacts
    assert [item["metadata"]["step"] for item in checkpoints] == [2, 4]
    assert (final["name"], final["type"]) == ("grpo_s7", "model")
    assert set(final["aliases"]) == {"latest", "final", "step_000004"}
    assert final["metadata"] == {
        **{"run": "grpo_s7", "condition": "grpo", "seed": 7, "base_model": "embedded"},
        **{"rank": 4, "alpha": 8.0, "step": 4, "accuracy": result.accuracy_after},
    }
    put = {name: path.read_bytes() for name, path in final["files"].items()}
    assert put == content(tmp_path / "final")
    last = checkpoints[-1]
    assert (last["name"], last["type"]) == ("grpo_s7-checkpoint", "checkpoint")
    put = {name: path.read_bytes() for name, path in last["files"].items()}
    assert put == content(tmp_path / "checkpoints" / "step_000004")
    assert all(path.exists() for item in checkpoints for path in item["files"].values())
    # The rows came all the same.
    metrics = [numbers(row) for row in read_jsonl(tmp_path / "metrics.jsonl")]
    assert [own(row) for row in found.history] == metrics

    with sqlite3.connect(tmp_path / "store" / "probe.db") as store:
        versions = store.execute(
            "select name, type, metadata, manifest from artifact_versions join artifacts "
            "on artifacts.id = artifact_id order by artifact_versions.id"
        ).fetchall()
        aliases = {row[0] for row in store.execute("select alias from artifact_aliases")}
    assert versions[-1][:2] == ("grpo_s7", "model")
    assert {"final", "step_000004", "latest"} <= aliases
    assert '"rank":4' in versions[-1][2].replace(" ", "")
    blobs = tmp_path / "store" / "artifacts" / "probe" / "blobs" / "sha256"
    stored = {path.read_bytes() for path in blobs.glob("*/*")}
    assert set(content(tmp_path / "final").values()) <= stored
    # What has arrived is not kept twice.
    assert not (tmp_path / "trackio" / "parcels").exists()


def test_the_trainer_does_not_wait_for_an_upload_and_the_end_of_the_program_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    with FakeServer() as server, caplog.at_level(logging.WARNING, logger="retrain"):
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        server.gate.clear()
        settings = config(wandb_project="probe", wandb_artifacts="final")
        assert start(settings, tmp_path).status == "done"
        assert not server.files
        told: list[str] = []

        def look() -> bool:
            # It is being waited for: now the file may come through.
            server.gate.set()
            return False

        wait_for_uploads([tmp_path], told.append, look)
        (line,) = told
        assert line.startswith("waiting for the files of")
        (artifact,) = server.artifacts
        assert artifact["committed"]
        assert artifact["artifactCollectionName"] == "grpo_s7"
        put = {name.partition("/")[2]: data for name, data in server.files.items()}
        assert put == content(tmp_path / "final")
        state = read_json(tmp_path / "wandb" / "retrain.json")
        assert state["sent"] == {"status": "done", "steps": 4, "mode": "online"}
        assert state["parcels"] == {"final_000004": "online"}
        assert not (tmp_path / "wandb" / "parcels").exists()
        assert said(tmp_path) == []
    assert not caplog.messages


def test_a_campaign_ends_when_its_files_have_arrived(tmp_path: Path) -> None:
    logging_keys = {"wandb_project": "probe", "trackers": ["trackio"], "wandb_artifacts": "final"}
    tables = {
        "model": {"lora_rank": 2},
        "training": {"batch_size": 1, "group_size": 2, "max_tokens": 8},
        "evaluation": {"num_problems": 0},
        "campaign": {
            **{"seeds": [1], "max_steps": 1},
            "conditions": [{"advantage_mode": "grpo", "transform_mode": "none"}],
        },
        "logging": {**logging_keys, "log_dir": str(tmp_path / "logs")},
    }
    result = run_campaign(config_from_mapping(tables), console=Console(file=StringIO()))
    (run,) = result.runs
    assert not is_busy(run.run_dir / "trackio")
    state = read_json(run.run_dir / "trackio" / "retrain.json")
    assert state["parcels"] == {"final_000001": "local"}
    assert state["sent"]["status"] == "done"


def test_files_that_cannot_be_sent_are_said_at_the_end_and_the_rows_arrive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    with FakeServer() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        # As of a server that does not want it.
        monkeypatch.setattr(FakeServer, "_ArtifactType", lambda *_: {"project": 0})
        start(config(wandb_project="probe", wandb_artifacts="final"), tmp_path)
        (_, problem) = said(tmp_path)
        ((_, sent),) = server.rows.items()
    assert [row["_step"] for row in sent] == [0, 1, 2, 3]
    assert "final_000004: " in problem
    assert problem.endswith(f"retrain sync {tmp_path}")
    assert read_json(tmp_path / "wandb" / "retrain.json")["sent"] == {}


def test_who_stops_a_run_leaves_no_process_that_sends(tmp_path: Path) -> None:
    settings = config(**OFFLINE, wandb_artifacts="checkpoints")
    with pytest.raises(RunStopped):
        start(settings, tmp_path, stop=lambda: True)
    assert not is_busy(tmp_path / "wandb")
    (found,) = written(tmp_path)
    assert [{*item["aliases"]} for item in found.artifacts] == [{"latest", "step_000001"}]


def record(**fields: Any) -> dict[str, Any]:
    start = {"name": "a+b_s1", "condition": "a+b", "seed": 1, "status": "running", "step": 0}
    return {**start, "result": None, **fields}


def test_a_checkpoint_that_vanishes_while_it_is_put_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoints" / "step_000010"
    folder.mkdir(parents=True)
    for name in ("a", "b"):
        (folder / name).write_text(name)
    parcels = Parcels(tmp_path, tmp_path / "wandb", config(wandb_artifacts="checkpoints"), "a+b_s1")
    assert parcels.labels(record(), ended=False) == ["step_000010"]
    link = os.link

    def once(source: Path, target: Path) -> None:
        link(source, target)
        (folder / "b").unlink(missing_ok=True)

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", once)
        assert parcels.make("step_000010", record()) is None
    assert not list((tmp_path / "wandb" / "parcels").iterdir())
    # Where there are no hard links the files are copied.
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError))
    made = parcels.make("step_000010", record())
    assert made is not None
    assert content(made.folder) == {"a": b"a"}
    assert made.name == "a-b_s1-checkpoint"
    (folder / "a").unlink()
    folder.rmdir()
    # What is put aside is still to be sent.
    assert parcels.labels(record(), ended=False) == ["step_000010"]
    assert parcels.make("step_000010", record()) == made


@pytest.mark.parametrize(
    ("wanted", "status", "ended", "expected"),
    [
        ("none", "done", True, []),
        ("final", "done", False, []),
        ("final", "stopped", True, []),
        ("final", "done", True, ["final_000004"]),
        ("checkpoints", "diverged", True, ["step_000002"]),
        ("checkpoints", "done", True, ["step_000002", "final_000004"]),
    ],
)
def test_what_there_is_to_send(
    wanted: str, status: str, ended: bool, expected: list[str], tmp_path: Path
) -> None:
    (tmp_path / "checkpoints" / "step_000002").mkdir(parents=True)
    (tmp_path / "checkpoints" / ".step_000004.1.tmp").mkdir()
    (tmp_path / "final").mkdir()
    parcels = Parcels(tmp_path, tmp_path / "wandb", config(wandb_artifacts=wanted), "n")
    assert parcels.labels(record(status=status, step=4), ended=ended) == expected
    assert TINY["training"]["max_steps"] == 4
