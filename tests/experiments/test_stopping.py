"""Conditions that cannot win are stopped, and campaigns that train only so many runs for now."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
from campaigns import fake_executor, load, plain_console, snapshot
from rich.console import Console

from retrain.analysis.records import read_campaign
from retrain.analysis.status_view import LOOKS
from retrain.analysis.summary import compare
from retrain.config.load import LoadedConfig, config_from_mapping
from retrain.config.overrides import Override, parse_set
from retrain.config.schema import CampaignConfig
from retrain.errors import ConfigError, InputError
from retrain.experiments.campaign import create_campaign, run_campaign
from retrain.experiments.conclusion import CampaignResult
from retrain.experiments.executors.executor import (
    Cancelled,
    Event,
    Failed,
    Finished,
    Interrupted,
    Job,
    Row,
    Started,
)
from retrain.experiments.live import RunsView
from retrain.experiments.manifest import Manifest
from retrain.experiments.outlook import resume_check
from retrain.experiments.plan import plan_runs
from retrain.experiments.resume import resume, resume_campaign
from retrain.experiments.stopping import Stopping
from retrain.files import (
    RunRecord,
    RunStatus,
    append_jsonl,
    atomic_write_json,
    read_json,
    read_jsonl,
)

SEEDS = (1, 2, 3, 4, 5)
BASE = {"1": 0.50, "2": 0.60, "3": 0.70, "4": 0.60, "5": 0.60}
BAD = {"1": 0.40, "2": 0.52, "3": 0.59, "4": 0.50, "5": 0.50}
GOOD = {"1": 0.56, "2": 0.65, "3": 0.77, "4": 0.66, "5": 0.67}
STEPS = 60
LEVELS: Mapping[str, Mapping[str, Any]] = {
    "a": {"levels": BASE},
    "bad": {"levels": BAD, "pause": 0.1, "pause_seed": 3},
    "good": {"levels": GOOD},
}
DROPPED = {"bad_s3", "bad_s4", "bad_s5"}


def loaded(logs: Path, levels: Mapping[str, Any] = LEVELS, **options: Any) -> LoadedConfig:
    rule = {"stopping": {"after_steps": [2]}, "seeds": SEEDS, "max_steps": STEPS, "every": 2}
    return load(logs, levels, **{**rule, **options})


def go_on(folder: Path, **options: Any) -> tuple[CampaignResult, str]:
    console, output = plain_console()
    result = resume_campaign(folder, console=console, executor=fake_executor(), **options)
    return result, output.getvalue()


def statuses(folder: Path) -> dict[str, str]:
    return {entry["name"]: entry["status"] for entry in read_json(folder / "manifest.json")["runs"]}


def expected(dropped: set[str] = DROPPED) -> dict[str, str]:
    names = [f"{condition}_s{seed}" for seed in SEEDS for condition in LEVELS]
    return {name: "dropped" if name in dropped else "done" for name in names}


def test_a_condition_that_cannot_win_is_stopped(tmp_path: Path) -> None:
    console, output = plain_console()
    result = run_campaign(loaded(tmp_path), console=console, executor=fake_executor())
    folder, text = result.campaign_dir, output.getvalue()
    assert (result.exit_code, result.status, result.failed) == (0, "done", ())
    assert statuses(folder) == expected()

    # By hand: d = -0.10, -0.08, -0.11; mean -0.0967, sd 0.01528, t(0.975, 2) = 4.3027.
    manifest = read_json(folder / "manifest.json")
    (entry,) = ({**entry} for entry in manifest["dropped"])
    assert entry.pop("at")
    trained = len(read_jsonl(folder / "runs/bad_s3/metrics.jsonl"))
    assert 2 <= trained < STEPS
    saved = 3 * STEPS - trained
    assert entry == {
        "condition": "bad",
        "baseline": "a",
        "step": 2,
        "seeds": 3,
        "difference": pytest.approx(-0.096667, abs=1e-6),
        "low": pytest.approx(-0.134613, abs=1e-5),
        "high": pytest.approx(-0.058721, abs=1e-5),
        "margin": 0.02,
        "confidence": 0.95,
        "steps_saved": saved,
    }
    total = 15 * STEPS
    assert manifest["saved"] == {"steps": saved, "of": total, "share": saved / total}
    assert manifest["stopping"] == {
        "after_steps": [2],
        "margin": 0.02,
        "confidence": 0.95,
        "min_seeds": 3,
    }
    reason = (
        "stopped for futility at step 2 (against a: -9.7 points, 95 % CI -13.5 to -5.9, below "
        "+2 points, 3 seeds)"
    )
    assert f"bad {reason}; ends 3 runs" in text
    assert f"stopped for futility: bad; that saved {saved} steps of {total}, " in text
    for name in DROPPED:
        record = RunRecord.read(folder / "runs" / name)
        assert (record.status, record.data["message"]) == ("dropped", reason)
    rows = [row["step"] for row in read_jsonl(folder / "runs/bad_s3/metrics.jsonl")]
    assert rows == list(range(trained))
    for name in ("bad_s4", "bad_s5"):
        assert not (folder / "runs" / name / "metrics.jsonl").exists()

    campaign = read_campaign(folder)
    assert campaign is not None
    assert (campaign.state, campaign.counts()["dropped"]) == ("done", 3)
    judged = {found.treatment: found.judgement for found in compare(campaign).contrasts}
    assert (judged["bad"].verdict.kind, judged["bad"].p) == ("dropped", 1.0)
    assert judged["good"].method == "Holm"
    before = snapshot(folder / "runs")
    again, text = go_on(folder, retry_failed=True)
    assert (again.exit_code, again.status) == (0, "done")
    assert "15 runs, 12 done, 3 dropped, nothing to train" in text
    assert snapshot(folder / "runs") == before
    assert read_json(folder / "manifest.json") == manifest


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from campaigns import fake_executor, plain_console
    from test_stopping import loaded
    from retrain.experiments.campaign import run_campaign

    def executor(folder):
        made = fake_executor()(folder)
        made.cancel = lambda names: os.kill(os.getpid(), signal.SIGKILL)
        return made

    run_campaign(loaded(Path(sys.argv[1])), console=plain_console()[0], executor=executor)
"""


