"""The training loop. Read it top to bottom: this is all that happens in a run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from retrain.advantages.algorithm import Algorithm
from retrain.advantages.credit import assign_credit
from retrain.advantages.uncertainty import NonFiniteError
from retrain.config.schema import RunConfig
from retrain.errors import DivergedError
from retrain.policies.policy import NonFiniteUpdateError, Policy
from retrain.rewards.reward import Reward, Scoring
from retrain.tasks.task import Task
from retrain.tracking.journal import Journal
from retrain.training.checkpoint import Checkpoints
from retrain.training.correction import SamplerCorrection, resolved_loss
from retrain.training.evaluation import EvaluationResult, evaluate
from retrain.training.metrics import (
    Clock,
    evaluation_metrics,
    rollout_metrics,
    sampler_metrics,
    time_metrics,
    update_metrics,
)
from retrain.training.rollout import optimizer_batches, rollout
from retrain.training.schedule import optimizer_at
from retrain.training.state import LoopState

_log = logging.getLogger("retrain")


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that one run is made of."""

    name: str
    condition: str
    config: RunConfig
    policy: Policy
    task: Task
    reward: Reward
    algorithm: Algorithm
    journal: Journal
    checkpoints: Checkpoints
    state: LoopState
    stop: Callable[[], bool]


class RunStopped(KeyboardInterrupt):
    """The run was asked to stop, and has: after a whole step, with a checkpoint."""


def train(run: Run) -> None:
    """Train from `run.state.step` to `max_steps`.

    Raises DivergedError when a loss, a gradient or a log-probability is not finite; the weights
    are then those of the last finished step. Raises RunStopped when `run.stop()` says so.
    """
    config, training, state, policy = run.config, run.config.training, run.state, run.policy
    loss = resolved_loss(config)
    if state.step == 0 and config.evaluation.before_training:
        _evaluate(run)
    for step in range(state.step, training.max_steps):
        clock = Clock()
        problems = run.task.train_batch(training.seed, step, training.batch_size)
        sepa_lambda, gate_open = state.sepa.lambda_for(step), state.sepa.gate_open

        # A reward that takes a while begins with each completion as soon as it is decoded.
        scoring = Scoring(run.reward, problems, policy.codec.opens_thinking)
        with clock("sample"):
            groups = rollout(
                policy,
                problems,
                training,
                step,
                run.algorithm.needs_entropies,
                scoring.on_done,
            )
        # The evaluation after the update has a sampler of its own.
        measured = policy.measured
        with clock("reward"):
            groups = scoring.scored(groups)
        try:
            with clock("update"):
                credit = assign_credit(
                    groups, run.algorithm, step, sepa_lambda, policy.codec.pieces, run=run.name
                )
                correction = SamplerCorrection(config, policy)
                updates = [
                    policy.update(batch, loss, optimizer_at(training, step))
                    for batch in optimizer_batches(groups, credit, config, step, correction)
                ]
        except (NonFiniteUpdateError, NonFiniteError) as error:
            raise DivergedError(step, str(error)) from error
        for warning in state.finish_step(groups, credit, training.max_tokens):
            _log.warning("%s, step %d: %s", run.name, step, warning)

        evaluation: EvaluationResult | None = None
        if _evaluation_due(config, state.step):
            with clock("evaluation"):
                evaluation = _evaluate(run)
        rolled = rollout_metrics(groups, credit)
        row = {
            "step": step,
            "condition": run.condition,
            "seed": training.seed,
            "batch_size": len(problems),
            "group_size": training.group_size,
            **rolled,
            "running_correct_rate": state.correct / max(state.completions, 1),
            "sepa_lambda": sepa_lambda,
            "sepa_gate_open": gate_open,
            **update_metrics(updates, training, step),
            **sampler_metrics(config, measured, updates, correction.ess),
            **evaluation_metrics(evaluation),
            **time_metrics(clock, rolled["tokens"]),
        }
        run.journal.record(step, groups, credit, row)
        stopping = state.step < training.max_steps and run.stop()
        if stopping or run.checkpoints.due(state.step):
            run.journal.sync()
            accuracy = evaluation.accuracy if evaluation else None
            with run.checkpoints.saving(
                state.step, state.state_dict(), run.journal.rows, accuracy
            ) as folder:
                policy.save(folder)
        if stopping:
            raise RunStopped


def _evaluation_due(config: RunConfig, steps_done: int) -> bool:
    every = config.evaluation.every
    at_the_end = steps_done == config.training.max_steps
    return at_the_end or (every > 0 and steps_done % every == 0)


def _evaluate(run: Run) -> EvaluationResult | None:
    """Held-out accuracy of the policy as it is; None when evaluation is off."""
    problems = run.task.held_out(run.config.evaluation.num_problems)
    if not problems:
        return None
    result = evaluate(
        run.policy,
        problems,
        run.reward,
        run.config.evaluation,
        run.config.training,
        run.state.step,
    )
    run.journal.record_evaluation(result.record)
    return result
