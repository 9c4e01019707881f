"""What befalls real campaigns: killed, stopped twice, hung, out of memory, no disk, a wrong clock.

Each disaster is made to happen, to real processes on real files. Afterwards `status` must tell
what happened, no process may be left, and `retrain resume` must end with the files of a campaign
that was never disturbed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from chaos import MARK, differences

from retrain.files import RunRecord, count_lines, read_json
from retrain.training.resume import find_resume_point

TOML = """
[training]
batch_size = 2
group_size = 4
max_tokens = 24
lr = 1e-3
save_every = 4

[evaluation]
num_problems = 4

[reward]
type = "custom"
custom_module = "trouble"
custom_function = "reward"

[logging]
log_dir = "{logs}"

[campaign]
seeds = [1]
max_steps = 20
parallel = true
max_workers = 2
max_retries = {retries}
worker_timeout = {timeout}

[[campaign.conditions]]
advantage_mode = "grpo"
transform_mode = "none"

[[campaign.conditions]]
advantage_mode = "maxrl"
transform_mode = "gtpo"
"""

TROUBLE = """
import os, resource, time
from pathlib import Path

HERE = Path(__file__).parent
calls = 0

def reward(response, reference):
    global calls
    calls += 1
    kind = os.environ.get("TROUBLE", "")
    if kind and calls == 100:
        try:
            (HERE / "struck").mkdir()
        except FileExistsError:
            pass
        else:
            strike(kind)
    return float(len(response) % 3)

def strike(kind):
    if kind == "hang":
        hang_here()
    if kind == "memory":
        used = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
        # A new thread alone may reserve 2**26 bytes of addresses.
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, resource.RLIM_INFINITY))
        bytearray(2**32)
    if kind == "hoard":
        kept = []
        while True:
            kept.append(bytes(range(256)) * 2**18)
    if kind == "error":
        raise ValueError("this reward is broken")

def hang_here():
    while True:
        time.sleep(3600)
"""


class Place:
    """A folder with a campaign in it, and the processes that were started from there."""

    def __init__(self, folder: Path, logs: str = "logs", retries: int = 1, timeout: float = 0.0):
        self.folder = folder
        self.logs = folder / logs
        self._mark = uuid.uuid4().hex
        folder.mkdir(exist_ok=True)
        (folder / "trouble.py").write_text(TROUBLE)
        (folder / "campaign.toml").write_text(
            TOML.format(logs=logs, retries=retries, timeout=timeout)
        )

    def environment(self, **extra: str) -> dict[str, str]:
        programs = str(Path(sys.executable).parent)
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        own = {MARK: self._mark, "OMP_NUM_THREADS": "1", "PATH": path, "COLUMNS": "200"}
        return {**os.environ, **own, **extra}

    def start(self, *arguments: str, **extra: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "retrain", *arguments],
            cwd=self.folder,
            env=self.environment(**extra),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, **extra: str) -> tuple[int, str]:
        process = self.start(*arguments, **extra)
        output, _ = process.communicate(timeout=300)
        return process.returncode, output

    def started(self, **extra: str) -> tuple[subprocess.Popen[str], Path]:
        """A campaign both of whose runs have a checkpoint, and its folder."""
        process = self.start("campaign.toml", **extra)
        wait_until(lambda: len(list(self.logs.glob("*/runs/*/checkpoints/step_*"))) >= 2, process)
        campaign = self.campaign()
        wait_until(lambda: all(find_resume_point(run).step for run in runs_of(campaign)), process)
        return process, campaign

    def campaign(self) -> Path:
        (found,) = self.logs.glob("campaign_*")
        return found

    def states(self, campaign: Path) -> dict[str, str]:
        code, output = self.run("status", str(campaign), "--json")
        assert code == 0, output
        return {run["name"]: run["state"] for run in json.loads(output)["campaigns"][0]["runs"]}

    def left_over(self) -> list[str]:
        """Processes that were started from here and still live; killed ones get a moment."""
        deadline = time.monotonic() + 30
        while (left := list(self._processes())) and time.monotonic() < deadline:
            time.sleep(0.1)
        return left

    def _processes(self) -> Iterator[str]:
        mark = f"{MARK}={self._mark}".encode()
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdecimal() and mark in (entry / "environ").read_bytes().split(b"\0"):
                    yield (entry / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue


def runs_of(campaign: Path) -> list[Path]:
    return sorted((campaign / "runs").iterdir())


def pid_of(run_dir: Path) -> int:
    return int(RunRecord.read(run_dir).data["pid"])


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        if process.poll() is not None:
            raise AssertionError(f"ended too early: {process.communicate()[0]}")
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A campaign that nothing befell."""
    place = Place(tmp_path_factory.mktemp("undisturbed"))
    code, output = place.run("campaign.toml")
    assert code == 0, output
    return place.campaign()


