"""Whether a process lives: the answer is sure, or openly unknown."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import retrain
from retrain import processes
from retrain.processes import ProcessId, module_command

EXIT_OF_A_THREAD = {"x86_64": 60, "aarch64": 93}
"""The number of the system call that ends the calling thread only."""


def id_of(pid: int) -> ProcessId:
    stat = processes._stat(pid)
    assert stat
    return replace(ProcessId.own(), pid=pid, born=stat.born)


@contextmanager
def running(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


TEXT = st.text(max_size=20)
PROCESSES = st.builds(
    ProcessId,
    host=TEXT,
    pid=st.integers(min_value=1),
    boot=TEXT,
    pid_namespace=TEXT,
    born=st.none() | st.integers(),
)
JSON = st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.lists(st.integers())


@given(PROCESSES)
def test_what_is_written_is_read(process: ProcessId) -> None:
    assert ProcessId.read(json.loads(json.dumps(process.fields()))) == process


@given(
    st.fixed_dictionaries({}, optional=dict.fromkeys(ProcessId.own().fields(), JSON)),
    st.booleans(),
)
def test_any_fields_can_be_read(fields: dict[str, Any], here: bool) -> None:
    if here:
        known = ProcessId.own().fields()
        fields |= {key: known[key] for key in ("host", "boot", "pid_namespace")}
    process = ProcessId.read(fields)
    assert process is None or process.is_alive() in {True, False, None}
    assert str(process)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"pid": 1},
        {"host": "h"},
        {"host": "h", "pid": 0},
        {"host": "h", "pid": -1},
        {"host": "h", "pid": "1"},
        {"host": None, "pid": 1},
    ],
)
def test_fields_that_name_no_process(fields: dict[str, Any]) -> None:
    assert ProcessId.read(fields) is None


def test_this_process_lives() -> None:
    own = ProcessId.own()
    assert own.is_alive() is True
    assert own == ProcessId.own() == id_of(os.getpid())
    assert str(own) == f"process {os.getpid()} on {own.host}"


def test_a_process_lives_until_it_is_killed() -> None:
    with running("sleep", "60") as process:
        other = id_of(process.pid)
        assert other.is_alive() is True
        process.kill()
        # Nobody has asked for its exit status yet.
        wait_until(lambda: other.is_alive() is False)
        assert Path(f"/proc/{process.pid}").exists()
        process.wait()
        assert other.is_alive() is False


@pytest.mark.skipif(
    platform.machine() not in EXIT_OF_A_THREAD, reason="the system call's number is not known"
)
def test_a_process_whose_other_threads_go_on_lives() -> None:
    code = f"""
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
print(flush=True)
ctypes.CDLL(None).syscall({EXIT_OF_A_THREAD[platform.machine()]}, 0)
"""
    with running(sys.executable, "-c", code) as process:
        other, stat = id_of(process.pid), Path(f"/proc/{process.pid}/stat")
        wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "Z")
        assert other.is_alive() is True
        process.kill()
        wait_until(lambda: other.is_alive() is False)


def test_a_process_that_was_given_the_id_again_is_another() -> None:
    own = ProcessId.own()
    assert own.born
    assert replace(own, born=own.born + 1).is_alive() is False
    assert replace(own, born=None).is_alive() is True, "as far as can be known"


@pytest.mark.parametrize("pid", [2**22 + 1, 2**31 - 1, 2**31, 2**70])
def test_ids_that_no_process_has(pid: int) -> None:
    assert replace(ProcessId.own(), pid=pid).is_alive() is False
    assert replace(ProcessId.own(), pid=pid, born=None).is_alive() is False


@pytest.mark.parametrize("key", ["host", "boot", "pid_namespace"])
@pytest.mark.parametrize("value", ["", "another"])
def test_what_runs_elsewhere_cannot_be_seen(key: str, value: str) -> None:
    process = ProcessId.read({**ProcessId.own().fields(), key: value})
    assert process
    assert process.is_alive() is None


def test_names_of_programs_cannot_confuse(tmp_path: Path) -> None:
    program = tmp_path / "a) Z 1 (b"
    program.symlink_to("/bin/sleep")
    with running(str(program), "60") as process:
        assert id_of(process.pid).is_alive() is True


def test_what_cannot_be_looked_up_is_not_taken_as_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """All files of the observer are in use, or /proc hides what others run."""
    own = ProcessId.own()

    def not_allowed(_pid: int, _signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr(processes, "_stat", lambda _pid: None)
    assert own.is_alive() is None
    monkeypatch.setattr(os, "kill", not_allowed)
    assert own.is_alive() is None
    assert replace(own, born=None).is_alive() is True


def test_a_process_that_ends_while_it_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with running("sleep", "60") as process:
        other = id_of(process.pid)

        def end(_pid: int) -> None:
            process.kill()
            process.wait()

        monkeypatch.setattr(processes, "_stat", end)
        assert other.is_alive() is False


@pytest.fixture
def forgetful() -> Iterator[None]:
    """What is known of this machine is asked anew, here and after the test."""
    asked = (processes._boot, processes._pid_namespace, processes._proc_is_ours)
    for ask in asked:
        ask.cache_clear()
    yield
    for ask in asked:
        ask.cache_clear()


def test_without_proc(monkeypatch: pytest.MonkeyPatch, forgetful: None) -> None:
    monkeypatch.setattr(processes, "Path", lambda path: Path(path.replace("/proc", "/no-proc")))
    own = ProcessId.own()
    assert (own.boot, own.pid_namespace, own.born) == ("", "", None)
    assert ProcessId.read(own.fields()) == own
    assert own.is_alive() is True
    with running("sleep", "60") as process:
        other = replace(own, pid=process.pid)
        assert other.is_alive() is True
        process.kill()
        process.wait()
        assert other.is_alive() is False


def test_the_proc_of_another_namespace_is_not_believed(
    monkeypatch: pytest.MonkeyPatch, forgetful: None
) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 2**21)
    assert ProcessId.own().born is None


def test_a_module_of_ours_takes_none_from_the_current_folder(tmp_path: Path) -> None:
    for name in ("select", "typing", "signal", "retrain"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('foreign code was run')\n")
    command = [*module_command("retrain"), "--version"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"retrain ")


def test_every_program_of_ours_is_started_so() -> None:
    package = Path(retrain.__file__).parent
    naked = [
        path.name
        for path in package.rglob("*.py")
        if re.search(r'sys\.executable, "-[mc]"|\{python\} -m', path.read_text())
    ]
    assert naked == []
