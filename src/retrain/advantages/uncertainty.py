"""Uncertainty kinds: how unsure the policy was at each token, one number >= 0 a token.

A kind is a function `fn(values (rows, tokens), mask (rows, tokens)) -> (rows, tokens)`, where
values are log-probabilities of the sampled tokens (natural, as the sampler reports them), or
token entropies for a kind that needs them. Padding holds 0 in values and False in mask; what a
kind returns there is ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retrain import plugins
from retrain.plugins import PluginError, Registry
from retrain.types import BoolArray, FloatArray

MAX_SURPRISAL = 50.0
"""Nats. A surprisal beyond it says the token was impossible, not how impossible."""

LOGPROB_TOLERANCE = 1e-3
"""Nats above 0 that rounding in a sampler's softmax may produce."""


class NonFiniteError(ValueError):
    """A number that should be finite is not; the message says where it came from."""


@dataclass(frozen=True, slots=True)
class UncertaintyKind:
    """A way to measure uncertainty: `fn(logprobs, mask)`, or `fn(entropies, mask)`."""

    name: str
    fn: Callable[[FloatArray, BoolArray], FloatArray]
    needs_entropies: bool = False

    def __call__(
        self, logprobs: FloatArray, entropies: FloatArray | None, mask: BoolArray
    ) -> FloatArray:
        """Uncertainties (rows, tokens), 0 on padding.

        Raises ValueError when the kind needs entropies and there are none, and PluginError
        when a plugin returns another shape, or a value that is negative or not finite.
        """
        if self.needs_entropies and entropies is None:
            raise ValueError(f"uncertainty_kind {self.name!r} needs the sampler's token entropies")
        values = entropies if self.needs_entropies and entropies is not None else logprobs
        result = plugins.call(self.name, self.fn, values, mask)
        return _checked(self.name, result, mask)


def surprisal(logprobs: FloatArray, mask: BoolArray) -> FloatArray:  # noqa: ARG001
    """Minus the log-probability of the sampled token, in nats, at most 50.

    Not just a noisier entropy: its mean under the policy is the entropy, but weighting the
    advantage by it adds to the policy gradient an entropy bonus that carries the sign of the
    advantage (more entropy where the advantage is positive, less where it is negative).
    """
    return np.clip(-logprobs, 0.0, MAX_SURPRISAL)


def predictive_variance(logprobs: FloatArray, mask: BoolArray) -> FloatArray:  # noqa: ARG001
    """p (1 - p) for the probability p of the sampled token: at most 1/4, at p = 1/2."""
    p = np.exp(np.minimum(logprobs, 0.0))
    return p * (1.0 - p)


def shannon_entropy(entropies: FloatArray, mask: BoolArray) -> FloatArray:  # noqa: ARG001
    """Entropy of the whole distribution at each position, in nats, from the sampler."""
    return np.maximum(entropies, 0.0)


UNCERTAINTY_KINDS: Registry[UncertaintyKind] = Registry(
    "uncertainty_kind",
    surprisal=UncertaintyKind("surprisal", surprisal),
    predictive_variance=UncertaintyKind("predictive_variance", predictive_variance),
    shannon_entropy=UncertaintyKind("shannon_entropy", shannon_entropy, needs_entropies=True),
)


def find_uncertainty_kind(name: str, search_paths: Sequence[str | Path] = ()) -> UncertaintyKind:
    """The uncertainty kind of this name: built in, or a plugin `fn(logprobs, mask)`.

    Raises PluginError when there is no such kind or it takes other arguments.
    """
    found = UNCERTAINTY_KINDS.find(name, search_paths)
    if isinstance(found, UncertaintyKind):
        return found
    arguments = plugins.positional_arguments(found, name)
    required = [a for a in arguments if a.default is a.empty and a.kind is not a.VAR_POSITIONAL]
    variadic = any(a.kind is a.VAR_POSITIONAL for a in arguments)
    if len(required) > 2 or (len(arguments) < 2 and not variadic):
        raise PluginError(
            f"{name}: an uncertainty kind is fn(logprobs, mask); "
            f"this takes ({', '.join(map(str, arguments))})"
        )
    return UncertaintyKind(name, found)


def check_logprobs(
    logprobs: FloatArray, mask: BoolArray, *, run: str, step: int, problems: Sequence[str]
) -> None:
    """Refuse log-probabilities that no probability has.

    logprobs: (rows, tokens) natural log-probabilities; problems: (rows,) the problem ids.

    Raises NonFiniteError, naming run, step and problem, for NaN, +inf, or a value above 0 by
    more than rounding explains. -inf is let through: it is a probability, of 0.
    """
    # Not `logprobs > tolerance`: a NaN must count as bad, and compares false with everything.
    bad = mask & ~(logprobs <= LOGPROB_TOLERANCE)
    _refuse(bad, logprobs, "a log-probability", run, step, problems)


def check_entropies(
    entropies: FloatArray, mask: BoolArray, *, run: str, step: int, problems: Sequence[str]
) -> None:
    """Refuse token entropies (rows, tokens) that are not finite, as `check_logprobs` does."""
    bad = mask & ~np.isfinite(entropies)
    _refuse(bad, entropies, "a token entropy", run, step, problems)


def _refuse(
    bad: BoolArray, values: FloatArray, what: str, run: str, step: int, problems: Sequence[str]
) -> None:
    if not bad.any():
        return
    row, token = (int(i) for i in np.argwhere(bad)[0])
    raise NonFiniteError(
        f"run {run}, step {step}, problem {problems[row]}: {what} of {values[row, token]} "
        f"at token {token} ({int(bad.sum())} such tokens in the step)"
    )


def _checked(name: str, result: Any, mask: BoolArray) -> FloatArray:
    uncertainties = plugins.as_array(
        name, result, mask.shape, "(rows, tokens): one uncertainty a token"
    )
    bad = mask & ~(np.isfinite(uncertainties) & (uncertainties >= 0.0))
    if bad.any():
        raise PluginError(
            f"{name} returned {uncertainties[bad][0]} for a token; "
            "an uncertainty is finite and not negative"
        )
    return np.where(mask, uncertainties, 0.0)
