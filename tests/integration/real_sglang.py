"""Runs whose completions come from a real SGLang, in float32 on the CPU: `make sglang` runs these.

Pytest collects a file of this name only where it is named, and so `make test` does not.
RETRAIN_SGLANG may name the Python of another environment with SGLang than the one that `make
sglang` installs. A seed has no say in what SGLang draws on a CPU, so no run is compared with
another one draw by draw.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tests.integration.real_vllm import (
    AGREE,
    CAMPAIGN,
    CONDITIONS,
    KEEPER,
    assert_agrees,
    command,
    curves,
    family,
    only,
    rows_of,
    sampled,
)
from tests.training import runs

from retrain.config.schema import BackendConfig, ModelConfig, RunConfig
from retrain.errors import InputError
from retrain.experiments.serving import launch_of
from retrain.models.lora import LoraSpec
from retrain.policies.inference.policy import mismatch, opened
from retrain.policies.inference.supervisor import claim_port
from retrain.policies.local.base import load_base
from retrain.policies.local.policy import LocalPolicy
from retrain.policies.lost import RefusedError
from retrain.types import Problem

HERE = Path(__file__).parent
INSTALLED = HERE.parents[1] / ".venv-sglang/bin/python"
PYTHON = Path(os.environ.get("RETRAIN_SGLANG", INSTALLED)).absolute()
START_S = 300.0
RANK = 32
OPTIONS = [
    *("--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1"),
    *("--enable-lora", "--max-lora-rank", str(RANK), "--lora-target-modules", "all"),
    # Its usual ones want a GPU, or all of the memory.
    *("--lora-backend", "torch_native", "--max-total-tokens", "32768"),
]
ENGINE = """
[inference]
engine = "openai"
url = "{url}"
"""


class Server:
    """A SGLang with the embedded model."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.port, self._claim = claim_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = folder / "sglang.log"
        self._environment = environment
        self._keeper: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        if self._claim is not None:
            self._claim.close()

    def start(self) -> None:
        begun = time.monotonic()
        launch = [str(PYTHON), str(HERE / "sglang_cpu/launch.py")]
        model = ["--model-path", launch_of(runs.config()).model, "--port", str(self.port)]
        with self._log.open("ab") as log:
            self._keeper = subprocess.Popen(
                [sys.executable, "-m", KEEPER, *launch, *model, *OPTIONS],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={
                    **os.environ,
                    "PYTHONPATH": str(HERE / "sglang_cpu"),
                    "SGLANG_USE_CPU_ENGINE": "1",
                    "HF_HUB_OFFLINE": "1",
                    **self._environment,
                },
            )
        while not self._answers():
            assert self._keeper.poll() is None, self._log.read_text()[-3000:]
            assert time.monotonic() - begun < START_S, self._log.read_text()[-3000:]
            time.sleep(0.2)
        print(f"SGLang answers after {time.monotonic() - begun:.0f} s")

    def _answers(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/v1/models").is_success
        return False

    def kill(self) -> None:
        assert self._keeper is not None
        for pid in family(self._keeper.pid)[1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._end()

    def _end(self) -> None:
        assert self._keeper is not None
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        self._keeper.wait(60)

    def loaded(self) -> list[str]:
        """Names of the adapters that are there."""
        models = httpx.get(f"{self.url}/v1/models").json()["data"]
        return [model["id"] for model in models if model["parent"]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="module")
def policy() -> LocalPolicy:
    """With an adapter that says something."""
    import torch

    base = load_base(ModelConfig(), BackendConfig(device="cpu"))
    policy = LocalPolicy(base, LoraSpec(4, 8.0), seed=1)
    noise = np.random.default_rng(2).normal(0, 0.1, policy.adapter.params.shape)
    policy.adapter.params.add_(torch.from_numpy(noise).float())
    return policy


def settings(server: Server, **tables: dict[str, Any]) -> RunConfig:
    given = {"evaluation": {"num_problems": 0}, **tables}
    return runs.config(inference={"engine": "openai", "url": server.url}, **given)


@pytest.mark.parametrize(
    "tables",
    [{}, {"training": {"temperature": 0.8}}, {"model": {"lora_rank": RANK}}],
    ids=["plain", "temperature", "rank"],
)
def test_a_run_agrees_and_leaves_nothing(
    server: Server, tmp_path: Path, tables: dict[str, Any]
) -> None:
    assert runs.start(settings(server, **tables), tmp_path / "run").status == "done"
    assert_agrees(tmp_path / "run")
    assert server.loaded() == []


def test_the_adapter_is_what_is_sampled_from(
    server: Server, policy: LocalPolicy, tmp_path: Path
) -> None:
    problems = [Problem(text, f"Compute {text}.", "") for text in ("7*8-4", "3+9")]
    prompts = [policy.codec.encode(problem) for problem in problems]
    with opened(policy, settings(server), "noise", tmp_path) as remote:
        batch = sampled(remote, prompts, 4)
    assert batch.num_tokens > 100
    assert mismatch(policy, batch) < AGREE
    bare = LocalPolicy(policy.base, LoraSpec(4, 8.0), seed=1)
    assert mismatch(bare, batch) > 0.1


def test_the_longest_prompts_are_taken(server: Server, policy: LocalPolicy, tmp_path: Path) -> None:
    """It keeps some of the model's context for itself."""
    prompt = policy.codec.encode(Problem("p", "Compute 3+9.", ""))
    with opened(policy, settings(server), "long", tmp_path) as remote:
        assert remote.context == policy.context - 6
        batch = sampled(remote, [np.resize(prompt, remote.context - 1)], 2)
    assert batch.mask.sum() == 2
    assert mismatch(policy, batch) < AGREE


def test_a_server_that_is_killed_and_started_anew(server: Server, tmp_path: Path) -> None:
    """It has forgotten the adapter, which is loaded again."""

    def restart(row: Mapping[str, Any]) -> None:
        if row["step"] == 1:
            server.kill()
            server.start()

    assert runs.start(settings(server), tmp_path / "run", on_row=restart).status == "done"
    assert_agrees(tmp_path / "run")
    assert server.loaded() == []


def test_a_rank_that_is_too_large_is_told(server: Server, tmp_path: Path) -> None:
    wide = settings(server, model={"lora_rank": 2 * RANK})
    with pytest.raises(RefusedError, match=r"incompatible.*--max-lora-rank") as raised:
        runs.start(wide, tmp_path / "run")
    print(raised.value)


def test_log_probabilities_of_another_temperature_are_named(tmp_path: Path) -> None:
    with Server(tmp_path, SGLANG_RETURN_ORIGINAL_LOGPROB="1") as other:
        cold = settings(other, training={"temperature": 0.7})
        with pytest.raises(InputError, match="without SGLANG_RETURN_ORIGINAL_LOGPROB"):
            runs.start(cold, tmp_path / "run")


def test_a_campaign_learns(server: Server, tmp_path: Path) -> None:
    code, output = command(tmp_path, CAMPAIGN + ENGINE.format(url=server.url))
    assert code == 0, output
    found = only(tmp_path)
    for condition in CONDITIONS:
        assert_agrees(found / f"runs/{condition}_s7")
    worst = max(row["sampler_mismatch"] for name in CONDITIONS for row in rows_of(found, name))
    print(f"correct, first and last steps, held-out: {curves(found)}; mismatch {worst:.2g}")
    assert curves(found)["last"] > curves(found)["first"] + 0.1
    assert curves(found)["after"] > curves(found)["before"] + 0.05
    assert server.loaded() == []
