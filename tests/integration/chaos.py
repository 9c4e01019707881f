"""Kills workers and campaigns at random moments, resumes, and compares with an undisturbed one.

    python tests/integration/chaos.py --kills 60 --seed 1 --also tracking

Trains a campaign on the embedded model without disturbance, then the same campaign again and again
while a seeded hand sends SIGKILL to a worker, to the campaign, or to all of them, and now and then
SIGTERM or SIGINT; resumes it (sometimes twice at once, of which one must be refused) until it is
done; and compares every file. The exit code is 0 when nothing differs, no step was lost beyond the
last checkpoint, and no process is left over.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from retrain.files import count_lines
from retrain.processes import ProcessId
from retrain.training.resume import find_resume_point

MARK = "RETRAIN_CHAOS"
"""A variable by which every process that a campaign started is known, also a grandchild."""

SAVE_EVERY = 3
STEPS = 45
TOML = """
[training]
batch_size = 2
group_size = 4
max_tokens = 24
lr = 1e-3
save_every = {save_every}
keep_last = 3

[evaluation]
num_problems = 4
every = 5

[algorithm]
uncertainty_kind = "shannon_entropy"

[sepa]
steps = 20
delay_steps = 3
schedule = "auto"

[campaign]
seeds = [1, 2]
max_steps = {steps}
parallel = true
max_workers = 2

[[campaign.conditions]]
advantage_mode = "grpo"
transform_mode = "none"

[[campaign.conditions]]
advantage_mode = "maxrl"
transform_mode = "gtpo_sepa"
"""

ALSO = {
    "tracking": """
[logging]
wandb_project = "chaos"
wandb_mode = "offline"
wandb_artifacts = "final"
""",
    "squeeze": """
[squeeze]
min_variance_retention = 0.9
""",
    # The last condition is hopeless, and its first two seeds decide that.
    "stopping": """
[campaign.stopping]
after_steps = [10]
min_seeds = 2
margin = 0.9

