"""The squeeze of a campaign's first run, and squeezes by themselves, as their users meet them."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import retrain
from retrain.config.load import config_from_mapping
from retrain.experiments import auto_squeeze
from retrain.experiments.auto_squeeze import AutoSqueeze
from retrain.experiments.campaign import create_campaign
from retrain.experiments.conclusion import CampaignResult, conclude
from retrain.experiments.plan import plan_runs
from retrain.files import read_json
from retrain.squeeze import analyze_adapter

TABLES: dict[str, Any] = {
    "model": {"lora_rank": 6},
    "algorithm": {"advantage_mode": "grpo", "transform_mode": "none"},
    "training": {"batch_size": 2, "group_size": 4, "max_tokens": 24, "lr": 2e-3},
    "evaluation": {"num_problems": 6},
}
CAMPAIGN = {"seeds": [1, 2], "max_steps": 3, "conditions": [{"name": "only"}]}


def tables(folder: Path, **squeeze: Any) -> dict[str, Any]:
    return {**TABLES, "logging": {"log_dir": str(folder)}, "campaign": CAMPAIGN, "squeeze": squeeze}


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "retrain", *arguments],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> CampaignResult:
    """A campaign that squeezes with everything: a check, and training on."""
    folder = tmp_path_factory.mktemp("squeezed")
    values = tables(folder, min_variance_retention=0.8, check=True, finetune_steps=1)
    result = retrain.run_campaign(values)
    assert result.status == "done"
    return result


def test_the_first_run_is_squeezed(campaign: CampaignResult) -> None:
    folder = campaign.campaign_dir
    entry = read_json(folder / "manifest.json")["squeeze"]
    assert (entry["status"], entry["run"], entry["message"]) == ("done", "only_s1", "")
    adapter = folder / "runs" / "only_s1" / "final"
    analysis = analyze_adapter(adapter, min_variance_retention=0.8)
    assert entry["recommended_rank"] == analysis.recommended_rank < 6
    assert entry["source_rank"] == 6
    document = read_json(folder / "squeeze" / "squeeze.json")
    assert {int(k): v for k, v in document["mean_variance"].items()} == analysis.mean_variance
    assert document["compressed"]["rank"] == analysis.recommended_rank
    cut = analyze_adapter(folder / "squeeze" / "adapter")
    assert cut.source_rank == analysis.recommended_rank


def test_the_check_compares_with_what_the_run_measured(campaign: CampaignResult) -> None:
    folder = campaign.campaign_dir
    document = read_json(folder / "squeeze" / "squeeze.json")
    measured = read_json(folder / "runs" / "only_s1" / "evaluation" / "step_000003.json")
    check, tuned = document["check"], document["finetuned"]
    assert check["original_accuracy"] == measured["accuracy"]
    assert check["difference"]["problems"] == 6
    difference = check["accuracy"] - check["original_accuracy"]
    assert check["difference"]["mean"] == pytest.approx(difference)
    assert check["mean_token_kl"] > 0
    assert (tuned["steps"], tuned["status"]) == (1, "done")
    assert tuned["original_accuracy"] == check["original_accuracy"]


def test_the_report_shows_it(campaign: CampaignResult) -> None:
    report = (campaign.campaign_dir / "report.md").read_text()
    section = report.split("## LoRA squeeze")[1].split("\n## ")[0]
    assert "Recommended rank:" in section
    assert " <--" in section
    assert "mean token KL" in section
    for name in ("squeeze_retention", "squeeze_ranks"):
        assert f"(squeeze/{name}.png)" in section
        assert (campaign.campaign_dir / "squeeze" / f"{name}.png").stat().st_size > 1000


def test_a_squeeze_that_fails_fails_nothing_else(tmp_path: Path) -> None:
    result = retrain.run_campaign(tables(tmp_path, device="cuda:7"))
    assert (result.status, result.exit_code) == ("done", 0)
    entry = read_json(result.campaign_dir / "manifest.json")["squeeze"]
    assert entry["status"] == "failed"
    assert "cuda:7" in entry["message"]
    assert entry["recommended_rank"] is None
    assert "## LoRA squeeze" not in (result.campaign_dir / "report.md").read_text()


def test_a_squeeze_that_was_lost_is_made_at_the_next_resume(
    campaign: CampaignResult, tmp_path: Path
) -> None:
    """Killed with its campaign, after all runs were done; no process stays."""
    result = retrain.run_campaign({k: v for k, v in tables(tmp_path).items() if k != "squeeze"})
    manifest = read_json(result.campaign_dir / "manifest.json")
    done = read_json(campaign.campaign_dir / "manifest.json")["squeeze"]
    fields = dict.fromkeys(done) | {
        **{key: done[key] for key in ("settings", "folder")},
        **{"status": "running", "run": "only_s2", "message": ""},
    }
    manifest["squeeze"] = fields | {"settings": {**done["settings"], "check": False}}
    (result.campaign_dir / "manifest.json").write_text(json.dumps(manifest))
    (result.campaign_dir / "squeeze").mkdir()
    (result.campaign_dir / "squeeze" / "squeeze.json").write_text("{half")
    before = (result.campaign_dir / "runs" / "only_s2" / "run.json").read_bytes()
    shown = command("resume", str(result.campaign_dir), cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "LoRA squeeze of only_s2" in shown.stdout
    entry = read_json(result.campaign_dir / "manifest.json")["squeeze"]
    assert (entry["status"], entry["run"]) == ("done", "only_s2")
    assert entry["recommended_rank"] >= 1
    assert (result.campaign_dir / "runs" / "only_s2" / "run.json").read_bytes() == before


def test_it_ends_with_its_campaign(campaign: CampaignResult, tmp_path: Path) -> None:
    """Also when that is killed: its standard input ends then."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "retrain.experiments.squeeze_process"),
            *(str(campaign.campaign_dir), "only_s1"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.kill(process.pid, signal.SIGSTOP)
    assert process.stdin is not None
    process.stdin.close()
    os.kill(process.pid, signal.SIGCONT)
    assert process.wait(timeout=60) == 1


def test_a_squeeze_that_is_killed_is_told_and_made_at_the_next_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = config_from_mapping(tables(tmp_path))
    runs = plan_runs(loaded)
    manifest = create_campaign(loaded, runs)
    for run in runs:
        manifest.set_run(run.name, "done")
    manifest.settle()
    program = "import os; print('rank 3 of 8', flush=True); os.kill(os.getpid(), 9)"
    monkeypatch.setattr(
        auto_squeeze, "module_command", lambda module: [sys.executable, "-c", program]
    )
    said: list[str] = []
    AutoSqueeze(manifest, said.append).wait(lambda: False)
    entry = manifest.data["squeeze"]
    assert entry["status"] == "pending"
    assert entry["message"].startswith("its process was killed by SIGKILL; the usual cause is too")
    assert said[-1].endswith("; retrain resume makes it")
    assert "rank 3 of 8" not in said[-1]
    result = conclude(manifest, runs, Console(file=io.StringIO()))
    assert (result.status, result.exit_code) == ("done", 1)


def test_nothing_is_started_before_a_run_is_done(tmp_path: Path) -> None:
    loaded = config_from_mapping(tables(tmp_path))
    manifest = create_campaign(loaded, plan_runs(loaded))
    said: list[str] = []
    squeeze = AutoSqueeze(manifest, said.append)
    started = time.monotonic()
    squeeze.wait(lambda: time.monotonic() > started + 60)
    assert not squeeze.running
    assert manifest.data["squeeze"]["status"] == "pending"
    assert said == []


def test_the_plan_says_which_run_is_the_first(tmp_path: Path) -> None:
    loaded = config_from_mapping(tables(tmp_path))
    manifest = create_campaign(loaded, plan_runs(loaded))
    squeeze = AutoSqueeze(manifest, lambda text: None)
    # It came to its end before the plan's first run.
    manifest.set_run("only_s2", "done")
    squeeze.look()
    assert not squeeze.running
    manifest.set_run("only_s1", "diverged")
    squeeze.look()
    assert squeeze.running
    assert manifest.data["squeeze"]["run"] == "only_s2"
    squeeze.close()


def test_a_squeeze_by_itself(campaign: CampaignResult, tmp_path: Path) -> None:
    adapter = campaign.campaign_dir / "runs" / "only_s2" / "final"
    (tmp_path / "squeeze.toml").write_text(
        f'[squeeze]\nadapter_path = "{adapter}"\noutput_path = "cut"\ncompress_to = 2\n'
        "check = true\n"
    )
    shown = command("squeeze.toml", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "Source rank: 6\n" in shown.stdout
    assert "Compressed to rank 2" in shown.stdout
    assert "held-out accuracy" in shown.stdout
    assert read_json(tmp_path / "cut" / "adapter_config.json")["r"] == 2
    (folder,) = (tmp_path / "logs").glob("squeeze_*")
    document = read_json(folder / "squeeze.json")
    measured = read_json(campaign.campaign_dir / "runs/only_s2/evaluation/step_000003.json")
    assert document["check"]["original_accuracy"] == measured["accuracy"]
    again = command("squeeze", str(adapter), "--json", "--log-dir", "other", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["mean_variance"] == document["mean_variance"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("squeeze", "nowhere"), "/nowhere"),
        (("squeeze", "run.toml"), "run.toml has no [squeeze] table"),
        (("run.toml", "--set", "squeeze.check=true"), "run.toml has no [squeeze] table"),
        (("empty.toml",), "empty.toml: squeeze.adapter_path: is missing"),
        (("ranks.toml",), "squeeze.compress_to: 16, but the runs train rank 8"),
        (("odd.toml",), "squeeze.finetune_steps: 3 steps are judged by the check; set check"),
        (
            ("explain", "both.toml"),
            "squeeze.adapter_path: is written, but nothing reads it: a campaign",
        ),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "run.toml").write_text("[training]\nmax_tokens = 32\n")
    (tmp_path / "empty.toml").write_text("[squeeze]\n")
    (tmp_path / "odd.toml").write_text('[squeeze]\nadapter_path = "x"\nfinetune_steps = 3\n')
    (tmp_path / "both.toml").write_text(
        '[training]\nmax_tokens = 32\n[campaign]\n[squeeze]\nadapter_path = "x"\n'
    )
    (tmp_path / "ranks.toml").write_text(
        "[training]\nmax_tokens = 32\n[model]\nlora_rank = 8\n[campaign]\n[squeeze]\n"
        "compress_to = 16\n"
    )
    before = sorted(tmp_path.iterdir())
    shown = command(*arguments, cwd=tmp_path)
    assert shown.returncode == (0 if arguments[0] == "explain" else 2), shown.stdout
    assert message in shown.stderr + shown.stdout
    assert "Traceback" not in shown.stderr
    assert sorted(tmp_path.iterdir()) == before
