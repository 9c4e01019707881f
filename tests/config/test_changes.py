"""Which changes a resumed run may make, and what is said of the others."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel

from retrain.config.changes import MAY_CHANGE, Change, differences, identity, refuse_changes
from retrain.config.reward import RewardComponentConfig
from retrain.config.schema import RunConfig
from retrain.errors import ConfigError, InputError

KEYS = [
    f"{table}.{key}"
    for table, model in RunConfig()
    if isinstance(model, BaseModel)
    for key in type(model).model_fields
]

OTHER: dict[str, Any] = {
    "model.lora_targets": ["q_proj"],
    "model.dtype": "float32",
    "sepa.schedule": "auto",
    "model.chat_template_date": "2026-01-31",
    "data.answer_pattern": "gsm8k",
    "data.bad_rows": "skip",
    "loss.type": "ppo",
    "loss.aggregation": "sum",
    "loss.eps_low": 0.3,
    "loss.eps_high": 0.3,
    "loss.dual_clip": 3.0,
    "loss.ratio_max": 4.0,
    "loss.kl_estimator": "k2",
    "training.lr_schedule": "cosine",
    "training.betas": [0.8, 0.9],
    "training.micro_batch_tokens": 512,
    "training.gradient_checkpointing": True,
    "training.decode_rows": 8,
    "model.attention": "eager",
    "backend.backend": "tinker",
    "inference.engine": "openai",
    "inference.arguments": ["--enforce-eager"],
    "loss.sampler_correction": "truncate",
    "data.subjects": ["algebra"],
    "data.instruction": "Answer with a number.",
    "reward.type": "custom",
    "reward.timeout": 3.0,
    "reward.on_failure": "mask",
    "reward.components": [RewardComponentConfig(type="match")],
    "logging.trackers": ["trackio"],
    "logging.wandb_artifacts": "final",
    "logging.strategic_grams": ["wait"],
    "logging.wandb_tags": ["pilot"],
    "logging.wandb_mode": "offline",
    "plugins.search_paths": ["plugins"],
}
"""Another value, where adding to the default makes none that the key takes."""


def another(key: str) -> Any:
    table, name = key.split(".")
    value = getattr(getattr(RunConfig(), table), name)
    if key in OTHER:
        return OTHER[key]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        # Fractions have an upper end, and 0 may stand for a default.
        return value / 2 if value else 0.5
    if isinstance(value, dict):
        return {"some": 1}
    return value + "x"


def changed(*keys: str) -> RunConfig:
    tables: dict[str, dict[str, Any]] = {}
    for key in keys:
        table, name = key.split(".")
        tables.setdefault(table, {})[name] = another(key)
    return RunConfig.model_construct(
        **{
            name: model.model_copy(update=tables.get(name, {}))
            for name, model in RunConfig()
            if isinstance(model, BaseModel)
        }
    )


def before(config: RunConfig | None = None) -> dict[str, Any]:
    """An identity as a checkpoint gives it back."""
    return dict(json.loads(json.dumps(identity(config or RunConfig()))))


def refusal(key: str, config: RunConfig, was: RunConfig | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        refuse_changes(differences(before(was), config), (), what="c_s7")
    assert [issue.key for issue in caught.value.issues] == [key]
    return caught.value


@pytest.mark.parametrize("key", KEYS)
def test_any_other_value_is_free_or_refused(key: str) -> None:
    table, name = key.split(".")
    RunConfig.model_validate({table: {name: another(key)}})
    config = changed(key)
    if key in MAY_CHANGE:
        assert differences(before(), config) == []
        return
    error = refusal(key, config)
    (change,) = error.issues
    old, new = getattr(getattr(RunConfig(), table), name), identity(config)[key]
    for value in (old, new):
        shown = json.dumps(value) if isinstance(value, str | bool) else str(value)
        assert shown in change.message or value in (None, []) or isinstance(value, list | dict)
    assert "c_s7" in change.message
    assert f"--allow-change {key}" in change.message
    (allowed,) = refuse_changes(differences(before(), config), [key], what="c_s7")
    assert (allowed.key, allowed.before, allowed.now) == (key, old, new)


def test_every_free_key_is_one() -> None:
    assert set(KEYS) >= MAY_CHANGE


def test_an_unchanged_config_has_no_differences() -> None:
    assert differences(before(), RunConfig()) == []


def test_all_refused_changes_are_told_together() -> None:
    config = changed("training.lr", "gtpo.beta", "training.keep_last")
    with pytest.raises(ConfigError) as caught:
        refuse_changes(differences(before(), config), ["gtpo.beta"], what="c_s7")
    assert [issue.key for issue in caught.value.issues] == ["training.lr"]
    with pytest.raises(ConfigError) as caught:
        refuse_changes(differences(before(), config), (), what="c_s7")
    told = str(caught.value)
    assert "--allow-change gtpo.beta --allow-change training.lr" in told
    assert "training.lr: was 4e-05 when c_s7 was trained, and is now 2e-05" in told


def test_an_unknown_allowed_key_is_refused() -> None:
    with pytest.raises(InputError, match=r"--allow-change lr: no such key; write it as table\.key"):
        refuse_changes([], ["lr"], what="c_s7")


def with_schedule(schedule: str, max_steps: int) -> RunConfig:
    return RunConfig.model_validate({"training": {"lr_schedule": schedule, "max_steps": max_steps}})


def test_more_steps_only_with_a_constant_learning_rate() -> None:
    constant = before(with_schedule("constant", 5))
    assert differences(constant, with_schedule("constant", 9)) == []
    for schedule in ("linear", "cosine"):
        error = refusal(
            "training.max_steps", with_schedule(schedule, 9), with_schedule(schedule, 5)
        )
        assert "was 5 when c_s7 was trained, and is now 9" in str(error)
        assert 'max_steps only with lr_schedule = "constant"' in str(error)


def test_from_and_to_a_falling_learning_rate_the_schedule_is_the_change() -> None:
    refusal("training.lr_schedule", with_schedule("cosine", 5), with_schedule("constant", 5))
    refusal("training.lr_schedule", with_schedule("constant", 5), with_schedule("cosine", 5))
    refusal("training.lr_schedule", with_schedule("cosine", 9), with_schedule("constant", 5))


def test_a_key_younger_than_the_checkpoint_had_its_default() -> None:
    old = before()
    del old["gtpo.beta"]
    old["gtpo.gone_since"] = 1
    assert differences(old, RunConfig()) == []
    assert differences(old, changed("gtpo.beta")) == [Change("gtpo.beta", 0.1, 0.05)]


@pytest.mark.parametrize("mode", ["none", "gtpo"])
def test_a_run_whose_gspo_erased_token_credit_does_not_go_on_unasked(mode: str) -> None:
    config = RunConfig.model_validate(
        {"loss": {"type": "gspo"}, "algorithm": {"transform_mode": mode}}
    )
    old = {**before(config), "loss.type": "gspo"}
    change = Change("loss.type", "gspo", "gspo with token credit")
    assert differences(old, config) == ([] if mode == "none" else [change])
    assert differences(before(config), config) == []


def test_a_change_reads_as_one() -> None:
    assert str(Change("loss.type", "ppo", "gspo")) == 'loss.type: was "ppo", is now "gspo"'
