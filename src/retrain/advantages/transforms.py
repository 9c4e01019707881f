"""Transform modes: one advantage a completion -> one number a token.

A transform is a function of a TransformContext that returns token advantages (rows, tokens).
A TransformSpec says, beside the function, what it needs. An algorithm mode is a transform that
makes the episode advantages itself, from the rewards in its context.

Everything works on the whole padded batch at once; padding is False in `mask`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from retrain import plugins
from retrain.plugins import PluginError, Registry
from retrain.types import BoolArray, FloatArray, IntArray

MIN_MEAN_UNCERTAINTY = 1e-7
"""Below this mean a completion's uncertainties are rounding noise; its weights are then 1."""


@dataclass(frozen=True, slots=True)
class TransformContext:
    """What a transform sees: every completion of a step, padded to the longest.

    rewards:       (rows,) as scored.
    group_index:   (rows,) which group a row belongs to: 0, 0, …, 1, 1, ….
    advantages:    (rows,) episode advantages; all 0 for an algorithm mode.
    logprobs:      (rows, tokens) natural, of the sampled tokens; 0 on padding.
    uncertainties: (rows, tokens) of the configured kind, >= 0; 0 on padding.
    planning:      (rows, tokens) True on planning tokens; False on padding.
    mask:          (rows, tokens) True on completion tokens.
    entropies:     (rows, tokens) in nats, 0 on padding; None when the sampler gave none.
    step:          the training step, from 0.
    sepa_lambda:   share of execution tokens' uncertainty to pool, in [0, 1].
    gtpo_beta:     strength of the uncertainty weighting, >= 0.
    hicra_alpha:   strength of the planning bonus, in [0, 1).
    params:        `[algorithm]` params and transform_params (or params, for an algorithm mode).

    Arrays are read-only.
    """

    rewards: FloatArray
    group_index: IntArray
    advantages: FloatArray
    logprobs: FloatArray
    uncertainties: FloatArray
    planning: BoolArray
    mask: BoolArray
    entropies: FloatArray | None = None
    step: int = 0
    sepa_lambda: float = 0.0
    gtpo_beta: float = 0.1
    hicra_alpha: float = 0.2
    params: Mapping[str, Any] = field(default_factory=dict)


TransformFunction = Callable[[TransformContext], FloatArray]


@dataclass(frozen=True, slots=True)
class TransformSpec:
    """A transform and what it needs.

    name:            as the config says it; for a plugin, its dotted path is filled in.
    fn:              TransformContext -> token advantages (rows, tokens).
    needs_planning:  it reads the planning mask, so there must be strategic grams.
    needs_entropies: it reads token entropies, so the policy must be able to give them.
    uses_sepa:       it reads sepa_lambda, so the `[sepa]` schedule matters.
    """

    name: str
    fn: TransformFunction
    needs_planning: bool = False
    needs_entropies: bool = False
    uses_sepa: bool = False

    def __call__(self, context: TransformContext) -> FloatArray:
        """Token advantages (rows, tokens), 0 on padding whatever the function says there.

        Raises PluginError for another shape, and for a token advantage that is not finite.
        """
        result = plugins.call(self.name, self.fn, context)
        mask = context.mask
        tokens = plugins.as_array(
            self.name, result, mask.shape, "(rows, tokens): one advantage a token"
        )
        bad = mask & ~np.isfinite(tokens)
        if bad.any():
            row, token = (int(i) for i in np.argwhere(bad)[0])
            raise PluginError(
                f"{self.name} returned {tokens[row, token]} for token {token} of row {row}, "
                f"whose reward is {context.rewards[row]:g}"
            )
        return np.where(mask, tokens, 0.0)


def none(context: TransformContext) -> FloatArray:
    """Every token gets its completion's advantage: `A_t = A`."""
    return np.where(context.mask, context.advantages[:, None], 0.0)


def gtpo(context: TransformContext) -> FloatArray:
    """Tokens weigh more where the policy was unsure: `A_t = A * w_t`.

    `w_t = max(0, 1 + beta * (h_t / mean(h) - 1))`, the mean over the completion's own tokens;
    w = 1 when that mean is below 1e-7. After the entropy-weighted token reward of GTPO (arXiv
    2508.04349), which normalises over the responses of a group at one position, and shapes the
    reward rather than the advantage.
    """
    return none(context) * gtpo_weights(context)


def gtpo_weights(context: TransformContext) -> FloatArray:
    """The weights w of `gtpo`, (rows, tokens): mean 1 a completion unless one clamps to 0."""
    h, mask = context.uncertainties, context.mask
    mean = masked_mean(h, mask)[:, None]
    usable = mean >= MIN_MEAN_UNCERTAINTY
    relative = np.where(usable, h / np.where(usable, mean, 1.0), 1.0)
    return np.maximum(0.0, 1.0 + context.gtpo_beta * (relative - 1.0))


