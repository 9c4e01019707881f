from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel

from retrain.config.schema import LossConfig
from retrain.models.lora import LoraSpec
from retrain.policies.local.base import BaseModel
from retrain.policies.local.policy import LocalPolicy
from retrain.policies.policy import NonFiniteUpdateError, OptimizerStep, UpdateStats
from retrain.training.rollout import token_weights
from retrain.types import SamplingParams, TrainBatch, pad_mask, pad_rows
from tests.conftest import VOCABULARY, make_module
from tests.policies.test_sampler import PROMPTS, PlainCodec, flat, keys

STEP = OptimizerStep(lr=1e-2, betas=(0.9, 0.99), weight_decay=0.01, grad_clip=1.0)


def make_base(kind: str = "qwen3") -> BaseModel:
    codec: Any = PlainCodec()
    return BaseModel(make_module(kind), codec, "random")


def make_policy(
    base: BaseModel | None = None, micro: int | None = None, seed: int = 1
) -> LocalPolicy:
    return LocalPolicy(base or make_base(), LoraSpec(4, 8.0), seed, micro_batch_tokens=micro)


def make_batch(policy: LocalPolicy, seed: int = 0, zero_groups: tuple[int, ...] = ()) -> TrainBatch:
    """Completions that the policy samples, with credit drawn at random."""
    sampled = policy.sample(PROMPTS, keys(3, 4, seed), SamplingParams(12))
    rows = [completion for group in sampled for completion in group]
    mask = pad_mask([row.num_tokens for row in rows])
    index = np.repeat(np.arange(3), 4)
    credit = np.random.default_rng(seed).normal(size=(len(rows), 1)) * mask
    credit[np.isin(index, zero_groups)] = 0
    return TrainBatch(
        prompts=PROMPTS,
        prompt_index=index,
        token_ids=pad_rows([row.token_ids for row in rows], np.int64),
        mask=mask,
        logprobs=pad_rows([row.logprobs for row in rows]),
        credit=credit,
        weight=token_weights(mask, "token_mean", 12),
        temperature=1.0,
    )


def train(policy: LocalPolicy, steps: int, start: int = 0) -> list[UpdateStats]:
    return [
        policy.update(make_batch(policy, seed), LossConfig(), STEP)
        for seed in range(start, start + steps)
    ]


def test_first_update_has_ratio_one() -> None:
    policy = make_policy()
    stats = train(policy, 1)[0]
    assert stats.stepped
    assert stats.ratio_mean == pytest.approx(1, abs=1e-5)
    assert stats.ratio_max == pytest.approx(1, abs=1e-4)
    assert stats.kl_to_sampler == pytest.approx(0, abs=1e-8)
    assert stats.clip_fraction == 0


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_the_update_is_adamw_on_the_unbatched_gradient(kind: str, tmp_path: Path) -> None:
    """A reference made of PEFT, one row at a time, autograd, clipping and torch's AdamW."""
    policy = make_policy(make_base(kind))
    train(policy, 2)
    policy.export(tmp_path)
    model: Any = PeftModel.from_pretrained(make_module(kind), tmp_path, is_trainable=True).eval()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    fresh = make_policy(make_base(kind))
    fresh.adapter.load(tmp_path)
    batch = make_batch(fresh, 9, zero_groups=(1,))
    loss = torch.zeros(())
    for i in range(batch.num_rows):
        length = int(batch.mask[i].sum())
        prompt = PROMPTS[int(batch.prompt_index[i])]
        completion = torch.from_numpy(batch.token_ids[i, :length])
        ids = torch.cat([torch.from_numpy(prompt), completion])
        logits = model(input_ids=ids[None]).logits[0, len(prompt) - 1 : -1]
        logprobs = torch.log_softmax(logits, -1).gather(1, completion[:, None])[:, 0]
        ratio = (logprobs - torch.from_numpy(batch.logprobs[i, :length])).exp()
        loss = loss - (ratio * torch.from_numpy(batch.credit[i, :length])).sum() / batch.num_tokens
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(list(trainable.values()), STEP.grad_clip)
    torch.optim.AdamW(
        trainable.values(), lr=STEP.lr, betas=STEP.betas, weight_decay=STEP.weight_decay
    ).step()

    stats = fresh.update(batch, LossConfig(), STEP)
    assert stats.loss == pytest.approx(float(loss.detach()), rel=1e-4, abs=1e-6)
    assert stats.grad_norm == pytest.approx(float(norm), rel=1e-5)
    for name, factors in fresh.adapter.factors.items():
        wanted = trainable[f"base_model.model.{name}.lora_B.default.weight"]
        torch.testing.assert_close(factors.b, wanted.detach(), rtol=1e-3, atol=2e-5)


