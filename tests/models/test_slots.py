"""Rows that decode in slots of their own: refilled, retired, and replayed as a recorded step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.conftest import VOCABULARY, make_adapter, make_module
from torch.fx.experimental.proxy_tensor import make_fx

from retrain.models.factored import FactoredEngine, FactoredSession
from retrain.models.slots import EXTENT, SlotCache, StepRunner

PROMPTS = [np.arange(3, 3 + n) for n in (5, 9, 2)]
ROOM = 40


def session_of(module: Any) -> FactoredSession:
    return FactoredEngine(module).session(make_adapter(module))


def start(session: FactoredSession, prompts: list[np.ndarray]) -> tuple[SlotCache, torch.Tensor]:
    with torch.no_grad():
        cache, logits = session.prefill(prompts, ROOM)
    assert isinstance(cache, SlotCache)
    return cache, logits


def decode(session: FactoredSession, cache: SlotCache, ids: torch.Tensor) -> torch.Tensor:
    """ids (rows, steps) -> logits (rows, steps, vocabulary)"""
    with torch.no_grad():
        return torch.stack(
            [session.decode(cache, ids[:, i]).clone() for i in range(ids.shape[1])], 1
        )


def some_ids(rows: int, steps: int, seed: int = 3) -> torch.Tensor:
    return torch.randint(
        0, VOCABULARY, (rows, steps), generator=torch.Generator().manual_seed(seed)
    )


class Replayed(StepRunner):
    """Records the first step as the operations on tensors that it consists of, with every number
    that Python computed baked in, and replays those: what a CUDA graph does."""

    def __init__(self, session: FactoredSession, cache: SlotCache) -> None:
        super().__init__()
        self.session, self.cache, self.recorded = session, cache, 0
        self.graphs: dict[int, Any] = {}

    def run(self, kind: int, step: Any, device: torch.device) -> torch.Tensor:
        cache = self.cache
        if kind not in self.graphs:
            self.recorded += 1
            count = len(cache.keys)

            def on(*tensors: torch.Tensor) -> torch.Tensor:
                kept = (cache.keys, cache.values, cache.lengths, cache.token_ids)
                cache.keys, cache.values = list(tensors[:count]), list(tensors[count : 2 * count])
                cache.lengths, cache.token_ids = tensors[-2:]
                try:
                    return self.session._step(cache, kind)
                finally:
                    cache.keys, cache.values, cache.lengths, cache.token_ids = kept

            copies = [tensor.clone() for tensor in self.tensors()]
            self.graphs[kind] = make_fx(on)(*copies)
        return self.graphs[kind](*self.tensors())

    def tensors(self) -> list[torch.Tensor]:
        cache = self.cache
        return [*cache.keys, *cache.values, cache.lengths, cache.token_ids]


def test_a_recorded_step_replays_every_later_one(llama_like: Any) -> None:
    session, ids = session_of(llama_like), some_ids(3, 8)
    cache, _ = start(session, PROMPTS)
    expected = decode(session, cache, ids)
    again, _ = start(session, PROMPTS)
    runner = Replayed(session, again)
    again.runner = runner
    torch.testing.assert_close(decode(session, again, ids), expected, rtol=0, atol=0)
    assert runner.recorded == 1


def test_columns_are_read_in_whole_blocks() -> None:
    keys = [torch.zeros(2, 1, 3, 4)]
    cache = SlotCache(keys, keys, np.array([EXTENT - 2, 1]), 3 * EXTENT)
    seen = []
    for _ in range(4):
        seen.append(cache.extent)
        cache.step_taken()
    assert seen == [EXTENT, EXTENT, 2 * EXTENT, 2 * EXTENT]
    assert SlotCache(keys, keys, np.array([3, 1]), 10).extent == 10


def test_a_refilled_slot_is_like_new_and_its_neighbours_do_not_notice(llama_like: Any) -> None:
    session, ids = session_of(llama_like), some_ids(3, 9)
    cache, _ = start(session, PROMPTS)
    expected = decode(session, cache, ids)

    mixed, _ = start(session, PROMPTS)
    before = decode(session, mixed, ids[:, :4])
    mixed.retire(torch.tensor([1]))
    junk = ids[:, 4:6].clone()
    junk[1] = 0
    after = decode(session, mixed, junk)
    other, logits = start(session, [PROMPTS[1]])
    mixed.replace(torch.tensor([1]), other)
    rest = ids[:, 6:9].clone()
    rest[1] = ids[1, :3]
    last = decode(session, mixed, rest)
    for row in (0, 2):
        found = torch.cat([before[row], after[row], last[row]])
        torch.testing.assert_close(found, expected[row], rtol=0, atol=1e-5)
    torch.testing.assert_close(last[1], expected[1, :3], rtol=0, atol=1e-5)
    assert logits.shape == (1, VOCABULARY)


def test_a_retired_slot_never_runs_out_of_room() -> None:
    session = session_of(make_module("qwen3"))
    cache, _ = start(session, PROMPTS)
    cache.retire(torch.tensor([0, 1, 2]))
    found = decode(session, cache, some_ids(3, ROOM - 1))
    assert torch.isfinite(found).all()


def test_prompts_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch, llama_like: Any) -> None:
    session = session_of(llama_like)
    whole, logits = start(session, PROMPTS)
    monkeypatch.setattr("retrain.models.factored._PREFILL_TOKENS", 1)
    parts, logits_of_parts = start(session, PROMPTS)
    torch.testing.assert_close(logits_of_parts, logits, rtol=0, atol=1e-5)
    ids = some_ids(3, 2)
    expected = decode(session, whole, ids)
    torch.testing.assert_close(decode(session, parts, ids), expected, rtol=0, atol=1e-5)
