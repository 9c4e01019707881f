"""`[algorithm]`, `[gtpo]`, `[hicra]` and `[sepa]`: how rewards become credit for tokens."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from retrain.config.table import AdvantageMode, Count, Fraction, Table


class AlgorithmConfig(Table):
    """`[algorithm]`: how rewards become credit for tokens."""

    advantage_mode: AdvantageMode = "maxrl"
    """Rewards of a group -> one number a completion: `grpo`, `maxrl`, or a dotted path."""
    transform_mode: AdvantageMode = "gtpo_sepa"
    """That number -> one number a token: `none`, `gtpo`, `gtpo_hicra`, `gtpo_sepa`, or a dotted
    path."""
    algorithm_mode: str = ""
    """A dotted path that replaces both modes; empty for none."""
    uncertainty_kind: AdvantageMode = "surprisal"
    """A token's uncertainty: `surprisal`, `predictive_variance`, `shannon_entropy`, or a dotted
    path."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Parameters that the advantage, the transform and the algorithm function all see."""
    advantage_params: dict[str, Any] = Field(default_factory=dict)
    """Parameters of the advantage function (they win over `params`). `grpo` knows `scale`:
    `"none"` or `"std"`."""
    transform_params: dict[str, Any] = Field(default_factory=dict)
    """Parameters of the transform function (they win over `params`)."""


class GtpoConfig(Table):
    """`[gtpo]`: weighting of tokens by their uncertainty."""

    beta: Annotated[float, Field(ge=0.0)] = 0.1
    """Strength: a token's weight is max(0, 1 + beta (h / mean h - 1))."""


class HicraConfig(Table):
    """`[hicra]`: extra credit for planning tokens."""

    alpha: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    """Amplification of planning tokens; below 1, so that credit keeps its sign."""


class SepaConfig(Table):
    """`[sepa]`: the schedule by which execution tokens' uncertainty is pooled."""

    steps: Count = 500
    """Steps over which lambda rises from 0 to 1; 0 keeps it at 0. Unless written, a run that reads
    it takes 8 tenths of its `max_steps`."""
    schedule: Literal["linear", "auto"] = "linear"
    """`linear`, or `auto`: rises faster when the variance over execution tokens collapses."""
    delay_steps: Count = 50
    """Steps before lambda begins to rise. Unless written, a run that reads it takes a tenth of its
    `max_steps`."""
    correct_rate_gate: Fraction = 0.1
    """lambda stays 0 until a step's correct rate reaches this; 0 opens the gate at once."""
