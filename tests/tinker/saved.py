"""What is saved in the stand-in's folder, and the routes that tell of it.

runs/<run>/run.json, and runs/<run>/<kind>/<name>/ with an adapter in PEFT's format, meta.json and,
for training, the optimizer's averages.
"""

from __future__ import annotations

import datetime
import re
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.tinker.errors import ApiError
from tests.tinker.model import Meta

NAME = re.compile(r"[A-Za-z0-9_.-]+")
KINDS = {"weights": "training", "sampler_weights": "sampler", "external_weights": "external"}


class Saved:
    """Everything saved, by this stand-in and those before it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "runs"
        self._links: dict[str, Path] = {}

    def add_run(self, run_id: str, meta: Meta) -> None:
        meta.write(self.folder / run_id / "run.json")

    def place(self, run_id: str, kind: str, name: str) -> Path:
        """Where weights of this name belong."""
        return self.folder / run_id / kind / checked_name(name)

    def weights_info(self, body: Mapping[str, Any]) -> dict[str, Any]:
        meta = Meta.read(self.find(body["tinker_path"]) / "meta.json")
        return {
            "base_model": meta.base_model,
            "is_lora": True,
            "lora_rank": meta.rank,
            "train_unembed": False,
            "train_mlp": meta.train_mlp,
            "train_attn": meta.train_attn,
        }

    def training_run(self, run_id: str) -> dict[str, Any]:
        folder = self._run_folder(run_id)
        meta = Meta.read(folder / "run.json")
        saved = self.checkpoints(run_id)["checkpoints"]
        last = dict.fromkeys(KINDS.values()) | {c["checkpoint_type"]: c for c in saved}
        return {
            "training_run_id": run_id,
            "base_model": meta.base_model,
            "model_owner": "stand-in",
            "is_lora": True,
            "lora_rank": meta.rank,
            "last_request_time": _time_of(folder),
            "last_checkpoint": last["training"],
            "last_sampler_checkpoint": last["sampler"],
            "user_metadata": meta.user_metadata,
        }

    def training_runs(self) -> dict[str, Any]:
        found = sorted(self.folder.glob("*/run.json"), key=lambda p: p.stat().st_mtime)
        runs = [self.training_run(path.parent.name) for path in found]
        return {"training_runs": runs, "cursor": _cursor(len(runs))}

    def checkpoints(self, run_id: str | None = None) -> dict[str, Any]:
        found: list[dict[str, Any]] = []
        if run_id is None:
            metas = self.folder.glob("*/*/*/meta.json")
        else:
            metas = self._run_folder(run_id).glob("*/*/meta.json")
        for meta in sorted(metas, key=lambda path: path.stat().st_mtime_ns):
            run, kind, name = meta.parent.relative_to(self.folder).parts
            entry = {
                "checkpoint_id": f"{kind}/{name}",
                "checkpoint_type": KINDS[kind],
                "time": _time_of(meta),
                "tinker_path": f"tinker://{run}/{kind}/{name}",
                "size_bytes": sum(file.stat().st_size for file in meta.parent.iterdir()),
            }
            found.append(entry)
        return {"checkpoints": found, "cursor": _cursor(len(found))}

    def delete_checkpoint(self, run_id: str, kind: str, name: str) -> None:
        shutil.rmtree(self.find(f"tinker://{run_id}/{kind}/{name}"))

    def external_urls(self, run_id: str, kind: str, name: str, url: str) -> dict[str, Any]:
        folder = self.find(f"tinker://{run_id}/{kind}/{name}", "external_weights")
        token = uuid.uuid4().hex
        self._links[token] = folder
        files = sorted(file.name for file in folder.glob("adapter_*"))
        expires = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
        return {
            "urls": {file: f"{url}/download/{token}/{file}" for file in files},
            "expires": expires.isoformat(),
        }

    def linked_file(self, token: str, name: str) -> bytes:
        folder = self._links.get(token)
        if folder is None or not NAME.fullmatch(name) or not (folder / name).is_file():
            raise ApiError(403, "this link does not open anything")
        return (folder / name).read_bytes()

    def find(self, path: str, kind: str | None = None) -> Path:
        """The folder behind a tinker:// path, of this kind if one is given."""
        parts = path.removeprefix("tinker://").split("/")
        if not path.startswith("tinker://") or len(parts) != 3 or parts[1] not in KINDS:
            raise ApiError(400, f"not a tinker path: {path!r}")
        if kind is not None and parts[1] != kind:
            raise ApiError(400, f"{path!r} does not hold {kind}")
        folder = self._run_folder(parts[0]) / parts[1] / checked_name(parts[2])
        if not (folder / "meta.json").is_file():
            raise ApiError(404, f"nothing is saved under {path!r}")
        return folder

    def _run_folder(self, run_id: str) -> Path:
        folder = self.folder / run_id
        if "/" in run_id or run_id.startswith(".") or not (folder / "run.json").is_file():
            raise ApiError(404, f"no such training run: {run_id}")
        return folder


def checked_name(name: str) -> str:
    if not NAME.fullmatch(name) or name.startswith("."):
        raise ApiError(400, f"not a name for weights: {name!r}")
    return name


def _time_of(path: Path) -> str:
    return datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC).isoformat()


def _cursor(count: int) -> dict[str, int]:
    return {"offset": 0, "limit": count, "total_count": count}
