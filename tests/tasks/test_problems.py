from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrain.config.data import DataConfig
from retrain.errors import InputError
from retrain.tasks.arithmetic import ArithmeticTask
from retrain.tasks.problems import ProblemListTask, split_by_id
from retrain.tasks.registry import build_task
from retrain.types import Problem


def problems(count: int) -> list[Problem]:
    return [Problem(f"p{i}", f"question {i}", str(i)) for i in range(count)]


@given(st.integers(1, 30), st.integers(1, 8), st.integers(0, 100), st.booleans())
def test_batches_are_distinct_and_epochs_whole(
    count: int, batch: int, seed: int, shuffle: bool
) -> None:
    task = ProblemListTask("t", problems(count), [], shuffle)
    if batch > count:
        with pytest.raises(InputError, match=r"training\.batch_size"):
            task.train_batch(seed, 0, batch)
        return
    per_epoch = count // batch
    for epoch in range(2):
        ids = [
            problem.id
            for step in range(per_epoch)
            for problem in task.train_batch(seed, epoch * per_epoch + step, batch)
        ]
        assert len(set(ids)) == len(ids) == per_epoch * batch


def test_shuffling() -> None:
    straight = ProblemListTask("t", problems(6), [], shuffle=False)
    assert [p.id for p in straight.train_batch(1, 1, 2)] == ["p2", "p3"]
    shuffled = ProblemListTask("t", problems(50), [])
    one = [p.id for p in shuffled.train_batch(1, 0, 50)]
    assert one != [p.id for p in shuffled.train_batch(2, 0, 50)]
    assert one != [p.id for p in shuffled.train_batch(1, 1, 50)]
    assert one == [p.id for p in shuffled.train_batch(1, 0, 50)]


def test_split_is_stable_and_about_a_tenth() -> None:
    train, held_out = split_by_id(problems(2000))
    assert 150 < len(held_out) < 250
    _, again = split_by_id(list(reversed(problems(2000))))
    assert {p.id for p in again} == {p.id for p in held_out}
    assert not {p.id for p in train} & {p.id for p in held_out}


def test_registry(tmp_path: Path) -> None:
    assert isinstance(build_task(DataConfig()), ArithmeticTask)
    (tmp_path / "own_task_module.py").write_text(
        "from retrain.types import Problem\n"
        "def listed():\n    return [Problem(str(i), 'q', 'a') for i in range(40)]\n"
        "def sized(data):\n"
        "    return [Problem(str(i), 'q', 'a') for i in range(data.max_examples or 40)]\n"
        "def twice():\n    return [Problem('same', 'q', 'a')] * 2\n"
        "def cut():\n    return [Problem('p', 'a \\ud83d', '1')]\n"
        "def number():\n    return 3\n"
        "def unwritten():\n    return [Problem('p7', 'q', 0.5)]\n"
        "class Whole:\n    held_out = print\n"
        "    train_batch = staticmethod(lambda *a: [Problem('p7', 'q', 7)])\n"
        "class Half:\n    train_batch = held_out = staticmethod(lambda *a: [1])\n"
    )
    task = build_task(DataConfig(source="own_task_module.listed"), [tmp_path])
    assert len(task.train_batch(0, 0, 4)) == 4
    assert task.held_out(3)
    assert build_task(DataConfig(source="own_task_module.sized"), [tmp_path]).train_batch(0, 0, 1)
    for source, message in [
        ("arithmetics", "did you mean arithmetic"),
        ("own_task_module.lister", "did you mean listed"),
        ("own_task_module.twice", "two problems with one id"),
        ("own_task_module.cut", "text cannot be encoded: surrogates not allowed"),
        ("own_task_module.number", "returned int"),
        ("own_task_module.unwritten", "problem p7 has the answer 0.5; text is wanted"),
        ("own_task_module.Whole", "problem p7 has the answer 7; text is wanted"),
        ("own_task_module.Half", "returned \\[1\\]"),
        ("no_such_module.fn", "no_such_module"),
    ]:
        with pytest.raises(InputError, match=f"data.source: .*{message}"):
            build_task(DataConfig(source=source), [tmp_path])
