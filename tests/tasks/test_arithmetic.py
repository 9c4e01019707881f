"""The arithmetic task: right answers, fixed splits, keyed draws."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrain import seeding
from retrain.tasks.arithmetic import ArithmeticTask, Expression, draw
from retrain.tasks.task import Task
from retrain.types import Problem

TASK: Task = ArithmeticTask()

seeds = st.integers(0, 2**63 - 1)
expressions = seeds.map(lambda seed: draw(seeding.generator(seed, "test")))


def expression_of(problem: Problem) -> Expression:
    assert isinstance(problem.prompt, str)
    match = re.fullmatch(r"Compute (.+)\.", problem.prompt)
    assert match is not None
    return Expression.parse(match[1])


def test_worked_example() -> None:
    problem = Expression.parse("7*8-19+35").problem
    assert problem == Problem(
        id="arithmetic:7*8-19+35", prompt="Compute 7*8-19+35.", answer="72", domain="arithmetic"
    )


@given(expressions)
def test_answer_is_what_python_computes(expression: Expression) -> None:
    # Python's precedence is the usual one, so this also shows that left to right obeys it.
    assert expression.answer == eval(expression.text)


@given(expressions)
def test_shape_of_an_expression(expression: Expression) -> None:
    assert len(expression.operators) in (2, 3)
    assert "*" not in expression.operators[1:]
    assert all(0 <= step.result <= 99 for step in expression.steps)
    if expression.operators[0] == "*":
        assert all(2 <= factor <= 9 for factor in expression.operands[:2])
    assert all(1 <= operand <= 99 for operand in expression.operands)


@given(expressions)
def test_text_round_trips(expression: Expression) -> None:
    assert Expression.parse(expression.text) == expression


def test_a_product_later_on_is_refused() -> None:
    with pytest.raises(ValueError, match="only in front"):
        Expression((1, 2, 3), ("+", "*"))


@given(seeds, st.integers(0, 10_000), st.integers(1, 32))
def test_train_batches_never_touch_the_held_out_split(seed: int, step: int, size: int) -> None:
    assert not any(expression_of(p).is_held_out for p in TASK.train_batch(seed, step, size))


def test_held_out_problems_are_held_out_and_distinct() -> None:
    problems = TASK.held_out(512)
    assert all(expression_of(p).is_held_out for p in problems)
    assert len({p.id for p in problems}) == 512


def test_one_in_ten_is_held_out() -> None:
    stream = seeding.generator(0, "test/share")
    share = sum(draw(stream).is_held_out for _ in range(5000)) / 5000
    assert share == pytest.approx(0.1, abs=0.015)


@given(seeds, st.integers(0, 10_000), st.integers(1, 64))
def test_a_batch_has_distinct_problems(seed: int, step: int, size: int) -> None:
    assert len({p.id for p in TASK.train_batch(seed, step, size)}) == size


@given(seeds, st.integers(0, 10_000), st.integers(1, 16), st.integers(0, 16))
def test_draws_are_keyed(seed: int, step: int, size: int, more: int) -> None:
    batch = TASK.train_batch(seed, step, size)
    assert batch == ArithmeticTask().train_batch(seed, step, size + more)[:size]


def test_seeds_and_steps_give_different_batches() -> None:
    batches = [TASK.train_batch(seed, step, 8) for seed in range(4) for step in range(4)]
    assert len({tuple(p.id for p in batch) for batch in batches}) == 16


@given(st.integers(0, 24), st.integers(0, 24))
def test_held_out_is_prefix_stable(few: int, more: int) -> None:
    few, more = sorted((few, more))
    assert TASK.held_out(few) == TASK.held_out(more)[:few]


def test_problems_are_the_same_on_every_machine() -> None:
    assert [p.id for p in TASK.held_out(4)] == HELD_OUT_IDS
    assert [p.id for p in TASK.train_batch(seed=42, step=0, batch_size=4)] == TRAIN_IDS
    assert [p.answer for p in TASK.held_out(4)] == HELD_OUT_ANSWERS


HELD_OUT_IDS = [f"arithmetic:{e}" for e in ("8*6-37", "61-18-36+9", "5*6+50", "15-2-12")]
HELD_OUT_ANSWERS = ["11", "16", "80", "1"]
TRAIN_IDS = [f"arithmetic:{e}" for e in ("5*4-15+54", "39+45-4", "4-4+75", "7*8-23+18")]
