"""JSONL and parquet files: fields, ids, answers, splits, repeated rows, and errors."""

from __future__ import annotations

import gzip
import json
import math
import re
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from retrain.config.data import DataConfig
from retrain.errors import InputError
from retrain.tasks import reading
from retrain.tasks.fields import answer_text, look_up
from retrain.tasks.files import read_file_task
from retrain.tasks.problems import ProblemListTask
from retrain.tasks.rows import Fields, collect, problem_id
from retrain.types import Problem
from tests.tasks.data_sets import guru_rows, write_parquet

NESTED = pa.struct([("in", pa.list_(pa.float32()))])


def write_jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return path


def jsonl(path: Path, **keys: Any) -> ProblemListTask:
    return read_file_task(DataConfig(source="jsonl", path=str(path), **keys))


def parquet(path: Path, **keys: Any) -> ProblemListTask:
    return read_file_task(DataConfig(source="parquet", path=str(path), **keys))


def everything(task: ProblemListTask) -> dict[str, Problem]:
    return {problem.id: problem for problem in (*task.train, *task.all_held_out)}


def test_jsonl_with_the_own_keys(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    path = write_jsonl(
        tmp_path / "math.jsonl",
        {"prompt": "1+1?", "answer": "2", "id": "a", "domain": "add", "split": "train"},
        "",
        {"prompt": chat, "answer": 3, "split": "train", "metadata": {"level": 1}},
        {"prompt": "2+2?", "answer": 4.5, "id": "c", "split": "held_out"},
    )
    task = jsonl(path)
    batch = {p.id: p for p in task.train_batch(0, 0, 2)}
    assert batch["a"].domain == "add"
    other = next(p for p in batch.values() if p.id != "a")
    assert other.messages == chat
    assert (other.answer, other.metadata, other.domain) == ("3", {"level": 1}, "default")
    assert [p.answer for p in task.held_out(5)] == ["4.5"]
    assert task.notes == ()


def test_ids_of_problems_without_one_never_change(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", {"prompt": "1+1?", "answer": "2"})
    assert list(everything(jsonl(path))) == ["5220f189680b"]


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
        (['{"prompt": "x", "answer": NaN}'], "`answer` must be text or a number"),
        (['{"prompt": "", "answer": "1"}'], "`prompt` must be text"),
        (['{"prompt": [{"role": "user"}], "answer": "1"}'], "a message of `prompt`"),
        (['{"prompt": "x", "answer": "1", "split": "test"}'], "`split` is 'test'"),
        (['{"prompt": "x", "answer": "1", "metadata": 3}'], "`metadata` must be an object"),
        (
            ['{"prompt": "x", "answer": "1"}', '{"prompt": "x", "answer": "2"}'],
            "is already on line 1, with the same prompt and another answer",
        ),
        (
            ['{"prompt": "x", "answer": "1"}', '{"prompt": "y", "prompt": "z", "answer": "1"}'],
            "line 2: the key 'prompt' stands twice",
        ),
        (['{"prompt": "a \\ud83d", "answer": "1"}'], r"line 1: \\ud83d is half of a character"),
        (['{"prompt": "x", "answer": "' + "1" * 9 + '", "metadata": ' + "[" * 9999], "too deep"),
        (['{"prompt": "' + "x" * 1_000_001 + '", "answer": "1"}'], "1,000,001 characters long"),
        (['{"prompt": "x", "answer": "NotFound"}'], "which stands for none"),
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
        jsonl(write_jsonl(tmp_path / "bad.jsonl", *lines))


def test_a_line_may_hold_what_python_takes_for_the_end_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes("\ufeff".encode() + '{"prompt": "a\u2028b", "answer": "1"}\r\n'.encode())
    assert [p.prompt for p in everything(jsonl(path)).values()] == ["a\u2028b"]


def test_fields_of_other_names(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "x.jsonl",
        {"q": "1+1?", "a": {"final": 2}, "topic": "sums", "level": 3, "metadata": {"by": "me"}},
        {"q": "2+2?", "a": {"final": 4}, "id": 7},
    )
    task = jsonl(path, prompt_key="q", answer_key="a.final", domain_key="topic")
    first, second = everything(task).values()
    assert (first.prompt, first.answer, first.domain) == ("1+1?", "2", "sums")
    assert first.metadata == {"a": {"final": 2}, "level": 3, "by": "me"}
    assert (second.id, second.domain, second.metadata) == ("7", "default", {"a": {"final": 4}})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"prompt_key": "qestion"},
            r"data\.prompt_key: \S*x\.jsonl, line 1: no field 'qestion' there; the fields are "
            r"answer, info, question; did you mean question\?",
        ),
        (
            {"prompt_key": "question", "answer_key": "info.anser"},
            r"data\.answer_key: .*no field 'anser' in 'info'; the fields are answer, level; "
            r"did you mean answer\?",
        ),
        (
            {"prompt_key": "question", "answer_key": "answer.value"},
            r"data\.answer_key: .*no field 'value' in 'answer'; answer has no fields",
        ),
        (
            {"prompt_key": "question", "domain_key": "ifno"},
            r"data\.domain_key: .*no row has a field 'ifno'; .*did you mean info\?",
        ),
        (
            {"prompt_key": "question", "answer_key": "info"},
            r"line 1: `info` must be text or a number, not \{'answer': '1'",
        ),
    ],
)
def test_a_misspelt_field_is_named(tmp_path: Path, keys: dict[str, str], message: str) -> None:
    row = {"question": "q", "answer": "1", "info": {"answer": "1", "level": 2}}
    with pytest.raises(InputError, match=message):
        jsonl(write_jsonl(tmp_path / "x.jsonl", row), **keys)


