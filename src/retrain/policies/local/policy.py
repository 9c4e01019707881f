"""A LoRA adapter on a base model on this machine: samples, learns, saves itself."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from retrain.config.schema import LossConfig
from retrain.models.adapters.reader import open_adapter
from retrain.models.engine import Rows
from retrain.models.lora import LoraAdapter, LoraSpec, write_tensors
from retrain.policies.backends import BACKENDS
from retrain.policies.local.base import BaseModel
from retrain.policies.local.loss import LossParts, LossRows, policy_loss, update_stats
from retrain.policies.local.memory import CPU_MICRO_BATCH, USABLE, fit_update, ran_out_of_memory
from retrain.policies.local.optimizer import AdamW
from retrain.policies.local.sampler import Decoding, sample
from retrain.policies.policy import (
    NonFiniteUpdateError,
    OptimizerStep,
    UpdateStats,
)
from retrain.types import Completion, FloatArray, IntArray, OnDone, SamplingParams, TrainBatch

_log = logging.getLogger("retrain")

_OPTIMIZER_FILE = "optimizer.safetensors"
_SIZES_FILE = "sizes.json"
# Tokens drawn between two looks at what has finished; a look makes a GPU wait.
_STRIDE = {"cpu": 1, "cuda": 16}
# Tokens of a row of the dry pass.
_DRY_ROW = 1024


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is computed at once; None where that is still to be found."""

    micro_batch_tokens: int | None = None
    checkpointing: bool | None = None
    decode_rows: int | None = None

    def or_else(self, other: Sizes) -> Sizes:
        """These, and `other` where they are None."""
        mine = {key: value for key, value in asdict(self).items() if value is not None}
        return replace(other, **mine)

    def of_update(self) -> str:
        """In words, for a message."""
        recomputing = " and computes activations twice" if self.checkpointing else ""
        return f"{self.micro_batch_tokens} tokens at once{recomputing}"


