"""Campaigns whose workers are real processes that only pretend to train."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from campaigns import fake_executor, load, plain_console, tables, vanishes

import retrain
from retrain import __version__
from retrain.analysis.records import read_campaign
from retrain.config.load import load_config
from retrain.config.overrides import Override
from retrain.errors import InputError
from retrain.experiments.campaign import run_campaign
from retrain.experiments.conclusion import CampaignResult
from retrain.experiments.executors.executor import Event, Failed, Finished, Job, Started
from retrain.experiments.manifest import Manifest
from retrain.files import RunRecord, atomic_write_toml, read_json, read_jsonl
from retrain.processes import ProcessId

HERE = Path(__file__).parent


def run(
    logs: Path, conditions: Mapping[str, Mapping[str, Any]], *, workers: int = 1, **options: Any
) -> tuple[CampaignResult, str]:
    console, output = plain_console()
    loaded = load(logs, conditions, **options)
    result = run_campaign(loaded, console=console, executor=fake_executor(workers))
    return result, output.getvalue()


def test_a_campaign_leaves_everything_in_its_folder(tmp_path: Path) -> None:
    result, output = run(tmp_path / "logs", {"a": {}, "b": {}}, seeds=(5, 3))
    folder = result.campaign_dir
    assert (result.exit_code, result.status, result.failed) == (0, "done", ())
    assert folder.parent == tmp_path / "logs"
    assert folder.name.startswith("campaign_2")
    assert {path.name for path in folder.iterdir()} >= {
        "campaign.toml",
        "manifest.json",
        "run_all.sh",
        "runs",
    }
    assert not list(folder.rglob("*.tmp"))
    assert not list(folder.rglob(".lock*"))
    assert not (folder / "workers.log").exists()
    assert os.access(folder / "run_all.sh", os.X_OK)

    manifest = read_json(folder / "manifest.json")
    runs = manifest.pop("runs")
    assert manifest.pop("timestamp")
    condition = {"advantage_mode": "grpo", "transform_mode": "none"}
    conditions = manifest.pop("conditions")
    assert [entry["label"] for entry in conditions] == ["a", "b"]
    assert all(entry.items() >= condition.items() for entry in conditions)
    assert manifest == {
        "schema": 1,
        "campaign_file": "campaign.toml",
        "retrain_version": __version__,
        "status": "done",
        "seeds": [5, 3],
        "max_steps": 4,
        "parallel": False,
        "max_workers": 0,
        "stagger_seconds": 0.0,
        "devices": "",
        "max_retries": 1,
        "worker_timeout": 1800.0,
        "max_runs": 0,
        "workers": 1,
        "overrides": {},
        "report": {
            **{"metric": "accuracy", "summary": "final", "window": 1, "baseline": "a"},
            **{"contrasts": [], "margin": 0.02, "alpha": 0.05, "floor": 0.0},
        },
    }
    assert [entry["name"] for entry in runs] == ["a_s5", "b_s5", "a_s3", "b_s3"]
    assert runs[3] == {
        "name": "b_s3",
        "condition": "b",
        "seed": 3,
        "config": "runs/b_s3/config.toml",
        "command": [
            *("retrain", "run", "runs/b_s3/config.toml", "--run-dir", "rerun/b_s3"),
            *("--name", "b_s3", "--condition", "b"),
        ],
        "status": "done",
        "message": "",
        "cause": None,
        "result": {
            "steps": 4,
            "accuracy_before": 0.25,
            "accuracy_after": 0.75,
            "greedy_before": None,
            "greedy_after": None,
            "mean_reward": 0.5,
            "wall_s": 1.0,
        },
    }
    assert f"campaign: {folder}" in output
    assert f"report:   {folder / 'report.html'}" in output
    assert "next:     retrain init campaign" in output


def test_the_file_and_its_overrides_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    atomic_write_toml(path, tables(tmp_path / "logs", {"a": {}}, seeds=(1,)))
    path.write_text("# why I did this\n" + path.read_text())
    loaded = load_config(path, [Override("training", "lr", 0.25, "--lr")], seeds=[7])
    console, _ = plain_console()
    result = run_campaign(loaded, console=console, executor=fake_executor())
    assert (result.campaign_dir / "campaign.toml").read_text() == path.read_text()
    manifest = Manifest.read(result.campaign_dir)
    assert manifest.data["overrides"] == {"training.lr": 0.25, "campaign.seeds": [7]}
    assert [outcome.name for outcome in result.runs] == ["a_s7"]


@pytest.mark.parametrize("retries", [0, 2])
def test_a_failed_run_is_named_with_cause_and_log(tmp_path: Path, retries: int) -> None:
    conditions: dict[str, dict[str, Any]] = {
        "a": {"trouble": "raise", "trouble_seed": 1},
        "b": {"trouble": "kill"},
        "c": {},
    }
    result, output = run(tmp_path, conditions, workers=2, max_retries=retries)
    assert (result.exit_code, result.status) == (1, "failed")
    statuses = {outcome.name: outcome.status for outcome in result.runs}
    assert statuses == {
        "a_s1": "failed",
        "b_s1": "failed",
        "c_s1": "done",
        "a_s2": "done",
        "b_s2": "failed",
        "c_s2": "done",
    }
    entries = {entry["name"]: entry for entry in Manifest.read(result.campaign_dir).data["runs"]}
    causes = {"a_s1": "error", "b_s1": "killed", "b_s2": "killed"}
    for outcome in result.runs:
        record = RunRecord.read(outcome.run_dir)
        assert record.status == outcome.status
        assert record.data["cause"] == entries[outcome.name]["cause"] == causes.get(outcome.name)
        # An error of its own would only come again.
        tried = 1 + retries if outcome.name in {"b_s1", "b_s2"} else 1
        assert record.data["attempts"] == tried
        # The reason is told once, and not for every run that it befalls.
        reason = "its worker was killed by SIGKILL" if outcome.name == "b_s1" else "as b_s1"
        assert output.count(f"{outcome.name} will be tried again: {reason}") == tried - 1
    killed = next(outcome for outcome in result.runs if outcome.name == "b_s1")
    assert "killed by SIGKILL" in killed.message
    assert "killed by SIGKILL" in RunRecord.read(killed.run_dir).data["message"]
    assert "3 of 6 runs gave no result:" in output
    assert "  a_s1 failed: ValueError: the plugin broke [here]" in output
    assert "  b_s1, b_s2 failed: its worker was killed by SIGKILL" in output
    assert f"    log: {result.campaign_dir}/runs/a_s1/run.log" in output
    # The killed ones may simply go on; that comes before the one that has to be looked at.
    assert f"next:     retrain resume {result.campaign_dir}" in output


def test_when_only_its_own_errors_failed_the_log_is_next(tmp_path: Path) -> None:
    result, output = run(tmp_path, {"a": {"trouble": "raise"}, "b": {}}, seeds=(1,))
    assert (result.exit_code, result.status) == (1, "failed")
    assert f"next:     less {result.campaign_dir}/runs/a_s1/run.log" in output


def test_a_killed_run_is_tried_again_at_once(tmp_path: Path) -> None:
    undisturbed, _ = run(tmp_path / "calm", {"a": {}, "b": {}}, seeds=(1,))
    conditions = {"a": {"trouble": "kill", "trouble_attempts": 1}, "b": {}}
    result, output = run(tmp_path / "logs", conditions, seeds=(1,))
    assert (result.exit_code, result.status, result.failed) == (0, "done", ())
    assert "a_s1 will be tried again: its worker was killed by SIGKILL" in output
    record = RunRecord.read(result.campaign_dir / "runs" / "a_s1").data
    assert (record["status"], record["attempts"], record["resumed_from"]) == ("done", 2, 2)
    assert (record["message"], record["cause"]) == ("", None)
    for before, now in zip(undisturbed.runs, result.runs, strict=True):
        metrics = [(outcome.run_dir / "metrics.jsonl").read_bytes() for outcome in (before, now)]
        assert metrics[0] == metrics[1]
        assert before.result == now.result


class Scripted:
    """An executor that says what it is told to; after each batch of events `look` is called."""

    slots = 1

    def __init__(self, script: list[list[Event]], look: Callable[[], None]) -> None:
        self.script = script
        self.submitted: list[str] = []
        self._look = look

    def submit(self, jobs: Sequence[Job]) -> None:
        self.submitted += [job.name for job in jobs]

    def poll(self, timeout: float) -> list[Event]:
        self._look()
        return self.script.pop(0)

    def stop(self) -> list[Event]:
        return []

    def kill(self) -> None: ...

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *_: object) -> None: ...


def test_a_run_that_waits_to_be_tried_again_is_pending(tmp_path: Path) -> None:
    """And not lost or failed, as its run.json had it: somebody is there who will train it."""
    seen: list[tuple[str, str, str]] = []
    killed = Failed("a_s1", "killed", "its worker was killed")
    done = Finished("a_s1", "done", "", {})
    executor = Scripted([[Started("a_s1", 1), killed], [Started("a_s1", 2)], [done]], lambda: None)

    def make(folder: Path) -> Scripted:
        record = RunRecord.read(folder / "runs" / "a_s1")
        gone = {**ProcessId.own().fields(), "pid": 2**22 - 1, "born": 1}
        record.update(status="running", **gone)

        def look() -> None:
            campaign = read_campaign(folder)
            assert campaign is not None
            (view,) = campaign.runs
            seen.append((campaign.state, view.state, view.message))

        executor._look = look
        return executor

    console, _ = plain_console()
    result = run_campaign(load(tmp_path, {"a": {}}, seeds=(1,)), console=console, executor=make)
    assert executor.submitted == ["a_s1", "a_s1"]
    assert seen[1] == ("running", "pending", "its worker was killed")
    assert result.status == "done"


def test_a_diverged_run_is_an_outcome_that_counts_as_failure(tmp_path: Path) -> None:
    result, output = run(tmp_path, {"a": {"trouble": "diverge"}, "b": {}}, seeds=(1,))
    assert result.exit_code == 1
    assert [outcome.status for outcome in result.runs] == ["diverged", "done"]
    assert "diverged at step 2: loss" in output


def test_no_worker_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_WORKER_BROKEN", "1")
    result, output = run(tmp_path, {"a": {}})
    assert result.exit_code == 1
    assert {outcome.status for outcome in result.runs} == {"failed"}
    assert "no worker starts: ImportError: libtorch_cpu.so" in output
    assert "ImportError" in (result.campaign_dir / "workers.log").read_text()
    record = RunRecord.read(result.runs[0].run_dir)
    assert (record.status, record.data["cause"]) == ("failed", "no worker")
    assert f"next:     retrain resume {result.campaign_dir}" in output


def test_parallel_and_sequential_measure_the_same(tmp_path: Path) -> None:
    metrics = []
    for workers in (1, 3):
        result, _ = run(tmp_path, {"a": {}, "b": {}}, workers=workers, seeds=(1, 2))
        metrics.append({o.name: (o.run_dir / "metrics.jsonl").read_bytes() for o in result.runs})
    assert metrics[0] == metrics[1]


def test_campaigns_of_the_same_second_get_folders_of_their_own(tmp_path: Path) -> None:
    def one(_number: int) -> Path:
        return run(tmp_path, {"a": {}}, seeds=(1,))[0].campaign_dir

    with ThreadPoolExecutor(3) as pool:
        folders = list(pool.map(one, range(3)))
    assert len(set(folders)) == 3
    for folder in folders:
        assert Manifest.read(folder).data["status"] == "done"


def test_a_wrong_config_leaves_nothing(tmp_path: Path) -> None:
    values = tables(tmp_path / "logs", {"a": {}}, seeds=(1,))
    values["training"]["max_tokens"] = 100_000
    path = tmp_path / "a.toml"
    atomic_write_toml(path, values)
    with pytest.raises(InputError, match="max_tokens"):
        retrain.run_campaign(path)
    assert not (tmp_path / "logs").exists()


def test_a_single_run_is_no_campaign(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no \[campaign\] table"):
        run_campaign(load_config(_single(tmp_path)), executor=fake_executor())


def _single(folder: Path) -> Path:
    path = folder / "single.toml"
    path.write_text("[training]\nmax_tokens = 16\n")
    return path


PARENT = """
    import json, os, sys
    from pathlib import Path
    from campaigns import fake_executor, load, plain_console
    from retrain.experiments.campaign import run_campaign

    logs, conditions, workers, grace_s = Path(sys.argv[1]), json.loads(sys.argv[2]), *sys.argv[3:]

    def executor(folder):
        made = fake_executor(int(workers), grace_s=float(grace_s))(folder)
        stop = made.stop
        def tell_and_stop():
            (logs / "stopping").touch()
            return stop()
        made.stop = tell_and_stop
        return made

    console, output = plain_console()
    loaded = load(logs, conditions, max_steps=100_000)
    result = run_campaign(loaded, console=console, executor=executor)
    sys.stdout.write(output.getvalue())
    sys.exit(result.exit_code)
