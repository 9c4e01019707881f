import io
import json
import struct
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from log_tree import BEGAN, STANDARD, Planned, standard_campaign, write_campaign
from rich.console import Console

from retrain.analysis import pictures
from retrain.analysis.charts import PALETTE, line_chart
from retrain.analysis.closing import closing_table
from retrain.analysis.curves import Curve, mean_curve, moving_average, read_curves, thin
from retrain.analysis.records import read_campaign
from retrain.analysis.report import write_report
from retrain.analysis.summary import compare
from retrain.errors import InputError, RetrainError


def markdown(folder):
    return write_report(folder).markdown.read_text()


def written(folder):
    """The files of a report."""
    report = write_report(folder)
    return [report.markdown, report.page, *sorted((folder / "report").iterdir())]


def rendered(folder, width=80):
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(closing_table(folder))
    return console.export_text()


def png_size(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


@pytest.fixture
def worked(tmp_path):
    """Differences of 1, 2 and 3 points: +2.0 with an interval from -0.5 to +4.5."""
    after = {"a": (0.70, 0.71, 0.72), "b": (0.71, 0.73, 0.75)}
    runs = [
        Planned(label, seed, {"after": value, "reward": value, "every": 5})
        for label, values in after.items()
        for seed, value in enumerate(values)
    ]
    return write_campaign(tmp_path / "campaign_1", runs)


@pytest.fixture
def troubled(tmp_path):
    runs = [
        Planned("grpo+none", 1, {"after": 0.70}),
        Planned("grpo+none", 2, {"after": 0.72}),
        Planned("maxrl+none", 1, {"after": 0.75}),
        Planned("maxrl+none", 2, {"status": "failed", "steps": 4, "message": "disk | full\nx"}),
        Planned("maxrl+gtpo", 1, {"status": "diverged", "steps": 6, "message": "loss is nan"}),
        Planned("maxrl+gtpo", 2, {"status": "diverged", "steps": 9, "message": "loss is nan"}),
    ]
    return write_campaign(tmp_path / "campaign_1", runs, status="failed")


def test_closing_table_of_worked_numbers(worked):
    text = rendered(worked)
    assert "Held-out accuracy in %, mean over seeds" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["a", "3/3", "33.0", "71.0", "91.0", "(baseline)"] in rows
    assert ["b", "3/3", "33.0", "73.0", "93.0", "+2.0", "[-0.5,", "+4.5]"] in rows
    assert "Differences in points to a, paired by seed." in text


@pytest.mark.parametrize("change", [{}, {"grad_norm": 0.9}, {"tokens": 1}])
def test_identical_runs_are_reported_as_identical(tmp_path, change):
    """Equal accuracies alone are not: seeds could tell such conditions apart."""
    runs = [Planned(label, seed, {"after": 0.7}) for label in ("a", "b") for seed in (1, 2)]
    folder = write_campaign(tmp_path / "campaign_1", runs)
    for seed in (1, 2):
        a, b = (folder / "runs" / f"{label}_s{seed}" / "metrics.jsonl" for label in ("a", "b"))
        rows = [json.loads(line) for line in a.read_text().splitlines()]
        rows[-1] |= change if seed == 2 else {}
        b.write_text("".join(json.dumps({**row, "condition": "b"}) + "\n" for row in rows))
    (contrast,) = compare(read_campaign(folder)).contrasts
    verdict = contrast.judgement.verdict
    text = " ".join(rendered(folder).split())
    assert (verdict.kind == "identical") == (not change)
    assert ("identical: the same rewards and gradients" in text) == (not change)
    assert ("more seeds" in text) == bool(change)
    files = written(folder)
    assert all(("identical: the same" in file.read_text()) == (not change) for file in files[:1])
    assert ("≡" in files[1].read_text()) == (not change)


def test_standard_conditions_fit_80_columns_without_breaking(tmp_path):
    text = rendered(standard_campaign(tmp_path / "c", tuple(range(8))))
    assert max(len(line) for line in text.splitlines()) <= 80
    lines = [line.strip() for line in text.splitlines()]
    table, _, verdicts = "\n".join(lines).partition("Verdicts")
    rows = [line for line in table.split("\n") if "8/8" in line]
    assert [line.split()[0] for line in rows] == list(STANDARD)
    assert all(line.endswith(("]", "(baseline)")) for line in rows)
    assert all(label in verdicts for label in STANDARD)


def test_long_labels_fold_and_keep_the_numbers(tmp_path):
    label = "maxrl+gtpo_sepa~lr=0.0001~batch_size=64~temperature=0.7"
    runs = [Planned(c, s, {"after": 0.7}) for c in ("grpo+none", label) for s in (1, 2)]
    text = rendered(write_campaign(tmp_path / "c", runs))
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "+0.0 (all pairs equal)" in text


def test_one_seed_has_no_interval(tmp_path):
    folder = standard_campaign(tmp_path / "c", (42,), conditions=2)
    text = rendered(folder)
    assert "(one pair)" in text
    assert "no interval" in text
    assert "[" not in text.replace("[95 % CI]", "")
    assert "With one seed there is no interval" in markdown(folder)


def test_trouble_is_marked_and_explained(troubled):
    text = rendered(troubled)
    assert "* maxrl+none: 1 failed; left out" in text
    assert "* maxrl+gtpo: 2 diverged; diverged counts as 0.0" in text
    assert "1/2*" in text
    assert "0/2*" in text
    assert "Fewer than 2 pairs of seeds: maxrl+none 1." in text
    by_label = {c.label: c for c in compare(read_campaign(troubled)).conditions}
    assert by_label["maxrl+none"].contrast.mean_difference == pytest.approx(0.05)
    assert by_label["maxrl+gtpo"].after is None


def test_no_finished_run(tmp_path):
    folder = write_campaign(
        tmp_path / "c",
        [Planned("a", 1, {"status": "failed", "steps": 0}), Planned("b", 1, {"folder": False})],
        status="failed",
    )
    text = rendered(folder)
    assert "No run has finished" in text
    assert "1 run of 2 not finished yet" in text
    report = markdown(folder)
    assert "failed at step 0" in report
    assert "No run has written enough steps to draw a curve." in report
    assert not (folder / "report").exists()


def test_without_evaluations_the_last_rewards_count(tmp_path):
    folder = standard_campaign(tmp_path / "c", conditions=2, before=None, greedy=False)
    runs = [
        Planned(label, seed, {"before": None, "after": None, "reward": 0.7})
        for label in ("a", "b")
        for seed in (1, 2)
    ]
    folder = write_campaign(tmp_path / "d", runs)
    text = rendered(folder)
    assert "Mean reward of the last 10 steps (no held-out evaluation)" in text
    assert "greedy" not in text.split("Verdicts")[0]
    assert "difference [95 % CI]" in text
    report = markdown(folder)
    assert "Mean reward of the last 10 steps" in report
    assert not (folder / "report" / "accuracy.png").exists()
    assert (folder / "report" / "reward.png").exists()


def test_results_that_never_reached_run_json_come_from_the_evaluations(worked):
    for path in worked.glob("runs/*/run.json"):
        path.write_text(path.read_text().replace('"accuracy_after"', '"other"'))
    by_label = {c.label: c for c in compare(read_campaign(worked)).conditions}
    assert by_label["b"].after == pytest.approx(0.73)
    assert by_label["b"].before == pytest.approx(0.33)


def test_report_and_its_pictures(worked):
    report = write_report(worked)
    assert report.markdown == worked / "report.md"
    assert report.page == worked / "report.html"
    text = report.markdown.read_text()
    assert text.startswith("# campaign_1\n")
    assert "2 conditions x 3 seeds = 6 runs of 20 training steps" in text
    assert "| b | 3/3 | 33.0 | 73.0 | 93.0 | +2.0 [-0.5, +4.5] |" in text
    assert "retrain campaign.toml" in text
    assert "bash run_all.sh" in text
    assert "torch 2.13.0" in text
    assert "| seeds | 0, 1, 2 |" in text
    assert "With 3 seeds a 95 % interval is wide" in text
    assert "4.3 standard errors" in text
    assert "smoothed by a centred moving average over 3 steps" in text
    assert "one more or less is 6.2%" in text
    assert "## Runs without a result" not in text
    for name in ("accuracy", "reward"):
        assert f"(report/{name}.png)" in text
        width, height = png_size(worked / "report" / f"{name}.png")
        assert (width > 900, height > 500) == (True, True)
        root = ElementTree.parse(worked / "report" / f"{name}.svg").getroot()
        assert root.tag.endswith("svg")
        words = "".join(root.itertext())
        assert "training step" in words


def test_report_names_failures_with_cause_and_log(troubled):
    text = markdown(troubled)
    assert "**maxrl+none_s2**: failed at step 4: disk | full x." in text
    assert "(<runs/maxrl+none_s2/run.log>)" in text
    assert "are in no mean" not in text.split("## Learning curves")[0]
    assert "Runs that did not finish are drawn as far as they came" in text
    assert "A run that failed for another reason is missing, with its pair." in text


def test_report_of_a_running_campaign(tmp_path):
    runs = [Planned("a", 1, {}), Planned("a", 2, {"status": "running", "steps": 6})]
    text = write_report(write_campaign(tmp_path / "c", runs, status="running")).markdown.read_text()
    assert "not finished" in text
    assert "1 run of 2 not finished yet" in text


def test_report_twice_is_the_same(worked):
    first = [path.read_bytes() for path in written(worked)]
    assert [path.read_bytes() for path in written(worked)] == first
    assert {path.name for path in (worked / "report").iterdir()} == {
        *(f"{name}.{kind}" for name in ("accuracy", "reward") for kind in ("png", "svg")),
        *("verdicts.csv", "verdicts.tex"),
    }


def test_folder_without_a_campaign_is_the_users_mistake(tmp_path):
    with pytest.raises(InputError, match="holds no campaign"):
        write_report(tmp_path)
    with pytest.raises(InputError, match="holds no campaign"):
        closing_table(tmp_path)


def test_importing_the_report_loads_no_altair_and_no_torch():
    code = (
        "import retrain.analysis.report, sys\n"
        "sys.exit(bool({'torch', 'altair', 'scipy'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_curves_count_updates(worked):
    curves = read_curves(read_campaign(worked, now=BEGAN))
    assert [step for step, _ in curves.accuracy[0].points] == [0, 5, 10, 15, 20]
    assert [step for step, _ in curves.reward[0].points] == list(range(20))
    assert curves.reward_window == 3


def test_mean_curve_has_the_same_members_at_every_step():
    long = Curve("a", 1, "done", ((0, 1.0), (1, 2.0), (2, 3.0)))
    short = Curve("a", 2, "failed", ((0, 9.0),))
    other = Curve("a", 3, "done", ((0, 3.0), (2, 5.0)))
    assert mean_curve([long, short, other]) == ((0, 2.0), (2, 4.0))
    assert mean_curve([short]) == ((0, 9.0),)
    assert mean_curve([]) == ()


@given(st.lists(st.floats(-10, 10), max_size=60), st.sampled_from([1, 3, 5, 25]))
def test_moving_average_stays_within_its_values(values, window):
    smooth = moving_average(values, window)
    assert len(smooth) == len(values)
    if values:
        assert min(values) - 1e-9 <= min(smooth) <= max(smooth) <= max(values) + 1e-9


def test_moving_average_of_worked_numbers():
    assert moving_average([1.0, 2.0, 6.0, 4.0], 3) == pytest.approx([1.5, 3.0, 4.0, 5.0])
    assert moving_average([1.0, 2.0, 6.0], 1) == [1.0, 2.0, 6.0]
    line = [float(i) for i in range(20)]
    assert moving_average(line, 5)[2:-2] == pytest.approx(line[2:-2])


@given(st.integers(0, 5000), st.integers(0, 5000))
def test_thinned_curves_keep_the_same_steps_and_their_ends(whole, ended):
    points = tuple((float(i), float(i)) for i in range(whole))
    long, short = thin(points, whole), thin(points[:ended], whole)
    assert len(long) <= 241
    assert long[:1] == points[:1]
    assert long[-1:] == points[-1:]
    assert set(short[:-1]) <= set(long)


def test_a_condition_keeps_its_colour_in_every_picture():
    conditions = [f"c{i}" for i in range(9)]
    curves = [Curve(c, 1, "done", ((0, 0.1), (1, 0.2))) for c in ("c2", "c8")]
    chart = line_chart(curves, conditions, title="t", subtitle="s", y_title="y")
    scale = chart["layer"][1]["encoding"]["color"]["scale"]
    assert scale["domain"] == ["c2", "c8"]
    assert scale["range"] == [PALETTE[2], PALETTE[1]]
    dashes = chart["layer"][1]["encoding"]["strokeDash"]["scale"]["range"]
    assert dashes[0] != dashes[1]


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("raise MemoryError('no room')", "MemoryError: no room"),
        ("import os; os.kill(os.getpid(), 9)", "the process that draws was killed by SIGKILL"),
        (None, "No such file or directory"),
    ],
)
def test_pictures_that_cannot_be_drawn_cost_no_report(tmp_path, monkeypatch, program, why):
    command = [sys.executable, "-c", program] if program else [str(tmp_path / "gone")]
    monkeypatch.setattr(pictures, "module_command", lambda module: command)
    folder = standard_campaign(tmp_path)
    with pytest.raises(RetrainError, match=f"its pictures could not be drawn: .*{why}"):
        write_report(folder)
    text = (folder / "report.md").read_text()
    assert "## Learning curves\n\nNot drawn: " in text
    assert why in text
    assert "![" not in text
    assert (folder / "report.html").exists()
