"""AdamW on one flat tensor."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from retrain.policies.policy import OptimizerStep

_EPS = 1e-8


class AdamW:
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2): torch's function with the
    state kept here, because making a `torch.optim.Optimizer` imports torch's whole compiler.

    state: `step` (), `exp_avg` and `exp_avg_sq` (parameters,), float32; empty before the first
    step. Those are the names of `torch.optim.AdamW`.
    """

    def __init__(self, params: Tensor, grads: Tensor) -> None:
        """params, grads: (parameters,), both changed in place by others and here."""
        self._params = params
        self._grads = grads
        self.state: dict[str, Tensor] = {}

    def step(self, settings: OptimizerStep) -> None:
        """One step with the gradients as they are; `settings.grad_clip` is the caller's."""
        if not self.state:
            self.state = {
                # In main memory on every device, where the bias corrections are computed.
                "step": torch.tensor(0.0, dtype=torch.float32),
                "exp_avg": torch.zeros_like(self._params),
                "exp_avg_sq": torch.zeros_like(self._params),
            }
        with torch.no_grad():
            adamw(
                [self._params],
                [self._grads],
                [self.state["exp_avg"]],
                [self.state["exp_avg_sq"]],
                [],
                [self.state["step"]],
                amsgrad=False,
                beta1=settings.betas[0],
                beta2=settings.betas[1],
                lr=settings.lr,
                weight_decay=settings.weight_decay,
                eps=_EPS,
                maximize=False,
            )
