"""Ctrl-C and its like, as a flag: a campaign stops between two events, never inside one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignals:
    """While entered, SIGINT, SIGTERM and SIGHUP set `stop` and call `on_stop`; Ctrl-C after one of
    them calls `insist`.

    SIGTERM and SIGHUP never insist: service managers, batch systems and terminals that close send
    them more than once, and want what is being done to be saved.

    A signal that is ignored stays ignored, so `nohup` keeps its meaning. Outside of the main
    thread, where Python delivers no signals, nothing changes.
    """

    def __init__(
        self, insist: Callable[[], None], on_stop: Callable[[], None] = lambda: None
    ) -> None:
        self.stop = False
        self._insist = insist
        self._on_stop = on_stop
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                before = signal.getsignal(number)
                if before is not signal.SIG_IGN and before is not None:
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.stop:
            if number == signal.SIGINT:
                self._insist()
            return
        self.stop = True
        self._on_stop()
