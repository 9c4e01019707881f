"""One run from its config to its result: puts the parts together, trains, keeps `run.json`."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retrain.advantages.algorithm import AlgorithmError, algorithm_of
from retrain.advantages.sepa import SepaSchedule
from retrain.config.dump import fingerprint, run_config_toml
from retrain.config.schema import BackendConfig, ModelConfig, RunConfig
from retrain.errors import ConfigError, ConfigIssue, DivergedError
from retrain.files import (
    RUN_CONFIG_FILE,
    RunRecord,
    atomic_write_text,
    read_json,
    read_jsonl,
)
from retrain.models.lora import LoraSpec
from retrain.policies.local.base import BaseModel, load_base
from retrain.policies.local.policy import LocalPolicy
from retrain.rewards.registry import build_reward
from retrain.tasks.registry import build_task
from retrain.tracking.journal import Journal
from retrain.training.checkpoint import Checkpoints, written_aside
from retrain.training.loop import Run, train
from retrain.training.state import LoopState

_log = logging.getLogger("retrain")


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended. Accuracies are None when evaluation is off."""

    name: str
    condition: str
    seed: int
    status: str
    message: str
    steps: int
    accuracy_before: float | None
    accuracy_after: float | None
    greedy_before: float | None
    greedy_after: float | None
    mean_reward: float | None
    wall_s: float


class BaseModels:
    """Base models that this process has loaded; a warm worker's runs share them."""

    def __init__(self) -> None:
        self._loaded: dict[tuple[str, ...], BaseModel] = {}

    def get(self, model: ModelConfig, backend: BackendConfig) -> BaseModel:
        """Loaded at the first call. Only one is kept: two large ones would not fit."""
        key = (model.model, model.revision, model.dtype, backend.device, str(backend.threads))
        if key not in self._loaded:
            self._loaded.clear()
            self._loaded[key] = load_base(model, backend)
        return self._loaded[key]


def train_run(
    config: RunConfig,
    run_dir: Path,
    *,
    name: str,
    condition: str,
    bases: BaseModels | None = None,
    on_row: Callable[[Mapping[str, Any]], None] | None = None,
) -> RunResult:
    """Train one run into `run_dir`.

    `run.json` is kept up to date whatever happens: done, diverged (returned, not raised: an
    outcome), failed or interrupted (the exception goes on to the caller).
    """
    started = time.monotonic()
    seed, max_steps = config.training.seed, config.training.max_steps
    record = RunRecord.create(
        run_dir, name=name, condition=condition, seed=seed, max_steps=max_steps
    )
    record.update(status="running", config_fingerprint=fingerprint(config))
    atomic_write_text(run_dir / RUN_CONFIG_FILE, run_config_toml(config))
    status, message = "done", ""
    state = LoopState(SepaSchedule.of(config.sepa))
    try:
        run = assemble(config, run_dir, name, condition, state, bases or BaseModels(), on_row)
        record.update(device=run.policy.device, threads=config.backend.threads or 1)
        train(run)
        with written_aside(run_dir / "final") as folder:
            run.policy.export(folder)
    except DivergedError as error:
        status, message = "diverged", str(error)
        _log.info("%s: %s", name, message)
    except KeyboardInterrupt:
        record.update(status="interrupted", step=state.step)
        raise
    except BaseException as error:
        record.update(status="failed", step=state.step, message=f"{type(error).__name__}: {error}")
        raise
    result = _result(run_dir, name, condition, seed, status, message, state.step, started)
    measured = asdict(result)
    for key in ("name", "condition", "seed", "status", "message"):
        del measured[key]
    record.update(status=status, message=message, step=state.step, result=measured)
    return result


def assemble(
    config: RunConfig,
    run_dir: Path,
    name: str,
    condition: str,
    state: LoopState,
    bases: BaseModels,
    on_row: Callable[[Mapping[str, Any]], None] | None,
) -> Run:
    """A run's parts, from its config. Raises ConfigError or InputError when one cannot be had."""
    training, model = config.training, config.model
    search_paths = config.plugins.search_paths
    try:
        algorithm = algorithm_of(config)
    except AlgorithmError as error:
        raise ConfigError([ConfigIssue(key, text) for key, text in error.problems]) from error
    targets = model.lora_targets
    spec = LoraSpec(
        model.lora_rank, model.alpha, targets if isinstance(targets, str) else tuple(targets)
    )
    micro = training.micro_batch_tokens
    policy = LocalPolicy(
        bases.get(model, config.backend),
        spec,
        training.seed,
        micro_batch_tokens=None if micro == "auto" else micro,
    )
    return Run(
        name=name,
        condition=condition,
        config=config,
        policy=policy,
        task=build_task(config.data, search_paths),
        reward=build_reward(config.reward, search_paths),
        algorithm=algorithm,
        journal=Journal(
            run_dir, condition, algorithm.planning, config.logging.log_generations, on_row
        ),
        checkpoints=Checkpoints(run_dir / "checkpoints", training.save_every, training.keep_last),
        state=state,
    )


def _result(
    run_dir: Path,
    name: str,
    condition: str,
    seed: int,
    status: str,
    message: str,
    steps: int,
    started: float,
) -> RunResult:
    evaluations = [read_json(path) for path in sorted((run_dir / "evaluation").glob("step_*.json"))]
    before: dict[str, Any] = next((e for e in evaluations if e["step"] == 0), {})
    after: dict[str, Any] = next((e for e in evaluations if e["step"] == steps and steps > 0), {})
    rows = read_jsonl(run_dir / "metrics.jsonl")
    return RunResult(
        name=name,
        condition=condition,
        seed=seed,
        status=status,
        message=message,
        steps=steps,
        accuracy_before=before.get("accuracy"),
        accuracy_after=after.get("accuracy"),
        greedy_before=before.get("greedy_accuracy"),
        greedy_after=after.get("greedy_accuracy"),
        mean_reward=rows[-1]["mean_reward"] if rows else None,
        wall_s=round(time.monotonic() - started, 3),
    )
