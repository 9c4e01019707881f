"""What training takes of a device's memory, and sizes that fit. No torch: `explain` uses it too.

The formulas count what the engines keep, tensor by tensor; `docs/real-models.md` shows them beside
what was measured. On a GPU the update's size is measured again, by a dry pass before the first one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from retrain.models.shape import LOGITS_CHUNK, SUPPORTED, EngineKind, ModelShape


def engine_kind(model_type: str, parameters: int, device: str, each: int) -> EngineKind:
    """Which engine a model will run on, as far as its config tells. each: bytes of a weight."""
    if model_type not in SUPPORTED:
        return "modules"
    small = device == "cpu" and each == 4 and parameters <= LARGEST_MERGED
    return "fused" if small else "factored"


CPU_MICRO_BATCH = 768
"""Padded tokens whose activations stay in the cache of a CPU core, measured on two cores."""
LARGEST_MICRO_BATCH = 32768
"""Beyond this a larger micro-batch gains nothing on a GPU."""
ENOUGH_TOKENS = 8192
"""A micro-batch of so many tokens keeps a GPU busy; to get there, activations are recomputed."""
LARGEST_MERGED = 200_000_000
"""Parameters up to which a CPU merges the adapter into a second copy of the weights."""
USABLE = {"cuda": 0.9, "cpu": 0.6}
"""Share of a device's memory that is planned for."""
# Drawing a token: logits, log-probabilities, probabilities, and the sums in float64.
_DRAW_BYTES = 4 + 4 + 4 + 8


@dataclass(frozen=True, slots=True)
class Peak:
    """Bytes by what they are for. The cache and what an update keeps are never there together."""

    weights: int
    adapter: int
    optimizer: int
    cache: int
    update: int

    @property
    def total(self) -> int:
        return self.weights + self.adapter + self.optimizer + max(self.cache, self.update)


@dataclass(frozen=True, slots=True)
class MemoryModel:
    """What one policy takes, by the sizes that can be chosen.

    each: bytes of a weight. adapter: its parameters. room: tokens of the longest prompt with the
    longest completion. longest: of a row in the update.
    """

    shape: ModelShape
    engine: EngineKind
    each: int
    adapter: int
    room: int

    @property
    def _linear(self) -> int:
        return sum(out * into for out, into in self.shape.linear.values())

    @property
    def weights(self) -> int:
        # The merged copy of a session, and the parts that are stacked and not views.
        copies = self._linear if self.engine == "fused" else 0
        return self.each * (self.shape.parameters + copies)

    @property
    def adapter_bytes(self) -> int:
        """Float32 values and gradients; where the factors are joined, both once more."""
        joined = 3 if self.engine == "factored" else 0
        return 4 * self.adapter * (2 + joined)

    @property
    def optimizer(self) -> int:
        """AdamW's two float32 averages."""
        return 8 * self.adapter

    @property
    def fixed(self) -> int:
        return self.weights + self.adapter_bytes + self.optimizer

    def cache(self, rows: int) -> int:
        """Keys, values and the numbers of one draw, of rows that are decoded at once."""
        shape = self.shape
        token = 2 * shape.layers * shape.kv_heads * shape.head_dim * self.each
        return rows * (self.room * token + shape.vocabulary * _DRAW_BYTES)

    def update(self, tokens: int, checkpointing: bool) -> int:
        """What a micro-batch keeps for its backward pass, one layer's gradients, and the head."""
        shape = self.shape
        kept = shape.layers * shape.hidden if checkpointing else shape.layers * self._a_layer
        per_token = self.each * (kept + self._a_layer + 3 * shape.hidden)
        logits = min(4 * tokens * shape.vocabulary, max(LOGITS_CHUNK, 4 * shape.vocabulary))
        merged = self.each * self._linear if self.engine == "fused" else 0
        return tokens * per_token + 3 * logits + merged

    @property
    def _a_layer(self) -> int:
        """Numbers a token that a decoder layer keeps: its input and norms; queries, keys, values,
        before and after the rotation; what attention gives, twice; and the feed-forward block's
        inner values, four times. With explicit scores also a weight for each head and key."""
        shape = self.shape
        heads, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        scores = shape.heads * min(self.room, 512) if self.engine == "fused" else 0
        return 4 * shape.hidden + 4 * heads + 4 * kv + 4 * shape.intermediate + scores

    def peak(self, rows: int, tokens: int, checkpointing: bool) -> Peak:
        return Peak(
            self.weights,
            self.adapter_bytes,
            self.optimizer,
            self.cache(rows),
            self.update(tokens, checkpointing),
        )

    def rows_that_fit(self, rows: int, total: int, device: str) -> int:
        """Of `rows`, how many can be decoded at once; 1 at least."""
        left = USABLE[device] * total - self.fixed
        return max(1, min(rows, int(left // self.cache(1))))

    def update_that_fits(
        self, total: int, device: str, checkpointing: bool | None
    ) -> tuple[int, bool]:
        """(tokens of a micro-batch, whether to recompute activations) by the formulas."""
        left = int(USABLE[device] * total) - self.fixed
        return fit_update(self.update, left, device, checkpointing)


def fit_update(
    measure: Callable[[int, bool], int], left: int, device: str, checkpointing: bool | None
) -> tuple[int, bool]:
    """(tokens of a micro-batch, whether to recompute activations) so that an update takes no more
    than `left` bytes.

    measure:       bytes of a micro-batch of so many tokens, with or without recomputing.
    checkpointing: whether to recompute, if that is settled; else only when too few tokens fit.
    """
    most = CPU_MICRO_BATCH if device == "cpu" else LARGEST_MICRO_BATCH
    enough = min(most, ENOUGH_TOKENS)
    if checkpointing is None:
        tokens = _tokens(measure, left, most, False)
        if tokens >= enough:
            return tokens, False
        return max(tokens, _tokens(measure, left, most, True)), True
    return _tokens(measure, left, most, checkpointing), checkpointing


def _tokens(measure: Callable[[int, bool], int], left: int, most: int, checkpointing: bool) -> int:
    """Memory grows linearly with the tokens: two looks tell the line."""
    few, more = most // 32, most // 8
    at_few, at_more = measure(few, checkpointing), measure(more, checkpointing)
    slope = max((at_more - at_few) / (more - few), 1e-9)
    return max(1, min(most, few + int((left - at_few) / slope)))


def main_memory() -> int | None:
    """Bytes of this machine, or a container's share of it; None if unknown. Not what is free just
    now: the same config is to have the same sizes every time."""
    found = []
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            found.append(int(Path(limit).read_text()))
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemTotal:"):
                found.append(int(line.split()[1]) * 1024)
    return min(found, default=None)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether torch could not allocate, on a GPU or in main memory."""
    name, text = type(error).__name__, str(error)
    return name == "OutOfMemoryError" or "can't allocate memory" in text
