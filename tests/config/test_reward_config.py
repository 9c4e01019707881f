"""`[reward]` with several judges: conditions, sources, what a resumed run may change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from retrain.config.changes import differences, identity
from retrain.config.dump import read_run_config, run_config_toml
from retrain.config.explain import explain
from retrain.config.load import LoadedConfig, config_from_mapping, read_mapping
from retrain.config.reward import RewardComponentConfig, RewardConfig
from retrain.config.schema import RunConfig
from retrain.preflight import check_reading, load_checked

JUDGE = {"type": "judge", "base_url": "http://localhost:8000/v1", "model": "m"}
BASE: dict[str, Any] = {
    "training": {"max_tokens": 64, "max_steps": 2},
    "evaluation": {"num_problems": 4},
}


def load(**tables: Any) -> LoadedConfig:
    return config_from_mapping({**BASE, **tables})


def composite(*components: dict[str, Any], **keys: Any) -> dict[str, Any]:
    return {"type": "composite", "components": list(components), **keys}


def test_conditions_may_have_components_of_their_own(tmp_path: Path) -> None:
    loaded = load(
        reward=composite({"type": "match"}, {**JUDGE, "weight": 0.5}),
        campaign={
            "seeds": [1],
            "conditions": [
                {"transform_mode": "none"},
                {"transform_mode": "none", "name": "text", "reward": {"type": "match"}},
                {
                    "transform_mode": "none",
                    "reward": {"components": [{"type": "match", "weight": 2.0}]},
                },
            ],
        },
    )
    weights = [
        [part.weight for part in loaded.run_config(condition, 1).reward.components]
        for condition in loaded.conditions
    ]
    assert weights == [[1.0, 0.5], [], [2.0]]
    assert len({condition.label for condition in loaded.conditions}) == 3
    assert all(len(condition.label) <= 64 for condition in loaded.conditions)
    text = json.dumps(explain(loaded))
    assert '"weight": 2.0' in text
    assert loaded.conditions[2].changes["reward"]["components"] == [
        {"type": "match", "weight": 2.0}
    ]


def test_a_resolved_config_is_read_back(tmp_path: Path) -> None:
    loaded = load(reward=composite({"type": "math"}, {**JUDGE, "cache_dir": "x"}))
    run = loaded.run_config(loaded.conditions[0], 1)
    (tmp_path / "config.toml").write_text(run_config_toml(run))
    assert read_run_config(tmp_path / "config.toml") == run
    assert run.reward.components[1].cache_dir == str(Path.cwd() / "x")
    reading = load_checked(tmp_path / "config.toml")
    assert reading[0].config.reward == run.reward


def test_a_resumed_run_may_ask_the_judge_otherwise_but_not_another() -> None:
    def run(**keys: Any) -> RunConfig:
        part = RewardComponentConfig.model_validate({**JUDGE, **keys})
        return RunConfig(reward=RewardConfig(type="composite", components=[part]))

    before = json.loads(json.dumps(identity(run())))
    free = run(concurrency=2, retries=1, cache_dir="elsewhere", api_key_env="OTHER")
    assert differences(before, free) == []
    assert [c.key for c in differences(before, run(model="n"))] == ["reward.components"]
    assert [c.key for c in differences(before, run(weight=2.0))] == ["reward.components"]


def test_a_checkpoint_from_before_there_were_components() -> None:
    before = identity(RunConfig())
    for key in ("reward.components", "reward.timeout", "reward.on_failure"):
        del before[key]
    assert differences(before, RunConfig()) == []


def test_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    far = {**JUDGE, "base_url": "https://api.example.org/v1"}
    tables = {**BASE, "reward": composite(far, {"type": "match", "weight": -1.0})}
    _, warnings = check_reading(read_mapping({**tables, "algorithm": {"transform_mode": "none"}}))
    assert warnings == [
        "reward.components[2].weight: -1 can make the reward negative, which is an error with "
        'advantage_mode = "maxrl"; take "grpo" then',
        'reward.components[1].api_key_env: "OPENAI_API_KEY" is not set here; api.example.org will '
        "likely want a key",
    ]
    monkeypatch.setenv("OPENAI_API_KEY", "sk")
    grpo = {"advantage_mode": "grpo", "transform_mode": "none"}
    _, warnings = check_reading(read_mapping({**tables, "algorithm": grpo}))
    assert warnings == []


def test_nothing_is_asked_or_started_before_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess

    import httpx

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(subprocess, "Popen", never)
    monkeypatch.setattr(httpx, "AsyncClient", never)
    check_reading(read_mapping({**BASE, "reward": composite({"type": "math"}, JUDGE)}))
