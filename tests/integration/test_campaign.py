"""Real campaigns on the embedded model: the whole program, as a user starts it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chaos import differences

from retrain.files import RunRecord, read_json, read_jsonl
from retrain.training.resume import find_resume_point

MACHINE_KEYS = (
    *("step_time_s", "sample_time_s", "reward_time_s", "update_time_s", "evaluation_time_s"),
    *("tokens_per_second", "peak_memory_mb"),
)
"""What of a row may differ between two runs of the same config."""

TOML = """
[training]
batch_size = 2
group_size = 4
max_tokens = 24
lr = 1e-3
save_every = 2

[evaluation]
num_problems = 4

[campaign]
seeds = {seeds}
max_steps = {steps}
parallel = {parallel}
max_workers = 2
max_retries = {retries}

[[campaign.conditions]]
advantage_mode = "{first}"
transform_mode = "none"

[[campaign.conditions]]
advantage_mode = "maxrl"
transform_mode = "gtpo"
"""

PLUGIN = """
calls = 0

def breaks_at_step_3(rewards, params):
    global calls
    calls += 1
    if calls > 2 * 3:
        raise RuntimeError("the plugin broke")
    return rewards - rewards.mean()
"""


def environment() -> dict[str, str]:
    programs = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}


def write_config(folder: Path, **changes: Any) -> Path:
    values = {
        "seeds": [1],
        "steps": 4,
        "parallel": "false",
        "first": "grpo",
        "retries": 1,
        **changes,
    }
    path = folder / "campaign.toml"
    path.write_text(TOML.format(**values))
    return path


def retrain(folder: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "retrain", *arguments],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def only_campaign(folder: Path) -> Path:
    (campaign,) = (folder / "logs").glob("campaign_*")
    return campaign


def rows(run_dir: Path) -> list[dict[str, Any]]:
    """The metrics of a run without what the machine decides."""
    found = read_jsonl(run_dir / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in MACHINE_KEYS} for row in found]


def metrics(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {path.parent.name: rows(path.parent) for path in sorted(folder.rglob("metrics.jsonl"))}


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120.0
    while not condition():
        assert process.poll() is None, "the campaign ended too early"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def start(folder: Path, config: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "retrain", str(config)],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def status(run_dir: Path) -> dict[str, Any]:
    record: dict[str, Any] = read_json(run_dir / "run.json")
    return record


@pytest.fixture(scope="module")
def sequential(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a campaign that one worker trained."""
    folder = tmp_path_factory.mktemp("sequential")
    code, output = retrain(folder, str(write_config(folder)))
    assert code == 0, output
    assert "grpo+none" in output
    assert "report.html" in output
    assert "samples:  retrain samples logs/campaign_" in output
    return only_campaign(folder)


def test_a_campaign_trains_every_run(sequential: Path) -> None:
    manifest = read_json(sequential / "manifest.json")
    assert manifest["status"] == "done"
    assert [run["name"] for run in manifest["runs"]] == ["grpo+none_s1", "maxrl+gtpo_s1"]
    for run in manifest["runs"]:
        run_dir = sequential / "runs" / run["name"]
        assert run["status"] == status(run_dir)["status"] == "done"
        assert run["result"]["accuracy_after"] is not None
        assert [row["step"] for row in rows(run_dir)] == [0, 1, 2, 3]
        assert (run_dir / "final" / "adapter_model.safetensors").exists()
    assert (sequential / "report.md").exists()
    assert (sequential / "report.html").exists()


def test_conditions_under_one_seed_start_from_the_same_rollout(sequential: Path) -> None:
    first, second = (found[0] for found in metrics(sequential).values())
    assert first["tokens"] == second["tokens"]
    assert first["mean_reward"] == second["mean_reward"]


def test_parallel_measures_the_same(sequential: Path, tmp_path: Path) -> None:
    code, output = retrain(tmp_path, str(write_config(tmp_path, parallel="true")))
    assert code == 0, output
    assert metrics(only_campaign(tmp_path)) == metrics(sequential)


