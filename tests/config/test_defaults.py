"""Defaults that hang on other keys: what a file without them means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from retrain.config.dump import run_config_toml
from retrain.config.explain import explain
from retrain.config.load import LoadedConfig, config_from_mapping, read_resolved
from retrain.config.schema import RunConfig
from retrain.preflight import load_checked

REAL = {"model": {"model": "Qwen/Qwen3-4B-Instruct-2507"}}


def only_run(tables: dict[str, Any]) -> RunConfig:
    loaded = config_from_mapping(tables)
    return loaded.run_config(loaded.conditions[0], loaded.seeds[0])


def task_notes(loaded: LoadedConfig) -> list[str]:
    return [note for note in explain(loaded)["notes"] if note.startswith("trains on")]


@pytest.mark.parametrize("text", ["", "[campaign]\n", "[training]\nmax_steps = 3\n"])
def test_a_file_that_says_nothing_trains_without_a_warning(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.toml").write_text(text)
    loaded, warnings = load_checked(tmp_path / "x.toml")
    assert warnings == []
    assert loaded.config.training.max_tokens == 64
    assert [c.config.data.source for c in loaded.conditions] == ["arithmetic"] * len(
        loaded.conditions
    )
    assert task_notes(loaded) == [
        "trains on arithmetic with the match reward: [data] names no source, and the model is "
        "embedded"
    ]


def test_the_campaign_of_the_documentation_trains_on_math() -> None:
    """As it is pasted from there: a real model, and no [data]."""
    loaded = config_from_mapping(
        {
            "campaign": {
                "seeds": [42, 101, 202, 303],
                "max_steps": 50,
                "conditions": [
                    {"advantage_mode": "grpo", "transform_mode": "none"},
                    {"advantage_mode": "maxrl", "transform_mode": "gtpo_sepa"},
                ],
            },
            "backend": {"backend": "tinker"},
            "model": {**REAL["model"], "lora_rank": 128},
            "training": {"batch_size": 8, "group_size": 16, "max_tokens": 10240, "lr": 4e-5},
            "sepa": {"steps": 50, "schedule": "linear", "delay_steps": 10},
            "squeeze": {"min_variance_retention": 0.95},
        }
    )
    assert {c.config.data.source for c in loaded.conditions} == {"math"}
    assert {c.config.reward.type for c in loaded.conditions} == {"math"}
    values = explain(loaded)["values"]
    assert (values["data"]["source"]["value"], values["reward"]["type"]["value"]) == ("math",) * 2
    assert task_notes(loaded) == [
        "trains on MATH (hendrycks/MATH) with the math reward: [data] names no source, and the "
        "model is Qwen/Qwen3-4B-Instruct-2507"
    ]
    assert (loaded.config.sepa.steps, loaded.config.sepa.delay_steps) == (50, 10)


@pytest.mark.parametrize(
    ("tables", "source", "reward"),
    [
        ({"data": {"source": "auto"}}, "arithmetic", "match"),
        ({**REAL, "data": {"source": "auto"}}, "math", "math"),
        ({**REAL, "data": {"source": "arithmetic"}}, "arithmetic", "match"),
        ({**REAL, "reward": {"type": "match"}}, "math", "match"),
        ({"data": {"source": "math"}}, "math", "math"),
        ({**REAL, "data": {"source": "hub", "path": "openai/gsm8k"}}, "hub", "match"),
    ],
)
def test_task_and_reward(tables: dict[str, Any], source: str, reward: str) -> None:
    run = only_run(tables)
    assert (run.data.source, run.reward.type) == (source, reward)


def test_each_condition_has_the_defaults_of_its_own_model_and_loss() -> None:
    conditions = [{"name": "a"}, {"name": "b", **REAL}, {"name": "c", "loss": {"type": "gspo"}}]
    a, b, c = config_from_mapping({"campaign": {"conditions": conditions}}).conditions
    assert [(x.config.data.source, x.config.training.max_tokens) for x in (a, b, c)] == [
        *(("arithmetic", 64), ("math", 10240), ("arithmetic", 64))
    ]
    assert [x.config.loss.aggregation for x in (a, b, c)] == [
        *("token_mean", "token_mean", "sequence_mean")
    ]


def test_gspo_takes_the_aggregation_that_is_written() -> None:
    written = {"loss": {"type": "gspo", "aggregation": "token_mean"}}
    assert only_run(written).loss.aggregation == "token_mean"
    base = {"loss": {"aggregation": "token_mean"}}
    (condition,) = config_from_mapping(
        {**base, "campaign": {"conditions": [{"loss": {"type": "gspo"}}]}}
    ).conditions
    assert condition.config.loss.aggregation == "token_mean"


@pytest.mark.parametrize("max_steps", [2, 3, 9, 10, 11, 40, 50, 199, 500])
@pytest.mark.parametrize("written", [{}, {"steps": 1}, {"delay_steps": 1}, {"delay_steps": 0}])
def test_the_schedule_of_sepa_ends_within_the_run(max_steps: int, written: dict[str, int]) -> None:
    run = only_run({"training": {"max_steps": max_steps}, "sepa": written})
    assert run.sepa.steps >= 1
    assert written.items() <= run.sepa.model_dump().items()
    if max_steps > 2:
        assert run.sepa.delay_steps + run.sepa.steps < max_steps


def test_the_schedule_of_sepa_is_a_tenth_and_eight_tenths_of_the_run() -> None:
    assert only_run({}).sepa.model_dump(include={"steps", "delay_steps"}) == {
        "steps": 400,
        "delay_steps": 50,
    }
    # Nothing reads it there: it stays what runs of old have in their files.
    plain = only_run({"algorithm": {"transform_mode": "none"}, "training": {"max_steps": 40}})
    assert (plain.sepa.steps, plain.sepa.delay_steps) == (500, 50)


def test_a_runs_own_config_keeps_what_it_says(tmp_path: Path) -> None:
    """Also where today's defaults are others: it was trained with them."""
    old = RunConfig.model_validate({**REAL, "loss": {"type": "gspo", "aggregation": "token_mean"}})
    path = tmp_path / "config.toml"
    path.write_text(run_config_toml(old))
    loaded = read_resolved(old, path).require()
    assert loaded.conditions[0].config == old
    assert old.data.source == "arithmetic"
    assert (old.sepa.steps, old.training.max_tokens) == (500, 10240)
