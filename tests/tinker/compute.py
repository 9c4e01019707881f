"""The thread of the stand-in that computes.

It is the only one that touches torch. A training request waits until the ones before it (by
`seq_id`) are done; sampling requests that wait for the same weights are decoded together.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retrain import seeding
from retrain.types import Completion, FloatArray, IntArray, SamplingParams
from tests.tinker.errors import UserError
from tests.tinker.model import Meta

if TYPE_CHECKING:
    from retrain.models.engine import Session
    from retrain.policies.local.base import BaseModel
    from tests.tinker.wire import Sampled

_log = logging.getLogger("standin")

ROWS_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class SampleWork:
    """One asample request. key names the stream of the first completion, as the service's seed;
    end_ids end a completion, and so does a text that holds one of stop_texts."""

    prompt: IntArray
    num_samples: int
    key: int
    max_tokens: int
    temperature: float
    top_p: float
    end_ids: tuple[int, ...] | None
    stop_texts: tuple[str, ...]
    prompt_logprobs_of_last: int
    """So many of the prompt's last tokens are scored."""

    @property
    def keys(self) -> list[int]:
        further = range(1, self.num_samples)
        return [self.key, *(seeding.key(self.key, "standin", i) for i in further)]

    def decoded_alike(self, other: SampleWork) -> bool:
        mine, others = (
            (w.max_tokens, w.temperature, w.top_p, w.end_ids, w.stop_texts) for w in (self, other)
        )
        return mine == others


@dataclass(slots=True, eq=False)
class Job:
    """Something to compute. `run` in the thread, or a sample from `sampler`."""

    done: Callable[[Any], None]
    failed: Callable[[str, str], None]
    """(message, category)"""
    run: Callable[[], Any] | None = None
    sampler: Sampler | None = None
    work: SampleWork | None = None


@dataclass(slots=True, eq=False)
class Sampler:
    """Weights to sample from; adapter None is the base model."""

    base_model: str
    adapter: Any = None
    path: str | None = None


