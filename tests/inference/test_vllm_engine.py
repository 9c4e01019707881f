"""Runs and campaigns with a vLLM of their own (a stand-in for it), as a user starts them."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from retrain.causes import SERVICE
from retrain.config.load import config_from_mapping
from retrain.errors import InputError
from retrain.experiments.campaign import run_campaign
from retrain.experiments.resume import resume
from retrain.experiments.single import run_single
from retrain.files import read_json
from retrain.policies.inference import supervisor
from tests.experiments.campaigns import vanishes
from tests.inference.test_inference_runs import assert_alike
from tests.inference.vllm_program import Program
from tests.loopback.service import ROOT
from tests.training import runs

HOLLOW = {"hollow": True}

TOML = """
[model]
lora_rank = 4

[inference]
engine = "vllm"
command = "program/vllm"

[training]
batch_size = 3
group_size = 4
max_tokens = 40
lr = 2e-3
save_every = 1

[evaluation]
num_problems = 4

[logging]
log_dir = "logs"

[campaign]
seeds = [7, 8]
max_steps = 3
parallel = true
max_workers = 2

[[campaign.conditions]]
advantage_mode = "grpo"
transform_mode = "none"
"""

PRETENDING = """
from pathlib import Path
from retrain.experiments.campaign import run_campaign
from retrain.preflight import load_checked
from tests.experiments.campaigns import fake_executor, set_trouble

Path("logs").mkdir()
set_trouble(Path("logs"), {"grpo+none": {"pause": 1.0}})
loaded, _ = load_checked("two.toml")
raise SystemExit(run_campaign(loaded, executor=fake_executor(2)).exit_code)
"""
"""The same campaign, but its workers only pretend to train."""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    """`program/vllm` beside `two.toml`; what it started is gone in the end."""
    (tmp_path / "two.toml").write_text(TOML)
    made = Program(tmp_path / "program")
    yield made
    assert all(map(vanishes, made.processes()))


def started(program: Program, *arguments: str) -> subprocess.Popen[str]:
    """Python with these arguments, in the folder of `two.toml`."""
    folder = program.folder.parent
    folders = (str(ROOT), str(ROOT / "tests/experiments"), os.environ.get("PYTHONPATH"))
    paths = os.pathsep.join(filter(None, folders))
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "PYTHONPATH": paths},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finished(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=300)
    return output


def until(happened: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert process is None or process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def campaign_of(program: Program) -> Path:
    (found,) = (program.folder.parent / "logs").glob("campaign_*")
    return found


def records_of(program: Program, status: str = "") -> list[dict[str, Any]]:
    """The `run.json` of the campaign's runs (that are so)."""
    found = [
        read_json(path)
        for path in sorted((program.folder.parent / "logs").glob("campaign_*/runs/*/run.json"))
    ]
    return [record for record in found if status in ("", record["status"])]


