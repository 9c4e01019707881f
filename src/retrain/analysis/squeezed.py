"""What a squeeze found, from its `squeeze.json`: for the terminal and for the report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retrain.analysis.words import percent, plural

SQUEEZE_FOLDER = "squeeze"
SQUEEZE_FILE = "squeeze.json"
PICTURES = {
    "squeeze_retention": "Share of the variance (squared singular values) that each rank keeps: "
    "mean over layers, with the band from the lowest to the highest.",
    "squeeze_ranks": "The rank that keeps the wanted share of each layer.",
}


def read_squeeze(campaign_dir: Path) -> dict[str, Any] | None:
    """The squeeze of a campaign; None when there is none (yet)."""
    try:
        file = campaign_dir / SQUEEZE_FOLDER / SQUEEZE_FILE
        document: dict[str, Any] = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    return document


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
