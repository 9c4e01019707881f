"""The policy-gradient losses, on padded rows.

`rho = exp(logprob - old logprob)` is the ratio of the policy to the sampler, with the log-ratio
clamped to +-20. All losses are sums of `weight * term` over tokens, where `weight` carries the
whole optimizer step's denominator: the parts of a batch add up to the batch, whatever the
micro-batches.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from retrain.config.schema import LossConfig
from retrain.policies.policy import UpdateStats

_LOG_RATIO_LIMIT = 20.0
_PPO_CLIP = (0.2, 0.2)
_GSPO_CLIP = (3e-4, 4e-4)
_CISPO_RATIO_MAX = 5.0


@dataclass(frozen=True, slots=True)
class LossRows:
    """What a loss sees; all (rows, tokens), 0 on padding. base_logprobs only with a KL penalty."""

    logprobs: Tensor
    old_logprobs: Tensor
    credit: Tensor
    mask: Tensor
    weight: Tensor
    base_logprobs: Tensor | None = None


@dataclass(frozen=True, slots=True)
class WeightSums:
    """Sums over tokens of truncated importance weights w, and how many they are."""

    count: float
    total: float
    squares: float

    @classmethod
    def of(cls, weights: Tensor) -> WeightSums:
        """weights: any shape."""
        values = weights.detach().double()
        return cls(values.numel(), float(values.sum()), float((values * values).sum()))

    def __add__(self, other: WeightSums) -> WeightSums:
        return WeightSums(
            self.count + other.count, self.total + other.total, self.squares + other.squares
        )

    @property
    def ess(self) -> float:
        """Effective sample size over the number of tokens, (sum w)^2 / (n sum w^2) (Kong 1992):
        1 when all weights are equal."""
        return self.total**2 / (self.count * self.squares)


@dataclass(frozen=True, slots=True)
class LossParts:
    """`loss` is a scalar with gradient. The rest are sums over the rows' tokens, for logging.

    weights: of the importance weights, where the loss truncates them.
    """

    loss: Tensor
    tokens: float
    ratio_sum: float
    ratio_max: float
    log_ratio_sum: float
    clipped: float
    kl_to_sampler_sum: float
    kl_to_base_sum: float
    weights: WeightSums | None = None


def policy_loss(rows: LossRows, config: LossConfig) -> LossParts:
    """Loss of these rows, and what the logs want to know of them."""
    mask = rows.mask
    difference = torch.where(mask, rows.logprobs - rows.old_logprobs, 0.0)
    log_ratio = difference.clamp(-_LOG_RATIO_LIMIT, _LOG_RATIO_LIMIT)
    terms, clipped = _TERMS[config.type](rows, log_ratio, config)
    # Credit of zero times an overflowing ratio must stay zero.
    loss = (rows.weight * torch.where(rows.credit != 0, terms, 0.0)).sum()
    kl_to_base_sum = 0.0
    if rows.base_logprobs is not None:
        kl = torch.where(
            mask, kl_estimate(rows.base_logprobs - rows.logprobs, config.kl_estimator), 0.0
        )
        loss = loss + config.kl_coef * (rows.weight * kl).sum()
        kl_to_base_sum = float(kl.detach().sum())
    with torch.no_grad():
        ratio = log_ratio.exp()
        on_tokens = ratio[mask]
        return LossParts(
            loss=loss,
            tokens=float(mask.sum()),
            ratio_sum=float(on_tokens.sum()),
            ratio_max=float(on_tokens.max()) if on_tokens.numel() else 0.0,
            log_ratio_sum=float(log_ratio.sum()),
            clipped=float((clipped & mask & (rows.credit != 0)).sum()),
            kl_to_sampler_sum=float(kl_estimate(log_ratio[mask], "k3").sum()),
            kl_to_base_sum=kl_to_base_sum,
            weights=WeightSums.of(on_tokens.clamp_max(config.truncate))
            if _truncates(config)
            else None,
        )


def _truncates(config: LossConfig) -> bool:
    """Whether the loss's own ratio is the correction for the sampler; the other losses have theirs
    in the credit (`training/correction.py`)."""
    return config.type == "importance_sampling" and config.sampler_correction == "truncate"


def kl_estimate(log_ratio: Tensor, estimator: str) -> Tensor:
    """KL(policy || other) per token from samples of the policy, x = log other - log policy:
    k2 = x^2 / 2, k3 = exp(x) - 1 - x (Schulman 2020, "Approximating KL divergence")."""
    x = log_ratio.clamp(-_LOG_RATIO_LIMIT, _LOG_RATIO_LIMIT)
    return 0.5 * x * x if estimator == "k2" else x.expm1() - x


def update_stats(
    parts: Sequence[LossParts], total: float, grad_norm: float | None, with_base: bool
) -> UpdateStats:
    """What an optimizer step did, whose loss is the sum of these parts."""
    tokens = sum(part.tokens for part in parts)
    weights = [part.weights for part in parts if part.weights is not None]
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
        sampler_ess=reduce(operator.add, weights).ess if weights else None,
    )


def _importance_sampling(
    rows: LossRows, log_ratio: Tensor, config: LossConfig
) -> tuple[Tensor, Tensor]:
    """-rho A: the off-policy policy gradient, unbiased and unclipped. With a sampler correction its
    gradient is that of -min(rho, truncate) A log pi: truncated importance sampling (Ionides 2008)
    in which a large ratio bounds a token's weight and does not silence it."""
    ratio = log_ratio.exp()
    if not _truncates(config):
        return -ratio * rows.credit, torch.zeros_like(rows.mask)
    # Exactly 1 where nothing is cut off.
    share = (ratio.clamp_max(config.truncate) / ratio).detach()
    return -ratio * share * rows.credit, ratio.detach() > config.truncate