def test_a_decision_outlives_a_kill_before_it_was_carried_out(tmp_path: Path) -> None:
    here = str(Path(__file__).parent)
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": here},
        check=False,
    )
    (folder,) = tmp_path.glob("campaign_*")
    decided = read_json(folder / "manifest.json")["dropped"]
    assert [(entry["condition"], entry["seeds"]) for entry in decided] == [("bad", 3)]
    assert statuses(folder)["bad_s3"] == "running"
    assert "dropped" not in statuses(folder).values()
    console, output = plain_console()
    resume_check(folder, as_json=True, console=console)
    found = {run["name"]: run for run in json.loads(output.getvalue())}
    assert not found["bad_s4"]["resumes"]
    assert found["bad_s4"]["notes"] == ["its condition was stopped for futility"]
    assert found["good_s4"]["resumes"]
    result, text = go_on(folder)
    assert (result.exit_code, statuses(folder)) == (0, expected())
    assert RunRecord.read(folder / "runs/bad_s3").data["attempts"] == 1
    campaign = read_campaign(folder)
    assert campaign is not None
    assert (campaign.state, campaign.counts()["dropped"]) == ("done", 3)
    # And it is not made again.
    after = read_json(folder / "manifest.json")["dropped"]
    assert [{**entry, "steps_saved": 0} for entry in after] == decided
    assert after[0]["steps_saved"] > 2 * STEPS
    assert "; ends " not in text


class Scripted:
    """An executor that says what it is told to, and runs nothing."""

    slots = 1

    def __init__(self, script: list[list[Event]]) -> None:
        self.script = script
        self.submitted: list[str] = []
        self.cancelled: list[str] = []

    def submit(self, jobs: Sequence[Job]) -> None:
        self.submitted += [job.name for job in jobs]

    def cancel(self, names: Sequence[str]) -> list[Event]:
        self.cancelled += names
        return [Cancelled(name, started=False) for name in names if name != "bad_s3"]

    def poll(self, timeout: float) -> list[Event]:
        return self.script.pop(0)

    def stop(self) -> list[Event]:
        return []

    def kill(self) -> None: ...

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *_: object) -> None: ...


def measure(folder: Path, step: int, levels: Mapping[str, Mapping[str, float]]) -> None:
    """What the runs of these conditions and seeds have after so many steps."""
    for condition, by_seed in levels.items():
        for seed, accuracy in by_seed.items():
            run_dir = folder / "runs" / f"{condition}_s{seed}"
            (run_dir / "evaluation").mkdir(exist_ok=True)
            atomic_write_json(
                run_dir / f"evaluation/step_{step:06d}.json",
                {"step": step, "accuracy": accuracy, "greedy_accuracy": 1 - accuracy},
            )