def test_micro_batches_change_nothing() -> None:
    base = make_base()
    batch = make_batch(make_policy(base), 3)
    policies = [make_policy(base, micro) for micro in (1, 30, 70, 10_000)]
    stats = [policy.update(batch, LossConfig(kl_coef=0.1), STEP) for policy in policies]
    for policy, found in zip(policies[1:], stats[1:], strict=True):
        assert found.loss == pytest.approx(stats[0].loss, rel=1e-4, abs=1e-6)
        error = (policy.adapter.grads - policies[0].adapter.grads).norm()
        assert error / policies[0].adapter.grads.norm() < 1e-5


def test_rows_without_credit_cost_nothing_and_change_nothing() -> None:
    base = make_base()
    batch = make_batch(make_policy(base), 3, zero_groups=(0, 2))
    skipped, dense = make_policy(base), make_policy(base)
    skipped.update(batch, LossConfig(), STEP)
    # A credit too small to matter makes the other rows take part.
    tiny = replace(batch, credit=np.where(batch.mask & (batch.credit == 0), 1e-30, batch.credit))
    dense.update(tiny, LossConfig(), STEP)
    error = (skipped.adapter.grads - dense.adapter.grads).norm() / dense.adapter.grads.norm()
    assert error < 1e-5


def test_no_credit_at_all_is_no_step() -> None:
    policy = make_policy()
    train(policy, 1)
    before = policy.adapter.params.clone()
    batch = make_batch(policy, 2, zero_groups=(0, 1, 2))
    stats = policy.update(batch, LossConfig(), STEP)
    assert not stats.stepped
    assert torch.equal(policy.adapter.params, before)
    assert policy.update(batch, LossConfig(kl_coef=0.1), STEP).kl_to_base is not None


@pytest.mark.parametrize("poison", ["credit", "logprobs"])
def test_non_finite_updates_never_reach_the_weights(poison: str) -> None:
    policy = make_policy()
    train(policy, 2)
    before = policy.adapter.params.clone()
    batch = make_batch(policy, 5)
    values = getattr(batch, poison).copy()
    values[0, 0] = np.nan
    with pytest.raises(NonFiniteUpdateError, match=r"the (loss|gradient)"):
        policy.update(replace(batch, **{poison: values}), LossConfig(), STEP)
    assert torch.equal(policy.adapter.params, before)
    assert policy.update(batch, LossConfig(), STEP).stepped


def test_kl_penalty_measures_the_distance_to_the_base() -> None:
    policy = make_policy()
    untouched = policy.update(make_batch(policy, 1), LossConfig(kl_coef=0.5), STEP)
    assert untouched.kl_to_base == pytest.approx(0, abs=1e-8)
    train(policy, 3)
    moved = policy.update(make_batch(policy, 8), LossConfig(kl_coef=0.5), STEP)
    assert moved.kl_to_base is not None
    assert moved.kl_to_base > 1e-4


def test_clipping_limits_the_step_and_reports_the_norm_before() -> None:
    base = make_base()
    batch = make_batch(make_policy(base), 3)
    free, clipped = make_policy(base), make_policy(base)
    norm = free.update(batch, LossConfig(), replace(STEP, grad_clip=0.0)).grad_norm
    found = clipped.update(batch, LossConfig(), replace(STEP, grad_clip=norm / 3))
    assert found.grad_norm == pytest.approx(norm)
    assert float(clipped.adapter.grads.norm()) == pytest.approx(norm / 3, rel=1e-4)


def test_save_and_load_restore_the_exact_state(tmp_path: Path) -> None:
    base = make_base()
    straight, saved = make_policy(base), make_policy(base)
    train(straight, 4)
    train(saved, 2)
    saved.save(tmp_path)
    loaded = make_policy(base, seed=99)
    loaded.load(tmp_path)
    train(loaded, 2, start=2)
    assert torch.equal(loaded.adapter.params, straight.adapter.params)


def test_save_before_the_first_step(tmp_path: Path) -> None:
    base = make_base()
    policy = make_policy(base)
    policy.save(tmp_path)
    loaded = make_policy(base, seed=5)
    loaded.load(tmp_path)
    train(policy, 1)
    train(loaded, 1)
    assert torch.equal(loaded.adapter.params, policy.adapter.params)


def test_policies_on_one_base_do_not_touch_each_other() -> None:
    base = make_base()
    one, other = make_policy(base, seed=1), make_policy(base, seed=2)
    before = other.adapter.params.clone()
    reference = other.sample(PROMPTS, keys(3, 4), SamplingParams(8))
    train(one, 2)
    assert torch.equal(other.adapter.params, before)
    again = other.sample(PROMPTS, keys(3, 4), SamplingParams(8))
    assert [r.token_ids.tolist() for r in flat(again)] == [
        r.token_ids.tolist() for r in flat(reference)
    ]


