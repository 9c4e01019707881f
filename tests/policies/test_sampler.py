from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retrain import seeding
from retrain.errors import InputError
from retrain.models.engine import Rows, pad_ids
from retrain.models.factored import FactoredEngine
from retrain.models.fused import FusedEngine
from retrain.models.modules import ModuleEngine
from retrain.policies.local.sampler import Decoding, draw_tokens, sample
from retrain.types import Completion, OnDone, SamplingParams
from tests.conftest import VOCABULARY, make_adapter, make_module

CPU = torch.device("cpu")
PROMPTS = [np.arange(3, 3 + n) for n in (5, 9, 2)]


class PlainCodec:
    """Token ids as text; several end tokens."""

    eos_ids = (0, 1, 2, 3, 4, 5)

    def decode(self, row: np.ndarray) -> str:
        return " ".join(str(i) for i in row)

    def decode_batch(self, rows: list[np.ndarray]) -> list[str]:
        return [" ".join(str(i) for i in row) for row in rows]


def keys(rows: int, columns: int, seed: int = 1) -> np.ndarray:
    return np.array(
        [[seeding.key(seed, "test", i, j) for j in range(columns)] for i in range(rows)],
        dtype=np.uint64,
    )


def run(
    session: Any,
    row_keys: np.ndarray,
    prompts: list[np.ndarray] | None = None,
    context: int = 128,
    decoding: Decoding | None = None,
    on_done: OnDone | None = None,
    on_smaller: Any = None,
    **sampling: Any,
) -> list[list[Completion]]:
    params = SamplingParams(**{"max_tokens": 20, **sampling})
    codec: Any = PlainCodec()
    return sample(
        *(session, codec, prompts or PROMPTS, row_keys, params, context, CPU),
        *(decoding, on_done, on_smaller),
    )


def flat(groups: list[list[Completion]]) -> list[Completion]:
    return [completion for group in groups for completion in group]


logits_and_uniform = st.tuples(
    st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=12),
    st.floats(0, 1, exclude_max=True),
)


@given(logits_and_uniform)
def test_inverse_cdf(case: tuple[list[float], float]) -> None:
    """The token's interval of the cumulative distribution holds the uniform number."""
    logits, uniform = torch.tensor([case[0]]), torch.tensor([case[1]], dtype=torch.float64)
    drawn = draw_tokens(logits, uniform, SamplingParams(8))
    token = int(drawn.token_ids[0])
    probs = torch.softmax(logits[0].double(), -1)
    low, high = float(probs[:token].sum()), float(probs[: token + 1].sum())
    assert low - 1e-5 <= case[1] <= high + 1e-5
    torch.testing.assert_close(
        drawn.logprobs.double(), probs[token].log()[None], atol=1e-5, rtol=1e-5
    )


@given(logits_and_uniform, st.floats(0.05, 1))
def test_nucleus(case: tuple[list[float], float], top_p: float) -> None:
    """Only tokens of the smallest likely set are drawn; log-probabilities are renormalised."""
    logits, uniform = torch.tensor([case[0]]), torch.tensor([case[1]], dtype=torch.float64)
    drawn = draw_tokens(logits, uniform, SamplingParams(8, top_p=top_p))
    token = int(drawn.token_ids[0])
    probs = torch.softmax(logits[0], -1)
    likelier = float(probs[probs > probs[token]].sum())
    assert likelier < top_p + 1e-6
    order = probs.sort(descending=True).values
    kept = order[(order.cumsum(0) - order) < top_p].sum()
    assert float(drawn.logprobs[0]) == pytest.approx(float((probs[token] / kept).log()), abs=1e-4)


def test_a_token_of_probability_zero_is_never_drawn() -> None:
    logits = torch.tensor([[0.0, -torch.inf, 0.0, -torch.inf]])
    for uniform in (0.0, 0.4999999, 0.5, 1 - 2**-53):
        drawn = draw_tokens(logits, torch.tensor([uniform], dtype=torch.float64), SamplingParams(1))
        assert int(drawn.token_ids[0]) in (0, 2)