"""


class Parent:
    """A campaign in a process of its own, which trains until it is told to stop."""

    def __init__(
        self, logs: Path, conditions: Mapping[str, Mapping[str, Any]], grace_s: float = 30.0
    ) -> None:
        logs.mkdir(exist_ok=True)
        self.logs = logs
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-c", textwrap.dedent(PARENT)),
                *(str(logs), json.dumps(conditions), "2", str(grace_s)),
            ],
            env={**os.environ, "PYTHONPATH": str(HERE)},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def wait_for_rows(self, *names: str) -> None:
        deadline = time.monotonic() + 60.0
        while time.monotonic() < deadline:
            if all(list(self.logs.glob(f"*/runs/{name}/metrics.jsonl")) for name in names):
                return
            assert self.process.poll() is None, "the campaign ended before it was told to"
            time.sleep(0.05)
        raise AssertionError("no rows")

    @property
    def workers(self) -> list[int]:
        """Process ids of the workers that have begun a run."""
        records = [read_json(path) for path in self.logs.rglob("run.json")]
        return [record["pid"] for record in records if record["status"] != "pending"]

    @property
    def folder(self) -> Path:
        (folder,) = self.logs.glob("campaign_*")
        return folder

    def statuses(self) -> dict[str, str]:
        return {path.parent.name: read_json(path)["status"] for path in self.logs.rglob("run.json")}

    def end(self) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=60)
        return self.process.returncode, output


SLOW = {"a": {"pause": 0.02}, "b": {"pause": 0.02}}
STOPPED = {"a_s1": "stopped", "b_s1": "stopped", "a_s2": "pending", "b_s2": "pending"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_campaign_ends_in_order(tmp_path: Path, number: signal.Signals) -> None:
    parent = Parent(tmp_path / "logs", SLOW)
    parent.wait_for_rows("a_s1", "b_s1")
    workers = parent.workers
    # To the whole group, as a terminal sends it.
    os.killpg(parent.process.pid, number)
    code, output = parent.end()
    assert code == 130, output
    assert len(workers) == 2
    assert all(map(vanishes, workers))
    assert parent.statuses() == STOPPED
    manifest = Manifest.read(parent.folder)
    assert manifest.data["status"] == "stopped"
    assert {run["name"]: run["status"] for run in manifest.data["runs"]} == STOPPED
    assert output.count("stopping the workers after the step they are in") == 1
    assert "stopped: 4 runs of 4 not finished" in output
    assert f"next:     retrain resume {parent.folder}" in output
    assert "report:" not in output
    assert not list(parent.folder.rglob(".lock*"))
    for path in parent.logs.rglob("metrics.jsonl"):
        rows = read_jsonl(path)
        assert [row["step"] for row in rows] == list(range(len(rows)))
        assert path.read_bytes().endswith(b"\n")


def test_sigterm_to_every_process_loses_no_step(tmp_path: Path) -> None:
    """As service managers and batch systems send it, and again when it does not end at once."""
    parent = Parent(tmp_path / "logs", {"a": {"pause": 0.3}, "b": {"pause": 0.3}}, grace_s=3600.0)
    parent.wait_for_rows("a_s1", "b_s1")
    workers = parent.workers
    for _ in range(2):
        for pid in (*workers, parent.process.pid):
            os.kill(pid, signal.SIGTERM)
        time.sleep(0.05)
    code, output = parent.end()
    assert code == 130, output
    assert all(map(vanishes, workers))
    assert parent.statuses() == STOPPED
    for name in ("a_s1", "b_s1"):
        run_dir = parent.folder / "runs" / name
        step, log = RunRecord.read(run_dir).data["step"], (run_dir / "run.log").read_text()
        begun = log.count("a step begins")
        assert step == len(read_jsonl(run_dir / "metrics.jsonl")) == begun


TERMINAL = """
    import signal, sys
    from pathlib import Path
    from campaigns import fake_executor, load
    from retrain.entry import leave
    from retrain.experiments.campaign import run_campaign

    signal.signal(signal.SIGHUP, signal.SIG_IGN if sys.argv[2] == "disowned" else signal.SIG_DFL)

    def program(arguments, prog_name):
        loaded = load(Path(arguments[0]), {"a": {"pause": 0.05}}, seeds=(1,), max_steps=30)
        sys.exit(run_campaign(loaded, executor=fake_executor()).exit_code)

    leave(program, sys.argv[1:], "program")
