"""Runs and campaigns whose completions come from a server, as a user starts them."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from retrain.causes import SERVICE
from retrain.config.explain import explain
from retrain.config.load import config_from_mapping
from retrain.config.schema import RunConfig
from retrain.errors import InputError
from retrain.files import RunRecord, read_jsonl
from retrain.policies.inference.server import Patience
from retrain.policies.lost import RefusedError, ServiceLostError
from tests.inference.server import InferenceServer, Remote
from tests.training import runs

QUICK = Patience(attempts=3, first_pause_s=0.01, longest_pause_s=0.1)
SMALL = {"max_steps": 2, "batch_size": 2, "group_size": 4, "max_tokens": 24}
NO_EVALUATION = {"num_problems": 0}

TOML = """
[model]
lora_rank = 4

[inference]
engine = "openai"
url = "{url}"
away_timeout = 0.3

[training]
batch_size = 3
group_size = 4
max_tokens = 40
lr = 2e-3

[evaluation]
num_problems = 4

[logging]
log_dir = "logs"

[campaign]
seeds = [7, 8]
max_steps = 3
max_retries = 0

[[campaign.conditions]]
advantage_mode = "grpo"
transform_mode = "none"
"""

SAME = ("mean_reward", "tokens", "informative_groups", "num_updates", "held_out_accuracy")
CLOSE = ("loss", "grad_norm", "ratio_mean", "exec_uncertainty_mean")


@pytest.fixture(scope="module")
def running() -> Iterator[InferenceServer]:
    with InferenceServer(logprobs_mode="processed_logprobs") as server:
        yield server


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrain.policies.inference.server.Patience", lambda: QUICK)
    monkeypatch.delenv("VLLM_API_KEY", raising=False)


@pytest.fixture
def server(running: InferenceServer) -> Iterator[InferenceServer]:
    running.reset()
    yield running
    running.reset()
    running.back()


def config(url: str, **tables: dict[str, Any]) -> RunConfig:
    given = dict(tables)
    given["inference"] = {"engine": "openai", "url": url, **given.get("inference", {})}
    return runs.config(**given)


def small(url: str, **tables: dict[str, Any]) -> RunConfig:
    given = {"evaluation": NO_EVALUATION, **tables}
    given["training"] = {**SMALL, **given.get("training", {})}
    return config(url, **given)


def assert_alike(found: Path, expected: Path) -> None:
    """The same completions, and numbers up to float32's last bits."""
    one, two = runs.rows(found), runs.rows(expected)
    assert len(one) == len(two)
    for mine, other in zip(one, two, strict=True):
        assert {key: mine.get(key) for key in SAME} == {key: other.get(key) for key in SAME}
        for key in CLOSE:
            near = None if other[key] is None else pytest.approx(other[key], rel=1e-3, abs=1e-6)
            assert mine[key] == near, key


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run without a server."""
    folder = tmp_path_factory.mktemp("local") / "run"
    runs.start(runs.config(), folder)
    return folder


def test_a_run_with_a_server_is_the_local_run(
    server: InferenceServer, local: Path, tmp_path: Path
) -> None:
    runs.start(config(server.url), tmp_path / "remote")
    assert_alike(tmp_path / "remote", local)
    found = runs.rows(tmp_path / "remote")
    assert len(found) == 4
    for row in found:
        assert row["sampler_mismatch"] < 1e-4
        assert row["sampler_ess"] == pytest.approx(1, abs=1e-4)
    assert "sampler_ess" not in runs.rows(local)[0]
    # Nothing is left behind: one adapter at a time, the last one unloaded, their folder gone.
    loads = [call.asked["lora_name"] for call in server.ledger.calls if call.kind.startswith("lo")]
    assert len(loads) == len(set(loads)) == 5
    assert loads[-1].endswith("-000004")
    assert server.adapters == {}
    assert not (tmp_path / "remote/adapters").exists()
    assert (tmp_path / "remote/final/adapter_model.safetensors").is_file()


@pytest.mark.parametrize("kind", ["ppo", "gspo", "cispo"])
def test_other_losses_get_their_old_probabilities_from_the_trainer(
    server: InferenceServer, tmp_path: Path, kind: str
) -> None:
    """Noise in what the server tells shows in the effective sample size and not in the ratio."""
    server.faults.add("noise", amount=0.3, times=None)
    settings = small(server.url, loss={"type": kind}, inference={"max_mismatch": 1.0})
    runs.start(settings, tmp_path / "run")
    found = runs.rows(tmp_path / "run")
    assert len(found) == 2
    assert all(0.1 < row["sampler_mismatch"] < 0.5 for row in found)
    learnt = [row for row in found if row["num_updates"]]
    assert learnt
    for row in learnt:
        assert 0.7 < row["sampler_ess"] < 0.999
        assert row["ratio_mean"] == pytest.approx(1, abs=1e-4)


def test_a_campaign_goes_over_to_where_its_server_is(
    server: InferenceServer, tmp_path: Path
) -> None:
    def retrain(*arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "retrain", *arguments],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        return done.returncode, done.stdout + done.stderr

    (tmp_path / "two.toml").write_text(TOML.format(url="http://127.0.0.1:9"))
    code, output = retrain("two.toml")
    assert code == 1, output
    assert "has not answered for" in output
    (campaign,) = (tmp_path / "logs").iterdir()
    change = f"inference.url={server.url}"
    code, output = retrain("resume", str(campaign.relative_to(tmp_path)), "--set", change)
    assert code == 0, output
    assert f'was "http://127.0.0.1:9", is now "{server.url}" (in 2 runs)' in output
    for seed in (7, 8):
        here = runs.config(training={"max_steps": 3, "seed": seed}, evaluation={"num_problems": 4})
        runs.start(here, tmp_path / str(seed))
        assert_alike(campaign / f"runs/grpo+none_s{seed}", tmp_path / str(seed))


def test_a_server_that_is_killed_and_started_anew(local: Path, tmp_path: Path) -> None:
    """It has forgotten the adapter, which is loaded again."""
    with Remote(tmp_path / "state", "--logprobs-mode", "processed_logprobs") as remote:

        def restart(row: Any) -> None:
            if row["step"] == 1:
                remote.kill()
                remote.start()

        runs.start(config(remote.url), tmp_path / "run", on_row=restart)
    assert_alike(tmp_path / "run", local)


def test_a_server_that_forgets_in_the_middle_of_a_rollout(
    server: InferenceServer, tmp_path: Path
) -> None:
    server.faults.add("status", route="completions", status=404, skip=9, times=1)
    runs.start(small(server.url), tmp_path / "run")
    assert [row["lost_completions"] for row in runs.rows(tmp_path / "run")] == [0, 0]


def test_a_server_that_stays_away_stops_the_run_until_it_is_resumed(
    server: InferenceServer, local: Path, tmp_path: Path
) -> None:
    settings = config(server.url, inference={"away_timeout": 0.3})

    def leave(row: Any) -> None:
        if row["step"] == 2:
            server.away()

    with pytest.raises(ServiceLostError, match="has not answered for"):
        runs.start(settings, tmp_path / "run", on_row=leave)
    record = RunRecord.read(tmp_path / "run")
    assert (record.status, record.data["cause"], record.data["step"]) == ("failed", SERVICE, 3)
    server.back()
    assert runs.start(settings, tmp_path / "run").status == "done"
    assert_alike(tmp_path / "run", local)


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "status", "status": 429, "headers": {"retry-after": "0"}, "times": 5},
        {"kind": "status", "status": 503, "times": 5},
        {"kind": "status", "status": 500, "times": 2},
        {"kind": "drop", "times": 2},
        {"kind": "drop", "on": "retrieve", "times": 2},
    ],
    ids=lambda fault: f"{fault['kind']}{fault.get('status', '')}{fault.get('on', '')}",
)
def test_passing_faults_change_nothing(
    server: InferenceServer, tmp_path: Path, fault: dict[str, Any]
) -> None:
    """The last of them hits the first rollout."""
    planned = server.faults.add(**{"skip": 2, **fault})
    runs.start(small(server.url, training={"max_steps": 1}), tmp_path / "run")
    assert planned.hits == fault["times"]
    here = {**SMALL, "max_steps": 1}
    runs.start(runs.config(training=here, evaluation=NO_EVALUATION), tmp_path / "local")
    assert_alike(tmp_path / "run", tmp_path / "local")


def test_completions_that_fail_for_good_are_counted(
    server: InferenceServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After the two probes, two requests fail, and there is no second attempt."""
    once = replace(QUICK, attempts=1)
    monkeypatch.setattr("retrain.policies.inference.server.Patience", lambda: once)
    server.faults.add("status", route="completions", skip=2, times=2)
    runs.start(small(server.url, training={"max_steps": 1}), tmp_path / "run")
    (row,) = read_jsonl(tmp_path / "run/metrics.jsonl")
    assert (row["lost_completions"], row["lost_groups"]) == (2, 0)
    assert "2 of 8 completions were lost" in caplog.text


