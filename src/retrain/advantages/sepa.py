"""The SEPA schedule: how far execution tokens' uncertainty is pooled at each step.

SEPA (selective entropy pooling, this project's) replaces a share lambda of each execution
token's uncertainty by their mean; `gtpo_sepa` in transforms.py applies it. Lambda rises over
training, on a clock ("linear") or with the policy's own settling ("auto"). It is fixed before
a step's rollout, so what a step shows acts from the next step on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypedDict

from retrain.config.algorithm import SepaConfig

ScheduleKind = Literal["linear", "auto"]

EMA_DECAY = 0.99
WARMUP_SEQUENCES = 50
"""Sequences after which the moving variance is taken as the reference, var_0."""

SETTLED_SHARE = 0.2
"""Auto: lambda starts to rise when the variance has fallen below this share of var_0."""

TINY_VARIANCE = 1e-12


@dataclass(frozen=True, slots=True)
class SepaSchedule:
    """The settings of `[sepa]`.

    kind:              "linear", or "auto", which is never below linear.
    steps:             length of the ramp from 0 to 1, in training steps; 0 = no ramp, lambda 0.
    delay_steps:       steps before the ramp.
    correct_rate_gate: lambda stays 0 until a step's correct rate reaches this, in [0, 1];
                       0 = no gate.

    Raises ValueError for a setting out of range.
    """

    kind: ScheduleKind = "linear"
    steps: int = 500
    delay_steps: int = 50
    correct_rate_gate: float = 0.1

    @classmethod
    def of(cls, config: SepaConfig) -> SepaSchedule:
        """The schedule that `[sepa]` describes."""
        return cls(config.schedule, config.steps, config.delay_steps, config.correct_rate_gate)

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "auto"):
            raise ValueError(f"sepa schedule {self.kind!r} is neither 'linear' nor 'auto'")
        if self.steps < 0 or self.delay_steps < 0:
            raise ValueError("sepa steps and delay_steps must not be negative")
        if not 0.0 <= self.correct_rate_gate <= 1.0:
            raise ValueError(
                f"sepa correct_rate_gate {self.correct_rate_gate} is not between 0 and 1"
            )

    def linear(self, step: int) -> float:
        """`clip((step - delay_steps) / steps, 0, 1)`; 0 when steps is 0."""
        if self.steps == 0:
            return 0.0
        return min(max((step - self.delay_steps) / self.steps, 0.0), 1.0)


class SepaState(TypedDict):
    """What a checkpoint keeps of a controller; plain JSON."""

    gate_open: bool
    sequences: int
    ema: float | None
    var_0: float | None


class SepaController:
    """Follows one run: asked for lambda before each step, told afterwards what was seen."""

    def __init__(self, schedule: SepaSchedule) -> None:
        self.schedule = schedule
        self._gate_open = schedule.correct_rate_gate == 0.0
        self._sequences = 0
        self._ema: float | None = None
        self._var_0: float | None = None

    @property
    def gate_open(self) -> bool:
        """Whether lambda may be above 0; once open, it stays open."""
        return self._gate_open

    def lambda_for(self, step: int) -> float:
        """Lambda in [0, 1] for this step; ask before its rollout. Changes nothing.

        Auto: `max(linear, 1 - min(ema / var_0 / 0.2, 1))`, where ema is the moving average of
        the variance of uncertainty over execution tokens (decay 0.99, started at the first
        sequence) and var_0 is its value after 50 sequences; linear until then, and when var_0
        is nothing, since then there is nothing to pool.
        """
        if not self._gate_open:
            return 0.0
        linear = self.schedule.linear(step)
        if self.schedule.kind == "linear" or self._ema is None:
            return linear
        if self._var_0 is None or self._var_0 < TINY_VARIANCE:
            return linear
        return max(linear, 1.0 - min(self._ema / self._var_0 / SETTLED_SHARE, 1.0))

    def observe(self, correct_rate: float | None, variances: Iterable[float]) -> None:
        """Take in a finished step.

        correct_rate: the step's share of correct completions in [0, 1]; None when nothing in
                      it could be verified.
        variances:    of uncertainty over execution tokens, one a sequence, in the batch's
                      order; sequences without execution tokens are left out.

        Raises ValueError for a variance that is negative or not finite.
        """
        for variance in variances:
            value = float(variance)
            if not math.isfinite(value) or value < 0.0:
                raise ValueError(f"the variance of a sequence's uncertainty is {value}")
            if self._ema is None:
                self._ema = value
            else:
                self._ema = EMA_DECAY * self._ema + (1.0 - EMA_DECAY) * value
            self._sequences += 1
            if self._sequences == WARMUP_SEQUENCES:
                self._var_0 = self._ema
        if correct_rate is not None and correct_rate >= self.schedule.correct_rate_gate:
            self._gate_open = True

    def state_dict(self) -> SepaState:
        """The state for a checkpoint; survives JSON exactly."""
        return {
            "gate_open": self._gate_open,
            "sequences": self._sequences,
            "ema": self._ema,
            "var_0": self._var_0,
        }

    def load_state_dict(self, state: SepaState) -> None:
        """Continue from `state_dict()`; the schedule's settings are not part of it."""
        self._gate_open = state["gate_open"]
        self._sequences = state["sequences"]
        self._ema = state["ema"]
        self._var_0 = state["var_0"]


def full_pooling_step(schedule: SepaSchedule, max_steps: int) -> int | None:
    """The first of the steps 0 … max_steps - 1 whose lambda is 1, None when there is none.

    It is what the clock alone reaches, with the gate open from the start: a gate that opens
    late can only make it later, and "auto" can come near to 1 before, but not be counted on.
    """
    if schedule.steps == 0:
        return None
    step = schedule.delay_steps + schedule.steps
    return step if step < max_steps else None
