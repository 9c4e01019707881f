"""Going on with a campaign: what is trained again, what is left alone, who is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from campaigns import fake_executor, load, plain_console, set_trouble, snapshot, tables

from retrain.cli import main
from retrain.config.dump import read_run_config, run_config_toml
from retrain.config.load import config_from_mapping
from retrain.config.overrides import parse_set
from retrain.config.schema import CampaignConfig, RunConfig
from retrain.errors import ConfigError, InputError
from retrain.experiments import resume as resuming
from retrain.experiments.campaign import create_campaign, run_campaign
from retrain.experiments.conclusion import CampaignResult
from retrain.experiments.manifest import Manifest
from retrain.experiments.plan import plan_runs
from retrain.experiments.resume import resume, resume_campaign
from retrain.files import RunRecord, read_json, read_jsonl
from retrain.locks import FolderLock, LockedError
from retrain.processes import ProcessId

TROUBLES: Mapping[str, Mapping[str, Any]] = {
    "fine": {},
    "broken": {"trouble": "raise"},
    "killed": {"trouble": "kill"},
    "wild": {"trouble": "diverge"},
    "waiting": {},
}


def start(
    logs: Path, conditions: Mapping[str, Mapping[str, Any]] = TROUBLES, **options: Any
) -> CampaignResult:
    """A campaign that had these troubles; by default nothing was tried again."""
    console, _ = plain_console()
    loaded = load(logs, conditions, **{"seeds": (1,), "max_retries": 0, **options})
    return run_campaign(loaded, console=console, executor=fake_executor())


def go_on(folder: Path, **options: Any) -> tuple[CampaignResult, str]:
    console, output = plain_console()
    result = resume_campaign(folder, console=console, executor=fake_executor(), **options)
    return result, output.getvalue()


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A campaign with a run of every kind; its troubles are over."""
    logs = tmp_path_factory.mktemp("mixed")
    folder = start(logs).campaign_dir
    manifest = Manifest.read(folder)
    # As if nobody had come to it.
    shutil.rmtree(folder / "runs" / "waiting_s1" / "emergence", ignore_errors=True)
    for name in ("metrics.jsonl", "run.log"):
        (folder / "runs" / "waiting_s1" / name).unlink()
    RunRecord.create(
        folder / "runs" / "waiting_s1", name="waiting_s1", condition="waiting", seed=1, max_steps=4
    )
    manifest.set_run("waiting_s1", "pending")
    set_trouble(logs, {})
    return folder


@pytest.fixture
def mixed(once: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(once, tmp_path / once.name))


def states(result: CampaignResult) -> dict[str, str]:
    return {run.condition: run.status for run in result.runs}


def attempts(folder: Path) -> dict[str, int]:
    records = [RunRecord.read(path).data for path in sorted((folder / "runs").iterdir())]
    return {record["condition"]: record["attempts"] for record in records}


def test_what_is_missing_is_trained_and_the_rest_left_alone(mixed: Path) -> None:
    left_alone = [mixed / "runs" / f"{name}_s1" for name in ("fine", "broken", "wild")]
    before = snapshot(*left_alone)
    entries = {run["name"]: run for run in read_json(mixed / "manifest.json")["runs"]}
    result, output = go_on(mixed)
    assert states(result) == {
        "fine": "done",
        "broken": "failed",
        "killed": "done",
        "wild": "diverged",
        "waiting": "done",
    }
    assert (result.exit_code, result.status) == (1, "failed")
    assert snapshot(*left_alone) == before
    after = {run["name"]: run for run in read_json(mixed / "manifest.json")["runs"]}
    for name in ("fine_s1", "broken_s1", "wild_s1"):
        assert after[name] == entries[name]
    assert (
        f"{mixed.name}: 5 runs, 1 done, 1 diverged, 1 failed by an error of its own "
        "(--retry-failed tries again), 2 to train" in output
    )
    assert f"next:     less {left_alone[1]}/run.log" in output
    killed = RunRecord.read(mixed / "runs" / "killed_s1").data
    assert (killed["attempts"], killed["resumed_from"], killed["cause"]) == (2, 2, None)
    assert [row["step"] for row in read_jsonl(mixed / "runs" / "killed_s1" / "metrics.jsonl")] == [
        *range(4)
    ]


def test_failed_runs_are_tried_again_when_asked_and_diverged_ones_never(mixed: Path) -> None:
    left_alone = [mixed / "runs" / f"{name}_s1" for name in ("fine", "wild")]
    before = snapshot(*left_alone)
    result, output = go_on(mixed, retry_failed=True)
    assert "5 runs, 1 done, 1 diverged, 3 to train" in output
    assert set(states(result).items()) - {("wild", "diverged")} == {
        (name, "done") for name in ("fine", "broken", "killed", "waiting")
    }
    assert snapshot(*left_alone) == before
    expected = {"fine": 1, "broken": 2, "killed": 2, "wild": 1, "waiting": 1}
    assert attempts(mixed) == expected
    # The diverged one keeps the campaign from being done, however often it is resumed.
    again, output = go_on(mixed, retry_failed=True)
    assert (again.exit_code, again.status) == (1, "failed")
    assert "5 runs, 4 done, 1 diverged, nothing to train" in output
    assert attempts(mixed) == expected


