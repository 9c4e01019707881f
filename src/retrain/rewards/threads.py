"""Threads that wait for others: for processes that check, for servers that judge."""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import CancelledError, Future
from contextlib import AbstractContextManager
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")
K = TypeVar("K", bound=Hashable)
Priority = tuple[int, ...]

_JOIN_S = 1.0


class Crew(Generic[T, R]):
    """At most `size` threads that do tasks off one queue, the lowest priority first and then the
    oldest, each with a handler of its own.

    The threads are daemons: one that waits for a slow server keeps no process from ending.
    """

    def __init__(
        self, size: int, handler: Callable[[], AbstractContextManager[Callable[[T], R]]]
    ) -> None:
        """handler: entered once in each thread; what it gives is called with every task."""
        self._size = size
        self._handler = handler
        self._tasks: queue.PriorityQueue[tuple[Priority, int, tuple[T, Future[R]] | None]]
        self._tasks = queue.PriorityQueue()
        self._order = itertools.count()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._closed = False

    def submit(self, task: T, priority: Priority = ()) -> Future[R]:
        """Have the task done; never blocks."""
        future: Future[R] = Future()
        with self._lock:
            if self._closed:
                future.cancel()
                return future
            self._tasks.put((priority, next(self._order), (task, future)))
            if len(self._threads) < self._size:
                self._add_thread()
        return future

    def cancel(self) -> None:
        """Take no more tasks, and cancel those that nobody has begun."""
        with self._lock:
            self._closed = True
        with contextlib.suppress(queue.Empty):
            while (left := self._tasks.get_nowait()[2]) is not None:
                left[1].cancel()

    def close(self) -> None:
        """Cancel, and let the threads end; one that is busy is not waited for long."""
        self.cancel()
        with self._lock:
            threads, self._threads = self._threads, []
        for _ in threads:
            self._tasks.put(((), next(self._order), None))
        for thread in threads:
            thread.join(_JOIN_S)

    def _add_thread(self) -> None:
        thread = threading.Thread(target=self._work, name="retrain-reward", daemon=True)
        thread.start()
        self._threads.append(thread)

    def _work(self) -> None:
        with self._handler() as handle:
            while (item := self._tasks.get()[2]) is not None:
                task, future = item
                if not future.set_running_or_notify_cancel():
                    continue
                try:
                    result = handle(task)
                except BaseException as error:
                    future.set_exception(error)
                else:
                    future.set_result(result)


class Memo(Generic[K, R]):
    """The newest `size` results by key, also those still awaited; failures are not kept.

    For one thread.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: OrderedDict[K, Future[R]] = OrderedDict()

    def get(self, key: K, make: Callable[[], Future[R]]) -> Future[R]:
        """The result for `key`; made when there is none."""
        future = self._kept.get(key)
        if future is not None and not _failed(future):
            self._kept.move_to_end(key)
            return future
        future = self._kept[key] = make()
        if len(self._kept) > self._size:
            self._kept.popitem(last=False)
        return future


def _failed(future: Future[R]) -> bool:
    try:
        return future.done() and future.exception() is not None
    except CancelledError:
        return True
