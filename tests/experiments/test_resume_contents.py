"""Going on with a campaign whose data, code or place is not what it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from campaigns import fake_executor, plain_console, snapshot, tables

from retrain.analysis.closing import load_campaign
from retrain.analysis.summary import compare
from retrain.config.dump import read_run_config
from retrain.config.load import LoadedConfig, config_from_mapping
from retrain.config.overrides import parse_set
from retrain.errors import ConfigError, InputError
from retrain.experiments import resume as resuming
from retrain.experiments.campaign import create_campaign
from retrain.experiments.conclusion import CampaignResult
from retrain.experiments.manifest import Manifest
from retrain.experiments.plan import plan_runs
from retrain.experiments.resume import resume, resume_campaign
from retrain.files import RunRecord

RESULT = {
    **{"steps": 4, "accuracy_before": 0.25, "accuracy_after": 0.75, "mean_reward": 0.5},
    **{"greedy_before": None, "greedy_after": None, "wall_s": 1.0},
}
ALL = "campaign.max_runs=0"


def write_rows(project: Path, prompt: str) -> None:
    rows = [{"prompt": prompt.format(i), "answer": str(i)} for i in range(300)]
    (project / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def load(project: Path, seeds: tuple[int, ...] = (1, 2)) -> LoadedConfig:
    names = {"a": {}, "b": {}}
    values = tables(project / "logs", names, seeds=seeds, max_runs=2, max_retries=0)
    values["data"] = {"source": "jsonl", "path": "rows.jsonl"}
    values["reward"] = {"type": "custom", "custom_module": "judging", "custom_function": "score"}
    return config_from_mapping(values, base_dir=project)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a campaign that has trained one of its two seeds."""
    folder = tmp_path / "project"
    folder.mkdir()
    write_rows(folder, "What is {}?")
    (folder / "judging.py").write_text("def score(response, reference):\n    return 1.0\n")
    loaded = load(folder)
    manifest = create_campaign(loaded, plan_runs(loaded))
    for name in ("a_s1", "b_s1"):
        RunRecord.read(manifest.run_folder(name)).update(status="done", step=4, result=RESULT)
        manifest.set_run(name, "done", result=RESULT)
    return folder


def campaign_of(project: Path) -> Path:
    (folder,) = (project / "logs").glob("campaign_*")
    return folder


def go_on(project: Path, *options: str, **more: Any) -> tuple[CampaignResult, str]:
    console, output = plain_console()
    result = resume_campaign(
        campaign_of(project),
        overrides=[parse_set(option) for option in options],
        console=console,
        executor=fake_executor(),
        **more,
    )
    return result, output.getvalue()


def test_other_problems_are_refused_unless_allowed_and_then_told(project: Path) -> None:
    write_rows(project, "Compute {}.")
    before, folder = snapshot(project), campaign_of(project)
    with pytest.raises(ConfigError, match=r"data: the problems changed since campaign_.*began"):
        go_on(project, ALL)
    with pytest.raises(ConfigError, match="--allow-change data"):
        go_on(project, extend=True, loaded=load(project, (1, 2, 3)))
    with pytest.raises(InputError, match=r"only data, reward, .* may be allowed"):
        resume(folder, allow_changes=["loss.type"])
    assert snapshot(project) == before
    assert compare(load_campaign(folder)).unlike == ()
    result, output = go_on(project, ALL, allow_changes=["data"])
    assert result.exit_code == 0
    told = "The problems changed while the campaign was trained: 2 runs (a_s2, b_s2) have not"
    assert told in " ".join(output.split())
    planned = Manifest.read(folder).contents("a")
    records = {path.name: RunRecord.read(path) for path in (folder / "runs").iterdir()}
    assert records["a_s1"].contents == planned
    assert {**records["a_s2"].contents, "data": planned["data"]} == planned
    assert [(c["key"], c["step"]) for c in records["a_s2"].data["changes"]] == [("data", 0)]
    # Seeds that are added need the allowance, too: the plan is what it was.
    with pytest.raises(ConfigError, match="--allow-change data"):
        go_on(project, extend=True, loaded=load(project, (1, 2, 3)))


def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop before a worker is started."""
    monkeypatch.setattr(resuming, "train_campaign", lambda *_, **__: None)


def test_a_project_that_was_moved_goes_on(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    untrained(monkeypatch)
    moved = Path(shutil.move(project, project.with_name("elsewhere")))
    _, output = go_on(moved, ALL)
    assert "4 runs, 2 done, 2 to train" in output
    config = read_run_config(campaign_of(moved) / "runs" / "a_s2" / "config.toml")
    assert config.data.path == str(moved / "rows.jsonl")
    assert config.plugins.search_paths == [str(moved)]
    assert config.logging.log_dir == str(moved / "logs")
    assert f'data.path: was "{project}/rows.jsonl", is now "{moved}/rows.jsonl"' in output
    # What was trained before keeps what it was trained with.
    assert str(project) in (campaign_of(moved) / "runs" / "a_s1" / "config.toml").read_text()


def test_a_file_that_is_gone_is_told_before_anything_is_done(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = Path(shutil.move(project, project.with_name("elsewhere")))
    other = Path(shutil.move(moved / "rows.jsonl", moved / "other.jsonl"))
    before = snapshot(moved)
    with pytest.raises(ConfigError) as caught:
        go_on(moved, ALL)
    (issue,) = caught.value.issues
    assert issue.key == "data.path"
    assert issue.message.startswith(f"no such file: {moved / 'rows.jsonl'}")
    assert snapshot(moved) == before
    # Another path to the same content is no change; to other content it is.
    write_rows(moved, "Compute {}.")
    with pytest.raises(ConfigError, match="data: the problems changed"):
        go_on(moved, ALL, f"data.path={moved / 'rows.jsonl'}")
    untrained(monkeypatch)
    go_on(moved, ALL, f"data.path={other}")
    config = read_run_config(campaign_of(moved) / "runs" / "a_s2" / "config.toml")
    assert config.data.path == str(other)


def test_what_was_asked_of_a_resume_holds_for_the_next_one(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before anything was trained, it goes on as it was asked to."""
    folder = campaign_of(project)
    record = RunRecord.read(folder / "runs" / "b_s1")
    record.update(status="failed", message="ValueError: no", cause="error", result=None)
    untrained(monkeypatch)
    go_on(project, ALL, "campaign.max_workers=1", "campaign.parallel=true", retry_failed=True)
    manifest = Manifest.read(folder)
    kept = [manifest.data[key] for key in ("max_runs", "max_workers", "parallel")]
    assert kept == [0, 1, True]
    assert "4 runs, 1 done, 3 to train" in go_on(project)[1]
