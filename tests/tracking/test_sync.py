"""`retrain sync`: runs that have ended, at trackers that they never saw."""

from __future__ import annotations

import json
import shutil
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from retrain import cli
from retrain.config.load import config_from_mapping
from retrain.errors import InputError
from retrain.experiments.campaign import run_campaign
from retrain.files import RunRecord, atomic_write_json, read_json, read_jsonl
from retrain.tracking.process import numbers
from retrain.tracking.state import State, held
from retrain.tracking.sync import sync
from retrain.training.loop import RunStopped
from tests.tracking.fake_server import FakeServer
from tests.tracking.tiny_runs import OFFLINE, config, own, start
from tests.tracking.trackio_store import stored

TRACKIO: dict[str, Any] = {"wandb_project": "probe", "trackers": ["trackio"]}
CAMPAIGN: dict[str, Any] = {
    "model": {"lora_rank": 2},
    "training": {"batch_size": 4, "group_size": 4, "max_tokens": 24},
    "evaluation": {"num_problems": 0},
    "campaign": {
        **{"seeds": [1, 2], "max_steps": 2, "max_workers": 1},
        "conditions": [{"advantage_mode": "grpo", "transform_mode": "none"}],
    },
    "squeeze": {"compress_to": 1},
}


def run_sync(folder: Path, **options: Any) -> tuple[int, list[dict[str, Any]]]:
    """Its exit code and what it says as JSON."""
    options = {"changes": {}, **options}
    heard = StringIO()
    code = sync(folder, as_json=True, console=Console(file=heard), **options)
    return code, json.loads(heard.getvalue())


def outcomes(folder: Path, **options: Any) -> list[str]:
    return [item["outcome"] for item in run_sync(folder, **options)[1]]


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs and a squeeze that no tracker has heard of."""
    logs = tmp_path_factory.mktemp("campaign") / "logs"
    tables = {**CAMPAIGN, "logging": {"log_dir": str(logs)}}
    result = run_campaign(config_from_mapping(tables), console=Console(file=StringIO()))
    assert result.exit_code == 0
    return result.campaign_dir


def test_a_campaign_that_was_never_tracked(
    campaign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "campaign_x"
    shutil.copytree(campaign, folder)
    with pytest.raises(InputError, match=r"has no project .*--project NAME"):
        run_sync(folder)
    with pytest.raises(SystemExit) as left:
        cli.main(["sync", str(tmp_path), "--to", "trackio", "--project", "probe"])
    assert left.value.code == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown == [
        "grpo+none_s1: sent to trackio, project probe: 2 steps",
        "grpo+none_s2: sent to trackio, project probe: 2 steps",
        "squeeze-analysis: sent to trackio, project probe",
        "3 sent",
    ]
    *runs, squeeze = stored(tmp_path / "store")
    assert [run.name for run in runs] == ["grpo+none_s1", "grpo+none_s2"]
    for run in runs:
        rows = read_jsonl(folder / "runs" / run.name / "metrics.jsonl")
        sent = [{**row, "step": float(step)} for step, row in run.metrics]
        assert sent == [numbers(row) for row in rows]
        assert run.group == "grpo+none"
        assert [end["status"] for end in run.ends] == ["done"]
    found = read_json(folder / "squeeze" / "squeeze.json")
    assert squeeze.name == "squeeze-analysis"
    curves = [row for _, row in squeeze.history if "squeeze/mean_variance" in row]
    assert [row["squeeze/mean_variance"] for row in curves] == [*found["mean_variance"].values()]
    tables = [row["squeeze/variance"] for _, row in squeeze.history if "squeeze/variance" in row]
    assert [len(table["_value"]) for table in tables] == [len(found["ranks"])]
    assert squeeze.history[-1][1]["squeeze/recommended_rank"] == found["recommended_rank"]

    # Once more: nothing is sent twice.
    before = [run.history for run in stored(tmp_path / "store")]
    to = {"trackers": ["trackio"], "wandb_project": "probe"}
    assert outcomes(folder, changes=to) == ["already sent"] * 3
    assert [run.history for run in stored(tmp_path / "store")] == before
    # Another project has not got it, also when there were others; one asks for it anew.
    run = folder / "runs" / "grpo+none_s1"
    assert outcomes(run, changes={**to, "wandb_project": "other"}) == ["sent"]
    assert outcomes(run, changes=to) == ["already sent"]
    assert outcomes(run, changes=to, again=True) == ["sent"]
    assert len(stored(tmp_path / "store")) == 4
    assert len(stored(tmp_path / "store", "other")) == 1


def test_what_was_sent_in_part_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what was only written offline; the server says what it has."""
    run_dir = tmp_path / "run"
    start(config(**OFFLINE), run_dir)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    assert outcomes(run_dir) == ["already sent"]
    with FakeServer() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        online = {"wandb_mode": "online", "wandb_artifacts": "final"}
        assert outcomes(run_dir, changes={"wandb_mode": "online"}) == ["sent"]
        ((name, sent),) = server.rows.items()
        metrics = [numbers(row) for row in read_jsonl(run_dir / "metrics.jsonl")]
        assert [own(row) for row in sent] == metrics
        assert outcomes(run_dir, changes={"wandb_mode": "online"}) == ["already sent"]
        # Half of it is lost, and its state says that it was never finished.
        del sent[2:]
        state = State.read(run_dir / "wandb")
        assert state is not None
        state.sent = {}
        state.write(run_dir / "wandb")
        assert outcomes(run_dir, changes={"wandb_mode": "online"}) == ["sent"]
        assert [own(row) for row in server.rows[name]] == metrics
        assert list(server.runs) == [name]
        # Its adapter was not asked for before.
        file = run_dir / "config.toml"
        asked = 'wandb_artifacts = "final"'
        file.write_text(file.read_text().replace('wandb_artifacts = "none"', asked))
        assert outcomes(run_dir, changes=online) == ["sent"]
        assert [item["committed"] for item in server.artifacts] == [True]
        assert outcomes(run_dir, changes=online) == ["already sent"]


