import json
import os
import shutil
import subprocess
import sys

import pytest
from log_tree import (
    BEGAN,
    Planned,
    standard_campaign,
    write_campaign,
    write_json,
    write_lock,
    write_run,
)

from retrain.analysis.records import QUIET_S, find_records, read_campaign, read_run
from retrain.processes import ProcessId

NOW = BEGAN + 10.0


@pytest.fixture
def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_finished_run(tmp_path):
    run = read_run(write_run(tmp_path / "grpo+none_s42"), now=NOW)
    assert (run.name, run.condition, run.seed) == ("grpo+none_s42", "grpo+none", 42)
    assert (run.state, run.step, run.max_steps, run.steps_left) == ("done", 20, 20, None)
    assert (run.accuracy, run.result.accuracy_before) == (0.71, 0.33)
    assert run.step_time_s == 0.5
    assert run.row_age_s == pytest.approx(10.0)
    assert run.versions["torch"] == "2.13.0"


@pytest.mark.parametrize("status", ["pending", "done", "diverged", "failed", "stopped"])
def test_states_that_run_json_tells(tmp_path, status):
    run = read_run(write_run(tmp_path / "r", status=status, message="why", steps=3), now=NOW)
    assert (run.state, run.message) == (status, "why")


def test_running_run_shows_its_newest_evaluation(tmp_path):
    folder = write_run(tmp_path / "r", status="running", steps=12, every=5)
    run = read_run(folder, now=NOW)
    assert (run.state, run.step, run.steps_left) == ("running", 12, 8)
    newest = json.loads((folder / "evaluation" / "step_000010.json").read_text())
    assert run.accuracy == newest["accuracy"]


def test_run_whose_process_is_gone_is_lost(tmp_path, dead_pid):
    run = read_run(write_run(tmp_path / "r", status="running", steps=5, pid=dead_pid), now=NOW)
    assert run.state == "lost"
    assert f"its process ({dead_pid}) is gone" in run.message
    assert "`retrain resume` goes on" in run.message
    assert run.steps_left is None