def first(levels: Mapping[str, float], seeds: int) -> dict[str, float]:
    return dict(list(levels.items())[:seeds])


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        (Failed("bad_s3", "killed", "its worker was killed"), "dropped"),
        (Failed("bad_s3", "error", "ValueError: x"), "failed"),
        (Interrupted("bad_s3"), "dropped"),
        (Cancelled("bad_s3"), "dropped"),
        (Finished("bad_s3", "done", "", {"steps": 4}), "done"),
    ],
)
def test_how_a_run_that_is_ended_may_end(tmp_path: Path, ending: Event, status: str) -> None:
    """A killed worker's is not tried again; one that came to its end in time is done."""
    conditions = ("a", "bad")
    names = [f"{condition}_s{seed}" for seed in SEEDS for condition in conditions]
    ends = {name: [Finished(name, "done", "", {})] for name in names}
    script: list[list[Event]] = [ends[name] for name in names[:5]]  # type: ignore[misc]
    script += [[Started("bad_s3", 1), Row("bad_s3", 0)], [Row("bad_s3", 1), ending]]
    script += [list(ends[name]) for name in ("a_s4", "a_s5")]
    executor = Scripted(script)

    def make(folder: Path) -> Scripted:
        measure(folder, 2, {"a": first(BASE, 3), "bad": first(BAD, 3)})
        if status == "done":
            RunRecord.read(folder / "runs/bad_s3").update(status="done", result={"steps": 4})
        # What would decide comes with its row.
        last, later = folder / "runs/bad_s3/evaluation/step_000002.json", folder / "later.json"
        last.rename(later)
        poll = executor.poll

        def poll_and_measure(timeout: float) -> list[Event]:
            events = poll(timeout)
            if Row("bad_s3", 1) in events:
                later.rename(last)
            return events

        executor.poll = poll_and_measure  # type: ignore[method-assign]
        return executor

    two = {name: LEVELS[name] for name in conditions}
    console, _ = plain_console()
    result = run_campaign(loaded(tmp_path, two), console=console, executor=make)
    assert executor.submitted == names
    assert executor.cancelled == ["bad_s3", "bad_s4", "bad_s5"]
    found = statuses(result.campaign_dir)
    assert found == {
        name: status if name == "bad_s3" else "dropped" if name in DROPPED else "done"
        for name in names
    }
    assert result.exit_code == (1 if status == "failed" else 0)


def test_a_resumed_campaign_decides_by_what_is_in_its_files(tmp_path: Path) -> None:
    config = loaded(tmp_path)
    folder = create_campaign(config, plan_runs(config)).folder
    measure(folder, 2, {name: first(LEVELS[name]["levels"], 3) for name in LEVELS})
    result, text = go_on(folder)
    never_begun = {f"bad_s{seed}" for seed in SEEDS}
    assert (result.exit_code, statuses(folder)) == (0, expected(never_begun))
    assert "; ends 5 runs" in text
    assert not list(folder.glob("runs/bad_*/metrics.jsonl"))
    assert read_json(folder / "manifest.json")["saved"]["share"] == pytest.approx(1 / 3)


def test_what_a_resume_makes_of_the_runs_of_a_stopped_condition(tmp_path: Path) -> None:
    config = loaded(tmp_path)
    folder = create_campaign(config, plan_runs(config)).folder
    manifest = Manifest.read(folder)
    measure(folder, 2, {name: first(LEVELS[name]["levels"], 3) for name in LEVELS})
    assert Stopping(manifest).decide() == ["bad"]
    ends = {
        "bad_s1": ("failed", "error"),
        "bad_s2": ("failed", "killed"),
        "bad_s3": ("stopped", ""),
    }
    for name, (status, cause) in ends.items():
        RunRecord.read(folder / "runs" / name).update(status=status, cause=cause or None)
        manifest.set_run(name, status, "why", cause=cause or None)
    # As its worker left it, after the campaign had written that it is dropped.
    RunRecord.read(folder / "runs/bad_s4").update(status="stopped")
    manifest.set_run("bad_s4", "dropped", "stopped for futility")
    campaign = read_campaign(folder)
    assert campaign is not None
    assert {run.name for run in campaign.runs if run.state == "dropped"} == {"bad_s4"}
    for run in manifest.data["runs"]:
        if run["condition"] != "bad":
            RunRecord.read(folder / "runs" / run["name"]).update(status="done")
            manifest.set_run(run["name"], "done")
    result, text = go_on(folder, retry_failed=True)
    assert "nothing to train" in text
    assert {run.name: run.status for run in result.runs if run.condition == "bad"} == {
        "bad_s1": "failed",
        **dict.fromkeys(("bad_s2", "bad_s3", "bad_s4", "bad_s5"), "dropped"),
    }
    for seed in (2, 3, 4, 5):
        assert RunRecord.read(folder / f"runs/bad_s{seed}").status == "dropped"


