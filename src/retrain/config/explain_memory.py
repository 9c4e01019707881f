"""The memory part of `retrain explain`, for people."""

from __future__ import annotations

from typing import Any

GIB = 2**30


def memory_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """(heading, text) rows of what `experiments.memory.run_memory` found."""
    peak, total, taken = found["peak"], found["device_memory"], found["server_memory"]
    where = "main memory" if found["device"] == "cpu" else "the GPU"
    left = f" left by the server, which takes {size(taken)}" if taken else ""
    there = f"; {where} has {total / GIB:.1f} GiB{left}" if total else ""
    parts = ", ".join(
        f"{name} {size(peak[key])}"
        for key, name in (
            ("weights", "weights"),
            ("adapter", "adapter and gradient"),
            ("optimizer", "optimizer"),
        )
    )
    again = ", activations computed twice" if found["gradient_checkpointing"] else ""
    rows = [
        ("memory", f"about {size(peak['total'])} at a worker's peak{there}"),
        ("  always", parts),
        ("  or", f"update {size(peak['update'])}: {found['micro_batch_tokens']:,} tokens{again}"),
    ]
    if found["decode_rows"]:
        cache = f"cache {size(peak['cache'])}: {found['decode_rows']} completions at once"
        rows.insert(2, ("  or", cache))
    if found["data"] >= 2**20:
        rows.append(("  and", f"problems {size(found['data'])} of main memory"))
    if total and peak["total"] > total:
        rows.append(("", "that is more than there is: see docs/real-models.md#memory"))
    return rows


def size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / 2**20:.0f} MiB"
