"""Tracking with trackio: the real package, and what it stored."""

from __future__ import annotations

import logging
import os
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest

from retrain.config.load import config_from_mapping, read_mapping
from retrain.errors import ConfigError
from retrain.files import read_json, read_jsonl
from retrain.preflight import check_reading
from retrain.tracking.process import numbers
from retrain.training.loop import RunStopped
from tests.tracking.tiny_runs import OFFLINE, TINY, config, rows, start
from tests.tracking.trackio_store import stored
from tests.tracking.wandb_files import written

LOCAL: dict[str, Any] = {"wandb_project": "probe", "trackers": ["trackio"]}

EAR = """
import os, sys

def hear(event, arguments):
    if event.startswith("socket.") or event == "webbrowser.open":
        with open(os.environ["EAR"], "a") as file:
            file.write(f"{sys.argv} {event} {arguments[1:]}\\n")

sys.addaudithook(hear)
"""
"""A module that every Python process of the run imports: it writes down what goes to a network."""


def expected(run_dir: Path) -> list[tuple[int, dict[str, Any]]]:
    """The rows of metrics.jsonl as trackio should have them."""
    return [
        (row["step"], {key: value for key, value in numbers(row).items() if key != "step"})
        for row in read_jsonl(run_dir / "metrics.jsonl")
    ]


def test_a_run_is_stored_on_this_machine_as_it_was_trained(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, ear = tmp_path / "here", tmp_path / "ear"
    here.mkdir()
    (ear / "lib").mkdir(parents=True)
    (ear / "lib" / "sitecustomize.py").write_text(EAR)
    monkeypatch.setenv("PYTHONPATH", str(ear / "lib"), prepend=os.pathsep)
    monkeypatch.setenv("EAR", str(ear / "heard"))
    # Whoever shares his other projects does not share this one, and nobody is asked who he is.
    monkeypatch.setenv("TRACKIO_SPACE_ID", "somebody/space")
    monkeypatch.setenv("HF_TOKEN", "hf_" + "a" * 34)
    monkeypatch.chdir(here)
    settings = config(**LOCAL, wandb_tags=["mine"])
    result = start(settings, tmp_path / "tracked")
    assert result.status == "done"
    assert capfd.readouterr().out == ""
    assert not list(here.iterdir())
    assert not (ear / "heard").exists(), (ear / "heard").read_text()
    assert not [name for name in sys.modules if name.partition(".")[0] == "trackio"]

    (found,) = stored(tmp_path / "store")
    assert (found.name, found.group) == ("grpo_s7", "grpo")
    sent = {key: value for key, value in found.config.items() if not key.startswith("_")}
    assert sent == {
        **settings.model_dump(mode="json", exclude_none=True),
        **{"condition": "grpo", "tags": ["grpo", "seed7", "mine"]},
    }
    assert found.config["_Username"] is None
    assert found.metrics == expected(tmp_path / "tracked")
    assert "held_out_accuracy" in found.metrics[1][1]
    (end,) = found.ends
    assert end["status"] == "done"
    assert end["result/accuracy_after"] == result.accuracy_after
    assert found.system == 0

    # Tracking changes no number.
    start(config(), tmp_path / "untracked")
    assert rows(tmp_path / "untracked") == rows(tmp_path / "tracked")


def test_a_resumed_run_is_the_same_run_and_the_store_says_what_it_has(tmp_path: Path) -> None:
    run_dir, store = tmp_path / "run", tmp_path / "store"
    heard: list[int] = []
    with pytest.raises(RunStopped):
        start(
            config(**LOCAL),
            run_dir,
            on_row=lambda row: heard.append(row["step"]),
            stop=lambda: len(heard) == 2,
        )
    # A namesake, as of another campaign, is another run.
    with pytest.raises(RunStopped):
        start(config(**LOCAL), tmp_path / "other", stop=lambda: True)
    # It lost a row: it is stored again, whatever was handed over.
    assert read_json(run_dir / "trackio" / "retrain.json")["steps"] == 2
    with sqlite3.connect(store / "probe.db") as database:
        database.execute("delete from metrics where step = 1")
    assert start(config(**LOCAL), run_dir).status == "done"
    found, other = stored(store)
    if found.metrics[-1][0] == 0:
        found, other = other, found
    assert found.id == read_json(run_dir / "trackio" / "retrain.json")["id"]
    assert found.metrics == expected(run_dir)
    assert other.metrics == expected(tmp_path / "other")
    assert [end["status"] for end in found.ends][-1] == "done"


def test_each_tracker_is_on_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One that cannot write says so once; the other has every row."""
    (tmp_path / "store").write_text("a file where the folder should be")
    settings = config(**OFFLINE, trackers=["wandb", "trackio"])
    with caplog.at_level(logging.WARNING, logger="retrain"):
        assert start(settings, tmp_path / "run").status == "done"
    (warning,) = caplog.messages
    assert warning.startswith("grpo_s7: no tracking with trackio from here on: ")
    assert written(tmp_path / "run")[0].steps == [0, 1, 2, 3]
    assert read_json(tmp_path / "run" / "trackio" / "retrain.json")["sent"] == {}
    assert read_json(tmp_path / "run" / "wandb" / "retrain.json")["sent"]["status"] == "done"


def test_a_missing_trackio_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trackio").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, name)
    tables = {**TINY, "logging": {**LOCAL, "log_dir": str(tmp_path / "logs")}}
    with pytest.raises(ConfigError) as refused:
        check_reading(read_mapping(tables))
    (issue,) = refused.value.issues
    assert issue.key == "logging.wandb_project"
    assert issue.message == (
        '"probe" needs the package trackio, which is not installed; run: '
        "pip install 'retrain[trackio]'"
    )


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        (
            {**LOCAL, "wandb_mode": "offline"},
            "logging.wandb_mode: is written, but nothing reads it: it is for wandb, which is not "
            "in trackers",
        ),
        (
            {**LOCAL, "wandb_entity": "team"},
            "logging.wandb_entity: is written, but nothing reads it: it is for wandb, which is "
            "not in trackers",
        ),
        (
            {"trackers": ["trackio"]},
            "logging.trackers: is written, but nothing reads it: wandb_project is empty, which "
            "turns trackio off",
        ),
        (
            {**LOCAL, "wandb_artifacts": "checkpoints"},
            'logging.wandb_artifacts: "checkpoints" sends only the final adapter, as '
            "training.save_every is 0",
        ),
    ],
)
def test_odd_keys_are_warned_of(keys: dict[str, Any], found: str) -> None:
    training = {**TINY["training"], "save_every": 0}
    loaded = config_from_mapping({**TINY, "training": training, "logging": keys})
    assert found in loaded.warnings
    # Both together heed every key.
    both = {**keys, "wandb_project": "probe", "trackers": ["wandb", "trackio"]}
    told = config_from_mapping({**TINY, "training": training, "logging": both}).warnings
    assert [text for text in told if text.startswith("logging.")] == (
        [found] if "wandb_artifacts" in keys else []
    )
