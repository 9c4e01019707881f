"""Workers as real processes: what they say, how they die, that none is left over."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from campaigns import fake_executor, is_alive, load, vanishes

from retrain.causes import DISK, ERROR, HUNG, INFRASTRUCTURE, KILLED, WORKER
from retrain.config.dump import run_config_toml
from retrain.experiments.executors.executor import (
    ENDINGS,
    Cancelled,
    Event,
    Failed,
    Finished,
    Interrupted,
    Job,
    Row,
    Started,
    Warned,
)
from retrain.experiments.executors.local import LocalExecutor
from retrain.experiments.plan import plan_runs
from retrain.files import RunRecord, read_jsonl

TIMEOUT_S = 60.0


def make_jobs(
    folder: Path, *troubles: str, max_steps: int = 4, pause: float = 0.0, **fields: int
) -> list[Job]:
    """A job a trouble, named `<number>_<trouble>_s1`."""
    conditions = {
        f"{number}_{trouble or 'fine'}": {"trouble": trouble, "pause": pause, **fields}
        for number, trouble in enumerate(troubles)
    }
    jobs = []
    for run in plan_runs(load(folder, conditions, seeds=(1,), max_steps=max_steps)):
        run_dir = folder / run.name
        run_dir.mkdir()
        (run_dir / "config.toml").write_text(run_config_toml(run.config))
        jobs.append(Job(run.name, run.condition, run_dir / "config.toml", run_dir))
    return jobs


def collect(
    executor: LocalExecutor, jobs: list[Job], until: Callable[[Event], bool] | None = None
) -> list[Event]:
    """Events until every job has ended, or `until` says so."""
    events: list[Event] = []
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        for event in executor.poll(0.1):
            events.append(event)
            if until is not None and until(event):
                return events
        if sum(isinstance(event, ENDINGS) for event in events) == len(jobs):
            return events
    raise AssertionError(f"not over after {TIMEOUT_S} s: {events}")


@contextmanager
def crew(folder: Path, workers: int = 1, **options: Any) -> Iterator[LocalExecutor]:
    with fake_executor(workers, **options)(folder) as executor:
        yield executor


def endings(events: list[Event]) -> dict[str, Event]:
    found = [event for event in events if isinstance(event, ENDINGS)]
    assert len({event.run for event in found}) == len(found), "a job ended twice"
    return {event.run: event for event in found}


def test_one_worker_trains_runs_one_after_another(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, "", "", "")
    with crew(tmp_path) as executor:
        executor.submit(jobs)
        events = collect(executor, jobs)
        assert len(executor.pids) == 1
        pids = executor.pids
    assert not any(map(is_alive, pids))
    order = [(type(event).__name__, event.run) for event in events]
    expected = [
        (kind, job.name)
        for job in jobs
        for kind in ("Started", "Row", "Row", "Row", "Row", "Finished")
    ]
    assert order == expected
    assert {event.worker for event in events if isinstance(event, Started)} == {1}
    rows = [event for event in events if isinstance(event, Row) and event.run == jobs[0].name]
    assert [row.step for row in rows] == [0, 1, 2, 3]
    assert rows[0].mean_reward == 0.31
    assert rows[0].held_out_accuracy is None
    finished = endings(events)[jobs[0].name]
    assert isinstance(finished, Finished)
    assert (finished.status, finished.result["accuracy_after"]) == ("done", 0.75)
    record = RunRecord.read(jobs[2].run_dir)
    assert (record.data["threads"], record.data["device"]) == (1, "auto")
    assert record.data["pid"] == pids[0]


def test_output_goes_to_the_runs_log_and_disturbs_nothing(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, "", "child")
    with crew(tmp_path) as executor:
        executor.submit(jobs)
        collect(executor, jobs)
        child = int((jobs[1].run_dir / "child.pid").read_text())
        assert is_alive(child)
    assert vanishes(child), "what a run started outlived its worker"
    for job in jobs:
        log = (job.run_dir / "run.log").read_text()
        assert "a stray line on stdout" in log
        assert "straight to the descriptor" in log
    assert not (tmp_path / "workers.log").exists()


def test_several_workers_share_the_queue(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, *[""] * 6, pause=0.05)
    with crew(tmp_path, workers=3) as executor:
        executor.submit(jobs)
        events = collect(executor, jobs)
        pids = executor.pids
        assert len(pids) <= 3
    assert {event.worker for event in events if isinstance(event, Started)} >= {1, 2}
    assert all(isinstance(event, Finished) for event in endings(events).values())
    assert not any(map(is_alive, pids))


def test_launches_are_staggered(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, "", "")
    with crew(tmp_path, workers=2, stagger_seconds=3600.0) as executor:
        executor.submit(jobs)
        events = collect(executor, jobs)
        assert {event.worker for event in events if isinstance(event, Started)} == {1}


@pytest.mark.parametrize(
    ("trouble", "cause", "message"),
    [
        ("raise", ERROR, "ValueError: the plugin broke [here]"),
        ("explain", ERROR, "the data ran out; add more"),
        ("leave", ERROR, "the run called sys.exit(3)"),
        ("full", DISK, "OSError: [Errno 28] No space left on device"),
        ("kill", KILLED, "killed by SIGKILL; the usual cause is too little memory"),
        ("crash", KILLED, "killed by SIGSEGV"),
    ],
)
def test_a_run_that_fails_stops_no_other(
    tmp_path: Path, trouble: str, cause: str, message: str
) -> None:
    jobs = make_jobs(tmp_path, "", trouble, "", "")
    with crew(tmp_path) as executor:
        executor.submit(jobs)
        events = endings(collect(executor, jobs))
    failed = events.pop(jobs[1].name)
    assert isinstance(failed, Failed)
    assert failed.cause == cause
    assert message in failed.message
    assert all(isinstance(event, Finished) for event in events.values())
    log = (jobs[1].run_dir / "run.log").read_text()
    record = RunRecord.read(jobs[1].run_dir)
    if cause == KILLED:
        assert record.status == "running"
    else:
        assert "Traceback" in log
        assert (record.status, record.data["cause"]) == ("failed", cause)
    if trouble == "crash":
        assert "Segmentation fault" in log
    assert len(read_jsonl(jobs[1].run_dir / "metrics.jsonl")) == 2


def test_an_unforeseen_error_costs_the_worker_its_place(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, "explain", "raise", "")
    with crew(tmp_path) as executor:
        executor.submit(jobs)
        events = collect(executor, jobs)
    workers = [event.worker for event in events if isinstance(event, Started)]
    assert workers == [1, 1, 2]


def test_a_killed_worker_is_replaced(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, "", "", pause=0.05)
    with crew(tmp_path) as executor:
        executor.submit(jobs)
        first = collect(executor, jobs, until=lambda event: isinstance(event, Row))
        victim = executor.pids[0]
        os.kill(victim, signal.SIGKILL)
        events = endings(first + collect(executor, jobs))
        assert victim not in executor.pids
    failed = events[jobs[0].name]
    assert isinstance(failed, Failed)
    assert failed.cause == KILLED
    assert failed.message.startswith("its worker was killed by SIGKILL; the usual cause is")
    assert isinstance(events[jobs[1].name], Finished)


def test_a_hung_worker_writes_down_where_it_is_and_is_killed(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, "hang", "")
    with crew(tmp_path, timeout_s=1.0) as executor:
        executor.submit(jobs)
        first = collect(executor, jobs, until=lambda event: isinstance(event, Row))
        pids = executor.pids
        events = endings(first + collect(executor, jobs))
        assert not any(map(is_alive, pids))
    assert events[jobs[0].name] == Failed(
        jobs[0].name,
        HUNG,
        "hung: its worker finished no step for 1 s ([campaign].worker_timeout) and was killed; "
        "run.log shows where it was",
    )
    assert isinstance(events[jobs[1].name], Finished)
    log = (jobs[0].run_dir / "run.log").read_text()
    assert re.search(r"fake_worker\.py\", line \d+ in make\b", log), log
    assert len(read_jsonl(jobs[0].run_dir / "metrics.jsonl")) == 2


def test_a_worker_that_never_starts_to_listen_is_hung_too(tmp_path: Path) -> None:
    """A worker may hang before it has taken a job; then none of the runs gets any."""
    log = tmp_path / "workers.log"
    command = (sys.executable, "-c", "import time; time.sleep(3600)")
    jobs = make_jobs(tmp_path, "")
    with LocalExecutor(1, log=log, command=command, timeout_s=0.5) as executor:
        executor.submit(jobs)
        events = endings(collect(executor, jobs))
        assert executor.pids == ()
    failed = events[jobs[0].name]
    assert isinstance(failed, Failed)
    assert failed.cause == WORKER
    assert failed.message.startswith("no worker starts: ")


def test_a_slow_worker_is_not_taken_as_hung(tmp_path: Path) -> None:
    """Each step is a sign of life, and so is a run that has not been dispatched yet."""
    jobs = make_jobs(tmp_path, "", max_steps=8, pause=0.5)
    with crew(tmp_path, timeout_s=2.0) as executor:
        executor.submit(jobs)
        events = collect(executor, jobs)
        assert isinstance(events[-1], Finished)
        deadline = time.monotonic() + 2.5
        while time.monotonic() < deadline:
            assert executor.poll(0.1) == []
        assert len(executor.pids) == 1, "a worker that waits for work is not hung"


def test_each_worker_has_a_device_of_its_own(tmp_path: Path) -> None:
    """And a killed worker's device goes to its successor."""
    jobs = make_jobs(tmp_path, "", "", "", max_steps=1000, pause=0.02)

    def device(number: int) -> str:
        return str(RunRecord.read(jobs[number].run_dir).data["device"])

    with crew(tmp_path, workers=2, devices=("cpu", "cuda:7")) as executor:
        executor.submit(jobs)
        begun: set[str] = set()

        def both_train(event: Event) -> bool:
            if isinstance(event, Row):
                begun.add(event.run)
            return len(begun) == 2

        collect(executor, jobs, until=both_train)
        assert {device(0), device(1)} == {"cpu", "cuda:7"}
        os.kill(int(RunRecord.read(jobs[1].run_dir).data["pid"]), signal.SIGKILL)
        third = jobs[2].name
        collect(executor, jobs, until=lambda event: isinstance(event, Row) and event.run == third)
        assert device(2) == device(1)


