"""The held-out answers of a campaign, problem by problem: what its seeds' means rest on.

Axes: C conditions, S seeds, P problems, D domains, K numbers of completions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import numpy as np

from retrain.analysis.evaluations import Estimate, by_seed_and_problem, pass_at_k
from retrain.analysis.records import CampaignRecord, RunView
from retrain.files import EVALUATION_FOLDER
from retrain.types import FloatArray

KS = (1, 2, 4, 8, 16, 32, 64)


class _Problem(msgspec.Struct):
    id: str
    domain: str = ""
    correct: list[float | None] = msgspec.field(default_factory=list)


class _Evaluation(msgspec.Struct):
    problems: list[_Problem] = msgspec.field(default_factory=list)


_DECODER = msgspec.json.Decoder(_Evaluation)


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The answers after training of all finished runs, on the problems that all of them have."""

    conditions: tuple[str, ...]
    seeds: tuple[int, ...]
    domains: tuple[str, ...]
    """(P,) of each problem."""
    correct: FloatArray
    """(C, S, P) correct completions; NaN throughout a run that is missing."""
    drawn: FloatArray
    """(C, S, P) completions that were judged."""

    @property
    def accuracy(self) -> FloatArray:
        """(C, S, P) share of correct completions, NaN where none was judged."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.correct / self.drawn)

    @property
    def names(self) -> list[str]:
        """The domains, each once."""
        return sorted(set(self.domains))

    def of_seeds_and_problems(self, treatment: str, baseline: str, confidence: float) -> Estimate:
        """The difference with an interval for other seeds *and* other problems; see
        `evaluations.by_seed_and_problem`. Raises ValueError when no seed has both runs."""
        a_SP, b_SP = (self.accuracy[self.conditions.index(x)] for x in (treatment, baseline))
        there_S = ~np.isnan(a_SP).all(axis=1) & ~np.isnan(b_SP).all(axis=1)
        judged_P = ~np.isnan(a_SP[there_S] - b_SP[there_S]).any(axis=0)
        a_SP, b_SP = (x[there_S][:, judged_P] for x in (a_SP, b_SP))
        return by_seed_and_problem(a_SP, b_SP, confidence=confidence)

    def pass_at(self) -> tuple[list[int], FloatArray]:
        """k and unbiased pass@k (C, K), the mean over seeds and problems.

        Problems that have fewer than the largest number of completions are left out. NaN for a
        condition without a finished run.
        """
        if not np.isfinite(self.drawn).any():
            return [], np.empty((len(self.conditions), 0))
        n = int(np.nanmax(self.drawn))
        ks = [k for k in KS if k <= n]
        found = np.full((len(self.conditions), len(ks)), np.nan)
        for c, (correct, drawn) in enumerate(zip(self.correct, self.drawn, strict=True)):
            full = drawn == n
            if full.any():
                found[c] = [float(pass_at_k(correct[full], drawn[full], k).mean()) for k in ks]
        return ks, found

    def by_domain(self) -> FloatArray:
        """Accuracy of each run on each domain, (C, S, D); NaN for a run that is missing."""
        of = np.asarray(self.domains)
        accuracy = self.accuracy
        columns = []
        for name in self.names:
            part = accuracy[:, :, of == name]
            judged = (~np.isnan(part)).sum(axis=2)
            with np.errstate(invalid="ignore"):
                columns.append(np.nansum(part, axis=2) / np.where(judged, judged, np.nan))
        return np.stack(columns, axis=2)


def read_held_out(campaign: CampaignRecord) -> HeldOut | None:
    """The last evaluations of the finished runs; None when there are none."""
    conditions, seeds = campaign.conditions, campaign.seeds
    order: list[_Problem] = []
    place: dict[str, int] = {}
    lacking: set[int] = set()
    correct = drawn = np.empty(0)
    for (label, seed), problems in _evaluations(campaign):
        if not order:
            order = problems
            place = {problem.id: index for index, problem in enumerate(order)}
            correct = np.full((len(conditions), len(seeds), len(order)), np.nan)
            drawn = np.full_like(correct, np.nan)
        c, s = conditions.index(label), seeds.index(seed)
        for problem in problems:
            if (p := place.get(problem.id)) is not None:
                judged = [value for value in problem.correct if value is not None]
                correct[c, s, p], drawn[c, s, p] = sum(judged), len(judged)
        lacking.update(np.flatnonzero(np.isnan(drawn[c, s])).tolist())
    shared = [p for p in range(len(order)) if p not in lacking]
    if not shared:
        return None
    domains = tuple(order[p].domain for p in shared)
    return HeldOut(conditions, seeds, domains, correct[:, :, shared], drawn[:, :, shared])


def _evaluations(campaign: CampaignRecord) -> Iterator[tuple[tuple[str, int], list[_Problem]]]:
    for run in campaign.runs:
        if run.state == "done" and run.seed is not None and (problems := _last(run)):
            yield (run.condition, run.seed), problems


def _last(run: RunView) -> list[_Problem]:
    path = run.folder / EVALUATION_FOLDER / f"step_{run.step:06d}.json"
    try:
        return _DECODER.decode(path.read_bytes()).problems
    except (OSError, msgspec.DecodeError):
        return []
