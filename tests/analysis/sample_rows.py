"""Rows of `generations.jsonl`, as `docs/files.md` describes them, and runs that hold them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from log_tree import Planned, write_campaign, write_run


def row(step: int = 0, pieces: Sequence[str] = ("So ", "4", ""), **changes: Any) -> dict[str, Any]:
    """A completion of these tokens; the last one is the end token."""
    text = "".join(pieces)
    made = {
        "step": step,
        "problem_id": "sum-1",
        "domain": "sums",
        "sample": 0,
        "prompt": "Compute 2+2.",
        "answer": "4",
        "completion": text,
        "stop_reason": "stop",
        "reward": 1.0,
        "outcome": "correct",
        "parts": {},
        "num_tokens": len(pieces),
        "advantage": 0.5,
        "planning_spans": [],
        "token_lengths": [len(piece) for piece in pieces],
        "token_advantages": 0.5,
        "token_uncertainties": [round(0.1 * i, 4) for i in range(len(pieces))],
    }
    return {**made, **changes}


def old_row(**changes: Any) -> dict[str, Any]:
    """As rows were before tokens were logged."""
    keys = "step problem_id prompt completion reward outcome num_tokens advantage planning_spans"
    made = row(**changes)
    return {key: made[key] for key in keys.split()}


def write_rows(folder: Path, rows: Sequence[Mapping[str, Any]], tail: str = "") -> Path:
    """A finished run with these completions; `tail` is a last line somebody is still writing."""
    if not (folder / "run.json").exists():
        write_run(folder)
    (folder / "emergence").mkdir(exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "emergence" / "generations.jsonl").write_text(lines + tail)
    return folder


def write_sampled_campaign(folder: Path, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> Path:
    """A campaign: run name (condition_sSEED) -> its completions."""
    names = [name.rpartition("_s") for name in rows]
    write_campaign(folder, [Planned(condition, int(seed), {}) for condition, _, seed in names])
    for name, of_run in rows.items():
        write_rows(folder / "runs" / name, of_run)
    return folder
