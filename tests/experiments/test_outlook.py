"""`retrain resume-check`: from where runs would go on."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from campaigns import fake_executor, load, plain_console, snapshot
from rich.console import Console

from retrain.cli import main
from retrain.config.dump import read_run_config
from retrain.errors import InputError
from retrain.experiments.campaign import run_campaign
from retrain.experiments.manifest import Manifest
from retrain.experiments.outlook import resume_check
from retrain.files import RunRecord
from retrain.training.checkpoint import Checkpoints


def checkpoint(run_dir: Path, step: int, rows: int | None = None) -> Path:
    """A checkpoint after `step` steps, which needs so many rows of the journal."""
    config = read_run_config(run_dir / "config.toml")
    often = config.training.model_copy(update={"save_every": 1})
    checkpoints = Checkpoints(run_dir, config.model_copy(update={"training": often}))
    needed = {"metrics.jsonl": step if rows is None else rows}
    with checkpoints.saving(step, {}, needed, None) as aside:
        (aside / "adapter_model.safetensors").write_bytes(bytes(range(100)))
    return run_dir / "checkpoints" / f"step_{step:06d}"


def damage(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(b"\xff" + file.read_bytes()[1:])


def keep_rows(run_dir: Path, count: int) -> None:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "metrics.jsonl").write_text("".join(lines[:count]))


CONDITIONS: Mapping[str, Mapping[str, Any]] = {
    "done": {},
    "broken": {"trouble": "raise"},
    "killed": {"trouble": "kill"},
    "wild": {"trouble": "diverge"},
    "stopped": {},
    "now": {},
    "pending": {},
}


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A campaign of 4 steps with a run of every kind, none of which has a checkpoint yet."""
    console, _ = plain_console()
    loaded = load(tmp_path_factory.mktemp("once") / "logs", CONDITIONS, seeds=(1,), max_retries=0)
    folder = run_campaign(loaded, console=console, executor=fake_executor()).campaign_dir
    manifest = Manifest.read(folder)
    for name, status, rows in (("stopped", "stopped", 3), ("now", "running", 3)):
        keep_rows(folder / "runs" / f"{name}_s1", rows)
        RunRecord.read(folder / "runs" / f"{name}_s1").update(status=status)
        manifest.set_run(f"{name}_s1", status)
    pending = folder / "runs" / "pending_s1"
    (pending / "metrics.jsonl").unlink()
    RunRecord.create(pending, name="pending_s1", condition="pending", seed=1, max_steps=4)
    manifest.set_run("pending_s1", "pending")
    return folder


@pytest.fixture
def folder(once: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(once, tmp_path / "logs" / once.name))


