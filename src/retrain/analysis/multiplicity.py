"""Several contrasts judged together.

Planned contrasts are corrected so that the chance of *any* false claim stays below alpha
(family-wise error): Westfall and Young's maxT where all contrasts rest on the same seeds, Holm
where they do not. Exploratory all-pairs tables use Benjamini and Hochberg's false discovery rate.

The last axis is K contrasts; leading axes are judged independently. A NaN p value (a contrast
without a pair) stays NaN and does not count as a test.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from retrain.analysis.paired import TIE, sign_flip_p, sign_flips
from retrain.types import BoolArray, FloatArray

Method = Literal["none", "maxT", "Holm"]


class Corrected(NamedTuple):
    """Corrected p values, and which method gave them."""

    p: FloatArray
    """(..., K)."""
    by_max_t: BoolArray
    """Shape of the leading axes: True where maxT was used, False where Holm was."""


def max_t(differences_SK: ArrayLike, seed: int = 0) -> FloatArray:
    """Westfall and Young's step-down maxT p values over common sign flips; (..., S, K) to (..., K).

    Formula: t_k is |t| of contrast k. With `t_(1) >= ... >= t_(K)`, the p value of rank j is the
    share of sign flips, the same flip of a seed in all contrasts, under which
    `max(t_(j), ..., t_(K))` is at least the observed t_(j); then made monotone by a running
    maximum. Flips leave sum(d^2) alone, so |t| is replaced by `|sum(d)| / sqrt(sum(d^2))`, which
    orders alike and is finite when all differences are equal.

    Source: Westfall & Young, "Resampling-Based Multiple Testing" (1993), algorithm 4.1
    (step-down maxT); flips as in `sign_flip_p`.

    Assumptions: every contrast has the same seeds. Exact for two conditions, and wherever the
    *vector* of a seed's differences is symmetric around 0 under the null hypothesis. Contrasts that
    share a baseline of a skewed shape are symmetric one by one, but not as a vector: there it is
    an approximation, whose error rate the calibration table gives.

    Edge cases: one contrast gives `sign_flip_p`. A column of zeros gets 1. NaN raises ValueError:
    see `correct_planned`. No seed gives NaN.
    """
    values = np.asarray(differences_SK, dtype=np.float64)
    if values.ndim < 2:
        raise ValueError(f"differences need the axes seeds and contrasts, not {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("maxT needs the same seeds in every contrast; use correct_planned")
    if values.shape[-2] == 0 or values.shape[-1] == 0:
        return np.full((*values.shape[:-2], values.shape[-1]), np.nan)
    length = np.sqrt((values**2).sum(axis=-2, keepdims=True))
    units = values / np.where(length > 0, length, 1.0)
    flips_FS = sign_flips(values.shape[-2], seed)
    t_FK = np.abs(flips_FS @ units)
    observed = t_FK[..., :1, :]
    order = np.argsort(-observed, axis=-1, kind="stable")
    t_FK = np.take_along_axis(t_FK, order, axis=-1)
    # Running maximum from the smallest statistic up: a rank competes with those below it.
    largest = np.maximum.accumulate(t_FK[..., ::-1], axis=-1)[..., ::-1]
    tolerance = TIE * np.take_along_axis(np.abs(units).sum(axis=-2, keepdims=True), order, -1)
    ranked = np.take_along_axis(observed, order, axis=-1)
    p = np.maximum.accumulate((largest >= ranked - tolerance).mean(axis=-2), axis=-1)
    result = np.empty_like(p)
    np.put_along_axis(result, order[..., 0, :], p, axis=-1)
    return result


def holm(p_K: ArrayLike) -> FloatArray:
    """Holm's step-down p values: control of the family-wise error without assumptions.

    Formula: `max over i <= j of min(1, (K - i + 1) p_(i))` in ascending order. Source: Holm, Scand.
    J. Statist. 6 (1979). Never below the plain p. Values outside 0..1 raise ValueError; NaN stays
    and is not counted in K.
    """
    p = _p_values(p_K)
    order = np.argsort(p, axis=-1, kind="stable")  # NaN last
    ranked = np.take_along_axis(p, order, axis=-1)
    count = (~np.isnan(p)).sum(axis=-1, keepdims=True)
    steps = np.maximum(count - np.arange(p.shape[-1]), 1)
    adjusted = np.minimum(np.maximum.accumulate(np.nan_to_num(ranked) * steps, axis=-1), 1.0)
    return _back(adjusted, order, p)


def benjamini_hochberg(p_K: ArrayLike) -> FloatArray:
    """Benjamini and Hochberg's p values: control of the false discovery rate.

    Formula: `min over i >= j of min(1, K p_(i) / i)` in ascending order. Source: Benjamini &
    Hochberg, J. R. Statist. Soc. B 57 (1995); as `scipy.stats.false_discovery_control`.

    Assumes independent or positively dependent tests; all pairs of conditions are not quite that,
    so tables that use it are called exploratory. Values outside 0..1 raise ValueError; NaN stays
    and is not counted in K.
    """
    p = _p_values(p_K)
    order = np.argsort(p, axis=-1, kind="stable")
    ranked = np.take_along_axis(p, order, axis=-1)
    count = (~np.isnan(p)).sum(axis=-1, keepdims=True)
    scaled = np.where(np.isnan(ranked), 1.0, ranked * count / (np.arange(p.shape[-1]) + 1))
    adjusted = np.minimum.accumulate(np.minimum(scaled, 1.0)[..., ::-1], axis=-1)[..., ::-1]
    return _back(adjusted, order, p)


def correct_planned(
    differences_SK: ArrayLike, seed: int = 0, *, dropped_K: ArrayLike | None = None
) -> Corrected:
    """Sign-flip p values of all planned contrasts, corrected together; (..., S, K) to (..., K).

    maxT where all contrasts miss the same seeds (a missing baseline run is missing in all of
    them), else Holm on the exact sign-flip p values. The choice looks only at what is missing,
    never at the values. A contrast without any pair gets NaN and does not count.

    dropped_K: (..., K), contrasts that were given up for futility on interim values. They stay in
    the family with p = 1, and Holm is used: no p value is then below the one that it would have had
    without stopping, so the family-wise error stays at alpha however it was decided. Correcting
    only for what was left would count the tests that were chosen by looking.

    Assumes that runs are missing for reasons that have nothing to do with their outcome; a
    diverged run is an outcome: see `paired.intention_to_treat`.
    """
    values = np.asarray(differences_SK, dtype=np.float64)
    if values.ndim < 2:
        raise ValueError(f"differences need the axes seeds and contrasts, not {values.shape}")
    missing = np.isnan(values)
    empty = np.asarray(missing.all(axis=-2, keepdims=True))
    in_any = (missing & ~empty).any(axis=-1)
    in_all = (missing | empty).all(axis=-1)
    by_max_t = np.asarray((~in_any | in_all).all(axis=-1))
    shape = (*values.shape[:-2], values.shape[-1])
    dropped = np.broadcast_to(
        np.asarray(False if dropped_K is None else dropped_K, dtype=np.bool_), shape
    )
    by_max_t = by_max_t & ~dropped.any(axis=-1)
    # A seed whose differences are all zero is the same under every flip: it drops out.
    p = max_t(np.nan_to_num(values), seed) if by_max_t.any() else np.empty(empty[..., 0, :].shape)
    if not by_max_t.all():
        single = sign_flip_p(np.swapaxes(values, -1, -2), seed)
        p = np.where(by_max_t[..., None], p, holm(np.where(dropped, 1.0, single)))
    return Corrected(np.where(empty[..., 0, :] & ~dropped, np.nan, p), np.asarray(by_max_t))


def _p_values(p_K: ArrayLike) -> FloatArray:
    p = np.asarray(p_K, dtype=np.float64)
    if p.ndim == 0:
        raise ValueError("p values need an axis of contrasts")
    if (p < 0).any() or (p > 1).any():
        raise ValueError("p values lie between 0 and 1")
    return p


def _back(
    adjusted: FloatArray, order: np.ndarray[tuple[int, ...], np.dtype[np.intp]], p: FloatArray
) -> FloatArray:
    result = np.empty_like(p)
    np.put_along_axis(result, order, adjusted, axis=-1)
    return np.where(np.isnan(p), np.nan, result)
