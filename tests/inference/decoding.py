"""The thread of the test server that computes: it alone touches torch.

Rows that wait for the same weights with the same settings are decoded together.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retrain.types import Completion, FloatArray, IntArray, Problem, SamplingParams

if TYPE_CHECKING:
    from retrain.models.engine import Session
    from retrain.models.lora import LoraAdapter
    from retrain.policies.local.base import BaseModel

ROWS_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class Settings:
    """How rows are decoded.

    raw:          tell log-probabilities at temperature 1 of the whole distribution, whatever was
                  sampled from.
    with_special: the text shows special tokens; with_end: and the one that ends it.
    """

    max_tokens: int
    temperature: float
    top_p: float
    end_ids: tuple[int, ...]
    raw: bool
    with_special: bool = False
    with_end: bool = False


@dataclass(slots=True, eq=False)
class _Work:
    """Something to compute: `run`, or a row of `weights` (None is the base model)."""

    future: Future[Any]
    run: Callable[[], Any] | None = None
    weights: LoraAdapter | None = None
    settings: Settings | None = None
    prompt: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    key: int = 0


class Decoder(threading.Thread):
    """The thread, with the base model in float32."""

    def __init__(self, folder: Path | None) -> None:
        """folder: of a Hugging Face model; None is the embedded one."""
        super().__init__(name="inference-compute", daemon=True)
        self.base: BaseModel
        self._folder = folder
        self._waiting: deque[_Work] = deque()
        self._ready = threading.Condition()
        self._stopping = False
        self._session: tuple[Any, Session] | None = None

    def __enter__(self) -> Decoder:
        self.start()
        self.do(self._load_base)
        return self

    def __exit__(self, *_: object) -> None:
        with self._ready:
            self._stopping = True
            self._ready.notify()
        self.join()

    def do(self, run: Callable[[], Any]) -> Any:
        """The result of `run`, carried out in the thread."""
        work = _Work(Future(), run)
        self._add([work])
        return work.future.result()

    def complete(
        self,
        weights: LoraAdapter | None,
        settings: Settings,
        prompts: Sequence[IntArray],
        keys: Sequence[int],
    ) -> list[Completion]:
        """A completion of each prompt, drawn from the stream of its key."""
        rows = [
            _Work(Future(), None, weights, settings, prompt, key)
            for prompt, key in zip(prompts, keys, strict=True)
        ]
        self._add(rows)
        return [row.future.result() for row in rows]

    def adapter(self, folder: Path) -> LoraAdapter:
        """Read an adapter in PEFT's format. Runs in the thread, through `do`."""
        from retrain.models.lora import LoraAdapter, LoraSpec

        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        targets = config["target_modules"]
        names = targets if isinstance(targets, str) else tuple(targets)
        spec = LoraSpec(config["r"], float(config["lora_alpha"]), names)
        adapter = LoraAdapter(
            *(spec, self.base.adapter_shapes(spec), 0, self.base.device),
            *(self.base.adapter_target_names(spec), self.base.name),
        )
        adapter.load(folder)
        return adapter

    def run(self) -> None:
        while True:
            with self._ready:
                self._ready.wait_for(lambda: self._waiting or self._stopping)
                if self._stopping:
                    return
                together = self._take()
            try:
                results = self._carry_out(together)
            except Exception as error:
                for work in together:
                    work.future.set_exception(error)
                continue
            for work, result in zip(together, results, strict=True):
                work.future.set_result(result)

    def _add(self, works: Sequence[_Work]) -> None:
        with self._ready:
            self._waiting.extend(works)
            self._ready.notify()

    def _take(self) -> list[_Work]:
        first = self._waiting[0]
        if first.run is not None:
            return [self._waiting.popleft()]
        like = [
            work
            for work in self._waiting
            if work.weights is first.weights and work.settings == first.settings
        ][:ROWS_AT_ONCE]
        taken = set(map(id, like))
        self._waiting = deque(work for work in self._waiting if id(work) not in taken)
        return like

    def _carry_out(self, works: Sequence[_Work]) -> list[Any]:
        first = works[0]
        if first.run is not None:
            return [first.run()]
        assert first.settings is not None
        session = self._open(first.weights)
        return self._sample(session, first.settings, works)

    def _load_base(self) -> None:
        from retrain.config.schema import BackendConfig, ModelConfig
        from retrain.policies.local.base import load_base

        source = "embedded" if self._folder is None else str(self._folder)
        self.base = load_base(ModelConfig(model=source), BackendConfig(device="cpu"))

    def _open(self, weights: LoraAdapter | None) -> Session:
        import torch

        if self._session is None or self._session[0] is not weights:
            with torch.no_grad():
                self._session = (weights, self.base.engine.session(weights))
        return self._session[1]

    def _sample(
        self, session: Session, settings: Settings, works: Sequence[_Work]
    ) -> list[Completion]:
        from retrain.policies.local.sampler import sample

        groups = sample(
            session,
            _Texts(self.base.codec.tokenizer, settings),
            [work.prompt for work in works],
            np.array([[work.key] for work in works], dtype=np.uint64),
            SamplingParams(settings.max_tokens, settings.temperature, settings.top_p),
            self.base.context,
            self.base.device,
        )
        completions = [group[0] for group in groups]
        plain = settings.top_p == 1.0 and settings.temperature in (0.0, 1.0)
        if plain or not settings.raw:
            return completions
        raw = self._plain_logprobs(session, works, completions)
        return [replace(c, logprobs=row) for c, row in zip(completions, raw, strict=True)]

    def _plain_logprobs(
        self, session: Session, works: Sequence[_Work], completions: Sequence[Completion]
    ) -> list[FloatArray]:
        """(tokens,) of each completion, at temperature 1 and without truncation."""
        import torch

        from retrain.models.engine import Rows, pad_ids

        ids, mask = pad_ids([c.token_ids for c in completions], self.base.device)
        with torch.no_grad():
            prompts = session.prompts([work.prompt for work in works])
            found = session.logprobs(prompts, Rows(torch.arange(len(works)), ids, mask), 1.0)
        return [
            row[: c.num_tokens].double().numpy() for row, c in zip(found, completions, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class _Texts:
    """A codec for the sampler that ends completions, and writes them out, as was asked for."""

    tokenizer: Any
    settings: Settings

    @property
    def eos_ids(self) -> tuple[int, ...]:
        return self.settings.end_ids

    def decode(self, token_ids: IntArray) -> str:
        ids = token_ids.tolist()
        if not self.settings.with_end and ids and ids[-1] in self.settings.end_ids:
            ids.pop()
        text: str = self.tokenizer.decode(ids, skip_special_tokens=not self.settings.with_special)
        return text

    def decode_batch(self, rows: list[IntArray]) -> list[str]:
        return [self.decode(row) for row in rows]

    def encode(self, problem: Problem) -> IntArray:
        raise NotImplementedError

    def pieces(self, token_ids: IntArray) -> list[str]:
        return [self.tokenizer.decode([index]) for index in token_ids.tolist()]
