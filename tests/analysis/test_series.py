"""Columns of a run's metrics: what they hold, and that a second reading agrees with a first."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from log_tree import Planned, metrics_row, write_campaign, write_json, write_run

from retrain.analysis import charts, curves, series
from retrain.analysis.reading import iter_rows, number
from retrain.analysis.records import RunView, read_campaign, read_run
from retrain.analysis.series import COLUMNS, Evaluation, RunSeries, SeriesReader


def line(step: int, **changes: Any) -> str:
    return json.dumps(metrics_row(step, "grpo+none", 42, **changes)) + "\n"


def run_with(folder: Path, metrics: str | bytes) -> RunView:
    folder.mkdir(parents=True, exist_ok=True)
    data = metrics if isinstance(metrics, bytes) else metrics.encode()
    (folder / "metrics.jsonl").write_bytes(data)
    return read_run(folder)


def read(run: RunView) -> RunSeries:
    return SeriesReader().read(run)


def assert_same(found: RunSeries, expected: RunSeries) -> None:
    assert found.step.tolist() == expected.step.tolist()
    for name in COLUMNS:
        np.testing.assert_array_equal(found.values[name], expected.values[name])
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.seconds, expected.seconds)
    assert found.evaluations == expected.evaluations


def test_columns_hold_exactly_the_numbers_of_the_rows(tmp_path):
    run = read_run(write_run(tmp_path / "r", steps=40, max_steps=40))
    found = read(run)
    rows = list(iter_rows(run.metrics))
    assert found.step.tolist() == list(range(40))
    for name in COLUMNS:
        expected = [number(row, name) for row in rows]
        values = [None if np.isnan(value) else value for value in found.values[name]]
        assert values == expected
    assert found.tokens.tolist() == [3648 * n for n in range(1, 41)]
    assert found.seconds.tolist() == [0.5 * n for n in range(1, 41)]


def test_evaluations_know_what_was_spent_until_then(tmp_path):
    run = read_run(write_run(tmp_path / "r", every=5, after=0.33))
    found = read(run).evaluations
    assert [(e.step, e.tokens, e.seconds) for e in found] == [
        (0, 0.0, 0.0), (5, 5 * 3648.0, 2.5), (10, 36480.0, 5.0), (15, 54720.0, 7.5),
        (20, 72960.0, 10.0),
    ]  # fmt: skip
    assert {e.accuracy for e in found} == {0.33}


def test_the_row_counts_before_the_file_and_the_file_before_the_result(tmp_path):
    folder = write_run(tmp_path / "r", steps=3, max_steps=3, before=0.25, after=0.5)
    (folder / "metrics.jsonl").write_text(
        line(0) + line(1) + line(2, held_out_accuracy=0.5, held_out_greedy_accuracy=0.75)
    )
    # The file of a step that has its row is not even looked at.
    (folder / "evaluation" / "step_000003.json").write_text("{")
    write_json(folder / "evaluation" / "step_000002.json", {"accuracy": 0.4})
    reader = SeriesReader()
    assert reader.read(read_run(folder)).evaluations == (
        Evaluation(0, 0.25, 0.45, 0.0, 0.0),
        Evaluation(2, 0.4, None, 7296.0, 1.0),
        Evaluation(3, 0.5, 0.75, 10944.0, 1.5),
    )
    for name in ("step_000000.json", "step_000002.json"):
        (folder / "evaluation" / name).unlink()
    found = read(read_run(folder)).evaluations
    assert [(e.step, e.accuracy, e.greedy_accuracy) for e in found] == [
        (0, 0.25, 0.25), (3, 0.5, 0.75),
    ]  # fmt: skip


def test_an_evaluation_that_is_written_later_is_seen(tmp_path):
    run = run_with(tmp_path / "r", "")
    reader = SeriesReader()
    assert reader.read(run).evaluations == ()
    write_json(run.folder / "evaluation" / "step_000000.json", {"accuracy": 0.3})
    assert [e.accuracy for e in reader.read(run).evaluations] == [0.3]


def test_damaged_lines_and_odd_values_cost_only_themselves(tmp_path):
    lines = [
        line(0),
        "{broken\n",
        "[1, 2]\n",
        "\n",
        line(1, mean_reward=float("nan"), lr="fast", loss=10**400, grad_norm=True),
        '{"note": "no step"}\n',
        '{"step": -1}\n{"step": 1e300}\n{"step": 1.5}\n{"step": null}\n',
        line(2, mean_reward=0.75),
    ]
    data = "".join(lines).encode() + b'{"step": 9, "note": "\xff", "loss": 1}\n' + b"\xff\xfe\n"
    found = read(run_with(tmp_path / "r", data))
    assert found.step.tolist() == [0, 1, 2]
    assert found.values["mean_reward"][2] == 0.75
    for name in ("mean_reward", "lr", "loss", "grad_norm"):
        assert np.isnan(found.values[name][1])
    assert found.values["correct_rate"].tolist() == [0.5, 0.5, 0.5]
    # A row without its tokens adds none; the ones after it still count.
    assert found.tokens.tolist() == [3648.0, 7296.0, 10944.0]


def test_of_several_rows_of_a_step_the_last_counts(tmp_path):
    text = line(0) + line(2, lr=0.5) + line(1) + line(2, lr=0.25) + line(0, tokens=None)
    found = read(run_with(tmp_path / "r", text))
    assert found.step.tolist() == [0, 1, 2]
    assert found.values["lr"].tolist() == [0.002, 0.002, 0.25]
    assert found.tokens.tolist() == [0.0, 3648.0, 7296.0]


def test_missing_and_empty_files(tmp_path):
    (tmp_path / "r").mkdir()
    run = read_run(tmp_path / "r")
    reader = SeriesReader()
    for _ in range(2):
        found = reader.read(run)
        assert found.step.shape == found.tokens.shape == found.values["loss"].shape == (0,)
    run_with(run.folder, line(0))
    assert reader.read(run).step.tolist() == [0]
    run.metrics.unlink()
    assert reader.read(run).step.tolist() == []


def test_only_new_lines_are_parsed(tmp_path, monkeypatch):
    parsed: list[int] = []
    real = series._parse
    monkeypatch.setattr(series, "_parse", lambda data: (parsed.append(len(data)), real(data))[1])
    run = run_with(tmp_path / "r", "".join(line(s) for s in range(50)))
    reader = SeriesReader()
    first = reader.read(run)
    assert reader.read(run) is first
    assert len(parsed) == 1
    with run.metrics.open("a") as file:
        file.write(line(50) + line(51)[:-20])
    assert reader.read(run).step.tolist() == list(range(51))
    with run.metrics.open("a") as file:
        file.write(line(51)[-20:])
    assert_same(reader.read(run), read(run))
    assert parsed[1:3] == [len(line(50)), len(line(51))]


@pytest.mark.parametrize("again", [8, 12, 60])
def test_a_run_that_was_resumed_is_read_anew(tmp_path, again):
    """Cut back to 5 rows and trained again: also past the place that was read."""
    first = [line(s, step_time_s=0.5 + s / 7) for s in range(10)]
    run = run_with(tmp_path / "r", "".join(first))
    reader = SeriesReader()
    reader.read(run)
    with run.metrics.open("r+") as file:
        file.truncate(sum(map(len, first[:5])))
        file.seek(0, os.SEEK_END)
        file.write("".join(line(s, lr=0.1, step_time_s=0.4 + s / 7) for s in range(5, again)))
    found = reader.read(run)
    assert found.step.tolist() == list(range(again))
    assert_same(found, read(run))


def test_a_file_that_was_replaced_is_read_anew(tmp_path):
    run = run_with(tmp_path / "r", line(0) + line(1))
    reader = SeriesReader()
    reader.read(run)
    (run.folder / "new").write_text(line(0, lr=0.5) + line(1) + line(2))
    (run.folder / "new").replace(run.metrics)
    assert_same(reader.read(run), read(run))


@given(
    cuts=st.lists(st.integers(0, 4000), max_size=4),
    block=st.integers(1, 3000),
    damage=st.integers(0, 3999),
)
def test_reading_in_pieces_is_reading_at_once(tmp_path_factory, cuts, block, damage):
    lines = [json.dumps({"step": s, "lr": s / 3, "pad": "y" * (s * 37 % 90)}) for s in range(60)]
    data = bytearray("\n".join(lines).encode())
    data[damage % len(data)] = ord("\n")
    folder = tmp_path_factory.mktemp("pieces")
    reader = SeriesReader()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(series, "BLOCK", block)
        for cut in sorted(cuts):
            reader.read(run_with(folder, bytes(data[:cut])))
        run = run_with(folder, bytes(data))
        found = reader.read(run)
    rows = [row for row in iter_rows(run.metrics) if "step" in row]
    assert found.step.tolist() == [row["step"] for row in rows]
    lr = [row.get("lr", np.nan) for row in rows]
    np.testing.assert_array_equal(found.values["lr"], lr)


@given(data=st.binary(max_size=300))
def test_no_content_raises(tmp_path_factory, data):
    run = run_with(tmp_path_factory.mktemp("any"), data)
    (run.folder / "evaluation").mkdir(exist_ok=True)
    (run.folder / "evaluation" / "step_000000.json").write_bytes(data)
    read(run)


def test_pictures_of_many_runs_are_bounded(tmp_path, monkeypatch):
    """Fewer points a curve, fewer thin lines; the means stay those of all runs."""
    runs = [
        Planned(label, seed, {"every": 3, "steps": 40 - 10 * (seed == 4)})
        for label in ("a+b", "c+d")
        for seed in range(1, 5)
    ]
    campaign = read_campaign(write_campaign(tmp_path / "campaign_1", runs, max_steps=40))
    whole = curves.read_curves(campaign)
    monkeypatch.setattr(curves, "FEW_POINTS", 8)
    monkeypatch.setattr(curves, "ALL_POINTS", 8 * len(runs))
    found = curves.read_curves(campaign)
    for thinned, full in ((found.accuracy, whole.accuracy), (found.reward, whole.reward)):
        for curve, complete in zip(thinned, full, strict=True):
            assert set(curve.points) <= set(complete.points)
            assert len(curve.points) <= 9
            assert curve.points[-1] == complete.points[-1]
        # Whole curves keep the same steps, so that there are means.
        assert len(curves.mean_curve(thinned[:3])) == len(thinned[0].points)

    def drawn() -> tuple[set[str], list[Any], str]:
        document = charts.line_chart(
            found.reward, campaign.conditions, title="t", subtitle="s", y_title="y"
        )
        data = document["datasets"]
        subtitle = document["title"]["subtitle"]
        return {point["run"] for point in data["runs"]}, data["means"], subtitle

    lines, means, subtitle = drawn()
    assert (len(lines), subtitle) == (8, "s")
    monkeypatch.setattr(charts, "MAX_LINES", 4)
    fewer, same_means, subtitle = drawn()
    assert fewer == {"a+b 1", "a+b 2", "c+d 1", "c+d 2"}
    assert same_means == means
    assert subtitle == "s; 2 seeds of each condition are drawn"
