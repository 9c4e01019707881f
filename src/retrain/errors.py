"""Errors that a user meets. The message says what is wrong and what to do; no traceback is shown.

Exit codes: 0 done, 1 a run failed, 2 the input is wrong, 130 interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class RetrainError(Exception):
    """Base of all errors whose message is written for the user."""

    exit_code = 1


class InputError(RetrainError):
    """The user's input is wrong: a config, a path, an argument."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class ConfigIssue:
    """One thing wrong with a config: where, what, and the remedy."""

    key: str
    """`table.key`, `table`, or empty for the whole file."""
    message: str
    """What is wrong with it and what to do instead."""
    file: str = ""

    def __str__(self) -> str:
        where = ": ".join(part for part in (self.file, self.key) if part)
        return f"{where}: {self.message}" if where else self.message


class ConfigError(InputError):
    """All that is wrong with a config, together."""

    def __init__(self, issues: Sequence[ConfigIssue]) -> None:
        self.issues = tuple(issues)
        super().__init__("\n".join(str(issue) for issue in self.issues))


class DivergedError(RetrainError):
    """Training left the finite numbers; an outcome of the run, not a failure of the machine."""

    def __init__(self, step: int, cause: str) -> None:
        self.step = step
        self.cause = cause
        super().__init__(f"diverged at step {step}: {cause}")
