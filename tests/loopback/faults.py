"""What goes wrong on a test server, and when: a plan of faults, each of which hits chosen requests.

The plan is plain data, so that another process can hand it over as JSON.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy as np

from retrain import seeding

Kind = Literal[
    "status",
    "timeout",
    "drop",
    "slow",
    "paused",
    "lost",
    "failed",
    "stale",
    "temperature",
    "noise",
]
On = Literal["submit", "retrieve"]

_ONLY = {"stale": "load_lora_adapter", "temperature": "completions", "noise": "completions"}
"""The one route at which these mean anything."""


@dataclass(slots=True)
class Fault:
    """One thing that goes wrong.

    kind:        "status" answers with `status`; "timeout" never answers (and closes the connection
                 after `seconds`); "drop" closes the connection, on retrieve in the middle of the
                 answer; "slow" answers after `seconds`; "paused" keeps the caller polling for
                 `seconds` with the queue state of a service without capacity; "lost" forgets the
                 result (410 for good); "failed" answers a failed request of `category`.
                 Of the inference server: "stale" answers that an adapter is loaded, and goes on
                 with the weights it has; "temperature" samples at `amount` whatever was asked for;
                 "noise" adds normal noise of this `amount` to the log-probabilities it tells.
    route:       of which operation: "asample", "forward_backward", "optim_step", "get_info", …,
                 "completions", "load_lora_adapter", …; a pattern such as "*weights*".
    on:          whether it hits the request itself or the polls for its result; where there are
                 no polls, whether before or after the work. "lost" and "failed" are chosen at the
                 request and seen at the poll, "paused" likewise.
    times, skip: so many requests are hit, after so many were let through; None is for ever.
    share:       of the requests that are neither skipped nor too late, so many are hit.
    carried_out: whether the operation is done although its caller is told otherwise. Of faults
                 on retrieve only "lost" and "failed" ask; the others always come after the work.
    headers:     of the answer of "status", e.g. {"retry-after-ms": "10"}.
    """

    kind: Kind
    route: str = "*"
    on: On = "submit"
    status: int = 500
    times: int | None = 1
    skip: int = 0
    share: float = 1.0
    seconds: float = 0.0
    carried_out: bool = False
    category: str = "server"
    amount: float = 0.0
    headers: Mapping[str, str] = field(default_factory=dict)
    seen: int = 0
    hits: int = 0


class Faults:
    """The plan. Safe to change while requests are served."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._plan: list[Fault] = []

    def add(self, kind: Kind, **fields: Any) -> Fault:
        """Plan a fault; the one returned counts its `hits`."""
        fault = Fault(kind, **fields)
        if kind in ("lost", "failed", "paused"):
            fault.on = "submit"
        if fault.route == "*":
            fault.route = _ONLY.get(kind, "*")
        with self._lock:
            self._plan.append(fault)
        return fault

    def clear(self) -> None:
        with self._lock:
            self._plan.clear()

    def plan(self) -> list[dict[str, Any]]:
        with self._lock:
            return [asdict(fault) for fault in self._plan]

    def hit(self, route: str, on: On) -> Fault | None:
        """The first fault that strikes this request, if any; it is counted."""
        with self._lock:
            for index, fault in enumerate(self._plan):
                if fault.on != on or not fnmatchcase(route, fault.route):
                    continue
                fault.seen += 1
                over = fault.times is not None and fault.hits >= fault.times
                if fault.seen <= fault.skip or over or not _drawn(fault, index):
                    continue
                fault.hits += 1
                return fault
        return None


def _drawn(fault: Fault, index: int) -> bool:
    if fault.share >= 1.0:
        return True
    key = np.array([seeding.key(index, "fault", fault.kind, fault.route)], dtype=np.uint64)
    return float(seeding.uniforms(key, fault.seen)[0]) < fault.share
