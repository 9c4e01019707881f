"""The plan, and the script that runs it again."""

from __future__ import annotations

import os
import subprocess
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from campaigns import load

from retrain.config.dump import run_config_toml
from retrain.config.schema import BackendConfig, CampaignConfig, RunConfig
from retrain.experiments import workers
from retrain.experiments.plan import plan_runs, rerun_script
from retrain.experiments.worker import read_run_config


def test_every_condition_of_a_seed_before_the_next_seed(tmp_path: Path) -> None:
    runs = plan_runs(load(tmp_path, {"a": {}, "b": {}, "c": {}}, seeds=(7, 3)))
    assert [run.name for run in runs] == ["a_s7", "b_s7", "c_s7", "a_s3", "b_s3", "c_s3"]
    assert [run.seed for run in runs] == [7, 7, 7, 3, 3, 3]
    assert all(run.config.training.seed == run.seed for run in runs)
    assert runs[0].command == (
        *("retrain", "run", "runs/a_s7/config.toml", "--run-dir", "rerun/a_s7"),
        *("--name", "a_s7", "--condition", "a"),
    )


def test_a_worker_reads_the_config_that_was_planned(tmp_path: Path) -> None:
    (run,) = plan_runs(load(tmp_path, {"a": {}}, seeds=(1,)))
    algorithm = run.config.algorithm.model_copy(update={"params": {"x": [1, 2.5], "s": "ü"}})
    run = replace(run, config=run.config.model_copy(update={"algorithm": algorithm}))
    path = tmp_path / "config.toml"
    path.write_text(run_config_toml(run.config), encoding="utf-8")
    assert read_run_config(path) == run.config


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A campaign's folder with `run_all.sh`, and a retrain that only writes what it is told."""
    runs = plan_runs(load(tmp_path, {"a": {}, "b~lr=0.1": {}, "c": {}}, seeds=(1,)))
    folder = tmp_path / "a campaign"
    for run in runs:
        (folder / run.folder).mkdir(parents=True)
        (folder / run.config_path).write_text(run_config_toml(run.config))
    path = folder / "run_all.sh"
    path.write_text(rerun_script(runs))
    path.chmod(0o755)
    retrain = tmp_path / "fake retrain"
    retrain.write_text(
        '#!/bin/sh\nmkdir -p "$4"\nprintf "%s\\n" "$PWD" "$@" > "$4/told"\n'
        'case "$6" in $FAILING) exit "${CODE:-1}";; esac\n'
    )
    retrain.chmod(0o755)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def run_script(script: Path, *arguments: str, cwd: Path, **variables: str) -> tuple[int, str]:
    environment = {**os.environ, "RETRAIN": str(script.parent.parent / "fake retrain"), **variables}
    done = subprocess.run(
        [str(script), *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


def test_run_all_runs_everything_from_any_folder(script: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    code, output = run_script(script, "out put", cwd=elsewhere)
    assert code == 0, output
    out = elsewhere / "out put"
    assert names(out) == ["a_s1", "b~lr=0.1_s1", "c_s1"]
    told = (out / "b~lr=0.1_s1" / "told").read_text().splitlines()
    assert told == [
        str(elsewhere),
        "run",
        str(script.parent / "runs/b~lr=0.1_s1/config.toml"),
        "--run-dir",
        str(out / "b~lr=0.1_s1"),
        "--name",
        "b~lr=0.1_s1",
        "--condition",
        "b~lr=0.1",
    ]
    assert tomllib.loads(Path(told[2]).read_text())["training"]["seed"] == 1


def test_run_all_makes_a_folder_of_its_own(script: Path, tmp_path: Path) -> None:
    code, output = run_script(script, cwd=tmp_path)
    assert code == 0, output
    (rerun,) = script.parent.glob("rerun_*")
    assert len(names(rerun)) == 3


def test_run_all_goes_on_past_a_failed_run(script: Path, tmp_path: Path) -> None:
    code, output = run_script(script, "out", cwd=tmp_path, FAILING="a_s1")
    assert code == 1
    assert "failed: a_s1" in output
    assert len(names(tmp_path / "out")) == 3


def test_run_all_stops_when_interrupted(script: Path, tmp_path: Path) -> None:
    code, output = run_script(script, "out", cwd=tmp_path, FAILING="a_s1", CODE="130")
    assert code == 130
    assert "interrupted in a_s1" in output
    assert names(tmp_path / "out") == ["a_s1"]


@pytest.mark.parametrize(
    ("campaign", "backend", "runs", "workers"),
    [
        ({}, {}, 10, 1),
        ({"max_workers": 4}, {}, 10, 1),
        ({"parallel": True}, {}, 10, 8),
        ({"parallel": True}, {}, 3, 3),
        ({"parallel": True}, {"threads": 3}, 10, 2),
        ({"parallel": True}, {"threads": 64}, 10, 1),
        ({"parallel": True, "max_workers": 12}, {}, 40, 12),
        ({"parallel": True, "max_workers": 12}, {}, 5, 5),
        ({"parallel": True}, {"device": "cuda"}, 40, 40),
    ],
)
def test_worker_count(
    monkeypatch: pytest.MonkeyPatch,
    campaign: dict[str, bool | int],
    backend: dict[str, str | int],
    runs: int,
    workers: int,
) -> None:
    monkeypatch.setattr(threads, "available_cores", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    config = RunConfig(backend=BackendConfig(**backend))
    assert threads.worker_count(CampaignConfig(**campaign), [config] * runs) == workers


def test_threads_are_set_before_torch_is_imported() -> None:
    environment = threads.thread_environment(threads.threads_of(BackendConfig()))
    assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == "1"
    assert 1 <= threads.available_cores() <= (os.cpu_count() or 1)