def test_frequencies_follow_the_distribution() -> None:
    probs = torch.tensor([0.5, 0.2, 0.25, 0.05])
    n = 20_000
    uniforms = seeding.uniforms(np.arange(n, dtype=np.uint64), 0)
    drawn = draw_tokens(probs.log().expand(n, -1), torch.from_numpy(uniforms), SamplingParams(1))
    found = torch.bincount(drawn.token_ids, minlength=4) / n
    assert (found - probs).abs().max() < 0.015


def test_entropy_is_that_of_the_whole_distribution() -> None:
    logits = torch.tensor([[0.0, 0.0, -torch.inf], [0.0, 0.0, 0.0]])
    params = SamplingParams(1, top_p=0.5, entropies=True)
    drawn = draw_tokens(logits, torch.zeros(2, dtype=torch.float64), params)
    torch.testing.assert_close(drawn.entropies, torch.tensor([np.log(2.0), np.log(3.0)]).float())


@pytest.mark.parametrize("engine", [FusedEngine, FactoredEngine, ModuleEngine])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_match_a_plain_forward_pass(
    any_module: Any, engine: Any, temperature: float
) -> None:
    adapter = make_adapter(any_module)
    session = engine(any_module).session(adapter)
    groups = run(session, keys(3, 4), temperature=temperature)
    rows = [completion for group in groups for completion in group]
    ids, mask = pad_ids([row.token_ids for row in rows], CPU)
    index = torch.arange(3).repeat_interleave(4)
    expected = session.logprobs(session.prompts(PROMPTS), Rows(index, ids, mask), temperature)
    for row, logprobs in zip(rows, expected, strict=True):
        np.testing.assert_allclose(row.logprobs, logprobs[: row.num_tokens], atol=1e-5)


def test_both_engines_draw_the_same_tokens(any_module: Any) -> None:
    adapter = make_adapter(any_module)
    fused = run(FusedEngine(any_module).session(adapter), keys(3, 4))
    modules = run(ModuleEngine(any_module).session(adapter), keys(3, 4))
    for one, other in zip(flat(fused), flat(modules), strict=True):
        assert one.token_ids.tolist() == other.token_ids.tolist()


def test_a_row_draws_the_same_whichever_rows_share_its_batch(llama_like: Any) -> None:
    session = FusedEngine(llama_like).session(make_adapter(llama_like))
    row_keys = keys(3, 4)
    together = run(session, row_keys)
    for problem in range(3):
        for sample_index in (0, 3):
            alone = run(
                session,
                row_keys[problem : problem + 1, sample_index : sample_index + 1],
                [PROMPTS[problem]],
            )[0][0]
            assert alone.token_ids.tolist() == together[problem][sample_index].token_ids.tolist()


def same(one: list[list[Completion]], other: list[list[Completion]]) -> None:
    for a, b in zip(flat(one), flat(other), strict=True):
        assert a.token_ids.tolist() == b.token_ids.tolist()
        assert (a.text, a.stop_reason) == (b.text, b.stop_reason)
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)
        assert (a.entropies is None) == (b.entropies is None)
        if a.entropies is not None and b.entropies is not None:
            np.testing.assert_allclose(a.entropies, b.entropies, atol=1e-5)


ENGINES = {"fused": FusedEngine, "factored": FactoredEngine, "modules": ModuleEngine}


@settings(max_examples=40)
@given(
    st.sampled_from(list(ENGINES)),
    st.integers(1, 14),
    st.sampled_from([1, 2, 5, 16]),
    st.booleans(),
    st.integers(1, 70),
    st.sampled_from([128, 30]),
)
def test_how_rows_are_decoded_has_no_say_in_what_is_drawn(
    kind: str, rows: int, stride: int, refills: bool, max_tokens: int, context: int
) -> None:
    module = make_module("qwen3")
    plain = FusedEngine(module).session(None)
    engine = ENGINES[kind](module)
    decoding = Decoding(rows, stride, refills and engine.refills)
    row_keys, wanted = keys(3, 4, rows), {"max_tokens": max_tokens, "entropies": True}
    expected = run(plain, row_keys, context=context, **wanted)
    heard: dict[tuple[int, int], Completion] = {}

    def on_done(prompt: int, completion: int, made: Completion) -> None:
        assert (prompt, completion) not in heard
        heard[prompt, completion] = made

    found = run(
        engine.session(None),
        row_keys,
        context=context,
        decoding=decoding,
        on_done=on_done,
        **wanted,
    )
    same(found, expected)
    assert len(heard) == 12
    assert all(found[i][j] is made for (i, j), made in heard.items())


