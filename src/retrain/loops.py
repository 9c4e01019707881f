"""Event loops that run in threads beside the one that waits for their results."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

_log = logging.getLogger("retrain")

T = TypeVar("T")

_UNREAD = "Task exception was never retrieved"
_CLOSING_S = 2.0


class LoopThread:
    """An event loop in a thread of its own.

    name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        forgive_given_up(self._loop)
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start `work`; cancelling the future ends it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        """Cancel all that is under way, and end the thread."""

        async def cancel_all() -> None:
            left = asyncio.all_tasks() - {asyncio.current_task()}
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            await self._loop.shutdown_asyncgens()

        with contextlib.suppress(TimeoutError, CancelledError):
            self.submit(cancel_all()).result(_CLOSING_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CLOSING_S)
        if not self._thread.is_alive():
            self._loop.close()


def forgive_given_up(loop: asyncio.AbstractEventLoop) -> None:
    """Let tasks of `loop` that end in an error when they are cancelled do so without a traceback
    in the log.

    Nobody is left who reads the error of a task whose `concurrent.futures.Future` was cancelled.
    asyncio logs it with a traceback when the task is collected, wherever the program is then; and
    Python 3.11 formats a traceback by parsing, which ends in a SystemError where the garbage was
    collected inside another parse.
    """
    loop.set_exception_handler(_handle)


def _handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    if context.get("message") == _UNREAD:
        _log.debug("given up, and failed since: %s", context.get("exception"))
    else:
        loop.default_exception_handler(context)
