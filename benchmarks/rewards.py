"""Checks of mathematical answers a second: retrain's pool beside math-verify in one process.

python benchmarks/rewards.py [--answers 600] [--processes 2] [--rounds 3]

The answers are made up: fractions, expressions, sets, intervals, matrices, equations, text, each
right in other words, right as written, or wrong. Both sides get the same pairs in the same order,
each pair once, so that neither's memory of pairs helps it. The peer calls `parse` and `verify` as
math-verify's README does, its limits of five seconds included. Rounds alternate, and the median
of each counts. Starting the pool's processes (about a second, beside the first rollout) is left
out, as is importing the library for the peer. What is judged without a process (the same text,
whole numbers) is shown apart, and left out of the comparison.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import statistics
import time
from collections.abc import Callable

import numpy as np
from math_verify import parse, verify

from retrain.rewards.mathematics import MathReward, at_once
from retrain.types import Completion, Problem

Pair = tuple[str, str]


def fraction(draw: random.Random, right: bool) -> Pair:
    a, b, k = draw.randint(1, 400), draw.randint(2, 90), draw.randint(2, 9)
    return f"\\frac{{{a}}}{{{b}}}", f"\\frac{{{a * k + (not right)}}}{{{b * k}}}"


def decimal(draw: random.Random, right: bool) -> Pair:
    a = draw.randint(1, 4000)
    return f"{a / 8:g}", f"\\frac{{{a + (not right)}}}{{8}}"


def root(draw: random.Random, right: bool) -> Pair:
    a, b = draw.randint(2, 40), draw.choice([2, 3, 5, 7, 11])
    return f"{a}\\sqrt{{{b}}}", f"\\sqrt{{{a * a * b + (not right)}}}"


def expression(draw: random.Random, right: bool) -> Pair:
    a, b = draw.randint(1, 30), draw.randint(1, 30)
    return f"x^2+{a + b}x+{a * b}", f"(x+{a})(x+{b + (not right)})"


def a_set(draw: random.Random, right: bool) -> Pair:
    items = draw.sample(range(-99, 99), 4)
    other = draw.sample(items, 4) if right else [*items[1:], 100]
    return "\\{" + ",".join(map(str, items)) + "\\}", ", ".join(map(str, other))


def interval(draw: random.Random, right: bool) -> Pair:
    a, b = draw.randint(-50, 0), draw.randint(1, 50)
    close = ")" if right else "]"
    return f"[{a},{b})", f"\\left[\\frac{{{2 * a}}}{{2}}, {b}\\right{close}"


def matrix(draw: random.Random, right: bool) -> Pair:
    a, b, c, d = (draw.randint(-20, 20) for _ in range(4))
    first = f"\\begin{{pmatrix}}{a}&{b}\\\\{c}&{d}\\end{{pmatrix}}"
    return first, (
        f"\\begin{{bmatrix}}{a}&\\frac{{{2 * b}}}{{2}}\\\\{c}&{d + (not right)}\\end{{bmatrix}}"
    )


def equation(draw: random.Random, right: bool) -> Pair:
    a, b, c = (draw.randint(2, 30) for _ in range(3))
    return f"{a}x+{b}y={c}", f"{b}y={c + (not right)}-{a}x"


def words(draw: random.Random, right: bool) -> Pair:
    name, other = draw.sample(["Ada", "Ben", "Chloe", "Dan", "Eve", "Fay"], 2)
    serial = draw.randint(1, 10**6)
    return f"\\text{{{name}}}_{{{serial}}}", f"{name if right else other}_{{{serial}}}"


def whole(draw: random.Random, right: bool) -> Pair:
    a = draw.randint(-(10**6), 10**6)
    return str(a), str(a + (not right))


def as_written(draw: random.Random, right: bool) -> Pair:
    del right
    reference, _ = draw.choice([fraction, root, expression, interval])(draw, True)
    return reference, f" {reference} "


KINDS: dict[str, Callable[[random.Random, bool], Pair]] = {
    "fractions": fraction,
    "decimals": decimal,
    "roots": root,
    "expressions": expression,
    "sets": a_set,
    "intervals": interval,
    "matrices": matrix,
    "equations": equation,
    "text": words,
    "whole numbers": whole,
    "the same text": as_written,
}


def pairs_of(kind: str, count: int, seed: int) -> list[Pair]:
    """Distinct pairs, every second one right."""
    draw = random.Random(f"{kind}/{seed}")
    found: dict[Pair, None] = {}
    while len(found) < count:
        found[KINDS[kind](draw, len(found) % 2 == 0)] = None
    return list(found)


def pooled(reward: MathReward, pairs: list[Pair]) -> list[bool]:
    waiting = [
        reward.begin(
            Problem("p", "?", reference),
            Completion(np.zeros(1, np.int64), np.zeros(1), f"So \\boxed{{{answer}}}.", "stop"),
        )
        for reference, answer in pairs
    ]
    return [wait().outcome == "correct" for wait in waiting]  # type: ignore[union-attr]


def plain(pairs: list[Pair]) -> list[bool]:
    return [
        verify(parse(f"\\boxed{{{reference}}}"), parse(f"So \\boxed{{{answer}}}."))
        for reference, answer in pairs
    ]


def timed(work: Callable[[], list[bool]]) -> tuple[float, list[bool]]:
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--answers", type=int, default=600)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    each = max(2, arguments.answers // len(KINDS))
    print(f"{os.cpu_count()} cores, {arguments.processes} processes, {each} answers of each kind\n")
    line = "{:<16}{:>11}{:>14}{:>9}{:>14}"
    print(line.format("answers", "pool, 1/s", "1 process, 1/s", "ratio", "other verdicts"))
    totals: dict[bool, list[float]] = {True: [0.0, 0.0, 0.0], False: [0.0, 0.0, 0.0]}
    for kind in KINDS:
        times: tuple[list[float], list[float]] = ([], [])
        differ = 0
        for number in range(arguments.rounds):
            pairs = pairs_of(kind, each, number)
            with MathReward(processes=arguments.processes) as reward:
                # Every process has started when it has done something.
                pooled(reward, [(f"\\frac{{{n}}}{{7}}", "0.125") for n in range(64)])
                seconds, found = timed(lambda: pooled(reward, pairs))  # noqa: B023
            times[0].append(seconds)
            seconds, peer = timed(lambda: plain(pairs))  # noqa: B023
            times[1].append(seconds)
            differ += sum(a != b for a, b in zip(found, peer, strict=True))
        pool_s, plain_s = (statistics.median(part) for part in times)
        row = (each / pool_s, each / plain_s, plain_s / pool_s)
        print(line.format(kind, *(f"{value:.4g}" for value in row), differ))
        quick = all(at_once(*pair) is not None for pair in pairs)
        for i, value in enumerate((each, pool_s, plain_s)):
            totals[quick][i] += value
    print()
    for quick, name in ((False, "by a process"), (True, "without one")):
        count, pool_s, plain_s = totals[quick]
        row = (count / pool_s, count / plain_s, plain_s / pool_s)
        print(line.format(name, *(f"{value:.4g}" for value in row), ""))


if __name__ == "__main__":
    main()
