"""Importance weights for a sampler whose probabilities are not quite the trainer's.

A server computes with other kernels, perhaps in another precision, so a token's probability there
differs a little from the one that the trainer gives it under the same weights. Truncated importance
sampling (Ionides 2008, "Truncated importance sampling") weighs each token by
min(trainer / sampler, truncate).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from retrain.config.schema import LossConfig, RunConfig
from retrain.policies.policy import Policy, ScoresTokens
from retrain.types import TrainBatch

_LOG_RATIO_LIMIT = 20.0


class SamplerCorrection:
    """`[loss].sampler_correction` of one step's batch, before it is cut into optimizer steps.

    `importance_sampling` compares with the sampler already: its loss truncates that very ratio, and
    nothing is done here. The other losses clip their ratio about 1 and so want old
    log-probabilities of the trainer's own: these are computed here, before the first update, and
    the truncated ratio of them to the sampler's goes into the credit, in which all losses are
    positively homogeneous.
    """

    def __init__(self, config: RunConfig, policy: Policy) -> None:
        self._active = config.corrects_sampler and config.loss.type != "importance_sampling"
        self._limit = config.loss.truncate
        self._policy = policy
        self.ess: float | None = None
        """Effective sample size of the weights over their number, (sum w)^2 / (n sum w^2)."""

    def __call__(self, batch: TrainBatch) -> TrainBatch:
        """The batch with the trainer's log-probabilities and corrected credit, in the rows that
        have credit."""
        chosen = np.flatnonzero((batch.credit != 0).any(axis=1))
        if not self._active or len(chosen) == 0:
            return batch
        policy = self._policy
        if not isinstance(policy, ScoresTokens):
            raise TypeError(f"{type(policy).__name__} cannot correct for its sampler")
        rows = batch.rows(chosen)
        old = policy.completion_logprobs(rows)
        log_ratio = np.clip(old - rows.logprobs, -_LOG_RATIO_LIMIT, _LOG_RATIO_LIMIT)
        weights = np.minimum(np.exp(log_ratio), self._limit)
        counted = weights[rows.mask]
        self.ess = float(counted.sum() ** 2 / (len(counted) * (counted**2).sum()))
        logprobs, credit = batch.logprobs.copy(), batch.credit.copy()
        logprobs[chosen] = old
        credit[chosen] = rows.credit * weights
        return replace(batch, logprobs=logprobs, credit=credit)


def resolved_loss(config: RunConfig) -> LossConfig:
    """`[loss]` with "auto" of `sampler_correction` filled in."""
    correction = "truncate" if config.corrects_sampler else "off"
    return config.loss.model_copy(update={"sampler_correction": correction})
