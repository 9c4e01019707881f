"""Runs and campaigns at the service, against the stand-in: as a user starts them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from retrain.causes import SERVICE
from retrain.config.dump import read_run_config
from retrain.config.load import config_from_mapping
from retrain.config.schema import RunConfig, SqueezeConfig
from retrain.errors import InputError
from retrain.experiments.single import run_single
from retrain.experiments.squeezing import squeeze_run
from retrain.files import RunRecord, read_json, read_jsonl
from retrain.policies.tinker.paths import SavedState
from retrain.policies.tinker.retry import Patience, ServiceLostError
from retrain.training.run import RunResult, train_run
from tests.tinker.standin import Remote
from tests.training import runs

QUICK = Patience(attempts=2, first_pause_s=0.01, look_s=1.0, away_s=6.0, answer_s=60.0)

TOML = """
[model]
lora_rank = 4
base_url = "{url}"

[backend]
backend = "tinker"
max_concurrent = 2

[training]
batch_size = 3
group_size = 4
max_tokens = 40
lr = 2e-3
save_every = 2

[evaluation]
num_problems = 4

[logging]
log_dir = "logs"

[campaign]
seeds = [7]
max_steps = 3
parallel = true
max_workers = 2

[[campaign.conditions]]
advantage_mode = "grpo"
transform_mode = "none"

