"""A LoRA adapter on a base model on this machine: samples, learns, saves itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from retrain.config.schema import LossConfig
from retrain.models.engine import Rows
from retrain.models.lora import LoraAdapter, LoraSpec
from retrain.policies.backends import BACKENDS
from retrain.policies.local.base import BaseModel
from retrain.policies.local.loss import LossParts, LossRows, policy_loss
from retrain.policies.local.sampler import sample
from retrain.policies.policy import (
    NonFiniteUpdateError,
    OnDone,
    OptimizerStep,
    UpdateStats,
)
from retrain.types import Completion, IntArray, SamplingParams, TrainBatch

_OPTIMIZER_FILE = "optimizer.safetensors"
# Measured on two cores: activations of about this many padded tokens stay in the cache of a CPU
# core; a GPU wants more.
_AUTO_MICRO_BATCH = {"cpu": 768, "cuda": 16384}


class LocalPolicy:
    """One adapter; nothing of it is shared with another policy on the same base."""

    capabilities = BACKENDS["local"]

    def __init__(
        self,
        base: BaseModel,
        spec: LoraSpec,
        seed: int,
        micro_batch_tokens: int | None = None,
    ) -> None:
        """`micro_batch_tokens=None` takes a size that suits the device."""
        self.base = base
        self.codec = base.codec
        self.adapter = LoraAdapter(
            spec,
            base.adapter_shapes(spec),
            seed,
            base.device,
            base.adapter_target_names(spec),
            base.name,
        )
        self._micro_batch_tokens = micro_batch_tokens or _AUTO_MICRO_BATCH[base.device.type]
        self._params = torch.nn.Parameter(self.adapter.params)
        self._params.grad = self.adapter.grads
        self._optimizer = torch.optim.AdamW([self._params], lr=0.0)

    @property
    def device(self) -> str:
        return str(self.base.device)

    def sample(
        self,
        prompts: Sequence[IntArray],
        keys: NDArray[np.uint64],
        sampling: SamplingParams,
        on_done: OnDone | None = None,
    ) -> list[list[Completion]]:
        with torch.no_grad():
            session = self.base.engine.session(self.adapter)
        groups = sample(
            session, self.codec, prompts, keys, sampling, self.base.context, self.base.device
        )
        if on_done is not None:
            for i, group in enumerate(groups):
                for j, completion in enumerate(group):
                    on_done(i, j, completion)
        return groups

    def update(self, batch: TrainBatch, loss: LossConfig, optimizer: OptimizerStep) -> UpdateStats:
        learning = batch.mask if loss.kl_coef > 0 else batch.credit != 0
        chosen = np.flatnonzero(learning.any(axis=1))
        if len(chosen) == 0:
            return UpdateStats(0.0, 0.0, False, None, None, None, None, None, None)
        self.adapter.grads.zero_()
        used = np.unique(batch.prompt_index[chosen])
        used_prompts = [batch.prompts[index] for index in used]
        with torch.no_grad():
            session = self.base.engine.session(self.adapter, train=True)
            base = self.base.engine.session(None) if loss.kl_coef > 0 else None
            base_prompts = base.prompts(used_prompts) if base is not None else None
        prompts = session.prompts(used_prompts)
        parts: list[LossParts] = []
        for micro in self._micro_batches(batch, chosen):
            rows = self._rows(micro, used)
            base_logprobs = None
            if base is not None and base_prompts is not None:
                with torch.no_grad():
                    base_logprobs = base.logprobs(base_prompts, rows, micro.temperature)
            part = policy_loss(
                LossRows(
                    logprobs=session.logprobs(prompts, rows, micro.temperature),
                    old_logprobs=self._tensor(micro.logprobs),
                    credit=self._tensor(micro.credit),
                    mask=rows.mask,
                    weight=self._tensor(micro.weight),
                    base_logprobs=base_logprobs,
                ),
                loss,
            )
            part.loss.backward()  # type: ignore[no-untyped-call]
            parts.append(part)
        session.finish()
        total = sum(float(part.loss.detach()) for part in parts)
        grad_norm = float(self.adapter.grads.norm())
        if not np.isfinite(total):
            raise NonFiniteUpdateError(f"the loss is {total}")
        if not np.isfinite(grad_norm):
            raise NonFiniteUpdateError(
                f"the gradient's norm is {grad_norm} (the loss is {total:g})"
            )
        self._step(optimizer, grad_norm)
        return _stats(parts, total, grad_norm, with_base=base is not None)

    def logprobs(self, batch: TrainBatch) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Log-probabilities of the batch's completion tokens as they are now, a micro-batch at a
        time: (logprobs, mask), both (rows, tokens). The order of the rows depends on their lengths
        alone, so two policies can be compared part by part."""
        used = np.unique(batch.prompt_index)
        with torch.no_grad():
            session = self.base.engine.session(self.adapter)
            prompts = session.prompts([batch.prompts[index] for index in used])
        for micro in self._micro_batches(batch, np.arange(batch.num_rows)):
            rows = self._rows(micro, used)
            # Not around the yield: the caller's code would run without gradients too.
            with torch.no_grad():
                logprobs = session.logprobs(prompts, rows, micro.temperature)
            yield logprobs, rows.mask

    def _step(self, step: OptimizerStep, grad_norm: float) -> None:
        if 0 < step.grad_clip < grad_norm:
            self.adapter.grads.mul_(step.grad_clip / grad_norm)
        group = self._optimizer.param_groups[0]
        group.update(lr=step.lr, betas=step.betas, weight_decay=step.weight_decay)
        self._optimizer.step()

    def _micro_batches(self, batch: TrainBatch, chosen: IntArray) -> Iterator[TrainBatch]:
        """Rows sorted by length and cut so that no part holds more padded tokens than allowed
        (a single row may). Every part is cut to its longest row."""
        lengths = batch.mask.sum(axis=1)
        order = chosen[np.argsort(lengths[chosen], kind="stable")]
        longest_prompt = max(len(prompt) for prompt in batch.prompts)
        extra = longest_prompt if self.base.engine.rows_hold_prompts else 0
        start = 0
        for end in range(1, len(order) + 1):
            if end < len(order):
                padded = (end + 1 - start) * (int(lengths[order[end]]) + extra)
                if padded <= self._micro_batch_tokens:
                    continue
            part = batch.rows(order[start:end])
            yield part.cut(int(lengths[order[end - 1]]))
            start = end

    def _rows(self, batch: TrainBatch, used: IntArray) -> Rows:
        """`used` holds the indices of the session's prompts, in order."""
        index = np.searchsorted(used, batch.prompt_index)
        return Rows(
            prompt_index=torch.from_numpy(index).to(self.base.device),
            token_ids=torch.from_numpy(batch.token_ids).to(self.base.device),
            mask=torch.from_numpy(batch.mask).to(self.base.device),
        )

    def _tensor(self, values: NDArray[np.float64]) -> torch.Tensor:
        return torch.from_numpy(values.astype(np.float32)).to(self.base.device)

    def save(self, folder: Path) -> None:
        """adapter_config.json, adapter_model.safetensors (PEFT's names) and the optimizer."""
        self.adapter.save(folder)
        state = self._optimizer.state.get(self._params, {})
        tensors = {name: value.detach().cpu() for name, value in state.items()}
        save_file(tensors, folder / _OPTIMIZER_FILE)

    def start_from(self, folder: Path) -> None:
        """Take the adapter in `folder` (PEFT format) as the starting point; the optimizer is fresh.

        Raises InputError when its layers or shapes are not this adapter's.
        """
        self.adapter.load(folder)

    def load(self, folder: Path) -> None:
        self.adapter.load(folder)
        state = load_file(folder / _OPTIMIZER_FILE, device=str(self.base.device))
        if "step" in state:
            state["step"] = state["step"].cpu()
        self._optimizer.state[self._params] = dict(state)

    def export(self, folder: Path) -> None:
        self.adapter.save(folder)


def _stats(
    parts: Sequence[LossParts], total: float, grad_norm: float, with_base: bool
) -> UpdateStats:
    tokens = sum(part.tokens for part in parts)
    return UpdateStats(
        loss=total,
        grad_norm=grad_norm,
        stepped=True,
        ratio_mean=sum(part.ratio_sum for part in parts) / tokens,
        ratio_max=max(part.ratio_max for part in parts),
        log_ratio_mean=sum(part.log_ratio_sum for part in parts) / tokens,
        clip_fraction=sum(part.clipped for part in parts) / tokens,
        kl_to_sampler=sum(part.kl_to_sampler_sum for part in parts) / tokens,
        kl_to_base=sum(part.kl_to_base_sum for part in parts) / tokens if with_base else None,
    )
