"""Both engines against the plain Hugging Face forward pass with PEFT's own LoRA layers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from tests.conftest import VOCABULARY, make_adapter, make_module
from torch import Tensor

from retrain.models import head as heads
from retrain.models.engine import Engine, Rows, Session, pad_ids
from retrain.models.factored import FactoredEngine
from retrain.models.fused import FusedEngine
from retrain.models.llama import supports
from retrain.models.lora import LoraAdapter
from retrain.models.modules import ModuleEngine

CPU = torch.device("cpu")
PROMPTS = [np.arange(3, 3 + n) for n in (5, 9, 2)]
LENGTHS = (4, 1, 7, 3, 6)
PROMPT_INDEX = (0, 0, 1, 2, 2)
TEMPERATURE = 0.7


def completions() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, VOCABULARY, size=n) for n in LENGTHS]


def rows() -> Rows:
    ids, mask = pad_ids(completions(), CPU)
    return Rows(torch.tensor(PROMPT_INDEX), ids, mask)


def scored(session: Session, of: Rows | None = None, temperature: float = TEMPERATURE) -> Tensor:
    return session.logprobs(session.prompts(PROMPTS), of or rows(), temperature)


def token_weights() -> Tensor:
    """A different weight a token, so that a misplaced gradient shows."""
    return torch.linspace(0.5, 2.0, len(LENGTHS) * max(LENGTHS)).view(len(LENGTHS), -1)


def with_peft(module: Any, adapter: LoraAdapter, folder: Path) -> Any:
    adapter.save(folder)
    return PeftModel.from_pretrained(copy.deepcopy(module), folder, is_trainable=True).eval()


def reference(model: Any) -> Tensor:
    """(rows, tokens) log-probabilities, one unpadded row at a time."""
    found = torch.zeros(len(LENGTHS), max(LENGTHS))
    for i, (prompt, completion) in enumerate(zip(PROMPT_INDEX, completions(), strict=True)):
        ids = torch.from_numpy(np.concatenate([PROMPTS[prompt], completion]))
        logits = model(input_ids=ids[None]).logits[0, len(PROMPTS[prompt]) - 1 : -1]
        logprobs = torch.log_softmax(logits / TEMPERATURE, -1)
        found[i, : len(completion)] = logprobs.gather(1, torch.from_numpy(completion)[:, None])[
            :, 0
        ]
    return found


def engines(module: Any) -> list[Engine]:
    module = copy.deepcopy(module)
    return [FusedEngine(module), FactoredEngine(module), ModuleEngine(module)]


@pytest.mark.parametrize("engine_index", [0, 1, 2], ids=["fused", "factored", "modules"])
class TestAgainstPeft:
    def test_logprobs(self, any_module: Any, engine_index: int, tmp_path: Path) -> None:
        adapter = make_adapter(any_module)
        expected = reference(with_peft(any_module, adapter, tmp_path)).detach()
        session = engines(any_module)[engine_index].session(adapter)
        torch.testing.assert_close(scored(session), expected, rtol=0, atol=1e-5)

    def test_without_adapter(self, any_module: Any, engine_index: int) -> None:
        engine = engines(any_module)[engine_index]
        scored(engine.session(make_adapter(any_module)))
        found = scored(engine.session(None))
        torch.testing.assert_close(found, reference(any_module), rtol=0, atol=1e-5)

    def test_gradients(self, any_module: Any, engine_index: int, tmp_path: Path) -> None:
        adapter = make_adapter(any_module)
        peft = with_peft(any_module, adapter, tmp_path)
        (reference(peft) * token_weights()).sum().backward()
        session = engines(any_module)[engine_index].session(adapter, train=True)
        (scored(session) * token_weights()).sum().backward()
        session.finish()
        expected = dict(peft.named_parameters())
        for name, factors in adapter.factors.items():
            for letter, grad in (("A", factors.grad_a), ("B", factors.grad_b)):
                wanted = expected[f"base_model.model.{name}.lora_{letter}.default.weight"].grad
                error = (grad - wanted).norm() / wanted.norm()
                assert error < 1e-5, (name, letter, float(error))

    def test_recomputed_activations_give_the_same_gradients(
        self, any_module: Any, engine_index: int
    ) -> None:
        engine, found = engines(any_module)[engine_index], []
        for checkpointing in (False, True, False):
            adapter, kept = make_adapter(any_module), []
            session = engine.session(adapter, train=True, checkpointing=checkpointing)

            def count(tensor: Tensor, kept: list[int] = kept) -> Tensor:
                kept.append(tensor.numel())
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
                loss = (scored(session) * token_weights()).sum()
            loss.backward()
            session.finish()
            found.append((adapter.grads, sum(kept)))
        torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-5, atol=1e-7)
        assert torch.equal(found[2][0], found[0][0])
        if engine.kind != "fused":
            assert found[1][1] < 0.5 * found[0][1] == 0.5 * found[2][1]

    def test_logits_in_chunks_give_the_same_gradients(
        self, any_module: Any, engine_index: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine, found = engines(any_module)[engine_index], []
        for limit in (heads.LOGITS_CHUNK, 4 * VOCABULARY * 2):
            monkeypatch.setattr(heads, "LOGITS_CHUNK", limit)
            adapter = make_adapter(any_module)
            session = engine.session(adapter, train=True)
            logprobs = scored(session)
            (logprobs * token_weights()).sum().backward()
            session.finish()
            found.append((logprobs.detach(), adapter.grads))
        torch.testing.assert_close(found[1][0], found[0][0], rtol=0, atol=1e-5)
        assert (found[1][1] - found[0][1]).norm() / found[0][1].norm() < 1e-5

    def test_gradients_of_parts_add_up(self, any_module: Any, engine_index: int) -> None:
        adapter = make_adapter(any_module)
        engine = engines(any_module)[engine_index]
        whole, weights = rows(), token_weights()

        def gradient(parts: list[list[int]]) -> Tensor:
            adapter.grads.zero_()
            session = engine.session(adapter, train=True)
            prompts = session.prompts(PROMPTS)
            for part in parts:
                index = torch.tensor(part)
                some = Rows(whole.prompt_index[index], whole.token_ids[index], whole.mask[index])
                (session.logprobs(prompts, some, TEMPERATURE) * weights[index]).sum().backward()
            session.finish()
            return adapter.grads.clone()

        at_once, apart = gradient([[0, 1, 2, 3, 4]]), gradient([[4, 0], [1], [3, 2]])
        assert (at_once - apart).norm() / at_once.norm() < 1e-5

    def test_decoding_agrees_with_the_forward_pass(
        self, any_module: Any, engine_index: int
    ) -> None:
        adapter = make_adapter(any_module)
        session = engines(any_module)[engine_index].session(adapter)
        ids = torch.randint(0, VOCABULARY, (6, 5), generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            cache, logits = session.prefill(PROMPTS, 17)
            cache.select(torch.arange(3).repeat_interleave(2))
            logits = logits.repeat_interleave(2, 0)
            kept = torch.arange(6)
            found = torch.full((6, 5), float("nan"))
            for position in range(5):
                if position == 2:
                    kept = torch.tensor([0, 2, 3, 5])
                    cache.select(kept)
                    logits = logits[kept]
                logprobs = torch.log_softmax(logits / TEMPERATURE, -1)
                tokens = ids[kept, position]
                found[kept, position] = logprobs.gather(1, tokens[:, None])[:, 0]
                logits = session.decode(cache, tokens)
            every = torch.ones(6, 5, dtype=torch.bool)
            full = scored(session, Rows(torch.arange(3).repeat_interleave(2), ids, every))
        torch.testing.assert_close(found[kept], full[kept], rtol=0, atol=1e-5)
        torch.testing.assert_close(found[:, :2], full[:, :2], rtol=0, atol=1e-5)

    def test_some_targets_only(self, any_module: Any, engine_index: int, tmp_path: Path) -> None:
        adapter = make_adapter(any_module, targets=["q_proj", "layers.1.mlp.down_proj"])
        expected = reference(with_peft(any_module, adapter, tmp_path)).detach()
        session = engines(any_module)[engine_index].session(adapter, train=True)
        found = scored(session)
        torch.testing.assert_close(found.detach(), expected, rtol=0, atol=1e-5)
        found.sum().backward()
        session.finish()
        assert all(f.grad_b.norm() > 0 for f in adapter.factors.values())


@pytest.mark.parametrize("kind", ["neox", "gemma2"])
def test_other_architectures(kind: str, tmp_path: Path) -> None:
    """Layers of other names and shapes, biases, sliding windows, capped logits."""
    module = make_module(kind)
    adapter = make_adapter(module)
    expected = reference(with_peft(module, adapter, tmp_path)).detach()
    assert not supports(module)
    engine = ModuleEngine(module)
    assert engine.head is not None
    found = scored(engine.session(adapter))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_head_of_its_own_kind_is_left_to_the_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits that are not the head's plain products must never be computed as if they were."""
    from transformers import CohereConfig, CohereForCausalLM

    config = CohereConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        logit_scale=0.5,
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)
        module = CohereForCausalLM(config).eval().requires_grad_(False)
    adapter = make_adapter(module)
    expected = reference(with_peft(module, adapter, tmp_path)).detach()
    engine = ModuleEngine(module)
    assert engine.head is None
    torch.testing.assert_close(scored(engine.session(adapter)), expected, rtol=0, atol=1e-5)