def assert_same(campaign: Path, undisturbed: Path) -> None:
    """Every file but those that name their own folder is as in the undisturbed campaign."""
    named = ("config.toml", "campaign.toml", "manifest.json")
    found = [text for text in differences(undisturbed, campaign) if named_not(text, named)]
    assert found == []


def named_not(text: str, names: tuple[str, ...]) -> bool:
    return not any(f"{name} differs" in text for name in names)


def resume(place: Place, campaign: Path, undisturbed: Path) -> str:
    code, output = place.run("resume", str(campaign))
    assert code == 0, output
    assert set(place.states(campaign).values()) == {"done"}
    assert_same(campaign, undisturbed)
    assert place.left_over() == []
    return output


def test_campaign_and_workers_killed(tmp_path: Path, undisturbed: Path) -> None:
    place = Place(tmp_path / "here")
    process, campaign = place.started()
    process.kill()
    for run_dir in runs_of(campaign):
        os.kill(pid_of(run_dir), signal.SIGKILL)
    process.wait()
    assert place.left_over() == []
    assert set(place.states(campaign).values()) == {"lost"}
    code, output = place.run("resume-check", str(campaign), "--json")
    assert code == 0
    for outlook in json.loads(output):
        assert outlook["resumes"]
        assert outlook["step"] % 4 == 0
        assert outlook["step"] >= 4
        assert outlook["lost_steps"] <= 4
    resume(place, campaign, undisturbed)
    assert not (campaign / ".lock").exists()


def test_campaign_killed_and_resumed_while_its_workers_finish_their_step(
    tmp_path: Path, undisturbed: Path
) -> None:
    place = Place(tmp_path / "here")
    process, campaign = place.started()
    process.kill()
    process.wait()
    resume(place, campaign, undisturbed)


def test_sigterm_loses_no_step(tmp_path: Path, undisturbed: Path) -> None:
    place = Place(tmp_path / "here")
    process, campaign = place.started()
    process.terminate()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert place.left_over() == []
    assert f"retrain resume logs/{campaign.name}" in output
    assert set(place.states(campaign).values()) == {"stopped"}
    for run_dir in runs_of(campaign):
        assert find_resume_point(run_dir).step == count_lines(run_dir / "metrics.jsonl", 100)
    resume(place, campaign, undisturbed)


def test_ctrl_c_twice_ends_everything_at_once(tmp_path: Path, undisturbed: Path) -> None:
    place = Place(tmp_path / "here")
    process, campaign = place.started()
    for run_dir in runs_of(campaign):
        os.kill(pid_of(run_dir), signal.SIGSTOP)  # a worker that would not finish its step
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert place.left_over() == []
    assert set(place.states(campaign).values()) == {"stopped"}
    resume(place, campaign, undisturbed)


