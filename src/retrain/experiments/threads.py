"""How many workers and threads a machine bears. Imports no torch, so it can only look at files."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path

from retrain.config.schema import BackendConfig, CampaignConfig, RunConfig

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def threads_of(backend: BackendConfig) -> int:
    """CPU threads of a worker; one by default, because processes scale better than threads."""
    return backend.threads or 1


def thread_environment(threads: int) -> dict[str, str]:
    """Environment that must be set before torch is imported.

    Tokenizers start threads of their own unless told not to.
    """
    return {
        **dict.fromkeys(THREAD_VARIABLES, str(threads)),
        "TOKENIZERS_PARALLELISM": os.environ.get("TOKENIZERS_PARALLELISM", "false"),
    }


def available_cores() -> int:
    """Cores that this process may use: its affinity, and a container's share of the machine."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):
        pass
    return max(1, cores)


def runs_on_cpu(backend: BackendConfig) -> bool:
    """Whether the policy will be on a CPU, as far as one can tell without torch."""
    if backend.device != "auto":
        return backend.device == "cpu"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in {"", "-1"}
    return hidden or not any(Path("/dev").glob("nvidia[0-9]*"))


def worker_count(campaign: CampaignConfig, configs: Iterable[RunConfig]) -> int:
    """Workers for these runs: one unless `parallel`, never more than there are runs."""
    backends = [config.backend for config in configs]
    runs = max(1, len(backends))
    if not campaign.parallel:
        return 1
    if campaign.max_workers:
        return min(campaign.max_workers, runs)
    if all(runs_on_cpu(backend) for backend in backends):
        threads = max((threads_of(backend) for backend in backends), default=1)
        return max(1, min(runs, available_cores() // threads))
    return runs