def rule(
    logs: Path, tables: Mapping[str, Any] | None = None, names: str = "abc", **stopping: Any
) -> Manifest:
    """A campaign of five seeds that has not begun, with its rule."""
    config = config_from_mapping(
        {
            "training": {"max_tokens": 16},
            "evaluation": {"every": 2},
            "logging": {"log_dir": str(logs)},
            "campaign": {
                "seeds": list(SEEDS),
                "max_steps": 8,
                "stopping": {"after_steps": [2, 4], **stopping},
                "conditions": [{"name": name, "advantage_mode": "grpo"} for name in names],
            },
            **(tables or {}),
        }
    )
    return create_campaign(config, plan_runs(config))


def shifted(by: float, seeds: int = 4) -> dict[str, float]:
    """Around BASE, with a spread of 0.01 in the difference."""
    pairs = first(BASE, seeds).items()
    return {seed: level + by + 0.01 * (-1) ** int(seed) for seed, level in pairs}


def test_who_is_judged_and_by_what(tmp_path: Path) -> None:
    manifest = rule(tmp_path)
    measure(manifest.folder, 2, {"a": first(BASE, 4), "b": shifted(-0.1, 2), "c": shifted(0.1)})
    stopping = Stopping(manifest)
    assert stopping.decide() == []  # two seeds of b, and c is ahead
    measure(manifest.folder, 4, {"a": BASE, "b": shifted(-0.1), "c": shifted(0.1)})
    assert stopping.decide(news_of="c") == []
    assert stopping.decide(news_of="a") == ["b"]
    assert stopping.decide() == []  # once
    assert Manifest.read(manifest.folder).dropped == ("b",)
    assert [entry["step"] for entry in manifest.data["dropped"]] == [4]


def test_a_run_that_is_tried_again_is_waited_for(tmp_path: Path) -> None:
    """Whichever seeds come first, the same seeds of the plan decide, with the same numbers."""
    decided = []
    for arrival in ("123", "132", "314"):
        manifest = rule(tmp_path, names="ab")
        measure(manifest.folder, 2, {"a": BASE})
        stopping = Stopping(manifest)
        for seed in arrival[:-1]:
            measure(manifest.folder, 2, {"b": {seed: BAD[seed]}})
            assert stopping.decide() == []
        measure(manifest.folder, 2, {"b": {seed: BAD[seed] for seed in arrival}})
        if "2" not in arrival:
            # Seeds 1, 3 and 4 alone would do; 2 comes late, or fails for good.
            assert stopping.decide() == []
            measure(manifest.folder, 2, {"b": {"2": BAD["2"]}})
        assert stopping.decide() == ["b"]
        (entry,) = manifest.data["dropped"]
        decided.append((entry["seeds"], entry["difference"]))
    assert decided == [(3, pytest.approx(-0.096667, abs=1e-6))] * 3
    manifest = rule(tmp_path, names="ab")
    measure(manifest.folder, 2, {"a": BASE, "b": {seed: BAD[seed] for seed in "134"}})
    manifest.set_run("b_s2", "failed")
    assert Stopping(manifest).decide() == ["b"]


def test_the_margin_decides(tmp_path: Path) -> None:
    # Four differences of -0.001 ± 0.01: mean -0.001, sd 0.01155, upper end +0.01737.
    for margin, stopped in ((0.0172, []), (0.0175, ["b"])):
        manifest = rule(tmp_path, names="ab", margin=margin)
        measure(manifest.folder, 2, {"a": first(BASE, 4), "b": shifted(-0.001)})
        assert Stopping(manifest).decide() == stopped
    # [report].margin unless it has its own.
    manifest = rule(tmp_path, {"report": {"margin": 0.0172}}, names="ab")
    measure(manifest.folder, 2, {"a": first(BASE, 4), "b": shifted(-0.001)})
    assert Stopping(manifest).decide() == []
    assert manifest.data["stopping"]["margin"] == 0.0172


