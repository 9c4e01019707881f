"""`retrain export`: other programs read back exactly what the runs wrote."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from log_tree import Planned, metrics_row, write_campaign, write_json, write_run
from pyarrow import parquet

from retrain.analysis.export import choose, export, export_command
from retrain.analysis.tables import CsvTable, ParquetTable, kind_of
from retrain.cli import main
from retrain.errors import InputError
from retrain.output import visible

JUDGE = "reward_components/judge/mean"


@pytest.fixture
def campaign(tmp_path: Path) -> Path:
    """Two conditions, two seeds; one run failed, one has not begun."""
    folder = write_campaign(
        tmp_path / "campaign_1",
        [
            Planned("grpo+none", 1, {"every": 5}),
            Planned("grpo+none", 2, {"every": 5, "batch_size": 4}),
            Planned("maxrl+gtpo", 1, {"status": "failed", "message": "=1+1\x1b[2J, ü", "steps": 7}),
            Planned("maxrl+gtpo", 2, {"folder": False}),
        ],
    )
    path = folder / "runs" / "grpo+none_s1" / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row |= {JUDGE: row["step"] / 7, "lr": 0.1 + 0.2, "loss": -5e-324, "note": {"no": "scalar"}}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def read_csv(path: Path) -> list[dict[str, Any]]:
    """Rows with the types that JSON gives its literals; an empty cell is None."""
    data = path.read_bytes().decode("utf-8")
    assert data.endswith("\r\n")
    rows = list(csv.reader(data.splitlines(keepends=True), strict=True))
    assert {len(row) for row in rows} == {len(rows[0])}
    return [dict(zip(rows[0], map(value, row), strict=True)) for row in rows[1:]]


def value(cell: str) -> Any:
    if not cell:
        return None
    try:
        return json.loads(cell)
    except ValueError:
        return cell


def read_table(folder: Path, name: str, form: str) -> list[dict[str, Any]]:
    if form == "csv":
        return read_csv(folder / f"{name}.csv")
    rows: list[dict[str, Any]] = parquet.read_table(folder / f"{name}.parquet").to_pylist()
    return rows


def exported(paths: list[Path], to: Path, form: str) -> Path:
    sources, folder = choose(paths, to)
    export(sources, folder, form)
    return folder


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_metrics_are_the_numbers_of_the_rows(campaign: Path, tmp_path: Path, form: str) -> None:
    rows = read_table(exported([campaign], tmp_path / "out", form), "metrics", form)
    assert len(rows) == 20 + 20 + 7
    for name in ("grpo+none_s1", "grpo+none_s2", "maxrl+gtpo_s1"):
        found = [row for row in rows if row["run"] == name]
        lines = (campaign / "runs" / name / "metrics.jsonl").read_text().splitlines()
        tokens, seconds = 0, 0.0
        for row, line in zip(found, lines, strict=True):
            written = json.loads(line)
            tokens, seconds = tokens + written["tokens"], seconds + written["step_time_s"]
            assert (row["campaign"], row["tokens_so_far"]) == ("campaign_1", tokens)
            assert row["seconds_so_far"] == seconds
            assert "note" not in row
            for key in row.keys() - {"campaign", "run", "tokens_so_far", "seconds_so_far"}:
                assert row[key] == written.get(key), key
                # Whole numbers stay whole, as far as the whole column is.
                assert form == "parquet" or type(row[key]) is type(written.get(key)), key
    assert found[0][JUDGE] is None
    assert rows[0]["loss"] == -5e-324


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_evaluations_and_problems(campaign: Path, tmp_path: Path, form: str) -> None:
    path = campaign / "runs" / "grpo+none_s1" / "evaluation" / "step_000005.json"
    record = json.loads(path.read_text())
    record["problems"] = [
        {"id": "a", "domain": "d", "correct": [1, 0, 1], "greedy": 0},
        {"id": "b", "correct": [], "greedy": None},
        "damaged",
    ]
    write_json(path, record)
    folder = exported([campaign], tmp_path / "out", form)
    found = [r for r in read_table(folder, "evaluations", form) if r["run"] == "grpo+none_s1"]
    assert [row["step"] for row in found] == [0, 5, 10, 15, 20]
    assert found[0]["accuracy"] == 0.33
    assert found[0]["greedy_accuracy"] == 0.53
    assert (found[1]["tokens_so_far"], found[1]["seconds_so_far"]) == (5 * 3648, 2.5)
    problems = read_table(folder, "problems", form)
    of_step = [r for r in problems if (r["run"], r["step"]) == ("grpo+none_s1", 5)]
    shown = [[r[k] or None for k in ("problem", "domain", "correct", "samples", "greedy")]
             for r in of_step]  # fmt: skip
    assert shown == [["a", "d", 2, 3, None], ["b", None, None, None, None]]
    assert of_step[0]["greedy"] == 0
    assert of_step[1]["greedy"] is None
    assert len(problems) == 16 * (4 + 5 + 1) + 2


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_runs_say_how_they_ended_and_how_they_differ(
    campaign: Path, tmp_path: Path, form: str
) -> None:
    rows = read_table(exported([campaign], tmp_path / "out", form), "runs", form)
    assert [row["state"] for row in rows] == ["done", "done", "failed", "pending"]
    assert [row["steps"] for row in rows] == [20, 20, 7, 0]
    assert [row["accuracy_after"] for row in rows] == [0.71, 0.71, None, None]
    assert [row["config.training.batch_size"] for row in rows] == [8, 4, 8, None]
    assert rows[0]["version.python"] == "3.11.7"
    # An escape sequence is shown, not obeyed; a spreadsheet must not take a text for a formula.
    apostrophe = "'" if form == "csv" else ""
    assert rows[2]["message"] == f"{apostrophe}=1+1␛[2J, ü"


def test_only_keys_that_differ_are_columns(campaign: Path, tmp_path: Path) -> None:
    one = [campaign / "runs" / "grpo+none_s1"]
    rows = read_csv(exported(one, tmp_path / "out", "csv") / "runs.csv")
    assert not [key for key in rows[0] if key.startswith("config.")]
    assert rows[0]["campaign"] is None
    assert rows[0]["seed"] == 1


def test_damaged_and_repeated_rows(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", steps=0, every=0)
    rows = [metrics_row(s, "c", 1) for s in (0, 1, 2, 1)]
    rows[1]["lr"], rows[3]["lr"], rows[2]["loss"] = 0.5, 0.25, math.nan
    lines = [json.dumps(row) for row in rows]
    (run / "metrics.jsonl").write_text("\n".join([*lines, "{broken", '{"step": 3, "lo']))
    for form in ("csv", "parquet"):
        found = read_table(exported([run], tmp_path / "out", form), "metrics", form)
        assert [row["step"] for row in found] == [0, 1, 2]
        assert [row["lr"] for row in found] == [0.002, 0.25, 0.002]
        assert found[2]["loss"] is None


cells = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.text(),
    st.floats(allow_nan=False, allow_infinity=False),
)  # fmt: skip


@given(st.lists(cells, min_size=1, max_size=6))
def test_any_column_comes_back(tmp_path_factory: pytest.TempPathFactory, column: list[Any]) -> None:
    folder = tmp_path_factory.mktemp("table")
    kind = kind_of({type(cell) for cell in column})
    assert kind is not None
    if kind == "float" and any(isinstance(c, int) and abs(c) > 2**53 for c in column):
        return  # No float can hold it: see the error below.
    for form, table_type in (("csv", CsvTable), ("parquet", ParquetTable)):
        with (folder / f"t.{form}").open("wb") as file:
            table = table_type(file, {"n": "int", "cell": kind})
            table.add([[n, cell] for n, cell in enumerate(column)])
            table.close()
        if kind != "text":
            assert [row["cell"] for row in read_table(folder, "t", form)] == column
            continue
        for found, cell in zip(texts(folder / f"t.{form}"), column, strict=True):
            shown = visible(cell) if isinstance(cell, str) else json.dumps(cell)
            if form == "csv" and isinstance(cell, str) and shown[:1] in ("=", "+", "-", "@", "\t"):
                shown = "'" + shown
            assert found == ("" if cell is None else shown)


def texts(path: Path) -> list[str]:
    if path.suffix == ".parquet":
        return [cell or "" for cell in parquet.read_table(path)["cell"].to_pylist()]
    with path.open(encoding="utf-8", newline="") as file:
        return [row[1] for row in list(csv.reader(file, strict=True))[1:]]


def test_a_number_that_fits_no_column_is_the_users_to_know(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", steps=3)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(metrics_row(3, "c", 1, num_updates=2**70)) + "\n")
    assert read_csv(exported([run], tmp_path / "out", "csv") / "metrics.csv")[3]["num_updates"]
    with pytest.raises(InputError, match=r"does not fit into parquet tables.*the other format"):
        exported([run], tmp_path / "out", "parquet")
    # Nothing half-written is left.
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".csv"}


def test_what_is_printed(campaign: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["export", str(campaign)])
    assert left.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    names = ["runs", "metrics", "evaluations", "problems"]
    assert [line.split()[0] for line in lines] == [
        str(campaign / "export" / f"{name}.csv") for name in names
    ]
    assert lines[1].split()[1:3] == ["47", "rows"]
    export_command([campaign], parquet=True, as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert [file["table"] for file in document["files"]] == names
    for file in document["files"]:
        assert Path(file["path"]).stat().st_size == file["bytes"]


def test_mistakes(campaign: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        export_command([tmp_path / "none"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no campaign and no run"):
        export_command([tmp_path / "empty"])
    with pytest.raises(InputError, match="exclude each other"):
        export_command([campaign], csv=True, parquet=True)
    with pytest.raises(InputError, match="is a file"):
        export_command([campaign], to=campaign / "manifest.json")
    other = write_campaign(tmp_path / "campaign_2", [Planned("grpo+none", 1, {})])
    with pytest.raises(InputError, match=r"2 campaigns and runs .* --to FOLDER"):
        export_command([campaign, other])
    # A run of a campaign that is exported anyway is not there twice.
    sources, _ = choose([campaign, other / "runs" / "grpo+none_s1", other], tmp_path / "out")
    assert len(sources) == 5
