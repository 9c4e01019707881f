"""Keys and values of rows that are decoded together, each in a slot of its own.

A slot holds its row's tokens from column 0 on, so rows of any age can stand next to each other:
what has finished makes room for what waits. All tensors keep their place in memory while a row
set lasts, which is what lets a decoding step be recorded once and replayed (`StepRunner`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from retrain.models.engine import Cache
from retrain.types import IntArray

_log = logging.getLogger("retrain")

EXTENT = 256
"""Columns that attention reads are rounded up to a multiple of this, so that steps repeat."""

_EAGER_STEPS = 3
"""Steps of one kind before it is worth recording; they also warm up what the recording needs."""


class SlotCache:
    """keys, values: of each layer (slots, kv heads, room, head size); lengths: (slots,) tokens in
    each slot, on the device; token_ids: (slots,) the tokens to append next.

    `extent` is the number of columns that the next step reads, known without asking the device.
    """

    def __init__(
        self, keys: list[Tensor], values: list[Tensor], lengths: IntArray, room: int
    ) -> None:
        """keys, values: of each layer (slots, kv heads, columns so far, head size)."""
        self.keys = [_with_room(key, room) for key in keys]
        self.values = [_with_room(value, room) for value in values]
        self.room = room
        self._lengths = lengths.copy()
        self._place(self._lengths)

    def _place(self, lengths: IntArray) -> None:
        device = self.keys[0].device
        self.lengths = torch.tensor(lengths, device=device)
        self.token_ids = torch.zeros_like(self.lengths)
        self.slots = torch.arange(len(lengths), device=device)[:, None]
        self.heads = torch.arange(self.keys[0].shape[1], device=device)[None]
        self.columns = torch.arange(self.room, device=device)
        self.runner = StepRunner()

    @property
    def extent(self) -> int:
        needed = int(self._lengths.max()) + 1
        return min(-(-needed // EXTENT) * EXTENT, self.room)

    def step_taken(self) -> None:
        """A step has appended one token to every slot."""
        self._lengths += 1

    def write(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Put the next token's key and value (slots, kv heads, head size) into each slot."""
        where = (self.slots, self.heads, self.lengths[:, None])
        self.keys[layer].index_put_(where, key)
        self.values[layer].index_put_(where, value)

    def select(self, index: Tensor) -> None:
        for parts in (self.keys, self.values):
            for layer, part in enumerate(parts):
                # One layer after the other: two copies of the whole cache may not fit.
                parts[layer] = part.index_select(0, index)
                del part
        self._lengths = self._lengths[index.cpu().numpy()]
        self._place(self._lengths)

    def retire(self, places: Tensor) -> None:
        # They go on being written, from the start: never beyond the room, and nobody looks.
        self._lengths[places.cpu().numpy()] = 0
        self.lengths[places] = 0

    def replace(self, places: Tensor, other: Cache) -> None:
        assert isinstance(other, SlotCache)
        used = int(other._lengths.max())
        for mine, theirs in ((self.keys, other.keys), (self.values, other.values)):
            for part, new in zip(mine, theirs, strict=True):
                part[places, :, :used] = new[:, :, :used]
        self._lengths[places.cpu().numpy()] = other._lengths
        self.lengths[places] = other.lengths


def _with_room(part: Tensor, room: int) -> Tensor:
    slots, heads, columns, size = part.shape
    # Zeros, not whatever the memory held: a weight of 0 times NaN would be NaN.
    roomy = part.new_zeros(slots, heads, room, size)
    roomy[:, :, :columns] = part
    return roomy


class StepRunner:
    """Runs a step; on a GPU it records each kind of step as a CUDA graph and replays that, because
    launching a step's hundreds of kernels one by one takes longer than they do."""

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}
        self._recorded: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._pool: Any = None
        self._works = True

    def run(self, kind: int, step: Callable[[], Tensor], device: torch.device) -> Tensor:
        """`step()`; it must do the same for the same `kind`, on the same tensors in place. What it
        returns is overwritten by the next step of that kind."""
        if device.type != "cuda" or not self._works:
            return step()
        if kind in self._recorded:
            graph, result = self._recorded[kind]
            graph.replay()
            return result
        self._seen[kind] = self._seen.get(kind, 0) + 1
        if self._seen[kind] <= _EAGER_STEPS:
            return step()
        return self._record(kind, step)

    def _record(self, kind: int, step: Callable[[], Tensor]) -> Tensor:
        graph = torch.cuda.CUDAGraph()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                result = step()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._works = False
            reason = str(error).partition("\n")[0]
            _log.warning("decoding without CUDA graphs, which is slower: %s", reason)
            return step()
        self._recorded[kind] = (graph, result)
        # Recording runs nothing.
        graph.replay()
        return result