def test_a_diverged_run_scores_the_floor(tmp_path: Path) -> None:
    manifest = rule(tmp_path, {"report": {"floor": 0.25}}, names="ab", confidence=0.9)
    measure(manifest.folder, 2, {"a": first(BASE, 3), "b": first(BASE, 2)})
    stopping = Stopping(manifest)
    assert stopping.decide() == []
    manifest.set_run("b_s3", "diverged")
    manifest.set_run("b_s2", "diverged")
    assert stopping.decide() == []  # 0, -0.35, -0.45: wide, up to +0.13
    manifest.set_run("b_s1", "diverged")
    assert stopping.decide() == ["b"]
    assert manifest.data["dropped"][0]["difference"] == pytest.approx(0.25 - 0.6)


def test_planned_comparisons_say_who_can_be_stopped(tmp_path: Path) -> None:
    """A baseline of any comparison is kept; with two baselines neither may be out of reach."""
    report = {"contrasts": ["b vs a", "c vs a", "c vs b"]}
    manifest = rule(tmp_path, {"report": report})
    worse = {"a": first(BASE, 4), "b": shifted(-0.1), "c": shifted(-0.1)}
    measure(manifest.folder, 2, worse)
    stopping = Stopping(manifest)
    # c is as good as b: identical, so it cannot win by the margin, and against a it is behind.
    assert stopping.decide() == ["c"]
    assert [entry["baseline"] for entry in manifest.data["dropped"]] == ["a", "b"]
    other = rule(tmp_path, {"report": report})
    measure(other.folder, 2, {**worse, "b": shifted(-0.3)})
    assert Stopping(other).decide() == []  # c may still beat b


def test_nothing_left_to_train_is_not_judged(tmp_path: Path) -> None:
    manifest = rule(tmp_path, names="ab")
    measure(manifest.folder, 2, {"a": BASE, "b": BAD})
    for seed in SEEDS:
        manifest.set_run(f"b_s{seed}", "failed" if seed == 4 else "done")
    assert Stopping(manifest).decide() == []
    manifest.set_run("b_s5", "stopped")
    assert Stopping(manifest).decide() == ["b"]


def test_by_greedy_accuracy_or_by_reward(tmp_path: Path) -> None:
    manifest = rule(tmp_path, {"report": {"metric": "greedy_accuracy"}})
    measure(manifest.folder, 2, {"a": first(BASE, 4), "b": shifted(-0.1), "c": shifted(0.1)})
    assert Stopping(manifest).decide() == ["c"]  # it is 1 - accuracy there

    by_reward = {"report": {"metric": "reward", "window": 2}, "evaluation": {"every": 0}}
    manifest = rule(tmp_path, by_reward, names="ab", after_steps=[3])
    # Steps 1 and 2 count, not the first, nor what came later.
    for name, rewards in (("a", [0.0, 0.4, 0.6, 0.0]), ("b", [9.0, 0.3, 0.5, 9.0])):
        for seed in (1, 2, 3):
            rows = [{"step": n, "mean_reward": r + 0.01 * seed} for n, r in enumerate(rewards)]
            path = manifest.folder / f"runs/{name}_s{seed}/metrics.jsonl"
            append_jsonl(path, rows[: 2 if seed == 3 else 4])
    stopping = Stopping(manifest)
    assert stopping.decide() == []  # the third seed has two rows
    for name, reward in (("a", 0.63), ("b", 0.54)):
        path = manifest.folder / f"runs/{name}_s3/metrics.jsonl"
        append_jsonl(path, [{"step": 2, "mean_reward": reward}])
    assert stopping.decide() == ["b"]
    measured = manifest.data["dropped"][0]["difference"]
    assert measured == pytest.approx((-0.1 - 0.1 + (0.33 + 0.54) / 2 - (0.43 + 0.63) / 2) / 3)
    assert "points" not in stopping.message("b")