def test_what_the_assistant_answers_is_no_part_of_the_prompt(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "It is 2"}]
    other = [{"role": "user", "content": "1+2?"}, *chat[1:], *chat[1:]]
    rows = [{"messages": chat, "answer": "2"}, {"messages": json.dumps(other)}]
    task = jsonl(write_jsonl(tmp_path / "x.jsonl", *rows), prompt_key="messages")
    found = {p.messages[-1]["content"]: p for p in everything(task).values()}
    assert {prompt: p.answer for prompt, p in found.items()} == {"1+1?": "2", "1+2?": "It is 2"}
    assert {len(p.messages) for p in found.values()} == {1}
    assert task.notes[0][1].endswith(
        "2 rows end with a message of the assistant, which is no part of the prompt; it is the "
        "reference of 1"
    )
    path = write_jsonl(tmp_path / "y.jsonl", {"prompt": chat[1:], "answer": "2"})
    with pytest.raises(InputError, match="nothing but messages of the assistant"):
        jsonl(path)


CONTRADICTING = [
    {"prompt": "a", "answer": "1"},
    {"prompt": "b", "answer": "1"},
    {"prompt": "a", "answer": "2"},
    {"prompt": "b", "answer": "1"},
    {"prompt": "a", "answer": "3"},
    {"prompt": "c", "answer": " "},
    {"prompt": "d", "answer": "proof"},
    {"prompt": "e", "answer": "5"},
    {"prompt": "", "answer": "5"},
    *({"prompt": f"g{i}", "answer": None} for i in range(9)),
]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_all_bad_rows_are_told_at_once_or_left_out_and_counted(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"x.{kind}"
    (write_jsonl(path, *CONTRADICTING) if kind == "jsonl" else write_parquet(path, CONTRADICTING))
    other = tmp_path / f"y.{kind}"
    rows = [{"prompt": "h", "answer": "6"}, {"prompt": "i", "answer": None}]
    (write_jsonl(other, *rows) if kind == "jsonl" else write_parquet(other, rows))
    keys = {"source": kind, "path": str(path), "held_out_path": str(other)}
    with pytest.raises(InputError) as caught:
        read_file_task(DataConfig(**keys))
    lines = str(caught.value).split("\n")
    unit = "line" if kind == "jsonl" else "row"
    assert lines[0] == "data.path: 15 rows cannot be used:"
    assert lines[1].startswith(f"  {path}, {unit} 3: id ")
    assert lines[1].endswith(f" is already on {unit} 1, with the same prompt and another answer")
    assert lines[-2] == "  … and 3 more"
    assert lines[-1] == 'write bad_rows = "skip" to leave such rows out, counted'
    assert len(lines) == 1 + 12 + 2
    task = read_file_task(DataConfig(**keys, bad_rows="skip"))
    # Of the three answers to "a" none is known to be the right one.
    assert [p.prompt for p in task.train] == ["b", "e"]
    assert [p.prompt for p in task.all_held_out] == ["h"]
    assert {text.split(": ", 1)[1] for _, text in task.notes} == {
        "1 row left out: repeats the prompt and the answer of an earlier one",
        "3 rows left out: has the id of another one, or its prompt with another answer",
        "11 rows left out: has no answer",
        "1 row left out: has no prompt",
        "1 row left out: has no answer",
    }


def test_a_split_of_their_own(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "answer": "1", "split": "main"} for i in range(40)]
    path = write_jsonl(tmp_path / "x.jsonl", *rows)
    with pytest.raises(InputError, match=r"`split` is 'main'.*split_key = \"\" in \[data\]"):
        jsonl(path)
    assert len(everything(jsonl(path, split_key=""))) == 40


