"""From scored groups to token advantages: the advantage mode, then the transform mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from retrain.advantages.algorithm import Algorithm
from retrain.advantages.episode import GroupCause, RewardError, group_cause
from retrain.advantages.transforms import TransformContext, masked_mean
from retrain.advantages.uncertainty import NonFiniteError, check_entropies, check_logprobs
from retrain.plugins import PluginError
from retrain.types import (
    BoolArray,
    Completion,
    FloatArray,
    Group,
    IntArray,
    Problem,
    Score,
    pad_mask,
    pad_rows,
)

ArrayT = TypeVar("ArrayT", FloatArray, BoolArray, IntArray)
Pieces = Callable[[IntArray], list[str]]


@dataclass(frozen=True, slots=True)
class Credit:
    """What each completion and each token of a step is credited with.

    Rows are the groups' completions in order; tokens are padded to the longest completion.

    advantages:          (rows,) episode advantages; under an algorithm mode, which has none,
                         the mean of a completion's token advantages.
    token_advantages:    (rows, tokens) 0 on padding.
    uncertainties:       (rows, tokens) 0 on padding.
    planning:            (rows, tokens) True on planning tokens.
    mask:                (rows, tokens) True on completion tokens.
    causes:              (groups,) whether each group informs, and if not, why.
    execution_variances: (sequences,) variance of uncertainty over execution tokens, for each
                         completion that has any, in order: what SEPA's auto schedule observes.
    stats:               exec_uncertainty_mean, exec_uncertainty_var, plan_uncertainty_mean,
                         plan_uncertainty_var over all such tokens of the step (variances with
                         ddof 0), and planning_fraction of all tokens; None without tokens.
    """

    advantages: FloatArray
    token_advantages: FloatArray
    uncertainties: FloatArray
    planning: BoolArray
    mask: BoolArray
    causes: tuple[GroupCause, ...]
    execution_variances: FloatArray
    stats: dict[str, float | None]

    @property
    def informative_groups(self) -> int:
        """Groups whose rewards are not all equal."""
        return self.causes.count("informative")


def assign_credit(
    groups: Sequence[Group],
    algorithm: Algorithm,
    step: int,
    sepa_lambda: float,
    pieces: Pieces,
    *,
    run: str = "",
) -> Credit:
    """Credit every token of a step.

    groups:      scored; their sizes may differ.
    sepa_lambda: in [0, 1], fixed before the rollout.
    pieces:      token ids (tokens,) -> the text of each; joined, the completion's text. Asked
                 only for completions whose text holds a strategic gram.
    run:         the run's name, for error messages.

    Raises NonFiniteError for a NaN or infinite reward, log-probability or needed entropy, and
    RewardError for a reward the advantage mode is not defined for, both naming run, step and
    problem; PluginError for what a plugin returns; ValueError for a group without its scores.
    """
    rows = [completion for group in groups for completion in group.completions]
    problems = [group.problem.id for group in groups for _ in group.completions]
    _check_lengths(rows, problems)
    mask = _read_only(pad_mask([completion.num_tokens for completion in rows]))
    logprobs = _read_only(pad_rows([completion.logprobs for completion in rows]))
    check_logprobs(logprobs, mask, run=run, step=step, problems=problems)
    entropies = _entropies(rows)
    if entropies is not None and algorithm.needs_entropies:
        check_entropies(entropies, mask, run=run, step=step, problems=problems)
    rewards = [_rewards(group, run, step) for group in groups]
    context = TransformContext(
        rewards=_read_only(np.concatenate([np.zeros(0), *rewards])),
        group_index=_read_only(
            np.repeat(np.arange(len(groups)), [len(group.completions) for group in groups])
        ),
        advantages=_read_only(_episode_advantages(groups, rewards, algorithm, run, step)),
        logprobs=logprobs,
        uncertainties=_read_only(algorithm.uncertainty(logprobs, entropies, mask)),
        planning=_read_only(_planning(rows, mask, algorithm, pieces)),
        mask=mask,
        entropies=entropies,
        step=step,
        sepa_lambda=sepa_lambda,
        gtpo_beta=algorithm.gtpo_beta,
        hicra_alpha=algorithm.hicra_alpha,
        params=algorithm.transform_params,
    )
    token_advantages = algorithm.transform(context)
    execution = mask & ~context.planning
    return Credit(
        advantages=(
            masked_mean(token_advantages, mask)
            if algorithm.advantage is None
            else context.advantages
        ),
        token_advantages=token_advantages,
        uncertainties=context.uncertainties,
        planning=context.planning,
        mask=mask,
        causes=tuple(group_cause(group.scores) for group in groups),
        execution_variances=_row_variances(context.uncertainties, execution),
        stats=_stats(context, execution),
    )


def probe_algorithm(algorithm: Algorithm) -> tuple[str, ...]:
    """Call the algorithm once on two made-up groups, to meet a plugin's mistakes early.

    The groups hold four and three completions of different lengths, right and wrong ones, with
    planning tokens. Takes milliseconds and no model.

    Returns warnings: none, unless the algorithm is not strict and the probe failed. Raises
    PluginError saying what came back and what was expected when it is strict.
    """
    gram = algorithm.planning.grams[0] if algorithm.planning.grams else "let me think"
    words = ["So", *(f" {word}" for word in gram.split(" ")), " carry", " the", " one", "."]

    def group(name: str, lengths: Sequence[int]) -> Group:
        completions, scores = [], []
        for i, length in enumerate(lengths):
            probabilities = np.linspace(0.9, 0.2, length)
            completions.append(
                Completion(
                    token_ids=np.arange(length),
                    logprobs=np.log(probabilities),
                    text="".join(words[:length]),
                    stop_reason="stop",
                    entropies=1.0 - probabilities,
                )
            )
            right = i % 2 == 0
            scores.append(Score(float(right), "correct" if right else "wrong"))
        problem = Problem(id=name, prompt="made up", answer="1")
        return Group(problem, np.arange(3), tuple(completions), tuple(scores))

    full = len(words)
    groups = [group("probe-0", (full, full - 1, 2, full)), group("probe-1", (1, full, full - 2))]
    try:
        assign_credit(
            groups, algorithm, 0, 0.5, lambda ids: [words[int(i)] for i in ids], run="probe"
        )
    except PluginError as error:
        message = f"on a made-up group: {error}"
        if algorithm.strict:
            raise PluginError(message) from error
        return (message,)
    return ()


def _check_lengths(rows: Sequence[Completion], problems: Sequence[str]) -> None:
    for completion, problem in zip(rows, problems, strict=True):
        given = {"log-probabilities": completion.logprobs, "entropies": completion.entropies}
        for what, values in given.items():
            if values is not None and len(values) != completion.num_tokens:
                raise ValueError(
                    f"problem {problem}: {completion.num_tokens} tokens but {len(values)} {what}"
                )


def _entropies(rows: Sequence[Completion]) -> FloatArray | None:
    given = [completion.entropies for completion in rows if completion.entropies is not None]
    return _read_only(pad_rows(given)) if rows and len(given) == len(rows) else None


def _rewards(group: Group, run: str, step: int) -> FloatArray:
    where = f"run {run}, step {step}, problem {group.problem.id}"
    if len(group.scores) != len(group.completions):
        raise ValueError(
            f"{where}: {len(group.completions)} completions but {len(group.scores)} scores"
        )
    rewards = group.rewards
    if not np.isfinite(rewards).all():
        raise NonFiniteError(f"{where}: a reward of {rewards[~np.isfinite(rewards)][0]}")
    return _read_only(rewards)


def _episode_advantages(
    groups: Sequence[Group],
    rewards: Sequence[FloatArray],
    algorithm: Algorithm,
    run: str,
    step: int,
) -> FloatArray:
    parts = [np.zeros(0)]
    for group, of_group in zip(groups, rewards, strict=True):
        # Of a group that lost all its completions no mode needs to know.
        if algorithm.advantage is None or not len(of_group):
            parts.append(np.zeros(len(of_group)))
            continue
        try:
            parts.append(algorithm.advantage(of_group, algorithm.advantage_params))
        except RewardError as error:
            where = f"run {run}, step {step}, problem {group.problem.id}"
            raise RewardError(f"{where}: {error}") from error
    return np.concatenate(parts)


def _planning(
    rows: Sequence[Completion], mask: BoolArray, algorithm: Algorithm, pieces: Pieces
) -> BoolArray:
    planning = np.zeros_like(mask)
    for i, completion in enumerate(rows):
        # Decoding token by token is dear, and few completions hold a gram.
        if algorithm.planning.matches(completion.text):
            of_row = pieces(completion.token_ids)
            if len(of_row) != completion.num_tokens:
                raise ValueError(f"{completion.num_tokens} tokens but {len(of_row)} pieces")
            planning[i, : completion.num_tokens] = algorithm.planning.mask(of_row)
    return planning


def _row_variances(values: FloatArray, mask: BoolArray) -> FloatArray:
    centred = values - masked_mean(values, mask)[:, None]
    return masked_mean(centred * centred, mask)[mask.any(axis=1)]


def _stats(context: TransformContext, execution: BoolArray) -> dict[str, float | None]:
    stats: dict[str, float | None] = {}
    for name, where in (("exec", execution), ("plan", context.planning)):
        values = context.uncertainties[where]
        stats[f"{name}_uncertainty_mean"] = float(values.mean()) if values.size else None
        stats[f"{name}_uncertainty_var"] = float(values.var()) if values.size else None
    tokens = int(context.mask.sum())
    stats["planning_fraction"] = int(context.planning.sum()) / tokens if tokens else None
    return stats


def _read_only(array: ArrayT) -> ArrayT:
    """So that a plugin that works in place fails its probe, and never spoils a run's record."""
    array.flags.writeable = False
    return array
