"""Adding seeds and conditions to a campaign that has runs. The workers only pretend to train."""

from __future__ import annotations

import os
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from campaigns import fake_executor, plain_console, snapshot, tables

from retrain.cli import main
from retrain.config.load import LoadedConfig, load_config
from retrain.errors import ConfigError, InputError
from retrain.experiments.campaign import run_campaign
from retrain.experiments.conclusion import CampaignResult
from retrain.experiments.manifest import Manifest
from retrain.experiments.resume import resume_campaign
from retrain.files import RunRecord, atomic_write_toml

Tables = dict[str, Any]


def write(path: Path, values: Tables) -> LoadedConfig:
    atomic_write_toml(path, values)
    return load_config(path)


class Grown:
    """A finished campaign of conditions a and b under seed 1, and files that it may grow by."""

    def __init__(self, folder: Path) -> None:
        self.logs = folder / "logs"
        self.file = folder / "grown.toml"

    def begin(self) -> None:
        loaded = write(self.file, self.tables())
        console, _ = plain_console()
        result = run_campaign(loaded, console=console, executor=fake_executor())
        assert result.exit_code == 0

    @property
    def folder(self) -> Path:
        (folder,) = self.logs.glob("campaign_*")
        return folder

    def tables(
        self, names: tuple[str, ...] = ("a", "b"), seeds: tuple[int, ...] = (1,), **options: Any
    ) -> Tables:
        """Conditions of these names, each with a learning rate of its own but a."""
        values = tables(self.logs, {name: {} for name in names}, seeds=seeds, **options)
        for condition in values["campaign"]["conditions"]:
            if condition["name"] in "bc":
                condition["training"] = {"lr": {"b": 0.125, "c": 0.25}[condition["name"]]}
        return values

    def grow(self, values: Tables, *, extend: bool = True) -> tuple[CampaignResult, str]:
        console, output = plain_console()
        loaded = write(self.file, values)
        result = resume_campaign(
            self.folder, loaded=loaded, extend=extend, console=console, executor=fake_executor()
        )
        return result, output.getvalue()

    def refused(self, values: Tables, **options: Any) -> list[str]:
        """The lines of the error, after which every file must be what it was."""
        before = snapshot(self.folder)
        with pytest.raises(InputError) as caught:
            self.grow(values, **options)
        assert caught.value.exit_code == 2
        assert snapshot(self.folder) == before
        return str(caught.value).splitlines()

    @property
    def run_dirs(self) -> list[Path]:
        return sorted((self.folder / "runs").iterdir())


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Grown:
    campaign = Grown(tmp_path_factory.mktemp("begun"))
    campaign.begin()
    return campaign


@pytest.fixture
def campaign(begun: Grown, tmp_path: Path) -> Grown:
    """A copy of it."""
    copy = Grown(tmp_path)
    shutil.copytree(begun.logs, copy.logs)
    return copy


def test_an_added_seed_trains_only_its_runs(campaign: Grown) -> None:
    old = campaign.run_dirs
    before = snapshot(*old)
    file = (campaign.folder / "campaign.toml").read_bytes()
    result, output = campaign.grow(campaign.tables(seeds=(1, 2)))
    assert (result.exit_code, result.status) == (0, "done")
    assert f"{campaign.folder.name}: 4 runs, 2 done, 2 to train" in output
    assert [run.name for run in result.runs] == ["a_s1", "b_s1", "a_s2", "b_s2"]
    assert snapshot(*old) == before
    assert all(RunRecord.read(run_dir).data["attempts"] == 1 for run_dir in campaign.run_dirs)

    manifest = Manifest.read(campaign.folder).data
    assert (manifest["status"], manifest["seeds"]) == ("done", [1, 2])
    assert [condition["label"] for condition in manifest["conditions"]] == ["a", "b"]
    assert {run["status"] for run in manifest["runs"]} == {"done"}
    assert (campaign.folder / "campaign.toml").read_bytes() == campaign.file.read_bytes()
    assert (campaign.folder / "campaign.1.toml").read_bytes() == file
    script = campaign.folder / "run_all.sh"
    assert os.access(script, os.X_OK)
    assert [line.split()[1] for line in script.read_text().splitlines() if line[:4] == "run "] == [
        run.name for run in result.runs
    ]