def test_a_second_resume_is_told_who_is_at_it(tmp_path: Path, undisturbed: Path) -> None:
    place = Place(tmp_path / "here")
    process, campaign = place.started()
    # Else the campaign itself may write its manifest meanwhile.
    process.send_signal(signal.SIGSTOP)
    before = (campaign / "manifest.json").read_bytes()
    code, output = place.run("resume", str(campaign))
    assert before == (campaign / "manifest.json").read_bytes()
    process.send_signal(signal.SIGCONT)
    assert code == 2, output
    assert f"is in use by process {process.pid} on " in output
    assert ", since 20" in output
    run_dir = runs_of(campaign)[0]
    assert process.poll() is None
    assert process.wait(timeout=120) == 0
    assert_same(campaign, undisturbed)
    assert run_dir.exists()


def test_a_worker_that_hangs_is_found_killed_and_replaced(
    tmp_path: Path, undisturbed: Path
) -> None:
    place = Place(tmp_path / "here", timeout=12.0)
    code, output = place.run("campaign.toml", TROUBLE="hang")
    assert code == 0, output
    assert "will be tried again: hung: its worker finished no step for 12 s" in output
    assert "[campaign].worker_timeout" in output
    campaign = place.campaign()
    logs = [run_dir / "run.log" for run_dir in runs_of(campaign)]
    assert "in hang_here" in "".join(log.read_text() for log in logs if log.exists())
    assert_same(campaign, undisturbed)
    assert place.left_over() == []


def test_out_of_memory_is_tried_again(tmp_path: Path, undisturbed: Path) -> None:
    place = Place(tmp_path / "here")
    code, output = place.run("campaign.toml", TROUBLE="memory")
    assert code == 0, output
    assert "will be tried again: the reward trouble.reward raised MemoryError" in output
    assert_same(place.campaign(), undisturbed)


def memory_cgroup() -> Path | None:
    """A group of processes that may have 3 GiB together; None where we may make none."""
    for root, limit in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        group = root / f"retrain-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit).write_text(str(3 * 2**30))
        except OSError:
            group.rmdir()
            continue
        return group
    return None


@pytest.fixture
def cgroup() -> Iterator[Path]:
    group = memory_cgroup()
    if group is None:
        pytest.skip("we may not limit memory here; other tests kill workers, or let them fail")
    yield group
    group.rmdir()