def test_lists_shards_and_compressed_files(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "answer": str(i), "domain": "é"} for i in range(9)]
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.json").write_text("\ufeff" + json.dumps(rows[:3], indent=2, ensure_ascii=False))
    write_jsonl(folder / "b.jsonl", *rows[3:5])
    with gzip.open(folder / "c.jsonl.gz", "wt") as file:
        file.write("\n".join(map(json.dumps, rows[5:])))
    (folder / "notes.txt").write_text("no data")
    for path in (folder, folder / "*.json*", tmp_path / "**" / "?.json*"):
        task = jsonl(path)
        assert {p.answer for p in everything(task).values()} == set("012345678")
    assert {p.domain for p in everything(task).values()} == {"é"}
    assert (jsonl(folder).name, jsonl(folder / "c.jsonl.gz").name) == ("data", "c")
    write_jsonl(folder / "d.jsonl", rows[0] | {"answer": "7"})
    with pytest.raises(InputError, match=r"data, d\.jsonl, line 1: .* already on a\.json, line 2,"):
        jsonl(folder)
    for i in range(2):
        write_parquet(tmp_path / "p" / f"{i}.parquet", rows[5 * i : 5 * i + 5])
    assert len(everything(parquet(tmp_path / "p"))) == 9
    with pytest.raises(InputError, match=r"data\.path: no file is called like"):
        jsonl(folder / "*.csv")
    with pytest.raises(InputError, match=r"is a folder without files that end in \.parquet"):
        parquet(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[\n {"prompt": "x", "answer": "1"},\n {"prompt": "y" "answer"}]', "line 3: not JSON"),
        ('[\n {"prompt": "x", "answer": "1"},\n {"prompt": "y"', "line 3: not JSON"),
        ('[\n {"prompt": "x", "answer": "1"},\n {"prompt": "y"}]', "line 3: `answer` is missing"),
        ('{\n "prompt": "x",\n "answer": "1"}', "holds one object over many lines"),
    ],
)
def test_bad_lists_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=message):
        jsonl(tmp_path / "x.json")


def test_a_list_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_CHUNK", 7)
    rows = [{"prompt": f"é{i}", "answer": [str(i), "]"][i % 2]} for i in range(20)]
    path = tmp_path / "x.json"
    path.write_text(json.dumps(rows, indent=1, ensure_ascii=False))
    found = list(reading.rows_of([path], "jsonl", "data.path", lambda names: None))
    assert found == [(f"line {2 + 4 * i}", row) for i, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("pattern", "answers"),
    [
        ("gsm8k", ["1234", "-7"]),
        (r"#### (.+)", ["1,234", "-7"]),
        (r"(-?\d[\d,]*)", ["1,234", "-7"]),
        ("boxed", [r"\frac{1}{2}", "3"]),
    ],
)
def test_the_answer_in_a_solution(tmp_path: Path, pattern: str, answers: list[str]) -> None:
    solutions = ["1200 + 34\n#### 1,234", "2 - 9 = -7\n#### -7 "]
    if pattern == "boxed":
        solutions = [r"\boxed{1}, no: $\boxed{\frac{1}{2}}$.", r"\boxed{3}"]
    rows = [{"prompt": text, "answer": text} for text in solutions]
    task = jsonl(write_jsonl(tmp_path / "x.jsonl", *rows), answer_pattern=pattern)
    found = {p.prompt: p.answer for p in everything(task).values()}
    assert [found[text] for text in solutions] == answers
    with pytest.raises(InputError, match="line 1: answer_pattern finds nothing in `answer`"):
        jsonl(
            write_jsonl(tmp_path / "y.jsonl", {"prompt": "a", "answer": "x"}),
            answer_pattern="boxed",
        )


def test_a_pattern_has_one_group() -> None:
    for pattern, message in (("(a", "no regular expression"), ("a", "has 0 groups")):
        with pytest.raises(ValidationError, match=message):
            DataConfig(answer_pattern=pattern)