def test_an_added_condition_trains_only_its_runs(campaign: Grown) -> None:
    old = campaign.run_dirs
    before = snapshot(*old)
    result, _ = campaign.grow(campaign.tables(("a", "c", "b")))
    assert result.exit_code == 0
    # Those that were there keep their places.
    assert [run.name for run in result.runs] == ["a_s1", "b_s1", "c_s1"]
    assert snapshot(*old) == before
    manifest = Manifest.read(campaign.folder)
    assert [c["label"] for c in manifest.data["conditions"]] == ["a", "b", "c"]
    assert manifest.data["conditions"][2]["changes"] == {"training": {"lr": 0.25}}
    assert manifest.planned()[0][2].config.training.lr == 0.25


def test_a_campaign_grows_more_than_once(campaign: Grown) -> None:
    for seeds in ((1, 2), (1, 2, 3)):
        assert campaign.grow(campaign.tables(seeds=seeds))[0].exit_code == 0
    files = ["campaign.toml", "campaign.2.toml", "campaign.1.toml"]
    kept = [tomllib.loads((campaign.folder / name).read_text()) for name in files]
    assert [values["campaign"]["seeds"] for values in kept] == [[1, 2, 3], [1, 2], [1]]
    assert len(campaign.run_dirs) == 6


def test_runs_that_the_file_has_no_more_stay(campaign: Grown) -> None:
    before = snapshot(*campaign.run_dirs)
    result, _ = campaign.grow(campaign.tables(("b", "c"), seeds=(2,), max_steps=4))
    assert result.exit_code == 0
    assert [run.name for run in result.runs] == ["a_s1", "b_s1", "b_s2", "c_s2"]
    assert snapshot(campaign.folder / "runs").items() >= before.items()
    assert Manifest.read(campaign.folder).data["seeds"] == [1, 2]


def test_a_file_with_nothing_new_changes_nothing(campaign: Grown) -> None:
    before = snapshot(*campaign.run_dirs)
    file = (campaign.folder / "campaign.toml").read_bytes()
    result, output = campaign.grow(campaign.tables(("a",)))
    assert (result.exit_code, result.status) == (0, "done")
    assert "2 runs, 2 done, nothing to train" in output
    assert snapshot(*campaign.run_dirs) == before
    assert (campaign.folder / "campaign.toml").read_bytes() == file
    assert not (campaign.folder / "campaign.1.toml").exists()


def test_the_file_says_from_now_on_how_runs_are_trained(campaign: Grown) -> None:
    campaign.grow(campaign.tables(seeds=(1, 2), max_retries=0, worker_timeout=60.0))
    execution = Manifest.read(campaign.folder).execution()
    assert (execution.max_retries, execution.worker_timeout) == (0, 60.0)


def first_condition(values: Tables, table: str, key: str, value: object) -> None:
    values["campaign"]["conditions"][0].setdefault(table, {})[key] = value


REMEDY = "a condition that has runs cannot change: "


@pytest.mark.parametrize(
    ("change", "keys"),
    [
        (lambda values: first_condition(values, "training", "lr", 0.5), ["training.lr"]),
        (
            lambda values: values["campaign"]["conditions"][0].update(advantage_mode="maxrl"),
            ["algorithm.advantage_mode"],
        ),
        (
            lambda values: values["training"].update(group_size=4, temperature=0.7),
            ["training.group_size", "training.temperature"],
        ),
        (lambda values: values["campaign"].update(max_steps=8), ["campaign.max_steps"]),
    ],
)
def test_a_condition_that_has_runs_cannot_change(
    campaign: Grown, change: Callable[[Tables], None], keys: list[str]
) -> None:
    values = campaign.tables(seeds=(1, 2))
    change(values)
    *issues, remedy = campaign.refused(values)
    assert {line.split(": ")[1] for line in issues} == set(keys)
    assert all(line.startswith(f"{campaign.file}: ") for line in issues)
    assert remedy.startswith(REMEDY)


def test_a_change_is_told_with_both_values(campaign: Grown) -> None:
    values = campaign.tables()
    first_condition(values, "training", "lr", 0.5)
    issue, _ = campaign.refused(values)
    assert issue == (f"{campaign.file}: training.lr: is 0.5 in condition a, whose runs have 4e-05")


