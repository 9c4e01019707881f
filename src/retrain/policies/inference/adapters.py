"""Adapters at the server: written to a folder that it sees, loaded there, unloaded when old."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from retrain.files import expanded
from retrain.policies.inference.dialect import Dialect
from retrain.policies.inference.server import InferenceServer
from retrain.policies.lost import GoneError, RefusedError

_log = logging.getLogger("retrain")

_CLOSING_S = 10.0
# What is said of a name that an earlier try, whose answer was lost on the way, has left.
_IN_THE_WAY = ("already", "incomplete unload")


class Adapters:
    """A run's adapters at the server, one at a time: `<run>-<id>-<updates>`.

    The id comes from the run's folder: runs of two campaigns may have the same name.
    """

    def __init__(
        self, server: InferenceServer, dialect: Dialect, folder: Path, run: str, run_dir: Path
    ) -> None:
        """folder: where they are written."""
        digest = hashlib.blake2b(str(run_dir.absolute()).encode(), digest_size=4).hexdigest()
        self._server = server
        self._dialect = dialect
        self._folder = expanded(folder).absolute()
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
        path = f"{self._dialect.adapters}/load_lora_adapter"
        try:
            try:
                await self._server.ask(what, path, body)
            except RefusedError as error:
                if not any(words in str(error) for words in _IN_THE_WAY):
                    raise
                await self._unload(name)
                await self._server.ask(what, path, body)
        except (GoneError, RefusedError) as error:
            raise RefusedError(f"inference.engine: {error}; {self._dialect.loads}") from error

    async def _unload(self, name: str) -> None:
        """An adapter that is not there is unloaded already; one that stays only takes memory."""
        path = f"{self._dialect.adapters}/unload_lora_adapter"
        try:
            await self._server.ask(f"{name} to be unloaded", path, {"lora_name": name})
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
