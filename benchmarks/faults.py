"""What a user sees, and what is lost, when a service or an inference server fails.

    python benchmarks/faults.py [--only WORD] [--slow] [--json]

Each fault strikes a run of its own, started by the command that a user would type, at the stand-in
for the Tinker service, at the tests' inference server, or at a stand-in for the program `vllm` that
retrain starts itself. A run that stops is taken up again with `retrain resume` once the fault is
over. Its rows are then compared with those of a run that nothing happened to.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

from tests.inference import server  # noqa: E402
from tests.inference.vllm_program import Program  # noqa: E402
from tests.loopback.service import Remote  # noqa: E402
from tests.tinker import standin  # noqa: E402

from retrain.analysis.words import plural  # noqa: E402

STEPS = 4
PROGRESS = ("% ", " step", "held-out", "greedy", "run: ", "next: retrain status", "vLLM")
SAME = ("mean_reward", "tokens", "num_updates", "held_out_accuracy")
"""What of a row shows that a run drew other completions, or learned otherwise."""

RUN = """\
[model]
lora_rank = 4
{model}
[training]
seed = 7
max_steps = 4
batch_size = 3
group_size = 4
max_tokens = 40
lr = {lr}
save_every = 2

[algorithm]
advantage_mode = "grpo"
transform_mode = "none"

[evaluation]
num_problems = 4

[logging]
log_dir = "logs"

{tables}
"""


class Place:
    """Somewhere that completions come from; afresh for each fault."""

    title = ""
    tables = ""
    model = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def running(self) -> Iterator[Any]:
        raise NotImplementedError


class Tinker(Place):
    title = "Tinker"
    tables = '[backend]\nbackend = "tinker"'

    @contextmanager
    def running(self) -> Iterator[Remote]:
        with standin.Remote(self.folder / "state", "--poll-seconds", "2", "--exact") as service:
            self.model = f'base_url = "{service.url}"\n'
            yield service


class Server(Place):
    title = "server"

    @contextmanager
    def running(self) -> Iterator[Remote]:
        state = self.folder / "state"
        with server.Remote(state, "--logprobs-mode", "processed_logprobs") as running:
            self.tables = f'[inference]\nengine = "openai"\nurl = "{running.url}"\n'
            yield running


class Vllm(Place):
    title = "own vLLM"

    @contextmanager
    def running(self) -> Iterator[Program]:
        program = Program(self.folder / "program")
        self.tables = f'[inference]\nengine = "vllm"\ncommand = "{program.file}"\n'
        yield program


Do = Callable[[Any], None]
"""What goes wrong, given the place's server or program."""


def nothing(_: Any) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Fault:
    """before: done before the run starts. in_the_middle: done once two steps are recorded.
    after: done before the run is resumed. keys: of the place's table, as TOML."""

    place: type[Place]
    name: str
    before: Do = nothing
    in_the_middle: Do = nothing
    after: Do = nothing
    keys: str = ""
    lr: float = 2e-3
    slow: bool = False


def add(kind: str, **fields: Any) -> Do:
    return lambda service: service.add_fault(kind, **fields)


def all_of(*faults: Do) -> Do:
    def do(service: Any) -> None:
        for fault in faults:
            fault(service)

    return do


def restart(service: Remote) -> None:
    service.kill()
    service.start()


def kill_program(program: Program) -> None:
    os.kill(program.starts()[-1]["pid"], signal.SIGKILL)


def clear(service: Remote) -> None:
    service.clear_faults()


