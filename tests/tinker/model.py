"""A LoRA adapter in training: gradients from data as they come over the wire, and AdamW."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retrain.types import FloatArray, pad_mask, pad_rows
from tests.tinker.errors import UserError

if TYPE_CHECKING:
    import torch

    from retrain.policies.local.base import BaseModel
    from tests.tinker.compute import Compute
    from tests.tinker.wire import Batch, Datum

MICRO_BATCH_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class Meta:
    """What a run's model is; stands beside every saved state of it."""

    base_model: str
    rank: int
    alpha: float
    seed: int
    train_mlp: bool
    train_attn: bool
    user_metadata: dict[str, str] | None = None

    @property
    def part(self) -> str | None:
        """What the names of its layers have in common; None when it has all."""
        if self.train_mlp and self.train_attn:
            return None
        return "mlp" if self.train_mlp else "attn"

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self)) + "\n")

    @classmethod
    def read(cls, path: Path) -> Meta:
        return cls(**json.loads(path.read_text()))


class Model:
    """One adapter in training.

    last_gradient: (all factors,) what the last step was made of, before clipping.
    """

    def __init__(self, compute: Compute, meta: Meta) -> None:
        self.meta = meta
        self.compute = compute
        self.adapter = compute.adapter(meta)
        self._averages: dict[str, torch.Tensor] = {}
        self.pending = 0
        """forward_backward requests since the last step."""
        self.last_gradient: FloatArray | None = None

    def forward_backward(self, batch: Batch) -> tuple[list[FloatArray], dict[str, float]]:
        """Log-probabilities of every datum's targets, and metrics; the gradient of the summed loss
        is added to what is there."""
        import torch

        from tests.tinker import losses

        for datum in batch.data:
            _check(datum, batch, self.compute.base)
        logprobs: list[FloatArray] = []
        loss = 0.0
        for part in _parts(batch.data):
            mask, tokens, inputs = _padded(part)
            with torch.set_grad_enabled(not batch.forward_only):
                found = self._logprobs(tokens, inputs["target_tokens"])
                total = losses.loss_sum(batch.loss_fn, batch.config, found, inputs, mask)
            if not batch.forward_only:
                total.backward()  # type: ignore[no-untyped-call]
            loss += float(total.detach())
            rows = found.detach().double().numpy()
            logprobs += [rows[i, : len(datum.tokens)] for i, datum in enumerate(part)]
        if not batch.forward_only:
            self.pending += 1
        return logprobs, {"loss:sum": loss}

    def _logprobs(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """(rows, tokens): of each target after the tokens up to its place."""
        import torch

        from tests.tinker import reference

        leaves = {}
        for name, factors in self.adapter.factors.items():
            pair = factors.a.detach().requires_grad_(), factors.b.detach().requires_grad_()
            pair[0].grad, pair[1].grad = factors.grad_a, factors.grad_b
            leaves[name] = pair
        module, scale = self.compute.base.module, self.adapter.spec.scale
        logits = reference.logits(module, tokens, leaves, scale)
        found = torch.log_softmax(logits, -1).gather(-1, targets[..., None])
        return torch.as_tensor(found[..., 0])

    def step(self, adam: Mapping[str, float]) -> dict[str, float]:
        """One AdamW step on the accumulated gradient; none when there is no gradient."""
        if self.pending == 0:
            return {}
        import torch
        from torch.optim.adamw import adamw

        params, grads = self.adapter.params, self.adapter.grads
        self.last_gradient = grads.double().numpy().copy()
        norm, largest = float(grads.norm()), adam["grad_clip_norm"]
        if 0 < largest < norm:
            grads.mul_(largest / norm)
        if not self._averages:
            self._averages = {
                "step": torch.tensor(0.0),
                "exp_avg": torch.zeros_like(params),
                "exp_avg_sq": torch.zeros_like(params),
            }
        adamw(
            [params],
            [grads],
            [self._averages["exp_avg"]],
            [self._averages["exp_avg_sq"]],
            [],
            [self._averages["step"]],
            amsgrad=False,
            maximize=False,
            lr=adam["learning_rate"],
            beta1=adam["beta1"],
            beta2=adam["beta2"],
            eps=adam["eps"],
            weight_decay=adam["weight_decay"],
        )
        grads.zero_()
        self.pending = 0
        return {"unclipped_grad_l2:mean": norm}

    def snapshot(self) -> Any:
        """A copy of the adapter that later steps leave alone."""
        copy = self.compute.adapter(self.meta)
        copy.params.copy_(self.adapter.params)
        return copy

    def save(self, folder: Path, optimizer: bool) -> None:
        from safetensors.torch import save_file

        fresh = folder.with_name(folder.name + ".part")
        shutil.rmtree(fresh, ignore_errors=True)
        self.adapter.save(fresh)
        if optimizer:
            save_file(self._averages, fresh / "optimizer")
        self.meta.write(fresh / "meta.json")
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)

    def load(self, folder: Path, optimizer: bool) -> None:
        from safetensors.torch import load_file

        self.adapter.load(folder)
        self._averages = load_file(folder / "optimizer") if optimizer else {}


def _check(datum: Datum, batch: Batch, base: BaseModel) -> None:
    from tests.tinker import losses

    try:
        losses.check(batch.loss_fn, batch.config, set(datum.inputs))
    except ValueError as error:
        raise UserError(str(error)) from error
    shape = datum.tokens.shape
    for name, values in datum.inputs.items():
        if values.shape != shape:
            raise UserError(f"{name} has shape {values.shape}, the model input {shape}")
        if (values.dtype.kind == "i") != (name == "target_tokens"):
            raise UserError(f"{name} is of type {values.dtype}")
    if not 0 < len(datum.tokens) <= base.context:
        raise UserError(f"a datum of {len(datum.tokens)} tokens does not fit")
    ids = np.concatenate([datum.tokens, datum.inputs["target_tokens"]])
    if ids.min() < 0 or ids.max() >= base.shape.vocabulary:
        raise UserError("a token id is not in the vocabulary")


def _parts(data: Sequence[Datum]) -> list[list[Datum]]:
    """In order, with no more padded tokens in each than fit at once."""
    parts: list[list[Datum]] = []
    longest = 0
    for datum in data:
        longest = max(longest, len(datum.tokens))
        if not parts or longest * (len(parts[-1]) + 1) > MICRO_BATCH_TOKENS:
            parts.append([])
            longest = len(datum.tokens)
        parts[-1].append(datum)
    return parts


def _padded(
    data: Sequence[Datum],
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Mask, tokens and loss inputs, all (rows, tokens), right-padded with 0."""
    import torch

    mask = torch.from_numpy(pad_mask([len(datum.tokens) for datum in data]))
    tokens = torch.from_numpy(pad_rows([datum.tokens for datum in data], np.int64))
    inputs = {
        name: torch.from_numpy(
            pad_rows([d.inputs[name] for d in data], data[0].inputs[name].dtype.newbyteorder("="))
        )
        for name in data[0].inputs
    }
    return mask, tokens, inputs