def test_a_fixed_schedule_fixes_the_steps(tmp_path: Path) -> None:
    """Where the learning rate depends on the steps, they are a part of what a run is."""
    logs = tmp_path / "logs"

    def cosine(steps: int) -> LoadedConfig:
        values = tables(logs, {"a": {}}, seeds=(1,), max_steps=steps)
        values["training"]["lr_schedule"] = "cosine"
        return write(tmp_path / f"{steps}.toml", values)

    console, _ = plain_console()
    folder = run_campaign(cosine(4), console=console, executor=fake_executor()).campaign_dir
    with pytest.raises(ConfigError) as caught:
        resume_campaign(folder, loaded=cosine(8), extend=True, console=console)
    assert [issue.key for issue in caught.value.issues] == ["training.max_steps", ""]


def test_a_condition_that_has_runs_cannot_be_renamed(campaign: Grown) -> None:
    issue, remedy = campaign.refused(campaign.tables(("better", "b"), seeds=(1, 2)))
    assert issue == (
        f"{campaign.file}: campaign.conditions: better is what a was; a condition that has runs "
        'keeps its name: name = "a"'
    )
    assert remedy.startswith(REMEDY)


def test_a_second_condition_may_train_the_same(campaign: Grown) -> None:
    """As in a new campaign, which warns of it: the first one is not renamed by that."""
    result, _ = campaign.grow(campaign.tables(("a", "b", "again")))
    assert [run.name for run in result.runs] == ["a_s1", "b_s1", "again_s1"]


def test_new_runs_need_to_be_asked_for(campaign: Grown) -> None:
    (line,) = campaign.refused(campaign.tables(seeds=(1, 2, 3)), extend=False)
    assert "grown.toml has 4 runs that" in line
    assert "(a_s2, b_s2, a_s3, …)" in line
    assert line.endswith(f"retrain resume {campaign.folder} --extend {campaign.file}")


def test_a_single_run_extends_nothing(campaign: Grown) -> None:
    values = campaign.tables()
    del values["campaign"]
    (line,) = campaign.refused(values)
    assert line == f"{campaign.file} is no campaign, and {campaign.folder} is one"


def test_unfinished_runs_are_trained_along_with_the_new_ones(campaign: Grown) -> None:
    manifest = Manifest.read(campaign.folder)
    run_dir = campaign.folder / "runs" / "a_s1"
    RunRecord.read(run_dir).update(status="stopped")
    (run_dir / "metrics.jsonl").unlink()
    manifest.set_run("a_s1", "stopped")
    result, output = campaign.grow(campaign.tables(seeds=(1, 2)))
    assert (result.exit_code, result.status) == (0, "done")
    assert "4 runs, 1 done, 3 to train" in output
    assert RunRecord.read(run_dir).data["attempts"] == 2


def test_the_verb_refuses_with_file_key_and_both_values(
    campaign: Grown, capsys: pytest.CaptureFixture[str]
) -> None:
    values = campaign.tables(seeds=(1, 2))
    first_condition(values, "training", "lr", 0.5)
    write(campaign.file, values)
    before = snapshot(campaign.folder)
    with pytest.raises(SystemExit) as left:
        main(["resume", str(campaign.folder), "--extend", str(campaign.file)])
    assert left.value.code == 2
    errors = capsys.readouterr().err
    assert f"{campaign.file}: training.lr: is 0.5 in condition a, whose runs have 4e-05" in errors
    assert snapshot(campaign.folder) == before


def test_what_a_campaign_is_judged_by_cannot_change(campaign: Grown) -> None:
    values = campaign.tables(seeds=(1, 2))
    lines = campaign.refused({**values, "report": {"margin": 0.05, "contrasts": ["b vs a"]}})
    assert "report.margin: is 0.05, and 0.02 was recorded before the first run" in lines[1]
    assert "report.contrasts" in lines[0]
    # Written out, the settings are the same.
    result, _ = campaign.grow({**values, "report": {"margin": 0.02, "baseline": "a"}})
    assert result.exit_code == 0
    added = [run.get("added") for run in Manifest.read(campaign.folder).data["runs"]]
    assert added[:2] == [None, None]
    assert all(added[2:])


def test_a_new_first_condition_is_no_new_baseline(campaign: Grown) -> None:
    assert campaign.grow(campaign.tables(("c", "a", "b")))[0].exit_code == 0
    assert Manifest.read(campaign.folder).data["report"]["baseline"] == "a"