def test_bfloat16_is_as_close_to_float32_as_the_module_is(any_module: Any) -> None:
    """Rounding in other places than the module, no more of it."""
    adapter = make_adapter(any_module)
    exact = scored(FactoredEngine(copy.deepcopy(any_module)).session(adapter))
    small = copy.deepcopy(any_module).to(torch.bfloat16)
    modules = scored(ModuleEngine(copy.deepcopy(small)).session(adapter))
    factored = scored(FactoredEngine(small).session(adapter))
    mask = rows().mask
    error = (factored - exact)[mask].abs().mean()
    assert error < 1.5 * (modules - exact)[mask].abs().mean()
    assert factored.dtype == torch.float32


def test_stacked_weights_exist_once(llama_like: Any) -> None:
    module = copy.deepcopy(llama_like)
    before = module(input_ids=torch.arange(5)[None]).logits
    engine = FactoredEngine(module)
    attention = module.model.layers[0].self_attn
    stack = engine.model.layers[0].products[0].weight
    assert (
        attention.v_proj.weight.untyped_storage().data_ptr() == stack.untyped_storage().data_ptr()
    )
    torch.testing.assert_close(module(input_ids=torch.arange(5)[None]).logits, before)


@pytest.mark.parametrize("engine", [FusedEngine, FactoredEngine])
def test_single_token_completions(llama_like: Any, engine: Any) -> None:
    """The first token is predicted by the prompt alone; there are no row tokens to compute."""
    adapter = make_adapter(llama_like)
    ids, mask = pad_ids([np.array([5]), np.array([9])], CPU)
    session = engine(copy.deepcopy(llama_like)).session(adapter, train=True)
    found = scored(session, Rows(torch.tensor([0, 2]), ids, mask))
    found.sum().backward()
    session.finish()
    assert adapter.grads.norm() > 0
    assert found.shape == (2, 1)
    assert torch.isfinite(found).all()


def test_sliding_windows_and_other_architectures_are_left_to_the_module() -> None:
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=4,
    )
    assert not supports(MistralForCausalLM(config))
    assert not supports(make_module("gpt2"))
    assert supports(make_module("qwen3"))


def test_long_keys_use_the_fused_attention_kernel(llama_like: Any) -> None:
    """Beyond the explicit-scores limit the other kernel must give the same numbers."""
    from retrain.models import fused

    adapter = make_adapter(llama_like)
    session = FusedEngine(llama_like).session(adapter)
    short = scored(session)
    limit = fused._LONGEST_EXPLICIT_SCORES
    try:
        fused._LONGEST_EXPLICIT_SCORES = 1
        long = scored(session)
    finally:
        fused._LONGEST_EXPLICIT_SCORES = limit
    torch.testing.assert_close(short, long, rtol=0, atol=1e-5)
