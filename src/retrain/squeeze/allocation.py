"""Which rank each module gets: the same for all, or where the parameters keep most."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

import numpy as np

from retrain.models.adapters.reader import LoraModule
from retrain.squeeze.analysis import SqueezeAnalysis


def layers_ranks(
    modules: Sequence[LoraModule], analysis: SqueezeAnalysis, rank: int, allocation: str
) -> dict[str, int]:
    """Module -> rank. `rank` is the uniform one; modules of a smaller rank keep theirs."""
    uniform = {module.name: min(rank, module.rank) for module in modules}
    if allocation == "uniform":
        return uniform
    energies = {
        module.name: np.square(module.scaled_singular_values).tolist()
        for module in analysis.modules
    }
    greedy = _greedy(modules, energies, _cost(modules, uniform))
    # Whole ranks do not always fill the budget, so that greedy can end below uniform by one.
    better = _kept(energies, greedy) > _kept(energies, uniform)
    return greedy if better else uniform


def _greedy(
    modules: Sequence[LoraModule], energies: Mapping[str, Sequence[float]], budget: int
) -> dict[str, int]:
    """Spend `budget` parameters by scaling^2 S^2 a parameter, largest first.

    A rank of a module costs in + out parameters. Each module's gains fall with the rank, so that
    taking the best that is left is optimal but for the last rank that no longer fits; a module
    whose next rank does not fit is closed and cheaper ones go on. Every module keeps rank 1, which
    is the least that PEFT has: zero modules too, whose budget goes to the others.
    """
    ranks = {module.name: 1 for module in modules}
    left = budget - _cost(modules, ranks)
    waiting: list[tuple[float, int]] = []

    def offer(number: int) -> None:
        module = modules[number]
        gains = energies.get(module.name, ())
        following = ranks[module.name]
        if following < len(gains) and gains[following] > 0:
            heapq.heappush(waiting, (-gains[following] / module.parameters_a_rank, number))

    for number in range(len(modules)):
        offer(number)
    while waiting:
        _, number = heapq.heappop(waiting)
        module = modules[number]
        if module.parameters_a_rank <= left:
            left -= module.parameters_a_rank
            ranks[module.name] += 1
            offer(number)
    return ranks


def _cost(modules: Sequence[LoraModule], ranks: Mapping[str, int]) -> int:
    return sum(module.parameters_a_rank * ranks[module.name] for module in modules)


def _kept(energies: Mapping[str, Sequence[float]], ranks: Mapping[str, int]) -> float:
    return sum(sum(energy[: ranks[name]]) for name, energy in energies.items())