def test_parquet_as_verl_and_guru_have_it(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "guru.parquet", guru_rows(40))
    task = parquet(path, answer_key="reward_model.ground_truth", domain_key="ability")
    problems = everything(task).values()
    assert len(problems) == 40
    assert {problem.domain for problem in problems} == {"math"}
    third = next(p for p in problems if p.prompt[0]["content"] == "What is 3 + 3?")  # type: ignore[index]
    assert third.messages == [{"role": "user", "content": "What is 3 + 3?"}]
    assert third.answer == "6"
    assert third.metadata["extra_info"] == {
        "index": 3,
        "split": "train",
        "tags": ["sum", "short"],
    }
    assert third.metadata["reward_model"]["style"] == "rule"
    assert set(third.metadata) == {"data_source", "reward_model", "extra_info", "pass_rate"}
    assert json.dumps(dict(third.metadata))
    assert task.all_held_out


def test_parquet_gaps_and_messages_of_unlike_fields(tmp_path: Path) -> None:
    rows = [
        {"prompt": [{"role": "user", "content": "a", "name": None}], "answer": 1.0},
        {"prompt": [{"role": "user", "content": "b", "name": None}], "answer": None},
        {"prompt": None, "answer": 3.0},
        {"prompt": [{"role": "user", "content": "c", "name": None}], "answer": 2.5},
    ]
    task = parquet(write_parquet(tmp_path / "x.parquet", rows), bad_rows="skip")
    assert sorted(p.answer for p in everything(task).values()) == ["1", "2.5"]
    assert [note for _, note in task.notes] == [
        f"{tmp_path / 'x.parquet'}: 1 row left out: has no answer",
        f"{tmp_path / 'x.parquet'}: 1 row left out: has no prompt",
    ]


def test_columns_that_nothing_uses_are_not_read(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", guru_rows(3))
    fields = Fields("prompt", "reward_model.ground_truth", "ability", strict=False, metadata=False)
    rows = reading.rows_of([path], "parquet", "data.path", fields.columns)
    assert {name for _, row in rows for name in row} == {"prompt", "reward_model", "ability"}
    misspelt = replace(fields, prompt="promt")
    rows = reading.rows_of([path], "parquet", "data.path", misspelt.columns)
    assert "pass_rate" in next(rows)[1]


def test_repeated_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "answer": "1", "id": i} for i in range(3)]
    task = parquet(write_parquet(tmp_path / "x.parquet", [*rows, {"prompt": "b", "answer": "1"}]))
    assert {problem.prompt for problem in everything(task).values()} == {"a", "b"}
    assert len(everything(task)) == 2
    assert "2 rows left out: repeats the prompt" in task.notes[0][1]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"prompt": "a", "answer": "1"}, {"prompt": "a", "answer": "2"}],
            "row 2: id '.*' is already on row 1, with the same prompt and another answer",
        ),
        (
            [{"prompt": "a", "answer": "1", "id": 5}, {"prompt": "b", "answer": "2", "id": 5}],
            "row 2: id '5' is already on row 1, with another prompt or answer",
        ),
        ([{"prompt": "a", "answer": [1, 2]}], "row 1: `answer` must be text or a number"),
        ([{"prompt": 3, "answer": "1"}], "row 1: `prompt` must be text"),
        ([{"prompt": "a", "answer": None}], "row 1: `answer` must be text or a number"),
        ([{"prompt": "a", "answer": "1", "split": "test"}], "row 1: `split` is 'test'"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parquet(write_parquet(tmp_path / "x.parquet", rows))


def test_a_file_of_the_other_kind(tmp_path: Path) -> None:
    lines = write_jsonl(tmp_path / "x.jsonl", {"prompt": "a", "answer": "1"})
    table = write_parquet(tmp_path / "x.parquet", [{"prompt": "a", "answer": "1"}])
    with pytest.raises(InputError, match=r"is no parquet file; write source = \"jsonl\""):
        parquet(lines)
    with pytest.raises(InputError, match=r"is a parquet file; write source = \"parquet\""):
        jsonl(table)
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(table.read_bytes()[:-9])
    with pytest.raises(InputError, match="cannot be read as parquet"):
        parquet(damaged)


def test_held_out_path(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "answer": "1"} for i in range(30)]
    train = write_jsonl(tmp_path / "train.jsonl", *rows)
    test = write_jsonl(tmp_path / "test.jsonl", rows[3], {"prompt": "other", "answer": "1"})
    task = jsonl(train, held_out_path=str(test))
    assert [p.prompt for p in task.held_out(9)] == ["p3", "other"]
    assert {p.prompt for p in task.train} == {f"p{i}" for i in range(30) if i != 3}
    assert "1 training problem left out: the same prompt is among the held-out" in task.notes[0][1]