def gtpo_hicra(context: TransformContext) -> FloatArray:
    """`gtpo`, then a bonus for planning tokens: `A_t + alpha * |A_t| * m_t`.

    HICRA (arXiv 2509.03646), here on top of the gtpo weights. The bonus is positive whatever
    the sign: on a negative advantage it softens the blame of planning tokens, from A_t to
    (1 - alpha) * A_t. It never changes the sign, as alpha < 1.
    """
    tokens = gtpo(context)
    return tokens + context.hicra_alpha * np.abs(tokens) * context.planning


def gtpo_sepa(context: TransformContext) -> FloatArray:
    """`gtpo` on uncertainties whose execution tokens are pooled (SEPA, this project's).

    `h_t <- lambda * mean(h over execution tokens) + (1 - lambda) * h_t` on execution tokens;
    planning tokens keep theirs. The completion's mean does not move, so neither do the weights
    of planning tokens.
    """
    return gtpo(replace(context, uncertainties=sepa_pool(context)))


def sepa_pool(context: TransformContext) -> FloatArray:
    """The pooled uncertainties of `gtpo_sepa`, (rows, tokens)."""
    h, share = context.uncertainties, context.sepa_lambda
    execution = context.mask & ~context.planning
    pooled = share * masked_mean(h, execution)[:, None] + (1.0 - share) * h
    return np.where(execution, pooled, h)


def masked_mean(values: FloatArray, mask: BoolArray) -> FloatArray:
    """(rows, tokens) -> (rows,): the mean over True positions, 0 in a row that has none."""
    means: FloatArray = (values * mask).sum(axis=1) / np.maximum(mask.sum(axis=1), 1)
    return means


TRANSFORM_MODES: Registry[TransformSpec] = Registry(
    "transform_mode",
    none=TransformSpec("none", none),
    gtpo=TransformSpec("gtpo", gtpo),
    gtpo_hicra=TransformSpec("gtpo_hicra", gtpo_hicra, needs_planning=True),
    gtpo_sepa=TransformSpec("gtpo_sepa", gtpo_sepa, needs_planning=True, uses_sepa=True),
)

ALGORITHM_MODES: Registry[TransformSpec] = Registry("algorithm_mode")


def transform_spec(
    name: str,
    params: Mapping[str, Any],
    search_paths: Sequence[str | Path] = (),
    *,
    registry: Registry[TransformSpec] = TRANSFORM_MODES,
) -> TransformSpec:
    """The transform of this name: built in, or a dotted path to one of three kinds of function.

    - a transform, `fn(context) -> (rows, tokens)`;
    - a factory of a TransformSpec without arguments;
    - a factory of a TransformSpec with one argument, the params.

    A function of one argument whose annotations do not say which it is, is called with the
    params: a factory answers with a TransformSpec, a transform asks for the context's fields.

    Raises PluginError when there is no such mode, and for a function of another kind.
    """
    found = registry.find(name, search_paths)
    if isinstance(found, TransformSpec):
        return found
    arguments = plugins.positional_arguments(found, name)
    required = [a for a in arguments if a.default is a.empty and a.kind is not a.VAR_POSITIONAL]
    if len(required) > 1:
        raise PluginError(
            f"{name}: a {registry.key} is fn(context), or a factory of a TransformSpec with at "
            f"most one argument, the params; this takes ({', '.join(map(str, arguments))})"
        )
    if arguments and _named(arguments[0].annotation) == TransformContext.__name__:
        return TransformSpec(name, found)
    given = (_Params(params),) if arguments else ()
    says_factory = _named(inspect.signature(found).return_annotation) == TransformSpec.__name__
    if not arguments or says_factory or name.rpartition(".")[2].startswith("make_"):
        return _made(name, plugins.call(name, found, *given))
    try:
        answer = found(*given)
    except _ContextWantedError:
        return TransformSpec(name, found)
    except Exception as error:
        return TransformSpec(name, _unclear(found, error))
    return _made(name, answer) if isinstance(answer, TransformSpec) else TransformSpec(name, found)


class _ContextWantedError(AttributeError):
    """A function that was given params asked them for a field of the context."""


class _Params(dict[str, Any]):
    """Params that notice being mistaken for a context."""

    def __getattr__(self, name: str) -> Any:
        if name in {f.name for f in fields(TransformContext)}:
            raise _ContextWantedError(name)
        raise AttributeError(f"params have no attribute {name!r}")


def _named(annotation: Any) -> str:
    """The last part of an annotation's name, which is a string under postponed evaluation."""
    name = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return name.strip("'\"").rpartition(".")[2]


def _made(name: str, spec: Any) -> TransformSpec:
    if not isinstance(spec, TransformSpec):
        raise PluginError(
            f"{name}: called as a factory, it returned {type(spec).__name__}; "
            "expected a TransformSpec"
        )
    return replace(spec, name=name)


def _unclear(found: Callable[..., Any], as_factory: Exception) -> TransformFunction:
    """Most likely a transform; should it be a broken factory, the message must say that too."""

    def transform(context: TransformContext) -> Any:
        try:
            return found(context)
        except Exception as error:
            raise RuntimeError(
                f"{type(error).__name__}: {error} (and as a factory, given the params, "
                f"{type(as_factory).__name__}: {as_factory})"
            ) from error

    return transform
