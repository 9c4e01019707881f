"""Never more than so many calls in flight, counted by the server that answers them."""

from __future__ import annotations

import asyncio
import contextlib
import random
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from retrain.policies.throttle import Throttle

LIMIT = 3

WORKER = """
import socket, sys
from pathlib import Path
from retrain.policies.throttle import Throttle

folder, limit, port, calls = Path(sys.argv[1]), *map(int, sys.argv[2:])
throttle = Throttle(folder, limit)
for _ in range(calls):
    with throttle.slot(), socket.create_connection(("127.0.0.1", port)) as connection:
        connection.recv(1)
"""


class CountingServer:
    """Answers each connection after `hold_s`, and counts those whose caller still waits."""

    def __init__(self, hold_s: float, limit: int) -> None:
        self.hold_s = hold_s
        self.limit = limit
        self.most = 0
        self.answered = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listener.getsockname()[1]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> CountingServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        selector = selectors.DefaultSelector()
        selector.register(self._listener, selectors.EVENT_READ)
        held: dict[socket.socket, float] = {}
        while not self._stop.is_set():
            arrived = selector.select(0.001)
            if arrived:
                self._drop_those_who_hung_up(held)
                # A caller that is killed hangs up, though not in the instant that frees its slot.
                patience = time.monotonic() + 0.5
                while len(held) >= self.limit and time.monotonic() < patience:
                    self._drop_those_who_hung_up(held)
                held[self._listener.accept()[0]] = time.monotonic()
                self.most = max(self.most, len(held))
            for connection, since in list(held.items()):
                if time.monotonic() - since >= self.hold_s:
                    held.pop(connection)
                    with contextlib.suppress(OSError):
                        connection.sendall(b"!")
                    connection.close()
                    self.answered += 1

    def _drop_those_who_hung_up(self, held: dict[socket.socket, float]) -> None:
        for connection in [c for c in held if self._hung_up(c)]:
            held.pop(connection)
            connection.close()

    @staticmethod
    def _hung_up(connection: socket.socket) -> bool:
        try:
            return connection.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True


@contextlib.contextmanager
def workers(folder: Path, limit: int, port: int, count: int, calls: int) -> Iterator[list]:
    arguments = [str(folder), str(limit), str(port), str(calls)]
    started = [subprocess.Popen([sys.executable, "-c", WORKER, *arguments]) for _ in range(count)]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_twelve_workers_never_exceed_the_limit(tmp_path: Path) -> None:
    with (
        CountingServer(0.01, LIMIT) as server,
        workers(tmp_path, LIMIT, server.port, 12, 10) as started,
    ):
        for process in started:
            assert process.wait(60) == 0
        assert server.answered == 120
        assert server.most == LIMIT
    assert [path.name for path in tmp_path.iterdir()] == ["gate"]


def test_a_killed_holder_gives_its_slot_back(tmp_path: Path) -> None:
    draw = random.Random(1)
    with (
        CountingServer(0.01, LIMIT) as server,
        workers(tmp_path, LIMIT, server.port, 9, 400) as started,
    ):
        while server.answered < 20:
            time.sleep(0.01)
        victims = draw.sample(started, 6)
        for process in victims:
            process.send_signal(signal.SIGKILL)
            time.sleep(draw.random() / 20)
        for process in victims:
            process.wait()
        # The three that are left have all the slots.
        before = server.answered
        while server.answered < before + 30:
            time.sleep(0.01)
        assert server.most == LIMIT


def test_calls_are_served_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    throttle = Throttle(tmp_path, 1)
    order: list[int] = []

    def call(number: int) -> None:
        with throttle.slot():
            order.append(number)

    with throttle.slot():
        threads = []
        for number in range(6):
            thread = threading.Thread(target=call, args=(number,))
            thread.start()
            threads.append(thread)
            while len(list(tmp_path.glob("call_*"))) < number + 2:
                time.sleep(0.001)
        assert not order
    for thread in threads:
        thread.join()
    assert order == list(range(6))


def test_tasks_of_one_thread_share_the_slots(tmp_path: Path) -> None:
    throttle = Throttle(tmp_path, 2)
    flying, most = 0, 0

    async def call() -> None:
        nonlocal flying, most
        async with throttle.slot_async():
            flying += 1
            most = max(most, flying)
            await asyncio.sleep(0.002)
            flying -= 1

    async def all_calls() -> None:
        await asyncio.gather(*(call() for _ in range(20)))

    asyncio.run(all_calls())
    assert most == 2


def test_an_error_in_the_call_gives_the_slot_back(tmp_path: Path) -> None:
    throttle = Throttle(tmp_path, 1)
    with pytest.raises(RuntimeError), throttle.slot():
        raise RuntimeError
    with throttle.slot():
        pass


def test_without_a_folder_nothing_is_throttled() -> None:
    throttle = Throttle(None, 1)
    with throttle.slot(), throttle.slot():
        pass


def test_no_slot_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_concurrent must be 1 or more, not 0"):
        Throttle(tmp_path, 0)
