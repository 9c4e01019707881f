"""A vLLM of retrain's own: started, watched, started again, given up, ended; real processes, but
no model behind them."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from retrain.errors import InputError
from retrain.policies.inference import supervisor
from retrain.policies.inference.endpoint import Endpoint
from retrain.policies.inference.supervisor import Patience, VllmServer
from retrain.policies.inference.vllm import HOST, Launch
from retrain.processes import ProcessId
from tests.experiments.campaigns import is_alive, vanishes
from tests.inference.vllm_program import Hollow, Program

HOLLOW: dict[str, Any] = {"hollow": True}
KEEPER = "from retrain.policies.inference import keeper; import sys; keeper.GRACE_S = 0.3; "
KEEPER += "raise SystemExit(keeper.keep(sys.argv[1:]))"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "POLL_S", 0.02)
    monkeypatch.setattr(supervisor, "_KEEPER", (sys.executable, "-c", KEEPER))


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path / "program")


@contextmanager
def server(
    program: Program,
    *,
    arguments: tuple[str, ...] = (),
    start_timeout: float = 60.0,
    **patience: Any,
) -> Iterator[VllmServer]:
    """Not started yet; afterwards nothing is left of it."""
    log = program.folder.parent / "vllm.log"
    launch = Launch("vllm", "m", "", "float32", False, arguments, "", 0.4, 8)
    patient = Patience(**{"first_pause_s": 0.01, **patience})
    with VllmServer(
        launch, program.file, log, clients=2, start_timeout=start_timeout, patience=patient
    ) as made:
        yield made
    assert all(map(vanishes, program.processes(port_of(made))))
    assert not is_listened_on(port_of(made))


def port_of(server: VllmServer) -> int:
    return int(server.endpoint.url.rpartition(":")[2])


def is_listened_on(port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex((HOST, port)) == 0


def status(server: VllmServer, key: str) -> int:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.get(f"{server.endpoint.url}/v1/models", headers=headers).status_code


def until(happened: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def answers(server: VllmServer) -> bool:
    try:
        return status(server, server.endpoint.key) == 200
    except httpx.TransportError:
        return False


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_it_answers_those_who_know_its_key_until_it_is_ended(program: Program) -> None:
    program.plan(HOLLOW)
    with server(program) as ours, server(program) as other:
        ours.start()
        other.start()
        assert ours.version == "0.0.0+test"
        assert port_of(ours) != port_of(other)
        for mine, foreign in ((ours, other), (other, ours)):
            assert status(mine, mine.endpoint.key) == 200
            assert status(mine, foreign.endpoint.key) == 401
            assert mine.endpoint.key not in repr(mine.endpoint)
        one, two = program.starts()
        assert all(map(is_alive, program.processes()))
    assert (one["port"], two["port"]) == (port_of(ours), port_of(other))
    assert ours.endpoint.key.encode() not in ours.log.read_bytes()
    if sys.platform == "linux":
        with socket.socket(socket.AF_UNIX) as claim:
            claim.bind(f"\0retrain-vllm-{port_of(ours)}")


@pytest.mark.parametrize("key", ["of another", ""])
def test_a_server_of_somebody_else_is_not_taken_for_ours(program: Program, key: str) -> None:
    """It came to the port while ours was loading."""
    program.plan({"never_ready": True})
    with server(program, start_timeout=0.6) as ours, Hollow(port_of(ours), key) as foreign:
        with pytest.raises(InputError, match="not ready after"):
            ours.start()
        foreign.shutdown()


def test_a_start_that_fails_is_told_with_its_root_cause(program: Program) -> None:
    program.plan({"fails": True})
    with server(program) as ours:
        with pytest.raises(InputError) as caught:
            ours.start()
        message = str(caught.value)
    begin = "inference.engine: vLLM ended with exit code 1 before it was ready: ValueError: Free "
    assert message.startswith(begin + "memory on device cuda:0 (10.2/79.1 GiB) on startup is less")
    assert message.endswith(f" (see {ours.log})")
    assert "root cause" not in message
    assert "\n" not in message


def test_an_argument_that_it_does_not_know(program: Program) -> None:
    with server(program, arguments=("--foo",)) as ours:
        expected = r"exit code 2 before it was ready: vllm: error: unrecognized arguments: --foo \("
        with pytest.raises(InputError, match=expected):
            ours.start()


def test_an_argument_that_it_finds_wrong(program: Program) -> None:
    """It tells so in the second line, after one that names no cause."""
    program.file.write_text(
        "#!/bin/sh\n"
        "echo 'pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig'\n"
        "echo '  Value error, User-specified max_model_len (9) is greater than 8.'\n"
        "exit 1\n"
    )
    expected = r"exit code 1 before it was ready: Value error, User-specified max_model_len \(9\)"
    with server(program) as ours, pytest.raises(InputError, match=expected):
        ours.start()


def test_a_file_that_cannot_be_run(program: Program) -> None:
    program.file.write_bytes(b"\x7fELF")
    with server(program) as ours, pytest.raises(InputError, match="Exec format error"):
        ours.start()


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_start_that_takes_too_long(program: Program, stubborn: bool) -> None:
    program.plan({"never_ready": True, "stubborn": stubborn})
    with server(program, start_timeout=0.5) as ours:
        with pytest.raises(InputError, match=r"start_timeout: vLLM was not ready after 0.5 s; "):
            ours.start()
        until(program.starts)


def test_one_that_does_not_heed_its_end_is_ended_all_the_same(program: Program) -> None:
    program.plan({**HOLLOW, "stubborn": True})
    with server(program) as ours:
        ours.start()


def test_one_that_is_killed_is_started_again_where_it_was(
    program: Program, caplog: pytest.LogCaptureFixture
) -> None:
    program.plan(HOLLOW)
    with server(program) as ours:
        ours.start()
        (first,) = program.starts()
        os.kill(first["pid"], signal.SIGKILL)
        until(lambda: len(program.starts()) == 2)
        until(lambda: answers(ours))
        _, second = program.starts()
        # Its engine was gone before another took its memory.
        assert not is_alive(first["engine"])
        same = ("port", "key", "arguments", "variables")
        assert {name: first[name] for name in same} == {name: second[name] for name in same}
    assert ours.endpoint.last_word() == ""
    assert told(caplog) == [f"vLLM was ended by SIGKILL (see {ours.log}); it is started again"]


def test_one_that_dies_every_time_is_given_up(
    program: Program, caplog: pytest.LogCaptureFixture
) -> None:
    program.plan(HOLLOW, {**HOLLOW, "dies_after_s": 0.1})
    with server(program) as ours:
        ours.start()
        os.kill(program.starts()[0]["pid"], signal.SIGKILL)
        until(ours.endpoint.last_word)
        assert len(program.starts()) == 4
    killed = f"vLLM was ended by SIGKILL (see {ours.log}); "
    ended = "vLLM ended with exit code 1: torch.OutOfMemoryError: CUDA out of memory. Tried to "
    ended += f"allocate 2.00 GiB. (see {ours.log}); "
    given_up = f"{ended}that was the 4th time, and it is given up"
    expected = [f"{why}it is started again" for why in (killed, ended, ended)]
    assert told(caplog) == [*expected, given_up]
    assert ours.endpoint.last_word() == given_up
    # A new one, as of a training that is resumed, is not.
    with server(program) as again:
        assert again.endpoint.last_word() == ""


def test_one_that_was_good_for_long_and_does_not_start_again_is_given_up(program: Program) -> None:
    """Its good time counts once, and not for those that never were ready."""
    program.plan(HOLLOW, {"fails": True})
    with server(program, good_s=0.4) as ours:
        ours.start()
        time.sleep(0.5)
        os.kill(program.starts()[0]["pid"], signal.SIGKILL)
        until(ours.endpoint.last_word)
        assert len(program.starts()) == 4
    assert "ValueError: Free memory" in ours.endpoint.last_word()


def test_deaths_after_a_good_time_are_no_row(program: Program) -> None:
    program.plan(HOLLOW, {**HOLLOW, "dies_after_s": 1.0}, HOLLOW)
    with server(program, good_s=0.1, deaths=2) as ours:
        ours.start()
        time.sleep(0.2)
        os.kill(program.starts()[0]["pid"], signal.SIGKILL)
        until(lambda: len(program.starts()) == 3)
        assert ours.endpoint.last_word() == ""


def test_the_end_comes_while_it_is_being_started_again(program: Program) -> None:
    program.plan(HOLLOW, {"never_ready": True})
    with server(program) as ours:
        ours.start()
        os.kill(program.starts()[0]["pid"], signal.SIGKILL)
        until(lambda: len(program.starts()) == 2)


def test_the_end_comes_just_before_it_is_started_again(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    program.plan(HOLLOW)
    launched, begun = VllmServer._launched, threading.Event()
    processes: list[Any] = []

    def late(self: VllmServer) -> Any:
        if processes:
            begun.set()
            self._closing.wait(60)
            time.sleep(0.3)
        processes.append(launched(self))
        return processes[-1]

    monkeypatch.setattr(VllmServer, "_launched", late)
    with server(program) as ours:
        ours.start()
        os.kill(program.starts()[0]["pid"], signal.SIGKILL)
        assert begun.wait(60)
    assert [process.poll() is None for process in processes] == [False, False]


def test_one_whose_log_cannot_be_written_is_given_up(program: Program) -> None:
    program.plan(HOLLOW)
    with server(program) as ours:
        ours.start()
        ours.log.unlink()
        ours.log.mkdir()
        os.kill(program.starts()[0]["pid"], signal.SIGKILL)
        until(ours.endpoint.last_word)
    assert "cannot be started again" in ours.endpoint.last_word()


def test_nobody_starts_the_server_of_a_training_that_is_gone() -> None:
    """What workers that outlive their campaign for a moment are told."""
    mine = ProcessId.own()
    alive = Endpoint("http://127.0.0.1:1", "k", given_up="/nowhere", owner=mine)
    read = Endpoint.read(alive.fields())
    assert read == alive
    assert alive.last_word() == ""
    born = None if mine.born is None else mine.born + 1
    gone = ProcessId(mine.host, mine.pid, mine.boot, mine.pid_namespace, born)
    if born is not None:
        word = Endpoint("http://127.0.0.1:1", owner=gone).last_word()
        assert word.endswith("which had started it, is gone")