[report]
metric = "reward"
""",
}
"""What may be switched on besides, by name."""

TIMES = ("_time_s", "tokens_per_second", "peak_memory_mb")
OWN_TIME = {
    *("started_at", "updated_at", "finished_at", "timestamp", "wall_s", "at"),
    *("pid", "born", "attempts", "resumed_from", "workers", "id"),
}
"""Fields of JSON files that say when, where and by how many, and not what."""
OF_DROPPED = {"saved", "steps_saved"}
"""How far a run had come when its condition was stopped depends on the moment."""
MAY_DIFFER = (
    *("*run.log", "workers.log", "report.md", "report.html", "report/*"),
    *("*/wandb/offline-run-*", "*/wandb/debug*.log", "*/wandb/data/*", "*/wandb/tracker.log"),
    *("squeeze/*.png", "squeeze/*.svg"),
)
"""Files that tell what happened on the way, when, or where; docs/resume.md has the list."""

CHOICES = (
    *("worker",) * 4,
    *("campaign",) * 2,
    *("all",) * 3,
    *("terminate", "interrupt"),
)
"""What is done to whom, by how often; the last two are no kills."""


@dataclass
class Report:
    """What happened."""

    kills: Counter[str] = field(default_factory=Counter)
    resumes: int = 0
    refused: int = 0
    campaigns: int = 0
    compared: int = 0
    differences: list[str] = field(default_factory=list)
    lost_steps: int = 0
    worst_loss: int = 0
    left_over: int = 0

    @property
    def killed(self) -> int:
        return sum(self.kills[kind] for kind in ("worker", "campaign", "all"))

    @property
    def ok(self) -> bool:
        return not (self.differences or self.left_over or self.worst_loss > SAVE_EVERY)

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(self.kills.items()))
        return (
            f"{self.killed} kills ({kinds}) in {self.campaigns} campaigns, {self.resumes} resumes, "
            f"{self.refused} second resumes refused; {self.compared} files compared, "
            f"{len(self.differences)} differ; {self.lost_steps} steps trained twice, at most "
            f"{self.worst_loss} a kill and run (save_every = {SAVE_EVERY}); {self.left_over} "
            "processes left over"
        )


class Chaos:
    """One folder in which campaigns are disturbed; see the module."""

    def __init__(
        self,
        folder: Path,
        seed: int,
        say: Callable[[str], None],
        steps: int = STEPS,
        also: Collection[str] = (),
    ) -> None:
        self.folder = folder
        self.report = Report()
        self._random = random.Random(seed)
        self._say = say
        self._mark = uuid.uuid4().hex
        self._scratch = folder / "tmp"
        self._scratch.mkdir(exist_ok=True)
        toml = TOML.format(save_every=SAVE_EVERY, steps=steps)
        (folder / "campaign.toml").write_text(toml + "".join(ALSO[name] for name in also))

    def run(self, kills: int) -> Report:
        """Until so many processes have been killed, and every campaign is done."""
        self._start("campaign.toml").wait()
        reference = self._newest()
        while self.report.killed < kills:
            self.report.campaigns += 1
            campaign = self._disturbed(kills)
            self.report.left_over += self._left_over()
            self._compare(reference, campaign)
            self._say(f"campaign {self.report.campaigns}: {self.report}")
        return self.report

    def _disturbed(self, kills: int) -> Path:
        """A campaign with disturbances until it is done."""
        before = self._newest()
        process = self._start("campaign.toml")
        while not (self._newest() != before and (self._newest() / "manifest.json").exists()):
            assert process.poll() is None, "the campaign did not start"
            time.sleep(0.02)
        campaign = self._newest()
        while True:
            if self.report.killed < kills:
                self._disturb(process, campaign)
            code = process.wait()
            if code == 0:
                return campaign
            process = self._resume(campaign)

    def _disturb(self, process: subprocess.Popen[bytes], campaign: Path) -> None:
        """Wait for some training, then strike once; returns at once when the campaign ends."""
        patience = time.monotonic() + 60
        # One strike in five comes while workers start and load, the others while they train.
        early = self._random.random() < 0.2
        rows = sys.maxsize
        while not early and (now := _rows(campaign)) <= rows and process.poll() is None:
            assert time.monotonic() < patience, "no row for a minute"
            rows = now
            time.sleep(0.01)
        time.sleep(self._random.uniform(0.0, 3.0 if early else 0.8))
        if process.poll() is not None:
            return
        what = self._random.choice(CHOICES)
        workers = [pid for pid in self._processes() if _is_worker(pid)]
        if what == "worker":
            if not workers:
                return
            _kill(self._random.choice(workers))
        elif what == "terminate":
            process.send_signal(signal.SIGTERM)
        elif what == "interrupt":
            process.send_signal(signal.SIGINT)
        else:
            process.kill()
            if what == "all":
                for pid in workers:
                    _kill(pid)
        self.report.kills[what] += 1
        if what in {"worker", "all"}:
            self._count_loss(campaign)
        if what == "worker":
            # The campaign goes on by itself; strike again later.
            self._disturb_again(process, campaign)

    def _disturb_again(self, process: subprocess.Popen[bytes], campaign: Path) -> None:
        if self._random.random() < 0.7:
            self._disturb(process, campaign)

    def _count_loss(self, campaign: Path) -> None:
        """Steps that the dead workers had trained since their last checkpoints."""
        for run_dir in (campaign / "runs").iterdir():
            record = json.loads((run_dir / "run.json").read_text())
            process = ProcessId.read(record)
            if record["status"] != "running" or process is None or process.is_alive():
                continue
            lost = count_lines(run_dir / "metrics.jsonl", 10**9) - find_resume_point(run_dir).step
            self.report.lost_steps += max(0, lost)
            self.report.worst_loss = max(self.report.worst_loss, lost)

    def _resume(self, campaign: Path) -> subprocess.Popen[bytes]:
        self.report.resumes += 1
        first = self._start("resume", str(campaign))
        if self._random.random() > 0.3:
            return first
        second = self._start("resume", str(campaign))
        while first.poll() is None and second.poll() is None:
            time.sleep(0.02)
        refused, other = (first, second) if first.poll() is not None else (second, first)
        if refused.returncode == 2:
            self.report.refused += 1
        elif refused.returncode != 0:
            self.report.differences.append(f"a second resume ended with {refused.returncode}")
        return other

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / "chaos.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "retrain", *arguments],
                cwd=self.folder,
                env={
                    **os.environ,
                    MARK: self._mark,
                    "OMP_NUM_THREADS": "1",
                    "TMPDIR": str(self._scratch),
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _newest(self) -> Path:
        found = sorted((self.folder / "logs").glob("campaign_*"), key=lambda p: p.stat().st_ctime)
        return max(found, key=_number, default=self.folder)

    def _processes(self) -> Iterator[int]:
        mark = f"{MARK}={self._mark}".encode()
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and int(entry.name) != os.getpid():
                try:
                    if mark in (entry / "environ").read_bytes().split(b"\0"):
                        yield int(entry.name)
                except OSError:
                    continue

    def _left_over(self) -> int:
        """Processes that outlive their campaign; what was killed gets a moment to go."""
        deadline = time.monotonic() + 10
        while (left := list(self._processes())) and time.monotonic() < deadline:
            time.sleep(0.1)
        for pid in left:
            _kill(pid)
        return len(left)

    def _compare(self, reference: Path, campaign: Path) -> None:
        found = differences(reference, campaign)
        self.report.compared += len(_files(campaign))
        found += [f"{path} is left" for path in self._scratch.rglob("*") if path.is_file()]
        self.report.differences += [f"{campaign.name}: {text}" for text in found]


def differences(reference: Path, campaign: Path) -> list[str]:
    """Files of two campaigns that are not the same, times and processes aside."""
    one, other = _files(reference), _files(campaign)
    found = [f"{path} is only in {reference.name}" for path in sorted(one - other)]
    found += [f"{path} is only in {campaign.name}" for path in sorted(other - one)]
    for path in sorted(one & other):
        if _content(reference, path) != _content(campaign, path):
            found.append(f"{path} differs")
    return found


def _files(campaign: Path) -> set[str]:
    runs = json.loads((campaign / "manifest.json").read_text())["runs"]
    skipped = [*MAY_DIFFER, *(f"runs/{r['name']}/*" for r in runs if r["status"] == "dropped")]
    paths = {str(path.relative_to(campaign)) for path in campaign.rglob("*") if path.is_file()}
    return {path for path in paths if not any(fnmatchcase(path, pattern) for pattern in skipped)}


def _content(campaign: Path, name: str) -> Any:
    path = campaign / name
    if path.name == "metrics.jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return [{k: v for k, v in row.items() if not k.endswith(TIMES)} for row in rows]
    data = path.read_bytes().replace(os.fsencode(campaign.absolute()), b"CAMPAIGN")
    own = name.startswith(("manifest", "runs", "squeeze/wandb")) and "checkpoints" not in name
    return _without_times(json.loads(data)) if own and path.suffix == ".json" else data


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        own = OWN_TIME | OF_DROPPED
        return {key: _without_times(item) for key, item in value.items() if key not in own}
    if isinstance(value, list):
        return [_without_times(item) for item in value]
    return value


def _rows(campaign: Path) -> int:
    return sum(count_lines(path, 10**9) for path in campaign.glob("runs/*/metrics.jsonl"))


def _number(campaign: Path) -> tuple[str, int]:
    _, date, clock, *number = campaign.name.split("_")
    return f"{date}_{clock}", int(number[0]) if number else 1


def _is_worker(pid: int) -> bool:
    try:
        return b"retrain.experiments.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    # Until it is gone or waits to be reaped: what it wrote is then all that it wrote.
    while True:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return
        if state in {"Z", "X"}:
            return
        time.sleep(0.005)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--also", nargs="*", default=[], choices=ALSO)
    parser.add_argument("--folder", type=Path, help="kept; by default a temporary one")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="retrain-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    say = partial(print, flush=True)
    report = Chaos(folder, arguments.seed, say, also=arguments.also).run(arguments.kills)
    print(f"{report}\n{time.monotonic() - started:.0f} s, in {folder}")
    for text in report.differences:
        print(text)
    return 0 if report.ok else 1


if __name__ == "__main__":
    raise SystemExit(main())
