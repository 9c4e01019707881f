"""Whole runs on the embedded model, small ones."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retrain.advantages.sepa import SepaSchedule
from retrain.errors import DivergedError, InputError
from retrain.files import RunRecord, read_json, read_jsonl
from retrain.locks import FolderLock
from retrain.models.lora import LoraSpec
from retrain.policies.local.policy import LocalPolicy
from retrain.tasks.registry import load_task
from retrain.training.loop import train
from retrain.training.resume import find_resume_point
from retrain.training.run import assemble
from retrain.training.state import LoopState
from tests.training.runs import BASES, config, rows, start

DOCS = Path(__file__).parents[2] / "docs" / "files.md"


def test_a_run_writes_everything(tmp_path: Path) -> None:
    heard: list[int] = []
    result = start(config(), tmp_path, on_row=lambda row: heard.append(row["step"]))
    assert (result.status, result.steps) == ("done", 4)
    assert heard == [0, 1, 2, 3]
    record = read_json(tmp_path / "run.json")
    assert (record["status"], record["step"], record["device"]) == ("done", 4, "cpu")
    assert record["result"]["accuracy_after"] == result.accuracy_after
    assert [row["step"] for row in rows(tmp_path)] == [0, 1, 2, 3]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "step_000002",
        "step_000004",
    ]
    final = json.loads((tmp_path / "final" / "adapter_config.json").read_text())
    assert final["r"] == 4
    after = read_json(tmp_path / "evaluation" / "step_000004.json")
    assert len(after["problems"]) == 8
    assert after["accuracy"] == result.accuracy_after == rows(tmp_path)[-1]["held_out_accuracy"]
    generations = read_jsonl(tmp_path / "emergence" / "generations.jsonl")
    assert len(generations) == 4 * 4
    assert {
        "step",
        "problem_id",
        "prompt",
        "completion",
        "reward",
        "num_tokens",
        "advantage",
        "planning_spans",
    } <= set(generations[0])
    steps = read_jsonl(tmp_path / "emergence" / "steps.jsonl")
    assert [step["total_count"] for step in steps] == [12] * 4


def test_every_metric_is_documented(tmp_path: Path) -> None:
    start(config(training={"max_steps": 1}), tmp_path)
    documented = DOCS.read_text().split("### `metrics.jsonl`")[1].split("### `evaluation/")[0]
    row = read_jsonl(tmp_path / "metrics.jsonl")[0]
    missing = [key for key in row if f"`{key}`" not in documented]
    assert not missing
    assert 35 <= len(row) <= 55


def test_same_config_same_bits(tmp_path: Path) -> None:
    for name in ("one", "other"):
        start(config(), tmp_path / name)
    assert rows(tmp_path / "one") == rows(tmp_path / "other")
    for part in (
        "final/adapter_model.safetensors",
        "emergence/generations.jsonl",
        "checkpoints/step_000004/optimizer.safetensors",
    ):
        assert (tmp_path / "one" / part).read_bytes() == (tmp_path / "other" / part).read_bytes()


def test_conditions_under_one_seed_share_the_first_rollout(tmp_path: Path) -> None:
    """Common random numbers: same problems, same uniform numbers, same first completions."""
    first = {}
    for mode, transform in (("grpo", "none"), ("maxrl", "gtpo_sepa")):
        settings = config(
            algorithm={"advantage_mode": mode, "transform_mode": transform},
            logging={"log_generations": 12},
        )
        start(settings, tmp_path / mode)
        generations = read_jsonl(tmp_path / mode / "emergence" / "generations.jsonl")
        first[mode] = [g for g in generations if g["step"] == 0]
    for one, other in zip(first["grpo"], first["maxrl"], strict=True):
        assert (one["problem_id"], one["completion"]) == (other["problem_id"], other["completion"])
    problems = {
        mode: [g["problem_id"] for g in read_jsonl(tmp_path / mode / "emergence/generations.jsonl")]
        for mode in first
    }
    assert problems["grpo"] == problems["maxrl"]


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    start(config(), tmp_path / "one")
    start(config(training={"seed": 8}), tmp_path / "other")
    assert rows(tmp_path / "one")[0] != rows(tmp_path / "other")[0]


def test_ratio_is_one_and_moves_with_more_updates(tmp_path: Path) -> None:
    settings = config(training={"updates_per_batch": 2, "minibatches": 3}, loss={"type": "ppo"})
    start(settings, tmp_path / "many")
    start(config(), tmp_path / "one")
    many, one = rows(tmp_path / "many"), rows(tmp_path / "one")
    assert all(row["ratio_mean"] == pytest.approx(1, abs=1e-5) for row in one)
    assert many[0]["num_updates"] in range(4, 7)
    assert many[0]["ratio_max"] > 1.001
    assert many[0]["kl_to_sampler"] > 0


@pytest.mark.parametrize("loss", ["importance_sampling", "ppo", "gspo", "cispo"])
@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "constant", "sum"])
def test_every_loss_and_aggregation_trains(loss: str, aggregation: str, tmp_path: Path) -> None:
    settings = config(
        loss={"type": loss, "aggregation": aggregation, "kl_coef": 0.01},
        training={"max_steps": 2},
        evaluation={"num_problems": 0},
    )
    result = start(settings, tmp_path)
    assert result.status == "done"
    assert result.accuracy_after is None
    assert all(row["grad_norm"] > 0 for row in rows(tmp_path) if row["num_datums"])


@pytest.mark.parametrize("transform", ["none", "gtpo", "gtpo_hicra", "gtpo_sepa"])
@pytest.mark.parametrize("kind", ["surprisal", "predictive_variance", "shannon_entropy"])
def test_every_transform_and_uncertainty_trains(transform: str, kind: str, tmp_path: Path) -> None:
    settings = config(
        algorithm={
            "advantage_mode": "maxrl",
            "transform_mode": transform,
            "uncertainty_kind": kind,
        },
        training={"max_steps": 1},
        evaluation={"num_problems": 0},
    )
    start(settings, tmp_path)
    assert rows(tmp_path)[0]["exec_uncertainty_mean"] > 0


def test_evaluation_every_few_steps(tmp_path: Path) -> None:
    start(config(evaluation={"every": 2, "greedy": False, "before_training": False}), tmp_path)
    assert sorted(p.name for p in (tmp_path / "evaluation").iterdir()) == [
        "step_000002.json",
        "step_000004.json",
    ]
    found = rows(tmp_path)
    assert ["held_out_accuracy" in row for row in found] == [False, True, False, True]
    assert "held_out_greedy_accuracy" not in found[1]


def test_uninformative_steps_still_write_rows_and_checkpoints(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A reward that is always 0: no gradient anywhere, and the user is told why, once."""
    (tmp_path / "stingy.py").write_text("def nothing(response, reference):\n    return 0.0\n")
    settings = config(
        training={"max_steps": 8},
        reward={"type": "custom", "custom_module": "stingy", "custom_function": "nothing"},
        plugins={"search_paths": [str(tmp_path)]},
    )
    with caplog.at_level(logging.WARNING, logger="retrain"):
        result = start(settings, tmp_path / "run")
    assert result.status == "done"
    found = rows(tmp_path / "run")
    assert len(found) == 8
    assert all(row["groups_all_wrong"] == 3 and row["num_datums"] == 0 for row in found)
    assert (tmp_path / "run" / "checkpoints" / "step_000008").is_dir()
    told = [r.getMessage() for r in caplog.records if "reward has been 0" in r.getMessage()]
    assert len(told) == 1
    assert "completion: '" in told[0]


