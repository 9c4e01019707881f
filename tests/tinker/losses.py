"""The service's losses as its documentation writes them down, on rows of tokens.

Each is a plain sum over the tokens of all rows. With `p` the model's and `q` the sampler's
probability of a target token, `A` its advantage and rho = p / q:

    cross_entropy        -w log p
    importance_sampling  -rho A
    ppo                  -min(rho A, clip(rho, low, high) A)          low 0.8, high 1.2
    cispo                -stop_gradient(clip(rho, low, high)) A log p  low 0.0, high 4.0
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_INPUTS = {
    "cross_entropy": {"weights"},
    "importance_sampling": {"logprobs", "advantages"},
    "ppo": {"logprobs", "advantages"},
    "cispo": {"logprobs", "advantages"},
}
_DEFAULTS: dict[str, dict[str, float]] = {
    "cross_entropy": {},
    "importance_sampling": {},
    "ppo": {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2},
    "cispo": {"clip_low_threshold": 0.0, "clip_high_threshold": 4.0},
}


def check(name: str, config: Mapping[str, float | str], inputs: set[str]) -> None:
    """Raise ValueError when the loss is unknown or is not given what it needs, or more."""
    if name not in _INPUTS:
        raise ValueError(f"unknown loss_fn {name!r}; known: {', '.join(_INPUTS)}")
    wanted = _INPUTS[name] | {"target_tokens"}
    if inputs != wanted:
        raise ValueError(f"{name} takes {sorted(wanted)} in loss_fn_inputs, not {sorted(inputs)}")
    if unknown := set(config) - set(_DEFAULTS[name]):
        raise ValueError(f"{name} has no {sorted(unknown)} in its loss_fn_config")


def loss_sum(
    name: str,
    config: Mapping[str, float | str],
    logprobs: Tensor,
    inputs: Mapping[str, Tensor],
    mask: Tensor,
) -> Tensor:
    """The loss, with gradient. logprobs, mask and each of inputs: (rows, tokens)."""
    if name == "cross_entropy":
        terms = -inputs["weights"] * logprobs
        return torch.where(mask, terms, 0.0).sum()
    limits = {key: float(value) for key, value in {**_DEFAULTS[name], **config}.items()}
    advantages = inputs["advantages"]
    ratio = torch.exp(torch.where(mask, logprobs - inputs["logprobs"], 0.0))
    if name == "importance_sampling":
        terms = -ratio * advantages
    else:
        clipped = ratio.clamp(limits["clip_low_threshold"], limits["clip_high_threshold"])
        if name == "ppo":
            terms = -torch.minimum(ratio * advantages, clipped * advantages)
        else:
            terms = -clipped.detach() * advantages * logprobs
    return torch.where(mask, terms, 0.0).sum()