@pytest.mark.parametrize(
    ("train", "held_out", "message"),
    [
        ("held_out", "", "marks 1 lines as held out itself"),
        ("", "train", 'has lines whose `split` is "train"'),
    ],
)
def test_held_out_path_and_split_that_disagree(
    tmp_path: Path, train: str, held_out: str, message: str
) -> None:
    rows = [{"prompt": "a", "answer": "1", "split": "train"}]
    rows += [{"prompt": "b", "answer": "1", "split": train}] if train else []
    one = write_jsonl(tmp_path / "train.jsonl", *rows)
    two = write_jsonl(tmp_path / "test.jsonl", {"prompt": "c", "answer": "1", "split": held_out})
    with pytest.raises(InputError, match=rf"data\.held_out_path: .*{message}"):
        jsonl(one, held_out_path=str(two))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("4.0", "4.0"),
        (" 4", " 4"),
        (4, "4"),
        (4.0, "4"),
        (-0.25, "-0.25"),
        (2.0**60, "1152921504606846976"),
        (-0.0, "0"),
        (0.00001, "0.00001"),
        (-1.5e-7, "-0.00000015"),
        (1e23, "1" + 23 * "0"),
        (np.float64(1e-5), "0.00001"),
        (Decimal("1E-7"), "0.0000001"),
        (Decimal("0." + 30 * "12"), "0." + 30 * "12"),
        (Decimal("1E+3"), "1000"),
        (Decimal("NaN"), None),
        (Decimal("4.50"), "4.5"),
        (Decimal("100"), "100"),
        ("  ", None),
        (None, None),
        (True, None),
        (math.nan, None),
        (math.inf, None),
        ([1], None),
    ],
)
def test_answers_as_text(value: Any, text: str | None) -> None:
    assert answer_text(value) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_as_text_is_that_number(value: float) -> None:
    assert float(answer_text(value) or "x") == value


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_no_answer_has_an_exponent(value: float) -> None:
    assert re.fullmatch(r"-?[0-9]+(\.[0-9]*[1-9])?", answer_text(value) or "")


def test_narrow_floats_are_the_decimals_that_were_written(tmp_path: Path) -> None:
    narrow = pa.array([0.1, None, 1e-5], pa.float32())
    table = pa.table(
        {
            "prompt": ["a", "b", "c"],
            "answer": narrow,
            "half": narrow.cast(pa.float16()),
            "more": pa.array([{"in": [0.1, None]}, None, {"in": None}], NESTED),
            "wide": [0.1, 0.25, 1 / 3],
        }
    )
    pq.write_table(table, tmp_path / "x.parquet")
    task = parquet(tmp_path / "x.parquet", bad_rows="skip")
    found = {problem.prompt: problem for problem in (*task.train, *task.all_held_out)}
    assert {name: problem.answer for name, problem in found.items()} == {"a": "0.1", "c": "0.00001"}
    assert found["a"].metadata == {"half": 0.1, "more": {"in": [0.1, None]}, "wide": 0.1}
    assert found["c"].metadata == {"half": 1e-5, "more": {"in": None}, "wide": 1 / 3}


keys = st.text("abc", min_size=1, max_size=2)


@given(
    st.recursive(
        st.integers(), lambda inner: st.dictionaries(keys, inner, min_size=1), max_leaves=6
    )
)
def test_dots_reach_every_nested_field(value: Any) -> None:
    def leaves(tree: Any, path: tuple[str, ...]) -> Any:
        if isinstance(tree, dict):
            for name, inner in tree.items():
                yield from leaves(inner, (*path, name))
        else:
            yield path, tree

    row = {"row": value}
    for path, leaf in leaves(row, ()):
        assert look_up(row, ".".join(path)) == leaf


def test_dots_and_lists() -> None:
    row = {"a.b": 1, "a": {"b": 2}, "c": [{"d": 3}], "e": None}
    assert [look_up(row, key) for key in ("a.b", "c.0.d", "e.f")] == [1, 3, None]


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdef"), st.sampled_from("12")).map(
            lambda pair: {"prompt": pair[0], "answer": pair[1], "id": "".join(pair)}
        ),
        max_size=12,
    )
)
def test_every_different_row_is_kept_once(rows: list[dict[str, str]]) -> None:
    fields = Fields(strict=False)
    places = ((f"row {i}", row) for i, row in enumerate(rows))
    found = collect(places, fields, "data.path", "x", "train")
    assert [p.id for p in found.problems] == list(dict.fromkeys(row["id"] for row in rows))


def test_an_id_is_a_hash_of_the_prompt_alone() -> None:
    assert problem_id("a") != problem_id("b")
    assert problem_id([{"role": "user", "content": "a"}]) != problem_id("a")
