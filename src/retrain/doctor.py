"""`retrain doctor`: what this machine has, and what each missing part would give."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from retrain import __version__
from retrain.config.load import EMBEDDED
from retrain.cores import available_cores
from retrain.models.folder import inspect_model
from retrain.terminal import Terminal

OLDEST_PYTHON = (3, 11)
GIB = 2**30

EXTRAS = {
    "dev": "running the tests and linters: make test, make lint",
    "wandb": "tracking with Weights & Biases: [logging].wandb_project",
    "trackio": 'tracking on this machine: [logging].trackers = ["trackio"]',
    "tinker": 'training at the Tinker service: [backend].backend = "tinker"',
    "bench": "comparing speed with TRL: make bench",
}
"""What each extra of the package gives."""


def examine() -> dict[str, Any]:
    """Everything that `render` shows, as plain JSON. `ok` says whether a run can start."""
    required, extras = _requirements()
    packages = {name: _version(name) for name in required}
    embedded = inspect_model(EMBEDDED, Path.cwd())
    torch = _torch()
    problems = [
        f"{name} is not installed; run: pip install {name}"
        for name, version in packages.items()
        if version is None
    ]
    problems += [f"the embedded model is damaged: {problem}" for problem in embedded.problems]
    if sys.version_info < OLDEST_PYTHON:
        problems.append(f"Python {platform.python_version()} is too old; 3.11 is the oldest")
    if "error" in torch:
        problems.append(f"torch cannot be imported: {torch['error']}")
    return {
        "ok": not problems,
        "retrain": __version__,
        "python": platform.python_version(),
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "cores": available_cores(),
            "memory_gib": _memory_gib(),
            "free_disk_gib": round(shutil.disk_usage(Path.cwd()).free / GIB, 1),
        },
        "torch": torch,
        "packages": packages,
        "embedded_model": {"path": str(embedded.path), "context": embedded.context},
        "extras": {
            name: {
                "missing": [package for package in needed if _version(package) is None],
                "gives": EXTRAS.get(name, ""),
            }
            for name, needed in extras.items()
        },
        "problems": problems,
    }


def _requirements() -> tuple[list[str], dict[str, list[str]]]:
    """(what every run needs, extra -> what it adds), from the package's own metadata."""
    required: list[str] = []
    extras: dict[str, list[str]] = {}
    for line in metadata.requires("retrain") or ():
        match = re.match(r"[\w.-]+", line)
        assert match is not None
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        (extras.setdefault(extra[1], []) if extra else required).append(match[0])
    return required, extras


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _torch() -> dict[str, Any]:
    try:
        import torch
    except Exception as error:
        # A broken installation raises anything from ImportError to OSError for a shared library.
        return {"error": f"{type(error).__name__}: {error}"}
    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = round(properties.total_memory / GIB, 1)
        gpus.append({"name": properties.name, "memory_gib": memory})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {"version": str(torch.__version__), "device": device, "gpus": gpus}


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, 1)
    except (AttributeError, ValueError, OSError):
        return None


def render(examination: dict[str, Any], console: Console | None = None) -> None:
    """Show an examination."""
    console = console or Terminal()
    machine, torch = examination["machine"], examination["torch"]
    view = Table.grid(padding=(0, 2))

    def row(good: bool, name: str, text: str) -> None:
        sign = Text("ok", style="green") if good else Text("--", style="yellow")
        view.add_row(sign, Text(name), Text(text))

    row(True, "retrain", examination["retrain"])
    row(sys.version_info >= OLDEST_PYTHON, "python", examination["python"])
    row(
        True,
        "machine",
        f"{machine['system']}, {machine['cores']} cores, {machine['memory_gib']} GiB memory, "
        f"{machine['free_disk_gib']} GiB disk free here",
    )
    if "error" in torch:
        row(False, "torch", torch["error"])
    else:
        gpus = ", ".join(f"{gpu['name']} ({gpu['memory_gib']} GiB)" for gpu in torch["gpus"])
        where = gpus or "no GPU: runs use the CPU, which is enough for the embedded model"
        row(True, "torch", f"{torch['version']}, {where}")
    absent = [name for name, version in examination["packages"].items() if version is None]
    count = len(examination["packages"])
    packages = f"missing: {', '.join(absent)}" if absent else f"all {count} there"
    row(not absent, "packages", packages)
    row(True, "embedded model", f"{examination['embedded_model']['context']} tokens of context")
    for name, extra in examination["extras"].items():
        missing = " ".join(extra["missing"])
        remedy = f"; to have it: pip install {missing}" if missing else ""
        row(not missing, f"extra {name}", f"{extra['gives']}{remedy}")
    console.print(view)
    for problem in examination["problems"]:
        console.print(Text(f"problem: {problem}", style="red"))
