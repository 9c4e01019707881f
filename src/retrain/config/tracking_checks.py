"""What is odd about the trackers in `[logging]`."""

from __future__ import annotations

from collections.abc import Iterator, Set

from retrain.config.findings import Finding, idle
from retrain.config.messages import show
from retrain.config.schema import LoggingConfig, RunConfig

TITLES = {"wandb": "Weights & Biases"}
"""What trackers are called in messages, where it is not their name."""

_ONLY_FOR = {"wandb_entity": "wandb", "wandb_mode": "wandb"}
"""Keys that not every tracker heeds."""

_TRACKIO_TABLES = (
    *("system", "configs", "traces", "artifacts", "artifact_versions", "artifact_aliases"),
    *("run_artifact_links", "external_run_artifact_links"),
)


def check_tracking(run: RunConfig, written: Set[str]) -> Iterator[Finding]:
    """Keys of trackers that are not used, and names that cannot be."""
    settings = run.logging
    keys = {key for key in written if key.startswith("logging.wandb_")}
    if not settings.wandb_project:
        # Trackers without a project are a choice for later, as for `retrain sync`.
        named = " and ".join(TITLES.get(name, name) for name in settings.trackers) or "tracking"
        for key in sorted(keys | ({"logging.trackers"} & written)):
            yield idle(key, f"wandb_project is empty, which turns {named} off")
        return
    yield from _project(settings)
    if not settings.trackers:
        message = 'is empty, so wandb_project tracks nothing; write ["wandb"], or no project'
        yield Finding("logging.trackers", message, also=("logging.wandb_project",))
    elif len(set(settings.trackers)) < len(settings.trackers):
        yield Finding("logging.trackers", f"{show(settings.trackers)} names one tracker twice")
    for key, tracker in _ONLY_FOR.items():
        if f"logging.{key}" in keys and settings.trackers and tracker not in settings.trackers:
            yield idle(f"logging.{key}", f"it is for {tracker}, which is not in trackers")
    if settings.wandb_artifacts == "checkpoints" and run.training.save_every == 0:
        yield Finding(
            "logging.wandb_artifacts",
            '"checkpoints" sends only the final adapter, as training.save_every is 0',
            also=("training.save_every",),
            is_error=False,
        )


def _project(settings: LoggingConfig) -> Iterator[Finding]:
    project, key = settings.wandb_project, "logging.wandb_project"
    if bad := sorted(set(project) & set("/\\#?%:")):
        yield Finding(
            key,
            f"{show(project)} cannot be a project's name: it has {' '.join(bad)}"
            + ("; the user or team goes into wandb_entity" if "/" in bad else ""),
        )
        return
    if "trackio" not in settings.trackers:
        return
    ends = [f"_{table}" for table in _TRACKIO_TABLES if project.endswith(f"_{table}")]
    if project.startswith("registry-") or ends:
        part = f"end with {ends[0]}" if ends else "begin with registry-"
        message = f"{show(project)} cannot be a project's name in trackio: it must not {part}"
        yield Finding(key, message, also=("logging.trackers",))
