"""Which runs are trained, in which order, and what of it `retrain explain` says."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from retrain.config.explain import explain, render
from retrain.config.load import LoadedConfig, config_from_mapping, parse_set


def load(*options: str, **campaign: Any) -> LoadedConfig:
    conditions = [{"name": name, "advantage_mode": "grpo"} for name in ("a", "b", "c")]
    values = {
        "training": {"max_tokens": 64},
        "evaluation": {"every": 5},
        "report": {"margin": 0.03},
        "campaign": {"seeds": [1, 2, 3, 4], "max_steps": 10, "conditions": conditions, **campaign},
    }
    return config_from_mapping(values, [parse_set(option) for option in options])


def shown(loaded: LoadedConfig) -> str:
    file = io.StringIO()
    render(explain(loaded), Console(file=file, width=100))
    return " ".join(file.getvalue().split())


def test_the_order_is_said() -> None:
    assert "order all conditions under one seed, then under the next" in shown(load())
    loaded = load("campaign.seeds_first=false")
    assert "order all seeds of one condition, then those of the next" in shown(loaded)
    assert "order" not in shown(config_from_mapping({"training": {"max_tokens": 64}}))


@pytest.mark.parametrize(("max_runs", "seeds"), [(3, 1), (5, 1), (11, 3), (12, 4), (99, 4)])
def test_runs_for_now_are_whole_seeds(max_runs: int, seeds: int) -> None:
    explanation = explain(load(max_runs=max_runs))
    found, capacity = explanation["order"], explanation["capacity"]
    assert (found["seeds_now"], found["runs_now"], found["steps_now"]) == (
        *(seeds, 3 * seeds),
        30 * seeds,
    )
    assert (capacity["total_runs"], capacity["total_campaign_steps"]) == (3 * seeds, 30 * seeds)
    assert len(explanation["runs"]) == 12
    text = shown(load(max_runs=max_runs))
    assert "3 conditions x 4 seeds = 12 runs, 120 steps" in text
    left = f"{12 - 3 * seeds} runs left out, as max_runs = {max_runs}"
    assert (left in text) == (seeds < 4)


def test_the_rule_for_stopping_is_said_with_its_defaults() -> None:
    loaded = load("campaign.stopping.min_seeds=2", stopping={"after_steps": [5]})
    explanation = explain(loaded)
    assert explanation["order"]["stopping"] == {
        "after_steps": [5],
        "margin": 0.03,
        "confidence": 0.95,
        "min_seeds": 2,
    }
    values = explanation["values"]["campaign.stopping"]
    assert values["after_steps"] == {"value": [5], "source": "python", "conditions": []}
    assert values["min_seeds"] == {"value": 2, "source": "--set", "conditions": []}
    assert (values["margin"]["value"], values["margin"]["source"]) == (None, "default")
    assert "stopping" not in explanation["values"]["campaign"]
    assert "may stop a condition after step 5, once 2 seeds have come so far" in shown(loaded)
    assert "campaign.stopping" not in explain(load())["values"]


def test_rules_that_stop_nothing_are_warned_about() -> None:
    rule = {"after_steps": [5], "min_seeds": 9}
    (warning,) = [w for w in load(stopping=rule).warnings if "stopping" in w]
    assert "9 seeds are wanted, and there are 4: no condition is ever stopped" in warning


def test_stopping_by_the_reward_needs_no_evaluation() -> None:
    rule = {"after_steps": [7]}
    assert load("report.metric=reward", stopping=rule).config.campaign
    assert load("evaluation.num_problems=0", stopping=rule).config.campaign
