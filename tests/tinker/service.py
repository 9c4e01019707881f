"""What the stand-in knows and answers: sessions, models, samplers, saved weights, futures."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.loopback.faults import Fault
from tests.loopback.ledger import Call
from tests.tinker.compute import Compute, Job, Sampler, SampleWork
from tests.tinker.errors import ApiError, UserError
from tests.tinker.model import Meta, Model
from tests.tinker.saved import Saved, checked_name

KEPT = 20_000
"""Results that were handed over are kept for callers who lost them on the way; so many."""

KEPT_SAMPLERS = 64
"""Of one session; each holds a copy of its adapter."""


@dataclass(slots=True, eq=False)
class Future:
    """A request that was taken on. `body` and `failure` are set before `done`."""

    id: str
    kind: str
    session: str
    call: Call
    answer: dict[str, Any] = field(default_factory=dict)
    done: threading.Event = field(default_factory=threading.Event)
    body: bytes | dict[str, Any] = b""
    failure: dict[str, str] | None = None
    key: tuple[str, int] = ("", 0)
    fault: Fault | None = None
    taken_on: float = field(default_factory=time.monotonic)

    def succeed(self, body: bytes | dict[str, Any]) -> None:
        self.body = body
        self.done.set()

    def fail(self, message: str, category: str) -> None:
        self.failure = {"error": message, "category": category}
        self.done.set()


@dataclass(slots=True, eq=False)
class Run:
    """A model in training and its queue. next_seq: the request that may run now."""

    id: str
    session: str
    meta: Meta
    model: Model | None = None
    next_seq: int = 1
    waiting: dict[int, Job] = field(default_factory=dict)


@dataclass(slots=True)
class Asked:
    """One operation asked for: what `submit` needs of it."""

    kind: str
    session: str
    scope: str
    """Within which `seq` is unique: a request with the same number is the same request."""
    seq: int
    summary: dict[str, Any]
    start: Callable[[Future], None]
    skip: Callable[[], None] = lambda: None
    """In place of `start` when the operation is not to be carried out."""
    answer: Callable[[str], dict[str, Any]] = lambda request_id: {}


class Service:
    """The state, and the operations on it. Everything is lost with it but `folder`."""

    def __init__(
        self,
        base: str,
        folder: Path,
        compute: Compute,
        alpha: float | None,
    ) -> None:
        self.base, self.compute, self.alpha = base, compute, alpha
        self.saved = Saved(folder)
        self.lock = threading.RLock()
        self.sessions: set[str] = set()
        self.runs: dict[str, Run] = {}
        self.samplers: dict[str, tuple[str, Sampler]] = {}
        self.futures: OrderedDict[str, Future] = OrderedDict()
        self.by_seq: dict[tuple[str, int], Future] = {}

    # Operations whose result is polled for.

    def submit(self, asked: Asked, call: Call, fault: Fault | None) -> tuple[Future, bool]:
        """Take on a request -> its future, and whether it is a new one."""
        with self.lock:
            key = asked.scope, asked.seq
            known = self.by_seq.get(key)
            if known is not None:
                return known, False
            future = Future(uuid.uuid4().hex, asked.kind, asked.session, call)
            future.key, future.fault = key, fault
            future.answer = {"request_id": future.id, **asked.answer(future.id)}
            self.futures[future.id] = self.by_seq[key] = future
            if fault is None or fault.carried_out or fault.kind == "paused":
                asked.start(future)
            else:
                future.fail("injected", fault.category)
                asked.skip()
            self._forget_old()
        return future, True

    def create_model(self, body: Mapping[str, Any]) -> Asked:
        session = self._session(body["session_id"])
        if body["base_model"] != self.base:
            raise ApiError(400, f"unknown base_model {body['base_model']!r}; here: {self.base!r}")
        lora = body["lora_config"]
        meta = Meta(
            self.base,
            lora["rank"],
            float(self.alpha or 2 * lora["rank"]),
            lora.get("seed") or 0,
            lora["train_mlp"],
            lora["train_attn"],
            body.get("user_metadata"),
        )
        run = Run(f"{session}:train:{body['model_seq_id']}", session, meta)

        def make() -> dict[str, Any]:
            run.model = Model(self.compute, meta)
            self.saved.add_run(run.id, meta)
            return {"type": "create_model", "model_id": run.id}

        def start(future: Future) -> None:
            self.runs[run.id] = run
            self.compute.add(_job(future, make))

        return Asked("create_model", session, run.id, 0, dict(body), start)

    def forward_backward(self, raw: bytes) -> Asked:
        from tests.tinker import wire

        try:
            batch = wire.read_batch(raw)
        except Exception as error:
            raise ApiError(422, f"not a ForwardBackwardRequest: {error}") from error
        summary = {
            "loss_fn": batch.loss_fn,
            "loss_fn_config": batch.config,
            "forward_only": batch.forward_only,
            "datums": len(batch.data),
            "tokens": sum(len(datum.tokens) for datum in batch.data),
        }

        def work(model: Model) -> bytes:
            return wire.write_outputs(*model.forward_backward(batch))

        return self._training("forward_backward", batch.model_id, batch.seq_id, summary, work)

    def optim_step(self, body: Mapping[str, Any]) -> Asked:
        adam = body.get("adam_params")
        if adam is None:
            raise ApiError(422, "the stand-in has no optimizer but AdamW")

        def work(model: Model) -> dict[str, Any]:
            return {"metrics": model.step(adam)}

        return self._training("optim_step", body["model_id"], body["seq_id"], dict(body), work)

    def save_weights(self, body: Mapping[str, Any]) -> Asked:
        def work(model: Model, run: Run) -> dict[str, Any]:
            path = self._save(run, model, "weights", body)
            return {"type": "save_weights", "path": path}

        return self._training_of_run("save_weights", body, work)

    def save_weights_external(self, body: Mapping[str, Any]) -> Asked:
        def work(model: Model, run: Run) -> dict[str, Any]:
            path = self._save(run, model, "external_weights", body)
            files = self.saved.find(path).iterdir()
            size = sum(f.stat().st_size for f in files if f.name.startswith("adapter_"))
            return {"type": "save_weights_external", "path": path, "size_bytes": size}

        return self._training_of_run("save_weights_external", body, work)

    def save_weights_for_sampler(self, body: Mapping[str, Any]) -> Asked:
        name = body.get("path")
        if body.get("kind", "snapshot") != "snapshot":
            raise ApiError(422, "the stand-in has no inflight samplers")

        def work(model: Model, run: Run) -> dict[str, Any]:
            answer = {"type": "save_weights_for_sampler"}
            if name is not None:
                return {**answer, "path": self._save(run, model, "sampler_weights", body)}
            sampler_id = f"{run.session}:sample:{body['sampling_session_seq_id']}"
            with self.lock:
                sampler = Sampler(run.meta.base_model, model.snapshot())
                self.samplers[sampler_id] = (run.session, sampler)
                own = [key for key, (of, _) in self.samplers.items() if of == run.session]
                for old in own[:-KEPT_SAMPLERS]:
                    del self.samplers[old]
            return {**answer, "sampling_session_id": sampler_id}

        return self._training_of_run("save_weights_for_sampler", body, work)

    def load_weights(self, body: Mapping[str, Any]) -> Asked:
        folder = self.saved.find(body["path"], "weights")
        meta = Meta.read(folder / "meta.json")
        optimizer = body["optimizer"]
        if body.get("session_id") is None:

            def load_into(model: Model, run: Run) -> dict[str, Any]:
                model.load(folder, optimizer)
                return {"type": "load_weights", "path": body["path"], "model_id": run.id}

            return self._training_of_run("load_weights", body, load_into)
        session = self._session(body["session_id"])
        if body.get("base_model") not in (None, self.base):
            raise ApiError(400, f"{body['path']} is of base model {meta.base_model!r}")
        run = Run(f"{session}:train:{body['model_seq_id']}", session, meta)

        def make() -> dict[str, Any]:
            run.model = Model(self.compute, meta)
            run.model.load(folder, optimizer)
            self.saved.add_run(run.id, meta)
            return {"type": "load_weights", "path": body["path"], "model_id": run.id}

        def start(future: Future) -> None:
            self.runs[run.id] = run
            self.compute.add(_job(future, make))

        return Asked("load_weights", session, run.id, 0, dict(body), start)

    def asample(self, body: Mapping[str, Any]) -> Asked:
        session, sampler = self._sampler(body["sampling_session_id"])
        work = self._work(body)

        def start(future: Future) -> None:
            from tests.tinker import wire

            def done(sampled: Any) -> None:
                future.succeed(wire.write_sampled(sampled))

            self.compute.add(Job(done, future.fail, sampler=sampler, work=work))

        def answer(request_id: str) -> dict[str, Any]:
            ids = [f"{request_id}:{i}" for i in range(work.num_samples)]
            return {"sample_sequence_ids": ids}

        scope, seq = body["sampling_session_id"], body["seq_id"]
        return Asked("asample", session, scope, seq, dict(body), start, answer=answer)

    def future(self, request_id: str) -> Future:
        with self.lock:
            found = self.futures.get(request_id)
        if found is None:
            raise ApiError(410, f"no such request, or forgotten: {request_id}")
        return found

    def forget(self, future: Future) -> None:
        """Its result is gone for good."""
        with self.lock:
            self.futures.pop(future.id, None)

    # Requests that are answered at once.

    def create_session(self, body: Mapping[str, Any]) -> dict[str, Any]:
        session = str(uuid.uuid4())
        with self.lock:
            self.sessions.add(session)
        return {"type": "create_session", "session_id": session}

    def session_heartbeat(self, body: Mapping[str, Any]) -> dict[str, Any]:
        self._session(body["session_id"])
        return {"type": "session_heartbeat"}

    def finish_session(self, session: str) -> None:
        """Free what the session held in memory."""
        with self.lock:
            self.sessions.discard(session)
            for run in [run for run in self.runs.values() if run.session == session]:
                del self.runs[run.id]
            for key in [key for key, (of, _) in self.samplers.items() if of == session]:
                del self.samplers[key]

    def get_info(self, body: Mapping[str, Any]) -> dict[str, Any]:
        run = self._run(body["model_id"])
        data = {
            "arch": "llama",
            "model_name": self.base,
            "tokenizer_id": str(self.compute.folder),
        }
        return {
            "type": "get_info",
            "model_id": run.id,
            "model_name": self.base,
            "model_data": data,
            "is_lora": True,
            "lora_rank": run.meta.rank,
        }

    def create_sampling_session(self, body: Mapping[str, Any]) -> dict[str, Any]:
        session = self._session(body["session_id"])
        sampler_id = f"{session}:sample:{body['sampling_session_seq_id']}"
        path = body.get("model_path")
        if path is not None:
            sampler = Sampler(self.base, self._load_sampler(path), path)
        elif body.get("base_model") == self.base:
            sampler = Sampler(self.base)
        else:
            raise ApiError(400, f"unknown base_model {body.get('base_model')!r}")
        with self.lock:
            self.samplers[sampler_id] = (session, sampler)
        return {"type": "create_sampling_session", "sampling_session_id": sampler_id}

    def get_sampler(self, sampler_id: str) -> dict[str, Any]:
        sampler = self._sampler(sampler_id)[1]
        return {
            "sampler_id": sampler_id,
            "base_model": sampler.base_model,
            "model_path": sampler.path,
        }

    def capabilities(self) -> dict[str, Any]:
        config = json.loads((self.compute.folder / "config.json").read_text())
        model = {
            "model_name": self.base,
            "max_context_length": config.get("max_position_embeddings"),
            "trainable": True,
            "sampleable": True,
        }
        return {"supported_models": [model]}

    # Parts of the above.

    def _training(
        self,
        kind: str,
        model_id: str,
        seq: int,
        summary: dict[str, Any],
        work: Callable[[Model], Any],
    ) -> Asked:
        run = self._run(model_id)
        if seq < 1:
            raise ApiError(422, f"seq_id {seq} is below 1")

        def queue(job: Job) -> None:
            run.waiting[seq] = job
            while (ready := run.waiting.pop(run.next_seq, None)) is not None:
                run.next_seq += 1
                self.compute.add(ready)

        def carry_out() -> Any:
            if run.model is None:
                raise UserError(f"{run.id} could not be made")
            return work(run.model)

        return Asked(
            kind,
            run.session,
            run.id,
            seq,
            {"seq_id": seq, **summary},
            lambda future: queue(_job(future, carry_out)),
            skip=lambda: queue(Job(_ignore, lambda message, category: None, run=_nothing)),
            answer=lambda request_id: {"model_id": run.id},
        )

    def _training_of_run(
        self, kind: str, body: Mapping[str, Any], work: Callable[[Model, Run], Any]
    ) -> Asked:
        run = self._run(body["model_id"])
        if body.get("path") is not None and kind != "load_weights":
            checked_name(body["path"])
        seq = body["seq_id"]
        return self._training(kind, run.id, seq, dict(body), lambda model: work(model, run))

    def _save(self, run: Run, model: Model, kind: str, body: Mapping[str, Any]) -> str:
        name = body["path"]
        folder = self.saved.place(run.id, kind, name)
        if folder.exists() and not body.get("overwrite"):
            raise UserError(f"{kind}/{name} exists")
        model.save(folder, optimizer=kind == "weights")
        return f"tinker://{run.id}/{kind}/{name}"

    def _load_sampler(self, path: str) -> Any:
        folder = self.saved.find(path, "sampler_weights")
        loaded = threading.Event()
        found: list[Any] = []

        def load() -> Any:
            adapter = self.compute.adapter(Meta.read(folder / "meta.json"))
            adapter.load(folder)
            return adapter

        def done(adapter: Any) -> None:
            found.append(adapter)
            loaded.set()

        self.compute.add(Job(done, lambda message, category: loaded.set(), run=load))
        loaded.wait()
        if not found:
            raise ApiError(500, f"{path} cannot be loaded")
        return found[0]

    def _work(self, body: Mapping[str, Any]) -> SampleWork:
        params, chunks = body["sampling_params"], body["prompt"]["chunks"]
        if any(chunk["type"] != "encoded_text" for chunk in chunks):
            raise ApiError(422, "the stand-in takes text only")
        asked = ("topk_prompt_logprobs", "topk_sample_logprobs", "prompt_alt_tokens_k")
        if params["top_k"] != -1 or any(body.get(name) for name in asked):
            raise ApiError(422, "the stand-in has no top-k")
        prompt = np.array([token for c in chunks for token in c["tokens"]], dtype=np.int64)
        stop = params.get("stop")
        texts = [stop] if isinstance(stop, str) else [s for s in stop or [] if isinstance(s, str)]
        seed = params.get("seed")
        last = body.get("prompt_logprobs_last_n") or len(prompt)
        return SampleWork(
            prompt=prompt,
            num_samples=body["num_samples"],
            key=(uuid.uuid4().int if seed is None else seed) % 2**64,
            max_tokens=params.get("max_tokens") or 2**20,
            temperature=params["temperature"],
            top_p=params["top_p"],
            end_ids=None if stop is None else tuple(s for s in stop if isinstance(s, int)),
            stop_texts=tuple(texts),
            prompt_logprobs_of_last=last if body.get("prompt_logprobs") else 0,
        )

    def _session(self, session: str) -> str:
        if session not in self.sessions:
            raise ApiError(404, f"no such session: {session}")
        return session

    def _run(self, model_id: str) -> Run:
        with self.lock:
            run = self.runs.get(model_id)
        if run is None:
            raise ApiError(404, f"no such model: {model_id}")
        return run

    def _sampler(self, sampler_id: str) -> tuple[str, Sampler]:
        with self.lock:
            found = self.samplers.get(sampler_id)
        if found is None:
            raise ApiError(404, f"no such sampling session: {sampler_id}")
        return found

    def _forget_old(self) -> None:
        while len(self.futures) > KEPT and next(iter(self.futures.values())).done.is_set():
            oldest = self.futures.popitem(last=False)[1]
            self.by_seq.pop(oldest.key, None)


def _job(future: Future, run: Callable[[], Any]) -> Job:
    return Job(future.succeed, future.fail, run=run)


def _ignore(result: Any) -> None:
    pass


def _nothing() -> None:
    pass