def test_workers_keep_to_their_share_of_the_threads(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, "")
    with crew(tmp_path, threads=3) as executor:
        executor.submit(jobs)
        collect(executor, jobs)
    assert RunRecord.read(jobs[0].run_dir).data["threads"] == 3


def test_no_worker_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_WORKER_BROKEN", "1")
    jobs = make_jobs(tmp_path, "", "")
    with crew(tmp_path, workers=2) as executor:
        executor.submit(jobs)
        events = endings(collect(executor, jobs))
    for event in events.values():
        assert isinstance(event, Failed)
        assert event.cause == WORKER
        assert event.cause in INFRASTRUCTURE
        assert "libtorch_cpu.so: cannot open shared object file" in event.message
        assert str(tmp_path / "workers.log") in event.message


def test_warnings_reach_the_campaign_and_the_log(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, "warn")
    with crew(tmp_path) as executor:
        executor.submit(jobs)
        events = collect(executor, jobs)
    message = "no group was informative for 20 steps"
    assert Warned(jobs[0].name, message) in events
    assert message in (jobs[0].run_dir / "run.log").read_text()


def test_a_diverged_run_is_finished(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, "diverge")
    with crew(tmp_path) as executor:
        executor.submit(jobs)
        (event,) = endings(collect(executor, jobs)).values()
    assert isinstance(event, Finished)
    assert (event.status, event.message) == ("diverged", "diverged at step 2: loss")


