"""What of a config may change when a run goes on from a checkpoint.

A resumed run is the run it would have been; so a key that has a say in what is computed must not
change, nor what stands behind a name: problems, code, files. The other keys are bookkeeping, or
only tell where it is computed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from retrain.config.messages import show
from retrain.config.schema import RunConfig
from retrain.errors import ConfigError, ConfigIssue, InputError

MAY_CHANGE = frozenset(
    {
        "training.max_steps",
        "training.save_every",
        "training.keep_last",
        "training.keep_best",
        "training.micro_batch_tokens",
        "training.gradient_checkpointing",
        "training.decode_rows",
        "model.local_files_only",
        "evaluation.every",
        "model.base_url",
        "backend.device",
        "backend.threads",
        "backend.max_concurrent",
        "backend.throttle_dir",
        "inference.url",
        "inference.api_key_env",
        "inference.adapter_dir",
        "inference.max_mismatch",
        "inference.concurrency",
        "inference.timeout",
        "inference.away_timeout",
        "inference.command",
        "inference.arguments",
        "inference.gpus",
        "inference.gpu_memory",
        "inference.start_timeout",
        "logging.log_dir",
        "logging.log_generations",
        "logging.wandb_project",
        "logging.wandb_entity",
        "logging.wandb_run_name",
        "logging.wandb_group",
        "logging.wandb_tags",
        "logging.wandb_mode",
        "logging.wandb_artifacts",
        "logging.trackers",
        "reward.api_key_env",
        "reward.concurrency",
        "reward.retries",
        "reward.cache_dir",
        "plugins.search_paths",
        "plugins.strict",
    }
)
"""`max_steps` only with a constant learning rate: the other schedules depend on it."""

OF_THE_PLAN = frozenset(
    {
        "training.max_steps",
        "evaluation.every",
        "backend.throttle_dir",
        "logging.log_dir",
        "logging.wandb_project",
        "logging.wandb_entity",
        "logging.wandb_run_name",
        "logging.wandb_group",
        "logging.wandb_tags",
    }
)
"""What of that the runs of a campaign keep all the same: what is compared, and where it lies."""

CAMPAIGN_MAY_CHANGE = MAY_CHANGE - OF_THE_PLAN

CONTENTS = {
    "data": "the problems",
    "reward": "the code of the reward",
    "algorithm": "the code of the algorithm",
    "model": "the files of the model",
    "init_adapter": "the adapter to start from",
}
"""What a run is made of besides its config (`training.contents`), in words."""

PATHS = {
    "data.path": "data",
    "data.held_out_path": "data",
    "model.model": "model",
    "model.init_adapter": "init_adapter",
}
"""Keys that may say another place where the same content lies."""


@dataclass(frozen=True, slots=True)
class Change:
    """One key whose value is another one now."""

    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key}: was {show(self.before)}, is now {show(self.now)}"


def identity(config: RunConfig, contents: Mapping[str, str] | None = None) -> dict[str, Any]:
    """`table.key` -> value of everything that decides what the run computes, and a hash of each of
    its `CONTENTS` as far as they are known; plain JSON."""
    fixed_length = config.training.lr_schedule != "constant"
    keys = {
        place: value
        for place, value in _values(config).items()
        if place not in MAY_CHANGE or (fixed_length and place == "training.max_steps")
    }
    return {**keys, **(contents or {})}


def differences(
    before: Mapping[str, Any], config: RunConfig, contents: Mapping[str, str] | None = None
) -> list[Change]:
    """Where `config` with `contents` is another run than the one whose `identity` is `before`.

    A key that `before` does not know, as it is younger, had its default value. Another path to the
    same content is no difference.
    """
    now = identity(config)
    defaults = identity(RunConfig())
    keys = dict.fromkeys([*now, *(key for key in before if key in _known())])
    full = _values(config)
    changes = []
    for key in keys:
        old = before.get(key, defaults.get(key))
        if key == "training.max_steps" and key not in before:
            # The schedule was constant, and is not now: that is the change, and is told.
            continue
        if old != full[key]:
            changes.append(Change(key, old, full[key]))
    known = {name: value for name, value in (contents or {}).items() if name in before}
    same = {name for name, value in known.items() if before[name] == value}
    return [
        *(change for change in changes if PATHS.get(change.key) not in same),
        *(Change(name, before[name], value) for name, value in known.items() if name not in same),
    ]


def changes_in(keys: Collection[str], before: RunConfig, now: RunConfig) -> list[Change]:
    """Which of `keys` (`table.key`) have another value now."""
    old, new = before.model_dump(mode="json"), now.model_dump(mode="json")
    places = [(place, *place.split(".", 1)) for place in sorted(keys)]
    return [
        Change(place, old[table][key], new[table][key])
        for place, table, key in places
        if old[table][key] != new[table][key]
    ]


def with_changes(config: RunConfig, changes: Sequence[Change]) -> RunConfig:
    """`config` with the values that these keys have now."""
    tables = config.model_dump(mode="json")
    for change in changes:
        table, _, key = change.key.partition(".")
        tables[table][key] = change.now
    return RunConfig.model_validate(tables) if changes else config


def refuse_changes(
    changes: Sequence[Change], allowed: Collection[str], *, what: str
) -> list[Change]:
    """The changes that the user allows. Raises ConfigError, listing them, for the others.

    allowed: values of `--allow-change`. what: the run, for the message.
    """
    unknown = sorted(set(allowed) - _known() - set(CONTENTS))
    if unknown:
        names = ", ".join(CONTENTS)
        raise InputError(
            f"--allow-change {unknown[0]}: no such key; write it as table.key, or one of {names}"
        )
    refused = [change for change in changes if change.key not in allowed]
    if not refused:
        return list(changes)
    options = " ".join(f"--allow-change {change.key}" for change in refused)
    remedy = (
        "; a resumed run must be the run it would have been: take back what was changed, or accept "
        f"that it is another run from here on: {options}"
    )
    if any(change.key not in CONTENTS for change in refused):
        free = ", ".join(sorted(MAY_CHANGE))
        remedy += f" (these may always change: {free}; max_steps only with lr_schedule = "
        remedy += '"constant")'
    issues = [
        # The remedy once, after all of them.
        ConfigIssue(change.key, _refusal(change, what) + (remedy if change is refused[-1] else ""))
        for change in refused
    ]
    raise ConfigError(issues)


def _refusal(change: Change, what: str) -> str:
    if change.key in CONTENTS:
        return (
            f"{CONTENTS[change.key]} changed since {what} began (content {change.before} then, "
            f"{change.now} now)"
        )
    return f"was {show(change.before)} when {what} was trained, and is now {show(change.now)}"


def _values(config: RunConfig) -> dict[str, Any]:
    dumped = config.model_dump(mode="json")
    for component in dumped["reward"]["components"]:
        for place in MAY_CHANGE:
            component.pop(place.removeprefix("reward."), None)
    return {
        f"{table}.{key}": value for table, keys in dumped.items() for key, value in keys.items()
    }


def _known() -> set[str]:
    return set(_values(RunConfig()))
