"""With which command and environment a vLLM is started, and for which runs."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrain.config.inference_checks import MAX_RANK
from retrain.errors import InputError
from retrain.policies.inference.endpoint import Endpoint
from retrain.policies.inference.vllm import (
    RANKS,
    Launch,
    program_of,
    program_problem,
    require_program,
    together,
    visible,
)
from tests.inference.vllm_program import RANKS as RANKS_OF_VLLM
from tests.inference.vllm_program import parsed
from tests.training import runs


def launch(on_cpu: bool = True, **tables: dict[str, Any]) -> Launch:
    inference = {"engine": "vllm", **tables.pop("inference", {})}
    return Launch.of(runs.config(inference=inference, **tables), on_cpu=on_cpu)


@given(st.integers(1, MAX_RANK))
def test_the_rank_is_one_that_vllm_takes_and_no_larger_than_needed(rank: int) -> None:
    found = launch(model={"lora_rank": rank}).max_rank
    assert found == min(allowed for allowed in RANKS if allowed >= rank)
    assert found in RANKS_OF_VLLM


def test_the_command() -> None:
    wanted = launch(
        model={"model": "org/name", "revision": "abc", "lora_rank": 20},
        inference={"arguments": ["--max-model-len", "4096"], "gpu_memory": 0.25},
    )
    program, verb, *arguments = wanted.command(Path("/opt/vllm"), 8001, clients=3)
    assert (program, verb) == ("/opt/vllm", "serve")
    assert vars(parsed(["serve", *arguments])) == {
        "model": "org/name",
        "host": "127.0.0.1",
        "port": 8001,
        "enable_lora": True,
        "max_lora_rank": 32,
        "max_loras": 3,
        "max_cpu_loras": 6,
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",
        "gpu_memory_utilization": 0.25,
        "disable_uvicorn_access_log": True,
        "dtype": "float32",
        "revision": "abc",
        "max_model_len": 4096,
        "max_num_batched_tokens": 16384,
    }
    on_gpu = launch(on_cpu=False).command(Path("/opt/vllm"), 8001, clients=1)
    assert parsed(on_gpu[1:]).dtype == "bfloat16"
    assert parsed(on_gpu[1:]).max_num_batched_tokens is None


def test_a_run_for_which_nobody_started_a_server() -> None:
    with pytest.raises(InputError, match="nobody has started a server"):
        Endpoint.of(runs.config(inference={"engine": "vllm"}).inference)


def test_the_last_argument_wins_so_that_a_dtype_can_be_given() -> None:
    given = launch(inference={"arguments": ["--dtype", "bfloat16"]})
    arguments = given.command(Path("vllm"), 8000, 1)[1:]
    assert parsed(arguments).dtype == "bfloat16"
    assert launch(on_cpu=False).dtype == "bfloat16"
    assert launch(on_cpu=False, model={"dtype": "float32"}).dtype == "float32"


def test_the_embedded_model_is_served_from_its_folder() -> None:
    assert (Path(launch().model) / "config.json").is_file()


def test_the_environment() -> None:
    base = {"PATH": "/bin", "VLLM_API_KEY": "of the user", "VLLM_NO_USAGE_STATS": "0"}
    found = launch(model={"local_files_only": False}).environment("ours", base)
    assert found == {
        "PATH": "/bin",
        "VLLM_NO_USAGE_STATS": "0",
        "VLLM_API_KEY": "ours",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
    }
    more = launch(inference={"gpus": "1"}, model={"local_files_only": True})
    found = more.environment("ours", {"CUDA_VISIBLE_DEVICES": "4,7"})
    assert (found["CUDA_VISIBLE_DEVICES"], found["HF_HUB_OFFLINE"]) == ("7", "1")
    assert found["VLLM_NO_USAGE_STATS"] == "1"


@pytest.mark.parametrize(
    ("gpus", "seen", "found"),
    [
        ("0", None, "0"),
        ("2, 3", None, "2,3"),
        ("1", "4,7", "7"),
        ("1,0", "4, 7", "7,4"),
        ("0", "GPU-8932f937-d72c", "GPU-8932f937-d72c"),
    ],
)
def test_gpus_are_counted_among_those_that_retrain_sees(
    gpus: str, seen: str | None, found: str
) -> None:
    assert visible(gpus, seen) == found


@pytest.mark.parametrize(("gpus", "seen"), [("2", "4,7"), ("0,2", "4,7"), ("0", "")])
def test_a_gpu_that_is_not_there(gpus: str, seen: str) -> None:
    missing = gpus.rpartition(",")[2]
    with pytest.raises(InputError, match=rf"inference.gpus: there is no GPU {missing}: "):
        visible(gpus, seen)


OTHERS: list[dict[str, Any]] = [
    {"model": {"model": "org/name"}},
    {"model": {"model": "org/name", "revision": "abc"}},
    {"model": {"dtype": "bfloat16"}},
    {"inference": {"arguments": ["--enforce-eager"]}},
    {"inference": {"gpus": "1"}},
    {"inference": {"gpu_memory": 0.3}},
    {"inference": {"command": "/other/vllm"}},
]
SAME: list[dict[str, Any]] = [
    {},
    {"model": {"lora_rank": 30}},
    {"training": {"seed": 9, "lr": 1e-5}},
    {"inference": {"max_mismatch": 0.1, "concurrency": 8, "start_timeout": 60.0}},
]


def test_runs_share_a_server_of_the_largest_rank_unless_it_would_be_another() -> None:
    same, others = [launch(**tables) for tables in SAME], [launch(**tables) for tables in OTHERS]
    for order in itertools.permutations(same):
        assert together(order) == [dataclasses.replace(same[0], max_rank=32)]
    found = together([*same, *others, *reversed(others), *same])
    assert found == [dataclasses.replace(same[0], max_rank=32), *others]
    for one in same:
        assert [server.shares_with(one) for server in found] == [True] + [False] * len(others)


def test_a_program_is_looked_for_beside_python_then_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, elsewhere = tmp_path / "env/bin", tmp_path / "elsewhere"
    for folder in (beside, elsewhere):
        folder.mkdir(parents=True)
    monkeypatch.setattr("sys.executable", str(beside / "python"))
    monkeypatch.setenv("PATH", str(elsewhere))
    assert program_of("vllm") is None
    with pytest.raises(InputError, match=r"inference.command: vllm is not installed here; .*pip"):
        require_program("vllm")
    for folder in (elsewhere, beside):
        (folder / "vllm").write_text("")
        assert program_of("vllm") != folder / "vllm"
        (folder / "vllm").chmod(0o755)
        assert require_program("vllm") == program_of("vllm") == folder / "vllm"
    assert program_problem("vllm") == ""
    assert program_problem(str(beside)).startswith(f"{beside} is no program; ")