@pytest.mark.parametrize("retries", [0, 1, 3])
@pytest.mark.parametrize(("trouble", "cause"), [("kill", "killed"), ("full", "disk")])
def test_a_failure_of_the_machine_is_tried_again_so_often(
    tmp_path: Path, retries: int, trouble: str, cause: str
) -> None:
    result = start(tmp_path, {"a": {"trouble": trouble}}, max_retries=retries)
    assert (result.exit_code, states(result)) == (1, {"a": "failed"})
    assert attempts(result.campaign_dir) == {"a": 1 + retries}
    # Each resume has as many of its own.
    again, output = go_on(result.campaign_dir)
    assert (again.exit_code, states(again)) == (1, {"a": "failed"})
    assert attempts(result.campaign_dir) == {"a": 2 * (1 + retries)}
    assert output.count("a_s1 will be tried again: ") == retries
    assert RunRecord.read(again.runs[0].run_dir).data["cause"] == cause
    assert Manifest.read(again.campaign_dir).data["runs"][0]["cause"] == cause
    assert f"next:     retrain resume {again.campaign_dir}" in output


@pytest.mark.parametrize(
    ("trouble", "status"), [("raise", "failed"), ("explain", "failed"), ("diverge", "diverged")]
)
def test_what_would_only_come_again_is_not_tried_again(
    tmp_path: Path, trouble: str, status: str
) -> None:
    result = start(tmp_path, {"a": {"trouble": trouble}, "b": {}}, max_retries=3)
    assert states(result) == {"a": status, "b": "done"}
    before = snapshot(result.campaign_dir / "runs")
    again, output = go_on(result.campaign_dir)
    assert states(again) == {"a": status, "b": "done"}
    assert again.exit_code == 1
    assert "nothing to train" in output
    assert "will be tried again" not in output
    assert snapshot(result.campaign_dir / "runs") == before


def test_how_often_it_is_tried_may_change(tmp_path: Path) -> None:
    result = start(tmp_path, {"a": {"trouble": "kill", "trouble_attempts": 3}})
    again, _ = go_on(result.campaign_dir, overrides=[parse_set("campaign.max_retries=2")])
    assert (again.exit_code, attempts(again.campaign_dir)) == (0, {"a": 4})
    assert Manifest.read(again.campaign_dir).data["max_retries"] == 2


def test_runs_of_a_killed_campaign_are_trained(tmp_path: Path) -> None:
    """Nobody came to write down how they ended: run.json says running, its process is gone."""
    result = start(tmp_path, {"a": {}, "b": {}})
    folder = result.campaign_dir
    gone = ProcessId.own().fields() | {"pid": 2**22 - 1, "born": 1}
    run_dir = folder / "runs" / "a_s1"
    RunRecord.read(run_dir).update(status="running", **gone)
    rows = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "metrics.jsonl").write_text("".join(rows[:2]))
    manifest = Manifest.read(folder)
    manifest.set_run("a_s1", "running")
    manifest.set_status("running")
    again, output = go_on(folder)
    assert (again.exit_code, states(again)) == (0, {"a": "done", "b": "done"})
    assert "2 runs, 1 done, 1 to train" in output
    assert (run_dir / "metrics.jsonl").read_text() == "".join(rows)


def test_a_run_that_ended_after_its_campaign_was_killed_counts(tmp_path: Path) -> None:
    """Its worker finished it, and run.json says so; only the manifest was not told."""
    result = start(tmp_path, {"a": {}, "b": {}})
    folder = result.campaign_dir
    manifest = Manifest.read(folder)
    before = snapshot(folder / "runs")
    told = [dict(entry) for entry in manifest.data["runs"]]
    manifest.set_run("a_s1", "running")
    manifest.set_status("running")
    again, output = go_on(folder)
    assert (again.exit_code, again.status) == (0, "done")
    assert "2 runs, 2 done, nothing to train" in output
    assert Manifest.read(folder).data["runs"] == told
    assert snapshot(folder / "runs") == before


def test_a_planned_campaign_that_was_never_started(tmp_path: Path) -> None:
    loaded = load(tmp_path, {"a": {}, "b": {}}, seeds=(1,))
    folder = create_campaign(loaded, plan_runs(loaded)).folder
    result, output = go_on(folder)
    assert (result.exit_code, result.status) == (0, "done")
    assert f"{folder.name}: 2 runs, 2 to train" in output


