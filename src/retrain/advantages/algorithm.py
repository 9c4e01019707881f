"""The algorithm of a run: what the config's credit-assignment keys mean, resolved once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from retrain.advantages.episode import (
    ADVANTAGE_PARAMS,
    AdvantageFunction,
    advantage_function,
)
from retrain.advantages.planning import PlanningMatcher, parse_strategic_grams
from retrain.advantages.transforms import (
    ALGORITHM_MODES,
    TRANSFORM_MODES,
    TransformSpec,
    transform_spec,
)
from retrain.advantages.uncertainty import UncertaintyKind, find_uncertainty_kind
from retrain.config.schema import RunConfig
from retrain.plugins import did_you_mean

T = TypeVar("T")


class AlgorithmError(ValueError):
    """Settings that make no algorithm.

    problems: every one found, as (config key, what is wrong), like
              ("algorithm.transform_mode", "unknown transform_mode 'gtop'; did you mean gtpo? …").
    """

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        super().__init__("\n".join(f"{key}: {message}" for key, message in problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Algorithm:
    """How rewards become token advantages. Immutable, holds no state of a run.

    advantage:        rewards of a group -> (completions,); None under an algorithm mode.
    advantage_params: what it is given.
    transform:        the transform, or the algorithm mode that replaces both.
    transform_params: what it is given, in its context.
    uncertainty:      how the uncertainty of a token is measured.
    planning:         finds planning tokens.
    gtpo_beta:        >= 0.
    hicra_alpha:      in [0, 1).
    strict:           whether a plugin that fails its probe is refused.
    """

    advantage: AdvantageFunction | None
    advantage_params: Mapping[str, Any]
    transform: TransformSpec
    transform_params: Mapping[str, Any]
    uncertainty: UncertaintyKind
    planning: PlanningMatcher
    gtpo_beta: float
    hicra_alpha: float
    strict: bool

    @property
    def needs_entropies(self) -> bool:
        """Whether the sampler must return token entropies."""
        return self.transform.needs_entropies or self.uncertainty.needs_entropies

    @property
    def uses_sepa(self) -> bool:
        """Whether the SEPA schedule has any effect."""
        return self.transform.uses_sepa


def build_algorithm(
    *,
    advantage_mode: str = "maxrl",
    transform_mode: str = "gtpo_sepa",
    algorithm_mode: str = "",
    uncertainty_kind: str = "surprisal",
    params: Mapping[str, Any] | None = None,
    advantage_params: Mapping[str, Any] | None = None,
    transform_params: Mapping[str, Any] | None = None,
    gtpo_beta: float = 0.1,
    hicra_alpha: float = 0.2,
    strategic_grams: str | Sequence[str] | None = None,
    search_paths: Sequence[str | Path] = (),
    strict: bool = True,
) -> Algorithm:
    """Resolve modes, plugins, parameters and grams.

    `params` are the parameters of an algorithm mode. Without one they are defaults that the
    advantage mode and the transform mode both see, under advantage_params and
    transform_params. A parameter that no built-in mode knows is an error; a plugin may read
    whatever it likes.

    strategic_grams: as `parse_strategic_grams` takes them; None or "" for the defaults.
    search_paths:    folders that plugins may be imported from.
    strict:          whether `probe_algorithm` refuses a plugin or only warns.

    Raises AlgorithmError with every problem found.
    """
    shared, for_advantage, for_transform = (
        dict(given or {}) for given in (params, advantage_params, transform_params)
    )
    problems: list[tuple[str, str]] = []

    def attempt(key: str, make: Callable[[], T]) -> T | None:
        try:
            return make()
        except ValueError as error:
            problems.append((key, str(error)))
            return None

    if not 0 <= gtpo_beta < math.inf:
        problems.append(("gtpo.beta", f"{gtpo_beta:g} is not in [0, inf)"))
    if not 0 <= hicra_alpha < 1:
        message = f"{hicra_alpha:g} is not in [0, 1); from 1 on, blame turns into praise"
        problems.append(("hicra.alpha", message))
    advantage: AdvantageFunction | None = None
    if algorithm_mode:
        unread = "nothing reads them, as algorithm_mode replaces both modes; use params"
        if for_advantage:
            problems.append(("algorithm.advantage_params", unread))
        if for_transform:
            problems.append(("algorithm.transform_params", unread))
        for_transform = shared
        transform = attempt(
            "algorithm.algorithm_mode",
            lambda: transform_spec(
                algorithm_mode, for_transform, search_paths, registry=ALGORITHM_MODES
            ),
        )
    else:
        problems += _check_params(
            advantage_mode, transform_mode, shared, for_advantage, for_transform
        )
        for_advantage, for_transform = {**shared, **for_advantage}, {**shared, **for_transform}
        advantage = attempt(
            "algorithm.advantage_mode", lambda: advantage_function(advantage_mode, search_paths)
        )
        transform = attempt(
            "algorithm.transform_mode",
            lambda: transform_spec(transform_mode, for_transform, search_paths),
        )
    uncertainty = attempt(
        "algorithm.uncertainty_kind", lambda: find_uncertainty_kind(uncertainty_kind, search_paths)
    )
    planning = attempt(
        "logging.strategic_grams", lambda: PlanningMatcher(parse_strategic_grams(strategic_grams))
    )
    if transform and transform.needs_planning and planning and not planning.grams:
        problems.append(
            ("logging.strategic_grams", f"{transform.name} needs planning tokens; give some grams")
        )
    if problems or transform is None or uncertainty is None or planning is None:
        raise AlgorithmError(problems)
    return Algorithm(
        advantage=advantage,
        advantage_params=for_advantage,
        transform=transform,
        transform_params=for_transform,
        uncertainty=uncertainty,
        planning=planning,
        gtpo_beta=gtpo_beta,
        hicra_alpha=hicra_alpha,
        strict=strict,
    )


def algorithm_of(config: RunConfig) -> Algorithm:
    """The algorithm that a run's config describes. Raises AlgorithmError."""
    return build_algorithm(
        **config.algorithm.model_dump(),
        gtpo_beta=config.gtpo.beta,
        hicra_alpha=config.hicra.alpha,
        strategic_grams=config.logging.strategic_grams,
        search_paths=config.plugins.search_paths,
        strict=config.plugins.strict,
    )


