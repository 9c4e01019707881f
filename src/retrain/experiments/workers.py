"""How many workers and threads a machine bears. Imports no torch, so it can only look at files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from retrain.analysis.words import plural
from retrain.config.schema import BackendConfig, CampaignConfig, RunConfig
from retrain.cores import WORKERS_VARIABLE, available_cores
from retrain.experiments.memory import run_memory, runs_on_cpu

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


WORKER_BYTES = 600 * 2**20
"""What a worker takes before it has loaded a model: Python, torch, and room for activations."""


def threads_of(backend: BackendConfig) -> int:
    """CPU threads of a worker; one by default, because processes scale better than threads."""
    return backend.threads or 1


def thread_environment(threads: int, workers: int = 1) -> dict[str, str]:
    """Environment that must be set before torch is imported.

    workers: how many share the machine. Tokenizers start threads of their own unless told not to.
    """
    return {
        WORKERS_VARIABLE: str(workers),
        **dict.fromkeys(THREAD_VARIABLES, str(threads)),
        "TOKENIZERS_PARALLELISM": os.environ.get("TOKENIZERS_PARALLELISM", "false"),
    }


def visible_gpus() -> list[str]:
    """The GPUs that a process here may use, as `[backend].device` names them."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        count = len([part for part in listed.split(",") if part.strip() not in {"", "-1"}])
    else:
        count = len(list(Path("/dev").glob("nvidia[0-9]*")))
    return [f"cuda:{number}" for number in range(count)]


def available_memory() -> int | None:
    """Bytes that new processes may take: the machine's, or a container's share; None if unknown."""
    found = []
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        with contextlib.suppress(OSError, ValueError):
            found.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    return min(found, default=None)


def worker_memory(config: RunConfig) -> int | None:
    """Bytes of main memory that a worker needs for this run, roughly; None if unknown.

    Of a model that goes to a GPU the weights pass through main memory.
    """
    if config.backend.backend == "tinker":
        return WORKER_BYTES
    found = run_memory(config, Path.cwd())
    if found is None:
        return None
    peak = found["peak"]
    return WORKER_BYTES + int(peak["total" if found["device"] == "cpu" else "weights"])


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """How a campaign's runs share the machine.

    threads: CPU threads a worker.
    devices: one a worker; empty leaves each run its own `[backend].device`.
    note:    what bounds the number of workers, when something does.
    """

    workers: int
    threads: int
    devices: tuple[str, ...] = ()
    note: str = ""


def plan_workers(campaign: CampaignConfig, configs: Sequence[RunConfig]) -> WorkerPlan:
    """Workers for these runs: one unless `parallel`, never more than there are runs.

    Without `max_workers` there are as many as the cores, the memory or the GPUs bear. Workers
    times threads never exceeds the cores: threads are given up first.
    """
    runs = max(1, len(configs))
    threads = max((threads_of(config.backend) for config in configs), default=1)
    if not campaign.parallel:
        return WorkerPlan(1, threads)
    devices = tuple(campaign.device_list)
    on_cpu = all(runs_on_cpu(config.backend) for config in configs)
    bounds = [(campaign.max_workers, "max_workers")] if campaign.max_workers else []
    if devices:
        bounds.append((len(devices), f"one worker for each of {plural(len(devices), 'device')}"))
        on_cpu = all(device == "cpu" for device in devices)
    elif not campaign.max_workers:
        bounds += _bounds(configs, threads, on_cpu=on_cpu)
    workers, why = min([(runs, ""), *bounds], key=lambda bound: bound[0])
    workers = max(1, workers)
    if not devices and not on_cpu and not _numbered(configs):
        # By itself each of them would take the first GPU.
        devices = tuple(islice(cycle(visible_gpus()), workers))
    note = f"{plural(workers, 'worker')} for {plural(runs, 'run')}: {why}" if why else ""
    cores = available_cores()
    shared = max(1, min(threads, cores // workers))
    if shared < threads:
        note = "; ".join(
            filter(
                None,
                [
                    note,
                    f"{plural(shared, 'thread')} each instead of {threads}, as there are "
                    f"{plural(cores, 'core')}",
                ],
            )
        )
    return WorkerPlan(workers, shared, devices[:workers], note)


def _numbered(configs: Sequence[RunConfig]) -> set[str]:
    """The GPUs that the runs name themselves."""
    return {config.backend.device for config in configs if ":" in config.backend.device}


def _bounds(
    configs: Sequence[RunConfig], threads: int, *, on_cpu: bool
) -> Iterator[tuple[int, str]]:
    """What the machine bears, and in words why."""
    if all(config.backend.backend == "tinker" for config in configs):
        # Their workers wait for the service most of the time.
        pass
    elif on_cpu:
        cores = available_cores()
        yield cores // threads, f"{plural(cores, 'core')}, {plural(threads, 'thread')} each"
    else:
        # What a model takes on a GPU is not known before it is loaded there.
        gpus = max(1, len(_numbered(configs) or visible_gpus()))
        yield gpus, f"one for each of {plural(gpus, 'GPU')} (max_workers sets another number)"
    memory, needs = available_memory(), [worker_memory(config) for config in configs]
    need = max((need for need in needs if need is not None), default=0)
    if memory is not None and need:
        yield (
            memory // need,
            f"{memory / 2**30:.1f} GiB of memory are free, a worker takes about {need / 2**30:.1f}",
        )