def test_what_has_not_finished_is_left_out_and_said(tmp_path: Path) -> None:
    with pytest.raises(RunStopped):
        start(config(**TRACKIO), tmp_path / "stopped", stop=lambda: True)
    shutil.rmtree(tmp_path / "stopped" / "trackio")
    shutil.rmtree(tmp_path / "store")
    shutil.copytree(tmp_path / "stopped", tmp_path / "running")
    RunRecord.read(tmp_path / "running").update(status="running", name="other")
    code, found = run_sync(tmp_path)
    assert code == 0
    assert {item["name"]: item["message"] for item in found} == {
        "grpo_s7": "it is stopped at step 1; --unfinished sends it as it stands",
        "other": "it is being trained",
    }
    assert {item["outcome"] for item in found} == {"skipped"}
    assert not (tmp_path / "store").exists()
    assert sorted(outcomes(tmp_path, unfinished=True)) == ["sent", "skipped"]
    (run,) = stored(tmp_path / "store")
    assert [step for step, _ in run.metrics] == [0]
    assert run.ends[-1]["status"] == "stopped"
    # Trained to its end, the rest is sent, to the same run.
    start(config(), tmp_path / "stopped")
    again = {"trackers": ["trackio"], "wandb_project": "probe"}
    with held(tmp_path / "stopped" / "trackio"):
        assert outcomes(tmp_path / "stopped", changes=again) == ["skipped"]
    assert outcomes(tmp_path / "stopped", changes=again) == ["sent"]
    (run,) = stored(tmp_path / "store")
    assert [step for step, _ in run.metrics] == [0, 1, 2, 3]


def test_what_fails_is_said_and_tried_no_more_than_twice(
    tmp_path: Path, campaign: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a key; a damaged run is not the others' fault."""
    folder = tmp_path / "campaign_x"
    shutil.copytree(campaign, folder)
    shutil.copytree(folder / "runs" / "grpo+none_s1", tmp_path / "alone")
    (tmp_path / "alone" / "config.toml").write_text("[training")
    code, found = run_sync(tmp_path, changes={"wandb_project": "probe"})
    assert code == 1
    assert {item["outcome"] for item in found} == {"failed"}
    messages = {item["name"]: item["message"] for item in found}
    reasons = [item["message"] for item in found]
    assert "config.toml is damaged" in reasons[-1]
    assert sum("No API key" in reason for reason in reasons) == 2
    assert messages["squeeze-analysis"] == "not tried, as the last two failed alike"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "wnadb"], '--to "wnadb" is not known; wandb or trackio is wanted'),
        (["--mode", "dryrun"], '--mode "dryrun" is not known; online or offline is wanted'),
        (["--project", " "], "--project is empty; give a name, or leave it out"),
        (
            ["--to", "trackio", "--project", "p", "--mode", "offline"],
            "--mode is not for trackio, which stays on this machine",
        ),
        (
            ["--project", "team/probe"],
            "cannot be a project's name: it has /; the user or team goes into wandb_entity",
        ),
        (["--to", "wandb"], "grpo_s7 has no project"),
    ],
)
def test_wrong_options_are_refused(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_dir = tmp_path / "run"
    RunRecord.create(run_dir, name="grpo_s7", condition="grpo", seed=7, max_steps=1)
    from retrain.config.dump import run_config_toml

    (run_dir / "config.toml").write_text(run_config_toml(config()))
    atomic_write_json(run_dir / "run.json", {**read_json(run_dir / "run.json"), "status": "done"})
    with pytest.raises(SystemExit) as left:
        cli.main(["sync", str(run_dir), *arguments])
    assert left.value.code == 2
    assert message in capsys.readouterr().err
    assert not (run_dir / "wandb").exists()


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run, campaign or squeeze in it"):
        run_sync(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        run_sync(tmp_path / "nowhere")
