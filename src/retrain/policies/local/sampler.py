"""Sampling completions: one prefill a prompt, then token by token; finished rows leave, and rows
that wait for a place take theirs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retrain import seeding
from retrain.errors import InputError
from retrain.models.engine import Cache, RefillableCache, Session
from retrain.policies.local.memory import ran_out_of_memory
from retrain.policies.policy import Codec
from retrain.types import BoolArray, Completion, FloatArray, IntArray, OnDone, SamplingParams

_log = logging.getLogger("retrain")

# Dropping finished rows copies the cache, so it waits until this share of the rows is done; so does
# filling their places, which takes a pass over new prompts.
_DROP_SHARE = 0.15
# Positions whose uniform numbers are computed at once.
_UNIFORM_BLOCK = 64


@dataclass(frozen=True, slots=True)
class Draw:
    """One sampled token a row. token_ids (rows,); logprobs (rows,) under the distribution that
    was sampled from; entropies (rows,) of the untruncated one, or None."""

    token_ids: Tensor
    logprobs: Tensor
    entropies: Tensor | None


def draw_tokens(logits: Tensor, uniforms: Tensor, sampling: SamplingParams) -> Draw:
    """Sample one token a row by inverse CDF: the first token, in order of ids, at which the
    cumulative probability exceeds the row's uniform number.

    logits (rows, vocabulary); uniforms (rows,) float64 in [0, 1). Temperature 0 takes the most
    likely token and reports log-probabilities at temperature 1. With top_p < 1 only the smallest
    set of most likely tokens whose probability reaches top_p can be drawn (Holtzman et al. 2020,
    arXiv 1904.09751), and log-probabilities are those of the renormalised set.
    """
    greedy = sampling.temperature == 0
    logprobs = torch.log_softmax(logits if greedy else logits / sampling.temperature, -1)
    probs = logprobs.exp()
    entropies = None
    if sampling.entropies:
        entropies = -(probs * logprobs.clamp_min(torch.finfo(logprobs.dtype).min)).sum(-1)
    if greedy:
        token_ids = logits.argmax(-1)
    else:
        if sampling.top_p < 1.0:
            probs = probs * _nucleus(probs, sampling.top_p)
        cdf = probs.cumsum(-1, dtype=torch.float64)
        targets = uniforms * cdf[:, -1]
        token_ids = torch.searchsorted(cdf, targets[:, None], right=True)[:, 0]
        token_ids = token_ids.clamp_max(logits.shape[-1] - 1)
        if sampling.top_p < 1.0:
            logprobs = logprobs - probs.sum(-1, keepdim=True).log()
    found = logprobs.gather(1, token_ids[:, None])[:, 0]
    return Draw(token_ids, found, entropies)


def _nucleus(probs: Tensor, top_p: float) -> Tensor:
    """(rows, vocabulary) True on the smallest set of likely tokens that reaches top_p."""
    ordered, order = probs.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    return torch.zeros_like(probs, dtype=torch.bool).scatter(1, order, before < top_p)


@dataclass(frozen=True, slots=True)
class Decoding:
    """How completions are decoded; none of it has a say in what is drawn.

    rows:    completions decoded at once; None for all.
    stride:  tokens drawn between two looks at what has finished. Looking makes a GPU wait; rows
             that finish in between draw a few tokens that are thrown away.
    refills: whether the session's caches take waiting rows in while others go on.
    """

    rows: int | None = None
    stride: int = 1
    refills: bool = False


def sample(
    session: Session,
    codec: Codec,
    prompts: Sequence[IntArray],
    keys: NDArray[np.uint64],
    sampling: SamplingParams,
    context: int,
    device: torch.device,
    decoding: Decoding | None = None,
    on_done: OnDone | None = None,
    on_smaller: Callable[[int], None] | None = None,
) -> list[list[Completion]]:
    """`keys.shape[1]` completions of each prompt; `keys (prompts, completions)` name the rows'
    streams of uniform numbers. Rows end at an end token, at `max_tokens`, or where the model's
    context of `context` tokens is full.

    on_done:    as in `Policy.sample`.
    on_smaller: told how many rows are decoded at once from here on, when the memory held no more.
    """
    room = [context - len(prompt) for prompt in prompts]
    if min(room) < 1:
        longest = max(len(prompt) for prompt in prompts)
        raise InputError(
            f"a prompt has {longest} tokens, and the model's context holds {context}; "
            "leave out longer problems or take a model with a longer context"
        )
    limits = np.repeat(np.minimum(sampling.max_tokens, room), keys.shape[1])
    rows = _Rows(codec, keys, limits, sampling.entropies, on_done)
    decoding = decoding or Decoding()
    at_once = min(decoding.rows or len(limits), len(limits))
    waiting = np.arange(len(limits))
    with torch.no_grad():
        while len(waiting):
            decoder = _Decoder(session, prompts, rows, sampling, decoding, at_once, device)
            try:
                waiting = decoder.run(waiting)
                continue
            except RuntimeError as error:
                if at_once == 1 or not ran_out_of_memory(error):
                    raise
            # Only here is the cache free: the exception held on to it.
            torch.cuda.empty_cache()
            at_once = (at_once + 1) // 2
            # What these rows have drawn, they will draw again: that hangs on their keys alone.
            waiting = rows.unfinished()
            rows.lengths[waiting] = 0
            if on_smaller is not None:
                on_smaller(at_once)
    return rows.completions()


@dataclass(slots=True)
class _Rows:
    """What has been drawn so far; row i * completions + j is completion j of prompt i.

    tokens, logprobs, entropies: (rows, longest); lengths, stopped: (rows,)
    """

    codec: Codec
    keys: NDArray[np.uint64]
    limits: IntArray
    with_entropies: bool
    on_done: OnDone | None
    tokens: IntArray = field(init=False)
    logprobs: FloatArray = field(init=False)
    entropies: FloatArray | None = field(init=False)
    lengths: IntArray = field(init=False)
    stopped: BoolArray = field(init=False)
    finished: BoolArray = field(init=False)
    _made: dict[int, Completion] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        shape = (len(self.limits), int(self.limits.max()))
        self.tokens = np.zeros(shape, dtype=np.int64)
        self.logprobs = np.zeros(shape)
        self.entropies = np.zeros(shape) if self.with_entropies else None
        self.lengths = np.zeros(shape[0], dtype=np.int64)
        self.stopped = np.zeros(shape[0], dtype=bool)
        self.finished = np.zeros(shape[0], dtype=bool)

    @property
    def per_prompt(self) -> int:
        return int(self.keys.shape[1])

    def unfinished(self) -> IntArray:
        return np.flatnonzero(~self.finished)

    def uniforms(self, index: IntArray, ahead: int) -> FloatArray:
        """(rows of index, block) numbers for the tokens from `ahead` after what the rows hold."""
        positions = (self.lengths[index] + ahead)[:, None] + np.arange(_UNIFORM_BLOCK)
        return seeding.uniforms(self.keys.reshape(-1)[index][:, None], positions)

    def add(
        self,
        index: IntArray,
        running: BoolArray,
        ids: IntArray,
        logprobs: FloatArray,
        entropies: FloatArray | None,
        end_ids: IntArray,
    ) -> BoolArray:
        """Take the tokens (places, stride) drawn for the rows of `index` (places,) up to their
        ends -> which places go on."""
        steps = np.arange(ids.shape[1])
        before = self.lengths[index]
        ended = (ids[:, :, None] == end_ids).any(axis=2)
        done = ended | (before[:, None] + steps + 1 >= self.limits[index][:, None])
        finishes = done.any(axis=1)
        last = np.where(finishes, done.argmax(axis=1), len(steps) - 1)
        place, step = np.nonzero((steps <= last[:, None]) & running[:, None])
        where = (index[place], before[place] + step)
        self.tokens[where] = ids[place, step]
        self.logprobs[where] = logprobs[place, step]
        if self.entropies is not None and entropies is not None:
            self.entropies[where] = entropies[place, step]
        self.lengths[index[running]] += last[running] + 1
        through = running & finishes
        self.finished[index[through]] = True
        self.stopped[index[through]] = ended[through, last[through]]
        if self.on_done is not None:
            for row in index[through].tolist():
                text = self.codec.decode(self.tokens[row, : self.lengths[row]])
                self._made[row] = self._completion(row, text)
                prompt, completion = divmod(row, self.per_prompt)
                self.on_done(prompt, completion, self._made[row])
        goes_on: BoolArray = running & ~finishes
        return goes_on

    def completions(self) -> list[list[Completion]]:
        """(prompts, completions)"""
        count, times = self.keys.shape
        left = [row for row in range(count * times) if row not in self._made]
        texts = self.codec.decode_batch([self.tokens[row, : self.lengths[row]] for row in left])
        for row, text in zip(left, texts, strict=True):
            self._made[row] = self._completion(row, text)
        return [[self._made[i * times + j] for j in range(times)] for i in range(count)]

    def _completion(self, row: int, text: str) -> Completion:
        length = self.lengths[row]
        return Completion(
            token_ids=self.tokens[row, :length],
            logprobs=self.logprobs[row, :length],
            text=text,
            stop_reason="stop" if self.stopped[row] else "length",
            entropies=None if self.entropies is None else self.entropies[row, :length],
        )


@dataclass(slots=True)
class _Decoder:
    """Decodes rows in the places of one cache.

    index: (places,) which row is in each place; running: (places,) whether it still goes on.
    """

    session: Session
    prompts: Sequence[IntArray]
    rows: _Rows
    sampling: SamplingParams
    decoding: Decoding
    at_once: int
    device: torch.device
    index: IntArray = field(init=False)
    running: BoolArray = field(init=False)

    def run(self, waiting: IntArray) -> IntArray:
        """Decode the first `at_once` rows, and with refills all the others too -> rows that still
        wait."""
        self.index, waiting = waiting[: self.at_once], waiting[self.at_once :]
        self.running = np.ones(len(self.index), dtype=bool)
        longest = max(len(prompt) for prompt in self.prompts)
        # The tokens that a finished row draws until somebody looks need a place too.
        room = longest + int(self.rows.limits.max()) + self.decoding.stride
        cache, logits = self._prefill(self.index, room)
        end_ids = np.array(self.rows.codec.eos_ids)
        column = _UNIFORM_BLOCK
        while True:
            drawn: list[Draw] = []
            for _ in range(self.decoding.stride):
                if column == _UNIFORM_BLOCK:
                    numbers = self.rows.uniforms(self.index, len(drawn))
                    block, column = torch.from_numpy(numbers).to(self.device), 0
                if drawn:
                    logits = self.session.decode(cache, drawn[-1].token_ids)
                drawn.append(draw_tokens(logits, block[:, column], self.sampling))
                column += 1
            before = self.running
            self.running = self.rows.add(
                *(self.index, before, _gathered([d.token_ids for d in drawn])),
                _gathered([d.logprobs for d in drawn]),
                _gathered([d.entropies for d in drawn if d.entropies is not None]),
                end_ids,
            )
            left, places = int(self.running.sum()), len(self.index)
            refilling = self.decoding.refills and len(waiting) > 0
            if left == 0 and not refilling:
                return waiting
            next_ids = drawn[-1].token_ids
            slots = cast(RefillableCache, cache)
            if self.decoding.refills and (gone := before & ~self.running).any():
                slots.retire(torch.from_numpy(np.flatnonzero(gone)).to(self.device))
            if refilling:
                logits = self.session.decode(cache, next_ids)
                if left <= (1 - _DROP_SHARE) * places:
                    waiting = self._refill(slots, logits, waiting)
                    column = _UNIFORM_BLOCK
                continue
            if left <= (1 - _DROP_SHARE) * places:
                kept = torch.from_numpy(np.flatnonzero(self.running)).to(self.device)
                cache.select(kept)
                next_ids, block = next_ids.index_select(0, kept), block.index_select(0, kept)
                self.index, self.running = self.index[self.running], np.ones(left, dtype=bool)
            logits = self.session.decode(cache, next_ids)

    def _prefill(self, index: IntArray, room: int | None) -> tuple[Cache, Tensor]:
        """A cache with these rows' prompts in it, and their next-token logits. Without `room` it
        holds no more than the prompts."""
        of_prompt = index // self.rows.per_prompt
        used, place = np.unique(of_prompt, return_inverse=True)
        prompts = [self.prompts[i] for i in used]
        room = room or max(len(prompt) for prompt in prompts)
        cache, logits = self.session.prefill(prompts, room)
        if len(place) != len(used):
            spread = torch.from_numpy(place).to(self.device)
            cache.select(spread)
            logits = logits.index_select(0, spread)
        return cache, logits

    def _refill(self, cache: RefillableCache, logits: Tensor, waiting: IntArray) -> IntArray:
        """Waiting rows into the places of finished ones -> those that still wait."""
        places = np.flatnonzero(~self.running)[: len(waiting)]
        new, waiting = waiting[: len(places)], waiting[len(places) :]
        other, first = self._prefill(new, None)
        where = torch.from_numpy(places).to(self.device)
        cache.replace(where, other)
        logits[where] = first
        self.index = self.index.copy()
        self.index[places], self.running[places] = new, True
        return waiting


def _gathered(columns: Sequence[Tensor]) -> NDArray[Any]:
    """(places,) tensors of each step -> (places, steps), in main memory."""
    return np.asarray(torch.stack(list(columns), 1).cpu().numpy()) if columns else np.zeros((0, 0))
