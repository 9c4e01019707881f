"""What `emergence/generations.jsonl` keeps of a completion: its text, its reward, and the credit
of each token.

Tokens are kept as numbers beside the text: how many characters each has, its advantage, its
uncertainty. The text is not written a second time. `docs/files.md` says what a token costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from retrain.advantages.credit import Credit, Pieces
from retrain.advantages.planning import PlanningMatcher
from retrain.types import Completion, FloatArray, Group

ADVANTAGE_DIGITS = 5
UNCERTAINTY_DIGITS = 4


def generation_rows(
    step: int,
    groups: Sequence[Group],
    credit: Credit,
    planning: PlanningMatcher,
    pieces: Pieces,
    count: int,
) -> list[dict[str, Any]]:
    """Rows of at most `count` completions spread evenly over the batch.

    They are the same places in every condition, so that they can be read side by side. Groups may
    differ in size and be empty. A pure function of what was sampled: a run that is resumed writes
    the same rows.
    """
    rows = [(group, i) for group in groups for i in range(len(group.completions))]
    count = min(count, len(rows))
    chosen = [int(i) for i in np.arange(count) * len(rows) // max(count, 1)]
    return [_row(step, *rows[index], index, credit, planning, pieces) for index in chosen]


def token_lengths(completion: Completion, pieces: Pieces) -> list[int] | None:
    """How many characters of the completion's text each token has: (tokens,), adding up to the
    text. Tokens that are not in the text (the end token, parts of a character) have 0.

    None when what came back does not add up to the text; only the colours of a viewer are lost.
    """
    shares = pieces(completion.token_ids)
    if len(shares) != completion.num_tokens or "".join(shares) != completion.text:
        return None
    return [len(share) for share in shares]


def rounded(values: FloatArray, digits: int) -> float | list[float]:
    """(tokens,) to so many significant digits; one number alone when all are equal."""
    short = [float(f"{value:.{digits}g}") for value in values.tolist()]
    return short[0] if short and short.count(short[0]) == len(short) else short


def _row(
    step: int,
    group: Group,
    place: int,
    index: int,
    credit: Credit,
    planning: PlanningMatcher,
    pieces: Pieces,
) -> dict[str, Any]:
    """index: the completion's row in `credit`."""
    completion, score, problem = group.completions[place], group.scores[place], group.problem
    tokens = completion.num_tokens
    return {
        "step": step,
        "problem_id": problem.id,
        "domain": problem.domain,
        "sample": place,
        "prompt": problem.prompt,
        "answer": problem.answer,
        "completion": completion.text,
        "stop_reason": completion.stop_reason,
        "reward": score.reward,
        "outcome": score.outcome,
        "parts": score.parts,
        "num_tokens": tokens,
        "advantage": float(credit.advantages[index]),
        "planning_spans": planning.spans(completion.text),
        "token_lengths": token_lengths(completion, pieces),
        "token_advantages": rounded(credit.token_advantages[index, :tokens], ADVANTAGE_DIGITS),
        "token_uncertainties": rounded(credit.uncertainties[index, :tokens], UNCERTAINTY_DIGITS),
    }