def test_the_kernel_kills_a_worker_for_its_memory(
    tmp_path: Path, undisturbed: Path, cgroup: Path
) -> None:
    """It takes the worker that wants too much, neither the campaign nor the other worker."""
    place = Place(tmp_path / "here")
    script = f"echo $$ > {cgroup}/cgroup.procs; exec {sys.executable} -m retrain campaign.toml"
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=place.folder,
        env=place.environment(TROUBLE="hoard"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("will be tried again") == 1
    assert "will be tried again: its worker was killed by SIGKILL; the usual cause is too" in (
        done.stdout
    )
    assert_same(place.campaign(), undisturbed)
    assert place.left_over() == []


def test_an_error_of_its_own_is_not_tried_again_unless_asked(
    tmp_path: Path, undisturbed: Path
) -> None:
    place = Place(tmp_path / "here")
    code, output = place.run("campaign.toml", TROUBLE="error")
    assert code == 1, output
    assert "will be tried again" not in output
    campaign = place.campaign()
    (failed,) = [name for name, state in place.states(campaign).items() if state == "failed"]
    record = RunRecord.read(campaign / "runs" / failed)
    assert record.data["cause"] == "error"
    code, output = place.run("resume", str(campaign))
    assert code == 1, output
    assert "1 failed by an error of its own (--retry-failed tries again)" in output
    assert RunRecord.read(campaign / "runs" / failed).data == record.data
    code, output = place.run("resume", str(campaign), "--retry-failed")
    assert code == 0, output
    assert_same(campaign, undisturbed)


def test_a_killed_worker_without_retries_fails_with_its_cause(
    tmp_path: Path, undisturbed: Path
) -> None:
    place = Place(tmp_path / "here", retries=0)
    process, campaign = place.started()
    victim = runs_of(campaign)[0]
    os.kill(pid_of(victim), signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    assert RunRecord.read(victim).data["cause"] == "killed"
    code, text = place.run("status", str(campaign))
    assert code == 0
    assert f"{victim.name} failed (killed) at step" in text
    assert f"next:     retrain resume logs/{campaign.name}" in output
    resume(place, campaign, undisturbed)


def test_the_campaigns_folder_is_moved_away(tmp_path: Path, undisturbed: Path) -> None:
    place = Place(tmp_path / "here")
    process, campaign = place.started()
    moved = tmp_path / "moved"
    campaign.rename(moved)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    assert "cannot be written any more" in output
    assert "The workers were stopped" in output
    assert "Traceback" not in output
    assert place.left_over() == []
    assert not list(place.logs.iterdir())
    resume(place, moved, undisturbed)


FULL_DISK = """
set -e
mkdir -p logs outside
fill
python -m retrain campaign.toml && echo "FIRST 0" || echo "FIRST $?"
python -m retrain status logs
make_room
python -m retrain resume logs/campaign_* && echo "SECOND 0" || echo "SECOND $?"
cp -a logs/campaign_* outside
"""

READ_ONLY = """
set -e
mkdir -p logs frozen outside
prepare
(python -m retrain campaign.toml && echo "FIRST 0" || echo "FIRST $?") &
until [ "$(ls -d logs/campaign_*/runs/*/checkpoints/step_* 2>/dev/null | wc -l)" -ge 2 ]; do
  sleep 0.05
done
freeze
wait
python -m retrain status logs
python -m retrain resume logs/campaign_* && echo "FROZEN 0" || echo "FROZEN $?"
thaw
python -m retrain resume logs/campaign_* && echo "SECOND 0" || echo "SECOND $?"
cp -a logs/campaign_* outside
"""

SMALL_DISK = """
fill() { mount -t tmpfs -o size=1500k none logs; }
make_room() { mount -o remount,size=100m logs; }
"""
SMALL_FILES = """
fill() { ulimit -S -f 200; }
make_room() { ulimit -S -f unlimited; }
"""
MOUNTED_READ_ONLY = """
prepare() { mount -t tmpfs -o size=100m none logs; }
freeze() { mount --bind logs frozen; mount -o remount,bind,ro frozen; mount --bind frozen logs; }
thaw() { umount logs; }
"""
NO_PERMISSION = """
prepare() { :; }
freeze() { chmod -R a-w logs; }
thaw() { chmod -R u+w logs; }
"""

# File systems that only the script and its children see.
OWN_MOUNTS: tuple[str, ...] = ("unshare", "--user", "--map-root-user", "--mount")
# Root may write everywhere, unless it lays that right down.
BOUND_BY_PERMISSIONS = ("setpriv", "--bounding-set", "-dac_override") if os.geteuid() == 0 else ()

MAY_MOUNT = subprocess.run([*OWN_MOUNTS, "true"], capture_output=True).returncode == 0
own_mounts = pytest.mark.skipif(
    not MAY_MOUNT,
    reason="this kernel lets nobody mount; the test beside it makes the same happen without",
)


def in_trouble(place: Place, within: tuple[str, ...], script: str) -> str:
    """What a script prints that makes the disk fail under `retrain`."""
    done = subprocess.run(
        [*within, "bash", "-c", script],
        cwd=place.folder,
        env=place.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_a_full_disk(tmp_path: Path, undisturbed: Path) -> None:
    """A small one of its own; where nobody may mount one, files that must not grow."""
    within, trouble, message = OWN_MOUNTS, SMALL_DISK, "No space left on device"
    if not MAY_MOUNT:
        within, trouble, message = (), SMALL_FILES, "File too large"
    place = Place(tmp_path / "here")
    output = in_trouble(place, within, trouble + FULL_DISK)
    first, second = output.split("FIRST ")
    assert second.startswith("1\n"), output
    assert message in first
    assert "make room" in first
    assert "retrain resume logs/campaign_" in first
    assert "Traceback" not in output
    assert "SECOND 0" in second, output
    (campaign,) = (place.folder / "outside").iterdir()
    assert_same(campaign, undisturbed)
    assert place.left_over() == []


@pytest.mark.parametrize(
    ("within", "trouble", "message"),
    [
        pytest.param(OWN_MOUNTS, MOUNTED_READ_ONLY, "Read-only file system", marks=own_mounts),
        (BOUND_BY_PERMISSIONS, NO_PERMISSION, "Permission denied"),
    ],
    ids=["read-only disk", "no permission"],
)
def test_a_log_folder_that_becomes_read_only(
    tmp_path: Path, undisturbed: Path, within: tuple[str, ...], trouble: str, message: str
) -> None:
    place = Place(tmp_path / "here")
    output = in_trouble(place, within, trouble + READ_ONLY)
    assert "FIRST 1" in output, output
    assert f"cannot be written any more: {message}" in output
    assert "FROZEN 1" in output, output
    assert "Traceback" not in output
    assert "SECOND 0" in output, output
    (campaign,) = (place.folder / "outside").iterdir()
    assert_same(campaign, undisturbed)
    assert place.left_over() == []


CLOCK = """
import datetime, os, time
from pathlib import Path

def offset():
    try:
        return float(Path(os.environ["CLOCK_OFFSET"]).read_text())
    except (OSError, ValueError):
        return 0.0

real_time = time.time

class Wrong(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.datetime.fromtimestamp(real_time() + offset(), tz)

time.time = lambda: real_time() + offset()
time.strftime = lambda text, moment=None, inner=time.strftime: inner(
    text, moment or time.localtime(time.time())
)
datetime.datetime = Wrong
"""


def test_a_clock_that_jumps_back(tmp_path: Path, undisturbed: Path) -> None:
    """By two days, in the middle of a campaign, which is then killed and resumed."""
    place = Place(tmp_path / "here")
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock" / "sitecustomize.py").write_text(CLOCK)
    hand = tmp_path / "offset"
    wrong = {"PYTHONPATH": str(tmp_path / "clock"), "CLOCK_OFFSET": str(hand)}
    process, campaign = place.started(**wrong)
    began = read_json(campaign / "manifest.json")["timestamp"]
    hand.write_text("-172800")
    rows = count_lines(runs_of(campaign)[0] / "metrics.jsonl", 1000)
    wait_until(lambda: count_lines(runs_of(campaign)[0] / "metrics.jsonl", 1000) > rows, process)
    process.kill()
    for run_dir in runs_of(campaign):
        os.kill(pid_of(run_dir), signal.SIGKILL)
    process.wait()
    code, output = place.run("status", str(campaign), "--json", **wrong)
    assert code == 0, output
    document: dict[str, Any] = json.loads(output)
    for run in document["campaigns"][0]["runs"]:
        assert run["state"] == "lost"
        assert run["row_age_s"] >= 0
    code, output = place.run("resume", str(campaign), **wrong)
    assert code == 0, output
    finished = read_json(runs_of(campaign)[0] / "run.json")["finished_at"]
    assert finished < began, "the clock was not wrong"
    assert_same(campaign, undisturbed)
    assert place.left_over() == []


def test_run_folder_is_removed(tmp_path: Path) -> None:
    """A single run whose folder vanishes says so and leaves."""
    place = Place(tmp_path / "here")
    (place.folder / "run.toml").write_text(
        (place.folder / "campaign.toml").read_text().split("[campaign]")[0]
        + "[algorithm]\nadvantage_mode = 'grpo'\ntransform_mode = 'none'\n"
    )
    process = place.start("run.toml", "--max-steps", "500", "--run-dir", "mine")
    wait_until(lambda: count_lines(place.folder / "mine" / "metrics.jsonl", 10) > 2, process)
    shutil.rmtree(place.folder / "mine", ignore_errors=True)
    shutil.rmtree(place.folder / "mine", ignore_errors=True)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    assert "Traceback" not in output
    assert place.left_over() == []