[[campaign.conditions]]
advantage_mode = "maxrl"
transform_mode = "none"
"""

NUMBERS = ("mean_reward", "tokens", "informative_groups", "num_updates", "held_out_accuracy")
CLOSE = ("loss", "grad_norm", "ratio_mean", "exec_uncertainty_mean")


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    with Remote(tmp_path_factory.mktemp("standin"), "--poll-seconds", "2", "--exact") as running:
        yield running


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, remote: Remote) -> Iterator[None]:
    monkeypatch.setattr("retrain.policies.tinker.service.Patience", lambda: QUICK)
    yield
    remote.clear_faults()


def config(remote: Remote, **tables: dict[str, Any]) -> RunConfig:
    given = {"backend": {"backend": "tinker"}, **tables}
    given["model"] = {"base_url": remote.url, **given.get("model", {})}
    return runs.config(**given)


def assert_alike(found: Path, expected: Path) -> None:
    """Two runs' rows: the same completions, and numbers up to float32's last bits."""
    one, two = runs.rows(found), runs.rows(expected)
    assert len(one) == len(two)
    for mine, other in zip(one, two, strict=True):
        assert {key: mine.get(key) for key in NUMBERS} == {key: other.get(key) for key in NUMBERS}
        for key in CLOSE:
            assert mine[key] == pytest.approx(other[key], rel=1e-3, abs=1e-6), key


@pytest.fixture(scope="module")
def undisturbed(remote: Remote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINKER_API_KEY", "tml-x")
        runs.start(config(remote), folder)
    return folder


def test_a_run_at_the_service_is_the_local_run(undisturbed: Path, tmp_path: Path) -> None:
    runs.start(runs.config(), tmp_path / "local")
    assert_alike(undisturbed, tmp_path / "local")
    record = RunRecord.read(undisturbed)
    assert (record.status, record.data["device"]) == ("done", "tinker")
    assert (undisturbed / "final/adapter_model.safetensors").is_file()
    saved = [path.name for path in sorted((undisturbed / "checkpoints").iterdir())]
    assert saved == ["step_000002", "step_000004"]
    assert SavedState.read(undisturbed / "checkpoints/step_000002").updates == 2


def test_a_campaign_shares_the_service_and_tells_nobody_its_key(
    remote: Remote, tmp_path: Path, key: str
) -> None:
    (tmp_path / "both.toml").write_text(TOML.format(url=remote.url))
    done = subprocess.run(
        [sys.executable, "-m", "retrain", "both.toml"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (campaign,) = (tmp_path / "logs").iterdir()
    assert (campaign / "tinker_throttle").is_dir()
    calls = remote.calls
    own = [call["session"] for call in calls if call["kind"] == "create_model"][-2:]
    spans = [
        (call["started"], call["ended"])
        for call in calls
        if call["ended"] and call["session"] in own
    ]
    assert most_at_once(spans) == 2
    for mode in ("grpo", "maxrl"):
        run = campaign / "runs" / f"{mode}+none_s7"
        assert read_run_config(run / "config.toml").backend.throttle_dir == ""
        here = runs.config(
            training={"max_steps": 3},
            evaluation={"num_problems": 4},
            algorithm={"advantage_mode": mode},
        )
        runs.start(here, tmp_path / mode)
        assert_alike(run, tmp_path / mode)
    for path in campaign.rglob("*"):
        assert not path.is_file() or key.encode() not in path.read_bytes()
    assert key not in done.stdout + done.stderr


def most_at_once(spans: list[tuple[float, float]]) -> int:
    changes = sorted([(end, -1) for _, end in spans] + [(start, 1) for start, _ in spans])
    now = most = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


@pytest.mark.parametrize(("route", "skip"), [("forward_backward", 2), ("optim_step", 3)])
def test_a_run_whose_update_was_lost_goes_on_from_its_checkpoint(
    remote: Remote, undisturbed: Path, tmp_path: Path, route: str, skip: int
) -> None:
    remote.add_fault("lost", route=route, skip=skip, carried_out=True)
    with pytest.raises(ServiceLostError):
        runs.start(config(remote), tmp_path / "run")
    record = RunRecord.read(tmp_path / "run")
    assert (record.status, record.data["cause"], record.data["step"]) == ("failed", SERVICE, skip)
    again = runs.start(config(remote), tmp_path / "run")
    assert again.status == "done"
    assert RunRecord.read(tmp_path / "run").data["resumed_from"] == 2
    assert runs.rows(tmp_path / "run") == runs.rows(undisturbed)


def test_a_service_that_is_killed_and_started_anew(
    remote: Remote, undisturbed: Path, tmp_path: Path
) -> None:
    def kill(row: Any) -> None:
        if row["step"] == 2:
            remote.kill()

    with pytest.raises(ServiceLostError):
        runs.start(config(remote), tmp_path / "run", on_row=kill)
    assert RunRecord.read(tmp_path / "run").data["cause"] == SERVICE
    with pytest.raises(ServiceLostError):
        # Nobody is there yet.
        runs.start(config(remote), tmp_path / "run")
    remote.start()
    assert runs.start(config(remote), tmp_path / "run").status == "done"
    assert runs.rows(tmp_path / "run") == runs.rows(undisturbed)


def test_a_run_goes_over_to_another_address(remote: Remote, tmp_path: Path) -> None:
    """Where the service is, and how it is throttled, is not what is computed."""
    short = {"training": {"max_steps": 2}}
    runs.start(config(remote, **short), tmp_path / "run")
    moved = config(
        remote,
        model={"base_url": remote.url.replace("127.0.0.1", "localhost")},
        backend={"backend": "tinker", "max_concurrent": 1},
        training={"max_steps": 3},
    )
    assert runs.start(moved, tmp_path / "run").steps == 3


def test_lost_completions_are_counted(remote: Remote, tmp_path: Path) -> None:
    without = {"evaluation": {"num_problems": 0}, "training": {"max_steps": 1, "group_size": 2}}
    place = {"backend": "tinker", "max_concurrent": 1, "throttle_dir": str(tmp_path / "slots")}
    # One at a time: so the first group is the one that loses all its completions.
    remote.add_fault("failed", route="asample", times=3 * QUICK.attempts)
    result: RunResult = train_run(
        config(remote, backend=place, **without), tmp_path / "run", name="c_s7", condition="c"
    )
    assert result.status == "done"
    (row,) = read_jsonl(tmp_path / "run/metrics.jsonl")
    assert (row["lost_completions"], row["lost_groups"]) == (3, 1)
    assert row["masked_completions"] == 0
    assert len(threading.enumerate()) < 50


def test_squeeze_takes_weights_from_the_service(
    remote: Remote, undisturbed: Path, tmp_path: Path
) -> None:
    path = SavedState.read(undisturbed / "final").path
    command = [sys.executable, "-m", "retrain", "squeeze", path, "--compress-to", "2"]
    done = subprocess.run(
        [*command, "--output-path", "cut"],
        cwd=tmp_path,
        env={**os.environ, "TINKER_BASE_URL": remote.url},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "logs").iterdir()
    assert read_json(folder / "squeeze.json")["source_rank"] == 4
    assert read_json(tmp_path / "cut/adapter_config.json")["r"] == 2
    one = (folder / "downloaded/adapter_model.safetensors").read_bytes()
    assert one == (undisturbed / "final/adapter_model.safetensors").read_bytes()


def test_a_campaigns_squeeze_fetches_what_the_run_could_not(
    remote: Remote, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    for file in (run / "final").glob("adapter_*"):
        file.unlink()
    console = Console(quiet=True)
    squeeze_run(SqueezeConfig(), run, tmp_path / "squeeze", console)
    squeeze_run(SqueezeConfig(), undisturbed, tmp_path / "other", console)
    fetched, known = (read_json(tmp_path / name / "squeeze.json") for name in ("squeeze", "other"))
    assert fetched["recommended_rank"] == known["recommended_rank"]
    assert fetched["source_rank"] == 4
    assert (tmp_path / "squeeze/adapter/adapter_config.json").exists()


def test_nothing_begins_without_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TINKER_API_KEY")
    loaded = config_from_mapping(
        {
            "backend": {"backend": "tinker"},
            "training": {"max_tokens": 16},
            "logging": {"log_dir": str(tmp_path / "logs")},
        }
    )
    with pytest.raises(InputError, match="TINKER_API_KEY"):
        run_single(loaded)
    assert not (tmp_path / "logs").exists()