def test_exported_adapter_gives_peft_the_same_model(tmp_path: Path) -> None:
    policy = make_policy()
    train(policy, 3)
    policy.export(tmp_path)
    model: Any = PeftModel.from_pretrained(make_module("qwen3"), tmp_path).eval()
    sampled = policy.sample(PROMPTS, keys(3, 1), SamplingParams(6))
    for prompt, group in zip(PROMPTS, sampled, strict=True):
        ids = torch.from_numpy(np.concatenate([prompt, group[0].token_ids]))
        logits = model(input_ids=ids[None]).logits[0, len(prompt) - 1 : -1]
        expected = torch.log_softmax(logits, -1)[range(len(group[0].token_ids)), group[0].token_ids]
        np.testing.assert_allclose(group[0].logprobs, expected.detach(), atol=1e-5)


def test_token_ids_stay_in_the_vocabulary() -> None:
    sampled = make_policy().sample(PROMPTS, keys(3, 4), SamplingParams(12))
    assert max(int(row.token_ids.max()) for row in flat(sampled)) < VOCABULARY


class Narrow:
    """An engine on a device that holds only so many tokens of an update."""

    def __init__(self, engine: Any, tokens: int, recomputed: int | None = None) -> None:
        self.engine, self.tokens, self.recomputed = engine, tokens, recomputed or tokens
        self.kind, self.refills = engine.kind, engine.refills
        self.rows_hold_prompts = engine.rows_hold_prompts

    def session(self, adapter: Any, train: bool = False, checkpointing: bool = False) -> Any:
        session = self.engine.session(adapter, train, checkpointing)
        most = self.recomputed if checkpointing else self.tokens

        class Checked:
            def __getattr__(self, name: str) -> Any:
                return getattr(session, name)

            def logprobs(self, prompts: Any, rows: Any, temperature: float) -> Any:
                if train and rows.token_ids.numel() > most:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
                return session.logprobs(prompts, rows, temperature)

        return Checked()


@pytest.mark.parametrize("kind", ["qwen3", "gpt-neox"])
def test_when_memory_runs_out_the_update_takes_less_at_once(
    kind: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    base = make_base("neox" if kind == "gpt-neox" else kind)
    whole, narrow = make_policy(base), make_policy(base)
    batch = make_batch(whole)
    expected = whole.update(batch, LossConfig(), STEP)
    engine = base.engine
    base.engine = Narrow(engine, 3 * batch.mask.shape[1])
    found = narrow.update(batch, LossConfig(), STEP)
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert found.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)
    torch.testing.assert_close(narrow.adapter.params, whole.adapter.params, rtol=0, atol=1e-5)
    (warning,) = [r.getMessage() for r in caplog.records]
    assert f"from here on it takes {narrow.sizes.micro_batch_tokens} tokens at once" in warning
    narrow.update(make_batch(narrow, 1), LossConfig(), STEP)
    assert len(caplog.records) == 1
    narrow.save(tmp_path)
    again = make_policy(base)
    again.load(tmp_path)
    assert again.sizes == narrow.sizes
    given = make_policy(base, micro=512)
    given.load(tmp_path)
    assert given.sizes.micro_batch_tokens == 512


def test_a_row_too_long_alone_is_recomputed_and_else_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    base = make_base()
    policy = make_policy(base)
    batch = make_batch(policy)
    base.engine = Narrow(base.engine, 2, recomputed=batch.mask.shape[1])
    assert policy.update(batch, LossConfig(), STEP).stepped
    assert policy.sizes.checkpointing
    assert "computes activations twice" in caplog.text
    base.engine.recomputed = 2
    before = policy.adapter.params.clone()
    with pytest.raises(MemoryError, match=r"lower training\.max_tokens"):
        policy.update(batch, LossConfig(), STEP)
    assert torch.equal(policy.adapter.params, before)


def test_fewer_decoding_rows_are_remembered(caplog: pytest.LogCaptureFixture) -> None:
    base = make_base()
    policy = make_policy(base)
    expected = policy.sample(PROMPTS, keys(3, 4), SamplingParams(12))
    engine = base.engine

    class Small:
        kind, refills, rows_hold_prompts = engine.kind, False, False

        def session(self, adapter: Any, train: bool = False, checkpointing: bool = False) -> Any:
            session = engine.session(adapter, train, checkpointing)

            class Checked:
                prefill = session.prefill

                def decode(self, cache: Any, ids: torch.Tensor) -> torch.Tensor:
                    if len(ids) > 4:
                        raise torch.OutOfMemoryError("CUDA out of memory.")
                    return session.decode(cache, ids)

            return Checked()

    base.engine = Small()
    for _ in range(2):
        found = policy.sample(PROMPTS, keys(3, 4), SamplingParams(12))
        for one, other in zip(flat(found), flat(expected), strict=True):
            assert one.token_ids.tolist() == other.token_ids.tolist()
    assert policy.sizes.decode_rows == 3
    (warning,) = [r.getMessage() for r in caplog.records]
    assert "does not hold 12 completions; from here on 3 are decoded at once" in warning
