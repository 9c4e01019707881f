"""What is odd about `[data]`."""

from __future__ import annotations

from collections.abc import Iterator, Set

from retrain.config.findings import Finding, idle
from retrain.config.schema import RunConfig


def check_data(run: RunConfig, written: Set[str]) -> Iterator[Finding]:
    """Keys of `[data]` that are missing, or that its source does not read."""
    data = run.data
    if data.source == "jsonl" and not data.path:
        message = 'is missing; source = "jsonl" needs the file, e.g. path = "problems.jsonl"'
        yield Finding("data.path", message, ("data.source",))
    if data.source == "arithmetic":
        if data.path:
            reason = 'source = "arithmetic"; write source = "jsonl" to train on the file'
            yield idle("data.path", reason, "data.source", is_error=True)
        for key in ("max_examples", "shuffle"):
            if f"data.{key}" in written:
                yield idle(f"data.{key}", "arithmetic draws its problems without end")
