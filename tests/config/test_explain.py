"""`retrain explain`: what is told, and where the numbers come from."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from retrain.config.dump import run_config_toml
from retrain.config.explain import explain, render
from retrain.config.load import LoadedConfig, config_from_mapping, parse_set
from retrain.preflight import load_checked

TABLES: dict[str, Any] = {
    "training": {"max_tokens": 64, "max_steps": 10},
    "campaign": {
        "seeds": [1, 2, 3],
        "parallel": True,
        "max_workers": 2,
        "conditions": [
            {"advantage_mode": "grpo", "transform_mode": "none"},
            {"name": "long", "transform_mode": "none", "training": {"max_steps": 30}},
        ],
    },
}


def load(logs: Path, seeds: Sequence[int] | None = None, **tables: Any) -> LoadedConfig:
    given = [parse_set("training.group_size=4")]
    values = {**TABLES, "logging": {"log_dir": str(logs)}, **tables}
    return config_from_mapping(values, given, seeds)


def finished_run(logs: Path, loaded: LoadedConfig, seconds: float) -> None:
    """An earlier run in the log folder, each of whose steps took so long."""
    from retrain.files import append_jsonl, atomic_write_toml

    folder = logs / "earlier"
    folder.mkdir(parents=True)
    config = loaded.run_config(loaded.conditions[0], 1)
    atomic_write_toml(folder / "config.toml", config.model_dump(exclude_none=True))
    rows = [{"step": step, "step_time_s": seconds} for step in range(10)]
    append_jsonl(folder / "metrics.jsonl", rows)


def text(explanation: dict[str, Any]) -> str:
    file = io.StringIO()
    render(explanation, Console(file=file, width=100))
    return file.getvalue()


def test_every_value_has_its_source(tmp_path: Path) -> None:
    values = explain(load(tmp_path))["values"]
    assert values["training"]["lr"] == {"value": 4e-5, "source": "default", "conditions": []}
    assert values["training"]["group_size"]["source"] == "--set"
    assert values["training"]["max_steps"]["conditions"] == ["long"]
    assert values["training"]["seed"]["source"] == "campaign.seeds"
    assert values["algorithm"]["transform_mode"]["conditions"] == ["grpo+none", "long"]
    assert values["algorithm"]["algorithm_mode"]["conditions"] == []
    assert values["campaign"]["seeds"]["value"] == [1, 2, 3]


def test_capacity_follows_the_formulas(tmp_path: Path) -> None:
    loaded = load(tmp_path)
    assert explain(loaded)["capacity"]["estimated_wall_time_s"] is None
    finished_run(tmp_path, loaded, 0.5)
    capacity = explain(loaded)["capacity"]
    assert capacity["total_runs"] == 6
    assert capacity["total_campaign_steps"] == 3 * 10 + 3 * 30
    assert capacity["effective_parallelism"] == 2
    assert capacity["median_step_time_s"] == pytest.approx(0.5)
    assert capacity["estimated_wall_time_s"] == pytest.approx(120 * 0.5 / 2)
    assert capacity["same_shape"]


def test_a_squeeze_trains_nothing(tmp_path: Path) -> None:
    values = {"adapter_path": "a", "output_path": "b", "compress_to": 3, "check": True}
    explanation = explain(config_from_mapping({"squeeze": values}))
    assert explanation["kind"] == "squeeze"
    assert explanation["values"]["squeeze"]["compress_to"]["source"] == "python"
    shown = text(explanation)
    assert "writes it cut to rank 3 to b" in shown
    assert "evaluates both" in shown
    assert "steps" not in shown.split("squeeze\n")[-1]


def test_runs_are_conditions_times_seeds(tmp_path: Path) -> None:
    explanation = explain(load(tmp_path))
    assert [run["name"] for run in explanation["runs"]] == [
        *(f"grpo+none_s{seed}" for seed in (1, 2, 3)),
        *(f"long_s{seed}" for seed in (1, 2, 3)),
    ]
    assert json.loads(json.dumps(explanation)) == explanation


def test_what_is_shown(tmp_path: Path) -> None:
    loaded = load(tmp_path)
    finished_run(tmp_path, loaded, 0.5)
    shown = text(explain(loaded, ["training.lr: is odd [really]"]))
    for line in (
        "2 conditions x 3 seeds = 6 runs, 120 steps",
        "8 problems, 32 completions of at most 64 tokens, 1 optimizer step",
        "embedded, 256 tokens of context",
        "about 30 s without evaluations",
        "training.max_steps = 30",
        "set by every condition",
        "with 3 seeds the smallest possible sign-flip p value is 0.25",
        "warning training.lr: is odd [really]",
    ):
        assert line in " ".join(shown.split()), line
    assert "\x1b" not in shown


def test_many_seeds_fit_the_screen(tmp_path: Path) -> None:
    loaded = config_from_mapping({**TABLES, "campaign": {"seeds": list(range(30))}})
    shown = text(explain(loaded))
    assert "30 seeds" in shown
    assert "p value" not in shown


def test_a_single_run_has_no_matrix(tmp_path: Path) -> None:
    loaded = config_from_mapping({"logging": {"log_dir": str(tmp_path)}})
    explanation = explain(loaded)
    assert explanation["kind"] == "run"
    assert "1 condition x 1 seed = 1 run, 500 steps" in text(explanation)
    assert "steps a run" not in text(explanation)


def test_the_backend_tells_what_the_policy_can_do() -> None:
    from retrain.policies.backends import BACKENDS
    from retrain.policies.local.policy import LocalPolicy

    assert BACKENDS["local"] == LocalPolicy.capabilities


def earlier_campaign(folder: Path, loaded: LoadedConfig) -> None:
    """Differences of 1, 2 and 3 points between two conditions: their sd is 1 point."""
    values = {"a": (0.70, 0.71, 0.72), "b": (0.71, 0.73, 0.75)}
    runs = []
    for label, column in values.items():
        for seed, value in enumerate(column):
            result = {"accuracy_after": value}
            run = {"condition": label, "seed": seed, "status": "done", "result": result}
            runs.append({"name": f"{label}_s{seed}", "config": "config.toml", **run})
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"runs": runs}))
    config = loaded.run_config(loaded.conditions[0], 1)
    (folder / "config.toml").write_text(run_config_toml(config))


def test_the_smallest_difference_that_a_campaign_can_find(tmp_path: Path) -> None:
    from retrain.analysis.power import power_sign_flip

    loaded = load(tmp_path, seeds=range(8))
    design = explain(loaded)["design"]
    # 128 answers a side: sd sqrt(0.5 / 128).
    assert design["spread"] == pytest.approx(0.0625)
    assert design["spread_from"] == ""
    assert power_sign_flip(8, design["detectable"] / 0.0625) == pytest.approx(0.8, abs=1e-6)

    earlier_campaign(tmp_path / "campaign_1", loaded)
    explanation = explain(loaded)
    assert explanation["design"]["spread"] == pytest.approx(0.01)
    assert explanation["design"]["detectable"] == pytest.approx(design["effect"] * 0.01)
    shown = " ".join(text(explanation).split())
    assert "differences of about 1.2 points or more, with 80 % power" in shown
    assert "seeds made differences vary by 1 points (sd) in campaign_1" in shown
    assert "each condition with grpo+none; margin 2 points, alpha 5 %" in shown


def test_a_campaign_that_cannot_be_significant_is_told(tmp_path: Path) -> None:
    explanation = explain(load(tmp_path))
    assert explanation["design"]["effect"] is None
    assert explanation["warnings"][0].startswith("no result of this campaign can be significant")
    assert explain(config_from_mapping({}))["design"] is None


def test_vllm_is_named_and_need_not_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    (tmp_path / "x.toml").write_text(
        '[training]\nmax_tokens = 64\n[inference]\nengine = "vllm"\ngpus = "0"\n'
    )
    loaded, warnings = load_checked(tmp_path / "x.toml")
    (warning,) = [text for text in warnings if text.startswith("inference.")]
    assert warning.startswith("inference.command: vllm is not installed here; ")
    explanation = explain(loaded, warnings)
    assert (explanation["backend"]["sampled_by"], explanation["backend"]["server"]) == (
        "vllm",
        "vllm, started here",
    )
    shown = text(explanation)
    assert "vllm, started here; updates are made here" in shown
    assert "vllm is not installed here" in shown
    (tmp_path / "vllm").write_text("")
    (tmp_path / "vllm").chmod(0o755)
    _, warnings = load_checked(tmp_path / "x.toml")
    assert not [text for text in warnings if text.startswith("inference.")]