def test_everything_truncated_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="retrain"):
        start(config(training={"max_tokens": 2}), tmp_path)
    told = [r.getMessage() for r in caplog.records if "max_tokens = 2" in r.getMessage()]
    assert len(told) == 1


def test_divergence_is_an_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step that meets a NaN is refused; the weights are those of the step before."""
    original = LocalPolicy.update
    calls: list[torch.Tensor] = []

    def poisoned(self: LocalPolicy, batch: Any, *args: Any) -> Any:
        calls.append(self.adapter.params.clone())
        if len(calls) == 3:
            batch = batch.with_weight(np.full_like(batch.weight, np.nan))
        return original(self, batch, *args)

    monkeypatch.setattr(LocalPolicy, "update", poisoned)
    result = start(config(evaluation={"num_problems": 0}), tmp_path)
    assert result.status == "diverged"
    assert "step 2" in result.message
    assert "the loss is nan" in result.message
    assert read_json(tmp_path / "run.json")["status"] == "diverged"
    assert len(rows(tmp_path)) == 2


def test_nan_logprobs_name_the_problem(tmp_path: Path) -> None:
    settings = config(evaluation={"num_problems": 0})
    base = BASES.get(settings.model, settings.backend)
    state = LoopState(SepaSchedule.of(settings.sepa))
    record = RunRecord.create(tmp_path, name="c_s7", condition="c", seed=7, max_steps=4)
    policy = LocalPolicy(base, LoraSpec(4, 8.0), 7)
    policy.adapter.params.fill_(float("nan"))
    with FolderLock(tmp_path).acquire() as lock:
        start = find_resume_point(tmp_path)
        task = load_task(settings.data)
        run = assemble(settings, record, state, base, task, start, None, lambda: False, lock)
        with pytest.raises(DivergedError, match=r"step 0.*problem arithmetic"):
            train(replace(run, policy=policy))


def test_a_failing_reward_fails_the_run_and_shows_the_completion(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def judge(response, reference):\n    return 1 / 0\n")
    settings = config(
        reward={"type": "custom", "custom_module": "broken", "custom_function": "judge"},
        plugins={"search_paths": [str(tmp_path)]},
        evaluation={"num_problems": 0},
    )
    with pytest.raises(Exception, match=r"broken\.judge raised ZeroDivisionError.*\n.*completion"):
        start(settings, tmp_path / "run")
    record = read_json(tmp_path / "run" / "run.json")
    assert record["status"] == "failed"
    assert "ZeroDivisionError" in record["message"]


def test_interruption_is_recorded(tmp_path: Path) -> None:
    def stop(row: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start(config(), tmp_path, on_row=stop)
    record = read_json(tmp_path / "run.json")
    assert (record["status"], record["step"]) == ("stopped", 1)


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    settings = config(model={"model": str(tmp_path / "nothing")})
    with pytest.raises(InputError, match=r"model\.model: .*cannot be loaded"):
        start(settings, tmp_path / "run")


def test_embedded_model_learns(tmp_path: Path) -> None:
    """Twenty-five steps of the quickstart's shape lift the mean reward by a good margin."""
    settings = config(
        model={"lora_rank": 8},
        training={
            "max_steps": 25,
            "batch_size": 8,
            "group_size": 16,
            "max_tokens": 64,
            "save_every": 0,
        },
        evaluation={"num_problems": 0},
    )
    start(settings, tmp_path)
    rewards = [row["mean_reward"] for row in rows(tmp_path)]
    assert np.mean(rewards[-5:]) > np.mean(rewards[:3]) + 0.15
    assert not (tmp_path / "checkpoints").exists()