def test_stop_ends_runs_after_their_step(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, "", "", "", max_steps=1000, pause=0.02)
    with crew(tmp_path, workers=2) as executor:
        executor.submit(jobs)
        begun: set[str] = set()

        def both_train(event: Event) -> bool:
            if isinstance(event, Row):
                begun.add(event.run)
            return len(begun) == 2

        collect(executor, jobs, until=both_train)
        pids = executor.pids
        events = executor.stop()
        assert executor.pids == ()
    assert not any(map(is_alive, pids))
    ended = endings(events)
    assert ended == {
        jobs[0].name: Interrupted(jobs[0].name),
        jobs[1].name: Interrupted(jobs[1].name),
        jobs[2].name: Interrupted(jobs[2].name, started=False),
    }
    for job in jobs[:2]:
        record = RunRecord.read(job.run_dir)
        rows = read_jsonl(job.run_dir / "metrics.jsonl")
        assert (record.status, record.data["step"]) == ("stopped", len(rows))
        assert [row["step"] for row in rows] == list(range(len(rows)))


@pytest.mark.parametrize("trouble", ["hang", "deaf"])
def test_a_worker_that_does_not_stop_is_made_to(tmp_path: Path, trouble: str) -> None:
    jobs = make_jobs(tmp_path, trouble)
    with crew(tmp_path, grace_s=0.4) as executor:
        executor.submit(jobs)
        collect(executor, jobs, until=lambda event: isinstance(event, Row) and event.step == 1)
        pids = executor.pids
        events = executor.stop()
    assert events[-1:] == [Interrupted(jobs[0].name)]
    assert not any(map(is_alive, pids))


def test_many_signals_at_once_end_a_run_after_its_step(tmp_path: Path) -> None:
    """A campaign that dies tells it once for each of its threads, sooner than it can be heeded."""
    jobs = make_jobs(tmp_path, "", max_steps=100, pause=0.1)
    with crew(tmp_path) as executor:
        executor.submit(jobs)
        collect(executor, jobs, lambda event: isinstance(event, Row))
        (pid,) = executor.pids
        for _ in range(3000):
            os.kill(pid, signal.SIGHUP)
        assert vanishes(pid)
        events = collect(executor, jobs)
    assert [type(event) for event in events if isinstance(event, ENDINGS)] == [Interrupted]
    record = RunRecord.read(jobs[0].run_dir)
    assert record.status == "stopped"
    assert record.data["step"] == len(read_jsonl(jobs[0].run_dir / "metrics.jsonl")) < 100


