"""`retrain diff`: what is compared, what is said about it, and what is refused."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from tests.analysis.log_tree import Planned, metrics_row, write_campaign, write_json, write_run

from retrain import cli
from retrain.analysis.diff.command import diff_command
from retrain.analysis.diff.compare import compare
from retrain.analysis.diff.configs import computes_the_same, is_bookkeeping, read_config
from retrain.analysis.diff.curves import compare_curves
from retrain.analysis.diff.sides import RunPair, plan_of
from retrain.analysis.records import read_run
from retrain.analysis.series import COLUMNS, Evaluation, RunSeries
from retrain.errors import InputError

A, B = "grpo+none", "maxrl+none"


def show(*targets: Path | str, encoding: str = "utf-8", width: int = 80, **options: Any) -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, width=width, highlight=False)
    diff_command([str(target) for target in targets], console=console, **options)
    file.flush()
    return file.buffer.getvalue().decode(encoding)


def document(capsys: pytest.CaptureFixture[str], *targets: Path | str, **options: Any) -> Any:
    diff_command([str(target) for target in targets], as_json=True, **options)
    return json.loads(capsys.readouterr().out)


def comparison(*targets: Path | str) -> Any:
    (match,) = plan_of([str(target) for target in targets]).matches
    return compare(match)


def campaign(folder: Path, after: dict[tuple[str, int], float], **changes: Any) -> Path:
    """Runs with these accuracies after training, 50 % before."""
    runs = [
        Planned(label, seed, {"before": 0.5, "after": value, **changes})
        for (label, seed), value in after.items()
    ]
    return write_campaign(folder, runs)


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def change_config(folder: Path, table: str, **values: Any) -> None:
    import tomllib

    import tomli_w

    tables = tomllib.loads((folder / "config.toml").read_text())
    tables.setdefault(table, {}).update(values)
    (folder / "config.toml").write_text(tomli_w.dumps(tables))


def learn_alike(a: Path, b: Path, **changes: Any) -> None:
    """Give `b` another loss and the rows of `a`, with another order of the gradient's sums."""
    change_config(b, "loss", type="cispo")
    own = {"condition": rows_of(b)[0]["condition"], "loss": -0.01}
    rows = [{**row, **own, "grad_norm": row["grad_norm"] * (1 + 1e-7)} for row in rows_of(a)]
    write_rows(b, [*rows[:-1], {**rows[-1], **changes}])


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """Two conditions under seeds 1 to 3; each also has a seed of its own."""
    a = {(A, 1): 0.60, (A, 2): 0.70, (A, 3): 0.65, (A, 8): 0.9}
    b = {(B, 1): 0.62, (B, 2): 0.74, (B, 3): 0.65, (B, 9): 0.1}
    return campaign(tmp_path / "logs" / "campaign_1", {**a, **b})