class Compute(threading.Thread):
    """The thread, with the base model."""

    def __init__(self, name: str, folder: Path, exact: bool) -> None:
        """exact: every request is decoded alone, so that its log-probabilities are the same to the
        last bit whatever else is asked for at the same time."""
        super().__init__(name="standin-compute", daemon=True)
        self.base_name, self.folder, self.exact = name, folder, exact
        self.base: BaseModel
        self._jobs: deque[Job] = deque()
        self._ready = threading.Condition()
        self._stopping = False
        self._broken: str | None = None
        self._session: tuple[Any, Session] | None = None

    def add(self, job: Job) -> None:
        with self._ready:
            self._jobs.append(job)
            self._ready.notify()

    def stop(self) -> None:
        with self._ready:
            self._stopping = True
            self._ready.notify()

    def run(self) -> None:
        try:
            self._load()
        except Exception as error:
            _log.exception("the base model cannot be loaded")
            self._broken = str(error)
        while True:
            with self._ready:
                self._ready.wait_for(lambda: self._jobs or self._stopping)
                if self._stopping:
                    return
                jobs = self._take()
            self._carry_out(jobs)

    def _load(self) -> None:
        from retrain.config.schema import BackendConfig, ModelConfig
        from retrain.models.llama import supports
        from retrain.policies.local.base import load_base

        embedded = self.base_name == "embedded"
        source = "embedded" if embedded else str(self.folder)
        self.base = load_base(ModelConfig(model=source), BackendConfig(device="cpu"))
        if not supports(self.base.module):
            raise ValueError(f"{source} is of an architecture that the stand-in cannot train")

    def _take(self) -> list[Job]:
        """The next job, and those that wait and can be decoded with it."""
        first = self._jobs.popleft()
        if first.work is None or self.exact:
            return [first]
        together = [first]
        for job in list(self._jobs):
            if (
                job.work is not None
                and job.sampler is first.sampler
                and job.work.decoded_alike(first.work)
                and sum(j.work.num_samples for j in together if j.work) < ROWS_AT_ONCE
            ):
                together.append(job)
                self._jobs.remove(job)
        return together

    def _carry_out(self, jobs: list[Job]) -> None:
        from retrain.errors import InputError

        try:
            if self._broken is not None:
                raise RuntimeError(self._broken)
            if jobs[0].run is not None:
                jobs[0].done(jobs[0].run())
                return
            assert jobs[0].sampler is not None
            works = [job.work for job in jobs if job.work is not None]
            for job, sampled in zip(jobs, self._sample(jobs[0].sampler, works), strict=True):
                job.done(sampled)
        except (UserError, InputError) as error:
            for job in jobs:
                job.failed(str(error), "user")
        except Exception as error:
            _log.exception("a request failed")
            for job in jobs:
                job.failed(f"{type(error).__name__}: {error}", "server")

    def adapter(self, meta: Meta) -> Any:
        """A fresh adapter of this kind; runs in the thread."""
        from retrain.models.lora import LoraAdapter, LoraSpec

        spec = LoraSpec(meta.rank, meta.alpha)
        shapes = self.base.adapter_shapes(spec)
        names = self.base.adapter_target_names(spec)
        if meta.part is not None:
            shapes = {name: shape for name, shape in shapes.items() if meta.part in name}
            names = sorted({name.rsplit(".", 1)[-1] for name in shapes})
        return LoraAdapter(spec, shapes, meta.seed, self.base.device, names, self.base_name)

    def _open(self, sampler: Sampler) -> Session:
        import torch

        if self._session is None or self._session[0] is not sampler:
            with torch.no_grad():
                self._session = (sampler, self.base.engine.session(sampler.adapter))
        return self._session[1]

    def _sample(self, sampler: Sampler, works: Sequence[SampleWork]) -> list[Sampled]:
        from retrain.policies.local.sampler import sample
        from tests.tinker.wire import Sampled

        session, first = self._open(sampler), works[0]
        for work in works:
            if not 0 < len(work.prompt) < self.base.context:
                raise UserError(f"a prompt of {len(work.prompt)} tokens does not fit")
        ends = self.base.codec.eos_ids if first.end_ids is None else first.end_ids
        groups = sample(
            session,
            _Ends(ends),
            [work.prompt for work in works for _ in work.keys],
            np.array([[key] for work in works for key in work.keys], dtype=np.uint64),
            SamplingParams(first.max_tokens, first.temperature, first.top_p),
            self.base.context,
            self.base.device,
        )
        rows = iter([self._cut(group[0], first.stop_texts) for group in groups])
        return [
            Sampled([next(rows) for _ in work.keys], self._prompt_logprobs(session, work))
            for work in works
        ]

    def _cut(self, completion: Completion, stop_texts: Sequence[str]) -> Completion:
        """Up to the token with which one of the texts is complete."""
        if not stop_texts:
            return completion
        for end in range(1, completion.num_tokens + 1):
            text = self.base.codec.decode(completion.token_ids[:end])
            if any(stop in text for stop in stop_texts):
                return replace(
                    completion,
                    token_ids=completion.token_ids[:end],
                    logprobs=completion.logprobs[:end],
                    stop_reason="stop",
                )
        return completion

    def _prompt_logprobs(self, session: Session, work: SampleWork) -> FloatArray | None:
        """(tokens,) at temperature 1; NaN for the first token and those not asked for."""
        import torch

        from retrain.models.engine import Rows

        if work.prompt_logprobs_of_last == 0:
            return None
        found = np.full(len(work.prompt), np.nan)
        if len(work.prompt) > 1:
            ids = torch.from_numpy(work.prompt[None, 1:])
            rows = Rows(torch.zeros(1, dtype=torch.long), ids, torch.ones_like(ids).bool())
            with torch.no_grad():
                prompts = session.prompts([work.prompt[:1]])
                found[1:] = session.logprobs(prompts, rows, 1.0)[0].numpy()
        found[: len(found) - work.prompt_logprobs_of_last] = np.nan
        return found


@dataclass(frozen=True, slots=True)
class _Ends:
    """A codec for a sampler that only has to know where completions end."""

    eos_ids: tuple[int, ...]
    encode: Any = field(default=None)

    def decode(self, token_ids: IntArray) -> str:
        return ""

    def decode_batch(self, rows: list[IntArray]) -> list[str]:
        return [""] * len(rows)

    def pieces(self, token_ids: IntArray) -> list[str]:
        return [""] * len(token_ids)
