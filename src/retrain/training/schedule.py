"""The optimizer's settings at each step."""

from __future__ import annotations

import math

from retrain.config.schema import TrainingConfig
from retrain.policies.policy import OptimizerStep


def learning_rate(training: TrainingConfig, step: int) -> float:
    """Linear warm-up over `warmup_steps`, then constant, or a linear or cosine fall that would
    reach 0 at `max_steps`. The first step already learns."""
    if step < training.warmup_steps:
        return training.lr * ((step + 1) / training.warmup_steps)
    if training.lr_schedule == "constant":
        return training.lr
    span = max(training.max_steps - training.warmup_steps, 1)
    done = (step - training.warmup_steps) / span
    if training.lr_schedule == "linear":
        return training.lr * (1.0 - done)
    return training.lr * 0.5 * (1.0 + math.cos(math.pi * done))


def optimizer_at(training: TrainingConfig, step: int) -> OptimizerStep:
    """What `policy.update` needs to know at this step."""
    return OptimizerStep(
        lr=learning_rate(training, step),
        betas=(training.betas[0], training.betas[1]),
        weight_decay=training.weight_decay,
        grad_clip=training.grad_clip,
    )
