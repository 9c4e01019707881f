"""What a squeeze found, from its `squeeze.json`: for the terminal and for the report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from retrain.analysis.words import percent, plural
from retrain.errors import InputError
from retrain.files import read_record

SQUEEZE_FOLDER = "squeeze"
SQUEEZE_FILE = "squeeze.json"
PICTURES = {
    "squeeze_retention": "Share of the variance (squared singular values) that each rank keeps: "
    "mean over layers, with the band from the lowest to the highest.",
    "squeeze_ranks": "The rank that keeps the wanted share of each layer.",
}


class _Difference(msgspec.Struct):
    mean: float
    low: float | None
    high: float | None
    problems: int


class _Check(msgspec.Struct):
    mean_token_kl: float
    difference: _Difference
    greedy_difference: _Difference | None
    accuracy: float | None
    greedy_accuracy: float | None
    original_accuracy: float | None
    original_greedy_accuracy: float | None


class _Tuned(msgspec.Struct):
    status: str


class _Compressed(msgspec.Struct):
    rank: int
    parameters: int
    source_parameters: int
    mean_variance: float


class SqueezeRecord(msgspec.Struct):
    """What readers take of `squeeze.json`."""

    table: str
    adapter: str
    source_rank: int
    recommended_rank: int
    min_variance_retention: float
    num_layers: int
    ranks: list[int]
    mean_variance: dict[str, float]
    min_variance: dict[str, float]
    max_variance: dict[str, float]
    pooled_variance: dict[str, float]
    compressed: _Compressed | None
    check: _Check | None
    finetuned: _Tuned | None


def read_squeeze(campaign_dir: Path) -> dict[str, Any] | None:
    """The squeeze of a campaign; None when there is none (yet) that can be read."""
    try:
        return read_record(campaign_dir / SQUEEZE_FOLDER / SQUEEZE_FILE, SqueezeRecord)
    except (OSError, InputError):
        return None


def squeeze_text(document: Mapping[str, Any]) -> str:
    """The table, what was written, and the checks that there are."""
    parts = [str(document["table"])]
    if compressed := document["compressed"]:
        share = compressed["parameters"] / compressed["source_parameters"]
        parts[0] += (
            f"\nCompressed to rank {compressed['rank']}: {percent(share)} of the parameters, "
            f"{percent(compressed['mean_variance'])} of the variance (mean over layers)"
        )
        if check := document["check"]:
            parts.append(check_text(compressed["rank"], 0, check))
        tuned = document["finetuned"]
        if tuned and tuned["status"] == "done":
            parts.append(check_text(compressed["rank"], tuned["steps"], tuned))
    return "\n\n".join(parts)


def check_text(rank: int, steps: int, check: Mapping[str, Any]) -> str:
    """A check as aligned lines; `check` as in `squeeze.json`, after `steps` of training on."""
    title = f"rank {rank}" + (f" + {plural(steps, 'step')}" if steps else "")
    lines = [f"{'held-out accuracy':<20}{'original':>10}{title:>28}   difference [95 % CI]"]
    for name, key in (("sampled", ""), ("greedy", "greedy_")):
        if check[f"{key}accuracy"] is None:
            continue
        before, after = check[f"original_{key}accuracy"], check[f"{key}accuracy"]
        lines.append(
            f"{name:<20}{percent(before):>10}{percent(after):>28}   "
            + _difference(check[f"{key}difference"])
        )
    lines.append(
        f"mean token KL to the original: {check['mean_token_kl']:.2e} nats "
        f"({plural(check['difference']['problems'], 'problem')}, paired)"
    )
    return "\n".join(lines)


def _difference(difference: Mapping[str, Any]) -> str:
    """In points of percent."""
    text = f"{100 * difference['mean']:+.1f}"
    if difference["low"] is None:
        return f"{text} (one problem)"
    return f"{text} [{100 * difference['low']:+.1f}, {100 * difference['high']:+.1f}]"


def squeeze_section(campaign_dir: Path) -> str:
    """The report's section about it; empty when there is none."""
    document = read_squeeze(campaign_dir)
    if document is None:
        return ""
    parts = [
        "## LoRA squeeze",
        f"Rank {document['recommended_rank']} of {document['source_rank']} is the lowest that "
        f"keeps {percent(document['min_variance_retention'])} of the variance of "
        f"`{_relative(document['adapter'], campaign_dir)}`, the adapter of the first run that "
        "succeeded. Variance is not accuracy"
        + (": see the check." if document["check"] else "; `[squeeze].check = true` measures it."),
        f"```text\n{squeeze_text(document)}\n```",
    ]
    for name, text in PICTURES.items():
        source = f"{SQUEEZE_FOLDER}/{name}"
        if (campaign_dir / f"{source}.png").exists():
            parts.append(f"![{text}]({source}.png)\n\n{text} ([SVG]({source}.svg))")
    return "\n\n".join(parts)


def _relative(adapter: str, campaign_dir: Path) -> str:
    path = Path(adapter)
    return str(path.relative_to(campaign_dir)) if path.is_relative_to(campaign_dir) else adapter
