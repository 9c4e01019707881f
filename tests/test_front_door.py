"""`python -m retrain.campaign`: plans a campaign, prints its commands, and trains it when asked."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from retrain import campaign as front_door
from retrain.config.dump import read_run_config
from retrain.files import RunRecord, read_json, read_jsonl

TINY = """
[training]
batch_size = 2
group_size = 2
max_tokens = 16
max_steps = 1
[evaluation]
num_problems = 0
[sepa]
steps = 1
delay_steps = 0
"""
TWO_RUNS = """
[campaign]
seeds = [1, 2]
max_steps = 1
[[campaign.conditions]]
advantage_mode = "grpo"
transform_mode = "none"
"""
STANDARD = ["grpo+none", "maxrl+none", "maxrl+gtpo", "maxrl+gtpo_hicra", "maxrl+gtpo_sepa"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, whose name a shell would break in two."""
    folder = tmp_path / "my campaigns"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def write(folder: Path, text: str) -> str:
    (folder / "base.toml").write_text(text)
    return "base.toml"


def plan(*arguments: str) -> int:
    """The exit code of the program, in this process."""
    with pytest.raises(SystemExit) as left:
        front_door.main(arguments)
    assert isinstance(left.value.code, int)
    return left.value.code


def environment() -> dict[str, str]:
    programs = str(Path(sys.executable).parent)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path}


def run(*command: str, cwd: Path) -> tuple[int, str]:
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout


def commands(output: str) -> list[str]:
    return [line for line in output.splitlines() if line and not line.startswith("#")]


def only_campaign(folder: Path) -> Path:
    (found,) = (folder / "logs").glob("campaign_*")
    return found


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(only_campaign(folder) / "manifest.json")
    return found


def test_a_dry_run_plans_and_starts_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan() == 0
    output = capsys.readouterr().out
    folder = only_campaign(here)
    place = shlex.quote(f"logs/{folder.name}")
    assert output.splitlines()[0] == (
        "# dry run: 5 conditions x 8 seeds, 40 runs; nothing was started"
    )
    assert f"# campaign: {place}" in output
    assert f"# train all of it here: retrain resume {place}" in output
    assert len(commands(output)) == 40

    planned = manifest(here)
    assert planned["status"] == "pending"
    assert [condition["label"] for condition in planned["conditions"]] == STANDARD
    assert planned["seeds"] == [42, 101, 202, 303, 404, 505, 606, 707]
    assert {entry["status"] for entry in planned["runs"]} == {"pending"}
    assert {path.name for path in folder.iterdir()} == {
        *("campaign.toml", "manifest.json", "run_all.sh", "runs")
    }
    assert os.access(folder / "run_all.sh", os.X_OK)
    for entry in planned["runs"]:
        run_dir = folder / "runs" / entry["name"]
        assert {path.name for path in run_dir.iterdir()} == {"config.toml", "run.json"}
        assert RunRecord.read(run_dir).status == "pending"
        config = read_run_config(run_dir / "config.toml")
        assert (config.model.model, config.training.seed) == ("embedded", entry["seed"])


