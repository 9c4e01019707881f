"""Adapters at the server: written to a folder that it sees, loaded there, unloaded when old."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from retrain.policies.inference.server import InferenceServer
from retrain.policies.lost import GoneError, RefusedError

_log = logging.getLogger("retrain")

_LOAD, _UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
_CLOSING_S = 10.0
_REMEDY = (
    "vLLM loads adapters while it runs when it was started with "
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, --enable-lora and a --max-lora-rank of "
    "[model].lora_rank or more, and sees the folder under the same path ([inference].adapter_dir)"
)


class Adapters:
    """A run's adapters at the server, one at a time: `<run>-<id>-<updates>`.

    The id comes from the run's folder: runs of two campaigns may have the same name.
    """

    def __init__(self, server: InferenceServer, folder: Path, run: str, run_dir: Path) -> None:
        """folder: where they are written."""
        digest = hashlib.blake2b(str(run_dir.absolute()).encode(), digest_size=4).hexdigest()
        self._server = server
        self._folder = folder.expanduser().absolute()
        self._made_folder = not self._folder.exists()
        self._prefix = f"{run}-{digest}-"
        self._current = ""
        self._loads = 0
        self._lock = asyncio.Lock()

    @property
    def current(self) -> tuple[str, int]:
        """Name of the adapter to sample from, and how often one has been loaded so far."""
        return self._current, self._loads

    def clear(self, loaded: list[str]) -> None:
        """Take away what an attempt that was killed has left. loaded: the server's models."""
        for name in loaded:
            if name.startswith(self._prefix):
                self._server.wait(self._unload(name))
        for path in self._folder.glob(f"{self._prefix}*"):
            shutil.rmtree(path, ignore_errors=True)

    def publish(self, export: Callable[[Path], None], updates: int) -> None:
        """Have the server load what `export` writes, in place of the adapter before.

        Raises RefusedError when it cannot.
        """
        old, name = self._current, f"{self._prefix}{updates:06d}"
        export(self._folder / name)
        self._current = name
        self._server.wait(self._load_if(self._loads))
        if old and old != name:
            self._server.wait(self._unload(old))
            shutil.rmtree(self._folder / old, ignore_errors=True)

    async def load_again(self, seen: int) -> None:
        """The server has no adapter of this name, any more: it was started anew. seen: the number
        of loads when it was asked; of many who find out, one loads."""
        await self._load_if(seen)

    async def _load_if(self, seen: int) -> None:
        async with self._lock:
            if self._loads == seen:
                await self._load()
                self._loads += 1

    async def _load(self) -> None:
        name = self._current
        body = {"lora_name": name, "lora_path": str(self._folder / name)}
        what = f"the adapter {name} to be loaded"
        try:
            try:
                await self._server.ask(what, _LOAD, body)
            except RefusedError as error:
                # Its answer to an earlier try may have been lost on the way.
                if "already" not in str(error):
                    raise
                await self._unload(name)
                await self._server.ask(what, _LOAD, body)
        except (GoneError, RefusedError) as error:
            raise RefusedError(f"inference.engine: {error}; {_REMEDY}") from error

    async def _unload(self, name: str) -> None:
        """An adapter that is not there is unloaded already; one that stays only takes memory."""
        try:
            await self._server.ask(f"{name} to be unloaded", _UNLOAD, {"lora_name": name})
        except GoneError:
            return
        except RefusedError as error:
            _log.debug("%s", error)

    def close(self) -> None:
        """Leave nothing at the server and in the folder."""
        if self._current:
            unloading = self._server.submit(self._unload(self._current))
            with contextlib.suppress(Exception):
                unloading.result(_CLOSING_S)
            unloading.cancel()
            shutil.rmtree(self._folder / self._current, ignore_errors=True)
        if self._made_folder:
            with contextlib.suppress(OSError):
                self._folder.rmdir()
