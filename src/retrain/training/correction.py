"""What a batch needs whose sampler's probabilities are not quite the trainer's.

A server computes with other kernels, perhaps in another precision, so a token's probability there
differs a little from the one that the trainer gives it under the same weights. Truncated importance
sampling (Ionides 2008, "Truncated importance sampling") weighs each token by
min(trainer / sampler, truncate).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from retrain.config.schema import LossConfig, RunConfig
from retrain.policies.policy import Policy, RoundsTokens, ScoresTokens
from retrain.types import FloatArray, TrainBatch

_LOG_RATIO_LIMIT = 20.0


class SamplerCorrection:
    """What one step's batch needs before it is cut into optimizer steps, as its sampler is not
    quite the trainer.

    `importance_sampling` compares with the sampler already: its loss truncates that very ratio, and
    nothing is done here. The other losses clip their ratio about 1 and so want old
    log-probabilities of the trainer's own. With `[loss].sampler_correction` they are computed here,
    before the first update, and the truncated ratio of them to the sampler's goes into the credit,
    in which all losses are positively homogeneous. Without it they are computed where the policy's
    own sampler rounds too coarsely for a clip, and the credit stays.
    """

    def __init__(self, config: RunConfig, policy: Policy) -> None:
        self._loss = config.loss
        self._clips = config.loss.type != "importance_sampling"
        self._weighs = self._clips and config.corrects_sampler
        self._policy = policy
        self.ess: float | None = None
        """Effective sample size of the weights over their number, (sum w)^2 / (n sum w^2)."""

    def __call__(self, batch: TrainBatch) -> TrainBatch:
        """The batch with the trainer's log-probabilities, and corrected credit, in the rows that
        are learnt from."""
        everything = self._loss.kl_coef > 0 and not self._weighs
        learning = batch.mask if everything else batch.credit != 0
        chosen = np.flatnonzero(learning.any(axis=1))
        if not self._clips or len(chosen) == 0:
            return batch
        rows = batch.rows(chosen)
        old = self._old_logprobs(rows)
        if old is None:
            return batch
        logprobs, credit = batch.logprobs.copy(), batch.credit.copy()
        logprobs[chosen] = old
        if self._weighs:
            credit[chosen] = rows.credit * self._weights(old, rows)
        return replace(batch, logprobs=logprobs, credit=credit)

    def _old_logprobs(self, rows: TrainBatch) -> FloatArray | None:
        policy = self._policy
        if not self._weighs:
            return policy.old_logprobs(rows) if isinstance(policy, RoundsTokens) else None
        if not isinstance(policy, ScoresTokens):
            raise TypeError(f"{type(policy).__name__} cannot correct for its sampler")
        return policy.completion_logprobs(rows)

    def _weights(self, old: FloatArray, rows: TrainBatch) -> FloatArray:
        """(rows, tokens)"""
        log_ratio = np.clip(old - rows.logprobs, -_LOG_RATIO_LIMIT, _LOG_RATIO_LIMIT)
        weights = np.minimum(np.exp(log_ratio), self._loss.truncate)
        counted = weights[rows.mask]
        self.ess = float(counted.sum() ** 2 / (len(counted) * (counted**2).sum()))
        return weights


def resolved_loss(config: RunConfig) -> LossConfig:
    """`[loss]` with "auto" of `sampler_correction` filled in."""
    correction = "truncate" if config.corrects_sampler else "off"
    return config.loss.model_copy(update={"sampler_correction": correction})
