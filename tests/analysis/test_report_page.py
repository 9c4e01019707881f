"""`report.html`: one whole and inert file, whose pictures show the right numbers."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log_tree import Planned, write_campaign

from retrain.analysis.curves import moving_average
from retrain.analysis.page import learning
from retrain.analysis.page.page import page, write_page
from retrain.analysis.page.tracks import (
    Track,
    difference_curve,
    mean_curve,
    rounded,
    smoothed,
    thinned,
)
from retrain.analysis.records import RunView, read_campaign
from retrain.analysis.series import RunSeries, SeriesReader
from retrain.analysis.settings import ReportSettings
from retrain.analysis.summary import Comparison, compare
from retrain.analysis.webpage import json_element

VOID = {"meta", "input", "br", "img", "hr"}
SVG = "http://www.w3.org/2000/svg"
T_1, T_2 = 12.7062047, 4.3026527
"""97.5 % quantiles of Student's t with 1 and 2 degrees of freedom."""


class Page(HTMLParser):
    """Elements of a document, the text of its scripts and styles, and all of its other text."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.assets: list[tuple[str, str | None, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(document)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in {"script", "style"}:
            self.assets.append((tag, dict(attrs).get("id"), ""))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in {"script", "style"}:
            tag, name, text = self.assets[-1]
            self.assets[-1] = (tag, name, text + data)
        else:
            self.text += data

    @property
    def data(self) -> dict[str, Any]:
        """What the script reads, by the section's name."""
        return {
            name.removeprefix("data-"): json.loads(text)
            for _, name, text in self.assets
            if name is not None
        }

    def values(self, attribute: str) -> list[str]:
        return [value for _, a in self.elements if (value := a.get(attribute)) is not None]


def made(folder: Path, chosen: ReportSettings | None = None, note: str = "") -> str:
    document, _ = compared(folder, chosen, note)
    return document


def compared(
    folder: Path, chosen: ReportSettings | None = None, note: str = ""
) -> tuple[str, Comparison]:
    campaign, reader = read_campaign(folder), SeriesReader()
    assert campaign is not None
    comparison = compare(campaign, chosen, reader)
    return page(campaign, comparison, reader, note=note), comparison