def check(folder: Path) -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit code, and what the JSON says of each run."""
    before = snapshot(folder)
    console, output = plain_console()
    code = resume_check(folder, as_json=True, console=console)
    assert snapshot(folder) == before
    return code, {run.pop("name").removesuffix("_s1"): run for run in json.loads(output.getvalue())}


def show(folder: Path, width: int = 120) -> tuple[int, list[list[str]], str]:
    """Exit code, the words of each line, and the whole text."""
    output = io.StringIO()
    code = resume_check(folder, console=Console(file=output, width=width))
    return code, [line.split() for line in output.getvalue().splitlines()], output.getvalue()


def test_each_run_of_a_campaign(folder: Path) -> None:
    for name in ("done", "broken", "killed", "stopped", "now"):
        checkpoint(folder / "runs" / f"{name}_s1", 2)
    code, found = check(folder)
    assert code == 0
    assert {name: (run["state"], run["resumes"]) for name, run in found.items()} == {
        "done": ("done", False),
        "broken": ("failed", False),
        "killed": ("failed", True),
        "wild": ("diverged", False),
        "stopped": ("stopped", True),
        "now": ("running", False),
        "pending": ("pending", True),
    }
    assert found["stopped"] == {
        "folder": str(folder / "runs" / "stopped_s1"),
        "state": "stopped",
        "resumes": True,
        "step": 2,
        "max_steps": 4,
        "lost_steps": 1,
        "checkpoint": "step_000002",
        "notes": [],
    }
    assert found["pending"] == {
        "folder": str(folder / "runs" / "pending_s1"),
        "state": "pending",
        "resumes": True,
        "step": 0,
        "max_steps": 4,
        "lost_steps": 0,
        "checkpoint": None,
        "notes": [],
    }
    assert found["killed"]["notes"] == []
    assert found["broken"]["notes"] == [
        "it failed by an error of its own, so only with --retry-failed: ValueError: the plugin "
        "broke [here]"
    ]
    assert found["now"]["notes"] == ["it is being trained now"]


def test_the_table(folder: Path) -> None:
    checkpoint(folder / "runs" / "stopped_s1", 2)
    code, lines, text = show(folder)
    assert code == 0
    assert lines[0] == ["run", "state", "resumes", "from", "step", "lost", "steps"]
    assert ["stopped_s1", "stopped", "yes", "2/4", "1"] in lines
    assert ["killed_s1", "failed", "yes", "0/4", "2"] in lines
    assert ["pending_s1", "pending", "yes", "0/4", "0"] in lines
    resumes = {words[0]: words[2] for words in lines[1:8]}
    assert [name for name, word in resumes.items() if word == "no"] == [
        *("done_s1", "broken_s1", "wild_s1", "now_s1")
    ]
    assert "now_s1: it is being trained now" in text
    assert "broken_s1: it failed by an error of its own, so only with --retry-failed: " in text
    assert max(map(len, show(folder, width=60)[2].splitlines()[:8])) <= 60


def test_a_damaged_checkpoint_is_passed_over_and_told(folder: Path) -> None:
    run_dir = folder / "runs" / "stopped_s1"
    good = checkpoint(run_dir, 1)
    bad = checkpoint(run_dir, 3)
    damage(bad)
    code, found = check(folder)
    assert code == 1
    run = found["stopped"]
    assert (run["step"], run["checkpoint"], run["lost_steps"]) == (1, good.name, 2)
    assert run["notes"] == [
        "step_000003 is damaged: adapter_model.safetensors does not match its checksum"
    ]
    damage(good)
    code, found = check(folder)
    run = found["stopped"]
    assert (code, run["step"], run["checkpoint"], run["resumes"]) == (1, 0, None, False)
    assert [note.split()[0] for note in run["notes"]] == [bad.name, good.name, "none"]
    code, _, text = show(folder)
    assert code == 1
    assert "stopped_s1: step_000003 is damaged: adapter_model.safetensors does not match" in text
    weights = bad / "adapter_model.safetensors"
    weights.unlink()
    weights.symlink_to(weights)
    code, found = check(folder)
    run = found["stopped"]
    assert (code, run["resumes"]) == (1, False)
    assert run["notes"] == [f"{weights} cannot be read now: Too many levels of symbolic links"]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: (path / "checkpoint.json").unlink(), "checkpoint.json: no such file"),
        (lambda path: (path / "checkpoint.json").write_text("{"), "checkpoint.json cannot be read"),
        (lambda path: (path / "state.json").unlink(), "state.json: no such file"),
        (
            lambda path: (path / "adapter_model.safetensors").write_bytes(b"x"),
            "adapter_model.safetensors has 1 bytes instead of 100",
        ),
        (lambda path: keep_rows(path.parents[1], 2), "metrics.jsonl has fewer than the 3 rows"),
    ],
)
def test_what_makes_a_checkpoint_useless(folder: Path, spoil: Any, reason: str) -> None:
    run_dir = folder / "runs" / "stopped_s1"
    spoil(checkpoint(run_dir, 3))
    code, found = check(run_dir)
    assert (code, found["stopped"]["step"]) == (1, 0)
    note, refusal = found["stopped"]["notes"]
    assert note.startswith(f"step_000003 is damaged: {reason}")
    assert refusal.startswith("none of its 1 checkpoints can be trusted")


def test_a_single_run(folder: Path) -> None:
    run_dir = folder / "runs" / "stopped_s1"
    checkpoint(run_dir, 3)
    code, found = check(run_dir)
    assert code == 0
    assert list(found) == ["stopped"]
    assert (found["stopped"]["step"], found["stopped"]["lost_steps"]) == (3, 0)


def test_a_single_run_that_failed_needs_no_option(folder: Path) -> None:
    """`--retry-failed` is for campaigns; who names the run means it."""
    run = check(folder / "runs" / "broken_s1")[1]["broken"]
    assert run["resumes"]
    assert run["notes"] == ["it failed by an error of its own: ValueError: the plugin broke [here]"]


def test_a_folder_of_many(folder: Path) -> None:
    single = folder.parent / "alone_s7"
    RunRecord.create(single, name="alone_s7", condition="alone", seed=7, max_steps=9)
    code, found = check(folder.parent)
    assert code == 0
    assert set(found) == {*CONDITIONS, "alone_s7"}


def test_a_folder_with_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run and no campaign"):
        resume_check(tmp_path)
    with pytest.raises(InputError, match="no such folder; give the folder of a run"):
        resume_check(tmp_path / "missing")


def test_the_verb(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = checkpoint(folder / "runs" / "stopped_s1", 2)
    damage(bad)
    with pytest.raises(SystemExit) as left:
        main(["resume-check", str(folder), "--json"])
    assert left.value.code == 1
    assert len(json.loads(capsys.readouterr().out)) == len(CONDITIONS)


def test_no_torch_is_loaded(folder: Path) -> None:
    checkpoint(folder / "runs" / "stopped_s1", 2)
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from retrain.experiments.outlook import resume_check\n"
        "assert resume_check(Path(sys.argv[1])) == 0\nassert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, capture_output=True)
