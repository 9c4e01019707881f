import io
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from log_tree import (
    BEGAN,
    STANDARD,
    Planned,
    standard_campaign,
    write_campaign,
    write_lock,
    write_run,
)
from rich.console import Console

from retrain.analysis import status
from retrain.analysis.status import status_command
from retrain.analysis.words import age, duration, percent, plural
from retrain.errors import InputError


def show(*paths, width=80, encoding="utf-8", **options):
    buffer = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    code = status_command(list(paths), console=Console(file=buffer, width=width), **options)
    return code, buffer.buffer.getvalue().decode(encoding)


def document(*paths, **options):
    code, text = show(*paths, as_json=True, **options)
    assert code == 0
    return json.loads(text)


@pytest.fixture
def every_state(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    now = time.time()
    live = {"row_at": now - 2, "updated_at": now - 30}
    changes = [
        {**live},
        {**live, "status": "running", "steps": 7},
        {**live, "status": "running", "steps": 8, "pid": process.pid},
        {"status": "running", "steps": 9, "host": "node7", "row_at": now - 4000},
        {
            **live,
            "status": "failed",
            "steps": 3,
            "message": "CUDA out of memory\nmore",
            "cause": "out of memory",
        },
        {
            **live,
            "status": "diverged",
            "steps": 4,
            "message": "diverged at step 4: gradient norm is nan",
        },
        {**live, "status": "stopped", "steps": 11},
        {"folder": False},
    ]
    runs = [Planned("maxrl+gtpo_sepa", seed, change) for seed, change in enumerate(changes)]
    folder = tmp_path / "logs" / "campaign_1"
    write_campaign(folder, runs, status="running", timestamp=now)
    write_lock(folder)
    return folder


def test_every_state_is_shown_in_words(every_state):
    code, text = show(every_state.parent)
    assert code == 0
    assert "campaign_1  running  1 condition x 8 seeds, 20 steps each" in text
    states = ("done", "running", "lost", "stalled", "failed", "diverged", "stopped", "pending")
    assert all(state in text for state in states)
    assert "maxrl+gtpo_sepa_s4 failed (out of memory) at step 3: CUDA out of memory" in text
    assert "maxrl+gtpo_sepa_s5 diverged at step 4: gradient norm is nan" in text
    # It still runs: there is nothing to resume yet.
    assert "retrain resume" not in text.replace("`retrain resume` goes on", "")
    assert "1 of 8 runs done" in text
    log = every_state / "runs" / "maxrl+gtpo_sepa_s4" / "run.log"
    assert str(log) in "".join(line.strip() for line in text.splitlines())
    assert max(len(line) for line in text.splitlines()) <= 80


def test_json_document(every_state):
    single = write_run(every_state.parent / "grpo+none_s5", seed=5)
    found = document(every_state.parent)
    assert found["schema"] == 1
    assert found["finished"] is False
    (campaign,) = found["campaigns"]
    assert set(campaign) == {
        "name",
        "folder",
        "status",
        "state",
        "finished",
        "started_at",
        "updated_at",
        "conditions",
        "seeds",
        "max_steps",
        "counts",
        "steps_done",
        "steps_total",
        "step_time_s",
        "row_age_s",
        "seconds_left",
        "runs",
    }
    states = [run["state"] for run in campaign["runs"]]
    assert states == [
        "done",
        "running",
        "lost",
        "stalled",
        "failed",
        "diverged",
        "stopped",
        "pending",
    ]
    assert campaign["counts"] == dict.fromkeys(sorted(states), 1)
    assert (campaign["status"], campaign["state"]) == ("running", "running")
    causes = {run["state"]: run["cause"] for run in campaign["runs"]}
    assert causes == {**dict.fromkeys(states), "failed": "out of memory"}
    (run,) = found["runs"]
    assert run == {
        "name": "grpo+none_s5",
        "folder": str(single),
        "condition": "grpo+none",
        "seed": 5,
        "state": "done",
        "message": "",
        "cause": None,
        "step": 20,
        "max_steps": 20,
        "accuracy_before": 0.33,
        "accuracy": 0.71,
        "mean_reward": run["mean_reward"],
        "row_age_s": run["row_age_s"],
        "step_time_s": 0.5,
        "seconds_left": None,
        "started_at": "2025-10-09T08:53:20+00:00",
        "updated_at": "2025-10-09T08:53:20+00:00",
    }


@pytest.mark.parametrize(
    ("changes", "status", "state"),
    [
        ([{}, {}], "done", "done"),
        ([{}, {"status": "failed", "cause": "killed"}], "failed", "failed"),
        ([{}, {"status": "diverged"}], "failed", "failed"),
        ([{}, {"status": "stopped"}], "stopped", "stopped"),
        ([{"status": "pending"}, {"status": "pending"}], "pending", "pending"),
        # What the last process wrote was not the last that happened.
        ([{}, {"status": "pending"}], "running", "lost"),
        ([{}, {}], "running", "done"),
    ],
)
def test_a_campaign_that_can_be_resumed_says_how(tmp_path, changes, status, state):
    runs = [Planned("a", seed, change) for seed, change in enumerate(changes)]
    folder = write_campaign(tmp_path / "my campaign", runs, status=status)
    (campaign,) = document(folder)["campaigns"]
    assert (campaign["status"], campaign["state"]) == (status, state)
    text = show(folder, width=200)[1]
    assert f"my campaign  {state}" in text
    told = f"retrain resume '{folder}'" in text
    again = any(change.get("cause") == "killed" for change in changes)
    assert told == (again or state in {"pending", "stopped", "lost"})


def test_documented_fields_are_the_ones_written(every_state):
    page = (Path(__file__).parents[2] / "docs" / "status.md").read_text()
    found = document(every_state.parent)
    fields = {*found, *found["campaigns"][0], *found["campaigns"][0]["runs"][0]}
    assert [field for field in fields if f"`{field}`" not in page] == []


def test_nothing_there(tmp_path, monkeypatch):
    code, text = show(tmp_path)
    assert code == 0
    assert "No campaign and no run" in text
    monkeypatch.chdir(tmp_path)
    assert "No campaign and no run in logs." in show()[1]
    assert document() == {
        "schema": 1,
        "now": document()["now"],
        "finished": True,
        "campaigns": [],
        "runs": [],
        "damaged": [],
    }


def test_wrong_path_is_the_users_mistake(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        status_command([tmp_path / "nowhere"])


def test_logs_is_the_default(tmp_path, monkeypatch):
    standard_campaign(tmp_path / "logs" / "campaign_1")
    monkeypatch.chdir(tmp_path)
    assert "campaign_1" in show()[1]


def test_matrix_has_a_cell_a_run(tmp_path):
    text = show(standard_campaign(tmp_path / "campaign_1", (42, 101, 202)))[1]
    lines = [line for line in text.splitlines() if line.strip().startswith(STANDARD)]
    assert len(lines) == 5
    assert all(line.count("✓") == 3 for line in lines)
    assert "s42" in text
    assert "s202" in text


def test_more_seeds_than_fit_become_counts(tmp_path):
    text = show(standard_campaign(tmp_path / "campaign_1", tuple(range(40)), conditions=2))[1]
    assert "mean accuracy" in text
    assert "s17" not in text
    assert max(len(line) for line in text.splitlines()) <= 80


def test_plain_signs_where_the_terminal_knows_no_others(every_state):
    text = show(every_state, encoding="latin-1")[1]
    assert "x failed" in text
    assert "✓" not in text


def test_old_campaigns_are_folded(tmp_path):
    for number in range(20):
        write_campaign(
            tmp_path / f"campaign_{number:02d}",
            [Planned("a", 1, {}), Planned("a", 2, {"status": "failed", "steps": 2})],
            timestamp=BEGAN + number,
        )
    text = show(tmp_path)[1]
    assert text.index("campaign_19") < text.index("campaign_18") < text.index("earlier campaigns")
    assert text.index("earlier campaigns") < text.index("campaign_16")
    assert "and 5 older campaigns" in text
    assert len(document(tmp_path)["campaigns"]) == 20


def test_single_runs_without_result_say_why(tmp_path):
    write_run(tmp_path / "grpo+none_s1", status="failed", steps=2, message="no space left")
    text = show(tmp_path)[1]
    assert "failed at step 2: no space left" in text


def test_evaluations_turned_off(tmp_path):
    text = show(standard_campaign(tmp_path / "c", before=None, after=None))[1]
    assert "✓" in text
    assert "10 of 10 runs done" in text


def test_watch_ends_when_all_has_finished(tmp_path):
    folder = write_run(tmp_path / "r", status="running", steps=3)
    finish = threading.Timer(0.1, write_run, [folder])
    finish.start()
    code, text = show(tmp_path, watch=True, refresh_s=0.02)
    finish.join()
    assert code == 0
    assert "20/20" in text


def test_watching_json_gives_a_document_a_line(tmp_path):
    write_run(tmp_path / "r")
    text = show(tmp_path, watch=True, as_json=True)[1]
    assert len(text.splitlines()) == 1
    assert json.loads(text)["finished"] is True


def test_watch_can_be_interrupted(tmp_path, monkeypatch):
    write_run(tmp_path / "r", status="running", steps=3)

    def interrupt(_seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(status.time, "sleep", interrupt)
    assert show(tmp_path, watch=True)[0] == 130
    assert show(tmp_path, watch=True, as_json=True)[0] == 130


def test_status_loads_no_torch_and_no_altair(tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom retrain.analysis.status import status_command\n"
        "status_command([Path(sys.argv[1])])\n"
        "assert not {'torch', 'altair', 'scipy'} & set(sys.modules), sorted(sys.modules)\n"
    )
    write_run(tmp_path / "r")
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("seconds", "long", "short"),
    [
        (0.0, "0 s", "0 s"),
        (0.41, "0.41 s", "0 s"),
        (12.4, "12 s", "12 s"),
        (59.7, "1 min", "60 s"),
        (200.0, "3 min 20 s", "3 min"),
        (3600.0, "1 h", "1 h"),
        (7500.0, "2 h 5 min", "2 h"),
        (273_600.0, "3 d 4 h", "3 d"),
    ],
)
def test_durations(seconds, long, short):
    assert (duration(seconds), age(seconds)) == (long, short)


def test_small_words():
    assert (plural(1, "run"), plural(0, "run")) == ("1 run", "0 runs")
    assert (percent(0.7111), percent(None), percent(None, "-")) == ("71.1%", "", "-")