def test_process_number_given_to_a_younger_process_is_not_the_run(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        # This very process is older than its child, whose number the run had before.
        born = ProcessId.own().born
        if born is not None:
            before = write_run(tmp_path / "r", status="running", pid=child.pid, born=born - 1)
            assert read_run(before, now=NOW).state == "lost"
        unknown = write_run(tmp_path / "u", status="running", steps=5, pid=child.pid, born=None)
        assert read_run(unknown, now=NOW).state == "running"
    finally:
        child.communicate(b"\n")


def test_process_of_another_machine_is_not_looked_up_here(tmp_path, dead_pid):
    folder = write_run(tmp_path / "r", status="running", steps=5, pid=dead_pid, host="elsewhere")
    assert read_run(folder, now=NOW).state == "running"


def test_silent_run_is_stalled_after_twenty_steps(tmp_path):
    folder = write_run(tmp_path / "r", status="running", steps=5, step_time=30.0, host="elsewhere")
    assert read_run(folder, now=BEGAN + 590.0).state == "running"
    run = read_run(folder, now=BEGAN + 660.0)
    assert run.state == "stalled"
    assert "no row for 11 min" in run.message
    assert "elsewhere" in run.message


def test_resumed_run_has_time_to_load_before_it_counts_as_stalled(tmp_path):
    folder = write_run(
        tmp_path / "r", status="running", steps=5, host="elsewhere", updated_at=BEGAN + 5000.0
    )
    assert read_run(folder, now=BEGAN + 5300.0).state == "running"


def test_manifest_tells_how_a_run_ended_that_could_not_itself(tmp_path, dead_pid):
    folder = write_campaign(
        tmp_path / "campaign",
        [
            Planned(
                "grpo+none",
                42,
                {
                    "status": "running",
                    "steps": 5,
                    "pid": dead_pid,
                    "manifest_status": "failed",
                    "manifest_message": "the worker was killed",
                    "manifest_cause": "killed",
                },
            )
        ],
    )
    run = read_campaign(folder, now=NOW).runs[0]
    assert (run.state, run.message) == ("failed", "the worker was killed")
    assert run.cause == "killed"


def test_run_with_damaged_files_is_still_shown(tmp_path):
    folder = write_run(tmp_path / "grpo+none_s7", seed=7)
    (folder / "run.json").write_text('{"name": "gr')
    run = read_run(folder, now=NOW)
    assert (run.name, run.condition, run.seed, run.step) == ("grpo+none_s7", "grpo+none", 7, 20)
    assert run.state == "pending"
    write_json(folder / "run.json", {"seed": "x", "status": 3, "result": [], "versions": None})
    assert read_run(folder, now=NOW).state == "pending"


def test_campaign(tmp_path):
    campaign = read_campaign(standard_campaign(tmp_path / "campaign_1"), now=NOW)
    assert campaign.name == "campaign_1"
    assert len(campaign.conditions) == 5
    assert campaign.conditions[0] == "grpo+none"
    assert campaign.seeds == (42, 101)
    assert campaign.counts() == {"done": 10}
    assert campaign.finished
    assert [run.seed for run in campaign.of("maxrl+gtpo")] == [42, 101]


@pytest.fixture
def begun(tmp_path):
    """A campaign that is said to run, with one run done and one that waits."""
    folder = write_campaign(
        tmp_path / "c",
        [Planned("a", 1, {}), Planned("a", 2, {"folder": False})],
        status="running",
        timestamp=BEGAN,
    )
    os.utime(folder / "manifest.json", (BEGAN, BEGAN))
    return folder


def test_runs_that_have_not_begun_come_from_the_plan(begun):
    write_lock(begun)
    campaign = read_campaign(begun, now=NOW)
    pending = campaign.runs[1]
    assert (pending.state, pending.step, pending.max_steps) == ("pending", 0, 20)
    assert not campaign.finished
    assert campaign.state == "running"
    later = read_campaign(begun, now=BEGAN + QUIET_S + 1.0)
    assert later.finished
    assert later.state == "lost"


def test_pending_runs_that_nobody_will_start_end_their_campaign_at_once(begun, dead_pid):
    unlocked = read_campaign(begun, now=NOW)
    assert (unlocked.finished, unlocked.state) == (True, "lost")
    write_lock(begun, pid=dead_pid)
    dead = read_campaign(begun, now=NOW)
    assert (dead.finished, dead.state) == (True, "lost")
    # A holder elsewhere cannot be looked up: only silence tells.
    write_lock(begun, host="elsewhere", pid=dead_pid)
    elsewhere = read_campaign(begun, now=NOW)
    assert (elsewhere.finished, elsewhere.state) == (False, "running")


def test_finding_folders_of_every_kind(tmp_path):
    logs = tmp_path / "logs"
    campaign = standard_campaign(logs / "campaign_2", conditions=2)
    single = write_run(logs / "grpo+none_s1", seed=1)
    (logs / "notes").mkdir()
    (logs / "todo.txt").write_text("x")
    write_json(logs / "website" / "manifest.json", {"name": "a web app", "icons": []})
    found = find_records([logs], now=NOW)
    assert [c.name for c in found.campaigns] == ["campaign_2"]
    assert [r.name for r in found.runs] == ["grpo+none_s1"]
    assert find_records([campaign], now=NOW).campaigns[0].name == "campaign_2"
    assert find_records([single], now=NOW).runs[0].name == "grpo+none_s1"
    assert len(find_records([campaign / "runs"], now=NOW).runs) == 4
    both = find_records([logs, campaign, single, logs], now=NOW)
    assert (len(both.campaigns), len(both.runs)) == (1, 1)
    assert find_records([logs / "notes", tmp_path / "absent"], now=NOW).runs == ()


def test_campaign_without_its_manifest_still_shows_its_runs(tmp_path):
    folder = standard_campaign(tmp_path / "logs" / "campaign_1", conditions=1)
    (folder / "manifest.json").unlink()
    assert len(find_records([tmp_path / "logs"], now=NOW).runs) == 2
    assert len(find_records([folder], now=NOW).runs) == 2


def test_run_folder_that_was_deleted_is_what_the_manifest_says(tmp_path):
    folder = standard_campaign(tmp_path / "c", conditions=1)
    shutil.rmtree(folder / "runs" / "grpo+none_s42")
    run = read_campaign(folder, now=NOW).runs[0]
    assert (run.state, run.step, run.accuracy) == ("done", 0, None)


def test_newest_campaign_comes_first(tmp_path):
    for name, at in (("old", BEGAN - 100), ("new", BEGAN + 100), ("middle", BEGAN)):
        write_campaign(tmp_path / name, [Planned("a", 1, {})], timestamp=at)
    assert [c.name for c in find_records([tmp_path], now=NOW).campaigns] == ["new", "middle", "old"]
