"""Event loops in threads of their own."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from typing import Any

import pytest

from retrain.loops import LoopThread

NAME = "loop-of-a-test"


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    thread = LoopThread(NAME)
    yield thread
    thread.close()
    assert NAME not in {thread.name for thread in threading.enumerate()}


def fail_when_given_up(
    submit: Callable[[Coroutine[Any, Any, None]], Future[None]], words: str
) -> None:
    """A task that ends in another error when its future is cancelled."""
    begun, failed = threading.Event(), threading.Event()

    async def wait() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            failed.set()
            raise ValueError(words)

    future = submit(wait())
    assert begun.wait(20)
    assert future.cancel()
    assert failed.wait(20)


def test_a_result_an_error_and_a_cancellation(loop: LoopThread) -> None:
    ended = threading.Event()

    async def seven() -> int:
        return 7

    async def fail() -> None:
        raise ValueError("seven")

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    assert loop.submit(seven()).result(20) == 7
    with pytest.raises(ValueError, match="seven"):
        loop.submit(fail()).result(20)
    waiting = loop.submit(endless())
    loop.submit(seven()).result(20)
    waiting.cancel()
    assert ended.wait(20)


def test_closing_cancels_what_is_under_way() -> None:
    loop = LoopThread(NAME)
    waiting = loop.submit(asyncio.sleep(1000))
    loop.close()
    with pytest.raises(CancelledError):
        waiting.result(20)


def test_the_error_of_a_task_that_was_given_up_is_not_logged(
    loop: LoopThread, caplog: pytest.LogCaptureFixture
) -> None:
    """A traceback that is made in a garbage collection breaks what the program is doing."""
    fail_when_given_up(loop.submit, "given up")
    loop.submit(asyncio.sleep(0)).result(20)
    gc.collect()
    assert not [record for record in caplog.records if record.exc_info]


def test_other_errors_of_a_loop_are_logged(
    loop: LoopThread, caplog: pytest.LogCaptureFixture
) -> None:
    async def later() -> None:
        def fail() -> None:
            raise ValueError("in a callback")

        asyncio.get_running_loop().call_soon(fail)

    loop.submit(later()).result(20)
    loop.submit(asyncio.sleep(0)).result(20)
    assert [str(r.exc_info[1]) for r in caplog.records if r.exc_info] == ["in a callback"]
