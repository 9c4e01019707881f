"""What a file, its conditions and the command line resolve to."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from retrain.config.load import (
    Override,
    config_from_mapping,
    load_config,
    parse_set,
    read_mapping,
    read_resolved,
)
from retrain.config.schema import STANDARD_CONDITIONS, STANDARD_SEEDS
from retrain.errors import ConfigError, InputError
from retrain.files import atomic_write_toml

CAMPAIGN: dict[str, Any] = {
    "campaign": {
        "seeds": [1, 2],
        "conditions": [
            {"advantage_mode": "grpo", "transform_mode": "none"},
            {"advantage_mode": "grpo", "transform_mode": "none", "training": {"lr": 1e-4}},
        ],
    },
    "training": {"max_steps": 30},
}


def problems(values: dict[str, Any], *given: Override, seeds: list[int] | None = None) -> list[str]:
    return [str(issue) for issue in read_mapping(values, given, seeds).issues]


def test_a_single_run_has_one_condition_and_one_seed() -> None:
    loaded = config_from_mapping({"training": {"seed": 7}})
    assert not loaded.is_campaign
    assert [condition.label for condition in loaded.conditions] == ["maxrl+gtpo_sepa"]
    assert loaded.seeds == (7,)
    assert loaded.run_config(loaded.conditions[0], 9).training.seed == 9


def test_conditions_are_merged_into_the_base_config() -> None:
    loaded = config_from_mapping(CAMPAIGN)
    assert [c.label for c in loaded.conditions] == ["grpo+none", "grpo+none~lr=0.0001"]
    run = loaded.run_config(loaded.conditions[1], 2)
    assert (run.training.lr, run.training.max_steps, run.training.seed) == (1e-4, 30, 2)
    assert (run.algorithm.advantage_mode, run.algorithm.transform_mode) == ("grpo", "none")
    assert loaded.run_config(loaded.conditions[0], 1).training.lr == 4e-5
    assert loaded.conditions[1].changes == {"training": {"lr": 1e-4}}
    assert loaded.condition("grpo+none") is loaded.conditions[0]
    with pytest.raises(ConfigError, match="the conditions are grpo"):
        loaded.condition("grpo")


def test_no_conditions_means_the_five_standard_ones() -> None:
    loaded = config_from_mapping({"campaign": {}})
    modes = [(c.advantage_mode, c.transform_mode) for c in loaded.conditions]
    assert tuple(modes) == STANDARD_CONDITIONS
    assert loaded.seeds == STANDARD_SEEDS


def test_missing_modes_come_from_the_base_config() -> None:
    values = {
        "algorithm": {"advantage_mode": "grpo", "transform_mode": "gtpo"},
        "campaign": {"conditions": [{"transform_mode": "none"}, {"advantage_mode": "maxrl"}, {}]},
    }
    labels = [c.label for c in config_from_mapping(values).conditions]
    assert labels == ["grpo+none", "maxrl+gtpo", "grpo+gtpo"]


def test_modes_may_stand_in_the_algorithm_table_of_a_condition() -> None:
    condition = {"algorithm": {"advantage_mode": "grpo", "params": {"x": 1}}}
    loaded = config_from_mapping(
        {"algorithm": {"params": {"y": 2}}, "campaign": {"conditions": [condition]}}
    )
    (only,) = loaded.conditions
    assert (only.label, only.advantage_mode) == ("grpo+gtpo_sepa", "grpo")
    assert only.changes == {"algorithm": {"params": {"x": 1}}}
    assert only.config.algorithm.params == {"x": 1, "y": 2}


def test_algorithm_mode_and_modes_put_each_other_out_of_force() -> None:
    loaded = config_from_mapping(
        {
            "algorithm": {"algorithm_mode": "a.b"},
            "campaign": {"conditions": [{"advantage_mode": "grpo"}, {"name": "base"}]},
        }
    )
    assert [c.label for c in loaded.conditions] == ["grpo+gtpo_sepa", "base"]
    assert [c.config.algorithm.algorithm_mode for c in loaded.conditions] == ["", "a.b"]
    assert (
        config_from_mapping({"algorithm": {"algorithm_mode": "a.b"}}).conditions[0].label == "a.b"
    )
    standard = config_from_mapping({"algorithm": {"algorithm_mode": "a.b"}, "campaign": {}})
    assert any("every condition sets" in warning for warning in standard.warnings)


@pytest.mark.parametrize(
    ("training", "campaign", "steps", "source"),
    [
        ({}, {}, 500, "default"),
        ({"max_steps": 30}, {}, 30, "python"),
        ({"max_steps": 30}, {"max_steps": 20}, 20, "python"),
        ({}, {"max_steps": 20}, 20, "python"),
    ],
)
def test_campaign_steps_win_only_when_written(
    training: dict[str, Any], campaign: dict[str, Any], steps: int, source: str
) -> None:
    loaded = config_from_mapping({"training": training, "campaign": campaign})
    assert loaded.config.campaign is not None
    assert loaded.config.campaign.max_steps == loaded.config.training.max_steps == steps
    assert loaded.sources["training.max_steps"] == source
    assert all(c.config.training.max_steps == steps for c in loaded.conditions)


def test_a_steps_option_means_both() -> None:
    for table in ("training", "campaign"):
        override = Override(table, "max_steps", 5, "--max-steps")
        loaded = config_from_mapping({"campaign": {"max_steps": 20}}, [override])
        assert loaded.config.training.max_steps == 5
        assert loaded.sources["campaign.max_steps"] == "--max-steps"


def test_sources(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text("[training]\nlr = 1e-4\nmax_steps = 9\n[algorithm.params]\nx = 1\n")
    given = [parse_set("training.max_steps=3"), Override("model", "lora_rank", 4, "--lora-rank")]
    sources = load_config(path, given).sources
    assert sources["training.lr"] == "x.toml"
    assert sources["training.max_steps"] == "--set"
    assert sources["model.lora_rank"] == "--lora-rank"
    assert sources["algorithm.params"] == "x.toml"
    assert sources["training.batch_size"] == "default"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("training.lr=1e-4", 1e-4),
        ("training.lr=1", 1),
        ("training.batch_size = 4", 4),
        ("data.shuffle=False", False),
        ("training.lr_schedule=cosine", "cosine"),
        ('training.lr_schedule="cosine"', "cosine"),
        ("model.model=./models/x", "./models/x"),
        ("model.revision=123", "123"),
        ("model.lora_targets=q_proj,v_proj", ["q_proj", "v_proj"]),
        ('model.lora_targets=["q_proj"]', ["q_proj"]),
        ("model.lora_targets=all-linear", "all-linear"),
        ("campaign.seeds=1,2", [1, 2]),
        ("campaign.seeds=7", [7]),
        ("training.micro_batch_tokens=auto", "auto"),
        ("training.micro_batch_tokens=512", 512),
        ("logging.strategic_grams=wait, so", "wait, so"),
        ("loss.eps_high=0.28", 0.28),
        ("training.batch_size=many", "many"),
    ],
)
def test_set_takes_what_the_key_wants(text: str, value: object) -> None:
    parsed = parse_set(text)
    assert parsed.value == value
    assert type(parsed.value) is type(value)


def test_set_reaches_into_parameters() -> None:
    override = parse_set("algorithm.params.scale=std")
    loaded = config_from_mapping({"algorithm": {"params": {"x": 1}}}, [override])
    assert loaded.config.algorithm.params == {"x": 1, "scale": "std"}
    assert loaded.sources["algorithm.params"] == "--set"


@pytest.mark.parametrize("text", ["lr=1", "training.lr", "=1", "training.=1", ""])
def test_set_without_its_parts(text: str) -> None:
    with pytest.raises(InputError, match=r"table\.key=value"):
        parse_set(text)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            Override("training", "lr", 1e-3, "--lr"),
            "--lr: training.lr: grpo+none~lr=0.0001 sets it, so it cannot be overridden; "
            "change it in the file",
        ),
        (
            parse_set("algorithm.advantage_mode=maxrl"),
            "--set: algorithm.advantage_mode: every condition sets it, so it cannot be "
            "overridden; change it in the file",
        ),
        (
            Override("training", "seed", 3, "--seed"),
            "--seed: training.seed: the config is a campaign, with a list of seeds; use --seeds 3",
        ),
        (
            parse_set("campaign.conditions=[]"),
            "--set: campaign.conditions: conditions cannot be given on the command line; "
            "write them in the file",
        ),
        (
            parse_set("training.lrr=1"),
            "--set: training.lrr: unknown key in [training]; did you mean lr?",
        ),
        (
            parse_set("training.batch_size=many"),
            '--set: training.batch_size: "many" is text; a whole number from 1 to 10000 is wanted',
        ),
        (parse_set("trainig.lr=1"), "--set: trainig: unknown table; did you mean [training]?"),
    ],
)
def test_options_that_cannot_hold(override: Override, message: str) -> None:
    assert problems(CAMPAIGN, override) == [message]


def test_an_option_of_a_mode_that_no_condition_sets_holds() -> None:
    values = {"campaign": {"conditions": [{"transform_mode": "none"}, {"transform_mode": "gtpo"}]}}
    loaded = config_from_mapping(values, [parse_set("algorithm.advantage_mode=grpo")])
    assert [c.label for c in loaded.conditions] == ["grpo+none", "grpo+gtpo"]


def test_seeds_option() -> None:
    assert config_from_mapping(CAMPAIGN, seeds=[5, 6, 7]).seeds == (5, 6, 7)
    assert config_from_mapping(CAMPAIGN, seeds=[5]).sources["campaign.seeds"] == "--seeds"
    assert problems(CAMPAIGN, seeds=[5, 5]) == [
        "--seeds: campaign.seeds: 5 is there more than once; every seed is one run"
    ]
    assert problems({}, seeds=[5]) == [
        "--seeds: campaign.seeds: the config describes a single run; add a [campaign] table to "
        "make it a campaign"
    ]


def test_paths_are_taken_from_the_file_and_results_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    (project / "models" / "mine").mkdir(parents=True)
    elsewhere.mkdir()
    (project / "x.toml").write_text(
        '[model]\nmodel = "models/mine"\n[data]\nsource = "jsonl"\npath = "p.jsonl"\n'
        '[plugins]\nsearch_paths = ["../lib"]\n[inference]\nengine = "openai"\n'
        'url = "http://localhost:8000"\nadapter_dir = "adapters"\n'
    )
    monkeypatch.chdir(elsewhere)
    loaded = load_config("../project/x.toml")
    run = loaded.run_config(loaded.conditions[0], 1)
    assert run.model.model == str(project / "models" / "mine")
    assert run.data.path == str(project / "p.jsonl")
    assert run.plugins.search_paths == [str(project), str(tmp_path / "lib")]
    assert run.logging.log_dir == str(elsewhere / "logs")
    assert run.inference.adapter_dir == str(elsewhere / "adapters")
    assert loaded.config.data.path == "p.jsonl"


def test_options_for_a_resolved_config_are_taken_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = config_from_mapping({"plugins": {"search_paths": ["lib"]}}, base_dir=tmp_path / "project")
    config, path = run.run_config(run.conditions[0], 1), tmp_path / "run" / "config.toml"
    monkeypatch.chdir(tmp_path)

    def paths(*options: str) -> list[str]:
        given = [parse_set(option) for option in options]
        loaded = read_resolved(config, path, given).require()
        return loaded.run_config(loaded.conditions[0], 1).plugins.search_paths

    assert paths() == [str(tmp_path / "project"), str(tmp_path / "project/lib")]
    assert paths('plugins.search_paths=["more"]') == [str(tmp_path / "more")]


@pytest.mark.parametrize("name", ["embedded", "Qwen/Qwen3-0.6B", "gpt2"])
def test_names_of_models_are_no_folders(name: str) -> None:
    loaded = config_from_mapping({"model": {"model": name}})
    assert loaded.run_config(loaded.conditions[0], 1).model.model == name


def test_a_run_config_is_a_config_of_its_own(tmp_path: Path) -> None:
    """`run_all.sh` trains from the resolved configs, whose every key is written."""
    values = {
        "loss": {"type": "ppo", "eps_low": 0.1, "kl_coef": 0.1, "kl_estimator": "k2"},
        "algorithm": {"advantage_mode": "grpo"},
        "campaign": {
            "conditions": [
                {"transform_mode": "none"},
                {"name": "is", "loss": {"type": "importance_sampling", "kl_coef": 0.0}},
                {"name": "own", "algorithm": {"algorithm_mode": "a.b"}},
            ]
        },
    }
    loaded = config_from_mapping(values)
    for condition in loaded.conditions:
        run = loaded.run_config(condition, 3)
        path = tmp_path / f"{condition.label}.toml"
        atomic_write_toml(path, run.model_dump(exclude_none=True))
        again = load_config(path)
        assert again.conditions[0].config.training == run.training
        assert again.conditions[0].config.loss == run.loss
        assert again.config.algorithm == run.algorithm
        assert tomllib.loads(path.read_text())["training"]["seed"] == 3


def test_keys_that_only_some_conditions_read_are_fine() -> None:
    values = {
        "loss": {"eps_high": 0.3},
        "sepa": {"steps": 10},
        "campaign": {"conditions": [{"name": "ppo", "loss": {"type": "ppo"}}, {}]},
    }
    assert config_from_mapping(values).warnings == ()
    values["campaign"] = {"conditions": [{"transform_mode": "none"}, {"transform_mode": "gtpo"}]}
    del values["loss"]
    (warning,) = config_from_mapping(values).warnings
    assert warning.startswith("sepa.steps: is written, but nothing reads it")


def test_what_is_wrong_in_one_condition_names_it() -> None:
    values = {
        "training": {"top_p": 0.9},
        "campaign": {"conditions": [{}, {"name": "ppo", "loss": {"type": "ppo"}}]},
    }
    (issue,) = read_mapping(values).issues
    assert issue.key == "training.top_p"
    assert issue.message.endswith("(in ppo)")
    values = {
        "campaign": {
            "conditions": [{}, {"name": "b", "training": {"top_p": 0.9}, "loss": {"type": "ppo"}}]
        }
    }
    (issue,) = read_mapping(values).issues
    assert issue.key == "campaign.conditions[2].training.top_p"


def test_warnings_for_what_is_probably_not_meant() -> None:
    loaded = config_from_mapping(
        {
            "training": {"seed": 1, "temperature": 0.1, "keep_last": 2, "save_every": 0},
            "evaluation": {"every": 1000},
            "campaign": {"seeds": [1], "max_workers": 2},
        }
    )
    assert [warning.partition(": ")[0] for warning in loaded.warnings] == [
        "training.keep_last",
        "training.temperature",
        "evaluation.every",
        "training.seed",
        "campaign.max_workers",
        "campaign.seeds",
    ]


def test_devices_say_little_about_a_service() -> None:
    campaign: dict[str, Any] = {"devices": "cpu,cpu", "seeds": [1, 2], "parallel": True}
    values = {"backend": {"backend": "tinker"}, "campaign": campaign}
    warnings = config_from_mapping(values).warnings
    assert [text for text in warnings if text.startswith("campaign.devices: no model runs here")]
    assert not config_from_mapping({"campaign": campaign}).warnings


def test_conditions_that_train_the_same_are_told() -> None:
    values = {"campaign": {"conditions": [{"name": "a"}, {"name": "b"}]}}
    loaded = config_from_mapping(values)
    assert loaded.warnings == ("campaign.conditions[2]: trains exactly what a trains",)


def test_python_values() -> None:
    values = {"training": {"betas": (0.9, 0.95)}, "logging": {"log_dir": Path("out")}}
    loaded = config_from_mapping(values)
    assert loaded.config.training.betas == [0.9, 0.95]
    assert loaded.config.logging.log_dir == "out"
    assert values["training"] == {"betas": (0.9, 0.95)}