def files_with(text: str, folder: Path) -> list[Path]:
    return [
        path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()
    ]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The folders of the runs without a server, by seed."""
    folders = {seed: tmp_path_factory.mktemp("local") / "run" for seed in (7, 8)}
    for seed, folder in folders.items():
        training = {"max_steps": 3, "seed": seed}
        runs.start(runs.config(training=training, evaluation={"num_problems": 4}), folder)
    return folders


@contextlib.contextmanager
def killing(program: Program, start: int) -> Iterator[None]:
    """The server of this start, as soon as a run has a checkpoint."""

    def kill() -> None:
        until(lambda: any(campaign_of(program).glob("runs/*/checkpoints/step_*")))
        os.kill(program.starts()[start]["pid"], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    yield
    thread.join()


def warnings_in(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("warning: ")]


def test_a_campaign_shares_a_server_and_survives_its_death_and_its_own(
    program: Program, local: dict[int, Path]
) -> None:
    """First the campaign is killed, then the server of the one that is resumed."""
    program.plan(HOLLOW, {})
    killed = started(program, "-c", PRETENDING)
    until(lambda: len(records_of(program, "running")) == 2, killed)
    killed.kill()
    finished(killed)
    (first,) = program.starts()
    assert all(map(vanishes, program.processes()))

    campaign = campaign_of(program)
    for record in records_of(program):
        assert vanishes(record["pid"])
    resumed = started(program, "-m", "retrain", "resume", str(campaign))
    with killing(program, start=1):
        output = finished(resumed)
    assert resumed.returncode == 0, output
    _, second, third = program.starts()
    assert (second["port"], second["key"]) == (third["port"], third["key"])
    assert f"vLLM 0.0.0+test answers at http://127.0.0.1:{second['port']} after" in output
    assert warnings_in(output) == [
        f"warning: vLLM was ended by SIGKILL (see logs/{campaign.name}/vllm.log); it is started "
        "again"
    ]
    assert {record["status"] for record in records_of(program)} == {"done"}
    for seed, undisturbed in local.items():
        assert_alike(campaign / f"runs/grpo+none_s{seed}", undisturbed)
    for start in (first, second):
        arguments = start["arguments"]
        assert arguments[arguments.index("--max-loras") + 1] == "2"
        assert files_with(start["key"], program.folder.parent) == [program.folder / "starts.jsonl"]
        assert start["key"] not in output
    assert first["key"] != second["key"]


def test_a_server_that_is_given_up_fails_the_run_which_can_be_resumed(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local: dict[int, Path]
) -> None:
    """It dies in a rollout, and does not start any more."""
    patience = supervisor.Patience(first_pause_s=0.01)
    monkeypatch.setattr(supervisor, "Patience", lambda: patience)
    program.plan({"dies_after": 14}, {"fails": True})
    tables = {
        "model": {"lora_rank": 4},
        "algorithm": {"advantage_mode": "grpo", "transform_mode": "none"},
        "inference": {"engine": "vllm", "command": str(program.file)},
        "training": {
            **{"seed": 7, "max_steps": 3, "batch_size": 3, "group_size": 4, "max_tokens": 40},
            **{"lr": 2e-3, "save_every": 2},
        },
        "evaluation": {"num_problems": 4},
    }
    console, run_dir = Console(file=(output := io.StringIO()), width=200), tmp_path / "run"
    lost = run_single(config_from_mapping(tables), run_dir=run_dir, console=console)
    assert (lost.exit_code, lost.status, lost.cause) == (1, "failed", SERVICE)
    assert "ValueError: Free memory on device cuda:0" in lost.message
    assert lost.message.endswith("that was the 4th time, and it is given up")
    assert len(program.starts()) == 4
    assert f"next: retrain resume {run_dir}" in output.getvalue()
    first, again, last = warnings_in(output.getvalue())
    assert "vLLM ended with exit code 1: torch.OutOfMemoryError: CUDA out of memory" in first
    assert "vLLM ended with exit code 1: ValueError: Free memory on device cuda:0" in again
    for line in (first, again):
        assert line.endswith(f" (see {run_dir}/vllm.log); it is started again")
    assert last.endswith(lost.message.partition("vLLM")[2])

    program.plan()
    assert resume(run_dir, console=console).exit_code == 0
    assert not (run_dir / "vllm.lost").exists()
    assert_alike(run_dir, local[7])


def test_ctrl_c_ends_all_in_order(program: Program) -> None:
    program.plan(HOLLOW)
    process = started(program, "-c", PRETENDING)
    until(lambda: len(records_of(program, "running")) == 2, process)
    os.killpg(process.pid, signal.SIGINT)
    output = finished(process)
    assert process.returncode == 130, output
    assert len(program.starts()) == 1
    assert "retrain resume" in output
    assert "Traceback" not in output
    assert warnings_in(output) == []
    assert [record["status"] for record in records_of(program)] == ["stopped", "stopped"]


def test_ctrl_c_while_it_starts(program: Program) -> None:
    program.plan({"never_ready": True})
    process = started(program, "-m", "retrain", "two.toml")
    until(program.starts, process)
    os.killpg(process.pid, signal.SIGINT)
    output = finished(process)
    assert process.returncode == 130, output
    assert "Traceback" not in output


def test_a_start_that_fails(program: Program) -> None:
    """Nothing is trained, and the campaign can be resumed."""
    program.plan({"fails": True})
    process = started(program, "-m", "retrain", "two.toml")
    output = finished(process)
    assert process.returncode == 2, output
    folder = f"logs/{campaign_of(program).name}"
    *_, error = output.splitlines()
    assert error.startswith("error: inference.engine: vLLM ended with exit code 1 before it was")
    assert "ValueError: Free memory on device cuda:0 (10.2/79.1 GiB) on startup is less" in error
    assert error.endswith(f"(see {folder}/vllm.log); afterwards: retrain resume {folder}")
    assert "Traceback" not in output
    assert [record["status"] for record in records_of(program)] == ["pending", "pending"]


def test_a_run_whose_server_does_not_start_is_there_to_be_resumed(
    program: Program, tmp_path: Path
) -> None:
    program.plan({"fails": True})
    tables = {
        "inference": {"engine": "vllm", "command": str(program.file)},
        "training": {"max_tokens": 16},
    }
    quiet, run_dir = Console(quiet=True), tmp_path / "run"
    with pytest.raises(InputError, match=f"afterwards: retrain resume {run_dir}"):
        run_single(config_from_mapping(tables), run_dir=run_dir, console=quiet)
    with pytest.raises(InputError, match="vLLM ended with exit code 1 before it was ready"):
        resume(run_dir, console=quiet)
    assert len(program.starts()) == 2


@pytest.mark.parametrize("kind", ["campaign", "run"])
def test_a_program_that_is_not_there(tmp_path: Path, kind: str) -> None:
    tables: dict[str, Any] = {
        "inference": {"engine": "vllm", "command": str(tmp_path / "vllm")},
        "training": {"max_tokens": 16},
        "logging": {"log_dir": str(tmp_path / "logs")},
    }
    if kind == "campaign":
        tables["campaign"] = {"conditions": [{}]}
    loaded = config_from_mapping(tables)
    train = run_campaign if kind == "campaign" else run_single
    with pytest.raises(InputError, match=r"inference.command: .*/vllm is no program; .*install"):
        train(loaded, console=Console(file=io.StringIO()))
    assert list(tmp_path.iterdir()) == []