def test_a_server_that_answers_too_late(server: InferenceServer, tmp_path: Path) -> None:
    server.faults.add("slow", route="completions", seconds=1.0, times=None)
    settings = small(server.url, inference={"timeout": 0.1})
    with pytest.raises(ServiceLostError, match="all 2 completions were lost"):
        runs.start(settings, tmp_path / "run")


def test_a_wrong_temperature_is_found(server: InferenceServer, tmp_path: Path) -> None:
    server.faults.add("temperature", amount=0.5, times=None)
    with pytest.raises(InputError, match=r"max_mismatch.*likely causes: another temperature"):
        runs.start(small(server.url), tmp_path / "run")
    assert not (tmp_path / "run/metrics.jsonl").exists()


@pytest.mark.parametrize("temperature", [0.6, 0.85])
def test_log_probabilities_that_ignore_the_temperature_are_named(
    tmp_path: Path, temperature: float
) -> None:
    """Also where they differ by less than `max_mismatch`."""
    settings = {"temperature": temperature}
    with (
        InferenceServer(logprobs_mode="raw_logprobs") as raw,
        pytest.raises(InputError, match="--logprobs-mode processed_logprobs"),
    ):
        runs.start(small(raw.url, training=settings), tmp_path / "run")


def test_a_stale_adapter_is_found(
    server: InferenceServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In the middle of a run that is a warning, once, and the metric; a run does not start so."""
    fast = {"max_steps": 4, "lr": 0.03, "save_every": 2}
    server.faults.add("stale", skip=1, times=None)
    runs.start(small(server.url, training=fast), tmp_path / "run")
    found = [row["sampler_mismatch"] for row in runs.rows(tmp_path / "run")]
    assert found[0] < 1e-4 < 0.03 < max(found[1:])
    assert caplog.text.count("a stale one") == 1
    caplog.clear()
    with pytest.raises(InputError, match="stale"):
        runs.start(small(server.url, training={**fast, "max_steps": 5}), tmp_path / "run")


def test_probabilities_of_another_model_are_found(server: InferenceServer, tmp_path: Path) -> None:
    server.faults.add("noise", amount=0.2, times=None)
    with pytest.raises(InputError, match="differ by"):
        runs.start(small(server.url), tmp_path / "run")


def test_what_a_killed_attempt_left_is_taken_away(server: InferenceServer, tmp_path: Path) -> None:
    settings = small(server.url, training={"max_steps": 1})
    runs.start(settings, tmp_path / "run")
    (name,) = {call.asked["lora_name"] for call in server.ledger.calls if call.kind[:2] == "lo"}
    left = tmp_path / "run/adapters" / name
    shutil.copytree(tmp_path / "run/final", left)
    load = {"lora_name": name, "lora_path": str(left)}
    httpx.post(f"{server.url}/v1/load_lora_adapter", json=load).raise_for_status()
    longer = small(server.url, training={"max_steps": 2})
    runs.start(longer, tmp_path / "run")
    assert server.adapters == {}
    assert not left.exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"runtime_lora": False}, "VLLM_ALLOW_RUNTIME_LORA_UPDATING"),
        ({"max_lora_rank": 2}, "--max-lora-rank"),
    ],
)
def test_a_server_that_does_not_load_adapters(
    tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    with InferenceServer(**options) as other, pytest.raises(RefusedError, match=told):
        runs.start(small(other.url), tmp_path / "run")


def test_token_ids_of_older_servers(tmp_path: Path) -> None:
    with InferenceServer(token_ids=False) as older:
        assert runs.start(small(older.url), tmp_path / "run").status == "done"


def test_the_key_comes_from_its_variable_and_is_told_to_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with InferenceServer(api_key="the-secret") as closed:
        with pytest.raises(InputError, match="set VLLM_API_KEY to the key"):
            runs.start(small(closed.url), tmp_path / "run")
        monkeypatch.setenv("MY_KEY", "the-secret")
        settings = small(closed.url, inference={"api_key_env": "MY_KEY"})
        assert runs.start(settings, tmp_path / "run").status == "done"
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"the-secret" not in path.read_bytes()
    assert "the-secret" not in caplog.text


def test_a_run_goes_over_to_another_address(server: InferenceServer, tmp_path: Path) -> None:
    runs.start(small(server.url, training={"save_every": 1}), tmp_path / "run")
    logging.getLogger("retrain").info("moved")
    moved = small(
        server.url.replace("127.0.0.1", "localhost") + "/v1/",
        inference={"adapter_dir": str(tmp_path / "shared")},
        training={"save_every": 1, "max_steps": 3},
    )
    assert runs.start(moved, tmp_path / "run").steps == 3


def test_explain_names_the_server_and_does_not_ask_it() -> None:
    nobody = "http://127.0.0.1:9"
    loaded = config_from_mapping(
        {"training": {"max_tokens": 16}, "inference": {"engine": "openai", "url": nobody}}
    )
    backend = explain(loaded)["backend"]
    assert (backend["sampled_by"], backend["server"]) == ("openai", f"the server at {nobody}")
    assert (backend["token_entropies"], backend["kl_to_base"]) == (False, True)
