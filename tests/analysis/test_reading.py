import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from log_tree import metrics_row

from retrain.analysis.reading import (
    iter_rows,
    last_rows,
    load_object,
    moment,
    number,
    read_tail,
    text,
)


@pytest.fixture
def metrics(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [metrics_row(s, "grpo+none", 42, step_time_s=1.0 + s % 2) for s in range(300)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_tail_of_a_long_file(metrics):
    tail = read_tail(metrics)
    assert tail.rows == 300
    assert tail.last["step"] == 299
    assert tail.step_time_s == 1.5
    assert tail.modified_at == metrics.stat().st_mtime


def test_torn_last_line_is_passed_over(metrics):
    whole = metrics.read_bytes()
    for cut in (1, 2, 30, 500):
        metrics.write_bytes(whole[:-cut])
        # Without its newline alone the last row is still whole.
        assert read_tail(metrics).rows == (300 if cut == 1 else 299)
        assert len(list(iter_rows(metrics))) == (300 if cut == 1 else 299)


def test_damaged_line_in_the_middle_costs_only_itself(metrics):
    lines = metrics.read_text().splitlines(keepends=True)
    lines[100] = "{broken\n"
    lines[200] = "[1, 2]\n"
    metrics.write_text("".join(lines))
    assert len(list(iter_rows(metrics))) == 298
    assert read_tail(metrics).rows == 300


def test_rows_longer_than_the_first_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": step, "note": "x" * 20_000, "step_time_s": 2.0} for step in range(9)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, _ = last_rows(path, 4)
    assert [row["step"] for row in found] == [5, 6, 7, 8]
    assert read_tail(path).rows == 9


def test_missing_and_empty_files(tmp_path):
    assert read_tail(tmp_path / "none.jsonl") is None
    assert last_rows(tmp_path / "none.jsonl", 3) == ([], None)
    assert list(iter_rows(tmp_path / "none.jsonl")) == []
    (tmp_path / "empty.jsonl").write_text("")
    tail = read_tail(tmp_path / "empty.jsonl")
    assert (tail.rows, tail.last, tail.step_time_s) == (0, {}, None)


@given(data=st.binary(max_size=400))
def test_no_content_raises(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("any") / "file"
    path.write_bytes(data)
    read_tail(path)
    list(iter_rows(path))
    load_object(path)


@given(cut=st.integers(0, 3000), rows=st.integers(1, 5))
def test_tail_agrees_with_the_whole_file_wherever_it_is_cut(tmp_path_factory, cut, rows):
    path = tmp_path_factory.mktemp("cut") / "metrics.jsonl"
    whole = "".join(json.dumps({"step": s, "pad": "y" * (s * 37 % 90)}) + "\n" for s in range(50))
    path.write_text(whole[: max(0, len(whole) - cut)])
    assert last_rows(path, rows)[0] == list(iter_rows(path))[-rows:]


def test_values_of_the_wrong_kind_are_unknown():
    row = {"flag": True, "nan": float("nan"), "word": "x", "none": None, "whole": 3}
    assert [number(row, key) for key in row] == [None, None, None, None, 3]
    assert [text(row, key) for key in ("word", "whole", "absent")] == ["x", "", ""]
    assert moment({"at": "2026-01-31T12:00:00+00:00"}, "at") == 1769860800.0
    assert moment({"at": "yesterday"}, "at") is None
