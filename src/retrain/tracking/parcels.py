"""The files of a run that go to its tracker besides numbers: adapters, as `wandb_artifacts` says.

A parcel is put together from hard links in `<run>/<tracker>/parcels/`: that costs neither time nor
room, and the files stay when training removes the checkpoint, or replaces the adapter, before they
are sent.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from retrain.config.schema import RunConfig
from retrain.files import FINAL_FOLDER, read_json
from retrain.tracking.trackers import Parcel

PARCELS_FOLDER = "parcels"
FINAL = "final"
CHECKPOINTS = "checkpoints"
INDEX_FILE = "checkpoint.json"
_STEP = re.compile(r"step_(\d+)")
_LONGEST_NAME = 100


class Parcels:
    """What a run has to send to one tracker; each is made once.

    label: -> of the final adapter `final`, of a checkpoint the name of its folder.
    """

    def __init__(self, run_dir: Path, folder: Path, config: RunConfig, name: str) -> None:
        self._run_dir = run_dir
        self._folder = folder / PARCELS_FOLDER
        self._config = config
        self._name = re.sub(r"[^A-Za-z0-9._-]", "-", name)[:_LONGEST_NAME]

    @property
    def wanted(self) -> bool:
        return self._config.logging.wandb_artifacts != "none"

    def labels(self, record: Mapping[str, Any], *, ended: bool) -> list[str]:
        """What there is to send now, oldest first; `record` is the run's `run.json`."""
        found: list[str] = []
        if self._config.logging.wandb_artifacts == "checkpoints":
            folders = (self._run_dir / CHECKPOINTS).glob("step_*")
            there = {path.name for path in folders if _STEP.fullmatch(path.name)}
            if self._folder.is_dir():
                # Of an attempt that could not send them; the checkpoint may be gone.
                there |= {p.name for p in self._folder.iterdir() if _STEP.fullmatch(p.name)}
            found += sorted(there)
        final = self._run_dir / FINAL_FOLDER
        if self.wanted and ended and record["status"] == "done" and final.is_dir():
            found.append(f"{FINAL}_{int(record['step']):06d}")
        return found

    def make(self, label: str, record: Mapping[str, Any]) -> Parcel | None:
        """The parcel, its files put aside; None when they are gone by now."""
        is_final = label.startswith(FINAL)
        source = self._run_dir / (FINAL_FOLDER if is_final else f"{CHECKPOINTS}/{label}")
        target = self._folder / label
        if is_final or not target.is_dir():
            try:
                _link_all(source, target)
            except FileNotFoundError:
                # `keep_last` was faster.
                shutil.rmtree(target, ignore_errors=True)
                return None
        if is_final:
            step, accuracy = int(record["step"]), (record["result"] or {}).get("accuracy_after")
            name, kind, aliases = self._name, "model", [FINAL, f"step_{step:06d}"]
        else:
            index = _index(target)
            step, accuracy = int(label.removeprefix("step_")), index.get("accuracy")
            name, kind, aliases = f"{self._name}-checkpoint", "checkpoint", [label]
        model = self._config.model
        metadata = {
            "run": str(record["name"]),
            "condition": str(record["condition"]),
            "seed": int(record["seed"]),
            "base_model": model.model,
            "rank": model.lora_rank,
            "alpha": model.alpha,
            "step": step,
            "accuracy": accuracy,
        }
        return Parcel(name, kind, target, aliases, metadata)

    def remove(self, label: str) -> None:
        """Forget the files of a parcel that has arrived."""
        shutil.rmtree(self._folder / label, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._folder.rmdir()


def _index(folder: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        index: dict[str, Any] = read_json(folder / INDEX_FILE)
        return index
    return {}


def _link_all(source: Path, target: Path) -> None:
    """`target` becomes a folder with the files of `source`; raises FileNotFoundError when one
    vanishes meanwhile."""
    aside = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    for path in _files(source):
        place = aside / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, place)
        except FileNotFoundError:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        except OSError:
            shutil.copyfile(path, place)
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from _files(path)
        else:
            yield path
