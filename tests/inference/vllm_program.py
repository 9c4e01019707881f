"""A stand-in for the program `vllm`, for tests. It is not vLLM.

    vllm serve MODEL --host 127.0.0.1 --port 8000 --enable-lora …

It takes the arguments that retrain gives, and refuses others, as vLLM does; reads the key and the
leave to load adapters from the same variables; has an engine process, which does not end by itself
when the program is killed; and serves the folder's model for real, by `tests.inference.server`.

`Program` writes an executable file that starts it, plans what goes wrong at which start, and knows
what was started:

    program = Program(tmp_path / "vllm")
    program.plan({"dies_after": 9}, {})          # the first dies; from the second on all is well
    … command = program.file …
    assert not is_alive(program.starts()[0]["engine"])

The plan and the record of the starts lie in a folder beside the file.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import SimpleQueue
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
VARIABLES = ("VLLM_API_KEY", "VLLM_NO_USAGE_STATS", "HF_HUB_OFFLINE", "CUDA_VISIBLE_DEVICES")
TOO_LITTLE = "Free memory on device cuda:0 (10.2/79.1 GiB) on startup is less than desired GPU "
TOO_LITTLE += "memory utilization (0.9, 71.19 GiB). Decrease GPU memory utilization or reduce GPU "
TOO_LITTLE += "memory used by other processes."
NO_START = f"""\
(EngineCore_DP0 pid=7) ERROR 11-21 16:31:07 [core.py:946] EngineCore failed to start.
(EngineCore_DP0 pid=7) ERROR 11-21 16:31:07 [core.py:946] Traceback (most recent call last):
(EngineCore_DP0 pid=7) ERROR 11-21 16:31:07 [core.py:946]   File "worker/utils.py", line 396
(EngineCore_DP0 pid=7) ERROR 11-21 16:31:07 [core.py:946] ValueError: {TOO_LITTLE}
(EngineCore_DP0 pid=7) Process EngineCore_DP0:
(EngineCore_DP0 pid=7) ValueError: {TOO_LITTLE}
(APIServer pid=6) Traceback (most recent call last):
(APIServer pid=6)   File "v1/engine/utils.py", line 1427, in wait_for_engine_startup
(APIServer pid=6) RuntimeError: Engine core initialization failed. See root cause above. \
Failed core proc(s): {{}}
"""
DEATH = """\
(EngineCore_DP0 pid=7) ERROR 11-21 16:40:12 [core.py:1012] EngineCore encountered a fatal error.
(EngineCore_DP0 pid=7) torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.
(APIServer pid=6) ERROR 11-21 16:40:12 [async_llm.py:683] vllm.v1.engine.exceptions.\
EngineDeadError: EngineCore encountered an issue. See stack trace (above) for the root cause.
"""


@dataclass(frozen=True, slots=True)
class Start:
    """How one start goes.

    fails:        it ends in the middle of loading, as for want of memory.
    never_ready:  it loads for ever.
    stubborn:     SIGTERM ends neither it nor its engine.
    dies_after_s: its engine dies, and it with it, so many seconds after it was ready.
    dies_after:   … at this completion, counted from 1.
    hollow:       it has no model, only a list with its name: it is there in no time.
    """

    fails: bool = False
    never_ready: bool = False
    stubborn: bool = False
    dies_after_s: float | None = None
    dies_after: int | None = None
    hollow: bool = False


class Program:
    """The executable file, and what becomes of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "vllm"
        folder.mkdir(parents=True, exist_ok=True)
        command = shlex.join([sys.executable, "-m", "tests.inference.vllm_program", str(folder)])
        paths = shlex.quote(str(ROOT))
        self.file.write_text(
            f'#!/bin/sh\nOMP_NUM_THREADS=1 PYTHONPATH={paths} exec {command} "$@"\n'
        )
        self.file.chmod(0o755)

    def plan(self, *starts: dict[str, Any]) -> None:
        """How the coming starts go; the last plan holds for all after it."""
        (self.folder / "plan.json").write_text(json.dumps([*starts]))
        (self.folder / "starts.jsonl").unlink(missing_ok=True)

    def starts(self) -> list[dict[str, Any]]:
        """Those since the plan was made: pid and engine (processes), parent (the process that
        started it), arguments, port, key, variables."""
        file = self.folder / "starts.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def processes(self, port: int | None = None) -> list[int]:
        """All that were started (at this port)."""
        return [
            start[name]
            for start in self.starts()
            for name in ("pid", "engine", "parent")
            if port in (None, start["port"])
        ]


