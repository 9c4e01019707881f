"""`retrain plugins`: every name that a config may give a mode, loss, task or reward."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from retrain.config.load import read_config
from retrain.config.messages import key_schema
from retrain.errors import ConfigError
from retrain.terminal import Terminal

KINDS = {
    "advantage_mode": "[algorithm].advantage_mode: rewards of a group -> a number a completion",
    "transform_mode": "[algorithm].transform_mode: that number -> a number a token",
    "uncertainty_kind": "[algorithm].uncertainty_kind: how uncertain a token was",
    "loss": "[loss].type: the loss per token",
    "task": "[data].source: the problems",
    "reward": "[reward].type: how a completion is judged",
    "found": "functions beside the config, for any of these as a dotted path",
}

LOSSES = {
    "importance_sampling": "-ratio x advantage; no clipping",
    "ppo": "clipped ratio, with an optional dual clip",
    "gspo": "clipped ratio of the whole sequence",
    "cispo": "capped, detached ratio x log-probability",
}


def catalogue(path: Path | None = None) -> dict[str, dict[str, str]]:
    """kind -> name -> one line. `found` are the public functions that a config could name.

    path: the config whose folder and search paths are looked through; without one, the current
          folder. Nothing is imported from there.
    """
    from retrain.advantages.episode import ADVANTAGE_MODES
    from retrain.advantages.transforms import TRANSFORM_MODES
    from retrain.advantages.uncertainty import UNCERTAINTY_KINDS
    from retrain.rewards.registry import REWARDS
    from retrain.tasks.registry import TASKS

    folders = [Path.cwd()]
    if path is not None:
        reading = read_config(path)
        if any(issue.key.startswith("plugins") for issue in reading.issues):
            raise ConfigError([i for i in reading.issues if i.key.startswith("plugins")])
        loaded = reading.loaded
        plugins = loaded.run_config(loaded.conditions[0], loaded.seeds[0]).plugins
        folders = [Path(folder) for folder in plugins.search_paths]
    return {
        "advantage_mode": ADVANTAGE_MODES.describe(),
        "transform_mode": TRANSFORM_MODES.describe(),
        "uncertainty_kind": UNCERTAINTY_KINDS.describe(),
        "loss": {name: LOSSES[name] for name in key_schema("loss", "type")["enum"]},
        "task": TASKS.describe(),
        "reward": REWARDS.describe(),
        "found": {name: line for folder in folders for name, line in _functions(folder)},
    }


def _functions(folder: Path) -> Iterator[tuple[str, str]]:
    """Dotted paths of public functions in a folder's modules, read without running them."""
    for file in sorted(folder.glob("*.py")):
        if file.stem.startswith(("_", "test_", "conftest", "setup")):
            continue
        try:
            module = ast.parse(file.read_text(encoding="utf-8"))
        except (OSError, SyntaxError, ValueError) as error:
            yield file.stem, f"cannot be read: {error}"
            continue
        for node in module.body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                summary = (ast.get_docstring(node) or "").partition("\n")[0]
                yield f"{file.stem}.{node.name}", summary or f"({ast.unparse(node.args)})"


def render(entries: dict[str, dict[str, Any]], console: Console | None = None) -> None:
    """Show a catalogue."""
    console = console or Terminal()
    for kind, names in entries.items():
        if not names:
            continue
        console.print(Text(KINDS[kind], style="bold"))
        view = Table.grid(padding=(0, 2))
        for name, line in names.items():
            view.add_row(Text(f"  {name}", style="cyan"), Text(line))
        console.print(view)