SOON = {"retry-after-ms": "50"}
BROKEN = all_of(
    add("drop", route="*sample*", times=3), add("drop", route="optim_step", on="retrieve", times=2)
)
FAULTS = (
    Fault(Tinker, "429, six times", add("status", status=429, times=6, headers=SOON)),
    Fault(
        Tinker,
        "500, 502, 504 at samples, gradients, steps",
        all_of(
            add("status", route="asample", status=500, times=3),
            add("status", route="forward_backward", status=502, times=2),
            add("status", route="optim_step", status=504, times=2),
        ),
    ),
    Fault(Tinker, "connections that break off", BROKEN),
    Fault(
        Tinker,
        "polls that nobody answers for 3 s",
        add("timeout", route="asample", on="retrieve", times=2, seconds=3.0),
    ),
    Fault(Tinker, "three lost futures of samples", add("lost", route="asample", times=3)),
    Fault(
        Tinker, "60 % of the samples fail", add("failed", route="asample", times=None, share=0.6)
    ),
    Fault(
        Tinker,
        "a lost gradient, which was applied",
        add("lost", route="forward_backward", skip=3, carried_out=True),
    ),
    Fault(
        Tinker,
        "away for 8 s",
        in_the_middle=lambda service: service.away(8.0),
    ),
    Fault(Tinker, "killed and started anew", in_the_middle=restart),
    Fault(
        Tinker,
        "killed, and started anew later",
        in_the_middle=lambda service: service.kill(),
        after=lambda service: service.start(),
        slow=True,
    ),
    Fault(
        Server,
        "429, six times",
        add("status", route="completions", status=429, times=6, headers={"retry-after": "1"}),
    ),
    Fault(
        Server,
        "500, 502, 504",
        all_of(
            add("status", route="completions", status=500, times=3),
            add("status", route="completions", status=502, times=2),
            add("status", route="load_lora_adapter", status=504, times=2),
        ),
    ),
    Fault(
        Server,
        "connections that break off",
        all_of(
            add("drop", route="completions", times=3),
            add("drop", route="load_lora_adapter", on="retrieve", times=1),
        ),
    ),
    Fault(
        Server,
        "answers that do not come",
        add("timeout", route="completions", times=2, seconds=5.0),
        keys="timeout = 2.0",
    ),
    Fault(
        Server,
        "60 % of the completions fail",
        add("status", route="completions", status=500, times=None, share=0.6),
    ),
    Fault(Server, "killed and started anew", in_the_middle=restart),
    Fault(Server, "away for 8 s", in_the_middle=lambda service: service.away(8.0)),
    Fault(
        Server,
        "away for longer than away_timeout",
        in_the_middle=lambda service: service.kill(),
        after=lambda service: service.start(),
        keys="away_timeout = 5.0",
    ),
    Fault(
        Server,
        "keeps a stale adapter",
        add("stale", route="load_lora_adapter", skip=1, times=None),
        after=restart,
        lr=2e-2,
    ),
    Fault(
        Server,
        "samples at temperature 0.6",
        add("temperature", times=None, amount=0.6),
        after=clear,
    ),
    Fault(Server, "noise of 0.2 nats", add("noise", times=None, amount=0.2), after=clear),
    Fault(Vllm, "killed in the middle", in_the_middle=kill_program),
    Fault(
        Vllm,
        "dies in a rollout, then does not start",
        lambda program: program.plan({"dies_after": 40}, {"fails": True}),
        after=lambda program: program.plan(),
    ),
    Fault(
        Vllm,
        "does not start",
        lambda program: program.plan({"fails": True}),
        after=lambda program: program.plan(),
    ),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """lost: completions that were never had. again: steps that were trained a second time.
    same: whether the rows are those of the run that nothing happened to."""

    place: str
    fault: str
    seconds: float
    exit_code: int
    seen: list[str] = field(default_factory=list)
    resumed: int | None = None
    lost: int = 0
    again: int = 0
    same: bool = False


def suffer(fault: Fault, undisturbed: Mapping[str, list[dict[str, Any]]], folder: Path) -> Outcome:
    place = fault.place(folder)
    folder.mkdir(parents=True)
    with place.running() as service:
        toml = RUN.format(model=place.model, lr=fault.lr, tables=f"{place.tables}{fault.keys}")
        (folder / "run.toml").write_text(toml)
        fault.before(service)
        watching = threading.Event()
        striker = threading.Thread(target=strike, args=(fault, service, folder, watching))
        striker.start()
        begun = time.monotonic()
        exit_code, output = retrain(folder, "run.toml")
        seconds = time.monotonic() - begun
        watching.set()
        striker.join()
        (run,) = (folder / "logs").iterdir()
        before, resumed = len(rows_of(run)), None
        if exit_code:
            fault.after(service)
            resumed, _ = retrain(folder, "resume", str(run))
    rows, record = rows_of(run), json.loads((run / "run.json").read_text())
    again = before - record["resumed_from"] if record["resumed_from"] else 0
    expected = undisturbed.get(f"{fault.lr:g}")
    return Outcome(
        place=place.title,
        fault=fault.name,
        seconds=seconds,
        exit_code=exit_code,
        seen=[line for line in output if not is_progress(line)],
        resumed=resumed,
        lost=sum(row["lost_completions"] for row in rows),
        again=again,
        same=expected is not None and numbers(rows) == numbers(expected),
    )


def strike(fault: Fault, service: Any, folder: Path, over: threading.Event) -> None:
    """In a thread of its own: once two steps are recorded, what happens then."""
    while not over.wait(0.02):
        if any(len(rows_of(run)) >= 2 for run in (folder / "logs").glob("*")):
            fault.in_the_middle(service)
            return


def retrain(folder: Path, *arguments: str) -> tuple[int, list[str]]:
    """Exit code, and what the user saw."""
    done = subprocess.run(
        [sys.executable, "-m", "retrain", *arguments],
        cwd=folder,
        env={**os.environ, "TINKER_API_KEY": "tml-loopback", "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout.splitlines()


def is_progress(line: str) -> bool:
    """What is said in a run without a fault, too."""
    trouble = line.startswith(("warning", "error", "next: retrain resume")) or "failed" in line
    return not trouble and any(mark in line for mark in PROGRESS)


def rows_of(run: Path) -> list[dict[str, Any]]:
    file = run / "metrics.jsonl"
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    return [json.loads(line) for line in lines]


def numbers(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [tuple(row.get(key) for key in SAME) for row in rows]


def alone(folder: Path, lr: float) -> list[dict[str, Any]]:
    """The rows of the run without a service."""
    folder.mkdir(parents=True)
    (folder / "run.toml").write_text(RUN.format(model="", lr=lr, tables=""))
    exit_code, output = retrain(folder, "run.toml")
    if exit_code:
        raise SystemExit("\n".join(output))
    (run,) = (folder / "logs").iterdir()
    return rows_of(run)


def show(outcomes: list[Outcome]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 150)
    table = Table("where", "fault", "what the user saw", "exit", "what was lost", box=None)
    table.columns[3].justify = "right"
    for one in outcomes:
        seen = "\n".join(one.seen) or "nothing"
        table.add_row(one.place, one.fault, seen, str(one.exit_code), words(one))
    console.print(table)


def words(one: Outcome) -> str:
    lost = []
    if one.lost:
        lost.append(plural(one.lost, "completion"))
    if one.resumed is not None:
        went_on = "done after resume" if one.resumed == 0 else f"resume ends with {one.resumed}"
        again = f"{plural(one.again, 'step')} trained again" if one.again else "no step"
        lost.append(f"{again}; {went_on}")
    if not one.same:
        lost.append("so the rest of the run is another sample" if one.lost else "rows differ")
    return "; ".join(lost) or "nothing: rows as undisturbed"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", default="", metavar="WORD", help="faults or places with this word"
    )
    parser.add_argument("--slow", action="store_true", help="also what takes more than 5 minutes")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    wanted = [
        fault
        for fault in FAULTS
        if options.only in f"{fault.place.title}: {fault.name}" and (options.slow or not fault.slow)
    ]
    with tempfile.TemporaryDirectory(prefix="retrain_faults_") as aside:
        out = Path(aside)
        rates = sorted({fault.lr for fault in wanted})
        undisturbed = {f"{lr:g}": alone(out / f"alone_{lr:g}", lr) for lr in rates}
        outcomes = []
        for number, fault in enumerate(wanted):
            print(f"{number + 1}/{len(wanted)} {fault.place.title}: {fault.name}", file=sys.stderr)
            outcomes.append(suffer(fault, undisturbed, out / str(number)))
    if options.json:
        print(json.dumps([asdict(one) for one in outcomes], indent=2))
    else:
        show(outcomes)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
