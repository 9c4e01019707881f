"""Tracking with Weights & Biases: the real package, without a network."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from retrain import campaign as front_door
from retrain.config.dump import read_run_config
from retrain.config.load import config_from_mapping, read_mapping
from retrain.config.schema import LoggingConfig
from retrain.errors import ConfigError
from retrain.files import RunRecord, atomic_write_json, read_json, read_jsonl
from retrain.preflight import check_reading
from retrain.tracking import follower
from retrain.tracking.process import numbers
from retrain.tracking.trackers import TRACKERS, names_of
from retrain.training.loop import RunStopped
from tests.tracking.fake_server import FakeServer
from tests.tracking.tiny_runs import OFFLINE, TIMES, TINY, config, config_file, own, rows, start
from tests.tracking.wandb_files import written


def test_a_run_is_handed_over_as_it_was_trained(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    before = (sys.exit, sys.excepthook, signal.getsignal(signal.SIGINT))
    settings = config(**OFFLINE, wandb_tags=["mine"])
    result = start(settings, tmp_path / "tracked")
    assert result.status == "done"
    assert (sys.exit, sys.excepthook, signal.getsignal(signal.SIGINT)) == before
    assert not [name for name in os.environ if name.startswith("WANDB_SERVICE")]
    assert capfd.readouterr().out == ""
    assert not list(here.iterdir())

    (found,) = written(tmp_path / "tracked")
    assert (found.project, found.name, found.group) == ("probe", "grpo_s7", "grpo")
    assert found.tags == ["grpo", "seed7", "mine"]
    sent = {key: value for key, value in found.config.items() if key != "_wandb"}
    assert sent == {**settings.model_dump(mode="json", exclude_none=True), "condition": "grpo"}
    metrics = read_jsonl(tmp_path / "tracked" / "metrics.jsonl")
    assert found.steps == [0, 1, 2, 3]
    assert [own(row) for row in found.history] == [numbers(row) for row in metrics]
    assert "held_out_accuracy" in found.history[1]
    assert "held_out_accuracy" not in found.history[0]
    assert found.exit_code == 0
    assert found.summary["status"] == "done"
    assert found.summary["result/accuracy_before"] == result.accuracy_before
    assert found.summary["result/accuracy_after"] == result.accuracy_after
    # No code, console, packages or machine: what docs/tracking.md says is all.
    assert not found.kinds & {"output", "output_raw", "artifact", "stats", "environment"}

    # Tracking changes no number.
    start(config(), tmp_path / "untracked")
    assert rows(tmp_path / "untracked") == rows(tmp_path / "tracked")
    assert not (tmp_path / "untracked" / "wandb").exists()


def test_a_resumed_run_is_the_same_run_and_repeats_no_step(tmp_path: Path) -> None:
    heard: list[int] = []
    with pytest.raises(RunStopped):
        start(
            config(**OFFLINE),
            tmp_path,
            on_row=lambda row: heard.append(row["step"]),
            stop=lambda: len(heard) == 2,
        )
    assert written(tmp_path)[0].exit_code == 255
    # As an older version wrote it.
    state = tmp_path / "wandb" / "retrain.json"
    known = {"id", "project", "entity", "steps"}
    atomic_write_json(state, {key: read_json(state)[key] for key in known})
    assert start(config(**OFFLINE), tmp_path).status == "done"
    first, second = written(tmp_path)
    assert first.id == second.id
    assert (first.steps, second.steps) == ([0, 1], [2, 3])
    metrics = [numbers(row) for row in read_jsonl(tmp_path / "metrics.jsonl")]
    assert [own(row) for row in (*first.history, *second.history)] == metrics
    assert second.summary["status"] == "done"


def test_what_a_killed_run_has_handed_over_is_on_the_disk_and_not_sent_again(
    tmp_path: Path,
) -> None:
    """The rows after the last checkpoint are trained twice, and sent once."""
    table = {**TINY["training"], "max_steps": 9999, "save_every": 25}
    file = tmp_path / "run.toml"
    tables = {**TINY, "training": table, "logging": OFFLINE}
    config_file(file, tables)
    run_dir = tmp_path / "run"
    command = [sys.executable, "-m", "retrain", "run", str(file), "--run-dir", str(run_dir)]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path
    ) as process:
        deadline = time.monotonic() + 60
        while handed_over(run_dir) < 30 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
    steps = len(rows(run_dir)) + 5
    config = read_run_config(run_dir / "config.toml")
    training = config.training.model_copy(update={"max_steps": steps})
    assert start(config.model_copy(update={"training": training}), run_dir).status == "done"
    assert RunRecord.read(run_dir).data["resumed_from"] >= 25
    first, second = written(run_dir)
    assert first.id == second.id
    assert first.exit_code == 1
    assert [*first.steps, *second.steps] == list(range(steps))
    metrics = {row["step"]: numbers(row) for row in rows(run_dir)}
    for row in (*first.history, *second.history):
        timeless = {key: value for key, value in own(row).items() if not key.endswith(TIMES)}
        assert timeless == metrics[row["_step"]]


def handed_over(run_dir: Path) -> int:
    state = run_dir / "wandb" / "retrain.json"
    return int(read_json(state)["steps"]) if state.exists() else 0


def test_another_project_gets_the_whole_run_under_a_new_id(tmp_path: Path) -> None:
    with pytest.raises(RunStopped):
        start(config(**OFFLINE), tmp_path, stop=lambda: True)
    start(config(**{**OFFLINE, "wandb_project": "other"}), tmp_path)
    first, second = written(tmp_path)
    assert (first.project, second.project) == ("probe", "other")
    assert first.id != second.id
    assert (first.steps, second.steps) == ([0], [0, 1, 2, 3])


def test_online_the_server_says_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    settings = config(wandb_project="probe")
    with FakeServer() as server, caplog.at_level(logging.WARNING, logger="retrain"):
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        with pytest.raises(RunStopped):
            start(settings, tmp_path, stop=lambda: True)
        ((name, sent),) = server.rows.items()
        assert [row["_step"] for row in sent] == [0]
        # It lost a row: it is sent again, whatever was handed over.
        sent.clear()
        assert start(settings, tmp_path).status == "done"
        metrics = [numbers(row) for row in read_jsonl(tmp_path / "metrics.jsonl")]
        assert [own(row) for row in server.rows[name]] == metrics
        assert list(server.runs) == [name]
        run = server.runs[name]
        assert (run["displayName"], run["groupName"]) == ("grpo_s7", "grpo")
        assert run["tags"] == ["grpo", "seed7"]
    assert not caplog.messages


@pytest.mark.parametrize("key", ["", "a" * 40], ids=["no key", "no network"])
def test_without_a_key_or_a_network_it_trains_to_the_end_and_says_so_once(
    key: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
        # wandb tries for a minute; the end of the run does not wait for that.
        monkeypatch.setattr(follower, "DRAIN_S", 1.0)
        monkeypatch.setattr(follower, "GRACE_S", 0.5)
    with caplog.at_level(logging.WARNING, logger="retrain"):
        result = start(config(wandb_project="probe"), tmp_path)
    assert result.status == "done"
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 4
    (warning,) = caplog.messages
    assert warning.startswith("grpo_s7: no tracking with Weights & Biases from here on: ")
    assert ("it took longer than 1.5 s" if key else "No API key configured") in warning
    assert warning.endswith("metrics.jsonl has every row")


def test_a_tracker_that_dies_is_told_once_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "module_command", lambda module: [shutil.which("false")])
    with caplog.at_level(logging.WARNING, logger="retrain"):
        assert start(config(**OFFLINE), tmp_path).status == "done"
    (warning,) = caplog.messages
    assert "its process ended with exit code 1; see " in warning


def test_given_names_win_and_tags_are_added() -> None:
    names = names_of(LoggingConfig(wandb_project="p"), "grpo_s7", "grpo", 7)
    assert names == {
        **{"project": "p", "entity": "", "mode": "online"},
        **{"name": "grpo_s7", "group": "grpo", "tags": ["grpo", "seed7"]},
    }
    given = LoggingConfig(
        wandb_project="p",
        wandb_entity="team",
        wandb_run_name="mine",
        wandb_group="all",
        wandb_tags=["seed7", "new"],
        wandb_mode="offline",
    )
    assert names_of(given, "grpo_s7", "c" * 99, 7) == {
        **{"project": "p", "entity": "team", "mode": "offline"},
        **{"name": "mine", "group": "all", "tags": ["c" * 64, "seed7", "new"]},
    }


def test_only_known_numbers_are_sent() -> None:
    row = {"step": 1, "gate": True, "loss": 0.5, "kl": None, "condition": "grpo"}
    assert numbers(row) == {"step": 1.0, "gate": 1.0, "loss": 0.5}
    assert all(type(value) is float for value in numbers(row).values())


def test_a_missing_package_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A folder that wandb has left in the current one is no package.
    (tmp_path / "wandb").mkdir()
    for name in [name for name in sys.modules if name.partition(".")[0] == "wandb"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert not TRACKERS["wandb"].is_installed()
    tables = {**TINY, "logging": {**OFFLINE, "log_dir": str(tmp_path / "logs")}}
    with pytest.raises(ConfigError) as refused:
        check_reading(read_mapping(tables))
    (issue,) = refused.value.issues
    assert issue.key == "logging.wandb_project"
    assert issue.message == (
        '"probe" needs the package wandb, which is not installed; run: '
        "pip install 'retrain[wandb]'"
    )
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        (
            {"wandb_group": "g"},
            "logging.wandb_group: is written, but nothing reads it: wandb_project is empty, "
            "which turns Weights & Biases off",
        ),
        (
            {"wandb_project": "p", "wandb_run_name": "n"},
            "logging.wandb_run_name: gives every run of the campaign the same name; left out, "
            "each has its own",
        ),
    ],
)
def test_odd_keys_are_warned_of(keys: dict[str, Any], found: str) -> None:
    tables = {**TINY, "logging": keys, "campaign": {"seeds": [1, 2], "max_steps": 4}}
    tables["training"] = {"max_tokens": 16}
    assert found in config_from_mapping(tables).warnings


def test_a_name_that_cannot_be_a_project_is_refused() -> None:
    with pytest.raises(ConfigError, match="the user or team goes into wandb_entity"):
        config_from_mapping({**TINY, "logging": {"wandb_project": "team/probe"}})


def test_the_front_door_tracks_what_it_plans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    table = {"max_steps": 1, "batch_size": 2, "group_size": 2, "max_tokens": 16}
    tables = {
        **{"training": table, "evaluation": {"num_problems": 0}},
        **{"sepa": {"steps": 1, "delay_steps": 0}, "logging": {"wandb_mode": "offline"}},
    }
    config_file(tmp_path / "base.toml", tables)
    arguments = ["--config", "base.toml", "--seeds", "5", "--wandb-project", "sepa-deep"]
    with pytest.raises(SystemExit) as left:
        front_door.main(arguments)
    assert left.value.code == 0
    (folder,) = (tmp_path / "logs").glob("campaign_*")
    planned = read_json(folder / "manifest.json")
    assert planned["overrides"]["logging.wandb_project"] == "sepa-deep"
    for path in folder.glob("runs/*/config.toml"):
        assert 'wandb_project = "sepa-deep"' in path.read_text()

    printed = [line for line in capsys.readouterr().out.splitlines() if line[:1] not in ("", "#")]
    command = shlex.split(printed[-1])
    subprocess.run(command, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    (found,) = written(folder / "runs" / "maxrl+gtpo_sepa_s5")
    assert (found.project, found.name) == ("sepa-deep", "maxrl+gtpo_sepa_s5")
    assert (found.group, found.tags) == ("maxrl+gtpo_sepa", ["maxrl+gtpo_sepa", "seed5"])
    assert found.steps == [0]
