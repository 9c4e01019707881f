"""Paths as messages show them, and as they are after a project was moved."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Any

from retrain.config.schema import RunConfig


def shown(path: Path) -> str:
    """A path as the user would type it: from the current folder when it lies in it."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


def moved(config: RunConfig, folder: Path, place: str | None) -> RunConfig:
    """The config of a run whose project, with data, plugins and logs, may have been moved: paths
    that were in the project and are not there any more are where the project is now.

    folder: of the run or its campaign. place: where that lay, from the log folder of the config;
    None is not known.
    """
    if place is None:
        return config
    now, before = folder.resolve(), Path(os.path.normpath(Path(config.logging.log_dir) / place))
    if now == before or os.access(before, os.F_OK):
        return config
    while before.name and before.name == now.name:
        before, now = before.parent, now.parent
    return RunConfig.model_validate(_moved(config.model_dump(mode="json"), before, now))


def _moved(value: Any, before: Path, now: Path) -> Any:
    if isinstance(value, dict):
        return {key: _moved(each, before, now) for key, each in value.items()}
    if isinstance(value, list):
        return [_moved(each, before, now) for each in value]
    if not isinstance(value, str) or not Path(value).is_relative_to(before):
        return value
    # A path may be a pattern.
    gone = not glob.glob(value)  # noqa: PTH207
    return str(now / Path(value).relative_to(before)) if gone else value