class TestUnlikeConfigs:
    def test_runs_that_learn_the_same_are_called_identical(
        self, three: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for seed in (1, 2, 3):
            a, b = (three / "runs" / f"{label}_s{seed}" for label in (A, B))
            learn_alike(a, b)
        text = show(three, conditions=(A, B))
        assert "! identical: the same rewards and gradients in every step" in text
        assert "may be chance" not in text
        assert "B - A" not in text
        (found,) = document(capsys, three, conditions=(A, B))["comparisons"]
        assert found["identical"]
        assert found["bit_for_bit"] == []

    def test_one_reward_more_is_a_difference(self, three: Path) -> None:
        a, b = (three / "runs" / f"{label}_s1" for label in (A, B))
        learn_alike(a, b, mean_reward=0.75)
        assert not comparison(a, b).identical
        assert "identical" not in show(a, b)


class TestNumbers:
    def test_conditions_are_paired_by_seed(
        self, three: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (found,) = document(capsys, three, conditions=(A, B))["comparisons"]
        assert [pair["seed"] for pair in found["pairs"]] == [1, 2, 3]
        assert (found["seeds_only_a"], found["seeds_only_b"]) == ([8], [9])
        curve = found["curves"][0]
        last = curve["points"][-1]
        assert (curve["metric"], last["first"], last["pairs"]) == ("accuracy", 20, 3)
        # Differences 0.02, 0.04, 0: mean 0.02, sd 0.02, t(0.975, 2) = 4.3027.
        assert (last["a"], last["b"]) == pytest.approx((0.65, 0.67))
        ends = last["difference"], last["low"], last["high"]
        half = 4.302653 * 0.02 / 3**0.5
        assert ends == pytest.approx((0.02, 0.02 - half, 0.02 + half))
        assert last["values"]["seed 2"] == pytest.approx([0.70, 0.74])
        final = curve["final"]
        assert (final["wins"], final["losses"], final["ties"]) == (2, 0, 1)

    def test_two_runs_have_a_difference_and_no_interval(
        self, three: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        runs = three / "runs"
        found = document(capsys, runs / f"{A}_s1", f"{three}:{B}_s2")
        assert found["kind"] == "runs"
        (found,) = found["comparisons"]
        assert found["pairs"] == [
            {"name": f"{A}_s1, {B}_s2", "seed": None, "a": f"{A}_s1", "b": f"{B}_s2"}
        ]
        last = found["curves"][0]["points"][-1]
        assert last["difference"] == pytest.approx(0.14)
        assert (last["low"], last["high"], last["pairs"]) == (None, None, 1)
        assert "the seeds differ" in found["comparable"]["warnings"][0]

    def test_training_is_compared_in_windows_that_both_runs_went_through(
        self, tmp_path: Path
    ) -> None:
        """Seed 2 of B died at step 7 of 9: it counts in the windows before, and is counted out."""
        folder = campaign(tmp_path / "c", {(A, 1): 0.6, (A, 2): 0.6, (B, 1): 0.6, (B, 2): 0.6})
        for name, reward, steps in (
            *((f"{A}_s1", 1.0, 9), (f"{B}_s1", 2.0, 9)),
            *((f"{A}_s2", 10.0, 9), (f"{B}_s2", 15.0, 7)),
        ):
            run = folder / "runs" / name
            rows = [metrics_row(i, name, 1, mean_reward=reward * (i + 1)) for i in range(steps)]
            write_rows(run, rows)
        found = comparison(f"{folder}:{A}", f"{folder}:{B}")
        points = found.curve("mean_reward").points
        assert [(p.first, p.last, p.contrast.n, p.contrast.dropped) for p in points] == [
            *((0, 2, 2, 0), (3, 5, 2, 0)),
            (6, 8, 1, 1),
        ]
        # Window means of step + 1 are 2, 5 and 8; differences 1 and 5 times that.
        assert [p.contrast.mean_difference for p in points] == pytest.approx([6.0, 15.0, 8.0])

    def test_accuracies_meet_at_common_steps(self, tmp_path: Path) -> None:
        write_run(tmp_path / "a", every=5, before=0.0, after=1.0)
        write_run(tmp_path / "b", every=10, before=0.0, after=1.0)
        found = comparison(tmp_path / "a", tmp_path / "b")
        assert [point.first for point in found.curve("accuracy").points] == [0, 10, 20]

    def test_cost_and_what_it_took_to_come_as_far(self, tmp_path: Path) -> None:
        """B ends where A was after 10 of 20 steps, spends half the tokens and double the time."""
        for name, tokens, seconds, accuracies in (
            ("a", 100, 1.0, {10: 0.6, 20: 0.8}),
            ("b", 50, 2.0, {10: 0.5, 20: 0.6}),
        ):
            write_run(tmp_path / name, before=0.5, after=accuracies[20])
            rows = []
            for i in range(20):
                row = metrics_row(i, A, 42, tokens=tokens, step_time_s=seconds, peak_memory_mb=i)
                if i + 1 in accuracies:
                    row |= {"held_out_accuracy": accuracies[i + 1], "evaluation_time_s": 0.5}
                rows.append(row)
            write_rows(tmp_path / name, rows)
        found = comparison(tmp_path / "a", tmp_path / "b")
        costs = {cost.name: cost for cost in found.costs.costs}
        assert (costs["tokens"].a, costs["tokens"].b) == (2000, 1000)
        assert [costs[name].ratio for name in ("steps", "tokens", "seconds")] == [1, 0.5, 2]
        assert costs["seconds_a_step"].a == pytest.approx((20 - 2 * 0.5) / 20)
        assert costs["peak_memory_mb"].b == 19
        reached = found.reached
        assert reached.accuracy == pytest.approx(0.6)
        assert (reached.a.step, reached.a.tokens, reached.a.seconds) == (10, 1000, 10)
        assert (reached.b.step, reached.b.tokens, reached.b.seconds) == (20, 1000, 40)
        assert "until 60.0 % held-out accuracy" in show(tmp_path / "a", tmp_path / "b")

    def test_a_running_run_is_compared_as_far_as_it_is(self, tmp_path: Path) -> None:
        write_run(tmp_path / "a")
        write_run(tmp_path / "b", status="running", steps=5, condition="other", after=None)
        found = comparison(tmp_path / "a", tmp_path / "b")
        assert not found.costs.whole
        assert (found.costs.costs[0].a, found.costs.costs[0].b) == (5, 5)
        assert found.curve("mean_reward").points[-1].last == 4
        assert any("B: 1 of 1 run not finished" in text for text in found.ground.warnings)
        assert "Cost of the steps that both have" in show(tmp_path / "a", tmp_path / "b")

    def test_nothing_trained_yet(self, tmp_path: Path) -> None:
        for name in "ab":
            write_run(tmp_path / name, status="pending", steps=0, before=None)
        assert "No step in common yet" in show(tmp_path / "a", tmp_path / "b")

    values = st.floats(-1e3, 1e3, allow_subnormal=False)

    @settings(max_examples=30, deadline=None)
    @given(st.lists(st.tuples(values, values), min_size=1, max_size=5), st.integers(1, 7))
    def test_swapping_the_sides_turns_the_signs(
        self, ends: list[tuple[float, float]], steps: int
    ) -> None:
        run = read_run(Path("nowhere"))
        series = [
            (RunPair(seed, run, run), made_up(a, steps), made_up(b, steps + seed))
            for seed, (a, b) in enumerate(ends)
        ]
        forth = compare_curves(series)
        back = compare_curves([(pair, b, a) for pair, a, b in series])
        assert [curve.metric for curve in forth] == [curve.metric for curve in back]
        for there, here in zip(forth, back, strict=True):
            for p, q in zip(there.points, here.points, strict=True):
                assert (p.first, p.last, p.a, p.b) == (q.first, q.last, q.b, q.a)
                assert p.contrast.mean_difference == pytest.approx(-q.contrast.mean_difference)
                if p.contrast.low is not None:
                    assert p.contrast.low == pytest.approx(-q.contrast.high)


def made_up(level: float, steps: int) -> RunSeries:
    step_N = np.arange(steps)
    values = {name: np.full(steps, level) for name in COLUMNS}
    evaluations = (Evaluation(steps, level, None, 1.0, 1.0), Evaluation(99, level, None, 1.0, 1.0))
    return RunSeries(step_N, values, step_N + 1.0, step_N + 1.0, evaluations)


class TestConfigs:
    def test_keys_are_sorted_by_what_they_change(self, tmp_path: Path) -> None:
        for name in "ab":
            write_run(tmp_path / name)
        change_config(tmp_path / "b", "training", lr=0.01, save_every=7)
        change_config(tmp_path / "b", "algorithm", params={"scale": "std"})
        change_config(tmp_path / "b", "logging", log_dir="elsewhere")
        # A default that is written is no difference, and neither is 1 for 1.0.
        change_config(tmp_path / "b", "loss", type="importance_sampling", kl_coef=0)
        record = json.loads((tmp_path / "b" / "run.json").read_text())
        record["versions"]["torch"] = "9.9"
        record["changes"] = [{"step": 5, "key": "training.lr", "before": 0.002, "now": 0.01}]
        write_json(tmp_path / "b" / "run.json", record)
        configs = comparison(tmp_path / "a", tmp_path / "b").configs
        assert [(d.key, d.a, d.b) for d in configs.decisive] == [
            ("training.lr", 0.002, 0.01),
            ("algorithm.params.scale", None, "std"),
        ]
        assert [d.key for d in configs.bookkeeping] == ["training.save_every", "logging.log_dir"]
        assert [(d.key, d.b) for d in configs.environment] == [("torch", "9.9")]
        assert configs.same is False
        text = show(tmp_path / "a", tmp_path / "b")
        assert "without effect: training.save_every, logging.log_dir" in text
        assert "B: b was resumed at step 5 with another training.lr: 0.002 -> 0.01" in text

    def test_a_key_that_differs_under_some_seeds_says_so(self, three: Path) -> None:
        change_config(three / "runs" / f"{B}_s2", "training", lr=0.5)
        found = comparison(f"{three}:{A}", f"{three}:{B}")
        assert [(d.key, d.pairs) for d in found.configs.decisive] == [("training.lr", 1)]
        assert "training.lr (1 of 3 pairs)" in show(three, conditions=(A, B))

    def test_seeds_are_no_difference_of_conditions_and_one_of_runs(self, three: Path) -> None:
        for run in (three / "runs").iterdir():
            change_config(run, "training", seed=int(run.name.rpartition("_s")[2]))
        assert comparison(f"{three}:{A}", f"{three}:{B}").configs.same
        of_runs = comparison(f"{three}:{A}_s1", f"{three}:{B}_s2").configs
        assert [d.key for d in of_runs.decisive] == ["training.seed"]

    def test_a_lost_config_is_unknown_and_not_the_same(self, tmp_path: Path) -> None:
        for name in "ab":
            write_run(tmp_path / name)
        (tmp_path / "b" / "config.toml").write_text("[training\n")
        found = comparison(tmp_path / "a", tmp_path / "b")
        assert found.configs.same is None
        assert found.ground.same_model is None
        assert not found.sameness
        assert "config.toml is missing or damaged" in " ".join(found.ground.warnings)

    def test_length_decides_only_where_the_schedule_asks_for_it(self) -> None:
        constant = {"training.max_steps": 10, "training.lr_schedule": "constant"}
        linear = {**constant, "training.lr_schedule": "linear"}
        assert computes_the_same(constant, {**constant, "training.max_steps": 20})
        assert not computes_the_same(linear, {**linear, "training.max_steps": 20})
        assert not computes_the_same(constant, linear)
        assert not is_bookkeeping("training.max_steps")
        assert is_bookkeeping("logging.log_dir")


class TestComparable:
    @pytest.mark.parametrize(
        ("table", "values", "field", "warning"),
        [
            ("model", {"model": "other"}, "same_model", 'model.model "embedded" and "other"'),
            ("data", {"source": "math"}, "same_task", 'data.source "arithmetic" and "math"'),
            ("reward", {"type": "math"}, "same_reward", "not the same reward"),
        ],
    )
    def test_another_ground(
        self, tmp_path: Path, table: str, values: dict[str, Any], field: str, warning: str
    ) -> None:
        for name in "ab":
            write_run(tmp_path / name)
        change_config(tmp_path / "b", table, **values)
        ground = comparison(tmp_path / "a", tmp_path / "b").ground
        assert not ground.comparable
        assert getattr(ground, field) is False
        assert warning in ground.warnings[0]
        assert "Comparable: no" in show(tmp_path / "a", tmp_path / "b")

    def test_held_out_problems_are_known_by_their_ids(self, tmp_path: Path) -> None:
        """The config can be the same while the file that it names is another one."""
        for name in "ab":
            write_run(tmp_path / name)
        path = tmp_path / "b" / "evaluation" / "step_000020.json"
        record = json.loads(path.read_text())
        record["problems"] = [*record["problems"][:10], {"id": "new", "correct": [1]}]
        write_json(path, record)
        ground = comparison(tmp_path / "a", tmp_path / "b").ground
        assert ground.same_held_out is False
        assert "A has 16, B has 11, 10 are in both" in ground.warnings[0]

    @pytest.mark.parametrize(
        ("name", "field"),
        [("model", "same_model"), ("data", "same_task"), ("reward", "same_reward")],
    )
    def test_what_a_name_stands_for_is_compared(
        self, tmp_path: Path, name: str, field: str
    ) -> None:
        """The configs are the same; one of the contents is not."""
        same = {"model": "1", "data": "2", "reward": "3"}
        write_run(tmp_path / "a", contents=same)
        write_run(tmp_path / "b", contents={**same, name: "other"})
        found = comparison(tmp_path / "a", tmp_path / "b")
        fields = ("same_model", "same_task", "same_reward", "same_held_out")
        expected = {**dict.fromkeys(fields, True), field: False}
        if name == "data":
            expected["same_held_out"] = None
        assert {key: getattr(found.ground, key) for key in fields} == expected
        assert not found.configs.same
        assert not found.sameness

    def test_another_path_to_the_same_content_is_the_same(self, tmp_path: Path) -> None:
        for name in "ab":
            write_run(tmp_path / name, contents={"data": "2"})
            change_config(tmp_path / name, "data", source="jsonl", path=f"/{name}/rows.jsonl")
        assert comparison(tmp_path / "a", tmp_path / "b").configs.same
        # Of a run that is older than hashes only the path is known.
        write_run(tmp_path / "b")
        change_config(tmp_path / "b", "data", source="jsonl", path="/b/rows.jsonl")
        assert comparison(tmp_path / "a", tmp_path / "b").ground.same_task is False

    def test_few_pairs_and_lost_runs_are_told(self, three: Path) -> None:
        write_run(three / "runs" / f"{B}_s1", condition=B, seed=1, status="diverged", steps=4)
        warnings = " ".join(comparison(f"{three}:{A}", f"{three}:{B}").ground.warnings)
        assert "3 pairs cannot show a difference: no sign-flip p below 0.25" in warnings
        assert "B: 1 run diverged" in warnings


class TestBitForBit:
    @pytest.fixture
    def twins(self, tmp_path: Path) -> tuple[Path, Path]:
        a, b = (write_run(tmp_path / name, every=5) for name in "ab")
        return a, b

    def test_the_same_but_for_times_and_name(self, twins: tuple[Path, Path]) -> None:
        a, b = twins
        timed = {"step_time_s": 9.0, "tokens_per_second": 1.0, "peak_memory_mb": 1.0}
        write_rows(b, [{**row, **timed, "condition": "named"} for row in rows_of(a)])
        found = comparison(a, b)
        assert found.identical
        assert (found.sameness[0].steps, found.sameness[0].parting) == (20, None)
        text = show(a, b)
        assert "Bit for bit: the same (20 steps, times aside), and so are all curves" in text
        assert "one run each" not in text

    @pytest.mark.parametrize(
        ("key", "change", "stage"),
        [
            ("grad_norm", lambda x: float(np.nextafter(x, 2)), "update"),
            ("log_ratio_mean", lambda x: -0.0, "update"),
            ("kl_to_base", lambda x: 0.0, "update"),
            ("tokens", lambda x: x + 1, "rollout"),
            ("held_out_accuracy", lambda x: x + 0.5, "evaluation"),
        ],
    )
    def test_the_first_step_and_keys_that_differ(
        self, twins: tuple[Path, Path], key: str, change: Any, stage: str
    ) -> None:
        a, b = twins
        rows = rows_of(b)
        rows[9][key] = change(rows[9][key])
        rows[15]["loss"] = 7.0
        write_rows(b, rows)
        (same,) = comparison(a, b).sameness
        assert same.parting is not None
        assert (same.parting.step, same.parting.stage) == (9, stage)
        assert [value.key for value in same.parting.values] == [key]
        text = show(a, b)
        assert "they part at step 9 of 20" in text.replace("\n", " ")
        assert key in text

    def test_the_evaluation_before_training_comes_first(self, twins: tuple[Path, Path]) -> None:
        a, b = twins
        path = b / "evaluation" / "step_000000.json"
        record = json.loads(path.read_text())
        record["problems"][3]["correct"] = [0]
        write_json(path, record)
        rows = rows_of(b)
        rows[0]["loss"] = 7.0
        write_rows(b, rows)
        parting = comparison(a, b).sameness[0].parting
        assert (parting.step, [value.key for value in parting.values]) == (None, ["problems/3"])
        assert "the evaluation before training differs" in show(a, b).replace("\n", " ")

    def test_a_longer_run_agrees_as_far_as_both_go(self, tmp_path: Path) -> None:
        a = write_run(tmp_path / "a", every=5)
        b = write_run(tmp_path / "b", every=5)
        change_config(b, "training", max_steps=10)
        # The shorter one is also evaluated at its own end.
        rows = rows_of(a)[:7]
        rows[6]["held_out_accuracy"] = 0.5
        write_rows(b, rows)
        (same,) = comparison(a, b).sameness
        assert (same.steps, same.parting) == (7, None)

    def test_other_seeds_and_other_configs_need_not_agree(self, tmp_path: Path) -> None:
        a = write_run(tmp_path / "a")
        assert not comparison(a, write_run(tmp_path / "b", seed=7)).sameness
        c = write_run(tmp_path / "c")
        change_config(c, "training", lr=1.0)
        assert not comparison(a, c).sameness


class TestCampaigns:
    def test_condition_by_condition(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        after = {(label, seed): 0.6 + seed / 100 for label in (A, B) for seed in (1, 2)}
        first = campaign(tmp_path / "campaign_1", {**after, ("old", 1): 0.5})
        second = campaign(tmp_path / "campaign_2", {**after, ("new", 1): 0.5})
        found = document(capsys, first, second)
        assert (found["kind"], found["only_a"], found["only_b"]) == ("campaigns", ["old"], ["new"])
        assert [each["a"]["condition"] for each in found["comparisons"]] == [A, B]
        assert all(each["identical"] for each in found["comparisons"])
        assert "the same (all 4 pairs, 20 steps" in show(first, second)

        run = second / "runs" / f"{B}_s2"
        write_rows(run, [{**row, "loss": 3.0} for row in rows_of(run)])
        change_config(second / "runs" / f"{A}_s1", "training", lr=0.9)
        text = " ".join(show(first, second).split())
        assert f"1 of 3 pairs differ; the first is {B}, seed 2: they part at step 0 of 20" in text
        assert f"{A}: Config A B training.lr (1 of 2 pairs) 0.002 0.9" in text
        assert f"{B}: Config: the same" in text
        assert f"{A} 61.5 61.5 +0.0 (all equal)" in text

    def test_nothing_in_common(self, tmp_path: Path) -> None:
        first = campaign(tmp_path / "campaign_1", {(A, 1): 0.5})
        second = campaign(tmp_path / "campaign_2", {(B, 2): 0.5})
        with pytest.raises(InputError, match="no condition is in both campaigns"):
            show(first, second)
        for folder, seed in ((first / "runs" / f"{A}_s1", 1), (second / "runs" / f"{B}_s2", 2)):
            change_config(folder, "training", seed=seed)
        text = " ".join(show(f"{first}:{A}", f"{second}:{B}").split())
        assert "no seed in common: nothing can be paired" in text
        assert "0 pairs by seed; only A has 1; only B has 2" in text
        assert "Config: the same" in text


class TestTerminal:
    def test_fits_and_has_plain_signs_where_needed(self, three: Path) -> None:
        text = show(three, conditions=(A, B))
        assert "●" in text
        assert "65.0   67.0  +2.0 [-3.0, +7.0]" in text
        assert max(map(len, text.splitlines())) <= 80
        plain = show(three, conditions=(A, B), encoding="latin-1")
        assert "o" in plain
        assert max(map(len, show(three, conditions=(A, B), width=50).splitlines())) <= 50

    def test_the_picture_is_the_interval(self, three: Path) -> None:
        """+2.0 [-3.0, +7.0]: the upper end is the farthest from zero, the point at 2 / 7 of it."""
        text = show(three, conditions=(A, B))
        line = next(line for line in text.splitlines() if "[-3.0, +7.0]" in line)
        zero, point = line.index("│"), line.index("●")
        low, high = line.index("─"), line.rindex("─")
        assert (point - zero) / (high - zero) == pytest.approx(0.02 / 0.0697, abs=0.05)
        assert (low - zero) / (high - zero) == pytest.approx(-0.0297 / 0.0697, abs=0.05)
        heading = next(line for line in text.splitlines() if "Held-out accuracy, %" in line)
        assert heading.split()[-3:] == ["-7.0", "0", "+7.0"]
        assert (heading.rindex(" 0 ") + 1, len(heading) - 1) == (zero, high)

    def test_what_files_say_does_not_reach_the_terminal(self, tmp_path: Path) -> None:
        a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b")
        change_config(b, "data", system_prompt="\x1b[31mred")
        record = json.loads((b / "run.json").read_text())
        record |= {"device": "\x1b]0;x\x07", "changes": [{"step": "\x1b[0m", "key": "\x9b1m"}]}
        write_json(b / "run.json", record)
        text = show(a, b)
        assert "red" in text
        assert not set("\x1b\x07\x9b") & set(text)


class TestWords:
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["C"], "alone is no comparison; name two of its conditions: retrain diff C --cond"),
            (["C/runs/grpo+none_s1"], "alone is no comparison; name a second one"),
            (["C", "C"], "the same campaign; to compare two of its conditions write: retrain"),
            (["C:grpo+none", "C:grpo+none"], "the same condition"),
            (["C:grpo+none_s1", "C/runs/grpo+none_s1"], "the same run"),
            (["C:grpo+nnone", "C:maxrl+none"], "did you mean grpo+none? It has grpo+none, maxrl"),
            (["C:grpo+none", "maxrl+none"], "did you mean C:maxrl+none?"),
            (["C/grpo+none", "C:maxrl+none"], "did you mean C:grpo+none?"),
            (["C", "C2"], "C2: no such folder; did you mean C?"),
            (["C", "C/runs/grpo+none_s1"], "C is a campaign and C/runs/grpo+none_s1 is a run"),
            (["C/runs/grpo+none_s1:x", "C"], "is a run, which has no conditions"),
            (["C/runs", "C"], "C/runs is neither a run nor a campaign, but holds 8 of them"),
            (["E", "C"], "E holds neither a run nor a campaign"),
            (["no/such", "C"], "no does not exist either"),
            (["C", "C", "C"], "two things are compared, and 3 were given"),
        ],
    )
    def test_what_cannot_be_meant(
        self, three: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
    ) -> None:
        monkeypatch.chdir(three.parent)
        three.rename("C")
        Path("E").mkdir()
        with pytest.raises(InputError) as refused:
            plan_of(words)
        assert message in str(refused.value)

    def test_conditions_belong_to_one_campaign(self, three: Path) -> None:
        with pytest.raises(InputError, match=r"X:grpo\+none Y:maxrl\+none"):
            plan_of(["X", "Y"], (A, B))
        with pytest.raises(InputError, match="is not one"):
            plan_of([str(three / "runs" / f"{A}_s1")], (A, B))
        with pytest.raises(InputError, match="did you mean"):
            plan_of([str(three)], (A, "maxrl+nne"))

    def test_a_folder_may_have_a_colon(self, tmp_path: Path) -> None:
        a = write_run(tmp_path / "a:1")
        assert plan_of([str(a), str(write_run(tmp_path / "b"))]).kind == "runs"

    def test_the_program(self, three: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as leave:
            cli.main(["diff", str(three), "--conditions", A, B, "--json"])
        assert leave.value.code == 0
        assert json.loads(capsys.readouterr().out)["schema"] == 1
        with pytest.raises(SystemExit) as leave:
            cli.main(["diff", str(three)])
        assert leave.value.code == 2
        assert "Traceback" not in capsys.readouterr().err

    def test_loads_no_torch(self, three: Path) -> None:
        code = (
            "import sys\nfrom retrain.analysis.diff.command import diff_command\n"
            "diff_command(sys.argv[1:3])\n"
            "assert not {'torch', 'altair', 'transformers'} & set(sys.modules)\n"
        )
        command = [sys.executable, "-c", code, f"{three}:{A}", f"{three}:{B}"]
        subprocess.run(command, check=True, capture_output=True)


def test_defaults_are_filled_in(tmp_path: Path) -> None:
    config = read_config(read_run(write_run(tmp_path / "a")))
    assert config is not None
    assert (config["training.lr"], config["loss.aggregation"]) == (0.002, "token_mean")
