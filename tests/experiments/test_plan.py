"""The plan, and the script that runs it again."""

from __future__ import annotations

import json
import os
import subprocess
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from campaigns import load
from safetensors.numpy import save_file

from retrain.config.dump import read_run_config, run_config_toml
from retrain.config.schema import (
    BackendConfig,
    CampaignConfig,
    ModelConfig,
    RunConfig,
    TrainingConfig,
)
from retrain.experiments import workers
from retrain.experiments.plan import plan_runs, rerun_script
from retrain.models.folder import inspect_model


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


def test_run_all_without_retrain_on_the_path_runs_no_foreign_code(
    script: Path, tmp_path: Path
) -> None:
    for name in ("typer", "queue"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('foreign code was run')\n")
    (script.parent / "runs/a_s1/config.toml").write_text("[training]\nmax_stepz = 1\n")
    only_one = script.read_text().replace("run b~", "# run b~").replace("run c_", "# run c_")
    script.write_text(only_one)
    code, output = run_script(script, "out", cwd=tmp_path, RETRAIN="", PATH="/usr/bin:/bin")
    assert code == 1
    assert "max_stepz" in output
    assert "foreign" not in output


def test_run_all_stops_when_interrupted(script: Path, tmp_path: Path) -> None:
    code, output = run_script(script, "out", cwd=tmp_path, FAILING="a_s1", CODE="130")
    assert code == 130
    assert "interrupted in a_s1" in output
    assert names(tmp_path / "out") == ["a_s1"]


GIB = 2**30
PARALLEL = {"parallel": True}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets what the machine is said to have."""

    def set_up(
        cores: int = 8, memory: float | None = None, need: float | None = 1.0, gpus: int = 0
    ) -> None:
        def gib(value: float | None) -> int | None:
            return None if value is None else int(value * GIB)

        monkeypatch.setattr(workers, "available_cores", lambda: cores)
        monkeypatch.setattr(workers, "available_memory", lambda: gib(memory))
        monkeypatch.setattr(workers, "worker_memory", lambda config: gib(need))
        monkeypatch.setattr(workers, "visible_gpus", lambda: [f"cuda:{n}" for n in range(gpus)])
        monkeypatch.setattr(
            workers,
            "runs_on_cpu",
            lambda backend: backend.device == "cpu" or (backend.device == "auto" and not gpus),
        )

    return set_up


def planned(
    campaign: Mapping[str, Any], backend: Mapping[str, Any], runs: int
) -> workers.WorkerPlan:
    config = RunConfig(backend=BackendConfig(**backend))
    plan = workers.plan_workers(CampaignConfig(**campaign), [config] * runs)
    assert 1 <= plan.workers <= runs
    assert len(plan.devices) in {0, plan.workers}
    assert plan.workers * plan.threads <= max(workers.available_cores(), plan.workers)
    return plan


@pytest.mark.parametrize(
    ("campaign", "backend", "runs", "count", "threads", "note"),
    [
        ({}, {}, 10, 1, 1, ""),
        ({"max_workers": 4}, {}, 10, 1, 1, ""),
        ({"devices": "cpu,cpu"}, {}, 10, 1, 1, ""),
        (PARALLEL, {}, 10, 8, 1, "8 workers for 10 runs: 8 cores, 1 thread each"),
        (PARALLEL, {}, 8, 8, 1, ""),
        (PARALLEL, {}, 3, 3, 1, ""),
        (PARALLEL, {"threads": 3}, 10, 2, 3, "2 workers for 10 runs: 8 cores, 3 threads each"),
        (
            PARALLEL,
            {"threads": 64},
            10,
            1,
            8,
            "1 worker for 10 runs: 8 cores, 64 threads each; 8 threads each instead of 64, as "
            "there are 8 cores",
        ),
        ({**PARALLEL, "max_workers": 12}, {}, 40, 12, 1, "12 workers for 40 runs: max_workers"),
        ({**PARALLEL, "max_workers": 12}, {}, 5, 5, 1, ""),
        (
            {**PARALLEL, "max_workers": 4},
            {"threads": 4},
            10,
            4,
            2,
            "4 workers for 10 runs: max_workers; 2 threads each instead of 4, as there are 8 cores",
        ),
        (
            PARALLEL,
            {"threads": 8},
            1,
            1,
            8,
            "",
        ),
    ],
)
def test_workers_on_a_cpu(
    machine: Callable[..., None],
    campaign: dict[str, Any],
    backend: dict[str, Any],
    runs: int,
    count: int,
    threads: int,
    note: str,
) -> None:
    machine(cores=8)
    assert planned(campaign, backend, runs) == workers.WorkerPlan(count, threads, (), note)


@pytest.mark.parametrize(
    ("memory", "need", "count"),
    [(10.0, 3.0, 3), (2.0, 3.0, 1), (100.0, 3.0, 8), (None, 3.0, 8), (10.0, None, 8)],
)
def test_workers_fit_into_memory(
    machine: Callable[..., None], memory: float | None, need: float | None, count: int
) -> None:
    machine(cores=8, memory=memory, need=need)
    plan = planned(PARALLEL, {}, 40)
    bound = "8 cores, 1 thread each"
    if count < 8:
        bound = f"{memory:.1f} GiB of memory are free, a worker takes about 3.0"
    workers_ = "1 worker" if count == 1 else f"{count} workers"
    assert plan == workers.WorkerPlan(count, 1, (), f"{workers_} for 40 runs: {bound}")


def test_who_gives_a_number_of_workers_knows_better(machine: Callable[..., None]) -> None:
    machine(cores=2, memory=4.0, need=3.0)
    asked = {**PARALLEL, "max_workers": 6}
    note = "6 workers for 40 runs: max_workers"
    assert planned(asked, {}, 40) == workers.WorkerPlan(6, 1, (), note)


def test_the_hungriest_run_decides(
    machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(cores=16, memory=10.0)
    needs = {"embedded": 1, "large": 4}
    monkeypatch.setattr(workers, "worker_memory", lambda config: needs[config.model.model] * GIB)
    configs = [
        RunConfig.model_validate({"model": {"model": name}, "backend": {"threads": threads}})
        for name, threads in (("embedded", 1), ("large", 3), ("embedded", 2))
    ]
    plan = workers.plan_workers(CampaignConfig(parallel=True), configs)
    assert (plan.workers, plan.threads) == (2, 3)
    assert "a worker takes about 4.0" in plan.note


@pytest.mark.parametrize("device", ["auto", "cuda"])
@pytest.mark.parametrize(
    ("campaign", "runs", "devices", "note"),
    [
        (
            PARALLEL,
            40,
            ("cuda:0", "cuda:1", "cuda:2"),
            "3 workers for 40 runs: one for each of 3 GPUs (max_workers sets another number)",
        ),
        (PARALLEL, 2, ("cuda:0", "cuda:1"), ""),
        (
            {**PARALLEL, "max_workers": 2},
            40,
            ("cuda:0", "cuda:1"),
            "2 workers for 40 runs: max_workers",
        ),
        (
            {**PARALLEL, "max_workers": 5},
            40,
            ("cuda:0", "cuda:1", "cuda:2", "cuda:0", "cuda:1"),
            "5 workers for 40 runs: max_workers",
        ),
        ({}, 40, (), ""),
    ],
)
def test_workers_on_gpus(
    machine: Callable[..., None],
    device: str,
    campaign: dict[str, Any],
    runs: int,
    devices: tuple[str, ...],
    note: str,
) -> None:
    """One worker a GPU, and never two on one while another has none."""
    machine(cores=16, gpus=3)
    plan = planned(campaign, {"device": device}, runs)
    assert plan == workers.WorkerPlan(len(devices) or 1, 1, devices, note)


def test_a_gpu_that_the_file_names_takes_one_worker(machine: Callable[..., None]) -> None:
    machine(cores=16, gpus=3)
    plan = planned(PARALLEL, {"device": "cuda:1"}, 40)
    assert (plan.workers, plan.devices) == (1, ())
    configs = [RunConfig(backend=BackendConfig(device=f"cuda:{n}")) for n in (0, 2, 0, 2)]
    assert workers.plan_workers(CampaignConfig(parallel=True), configs).workers == 2


def test_memory_bounds_workers_on_gpus_too(machine: Callable[..., None]) -> None:
    machine(cores=16, gpus=3, memory=5.0, need=2.0)
    plan = planned(PARALLEL, {}, 40)
    assert (plan.workers, plan.devices) == (2, ("cuda:0", "cuda:1"))
    assert plan.note.endswith("5.0 GiB of memory are free, a worker takes about 2.0")


@pytest.mark.parametrize(
    ("campaign", "runs", "devices", "note"),
    [
        (
            {"devices": "cuda:1, cuda:3"},
            40,
            ("cuda:1", "cuda:3"),
            "2 workers for 40 runs: one worker for each of 2 devices",
        ),
        ({"devices": ["cuda:1", "cuda:3"]}, 1, ("cuda:1",), ""),
        (
            {"devices": "cuda:1,cuda:3", "max_workers": 1},
            40,
            ("cuda:1",),
            "1 worker for 40 runs: max_workers",
        ),
        (
            {"devices": ["cuda:0"]},
            40,
            ("cuda:0",),
            "1 worker for 40 runs: one worker for each of 1 device",
        ),
        (
            {"devices": "cpu,cpu,cpu"},
            40,
            ("cpu", "cpu", "cpu"),
            "3 workers for 40 runs: one worker for each of 3 devices; 1 thread each instead of 2, "
            "as there are 5 cores",
        ),
    ],
)
def test_workers_on_listed_devices(
    machine: Callable[..., None],
    campaign: dict[str, Any],
    runs: int,
    devices: tuple[str, ...],
    note: str,
) -> None:
    """The list wins over what the machine seems to have, and over `[backend].device`."""
    machine(cores=5, memory=2.0, need=2.0, gpus=8)
    plan = planned({**PARALLEL, **campaign}, {"threads": 2, "device": "cuda:5"}, runs)
    threads = 1 if len(devices) == 3 else 2
    assert plan == workers.WorkerPlan(len(devices), threads, devices, note)


def test_what_the_machine_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert workers.visible_gpus() == ["cuda:0", "cuda:1"]
    assert not workers.runs_on_cpu(BackendConfig(device="cuda"))
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert workers.visible_gpus() == []
        assert workers.runs_on_cpu(BackendConfig())
    assert workers.runs_on_cpu(BackendConfig(device="cpu"))
    memory = workers.available_memory()
    assert memory is None or 0 < memory < 2**60


def test_what_a_worker_takes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    shape = {"num_hidden_layers": 1, "hidden_size": 1000, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps({**shape, "vocab_size": 5000}))
    tensors = {"embed_tokens.weight": np.zeros((5000, 1000)), "up.weight": np.zeros((9000, 1000))}
    save_file({k: v.astype(np.float16) for k, v in tensors.items()}, tmp_path / "m.safetensors")
    inspect_model.cache_clear()
    model = ModelConfig(model=str(tmp_path))
    parameters = 14_000_000
    on_gpu = RunConfig(model=model, backend=BackendConfig(device="cuda"))
    assert workers.worker_memory(on_gpu) == workers.WORKER_BYTES + 2 * parameters
    small, large = (
        workers.worker_memory(RunConfig(model=model, training=TrainingConfig(max_tokens=tokens)))
        for tokens in (64, 4096)
    )
    assert small is not None
    assert large is not None
    assert workers.WORKER_BYTES + 4 * parameters < small < large
    embedded = workers.worker_memory(RunConfig())
    assert embedded is not None
    assert workers.WORKER_BYTES < embedded < 2 * workers.WORKER_BYTES
    assert workers.worker_memory(RunConfig(model=ModelConfig(model="nobody/nothing"))) is None


def test_threads_are_set_before_torch_is_imported() -> None:
    environment = workers.thread_environment(workers.threads_of(BackendConfig()))
    assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == "1"
    assert environment["TOKENIZERS_PARALLELISM"] == "false"
    assert workers.thread_environment(3)["OMP_NUM_THREADS"] == "3"
    assert 1 <= workers.available_cores() <= (os.cpu_count() or 1)
