"""The keeper ends a server with all that it has started, however its own end comes about; and two
trainings never get the same port."""

from __future__ import annotations

import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrain.policies.inference.supervisor import claim_port
from retrain.policies.inference.vllm import HOST
from tests.experiments.campaigns import is_alive, vanishes

QUICK = "from retrain.policies.inference import keeper; import sys; keeper.GRACE_S = 0.3; "
QUICK += "raise SystemExit(keeper.keep(sys.argv[1:]))"

FAMILY = "sleep 600 & echo $$ $!; wait"
"""A server and its engine, which tells their numbers."""
STUBBORN = "trap '' TERM; " + FAMILY
PORTS = 21_000


@contextmanager
def kept(script: str, *options: str) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A keeper of `sh -c script`, and the processes that it tells in its first line."""
    program = options or ("-m", "retrain.policies.inference.keeper")
    keeper = subprocess.Popen(
        [sys.executable, *program, "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with keeper:
        assert keeper.stdout is not None
        try:
            yield keeper, [int(pid) for pid in keeper.stdout.readline().split()]
        finally:
            keeper.kill()


def hang_up(keeper: subprocess.Popen[str]) -> None:
    assert keeper.stdin is not None
    keeper.stdin.close()


def terminate(keeper: subprocess.Popen[str]) -> None:
    keeper.terminate()


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -15 $$", 143)]
)
def test_the_exit_code_is_the_commands(script: str, code: int) -> None:
    with kept(script) as (keeper, _):
        assert keeper.wait(30) == code


def test_what_a_command_leaves_behind_is_ended() -> None:
    with kept("sleep 600 >/dev/null & echo $!; exit 3") as (keeper, (left,)):
        assert keeper.wait(30) == 3
        assert vanishes(left)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who is left of a group")
def test_who_tidies_up_after_the_server_may_finish(tmp_path: Path) -> None:
    """As Python's helper processes do with the shared memory of a server that was killed."""
    done = tmp_path / "done"
    tidy = f"(sleep 0.3; touch {shlex.quote(str(done))}) >/dev/null"
    with kept(f"trap '' TERM; {tidy} & echo $!; kill -9 $$") as (keeper, (helper,)):
        assert keeper.wait(30) == 128 + signal.SIGKILL
        assert done.exists()
        assert vanishes(helper)


@pytest.mark.parametrize("end", [hang_up, terminate])
def test_the_end_of_the_keeper_is_the_end_of_all(
    end: Callable[[subprocess.Popen[str]], None],
) -> None:
    with kept(FAMILY) as (keeper, family):
        assert len(family) == 2
        assert all(map(is_alive, family))
        end(keeper)
        assert keeper.wait(30) == 128 + signal.SIGTERM
        assert all(map(vanishes, family))


def test_who_does_not_listen_is_killed() -> None:
    with kept(STUBBORN, "-c", QUICK) as (keeper, family):
        hang_up(keeper)
        assert keeper.wait(30) == 128 + signal.SIGKILL
        assert all(map(vanishes, family))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can tell a process of that")
def test_a_keeper_that_is_killed_takes_its_server_along() -> None:
    """The server ends in order, and its engines with it."""
    # Other signals are lost on a shell's child that is not yet `sleep`, and just before `wait`.
    server = "trap 'kill -9 $engine; exit' TERM; sleep 600 & engine=$!; echo $$ $engine; "
    with kept(server + "while sleep 0.05; do :; done") as (keeper, family):
        keeper.kill()
        assert all(map(vanishes, family))


@contextmanager
def held(port: int, kind: str) -> Iterator[None]:
    with ExitStack() as stack:
        if kind == "claimed":
            taken, claim = claim_port(port)
            assert taken == port
            if claim is not None:
                stack.enter_context(claim)
        else:
            listener = stack.enter_context(socket.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if kind == "loading":
                # As vLLM does for the minutes before it listens.
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind((HOST if kind == "loading" else "", port))
            if kind == "listening":
                listener.listen()
        yield


@settings(max_examples=40)
@given(
    st.dictionaries(
        st.integers(PORTS, PORTS + 5), st.sampled_from(["claimed", "listening", "loading"])
    )
)
def test_a_port_that_somebody_has_is_never_given(taken: dict[int, str]) -> None:
    free = min(set(range(PORTS, PORTS + 7)) - set(taken))
    for _ in range(2):  # And what was held is free again.
        with ExitStack() as stack:
            for port, kind in taken.items():
                stack.enter_context(held(port, kind))
            found, claim = claim_port(PORTS)
            assert found == free
            if claim is not None:
                claim.close()


def test_the_port_of_a_training_that_was_killed_is_free_again(tmp_path: Path) -> None:
    first = PORTS + 10
    script = "from retrain.policies.inference.supervisor import claim_port; import time; "
    script += f"port, claim = claim_port({first}); print(port, flush=True); time.sleep(600)"
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        try:
            assert int(other.stdout.readline()) == first
            port, claim = claim_port(first)
            assert port == first + 1
            if claim is not None:
                claim.close()
        finally:
            other.kill()
    port, claim = claim_port(first)
    assert port == first
    if claim is not None:
        claim.close()