def test_kill_ends_at_once(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, "deaf")
    with crew(tmp_path, grace_s=3600.0) as executor:
        executor.submit(jobs)
        collect(executor, jobs, until=lambda event: isinstance(event, Started))
        executor.kill()
        assert [type(event) for event in executor.stop()] == [Interrupted]


def test_leaving_in_an_error_leaves_no_worker(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, "", max_steps=1000, pause=0.02)
    pids: list[int] = []

    def fail_while_training() -> None:
        with crew(tmp_path) as executor:
            executor.submit(jobs)
            collect(executor, jobs, until=lambda event: isinstance(event, Row))
            pids.extend(executor.pids)
            raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        fail_while_training()
    assert pids
    assert not any(map(is_alive, pids))


def test_a_job_that_is_submitted_again_keeps_its_place(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, "", "", "")
    with crew(tmp_path) as executor:
        executor.submit(jobs)
        executor.cancel([jobs[0].name])
        executor.submit(jobs[:1])
        assert [event.run for event in executor.stop()] == [job.name for job in jobs]


def test_a_job_may_be_submitted_again(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, "kill", "", trouble_attempts=2)
    with crew(tmp_path) as executor:
        executor.submit(jobs[:1])
        assert isinstance(endings(collect(executor, jobs[:1]))[jobs[0].name], Failed)
        executor.submit([jobs[0], jobs[1]])
        events = endings(collect(executor, jobs))
        assert isinstance(events[jobs[0].name], Failed)
        assert isinstance(events[jobs[1].name], Finished)
        executor.submit(jobs[:1])
        third = collect(executor, jobs[:1])
    assert isinstance(third[-1], Finished)
    assert [row.step for row in third if isinstance(row, Row)] == [2, 3]
    assert RunRecord.read(jobs[0].run_dir).data["attempts"] == 3


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, "")
    with crew(tmp_path) as executor:
        executor.submit(jobs)
        (first,) = endings(collect(executor, jobs)).values()
        before = {path: path.read_bytes() for path in jobs[0].run_dir.glob("*.json*")}
        executor.submit(jobs)
        again = collect(executor, jobs)
    assert again == [Started(jobs[0].name, 1), first]
    assert {path: path.read_bytes() for path in before} == before


def test_single_runs_are_cancelled_and_the_worker_goes_on(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, "", "", "", max_steps=1000, pause=0.02)
    names = [job.name for job in jobs]
    with crew(tmp_path) as executor:
        executor.submit(jobs)
        first = collect(executor, jobs, until=lambda event: isinstance(event, Row))
        assert executor.cancel([names[0], names[1], "nobody"]) == [
            Cancelled(names[1], started=False)
        ]
        pids = executor.pids
        second = collect(executor, jobs, until=lambda event: isinstance(event, Started))
        assert endings(first + second) == {names[0]: Cancelled(names[0])}
        assert second[-1] == Started(names[2], 1)
        assert executor.pids == pids
        executor.cancel([names[0]])  # It is over: nothing happens.
        collect(executor, jobs, until=lambda event: isinstance(event, Row))
        # Again, as after any ending.
        executor.submit(jobs[:1])
        executor.cancel([names[2]])
        third = collect(executor, jobs, until=lambda event: event.run == names[0])
        assert endings(third) == {names[2]: Cancelled(names[2])}
        rows = len(read_jsonl(jobs[0].run_dir / "metrics.jsonl"))
        collect(executor, jobs, until=lambda event: isinstance(event, Row) and event.step > rows)
        assert [type(event) for event in executor.stop()][-1] is Interrupted
    record = RunRecord.read(jobs[2].run_dir)
    rows = len(read_jsonl(jobs[2].run_dir / "metrics.jsonl"))
    assert (record.status, record.data["step"]) == ("stopped", rows)
    assert not (jobs[1].run_dir / "metrics.jsonl").exists()


def test_a_cancelled_run_whose_worker_dies_has_failed(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, "hang")
    with crew(tmp_path) as executor:
        executor.submit(jobs)
        collect(executor, jobs, until=lambda event: isinstance(event, Row) and event.step == 1)
        assert executor.cancel([jobs[0].name]) == []
        os.kill(executor.pids[0], signal.SIGKILL)
        (ended,) = endings(collect(executor, jobs)).values()
    assert isinstance(ended, Failed)
    assert ended.cause == KILLED