class Small:
    """A session whose device holds only so many rows."""

    def __init__(self, session: Any, rows: int, after: int) -> None:
        self.session, self.rows, self.after = session, rows, after

    def prefill(self, prompts: Any, room: int) -> Any:
        return self.session.prefill(prompts, room)

    def decode(self, cache: Any, token_ids: torch.Tensor) -> torch.Tensor:
        self.after -= 1
        if len(token_ids) > self.rows and self.after < 0:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.session.decode(cache, token_ids)


@pytest.mark.parametrize("engine", list(ENGINES.values()))
@pytest.mark.parametrize("after", [0, 7])
def test_when_memory_runs_out_fewer_rows_are_decoded_at_once(engine: Any, after: int) -> None:
    made = engine(make_module("qwen3"))
    session, row_keys = made.session(None), keys(3, 4)
    expected = run(session, row_keys)
    smaller: list[int] = []
    heard: list[Completion] = []
    found = run(
        Small(session, 4, after),
        row_keys,
        decoding=Decoding(None, 1, made.refills),
        on_done=lambda i, j, completion: heard.append(completion),
        on_smaller=smaller.append,
    )
    same(found, expected)
    assert smaller == [6, 3]
    assert len(heard) == 12
    with pytest.raises(torch.OutOfMemoryError):
        run(Small(session, 0, 0), row_keys)


def test_other_errors_are_no_lack_of_memory() -> None:
    class Broken(Small):
        def decode(self, cache: Any, token_ids: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("device-side assert triggered")

    with pytest.raises(RuntimeError, match="device-side assert"):
        run(Broken(FusedEngine(make_module("qwen3")).session(None), 0, 0), keys(3, 4))


def test_rows_end_at_any_end_token_or_at_the_limit(llama_like: Any) -> None:
    session = FusedEngine(llama_like).session(None)
    rows = flat(run(session, keys(3, 16), max_tokens=12))
    assert {row.stop_reason for row in rows} == {"stop", "length"}
    for row in rows:
        inner = set(row.token_ids[:-1].tolist())
        assert not inner & set(PlainCodec.eos_ids)
        if row.stop_reason == "stop":
            assert row.token_ids[-1] in PlainCodec.eos_ids
        else:
            assert row.num_tokens == 12
            assert row.token_ids[-1] not in PlainCodec.eos_ids
        assert len(row.logprobs) == row.num_tokens


def test_the_context_limits_each_row_by_its_own_prompt(llama_like: Any) -> None:
    session = FusedEngine(llama_like).session(None)
    groups = run(session, keys(3, 8), context=12, max_tokens=50)
    for prompt, group in zip(PROMPTS, groups, strict=True):
        assert max(row.num_tokens for row in group) <= 12 - len(prompt)
    with pytest.raises(InputError, match="a prompt has 9 tokens, and the model's context holds 9"):
        run(session, keys(3, 1), context=9)


def test_greedy_takes_the_most_likely_token(llama_like: Any) -> None:
    session = FusedEngine(llama_like).session(None)
    greedy = run(session, keys(3, 2), temperature=0.0)
    for prompt, group in zip(PROMPTS, greedy, strict=True):
        assert group[0].token_ids.tolist() == group[1].token_ids.tolist()
        ids = prompt
        for token in group[0].token_ids:
            logits = llama_like(input_ids=torch.from_numpy(ids)[None]).logits[0, -1]
            assert int(logits.argmax()) == token
            ids = np.append(ids, token)


@settings(max_examples=10)
@given(st.integers(0, 2**32))
def test_other_keys_draw_other_tokens(seed: int) -> None:
    session = FusedEngine(make_module("qwen3")).session(None)
    one, other = run(session, keys(3, 4, seed)), run(session, keys(3, 4, seed + 1))
    assert [r.token_ids.tolist() for r in flat(one)] != [r.token_ids.tolist() for r in flat(other)]


def test_vocabulary_is_what_the_models_have() -> None:
    assert make_module("qwen3").config.vocab_size == VOCABULARY