class Hollow(ThreadingHTTPServer):
    """A server without a model: a list of its name, for who has the key."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int, key: str) -> None:
        super().__init__(("127.0.0.1", port), _OfHollow)
        self.key = key
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()


class _OfHollow(BaseHTTPRequestHandler):
    server: Hollow

    def do_GET(self) -> None:
        closed = self.server.key and self.path.startswith("/v1/")
        if closed and self.headers["Authorization"] != f"Bearer {self.server.key}":
            self.send_response(401)
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"data": [{"id": "hollow"}], "version": "0.0.0+test"}')

    def log_message(self, *_: object) -> None:
        pass


def serve(options: argparse.Namespace, key: str, dies_after: int | None) -> None:
    """In threads, the model of the folder. It imports torch."""
    # Imports make much that stays and nothing to collect: looking through it costs half a second.
    gc.disable()
    from retrain.models.tiny import EMBEDDED_PATH
    from tests.inference.server import InferenceServer

    # It is the same model; only its loading as any other's folder takes seconds.
    folder = None if Path(options.model) == EMBEDDED_PATH else Path(options.model)
    may_load = os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "").lower() in ("1", "true")
    served = InferenceServer(
        port=options.port,
        folder=folder,
        model=options.model,
        api_key=key,
        logprobs_mode=options.logprobs_mode,
        runtime_lora=options.enable_lora and may_load,
        max_lora_rank=options.max_lora_rank,
    )
    if dies_after is not None:
        served.respond = _mortal(served.respond, dies_after)  # type: ignore[method-assign]
    served.__enter__()


def _mortal(respond: Callable[..., Any], dies_after: int) -> Callable[..., Any]:
    numbers = itertools.count(1)

    def answer(handler: BaseHTTPRequestHandler, body: bytes) -> Any:
        if handler.path == "/v1/completions" and next(numbers) == dies_after:
            die()
        return respond(handler, body)

    return answer


def die() -> None:
    print(DEATH, flush=True)
    os._exit(1)


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The part of vLLM's command line that retrain uses."""
    parser = argparse.ArgumentParser(prog="vllm", allow_abbrev=False)
    serve = parser.add_subparsers(required=True).add_parser("serve", allow_abbrev=False)
    serve.add_argument("model")
    serve.add_argument("--host")
    serve.add_argument("--port", type=int, default=8000)
    serve.add_argument("--enable-lora", action="store_true")
    serve.add_argument("--max-lora-rank", type=int, choices=RANKS, default=16)
    serve.add_argument("--max-loras", type=int, default=1)
    serve.add_argument("--max-cpu-loras", type=int)
    modes = ("raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits")
    serve.add_argument("--logprobs-mode", choices=modes, default="raw_logprobs")
    serve.add_argument("--generation-config", default="auto")
    serve.add_argument("--gpu-memory-utilization", type=float, default=0.9)
    serve.add_argument("--disable-uvicorn-access-log", action="store_true")
    dtypes = ("auto", "bfloat16", "float", "float16", "float32", "half")
    serve.add_argument("--dtype", choices=dtypes, default="auto")
    serve.add_argument("--revision")
    serve.add_argument("--max-model-len", type=int)
    serve.add_argument("--max-num-batched-tokens", type=int)
    options = parser.parse_args(arguments)
    if options.max_cpu_loras is not None and options.max_cpu_loras < options.max_loras:
        raise ValueError("max_cpu_loras must be >= max_loras")
    return options


def engine(stubborn: bool) -> int:
    """The process that holds a GPU's memory."""
    if pid := os.fork():
        return pid
    signal.signal(signal.SIGTERM, signal.SIG_IGN if stubborn else signal.SIG_DFL)
    while True:
        signal.pause()


def main() -> None:
    folder, *arguments = sys.argv[1:]
    options = parsed(arguments)
    record, plans = Path(folder) / "starts.jsonl", Path(folder) / "plan.json"
    before = len(record.read_text().splitlines()) if record.exists() else 0
    planned = json.loads(plans.read_text()) if plans.exists() else []
    plan = Start(**planned[min(before, len(planned) - 1)]) if planned else Start()
    if plan.stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Unlike an event, it may be used by a handler that interrupts itself.
    stop: SimpleQueue[int] = SimpleQueue()
    if not plan.stubborn:
        signal.signal(signal.SIGTERM, lambda number, _frame: stop.put(number))
    core = engine(plan.stubborn)
    start = {
        **{"pid": os.getpid(), "engine": core, "parent": os.getppid()},
        **{"arguments": arguments, "port": options.port, "key": os.environ.get("VLLM_API_KEY")},
        "variables": {name: os.environ.get(name) for name in VARIABLES},
    }
    with record.open("a") as file:
        file.write(json.dumps(start) + "\n")
    print("INFO 11-21 16:30:12 [api_server.py:1] loading", flush=True)
    if plan.fails:
        print(NO_START, flush=True)
        os._exit(1)
    if not plan.never_ready:
        key = os.environ.get("VLLM_API_KEY", "")
        if plan.hollow:
            Hollow(options.port, key)
        else:
            serve(options, key, plan.dies_after)
        if plan.dies_after_s is not None:
            time.sleep(plan.dies_after_s)
            die()
    stop.get()
    os.kill(core, signal.SIGKILL)
    os._exit(0)


if __name__ == "__main__":
    main()