def _check_params(
    advantage_mode: str,
    transform_mode: str,
    shared: Mapping[str, Any],
    for_advantage: Mapping[str, Any],
    for_transform: Mapping[str, Any],
) -> list[tuple[str, str]]:
    """What is wrong with the parameters, as far as built-in modes read them."""
    problems = []
    known = ADVANTAGE_PARAMS.get(advantage_mode)
    own_transform = transform_mode in TRANSFORM_MODES
    for name in for_transform if own_transform else ():
        problems.append(
            (
                "algorithm.transform_params",
                f"{transform_mode} has no parameter {name!r} "
                "(beta is a key of [gtpo], alpha of [hicra], lambda follows [sepa])",
            )
        )
    if known is None:
        return problems
    sources = [("algorithm.advantage_params", for_advantage)]
    # A shared parameter may be meant for a plugin transform alone.
    sources += [("algorithm.params", shared)] if own_transform else []
    for key, given in sources:
        for name in given:
            if name not in known:
                has = f"it has: {', '.join(known)}" if known else "it has none"
                near = did_you_mean(name, known)
                message = f"{advantage_mode} has no parameter {name!r}{near} ({has})"
                problems.append((key, message))
    for key, given in (("algorithm.params", shared), ("algorithm.advantage_params", for_advantage)):
        for name, allowed in known.items():
            if name in given and given[name] not in allowed:
                values = " or ".join(repr(value) for value in allowed)
                problems.append((key, f"{name} = {given[name]!r}; {advantage_mode} takes {values}"))
    return problems
