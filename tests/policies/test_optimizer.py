"""AdamW gives the bits of torch's, whose class is not imported for it."""

from __future__ import annotations

import torch

from retrain.policies.local.optimizer import AdamW
from retrain.policies.policy import OptimizerStep

STEPS = [
    OptimizerStep(lr=1e-2, betas=(0.9, 0.999), weight_decay=0.0, grad_clip=0.0),
    OptimizerStep(lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1, grad_clip=0.0),
    OptimizerStep(lr=0.0, betas=(0.8, 0.95), weight_decay=0.1, grad_clip=0.0),
    OptimizerStep(lr=1e-1, betas=(0.9, 0.999), weight_decay=0.01, grad_clip=0.0),
]


def test_every_step_is_that_of_torch_bit_for_bit() -> None:
    stream = torch.Generator().manual_seed(0)
    params = torch.randn(999, generator=stream)
    grads = torch.zeros_like(params)
    ours = AdamW(params, grads)
    assert ours.state == {}
    twin = torch.nn.Parameter(params.clone())
    theirs = torch.optim.AdamW([twin], lr=1.0)
    for settings in STEPS:
        grads.copy_(torch.randn(999, generator=stream))
        twin.grad = grads.clone()
        group = theirs.param_groups[0]
        group.update(lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay)
        theirs.step()
        ours.step(settings)
        assert torch.equal(params, twin)
        state = theirs.state[twin]
        assert set(ours.state) == set(state)
        assert all(torch.equal(ours.state[name], state[name]) for name in state)
    assert ours.state["step"] == len(STEPS)
    assert not params.requires_grad


def test_it_goes_on_from_a_state() -> None:
    whole, grads = torch.ones(5), torch.linspace(-1, 1, 5)
    straight = AdamW(whole, grads)
    for settings in STEPS[:2]:
        straight.step(settings)
    part = torch.ones(5)
    first = AdamW(part, grads)
    first.step(STEPS[0])
    second = AdamW(part, grads)
    second.state = {name: value.clone() for name, value in first.state.items()}
    second.step(STEPS[1])
    assert torch.equal(part, whole)
