"""What every table of the configuration is made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

AdvantageMode = Annotated[str, Field(min_length=1)]
PositiveInt = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
FewThousand = Annotated[int, Field(ge=1, le=10_000)]
"""How many of what a step or a plan goes through one by one."""
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Names = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]


class Table(BaseModel):
    """A TOML table: unknown keys, wrong types and non-finite numbers are errors."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        validate_default=False,
    )