def test_run_all_measures_the_same(sequential: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [str(sequential / "run_all.sh"), "again"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert metrics(tmp_path / "again") == metrics(sequential)


def test_a_single_run_measures_the_same_and_keeps_its_folder(
    sequential: Path, tmp_path: Path
) -> None:
    config = str(sequential / "runs" / "grpo+none_s1" / "config.toml")
    code, output = retrain(tmp_path, config, "--run-dir", "mine")
    assert code == 0, output
    assert "held-out accuracy: " in output
    assert rows(tmp_path / "mine") == rows(sequential / "runs" / "grpo+none_s1")
    assert status(tmp_path / "mine")["status"] == "done"
    before = metrics(tmp_path)
    code, output = retrain(tmp_path, config, "--run-dir", "mine")
    assert code == 2
    assert "mine already holds a run; to go on: retrain resume mine" in output
    assert metrics(tmp_path) == before


def test_a_run_whose_plugin_breaks_stops_no_other(tmp_path: Path) -> None:
    (tmp_path / "my_modes.py").write_text(PLUGIN)
    config = write_config(tmp_path, first="my_modes.breaks_at_step_3")
    code, output = retrain(tmp_path, str(config))
    assert code == 1, output
    runs = read_json(only_campaign(tmp_path) / "manifest.json")["runs"]
    assert [run["status"] for run in runs] == ["failed", "done"]
    assert "1 of 2 runs gave no result" in output
    assert "the plugin broke" in output
    failed = only_campaign(tmp_path) / "runs" / runs[0]["name"]
    assert len(rows(failed)) == 3
    assert status(failed)["status"] == "failed"
    assert "Traceback" in (failed / "run.log").read_text()
    assert str(failed.relative_to(tmp_path) / "run.log") in output


VICTIM = "grpo+none_s1"
LONG: dict[str, Any] = {"parallel": "true", "steps": 40}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a campaign none of whose workers was killed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    code, output = retrain(folder, str(write_config(folder, **LONG)))
    assert code == 0, output
    return only_campaign(folder)


def with_a_killed_worker(folder: Path, retries: int) -> tuple[int, str, Path]:
    """Exit code, output and folder of a campaign whose victim was killed after a checkpoint."""
    process = start(folder, write_config(folder, **LONG, retries=retries))

    def has_checkpoint() -> bool:
        found = list(folder.glob(f"logs/*/runs/{VICTIM}"))
        return bool(found) and find_resume_point(found[0]).step > 0

    wait_until(has_checkpoint, process)
    campaign = only_campaign(folder)
    os.kill(status(campaign / "runs" / VICTIM)["pid"], signal.SIGKILL)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output, campaign


def test_a_killed_worker_costs_its_run_a_few_steps(tmp_path: Path, undisturbed: Path) -> None:
    code, output, campaign = with_a_killed_worker(tmp_path, retries=1)
    assert code == 0, output
    assert output.count("will be tried again: its worker was killed by SIGKILL") == 1
    statuses = {run["name"]: run["status"] for run in read_json(campaign / "manifest.json")["runs"]}
    assert set(statuses.values()) == {"done"}
    record = status(campaign / "runs" / VICTIM)
    assert record["attempts"] == 2
    assert record["resumed_from"] >= 2
    assert record["resumed_from"] % 2 == 0
    assert (record["message"], record["cause"]) == ("", None)
    # Only these name the folder that they lie in.
    placed = ("config.toml differs", "campaign.toml differs", "manifest.json differs")
    found = differences(undisturbed, campaign)
    assert [text for text in found if not text.endswith(placed)] == []
    assert metrics(campaign) == metrics(undisturbed)


def test_a_killed_worker_without_retries_costs_its_run_only(
    tmp_path: Path, undisturbed: Path
) -> None:
    code, output, campaign = with_a_killed_worker(tmp_path, retries=0)
    assert code == 1, output
    statuses = {run["name"]: run["status"] for run in read_json(campaign / "manifest.json")["runs"]}
    assert statuses.pop(VICTIM) == "failed"
    assert set(statuses.values()) == {"done"}
    record = RunRecord.read(campaign / "runs" / VICTIM).data
    assert "SIGKILL" in record["message"]
    assert (record["cause"], record["attempts"]) == ("killed", 1)
    assert "killed by SIGKILL" in output
    assert "will be tried again" not in output
    assert f"next:     retrain resume {campaign.relative_to(tmp_path)}" in output
    whole, kept = metrics(undisturbed), metrics(campaign)
    rows_left = kept.pop(VICTIM)
    assert rows_left == whole.pop(VICTIM)[: len(rows_left)]
    assert kept == whole


def test_ctrl_c_ends_workers_and_marks_runs(tmp_path: Path) -> None:
    process = start(tmp_path, write_config(tmp_path, parallel="true", steps=5000))
    wait_until(lambda: len(list(tmp_path.glob("logs/*/runs/*/metrics.jsonl"))) == 2, process)
    campaign = only_campaign(tmp_path)
    run_dirs = list((campaign / "runs").iterdir())
    workers = [status(run_dir)["pid"] for run_dir in run_dirs]
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    for run_dir in run_dirs:
        assert status(run_dir)["status"] == "stopped"
        found = rows(run_dir)
        assert [row["step"] for row in found] == list(range(len(found)))
    assert read_json(campaign / "manifest.json")["status"] == "stopped"
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)
