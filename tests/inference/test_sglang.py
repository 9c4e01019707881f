"""Runs whose completions come from a server that speaks as SGLang does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrain.config.schema import BackendConfig, ModelConfig
from retrain.errors import InputError
from retrain.models.lora import LoraSpec
from retrain.policies.inference.policy import opened
from retrain.policies.local.base import load_base
from retrain.policies.local.policy import LocalPolicy
from retrain.policies.lost import RefusedError
from retrain.types import Problem, SamplingParams
from tests.inference.sglang import SGLangServer
from tests.inference.test_inference_runs import QUICK, SMALL, assert_alike, small
from tests.training import runs

WARM = {"temperature": 0.8}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrain.policies.inference.server.Patience", lambda: QUICK)


@pytest.fixture(scope="module")
def running() -> Iterator[SGLangServer]:
    with SGLangServer() as server:
        yield server


@pytest.fixture
def server(running: SGLangServer) -> Iterator[SGLangServer]:
    running.reset()
    yield running
    running.reset()


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run without a server."""
    folder = tmp_path_factory.mktemp("local") / "run"
    training = {**SMALL, **WARM}
    runs.start(runs.config(training=training, evaluation={"num_problems": 0}), folder)
    return folder


def test_a_run_is_the_local_run(server: SGLangServer, local: Path, tmp_path: Path) -> None:
    runs.start(small(server.url, training=WARM), tmp_path / "run")
    assert_alike(tmp_path / "run", local)
    loaded = [call for call in server.ledger.calls if call.kind == "load_lora_adapter"]
    assert len(loaded) == 2
    assert server.adapters == {}


def test_what_is_forgotten_is_loaded_again(
    server: SGLangServer, local: Path, tmp_path: Path
) -> None:
    """Also in the middle of a rollout, and where the answer to a load was lost."""
    server.faults.add("drop", route="load_lora_adapter", on="retrieve", times=1)
    begun: list[Any] = []

    def forget(row: Any) -> None:
        begun.append(row)
        server.forget()

    runs.start(small(server.url, training=WARM), tmp_path / "run", on_row=forget)
    assert len(begun) == 2
    assert_alike(tmp_path / "run", local)


def test_the_longest_prompts_are_taken(server: SGLangServer, tmp_path: Path) -> None:
    """It keeps some of the model's context for itself."""
    base = load_base(ModelConfig(), BackendConfig(device="cpu"))
    local = LocalPolicy(base, LoraSpec(4, 8.0), seed=1)
    prompt = base.codec.encode(Problem("p", "Compute 3+9.", ""))
    keys = np.array([[1, 2]], dtype=np.uint64)
    with opened(local, small(server.url), "long", tmp_path) as remote:
        longest = np.resize(prompt, remote.context - 1)
        (rows,) = remote.sample([longest], keys, SamplingParams(8))
        with pytest.raises(InputError, match=f"the context holds {remote.context}"):
            remote.sample([np.resize(prompt, remote.context)], keys, SamplingParams(8))
    assert [row.num_tokens for row in rows if row is not None] == [1, 1]


def test_completions_that_are_broken_off_are_lost(
    server: SGLangServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def break_off(row: Any) -> None:
        # Not those of the check after the push.
        server.breaks = [False, False, True, True]

    runs.start(small(server.url), tmp_path / "run", on_row=break_off)
    assert [row["lost_completions"] for row in runs.rows(tmp_path / "run")] == [0, 2]
    assert "the server broke a completion off (abort)" in caplog.text


def test_an_older_version_is_refused(tmp_path: Path) -> None:
    with SGLangServer(token_ids=False) as older, pytest.raises(RefusedError, match=r"0\.5\.17"):
        runs.start(small(older.url), tmp_path / "run")


def test_how_it_must_be_started_is_told(tmp_path: Path) -> None:
    with (
        SGLangServer(max_lora_rank=2) as other,
        pytest.raises(RefusedError, match=r"rank 4 is greater.*--lora-target-modules all"),
    ):
        runs.start(small(other.url), tmp_path / "run")


def test_log_probabilities_of_another_temperature_are_named(
    server: SGLangServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "logprobs_mode", "raw_logprobs")
    with pytest.raises(InputError, match="without SGLANG_RETURN_ORIGINAL_LOGPROB"):
        runs.start(small(server.url, training={"temperature": 0.5}), tmp_path / "run")
