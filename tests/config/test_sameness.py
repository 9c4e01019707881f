"""Conditions that cannot come out differently are told before they are trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from retrain.config.load import config_from_mapping
from retrain.config.sameness import same_conditions
from retrain.preflight import load_checked

GRPO = {"name": "a", "advantage_mode": "grpo", "transform_mode": "none"}
GTPO = {**GRPO, "transform_mode": "gtpo"}


def told(first: dict[str, Any], other: dict[str, Any], **tables: Any) -> str:
    """What is said of the other condition; empty where it differs."""
    conditions = [first, {**first, "name": "b", **other}]
    loaded = config_from_mapping({**tables, "campaign": {"conditions": conditions}})
    said = list(same_conditions(loaded.conditions))
    assert len(said) <= 1
    return said[0].removeprefix("campaign.conditions[2]: ") if said else ""


@pytest.mark.parametrize(
    ("first", "other", "keys"),
    [
        (GRPO, {"loss": {"type": "cispo"}}, "loss.type"),
        (GRPO, {"loss": {"type": "ppo", "eps_high": 0.28}}, "loss.type, loss.eps_high"),
        (GRPO, {"loss": {"type": "gspo", "aggregation": "token_mean"}}, "loss.type"),
        (
            GRPO,
            {"algorithm": {"uncertainty_kind": "shannon_entropy"}},
            "algorithm.uncertainty_kind",
        ),
        (
            GRPO,
            {"transform_mode": "gtpo", "gtpo": {"beta": 0.0}},
            "algorithm.transform_mode, gtpo.beta",
        ),
        (GTPO, {"gtpo": {"beta": 0.1}, "sepa": {"steps": 7}}, "sepa.steps"),
        (
            GTPO,
            {"transform_mode": "gtpo_hicra", "hicra": {"alpha": 0.0}},
            "algorithm.transform_mode, hicra.alpha",
        ),
        (
            GTPO,
            {"transform_mode": "gtpo_sepa", "sepa": {"steps": 9, "delay_steps": 499}},
            "algorithm.transform_mode, sepa.steps, sepa.delay_steps",
        ),
        (GTPO, {"model": {"lora_alpha": 64.0}}, "model.lora_alpha"),
        (
            GTPO,
            {"training": {"decode_rows": 8, "save_every": 5}},
            "training.decode_rows, training.save_every",
        ),
    ],
)
def test_what_nothing_hangs_on(first: dict[str, Any], other: dict[str, Any], keys: str) -> None:
    message = told(first, other)
    expected = f"trains exactly what a trains, but for rounding: nothing hangs on {keys}"
    assert message.partition(" with one update")[0] == expected
    assert ("minibatches" in message) == ("loss." in keys)


def test_it_is_told_before_training(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(
        '[[campaign.conditions]]\nname = "a"\n'
        '[[campaign.conditions]]\nname = "b"\nloss = { type = "ppo" }\n'
        '[[campaign.conditions]]\nname = "c"\n'
    )
    _, warnings = load_checked(tmp_path / "x.toml")
    assert [text.partition(",")[0] for text in warnings] == [
        "campaign.conditions[3]: trains exactly what a trains",
        "campaign.conditions[2]: trains exactly what a trains",
    ]


@pytest.mark.parametrize(
    ("first", "other", "tables"),
    [
        (GRPO, {"loss": {"type": "gspo"}}, {}),  # another aggregation
        (GRPO, {"loss": {"type": "cispo", "ratio_max": 0.5}}, {}),
        (GRPO, {"loss": {"type": "ppo", "eps_low": 1e-7}}, {}),
        (GRPO, {"loss": {"type": "ppo"}}, {"training": {"minibatches": 2}}),
        (GRPO, {"loss": {"type": "ppo"}}, {"training": {"updates_per_batch": 2}}),
        (GRPO, {"loss": {"type": "ppo"}}, {"loss": {"sampler_correction": "truncate"}}),
        (
            GRPO,
            {"loss": {"type": "ppo"}},
            {"inference": {"engine": "openai", "url": "http://localhost:1"}},
        ),
        (GRPO, {"loss": {"kl_coef": 0.1}}, {}),
        (GRPO, {"transform_mode": "gtpo"}, {}),
        (GTPO, {"algorithm": {"uncertainty_kind": "predictive_variance"}}, {}),
        (GTPO, {"transform_mode": "gtpo_sepa"}, {}),
        (GTPO, {"transform_mode": "gtpo_hicra"}, {}),
        (
            GTPO,
            {"transform_mode": "gtpo_sepa", "sepa": {"schedule": "auto", "steps": 0}},
            {},
        ),
        (GTPO, {"training": {"max_steps": 400}}, {}),
        (GTPO, {"evaluation": {"samples_per_problem": 2}}, {}),
    ],
)
def test_what_makes_a_difference(
    first: dict[str, Any], other: dict[str, Any], tables: dict[str, Any]
) -> None:
    assert told(first, other, **tables) == ""
