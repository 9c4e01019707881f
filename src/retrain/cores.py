"""How many cores this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

WORKERS_VARIABLE = "RETRAIN_WORKERS_HERE"
"""Environment variable: how many workers share the machine. Set by who starts them."""


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


def own_share() -> int:
    """Cores for this process, when it shares the machine with other workers of a campaign."""
    try:
        sharing = max(1, int(os.environ.get(WORKERS_VARIABLE, "1")))
    except ValueError:
        sharing = 1
    return max(1, available_cores() // sharing)