def _ppo(rows: LossRows, log_ratio: Tensor, config: LossConfig) -> tuple[Tensor, Tensor]:
    """-min(rho A, clip(rho) A) (Schulman et al. 2017, arXiv 1707.06347, eq. 7), with the dual
    clip of Ye et al. 2020 (arXiv 1912.09729, eq. 5) when asked for."""
    ratio = log_ratio.exp()
    bounded, clipped = _clip(ratio, config, _PPO_CLIP, rows.credit)
    objective = torch.minimum(ratio * rows.credit, bounded * rows.credit)
    if config.dual_clip is not None:
        floor = config.dual_clip * rows.credit
        binding = (rows.credit < 0) & (objective < floor)
        objective = torch.where(binding, floor, objective)
        clipped = clipped | binding
    return -objective, clipped


def _gspo(rows: LossRows, log_ratio: Tensor, config: LossConfig) -> tuple[Tensor, Tensor]:
    """PPO's clip on the ratio of the whole completion, s = exp(mean log rho), token by token:
    stop_gradient(s) pi / stop_gradient(pi) has its value, and a gradient of its own for each
    token, so that token credit counts (GSPO-token: Zheng et al. 2025, arXiv 2507.18071, eq. 13-14;
    with one credit for a whole completion its gradient is that of GSPO, eq. 5-7)."""
    lengths = rows.mask.sum(1, keepdim=True).clamp_min(1)
    of_completion = (log_ratio.sum(1, keepdim=True) / lengths).detach()
    ratio = (of_completion + (log_ratio - log_ratio.detach())).exp()
    bounded, clipped = _clip(ratio, config, _GSPO_CLIP, rows.credit)
    return -torch.minimum(ratio * rows.credit, bounded * rows.credit), clipped


def _cispo(rows: LossRows, log_ratio: Tensor, config: LossConfig) -> tuple[Tensor, Tensor]:
    """-stop_gradient(min(rho, ratio_max)) A log pi (MiniMax-M1, arXiv 2506.13585, eq. 4-5, with
    only the upper bound, as an absolute cap)."""
    limit = ratio_limit(config)
    ratio = log_ratio.exp().detach()
    return -ratio.clamp_max(limit) * rows.credit * rows.logprobs, ratio > limit


def _clip(
    ratio: Tensor, config: LossConfig, defaults: tuple[float, float], credit: Tensor
) -> tuple[Tensor, Tensor]:
    """The clipped ratio, and where the clip takes the gradient away."""
    low, high = clip_bounds(config, defaults)
    binding = torch.where(credit > 0, ratio > high, ratio < low)
    return ratio.clamp(low, high), binding.detach()


def clip_bounds(
    config: LossConfig, defaults: tuple[float, float] = _PPO_CLIP
) -> tuple[float, float]:
    """The smallest and the largest ratio that the clip leaves alone."""
    low = config.eps_low if config.eps_low is not None else defaults[0]
    high = config.eps_high if config.eps_high is not None else defaults[1]
    return 1.0 - low, 1.0 + high


def ratio_limit(config: LossConfig) -> float:
    """The largest ratio that `cispo` leaves alone."""
    return config.ratio_max if config.ratio_max is not None else _CISPO_RATIO_MAX


_TERMS = {
    "importance_sampling": _importance_sampling,
    "ppo": _ppo,
    "gspo": _gspo,
    "cispo": _cispo,
}
