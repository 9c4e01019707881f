"""`[model].init_adapter`: a run that starts from another one's adapter, which is no resuming."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import retrain
from retrain.config.schema import RunConfig
from retrain.errors import ConfigError, InputError
from retrain.experiments.single import SingleResult
from retrain.files import read_json
from retrain.policies.local.policy import LocalPolicy
from retrain.training import run as run_module
from retrain.training.loop import Run, RunStopped, train
from tests.training.runs import assert_same, config, rows, start


def settings(init: Path | str = "", **model: Any) -> RunConfig:
    return config(
        model={"lora_rank": 4, "init_adapter": str(init), **model},
        training={"max_steps": 3, "max_tokens": 24},
        evaluation={"num_problems": 0},
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    start(settings(), folder)
    return folder


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Tensor, bool]]:
    """(weights, whether the optimizer has a state) of every policy whose training begins."""
    found: list[tuple[torch.Tensor, bool]] = []

    def watched(run: Run) -> None:
        assert isinstance(run.policy, LocalPolicy)
        params = run.policy.adapter.params.clone()
        found.append((params, bool(run.policy._optimizer.state)))
        train(run)

    monkeypatch.setattr(run_module, "train", watched)
    return found


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("source", ["final", "checkpoints/step_000002"])
def test_weights_are_taken_and_the_optimizer_is_fresh(
    source: str,
    trained: Path,
    begun: list[tuple[torch.Tensor, bool]],
    tmp_path: Path,
) -> None:
    start(settings(trained / source), tmp_path / "warm")
    start(settings(), tmp_path / "cold")
    (warm, has_state), (cold, _) = begun
    values = torch.cat([tensor.flatten() for tensor in stored(trained / source).values()])
    assert torch.equal(warm.sort().values, values.sort().values)
    assert not torch.equal(warm, cold)
    assert not has_state
    assert [row["step"] for row in rows(tmp_path / "warm")] == [0, 1, 2]
    assert read_json(tmp_path / "warm" / "run.json")["resumed_from"] is None


def test_resuming_does_not_start_from_it_again(
    trained: Path, begun: list[tuple[torch.Tensor, bool]], tmp_path: Path
) -> None:
    """Not even from a folder that is gone by then; the weights are those of the checkpoint."""
    adapter = tmp_path / "adapter"
    shutil.copytree(trained / "final", adapter)
    start(settings(adapter), tmp_path / "straight")
    heard: list[object] = []
    with pytest.raises(RunStopped):
        start(
            settings(adapter),
            tmp_path / "stopped",
            on_row=heard.append,
            stop=lambda: len(heard) == 1,
        )
    shutil.rmtree(adapter)
    start(settings(adapter), tmp_path / "stopped")
    assert [has_state for _, has_state in begun] == [False, False, True]
    assert_same(tmp_path / "stopped", tmp_path / "straight")


def test_a_run_is_resumed_by_its_folder_when_the_adapter_is_gone(
    trained: Path, tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(trained / "final", adapter)
    start(settings(adapter), tmp_path / "run")
    shutil.rmtree(adapter)
    before = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    before["training"]["max_steps"] = 4
    result = retrain.resume(tmp_path / "run", overrides={"training.max_steps": 4})
    assert isinstance(result, SingleResult)
    assert (result.status, len(rows(tmp_path / "run"))) == ("done", 4)
    after = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    before["logging"]["log_dir"] = after["logging"]["log_dir"]
    assert after == before


def test_another_adapter_is_refused_when_resuming(trained: Path, tmp_path: Path) -> None:
    heard: list[object] = []
    with pytest.raises(RunStopped):
        start(settings(trained / "final"), tmp_path, on_row=heard.append, stop=lambda: True)
    for other in (trained / "checkpoints/step_000002", ""):
        with pytest.raises(ConfigError, match=r"model\.init_adapter: was .*final"):
            start(settings(other), tmp_path)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"lora_rank": 8}, r"model\.lora_rank: 8, but .* has rank 4"),
        ({"lora_alpha": 5.0}, r"model\.lora_alpha: 5, but .* was trained with 8"),
        ({"lora_targets": ["q_proj"]}, r"layers this run does not adapt"),
    ],
)
def test_an_adapter_of_another_shape_is_refused(
    model: dict[str, Any], message: str, trained: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        start(settings(trained / "final", **model), tmp_path)
    assert read_json(tmp_path / "run.json")["status"] == "failed"
    assert rows(tmp_path) == []


def test_fewer_layers_than_this_run_adapts(trained: Path, tmp_path: Path) -> None:
    start(settings(lora_targets=["q_proj", "v_proj"]), tmp_path / "narrow")
    with pytest.raises(InputError, match=r"is missing; .*lora_targets"):
        start(settings(tmp_path / "narrow" / "final"), tmp_path / "run")


def test_an_adapter_of_another_base_model_is_refused(trained: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(trained / "final", adapter)
    path = adapter / "adapter_config.json"
    fields = {**json.loads(path.read_text()), "base_model_name_or_path": "org/another"}
    path.write_text(json.dumps(fields))
    with pytest.raises(ConfigError, match=r"model\.model: embedded, .*trained on org/another"):
        start(settings(adapter), tmp_path / "run")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.init_adapter: no such folder"):
        start(settings(tmp_path / "nothing"), tmp_path / "run")