def check(document: str) -> Page:
    """The parsed page, after what holds for every one of them."""
    found = Page(document)
    ids = found.values("id")
    assert len(ids) == len(set(ids))
    assert {target[1:] for target in found.values("href")} <= set(ids)
    assert all(target.startswith("#") for target in found.values("href"))
    for attribute in ("aria-labelledby", "data-copy"):
        assert set(found.values(attribute)) <= set(ids)
    for _, attributes in found.elements:
        assert not any(name == "style" or name.startswith("on") for name in attributes)
    assert all(source.startswith("data:image/png") for source in found.values("src"))
    own = "".join(text for _, name, text in found.assets if name is None).replace(SVG, "")
    assert not re.search(r"https?://|@import|url\((?!#)|\bfetch\(|XMLHttp|innerHTML|eval\(", own)
    assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _ in found.elements}
    policy = next(
        a["content"] or ""
        for _, a in found.elements
        if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert document.index("Content-Security-Policy") < document.index("<style>")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert "unsafe" not in policy
    for kind, rule in (("style", "style-src"), ("script", "script-src")):
        ((_, _, content),) = [a for a in found.assets if a[0] == kind and a[1] is None]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    return found


def runs(outcomes: Mapping[str, Mapping[int, float]], **changes: Any) -> list[Planned]:
    return [
        Planned(condition, seed, {"before": 0.3, "after": value, **changes})
        for condition, values in outcomes.items()
        for seed, value in values.items()
    ]


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a against b under three seeds: +10, +10 and +4 points. One run of b diverged, one of c
    failed."""
    planned = runs({"a": {1: 0.5, 2: 0.6, 3: 0.7}, "b": {1: 0.6, 2: 0.7, 3: 0.74}}, every=5)
    planned += runs({"c": {1: 0.55, 2: 0.65}}, every=5)
    failed = {"status": "failed", "steps": 10, "every": 5, "cause": "out_of_memory"}
    planned.append(Planned("c", 3, {**failed, "message": "no </script> memory <b>left</b>"}))
    return write_campaign(tmp_path_factory.mktemp("logs") / "campaign_1", planned)


def test_the_page_says_what_the_comparison_says(campaign: Path) -> None:
    document, comparison = compared(campaign, note="pooled from two campaigns")
    found = check(document)
    pictures = " ".join(found.values("aria-label"))
    for contrast in comparison.contrasts:
        assert f"{contrast.treatment} against {contrast.baseline}" in pictures
        assert contrast.judgement.verdict.text in pictures
        for note in contrast.judgement.verdict.notes:
            assert note in found.text
    order = [a["id"] for tag, a in found.elements if tag == "section"]
    assert order[:3] == ["verdicts", "conditions", "curves"]
    assert order.index("exploratory") < order.index("failures")
    for words in ("3 conditions × 3 seeds", "8 done", "1 failed", "pooled from two campaigns"):
        assert words in found.text
    assert "out_of_memory" in found.text
    assert "no </script> memory <b>left</b>" in found.text


def test_the_forest_plot_shows_the_differences(campaign: Path) -> None:
    data = check(made(campaign)).data["verdicts"]
    assert data["margin"] == 2.0
    b, c = data["rows"]
    assert (b["t"], b["b"], b["seeds"], b["d"]) == (1, 0, [1, 2, 3], [10, 10, 4])
    half = T_2 * math.sqrt(12) / math.sqrt(3)
    assert b["m"] == [8, pytest.approx(8 - half, abs=0.05), pytest.approx(8 + half, abs=0.05)]
    # Without the failed run there are two pairs, 5 points each.
    assert c["seeds"] == [1, 2]
    assert c["m"][0] == 5


def test_outcomes_are_those_of_the_runs(campaign: Path) -> None:
    data = check(made(campaign)).data["conditions"]
    assert data["pairs"] == [[1, 0], [2, 0]]
    first = data["o"][0]
    assert (first["seeds"], first["v"], first["floor"]) == ([1, 2, 3], [50, 60, 70], [0, 0, 0])
    half = T_2 * 10 / math.sqrt(3)
    assert first["m"] == pytest.approx([60, 60 - half, 60 + half], rel=1e-3)


def test_a_diverged_run_is_at_the_floor_and_beside_it_the_complete_pairs(tmp_path: Path) -> None:
    planned = runs({"a": {1: 0.5, 2: 0.6, 3: 0.7}, "b": {1: 0.6, 2: 0.7}})
    planned.append(Planned("b", 3, {"status": "diverged", "message": "NaN", "steps": 4}))
    found = check(made(write_campaign(tmp_path / "x", planned)))
    assert found.data["conditions"]["o"][1]["floor"] == [0, 0, 1]
    assert found.data["verdicts"]["rows"][0]["d"] == [10, 10, -70]
    assert "2 complete pairs: +10.0" in found.text
    assert "1 diverged" in found.text


def test_learning_curves_are_means_over_finished_runs(campaign: Path) -> None:
    data = check(made(campaign)).data["curves"]["accuracy"]
    a, _, c = data["means"]["step"]
    assert a["x"] == [0, 5, 10, 15, 20]
    assert (a["n"], a["y"][0], a["y"][-1]) == (3, 0.3, 0.6)
    assert (a["lo"][-1], a["hi"][-1]) == (0.5, 0.7)
    assert a["h"][-1] == pytest.approx(T_2 * 0.1 / math.sqrt(3), rel=1e-3)
    # The failed run is drawn as far as it came, and is in no mean.
    assert c["n"] == 2
    unfinished = [run for run in data["runs"] if not run["done"]]
    assert [(run["c"], run["s"], run["x"][0][-1]) for run in unfinished] == [(2, 3, 10)]
    # Paired differences to the first condition: none of itself.
    none, b, _ = data["differences"]["step"]
    assert none is None
    assert (b["n"], b["y"][-1], b["lo"][-1], b["hi"][-1]) == (3, 0.08, 0.04, 0.1)
    # All runs spend 3648 tokens a step.
    assert data["means"]["tokens"][0]["x"][-1] == pytest.approx(20 * 3648, rel=1e-3)


def test_panels_leave_out_what_says_nothing(tmp_path: Path) -> None:
    folder = write_campaign(tmp_path / "x", runs({"a": {1: 0.5, 2: 0.6}, "b": {1: 0.6, 2: 0.7}}))
    assert "mechanisms" not in check(made(folder)).data
    for seed in (1, 2):
        metrics = folder / "runs" / f"b_s{seed}" / "metrics.jsonl"
        rows = [json.loads(line) for line in metrics.read_text().splitlines()]
        for row in rows:
            row |= {"grad_norm": 1.0 + seed, "kl_to_sampler": 1e-13 * row["step"]}
        metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (panel,) = check(made(folder)).data["mechanisms"]
    assert panel["key"] == "gradient"
    assert panel["curves"][0]["y"][0] == 0.8
    assert panel["curves"][1]["y"][0] == 2.5
    assert panel["curves"][1]["h"][0] == pytest.approx(T_1 * 0.5, rel=1e-3)


def test_only_some_runs_of_many_are_drawn(campaign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "RUNS", 6)
    found = check(made(campaign))
    drawn = found.data["curves"]["reward"]["runs"]
    assert [(run["c"], run["s"]) for run in drawn] == [(c, s) for c in range(3) for s in (1, 2)]
    assert found.data["curves"]["reward"]["means"]["step"][0]["n"] == 3
    assert "first 2 seeds alone" in found.text


def test_all_parts_show_the_same_moment(campaign: Path) -> None:
    asked: list[Path] = []

    class Counting(SeriesReader):
        def read(self, run: RunView) -> RunSeries:
            asked.append(run.folder)
            return super().read(run)

    record = read_campaign(campaign)
    assert record is not None
    page(record, compare(record), Counting())
    assert len(asked) == len(set(asked)) == 9


def test_whether_the_settings_were_recorded_is_said(campaign: Path, tmp_path: Path) -> None:
    assert "Not recorded before the first run" in check(made(campaign)).text
    folder = write_campaign(tmp_path / "x", runs({"a": {1: 0.5}, "b": {1: 0.6}}))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["report"] = {
        **{"metric": "accuracy", "summary": "final", "window": 1, "baseline": "a"},
        **{"contrasts": [], "margin": 0.02, "alpha": 0.05, "floor": 0.0},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert "✓ Recorded before the first run" in check(made(folder)).text
    other = ReportSettings(baseline="a", margin=0.01)
    text = check(made(folder, other)).text
    assert "Not the settings that were recorded" in text
    assert "margin 0.02 -> 0.01" in text


@pytest.mark.parametrize(
    ("outcomes", "changes", "says"),
    [
        ({"a": {1: 0.5}, "b": {1: 0.6}}, {"folder": False}, "No run has written enough steps"),
        ({"a": {1: 0.5}, "b": {1: 0.6}}, {}, "one pair"),
        ({"a": {1: 0.5, 2: 0.6}}, {}, "nothing is compared"),
        ({"a": {1: 0.5, 2: 0.6}, "b": {1: 0.6, 2: 0.7}}, {"before": None, "after": None}, "reward"),
        (
            {"a": {1: 0.5}, "b": {1: 0.6}},
            {"status": "failed", "message": "broke", "steps": 0},
            "Runs without a result",
        ),
    ],
    ids=["not begun", "one seed", "one condition", "no evaluation", "all failed"],
)
def test_little_to_show(
    tmp_path: Path, outcomes: dict[str, dict[int, float]], changes: dict[str, Any], says: str
) -> None:
    found = check(made(write_campaign(tmp_path / "x", runs(outcomes, **changes))))
    assert says in found.text


def test_a_squeeze_with_its_picture(tmp_path: Path) -> None:
    folder = write_campaign(tmp_path / "x", runs({"a": {1: 0.5}}))
    document = {
        **{"recommended_rank": 4, "source_rank": 16, "min_variance_retention": 0.95},
        **{"table": "rank  <kept>", "compressed": None, "check": None, "finetuned": None},
        **{"adapter": "runs/a_s1/final", "num_layers": 2, "ranks": [4, 16]},
        **{f"{kind}_variance": {"4": 0.96} for kind in ("mean", "min", "max", "pooled")},
    }
    (folder / "squeeze").mkdir()
    (folder / "squeeze" / "squeeze.json").write_text(json.dumps(document))
    (folder / "squeeze" / "squeeze_ranks.png").write_bytes(b"\x89PNG picture")
    found = check(made(folder))
    assert "Rank 4 of 16 is the lowest that keeps 95.0% of the variance" in found.text
    assert "rank  <kept>" in found.text
    (source,) = found.values("src")
    assert base64.b64decode(source.partition(",")[2]) == b"\x89PNG picture"
    policy = next(a["content"] for _, a in found.elements if "http-equiv" in a)
    assert "img-src data:" in (policy or "")


def test_names_are_inert(tmp_path: Path) -> None:
    hostile = "<script>steal()<img src=x onerror=steal()>\x1b[31m\u202e'\"&amp;"
    folder = write_campaign(
        tmp_path / "c<b>", runs({"a": {1: 0.5, 2: 0.6}, hostile: {1: 0.6, 2: 0.7}})
    )
    target = folder / "report.html"
    campaign_record, reader = read_campaign(folder), SeriesReader()
    assert campaign_record is not None
    write_page(campaign_record, compare(campaign_record, reader=reader), reader, target)
    document = target.read_text(encoding="utf-8")
    found = check(document)
    shown = found.data["page"]["conditions"][1]
    assert shown.startswith("<script>steal()<img src=x onerror=steal()>")
    assert sum(tag == "img" for tag, _ in found.elements) == 0
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", document)
    scripts = [name for tag, name, _ in found.assets if tag == "script"]
    assert scripts.count(None) == 1


@settings(max_examples=40)
@given(st.recursive(st.text() | st.none(), lambda inner: st.lists(inner, max_size=3)))
def test_data_cannot_leave_its_element(value: Any) -> None:
    element = json_element("data-x", [value, "</script><!--"])
    (asset,) = Page(element).assets
    assert json.loads(asset[2]) == [value, "</script><!--"]


def track(seed: int, steps: list[float], tokens: list[float], y: list[float], **kind: Any) -> Track:
    places = np.asarray(steps, float), np.asarray(tokens, float), np.asarray(tokens, float) / 2
    return Track(0, seed, kind.get("done", True), places, np.asarray(y, float))


def test_means_by_step_tokens_and_pair() -> None:
    one = track(1, [0, 10, 20], [0, 100, 200], [0.2, 0.4, 0.6])
    two = track(2, [0, 20], [0, 400], [0.4, 0.8])
    by_step = mean_curve([one, two], "step", 9, 0.95)
    assert by_step is not None
    assert by_step.x.tolist() == [0, 20]
    assert by_step.mean == pytest.approx([0.3, 0.7])
    assert by_step.half == pytest.approx([T_1 * 0.1, T_1 * 0.1])
    assert (by_step.low.tolist(), by_step.high.tolist()) == ([0.2, 0.6], [0.4, 0.8])
    # Up to 200 tokens, where the shorter run ends: the other is half way, at 0.6.
    by_tokens = mean_curve([one, two], "tokens", 3, 0.95)
    assert by_tokens is not None
    assert by_tokens.x.tolist() == [0, 100, 200]
    assert by_tokens.mean == pytest.approx([0.3, 0.45, 0.6])
    # An unfinished run has no say beside finished ones.
    lost = track(3, [0, 10], [0, 10], [0.9, 0.9], done=False)
    alone = mean_curve([one, lost], "step", 9, 0.95)
    assert alone is not None
    assert alone.mean.tolist() == [0.2, 0.4, 0.6]
    assert alone.runs == 1
    assert np.isnan(alone.half).all()
    # Differences pair by seed, whatever the order; seed 4 has no partner.
    base = [track(2, [0, 20], [0, 10], [0.1, 0.1]), track(1, [0, 20], [0, 10], [0.2, 0.2])]
    apart = difference_curve([one, two, track(4, [0, 20], [0, 9], [9, 9])], base, "step", 9, 0.95)
    assert apart is not None
    assert apart.runs == 2
    assert apart.mean == pytest.approx([0.15, 0.55])
    assert apart.low == pytest.approx([0.0, 0.4])
    assert mean_curve([], "step", 9, 0.95) is None
    assert mean_curve([one, track(2, [5], [5], [1.0])], "step", 9, 0.95) is None


@given(st.integers(1, 700), st.integers(1, 700), st.integers(1, 300))
def test_thinning_keeps_the_first_and_the_last_step(rows: int, length: int, points: int) -> None:
    first = rows % 3
    steps = np.arange(first, first + rows, dtype=np.float64)
    kept = thinned(steps, max(length, first + rows), points)
    assert (kept[0], kept[-1]) == (0, rows - 1)
    assert (np.diff(kept) > 0).all()
    assert kept.size <= points + 2


@settings(max_examples=40)
@given(st.lists(st.floats(-1e12, 1e12) | st.just(float("nan")), max_size=9))
def test_rounding_keeps_four_digits(values: list[float]) -> None:
    for value, shown in zip(values, rounded(np.asarray(values, dtype=np.float64)), strict=True):
        if math.isnan(value):
            assert shown is None
        else:
            assert shown == pytest.approx(value, rel=5.1e-4, abs=1e-290)
            assert shown is not None
            assert float(f"{shown:.4g}") == pytest.approx(shown, rel=1e-12, abs=1e-290)


@settings(max_examples=40)
@given(st.lists(st.floats(-10, 10), min_size=1, max_size=20), st.sampled_from([1, 3, 5, 15]))
def test_smoothing_is_the_moving_average_and_passes_over_gaps(
    values: list[float], window: int
) -> None:
    array = np.asarray(values)
    assert smoothed(array, window) == pytest.approx(moving_average(values, window), abs=1e-9)
    gaps = np.append(array, [np.nan, array[-1]])
    there = smoothed(gaps, 3)
    assert there[-1] == pytest.approx(array[-1], abs=1e-9)
    assert np.isnan(smoothed(np.full(2, np.nan), 3)).all()