def test_the_rule_is_fixed_before_the_first_run(tmp_path: Path) -> None:
    folder = rule(tmp_path, names="a").folder
    tables = {
        "training": {"max_tokens": 16},
        "evaluation": {"every": 2},
        "logging": {"log_dir": str(tmp_path)},
        "campaign": {
            "seeds": list(SEEDS),
            "max_steps": 8,
            "stopping": {"after_steps": [2]},
            "conditions": [{"name": "a", "advantage_mode": "grpo"}],
        },
    }
    before = snapshot(folder)
    with pytest.raises(ConfigError, match="is fixed before the first run"):
        resume_campaign(folder, loaded=config_from_mapping(tables), extend=True)
    assert snapshot(folder) == before


def test_the_command_line_may_give_the_rule(tmp_path: Path) -> None:
    config = load(tmp_path, {"a": {}, "b": {}}, seeds=(1, 2, 3), every=2)
    given = [parse_set(f"campaign.stopping.{key}") for key in ("after_steps=[2]", "margin=1")]
    changed = config_from_mapping(
        config.config.model_dump(exclude_none=True, exclude={"resume", "squeeze"}), given
    )
    manifest = create_campaign(changed, plan_runs(changed))
    assert manifest.data["stopping"]["after_steps"] == [2]
    assert manifest.data["overrides"] == {
        "campaign.stopping.after_steps": [2],
        "campaign.stopping.margin": 1,
    }


def test_only_so_many_runs_for_now(tmp_path: Path) -> None:
    config = load(tmp_path, {"a": {}, "b": {}}, seeds=(1, 2, 3), max_runs=5)
    console, output = plain_console()
    result = run_campaign(config, console=console, executor=fake_executor())
    folder = result.campaign_dir
    assert (result.exit_code, result.status) == (0, "done")
    assert [run.name for run in result.runs if run.status == "done"] == [
        *("a_s1", "b_s1", "a_s2", "b_s2")
    ]
    assert "2 of 6 runs left out: max_runs = 5" in output.getvalue()
    assert "--set campaign.max_runs=0" in output.getvalue()
    campaign = read_campaign(folder)
    assert campaign is not None
    assert (campaign.finished, campaign.state, campaign.counts()["pending"]) == (True, "done", 2)

    again, text = go_on(folder)
    assert (again.exit_code, again.status) == (0, "done")
    assert "6 runs, 4 done, 2 left out for now (max_runs), nothing to train" in text
    with pytest.raises(InputError, match="1 is less than one seed of the 2 conditions"):
        go_on(folder, overrides=[Override("campaign", "max_runs", 1)])
    rest, text = go_on(folder, overrides=[Override("campaign", "max_runs", 0)])
    assert "4 done, 2 to train" in text
    assert {run.status for run in rest.runs} == {"done"}
    assert "left out" not in text
    assert Manifest.read(folder).left_out == frozenset()


def test_how_many_for_now_is_checked_when_it_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []

    def take(manifest: Manifest, runs: Any, settings: CampaignConfig, **options: Any) -> None:
        seen.append((len(runs), settings.max_runs))

    monkeypatch.setattr("retrain.experiments.resume.train_campaign", take)
    folder = rule(tmp_path, names="ab").folder
    resume(folder, overrides=[Override("campaign", "max_runs", 2)])
    assert seen == [(2, 2)]


def test_condition_by_condition(tmp_path: Path) -> None:
    runs = plan_runs(load(tmp_path, {"a": {}, "b": {}}, seeds=(7, 3), seeds_first=False))
    assert [run.name for run in runs] == ["a_s7", "a_s3", "b_s7", "b_s3"]


def test_every_status_has_a_look_and_a_place_in_the_live_view() -> None:
    assert set(get_args(RunStatus)) <= set(LOOKS)
    assert len({look.sign for look in LOOKS.values()}) == len(LOOKS)
    assert len({look.plain for look in LOOKS.values()}) == len(LOOKS)
    output = io.StringIO()
    console = Console(file=output, width=80, force_terminal=True, color_system=None)
    with RunsView(console, [("a_s1", 4), ("b_s1", 4)], title="x") as view:
        view.handle(Started("b_s1", 1))
        view.handle(Row("b_s1", 0))
        view.handle(Cancelled("b_s1"))
        console.print(view._render())
    shown = output.getvalue()
    assert "0 of 2 runs done, 1 waiting, 1 dropped" in shown
    # Its other steps need no more waiting for.
    assert "50.0%" in shown