def test_a_dry_run_loads_no_torch(here: Path) -> None:
    code = (
        "import sys\nfrom retrain.campaign import main\n"
        "try: main(['--seeds', '1'])\nexcept SystemExit as left: assert left.code == 0\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    assert run(sys.executable, "-c", code, cwd=here)[0] == 0


def test_a_printed_command_trains_its_run_in_its_place_from_any_folder(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan("--config", write(here, TINY + TWO_RUNS)) == 0
    _, second = commands(capsys.readouterr().out)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code, output = run("bash", "-c", second, cwd=elsewhere)
    assert code == 0, output
    assert not list(elsewhere.iterdir())
    folder = only_campaign(here)
    states = {path.name: RunRecord.read(path).status for path in (folder / "runs").iterdir()}
    assert states == {"grpo+none_s1": "pending", "grpo+none_s2": "done"}
    record = RunRecord.read(folder / "runs" / "grpo+none_s2").data
    assert (record["name"], record["condition"]) == ("grpo+none_s2", "grpo+none")
    assert len(read_jsonl(folder / "runs" / "grpo+none_s2" / "metrics.jsonl")) == 1
    # A second time there is nothing to train, and nothing is overwritten.
    code, output = run("bash", "-c", second, cwd=elsewhere)
    assert code == 0, output
    assert len(read_jsonl(folder / "runs" / "grpo+none_s2" / "metrics.jsonl")) == 1

    # What is missing is trained by the campaign, which counts what the command did.
    code, output = run(sys.executable, "-m", "retrain", "resume", str(folder), cwd=elsewhere)
    assert code == 0, output
    assert f"{folder.name}: 2 runs, 1 done, 1 to train" in output
    assert RunRecord.read(folder / "runs" / "grpo+none_s2").data == record
    assert {entry["status"] for entry in manifest(here)["runs"]} == {"done"}
    assert manifest(here)["status"] == "done"


def test_execute_trains_all_of_it(here: Path) -> None:
    arguments = ["--execute", "--config", write(here, TINY), "--seeds", "7"]
    code, output = run(sys.executable, "-m", "retrain.campaign", *arguments, cwd=here)
    assert code == 0, output
    planned = manifest(here)
    assert planned["status"] == "done"
    assert [entry["name"] for entry in planned["runs"]] == [f"{name}_s7" for name in STANDARD]
    assert {entry["result"]["steps"] for entry in planned["runs"]} == {1}
    assert (only_campaign(here) / "report.md").exists()
    assert "dry run" not in output


def test_execute_leaves_with_1_when_a_run_failed(here: Path) -> None:
    (here / "mine.py").write_text(
        "calls = 0\n\ndef reward(response, reference):\n    global calls\n    calls += 1\n"
        "    # The check before the start is well.\n"
        "    if calls > 2:\n        raise ValueError('it broke')\n    return 1.0\n"
    )
    custom = '[reward]\ntype = "custom"\ncustom_module = "mine"\ncustom_function = "reward"\n'
    arguments = ["--execute", "--config", write(here, TINY + custom + TWO_RUNS), "--seeds", "1"]
    code, output = run(sys.executable, "-m", "retrain.campaign", *arguments, cwd=here)
    assert code == 1, output
    assert "grpo+none_s1 failed: " in output
    assert "it broke" in output


def test_seeds_and_steps(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan("--seeds", "101,102", "--max-steps", "7") == 0
    assert "5 conditions x 2 seeds, 10 runs" in capsys.readouterr().out
    planned = manifest(here)
    assert (planned["seeds"], planned["max_steps"]) == ([101, 102], 7)
    for entry in planned["runs"]:
        config = read_run_config(only_campaign(here) / entry["config"])
        assert config.training.max_steps == 7


def test_a_base_config_keeps_its_campaign_and_its_folder(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Paths in it are taken from where it lies, and results go where one is."""
    base = tmp_path / "configs"
    base.mkdir()
    (base / "problems.jsonl").write_text(
        "".join(f'{{"prompt": "{i}", "answer": "1", "split": "train"}}\n' for i in range(9))
    )
    data = '[data]\nsource = "jsonl"\npath = "problems.jsonl"\n'
    for text, labels, seeds in (
        (TINY + data, STANDARD, 8),
        (TINY + data + TWO_RUNS, ["grpo+none"], 2),
    ):
        shutil.rmtree(here / "logs", ignore_errors=True)
        write(base, text)
        assert plan("--config", str(base / "base.toml")) == 0
        assert len(commands(capsys.readouterr().out)) == len(labels) * seeds
        planned = manifest(here)
        assert [condition["label"] for condition in planned["conditions"]] == labels
        assert planned["max_steps"] == 1
        config = read_run_config(only_campaign(here) / planned["runs"][0]["config"])
        assert config.data.path == str(base / "problems.jsonl")
        assert config.training.batch_size == 2


@pytest.mark.parametrize(
    ("arguments", "toml", "message"),
    [
        (["--seeds", "a,b"], "", "--seeds a,b: write whole numbers with commas between"),
        (["--seeds", "1,"], "", "--seeds 1,: write whole numbers with commas between"),
        (["--seeds", "1,1"], "", "--seeds: campaign.seeds: 1 is there more than once"),
        (["--seeds", "-1"], "", "--seeds: campaign.seeds: [-1] does not fit"),
        (["--max-steps", "0"], "", "--max-steps: training.max_steps: 0 does not fit"),
        (["--config", "bse.toml"], TINY, "bse.toml: no such file; did you mean base.toml?"),
        (
            ["--config", "base.toml"],
            TINY + "[model]\nrank = 3\n",
            "base.toml: model.rank: unknown key in [model]; did you mean lora_rank?",
        ),
        (
            ["--config", "base.toml"],
            TINY + TWO_RUNS + "[model]\nrank = 3\n",
            "base.toml: model.rank: unknown key in [model]; did you mean lora_rank?",
        ),
        (["--execute", "--seeds", "x"], "", "--seeds x: write whole numbers"),
    ],
)
def test_a_mistake_leaves_nothing_behind(
    here: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    toml: str,
    message: str,
) -> None:
    write(here, toml)
    assert plan(*arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert not (here / "logs").exists()


def test_without_a_program_on_the_path_the_module_is_named(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert plan("--seeds", "1", "--config", write(here, TINY)) == 0
    start = f"{shlex.quote(sys.executable)} -m retrain run "
    assert all(line.startswith(start) for line in commands(capsys.readouterr().out))
