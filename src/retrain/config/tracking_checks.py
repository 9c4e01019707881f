"""What is odd about the trackers in `[logging]`."""

from __future__ import annotations

from collections.abc import Iterator, Set

from retrain.config.findings import Finding, idle
from retrain.config.messages import show
from retrain.config.schema import RunConfig


def check_tracking(run: RunConfig, written: Set[str]) -> Iterator[Finding]:
    """Keys of trackers that are not used, and names that cannot be."""
    project = run.logging.wandb_project
    if not project:
        for key in sorted(key for key in written if key.startswith("logging.wandb_")):
            yield idle(key, "wandb_project is empty, which turns Weights & Biases off")
    elif bad := sorted(set(project) & set("/\\#?%:")):
        yield Finding(
            "logging.wandb_project",
            f"{show(project)} cannot be a project's name: it has {' '.join(bad)}"
            + ("; the user or team goes into wandb_entity" if "/" in bad else ""),
        )
