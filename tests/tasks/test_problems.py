from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrain.config.schema import DataConfig
from retrain.errors import InputError
from retrain.tasks.arithmetic import ArithmeticTask
from retrain.tasks.problems import ProblemListTask, read_jsonl_task, split_by_id
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


def write(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return path


def test_jsonl(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    path = write(
        tmp_path / "math.jsonl",
        {"prompt": "1+1?", "answer": "2", "id": "a", "domain": "add", "split": "train"},
        "",
        {"prompt": chat, "answer": 3, "split": "train", "metadata": {"level": 1}},
        {"prompt": "2+2?", "answer": 4.5, "id": "c", "split": "held_out"},
    )
    task = read_jsonl_task(path)
    batch = {p.id: p for p in task.train_batch(0, 0, 2)}
    assert batch["a"].domain == "add"
    other = next(p for p in batch.values() if p.id != "a")
    assert other.messages == chat
    assert (other.answer, other.metadata) == ("3", {"level": 1})
    assert [p.answer for p in task.held_out(5)] == ["4.5"]
    assert len(read_jsonl_task(path, max_examples=1).train_batch(0, 0, 1)) == 1


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"prompt": "x", "answer": "1"}', "{oops"], "line 2: not JSON"),
        (["[1, 2]"], "line 1: one JSON object a line"),
        (['{"prompt": "x"}'], "line 1: `answer` is missing"),
        (['{"question": "x", "answer": "1"}'], "unknown key 'question'"),
        (['{"prompt": "x", "answer": null}'], "`answer` must be text or a number"),
        (['{"prompt": "x", "answer": ""}'], "`answer` must be text or a number"),
        (['{"prompt": "x", "answer": true}'], "`answer` must be text or a number"),
        (['{"prompt": "", "answer": "1"}'], "`prompt` must be text"),
        (['{"prompt": [{"role": "user"}], "answer": "1"}'], "a message of `prompt`"),
        (['{"prompt": "x", "answer": "1", "split": "test"}'], "`split` is 'test'"),
        (['{"prompt": "x", "answer": "1"}'] * 2, "is already on line 1"),
        (
            ['{"prompt": "x", "answer": "1", "split": "train"}', '{"prompt": "y", "answer": "1"}'],
            "give it to all lines or to none",
        ),
        (['{"prompt": "x", "answer": "1", "split": "held_out"}'], "no training problem"),
        ([""], "no training problem"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_jsonl_task(write(tmp_path / "bad.jsonl", *lines))


def test_registry(tmp_path: Path) -> None:
    assert isinstance(build_task(DataConfig()), ArithmeticTask)
    (tmp_path / "own_task_module.py").write_text(
        "from retrain.types import Problem\n"
        "def listed():\n    return [Problem(str(i), 'q', 'a') for i in range(40)]\n"
        "def sized(data):\n"
        "    return [Problem(str(i), 'q', 'a') for i in range(data.max_examples or 40)]\n"
        "def twice():\n    return [Problem('same', 'q', 'a')] * 2\n"
        "def number():\n    return 3\n"
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
        ("own_task_module.number", "returned int"),
        ("own_task_module.Half", "returned \\[1\\]"),
        ("no_such_module.fn", "no_such_module"),
    ]:
        with pytest.raises(InputError, match=f"data.source: .*{message}"):
            build_task(DataConfig(source=source), [tmp_path])