def test_a_done_campaign_says_so(tmp_path: Path) -> None:
    folder = start(tmp_path, {"a": {}, "b": {}}).campaign_dir
    before = snapshot(folder / "runs")
    manifest = read_json(folder / "manifest.json")
    for options in ({}, {"retry_failed": True}):
        result, output = go_on(folder, **options)
        assert (result.exit_code, result.status) == (0, "done")
        assert f"{folder.name}: 2 runs, 2 done, nothing to train" in output
        assert f"report:   {folder / 'report.html'}" in output
    assert snapshot(folder / "runs") == before
    assert read_json(folder / "manifest.json") == manifest
    assert not list(folder.rglob(".lock*"))


def test_what_killed_writers_left_aside_is_removed(tmp_path: Path) -> None:
    folder = start(tmp_path, {"a": {}}).campaign_dir
    (folder / ".manifest.json.123.tmp").write_text("{")
    (folder / ".report.123.tmp").mkdir()
    assert go_on(folder)[0].exit_code == 0
    assert not list(folder.glob(".*"))


def test_a_campaign_in_use_is_refused(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(mixed)
    with FolderLock(mixed).acquire():
        since = read_json(mixed / ".lock")["since"]
        with pytest.raises(LockedError) as caught:
            go_on(mixed)
        with pytest.raises(SystemExit) as left:
            main(["resume", str(mixed)])
    own = ProcessId.own()
    message = f"{mixed} is in use by process {own.pid} on {own.host}, since {since}"
    assert str(caught.value) == message
    assert left.value.code == caught.value.exit_code == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert snapshot(mixed) == before


def test_the_lock_of_a_dead_process_is_taken_over(mixed: Path) -> None:
    gone = ProcessId.own().fields() | {"pid": 2**22 - 1, "born": 1}
    (mixed / ".lock").write_text(json.dumps({"token": "dead", "since": "2026-01-31", **gone}))
    assert states(go_on(mixed)[0])["waiting"] == "done"
    assert not list(mixed.rglob(".lock*"))


class Nowhere:
    """Folders with nothing to resume, by what is wrong with them."""

    def __init__(self, folder: Path) -> None:
        self.missing, self.empty, self.adapter, self.logs = (
            folder / name for name in ("missing", "empty", "adapter", "logs")
        )
        for made in (self.empty, self.adapter):
            made.mkdir()
        (self.adapter / "adapter_config.json").write_text("{}")
        self.run = self.logs / "a_s1"
        for number in (1, 2):
            RunRecord.create(
                self.logs / f"a_s{number}",
                name=f"a_s{number}",
                condition="a",
                seed=number,
                max_steps=4,
            )


@pytest.fixture
def nowhere(tmp_path: Path) -> Nowhere:
    return Nowhere(tmp_path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no such folder; give the folder of a run or of a campaign"),
        ("empty", "holds no run and no campaign: run.json and manifest.json are missing"),
        (
            "adapter",
            "is an adapter, not a run; to start a new run from it set [model].init_adapter",
        ),
        ("logs", "holds several; name one of them, e.g. "),
    ],
)
def test_a_folder_with_nothing_to_resume(
    nowhere: Nowhere, capsys: pytest.CaptureFixture[str], kind: str, message: str
) -> None:
    folder: Path = getattr(nowhere, kind)
    with pytest.raises(SystemExit) as left:
        main(["resume", str(folder)])
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {folder}")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"retry_failed": True}, "--retry-failed is for a campaign, and "),
        ({"extend": True}, "--extend is for a campaign, and "),
    ],
)
def test_options_of_campaigns_are_not_for_runs(
    nowhere: Nowhere, option: dict[str, bool], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        resume(nowhere.run, **option)  # type: ignore[arg-type]


@pytest.mark.parametrize("what", ["training.lr=0.5", "campaign.seeds=[1,2]", "model.lora_rank=4"])
def test_what_the_runs_are_cannot_change(mixed: Path, what: str) -> None:
    before = snapshot(mixed)
    with pytest.raises(InputError, match="keeps its runs as they were planned") as caught:
        resume(mixed, overrides=[parse_set(what)])
    assert str(caught.value).startswith(f"{what.partition('=')[0]}, given by --set: ")
    assert "campaign.max_workers, " in str(caught.value)
    assert "inference.url, " in str(caught.value)
    with pytest.raises(InputError, match=r"--allow-change training\.lr is for a single run"):
        resume(mixed, allow_changes=["training.lr"])
    assert snapshot(mixed) == before


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("campaign.max_retries=-1", "-1 does not fit; a whole number of 0 or more is wanted"),
        ("campaign.max_workers=many", '"many" is text; a whole number from 0 to 1024 is wanted'),
        ("campaign.devices=cuda0", '"cuda0" is no device'),
    ],
)
def test_a_wrong_value_is_told_before_anything_is_done(
    mixed: Path, what: str, message: str
) -> None:
    before = snapshot(mixed)
    with pytest.raises(ConfigError) as caught:
        resume(mixed, overrides=[parse_set(what)])
    (issue,) = caught.value.issues
    assert (issue.file, issue.key) == ("--set", what.partition("=")[0])
    assert message in issue.message
    assert snapshot(mixed) == before