"""


@pytest.mark.parametrize(
    ("how", "code", "status"), [("disowned", 0, "done"), ("in front", 130, "stopped")]
)
def test_a_terminal_that_is_closed(tmp_path: Path, how: str, code: int, status: str) -> None:
    logs = tmp_path / "logs"
    master, terminal = pty.openpty()

    def take_the_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(TERMINAL), str(logs), how],
        env={**os.environ, "PYTHONPATH": str(HERE), "TERM": "xterm"},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        preexec_fn=take_the_terminal,
    )
    os.close(terminal)
    while not list(logs.glob("*/runs/a_s1/metrics.jsonl")):
        assert os.read(master, 65536)
    os.close(master)
    assert process.wait(timeout=60) == code
    (folder,) = logs.glob("campaign_*")
    assert Manifest.read(folder).data["status"] == status
    record = RunRecord.read(folder / "runs" / "a_s1")
    assert (record.status, record.data["cause"]) == (status, None)
    assert record.data["step"] == len(read_jsonl(folder / "runs/a_s1/metrics.jsonl"))


def test_a_worker_that_hangs_does_not_outlive_a_killed_campaign(tmp_path: Path) -> None:
    parent = Parent(tmp_path / "logs", {"a": {"trouble": "hang"}})
    parent.wait_for_rows("a_s1")
    workers = parent.workers
    parent.process.kill()
    parent.end()
    assert workers
    assert all(map(vanishes, workers))


def test_a_second_ctrl_c_ends_workers_at_once(tmp_path: Path) -> None:
    parent = Parent(tmp_path / "logs", {"a": {"trouble": "deaf"}}, grace_s=3600.0)
    parent.wait_for_rows("a_s1")
    workers = parent.workers
    parent.process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + 60.0
    while not (parent.logs / "stopping").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    parent.process.send_signal(signal.SIGINT)
    code, output = parent.end()
    assert code == 130, output
    assert all(map(vanishes, workers))
    assert "stopped" in set(parent.statuses().values())


def test_workers_do_not_outlive_a_killed_campaign(tmp_path: Path) -> None:
    parent = Parent(tmp_path / "logs", SLOW)
    parent.wait_for_rows("a_s1", "b_s1")
    workers = parent.workers
    parent.process.kill()
    parent.end()
    assert all(map(vanishes, workers))
    assert parent.statuses() == STOPPED
    # Nobody was left to write it down.
    assert Manifest.read(parent.folder).data["status"] == "running"
    campaign = read_campaign(parent.folder)
    assert campaign is not None
    assert (campaign.finished, campaign.state) == (True, "lost")


def test_a_campaign_imports_no_torch(tmp_path: Path) -> None:
    code = f"""
        import sys
        from pathlib import Path
        from campaigns import fake_executor, load, plain_console
        from retrain.experiments.campaign import run_campaign
        console, _ = plain_console()
        loaded = load(Path({str(tmp_path)!r}), {{"a": {{}}}}, seeds=(1,))
        assert run_campaign(loaded, console=console, executor=fake_executor()).exit_code == 0
        assert "torch" not in sys.modules
    """
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=environment, check=True)
