"""Locks: one holder at a time, whoever dies and whenever."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrain import locks
from retrain.locks import LOCK_FILE, FolderLock, LockedError, LockLostError, read_lock
from retrain.processes import ProcessId

PATIENCE_S = 90.0
"""Longer than anything here takes on a busy machine: only so that a hang fails."""

HEAD = """
import errno, os, random, resource, signal, socket, sys, time
from pathlib import Path
folder, links, host = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
if host:
    socket.gethostname = lambda: host
def no_links(*_):
    raise PermissionError(errno.EPERM, "Operation not permitted")
if links == "no links":
    os.link = no_links
from retrain import locks
from retrain.locks import FolderLock, LockedError
"""

HOLD = """
lock = FolderLock(folder, beat_s=0.05, stale_s=0.5)
try:
    lock.acquire()
except LockedError as error:
    print("locked by", error.holder.pid, flush=True)
else:
    print("held", flush=True)
    sys.stdin.read()
    lock.release()
"""

COUNT = """
# Possession is shown by a link that only one process can make, and used to count without a lock
# of its own. A killed process leaves the link; everybody else alive in there is an error.
chance, inside, counter = random.Random(os.getpid()), folder / "inside", folder / "counter"
def ended(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True
print("ready", flush=True)
sys.stdin.readline()
for _ in range(4):
    with FolderLock(folder, beat_s=0.5, stale_s=2.0).acquire(wait_s=80) as lock:
        while True:
            try:
                os.symlink(str(os.getpid()), inside)
                break
            except FileExistsError:
                other = int(os.readlink(inside))
                if not ended(other):
                    sys.exit(f"{other} is inside, and so is {os.getpid()}")
                inside.unlink()
        count = int(counter.read_text() or 0) + 1
        time.sleep(chance.uniform(0, 0.02))
        aside = folder / f"counter.{os.getpid()}"
        aside.write_text(str(count))
        aside.replace(counter)
        with (folder / "counted").open("a") as file:
            file.write(f"{count}\\n")
        lock.check()
        inside.unlink()
print("through", flush=True)
"""

STRIKE = """
# A signal to itself before each line of locks.py in turn, while it takes over a dead lock.
real_sleep = time.sleep
time.sleep = lambda seconds: real_sleep(min(seconds, 0.004))
mine = lambda: FolderLock(folder, beat_s=0.02, stale_s=0.1)

def dead_lock():
    pid = os.fork()
    if pid == 0:
        mine().acquire()
        os._exit(0)
    os.waitpid(pid, 0)
    assert (folder / ".lock").exists()

def start(number, line):
    answer, told = os.pipe()
    wait, go = os.pipe()
    pid = os.fork()
    if pid:
        os.close(told), os.close(wait)
        return pid, answer, go
    os.close(answer), os.close(go)
    count = 0
    def trace(frame, event, _):
        nonlocal count
        if frame.f_code.co_filename != locks.__file__:
            return None
        if event == "line":
            count += 1
            if count == line:
                os.kill(os.getpid(), number)
        return trace
    try:
        sys.settrace(trace)
        lock = mine().acquire()
        sys.settrace(None)
        if count < line:
            os._exit(7)
        os.write(told, b"held")
        os.read(wait, 1)
        lock.check()
        os._exit(0)
    except LockedError:
        os.write(told, b"locked")
        os._exit(0)
    finally:
        os._exit(1)

def clean():
    with mine().acquire() as lock:
        lock.check()
    left = [path.name for path in folder.iterdir()]
    assert not left, left

line = 1 - STRIDE
while True:
    line += STRIDE
    dead_lock()
    pid, answer, go = start(NUMBER, line)
    _, status = os.waitpid(pid, os.WUNTRACED)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 7, (line, status)
        break
    if os.WIFSTOPPED(status):
        lock = mine()
        try:
            lock.acquire()
            expected = b"locked"
        except LockedError as error:
            assert error.holder.pid == pid, (line, error)
            expected = b"held"
        os.kill(pid, signal.SIGCONT)
        said = os.read(answer, 9)
        assert said == expected, (line, said, expected)
        if expected == b"locked":
            lock.check()
        lock.release()
        os.close(go)
        _, status = os.waitpid(pid, 0)
        assert status == 0, (line, status)
    else:
        os.close(go)
    os.close(answer)
    clean()
clean()
print("lines", line)
"""


class Program:
    """One of the programs above, on a folder."""

    def __init__(self, text: str, folder: Path, links: str = "", host: str = "") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", HEAD + text, str(folder), links, host],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    def line(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()

    def go(self) -> None:
        assert self._process.stdin
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def end(self) -> tuple[int, str]:
        """The exit status, and what was printed since."""
        output, errors = self._process.communicate(timeout=PATIENCE_S)
        return self._process.returncode, output + errors

    def remove(self) -> None:
        self._process.kill()
        self._process.communicate()


Start = Callable[..., Program]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    programs: list[Program] = []

    def start_one(text: str, links: str = "", host: str = "") -> Program:
        programs.append(Program(text, tmp_path, links, host))
        return programs[-1]

    yield start_one
    for program in programs:
        program.remove()


def quick(folder: Path, stale_s: float = 0.4) -> FolderLock:
    return FolderLock(folder, beat_s=0.05, stale_s=stale_s)


def write_lock(folder: Path, **changes: Any) -> Path:
    """The lock of another process, by default one on another machine that says nothing more."""
    fields = {
        "token": "ab" * 16,
        "since": "then",
        **ProcessId("elsewhere", 7, "b", "n", 9).fields(),
    }
    path = folder / LOCK_FILE
    path.write_text(json.dumps({**fields, **changes}))
    return path


def dead_process() -> ProcessId:
    process = subprocess.Popen(["sleep", "60"])
    fields = {**ProcessId.own().fields(), "pid": process.pid}
    process.kill()
    process.wait()
    dead = ProcessId.read(fields)
    assert dead
    assert dead.is_alive() is False
    return dead


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def later(seconds: float, action: Callable[[], object]) -> Iterator[None]:
    timer = threading.Timer(seconds, action)
    timer.start()
    yield
    timer.join()


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    with quick(tmp_path).acquire() as lock:
        lock.check()
        found = read_lock(lock.path)
        assert found
        assert found.holder == ProcessId.own()
        assert names(tmp_path) == [LOCK_FILE]
        with pytest.raises(LockedError, match=rf"is in use by process {os.getpid()} on") as caught:
            quick(tmp_path).acquire()
        assert caught.value.holder == ProcessId.own()
        assert caught.value.since == found.since
        with pytest.raises(RuntimeError, match="held already"):
            lock.acquire()
        lock.check()
    assert names(tmp_path) == []


def test_a_lock_object_can_be_used_again(tmp_path: Path) -> None:
    lock = quick(tmp_path)
    for _ in range(3):
        with lock.acquire():
            touched = lock.path.stat().st_mtime_ns
            end = time.monotonic() + PATIENCE_S
            while lock.path.stat().st_mtime_ns == touched:
                assert time.monotonic() < end, "it does not beat"
                time.sleep(0.01)
            lock.check()
            assert not lock.lost
    lock.release()
    lock.check()
    assert names(tmp_path) == []


def test_a_killed_holder_is_replaced_at_once(tmp_path: Path, start: Start) -> None:
    holder = start(HOLD)
    assert holder.line() == "held"
    with pytest.raises(LockedError, match=f"process {holder.pid} on"):
        quick(tmp_path).acquire()
    holder.kill()
    holder.end()
    with FolderLock(tmp_path, stale_s=1e6).acquire():
        assert names(tmp_path) == [LOCK_FILE]
    assert names(tmp_path) == []


def test_a_process_with_the_dead_holders_id_is_not_it(tmp_path: Path) -> None:
    own = ProcessId.own()
    assert own.born
    write_lock(tmp_path, **{**own.fields(), "born": own.born - 1})
    with FolderLock(tmp_path, stale_s=1e6).acquire() as lock:
        lock.check()


def test_a_stopped_holder_lives(tmp_path: Path, start: Start) -> None:
    holder = start(HOLD)
    assert holder.line() == "held"
    holder.kill(signal.SIGSTOP)
    with pytest.raises(LockedError, match=f"process {holder.pid} on"):
        quick(tmp_path).acquire(wait_s=1.0)


def test_waits_for_a_living_holder_and_says_so_once(tmp_path: Path, start: Start) -> None:
    holder = start(HOLD)
    assert holder.line() == "held"
    said: list[str] = []
    with pytest.raises(LockedError):
        quick(tmp_path).acquire(on_wait=said.append)
    assert not said, "nobody waited"
    with pytest.raises(LockedError):
        quick(tmp_path).acquire(wait_s=0.3, on_wait=said.append)
    assert len(said) == 1
    with later(0.3, lambda: holder.kill(signal.SIGTERM)):
        quick(tmp_path).acquire(wait_s=PATIENCE_S, on_wait=said.append).release()
    assert len(said) == 2
    assert f"process {holder.pid} on" in said[1]
    assert "waiting for it" in said[1]


def test_a_silent_holder_on_another_machine_is_dead(tmp_path: Path, start: Start) -> None:
    holder = start(HOLD, host="elsewhere")
    assert holder.line() == "held"
    holder.kill(signal.SIGSTOP)
    said: list[str] = []
    with quick(tmp_path).acquire(on_wait=said.append) as lock:
        assert len(said) == 1
        assert f"process {holder.pid} on elsewhere" in said[0]
        # It wakes, gives "its" lock back, and must not take ours along.
        holder.kill(signal.SIGCONT)
        assert holder.end()[0] == 0
        lock.check()
    assert names(tmp_path) == []


def test_a_beating_holder_on_another_machine_lives(tmp_path: Path, start: Start) -> None:
    holder = start(HOLD, host="elsewhere")
    assert holder.line() == "held"
    said: list[str] = []
    with pytest.raises(LockedError, match=f"process {holder.pid} on elsewhere"):
        quick(tmp_path, stale_s=PATIENCE_S).acquire(wait_s=0.5, on_wait=said.append)
    assert len(said) == 1
    assert holder.end()[0] == 0
    quick(tmp_path).acquire().release()


def test_any_touch_is_a_sign_of_life(tmp_path: Path) -> None:
    path = write_lock(tmp_path)
    with later(0.1, lambda: os.utime(path, (0, 0))), pytest.raises(LockedError, match="elsewhere"):
        quick(tmp_path, stale_s=PATIENCE_S).acquire()


@pytest.mark.parametrize("moment", [0, 4_000_000_000])
def test_wrong_clocks_change_nothing(tmp_path: Path, start: Start, moment: int) -> None:
    os.utime(write_lock(tmp_path), (moment, moment))
    with quick(tmp_path).acquire() as lock:
        os.utime(lock.path, (moment, moment))
        lock.check()
        with pytest.raises(LockedError):
            quick(tmp_path).acquire()
    holder = start(HOLD, host="elsewhere")
    assert holder.line() == "held"
    os.utime(tmp_path / LOCK_FILE, (moment, moment))
    with pytest.raises(LockedError):
        quick(tmp_path, stale_s=PATIENCE_S).acquire()


def test_a_lock_that_is_given_back_while_it_is_watched(tmp_path: Path) -> None:
    path = write_lock(tmp_path)
    with later(0.1, path.unlink), quick(tmp_path, stale_s=PATIENCE_S).acquire() as lock:
        lock.check()


def test_a_lock_that_changes_hands_while_it_is_watched(tmp_path: Path) -> None:
    write_lock(tmp_path)
    here = {**dead_process().fields(), "token": "cd" * 16}
    with later(0.1, lambda: write_lock(tmp_path, **here)):
        quick(tmp_path, stale_s=PATIENCE_S).acquire().release()


def test_a_holder_that_wakes_while_another_has_the_claim_keeps_its_lock(tmp_path: Path) -> None:
    path = write_lock(tmp_path)
    lock = quick(tmp_path)
    found = read_lock(path)
    assert found
    os.utime(path)
    assert not lock._take_over(found, 0.0)
    assert names(tmp_path) == [LOCK_FILE]


@pytest.mark.parametrize("links", ["links", "no links"])
def test_of_many_that_find_a_dead_holder_one_wins(tmp_path: Path, start: Start, links: str) -> None:
    write_lock(tmp_path)
    programs = [start(HOLD, links) for _ in range(4)]
    said = [program.line() for program in programs]
    (winner,) = [p for p, line in zip(programs, said, strict=True) if line == "held"]
    assert sum(line.startswith("locked by") for line in said) == 3
    assert winner.end() == (0, "")
    assert names(tmp_path) == []


TORN = {
    "empty": b"",
    "torn": b'{"token": "0123',
    "no object": b"[1, 2]",
    "null": b"null",
    "no text": b"\xff\xfe\x00{",
    "deep": b"[" * 100_000,
    "a path as token": b'{"token": "../../../x"}',
    "a token that is too long": b'{"token": "' + b"a" * 5000 + b'"}',
    "nothing in it": b"{}",
    "no such process id": json.dumps({"host": "h", "pid": 2**70, "token": "x"}).encode(),
}


@pytest.mark.parametrize("name", TORN)
def test_a_file_that_says_nothing_is_taken_over_like_one_from_elsewhere(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / LOCK_FILE
    path.write_bytes(TORN[name])
    found = read_lock(path)
    assert found
    assert found.token == ""
    said: list[str] = []
    with quick(tmp_path, stale_s=0.1).acquire(on_wait=said.append) as lock:
        lock.check()
        assert names(tmp_path) == [LOCK_FILE]
    assert len(said) == 1
    path.write_bytes(TORN[name])
    with later(0.1, lambda: os.utime(path, (1, 1))), pytest.raises(LockedError):
        quick(tmp_path, stale_s=PATIENCE_S).acquire()


def test_a_name_with_nothing_behind_it_does_not_hang(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).symlink_to(tmp_path / "nothing")
    with pytest.raises(LockedError, match="an unknown process"):
        quick(tmp_path).acquire()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
FIELDS = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(["token", "since", *ProcessId.own().fields()], JSON)
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=(FIELDS | JSON).map(lambda value: json.dumps(value).encode()) | st.binary())
def test_any_file_can_be_read(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / LOCK_FILE
    path.write_bytes(data)
    found = read_lock(path)
    assert found
    assert found == read_lock(path)
    assert str(LockedError(path, found.holder, found.since))


def test_no_file_no_lock(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert read_lock(tmp_path / LOCK_FILE) is None
    assert read_lock(tmp_path / "file" / LOCK_FILE) is None


def test_a_lock_that_was_taken_over_is_known_as_lost(tmp_path: Path) -> None:
    with quick(tmp_path).acquire() as lock:
        write_lock(tmp_path)
        with pytest.raises(LockLostError, match="was taken over by another process"):
            lock.check()
        assert lock.lost
    assert names(tmp_path) == [LOCK_FILE], "the other's lock stays"


@pytest.mark.parametrize("how", ["removed", "moved"])
def test_a_folder_that_vanishes_loses_its_lock(tmp_path: Path, how: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with quick(folder).acquire() as lock:
        if how == "moved":
            folder.rename(tmp_path / "other")
        else:
            lock.path.unlink()
            folder.rmdir()
        with pytest.raises(LockLostError, match="is gone"):
            lock.check()
    with pytest.raises(FileNotFoundError):
        quick(folder).acquire()


def test_the_beat_notices_a_lost_lock(tmp_path: Path) -> None:
    with quick(tmp_path).acquire() as lock:
        write_lock(tmp_path)
        end = time.monotonic() + PATIENCE_S
        while not lock.lost:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_a_file_system_that_fails_for_a_moment_loses_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with quick(tmp_path).acquire() as lock:
        with monkeypatch.context() as patch:
            patch.setattr(locks, "read_lock", fail)
            lock.check()
            time.sleep(0.2)
            assert not lock.lost
        lock.check()


def test_a_lock_that_must_not_be_read_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(_path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    write_lock(tmp_path)
    monkeypatch.setattr(locks, "read_lock", denied)
    with pytest.raises(PermissionError):
        quick(tmp_path).acquire()
    with pytest.raises(PermissionError):
        quick(tmp_path)._create()
    assert names(tmp_path) == [LOCK_FILE]


def test_a_file_replaced_under_a_reader_of_nfs_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, failures = write_lock(tmp_path), [errno.ESTALE] * 2
    fstat = os.fstat

    def stale(descriptor: int) -> os.stat_result:
        if failures:
            raise OSError(failures.pop(), "Stale file handle")
        return fstat(descriptor)

    monkeypatch.setattr(os, "fstat", stale)
    assert read_lock(path)
    failures.extend([errno.ESTALE] * 3)
    with pytest.raises(OSError, match="Stale"):
        read_lock(path)


@pytest.mark.parametrize("call", ["link", "replace"])
def test_an_answer_that_nfs_lost_is_not_taken_as_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    link, replace = os.link, Path.replace

    def link_twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    def replace_twice(source: Path, target: Path) -> None:
        replace(source, target)
        replace(source, target)

    if call == "link":
        monkeypatch.setattr(os, "link", link_twice)
    else:
        write_lock(tmp_path, **dead_process().fields())
        monkeypatch.setattr(Path, "replace", replace_twice)
    with quick(tmp_path).acquire() as lock:
        lock.check()
    assert names(tmp_path) == []


@pytest.mark.parametrize("links", ["links", "no links"])
def test_a_full_disk_is_an_error_of_the_disk_and_leaves_nothing(
    tmp_path: Path, start: Start, links: str
) -> None:
    program = """
def fill():
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
if links == "links":
    fill()
else:
    os.link = lambda *_: (fill(), no_links())
try:
    FolderLock(folder).acquire()
except OSError as error:
    print(error.errno == errno.EFBIG)
"""
    assert start(program, links).end() == (0, "True\n")
    assert names(tmp_path) == []


def test_an_empty_file_that_was_replaced_before_it_was_written_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without hard links, a process was stopped there, and another took its file for a torn one."""
    fdopen = os.fdopen

    def no_links(_source: Path, _target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    def replaced(descriptor: int, mode: str) -> object:
        (tmp_path / LOCK_FILE).unlink()
        write_lock(tmp_path, **ProcessId.own().fields())
        return fdopen(descriptor, mode)

    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(os, "fdopen", replaced)
    with pytest.raises(LockedError):
        quick(tmp_path).acquire()
    assert names(tmp_path) == [LOCK_FILE]


def test_a_process_that_cannot_beat_does_not_keep_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="new thread"):
        quick(tmp_path).acquire()
    assert names(tmp_path) == []


def test_a_forked_child_has_no_part_in_the_lock(tmp_path: Path, start: Start) -> None:
    program = """
import threading
free, lock = FolderLock(folder), FolderLock(folder, beat_s=0.02).acquire()
pid = os.fork()
if pid == 0:
    assert threading.active_count() == 1
    lock.check()
    lock.release()
    with lock:
        pass
    for other in (free, lock):
        try:
            other.acquire()
        except LockedError as error:
            assert error.holder.pid == os.getppid()
        else:
            os._exit(1)
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
lock.check()
try:
    free.acquire()
except LockedError:
    lock.release()
    with free.acquire():
        print("held")
"""
    assert start(program).end() == (0, "held\n")
    assert names(tmp_path) == []


def test_who_takes_the_lock_clears_away_what_the_dead_left(tmp_path: Path) -> None:
    own, dead, aside = ProcessId.own(), dead_process(), "ef" * 16
    write_lock(tmp_path, **dead.fields())
    left = {
        f".lock.{aside}.new": dead,
        ".lock.0123456789ab": dead,
        f".lock.0123456789ab.{aside}.new": dead,
        ".lock.0123456789ab.ba9876543210": ProcessId("elsewhere", 3),
        ".lock.ba9876543210": None,
    }
    kept = {
        f".lock.{'01' * 16}.new": own,
        ".0123456789ab": dead,
        ".lockfile": dead,
        ".lock.mine": dead,
        "run.json": dead,
    }
    for name, process in {**left, **kept}.items():
        fields = {"token": aside, **process.fields()} if process else {}
        (tmp_path / name).write_text(json.dumps(fields))
    with quick(tmp_path).acquire():
        assert names(tmp_path) == sorted([LOCK_FILE, *kept])


def test_a_contender_whose_file_was_cleared_away_looks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, thefts = os.link, [1, 2]

    def link_of_nothing(source: Path, target: Path) -> None:
        if thefts:
            thefts.pop()
            source.unlink()
        link(source, target)

    monkeypatch.setattr(os, "link", link_of_nothing)
    with quick(tmp_path).acquire() as lock:
        lock.check()
    assert not thefts


@pytest.mark.parametrize(
    ("number", "links", "stride"),
    [
        (signal.SIGKILL, "links", 1),
        (signal.SIGKILL, "no links", 3),
        (signal.SIGSTOP, "links", 2),
        (signal.SIGSTOP, "no links", 5),
    ],
)
def test_a_contender_may_die_or_stop_at_any_line(
    start: Start, number: signal.Signals, links: str, stride: int
) -> None:
    """Killed: the next one gets the lock, and clears everything away. Stopped: one of the two
    gets it, and the other is told by whom."""
    program = STRIKE.replace("NUMBER", str(int(number))).replace("STRIDE", str(stride))
    code, output = start(program, links).end()
    assert code == 0, output
    assert int(output.split()[1]) > 100


@pytest.mark.parametrize(("links", "seed"), [("links", 1), ("no links", 2)])
def test_a_stampede_with_casualties(tmp_path: Path, start: Start, links: str, seed: int) -> None:
    chance = random.Random(seed)
    (tmp_path / "counter").touch()
    programs = {program.pid: program for program in [start(COUNT, links) for _ in range(12)]}
    for program in programs.values():
        assert program.line() == "ready"
    for program in programs.values():
        program.go()
    killed: set[int] = set()
    for _ in range(6):
        time.sleep(chance.uniform(0.0, 0.15))
        left = [pid for pid in programs if pid not in killed]
        found = read_lock(tmp_path / LOCK_FILE) if chance.random() < 0.6 else None
        holder = found.holder.pid if found and found.holder else None
        victim = holder if holder in left else chance.choice(left)
        programs[victim].kill()
        killed.add(victim)
    for pid, program in programs.items():
        code, output = program.end()
        assert (code, output) == (0, "through\n") or (pid in killed and code == -signal.SIGKILL)
        assert output in {"", "through\n"}
    counted = [int(line) for line in (tmp_path / "counted").read_text().split()]
    assert counted == sorted(set(counted)), "two were inside at once"
    assert len(counted) >= 4 * 6
    with quick(tmp_path).acquire():
        pass
    assert [name for name in names(tmp_path) if name.startswith(LOCK_FILE)] == []
