"""The inference servers that runs need and nobody else has started."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from retrain.analysis.words import duration
from retrain.config.schema import RunConfig
from retrain.errors import InputError
from retrain.experiments.memory import runs_on_cpu
from retrain.experiments.paths import shown
from retrain.policies.inference.endpoint import Endpoint
from retrain.policies.inference.supervisor import VllmServer
from retrain.policies.inference.vllm import Launch, require_program, together


class Servers:
    """Which server each run samples at."""

    def __init__(self, endpoints: Mapping[Launch, Endpoint]) -> None:
        self._endpoints = endpoints

    @property
    def started(self) -> bool:
        """Whether there is any."""
        return bool(self._endpoints)

    def of(self, run: RunConfig) -> Endpoint | None:
        """None for a run that needs none of ours."""
        if run.inference.engine != "vllm":
            return None
        wanted = launch_of(run)
        return next(found for ours, found in self._endpoints.items() if ours.shares_with(wanted))


def launch_of(run: RunConfig) -> Launch:
    """How the run's own server is started."""
    return Launch.of(run, on_cpu=runs_on_cpu(run.backend))


@contextmanager
def serving(
    runs: Sequence[RunConfig], folder: Path, console: Console, clients: int = 1
) -> Iterator[Servers]:
    """Start what these runs need, and end it with the block; costs nothing for other engines.

    folder:  of the campaign or run; the servers' logs go there.
    clients: how many of the runs train at the same time.

    Raises InputError when a server does not start.
    """
    ours = [run for run in runs if run.inference.engine == "vllm"]
    # All programs are looked for before the first server is started.
    programs = {run.inference.command: require_program(run.inference.command) for run in ours}
    patience = max((run.inference.start_timeout for run in ours), default=0.0)
    names = {launch_of(run).model: run.model.model for run in ours}
    endpoints: dict[Launch, Endpoint] = {}
    with ExitStack() as stack:
        for number, launch in enumerate(together(map(launch_of, ours)), start=1):
            # Messages name it as the user would.
            log = Path(shown(folder)) / ("vllm.log" if number == 1 else f"vllm-{number}.log")
            server = stack.enter_context(
                VllmServer(
                    launch,
                    programs[launch.program],
                    log,
                    clients=clients,
                    start_timeout=patience,
                )
            )
            _start(server, names[launch.model], console)
            endpoints[launch] = server.endpoint
        yield Servers(endpoints)


def _start(server: VllmServer, model: str, console: Console) -> None:
    begun = time.monotonic()
    what = f"starting vLLM with {model}, which may take minutes ({shown(server.log)})"
    with ExitStack() as stack:
        if console.is_terminal:
            columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
            bar = stack.enter_context(Progress(*columns, console=console, transient=True))
            bar.add_task(what, total=None)
        else:
            console.print(Text(what), soft_wrap=True)
        try:
            server.start()
        except InputError as error:
            folder = shlex.quote(shown(server.log.parent))
            raise InputError(f"{error}; afterwards: retrain resume {folder}") from error
    took = duration(time.monotonic() - begun)
    line = f"vLLM {server.version} answers at {server.endpoint.url} after {took}"
    console.print(Text(line), soft_wrap=True)
