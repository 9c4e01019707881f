"""`[campaign.stopping]`: when a condition that cannot win is trained no further."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from retrain.config.table import PositiveInt, Table


class StoppingConfig(Table):
    """`[campaign.stopping]`: stop conditions that cannot win (futility); off without this table.

    After given steps each planned comparison is looked at, over the seeds under which both runs
    have come so far. When the upper end of the interval of the difference lies below the margin,
    the condition is stopped: its runs that wait are never begun, the others end after their step.
    The baseline is never stopped. See `docs/statistics.md`.
    """

    after_steps: Annotated[list[PositiveInt], Field(min_length=1)]
    """Steps after which conditions are judged, ascending. A held-out evaluation must take place
    there (`[evaluation].every`), unless `[report].metric` is the reward."""
    margin: Annotated[float, Field(gt=0.0)] | None = None
    """By how much a condition has to be able to win; unless written `[report].margin`."""
    confidence: Annotated[float, Field(ge=0.5, lt=1.0)] = 0.95
    """Of the two-sided paired t interval. The smaller, the sooner conditions are stopped, and the
    more often one that would have won."""
    min_seeds: Annotated[int, Field(ge=2)] = 3
    """Fewest seeds that a condition is judged by."""
