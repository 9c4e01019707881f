"""What the throttle of a remote service costs, beside as many workers as there are slots.

    python benchmarks/throttle.py [--workers 12] [--limit 4] [--call-ms 100] [--seconds 5] [--json]

A server on loopback holds each call for a while and counts the calls in flight. First `limit`
workers call it as fast as they can without a throttle, which is all that so many slots can give;
then all workers share the slots through lock files. Both take turns, three rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time

WORKER = """
import socket, sys, time
from pathlib import Path
from retrain.policies.throttle import Throttle

folder, limit, port, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
throttle, calls = Throttle(Path(folder) if folder else None, limit), 0
print("ready", flush=True)
sys.stdin.readline()
end = time.monotonic() + seconds
while time.monotonic() < end:
    with throttle.slot(), socket.create_connection(("127.0.0.1", port)) as connection:
        connection.recv(1)
    calls += 1
print(calls, time.process_time(), flush=True)
"""


class Service:
    """Holds every connection for a while."""

    def __init__(self, hold_s: float) -> None:
        self._hold_s = hold_s
        self._flying = 0
        self.most = 0
        self.port = 0
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()

        async def serve() -> None:
            server = await asyncio.start_server(self._answer, "127.0.0.1", 0, backlog=256)
            self.port = server.sockets[0].getsockname()[1]
            ready.set()
            await server.serve_forever()

        threading.Thread(target=self._loop.run_until_complete, args=(serve(),), daemon=True).start()
        ready.wait()

    async def _answer(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._flying += 1
        self.most = max(self.most, self._flying)
        await asyncio.sleep(self._hold_s)
        self._flying -= 1
        writer.write(b"!")
        writer.close()


def measure(folder: str, workers: int, limit: int, port: int, seconds: float) -> dict[str, float]:
    """Calls a second of all workers, the fewest and the most of one, and CPU seconds a call."""
    command = [sys.executable, "-c", WORKER, folder, str(limit), str(port), str(seconds)]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(workers)
    ]
    for process in started:
        assert process.stdout is not None
        process.stdout.readline()
    begin = time.monotonic()
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate()[0].split() for process in started]
    spent = time.monotonic() - begin
    calls = [int(answer[0]) for answer in answers]
    return {
        "calls_per_s": sum(calls) / spent,
        "fewest": min(calls),
        "most": max(calls),
        "cpu_ms_per_call": 1000 * sum(float(answer[1]) for answer in answers) / sum(calls),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--limit", type=int, default=4)
    parser.add_argument("--call-ms", type=float, default=100.0)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    free, shared = Service(arguments.call_ms / 1000), Service(arguments.call_ms / 1000)
    limit, seconds = arguments.limit, arguments.seconds
    rounds = []
    for _ in range(arguments.rounds):
        alone = measure("", limit, limit, free.port, seconds)
        with tempfile.TemporaryDirectory() as folder:
            throttled = measure(folder, arguments.workers, limit, shared.port, seconds)
        lost = 1 - throttled["calls_per_s"] / alone["calls_per_s"]
        rounds.append({"alone": alone, "throttled": throttled, "lost": lost})
    result = {
        "workers": arguments.workers,
        "limit": limit,
        "call_ms": arguments.call_ms,
        "lost": statistics.median(one["lost"] for one in rounds),
        "most_in_flight": shared.most,
        "rounds": rounds,
    }
    if arguments.json:
        print(json.dumps(result, indent=2))
        return 0
    print(f"{'':<34}{'calls/s':>9}{'of one: fewest':>16}{'most':>7}{'CPU ms a call':>15}")
    for one in rounds:
        for name, who in (("alone", f"{limit} workers"), ("throttled", f"{arguments.workers}")):
            found = one[name]
            label = who if name == "alone" else f"{who} workers share {limit} slots"
            print(
                f"{label:<34}{found['calls_per_s']:>9.1f}{found['fewest']:>16.0f}"
                f"{found['most']:>7.0f}{found['cpu_ms_per_call']:>15.2f}"
            )
    print(f"\nlost to the throttle: {100 * result['lost']:.1f} % (median of {len(rounds)} rounds)")
    print(f"most calls in flight: {shared.most} of {limit}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
