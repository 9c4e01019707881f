"""Servers that say too much, too slowly, or what they should keep to themselves."""

from __future__ import annotations

import gzip
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest

from retrain import answers
from retrain.loops import LoopThread

KEY = "sk-0123456789"
OK = b"HTTP/1.1 200 OK\r\n"


@contextmanager
def serving(answer: Callable[[socket.socket, threading.Event], None]) -> Iterator[str]:
    """A server that gives every connection this answer, whatever it was asked."""
    over = threading.Event()

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(1 << 16)
                try:
                    answer(connection, over)
                except OSError:
                    continue

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            over.set()
            listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def whole(body: bytes, *headers: bytes, status: bytes = OK) -> Callable[..., None]:
    head = b"".join(line + b"\r\n" for line in (b"Content-Length: %d" % len(body), *headers))
    return lambda connection, over: connection.sendall(status + head + b"\r\n" + body)


def dripping(*before: bytes) -> Callable[..., None]:
    def answer(connection: socket.socket, over: threading.Event) -> None:
        connection.sendall(b"".join(before))
        while not over.wait(0.02):
            connection.sendall(b"x")

    return answer


def flood(connection: socket.socket, over: threading.Event) -> None:
    connection.sendall(OK + b"\r\n")
    while not over.is_set():
        connection.sendall(b"x" * (1 << 20))


def asked(url: str, seconds: float = 20.0) -> httpx.Response:
    loop = LoopThread("test")

    async def ask() -> httpx.Response:
        # The limit of each read must not be what ends it.
        async with httpx.AsyncClient(base_url=url, timeout=20.0) as client:
            return await answers.ask(client, "models", seconds=seconds, key=KEY)

    try:
        return loop.submit(ask()).result(30)
    finally:
        loop.close()


@pytest.mark.parametrize("before", [(OK, b"X-Slow: "), (OK, b"\r\n")], ids=["header", "body"])
def test_a_drip_ends_at_the_limit_of_the_whole_request(before: tuple[bytes, ...]) -> None:
    with (
        serving(dripping(*before)) as url,
        pytest.raises(httpx.ReadTimeout, match=r"within 0\.3 s"),
    ):
        asked(url, 0.3)


def test_an_endless_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "MOST_BYTES", 4 << 20)
    with serving(flood) as url, pytest.raises(httpx.TransportError, match="longer than 4 MiB"):
        asked(url)


def test_a_compressed_answer_is_not_unpacked() -> None:
    bomb = whole(gzip.compress(bytes(1 << 20)), b"Content-Encoding: gzip")
    with serving(bomb) as url, pytest.raises(httpx.TransportError, match="compressed"):
        asked(url)


def test_json_that_is_nested_too_deep_is_none() -> None:
    with serving(whole(b"[" * 100_000)) as url:
        response = asked(url)
    with pytest.raises(ValueError, match="nested"):
        answers.parsed(response)
    assert answers.said(response).startswith("200 OK: [[[")


def test_a_key_that_the_server_repeats_is_hidden() -> None:
    refusal = f"HTTP/1.1 401 {KEY} refused\r\n".encode()
    body = b'{"error": {"message": "no key %s here"}}' % KEY.encode()
    with serving(whole(body, status=refusal)) as url:
        response = asked(url)
    assert answers.said(response) == "401 [key] refused: no key [key] here"
    assert KEY not in response.text