def test_how_runs_are_trained_may_change(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[CampaignConfig] = []

    def take(manifest: Manifest, runs: Any, settings: CampaignConfig, **options: Any) -> None:
        seen.append(settings)

    monkeypatch.setattr(resuming, "train_campaign", take)
    options = ["max_workers=4", "worker_timeout=60", "devices=cpu,cpu,cpu,cpu", "parallel=true"]
    go_on(mixed, overrides=[parse_set(f"campaign.{option}") for option in options])
    (settings,) = seen
    assert (settings.max_workers, settings.worker_timeout) == (4, 60)
    assert (settings.devices, settings.parallel) == ("cpu,cpu,cpu,cpu", True)
    assert settings.max_retries == 0


def values(folder: Path, key: str) -> dict[str, Any]:
    """`table.key` in the config of each run, by its condition."""
    table, _, name = key.partition(".")
    return {
        path.name.removesuffix("_s1"): getattr(
            getattr(read_run_config(path / "config.toml"), table), name
        )
        for path in (folder / "runs").iterdir()
    }


def test_what_is_left_may_go_on_elsewhere(mixed: Path) -> None:
    """Finished runs keep the config that they were trained with."""
    result, output = go_on(mixed, overrides=[parse_set("backend.threads=1")])
    assert states(result)["killed"] == states(result)["waiting"] == "done"
    expected = {**dict.fromkeys(TROUBLES, 0), "killed": 1, "waiting": 1}
    assert values(mixed, "backend.threads") == expected
    assert "backend.threads: was 0, is now 1 (in 2 runs)" in output
    result, _ = go_on(mixed, retry_failed=True)
    assert values(mixed, "backend.threads") == expected


def test_where_plugins_lie_now(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "moved").mkdir()
    monkeypatch.chdir(tmp_path)
    before = values(mixed, "plugins.search_paths")
    _, output = go_on(mixed, overrides=[parse_set('plugins.search_paths=["moved"]')])
    moved = [str(tmp_path / "moved")]
    assert values(mixed, "plugins.search_paths") == {**before, "killed": moved, "waiting": moved}
    assert output.count("plugins.search_paths: was") == 1


def test_a_file_that_was_edited_is_heeded(mixed: Path, tmp_path: Path) -> None:
    edited = tables(tmp_path, {name: {} for name in TROUBLES}, seeds=(1,), every=2)
    edited["training"]["save_every"] = 1
    result, output = go_on(mixed, loaded=config_from_mapping(edited))
    assert states(result)["waiting"] == "done"
    before = RunConfig().training.save_every
    assert values(mixed, "training.save_every") == {
        **dict.fromkeys(TROUBLES, before),
        **{"killed": 1, "waiting": 1},
    }
    assert f"training.save_every: was {before}, is now 1 (in 2 runs)" in output
    assert set(values(mixed, "evaluation.every").values()) == {0}
    assert "evaluation.every stays as it was in runs that are there: was 0, is now 2" in output


def test_a_place_that_does_not_fit_is_refused(mixed: Path) -> None:
    before = snapshot(mixed)
    with pytest.raises(ConfigError) as caught:
        go_on(mixed, overrides=[parse_set("inference.url=http://localhost:8001")])
    assert 'engine = "local"' in str(caught.value)
    assert snapshot(mixed) == before


def test_options_of_campaigns_say_nothing_of_a_run(nowhere: Nowhere) -> None:
    loaded = config_from_mapping({"training": {"max_tokens": 16}})
    config = loaded.run_config(loaded.conditions[0], 1)
    (nowhere.run / "config.toml").write_text(run_config_toml(config))
    with pytest.raises(ConfigError) as caught:
        resume(nowhere.run, overrides=[parse_set("report.margin=0.1")])
    (issue,) = caught.value.issues
    assert (issue.file, issue.key) == ("--set", "report.margin")
    assert "says nothing of a run" in issue.message


def test_a_damaged_campaign_is_named(mixed: Path) -> None:
    config = mixed / "runs" / "waiting_s1" / "config.toml"
    config.unlink()
    result, output = go_on(mixed)
    assert (states(result)["waiting"], states(result)["killed"]) == ("failed", "done")
    assert f"waiting_s1 failed: {config} is missing" in output
    (mixed / "manifest.json").write_text("{")
    with pytest.raises(InputError, match=r"manifest\.json is damaged"):
        go_on(mixed)
    assert not list(mixed.rglob(".lock*"))