class LocalPolicy:
    """One adapter; nothing of it is shared with another policy on the same base."""

    capabilities = BACKENDS["local"]

    def __init__(
        self,
        base: BaseModel,
        spec: LoraSpec,
        seed: int,
        micro_batch_tokens: int | None = None,
        gradient_checkpointing: bool | None = None,
        decode_rows: int | None = None,
        memory_share: float = 1.0,
    ) -> None:
        """Sizes that are None are found: so that they fit into this share of the device's memory,
        whose rest is a server's."""
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
        self._memory = int(base.total_memory * memory_share)
        self._given = Sizes(micro_batch_tokens, gradient_checkpointing, decode_rows)
        self.sizes = self._given
        self._optimizer = AdamW(self.adapter.params, self.adapter.grads)

    @property
    def device(self) -> str:
        return str(self.base.device)

    @property
    def context(self) -> int:
        return self.base.context

    @property
    def measured(self) -> Mapping[str, float]:
        return {}

    @property
    def updates(self) -> int:
        """Optimizer steps behind it."""
        return int(self._optimizer.state["step"]) if "step" in self._optimizer.state else 0

    def sample(
        self,
        prompts: Sequence[IntArray],
        keys: NDArray[np.uint64],
        sampling: SamplingParams,
        on_done: OnDone | None = None,
    ) -> list[list[Completion]]:
        with torch.no_grad():
            session = self.base.engine.session(self.adapter)
        longest = max(len(prompt) for prompt in prompts)
        rows = self.sizes.decode_rows or self.base.memory(
            self.adapter.num_params, min(longest + sampling.max_tokens, self.base.context)
        ).rows_that_fit(keys.size, self._memory, self.base.device.type)
        self.base.free_unused()
        smaller: list[int] = []
        groups = sample(
            *(session, self.codec, prompts, keys, sampling, self.base.context, self.base.device),
            Decoding(rows, _STRIDE[self.base.device.type], self.base.engine.refills),
            on_done,
            smaller.append,
        )
        if smaller:
            self.sizes = replace(self.sizes, decode_rows=smaller[-1])
            message = "the memory does not hold %d completions; from here on %d are decoded at once"
            _log.warning(message, rows, smaller[-1])
        return groups

    def update(self, batch: TrainBatch, loss: LossConfig, optimizer: OptimizerStep) -> UpdateStats:
        learning = batch.mask if loss.kl_coef > 0 else batch.credit != 0
        chosen = np.flatnonzero(learning.any(axis=1))
        if len(chosen) == 0:
            return UpdateStats(0.0, 0.0, False, None, None, None, None, None, None)
        self.base.free_unused()
        self._find_sizes(batch)
        before = self.sizes
        while True:
            try:
                parts = self._gradient(batch, chosen, loss)
                break
            except RuntimeError as error:
                if not ran_out_of_memory(error):
                    raise
                smaller = self._smaller(batch, chosen)
                if smaller is None:
                    raise MemoryError(
                        f"the update of one completion of {batch.mask.shape[1]} tokens does not "
                        "fit into the memory; lower training.max_tokens, or take a larger device"
                    ) from error
            # Only here is the memory free: the exception held on to it.
            self.sizes = smaller
            self.base.free_unused()
        if self.sizes != before:
            _log.warning(
                "the update did not fit into the memory; from here on it takes %s",
                self.sizes.of_update(),
            )
        total = sum(float(part.loss.detach()) for part in parts)
        grad_norm = float(self.adapter.grads.norm())
        if not np.isfinite(total):
            raise NonFiniteUpdateError(f"the loss is {total}")
        if not np.isfinite(grad_norm):
            raise NonFiniteUpdateError(
                f"the gradient's norm is {grad_norm} (the loss is {total:g})"
            )
        self._step(optimizer, grad_norm)
        return update_stats(parts, total, grad_norm, with_base=loss.kl_coef > 0)

    def _gradient(self, batch: TrainBatch, chosen: IntArray, loss: LossConfig) -> list[LossParts]:
        """The gradient of the chosen rows' loss, into `adapter.grads`."""
        self.adapter.grads.zero_()
        used = np.unique(batch.prompt_index[chosen])
        used_prompts = [batch.prompts[index] for index in used]
        with torch.no_grad():
            session = self.base.engine.session(
                self.adapter, train=True, checkpointing=self.sizes.checkpointing or False
            )
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
            parts.append(replace(part, loss=part.loss.detach()))
        session.finish()
        return parts

    def _find_sizes(self, batch: TrainBatch) -> None:
        """Fill in what is not settled of the update's sizes, by a dry pass where memory can be
        measured, else by the formulas."""
        if self.sizes.micro_batch_tokens and self.sizes.checkpointing is not None:
            return
        kind, total = self.base.device.type, self._memory
        longest = max(len(prompt) for prompt in batch.prompts) + batch.mask.shape[1]
        memory = self.base.memory(self.adapter.num_params, longest)
        given = self.sizes.checkpointing
        if kind == "cuda":
            # The optimizer's averages are made by its first step.
            coming = 0 if self._optimizer.state else memory.optimizer
            left = int(USABLE[kind] * total) - torch.cuda.memory_allocated(self.base.device)
            found = fit_update(self._dry_pass, left - coming, kind, given)
        else:
            found = memory.update_that_fits(total, kind, given)
        tokens, checkpointing = found
        self.sizes = replace(
            self.sizes,
            micro_batch_tokens=self.sizes.micro_batch_tokens or tokens,
            checkpointing=checkpointing,
        )

    def _dry_pass(self, tokens: int, checkpointing: bool) -> int:
        """Bytes that a micro-batch of so many tokens takes; leaves nothing behind."""
        rows = max(1, tokens // _DRY_ROW)
        ids = torch.zeros((rows, tokens // rows), dtype=torch.long, device=self.base.device)
        self.base.free_unused()
        torch.cuda.reset_peak_memory_stats(self.base.device)
        before = torch.cuda.memory_allocated(self.base.device)
        try:
            session = self.base.engine.session(self.adapter, True, checkpointing)
            prompts = session.prompts([np.zeros(1, dtype=np.int64)])
            some = Rows(torch.zeros_like(ids[:, 0]), ids, torch.ones_like(ids, dtype=torch.bool))
            session.logprobs(prompts, some, 1.0).sum().backward()  # type: ignore[no-untyped-call]
            session.finish()
        except torch.OutOfMemoryError:
            return self.base.total_memory
        finally:
            self.adapter.grads.zero_()
        return torch.cuda.max_memory_allocated(self.base.device) - before

    def _smaller(self, batch: TrainBatch, chosen: IntArray) -> Sizes | None:
        """Sizes that take less memory than the present ones; None when there are none."""
        parts = list(self._micro_batches(batch, chosen))
        if any(part.num_rows > 1 for part in parts):
            extra = self._prompt_tokens(batch)
            largest = max(part.num_rows * (part.mask.shape[1] + extra) for part in parts)
            tokens = min(self.sizes.micro_batch_tokens or largest, largest)
            return replace(self.sizes, micro_batch_tokens=max(1, tokens // 2))
        if not self.sizes.checkpointing and self._given.checkpointing is None:
            return replace(self.sizes, checkpointing=True)
        return None

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

    def completion_logprobs(self, batch: TrainBatch) -> FloatArray:
        """As `ScoresTokens.completion_logprobs`."""
        found = np.zeros(batch.mask.shape)
        order, start = np.argsort(batch.mask.sum(axis=1), kind="stable"), 0
        for logprobs, mask in self.logprobs(batch):
            rows = order[start : start + len(mask)]
            values = torch.where(mask, logprobs, 0.0).double().cpu().numpy()
            found[rows, : values.shape[1]] = values
            start += len(rows)
        return found

    def old_logprobs(self, batch: TrainBatch) -> FloatArray | None:
        """As `RoundsTokens.old_logprobs`, in the micro-batches of an update of these rows: the
        first one then has ratio 1. In bfloat16 the sampler's are off by 0.005 nats a token, more
        than `gspo` lets a whole completion move."""
        if self.base.module.dtype == torch.float32:
            return None
        self._find_sizes(batch)
        return self.completion_logprobs(batch)

    def _step(self, step: OptimizerStep, grad_norm: float) -> None:
        if 0 < step.grad_clip < grad_norm:
            self.adapter.grads.mul_(step.grad_clip / grad_norm)
        self._optimizer.step(step)

    def _micro_batches(self, batch: TrainBatch, chosen: IntArray) -> Iterator[TrainBatch]:
        """Rows sorted by length and cut so that no part holds more padded tokens than allowed
        (a single row may). Every part is cut to its longest row."""
        lengths = batch.mask.sum(axis=1)
        order = chosen[np.argsort(lengths[chosen], kind="stable")]
        extra, most = self._prompt_tokens(batch), self.sizes.micro_batch_tokens or CPU_MICRO_BATCH
        start = 0
        for end in range(1, len(order) + 1):
            if end < len(order):
                padded = (end + 1 - start) * (int(lengths[order[end]]) + extra)
                if padded <= most:
                    continue
            part = batch.rows(order[start:end])
            yield part.cut(int(lengths[order[end - 1]]))
            start = end

    def _prompt_tokens(self, batch: TrainBatch) -> int:
        """What a row's prompt counts against the size of a micro-batch."""
        if not self.base.engine.rows_hold_prompts:
            return 0
        return max(len(prompt) for prompt in batch.prompts)

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
        tensors = {name: value.cpu() for name, value in self._optimizer.state.items()}
        write_tensors(tensors, folder / _OPTIMIZER_FILE)
        # What was found out of the memory decides the last bits of what follows.
        (folder / _SIZES_FILE).write_text(json.dumps(asdict(self.sizes)) + "\n")

    def start_from(self, folder: Path) -> None:
        """Take the adapter in `folder` (PEFT format) as the starting point; the optimizer is fresh.

        Raises InputError when it is none, or its layers or shapes are not this adapter's.
        """
        with open_adapter(folder) as adapter:
            self.adapter.take(adapter)

    def load(self, folder: Path) -> None:
        self.adapter.load(folder)
        state = load_file(folder / _OPTIMIZER_FILE, device=str(self.base.device))
        if "step" in state:
            state["step"] = state["step"].cpu()
        self._optimizer.state = state
        if (folder / _SIZES_FILE).is_file():
            found = Sizes(**json.loads((folder / _SIZES_FILE).read_text()))
            self.sizes = self._given.or_else(found)

    def export(self, folder: Path) -> None:
        self.adapter.save(folder)
