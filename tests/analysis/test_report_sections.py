"""Sections of the report that quote a campaign: completions, provenance, and text for a paper."""

from __future__ import annotations

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from log_tree import Planned, write_campaign
from sample_rows import row, write_rows, write_sampled_campaign

from retrain.analysis.page import side_by_side
from retrain.analysis.page.citations import REFERENCES
from retrain.analysis.page.completions import completions_section
from retrain.analysis.page.paper import (
    CSV_COLUMNS,
    latex_escape,
    latex_table,
    methods_text,
    paper_section,
    verdict_csv,
)
from retrain.analysis.page.provenance import provenance_section
from retrain.analysis.page.section import Section
from retrain.analysis.page.side_by_side import choose, rows_of_step, spread
from retrain.analysis.records import CampaignRecord, read_campaign
from retrain.analysis.settings import ReportSettings
from retrain.analysis.summary import Comparison, compare

ATTACK = "</script><script>steal()</script><img src=x onerror=steal()>\x1b[31m\u202e"
OWN_TAGS = {
    *("p", "div", "span", "i", "b", "u", "small", "code", "kbd", "h3", "h4", "h5", "pre", "label"),
    *("input", "select", "button", "fieldset", "legend", "table", "thead", "tbody", "tr", "th"),
    *("td", "details", "summary", "ul", "li"),
}


class Fragment(HTMLParser):
    """Markup that stays its own: tags in pairs, none but ours, no style and no handlers."""

    def __init__(self, section: Section) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(section.html)
        self.close()
        assert not self._open
        assert len(self.ids) == len(set(self.ids))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in OWN_TAGS
        assert not any(name == "style" or name.startswith("on") for name, _ in attrs)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag != "input":
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def record(folder: Path) -> CampaignRecord:
    campaign = read_campaign(folder)
    assert campaign is not None
    return campaign


def planned_campaign(folder: Path, values: dict[str, list[Any]], **given: Any) -> CampaignRecord:
    """Condition -> accuracy after training under seeds 1, 2, …; text is a run's status instead."""
    runs = []
    for condition, accuracies in values.items():
        for seed, value in enumerate(accuracies, start=1):
            ended = {"status": value} if isinstance(value, str) else {"after": value}
            runs.append(Planned(condition, seed, {**ended, "steps": 2}))
    write_campaign(folder, runs, max_steps=2, **given)
    return record(folder)


def methods(campaign: CampaignRecord, **changes: Any) -> str:
    settings = ReportSettings(**changes) if changes else None
    return methods_text(campaign, compare(campaign, settings))


def edit_config(campaign: CampaignRecord, condition: str, before: str, now: str) -> None:
    for run in campaign.of(condition):
        text = run.config.read_text()
        assert before in text
        run.config.write_text(text.replace(before, now))


def edit_manifest(campaign: CampaignRecord, **changes: Any) -> CampaignRecord:
    path = campaign.folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return record(campaign.folder)


# Completions


def test_the_same_problem_stands_side_by_side(tmp_path: Path) -> None:
    def rows(*answers: tuple[str, str]) -> list[dict[str, Any]]:
        return [row(0, [text], problem_id=problem) for problem, text in answers]

    write_sampled_campaign(
        tmp_path / "c",
        {
            "a_s1": rows(("p", "one"), ("q", "two"), ("q", "three")),
            # Another batch: the same problems elsewhere, and one that the others did not get.
            "b_s1": rows(("r", "four"), ("q", "five"), ("p", "six"), ("q", "seven")),
        },
    )
    choice = choose(record(tmp_path / "c"))
    found = {
        tuple((label, sample.completion) for label, sample in group.samples.items())
        for group in choice.groups
    }
    assert all("prompted otherwise" not in document[6] for document in choice.documents)
    assert found == {
        (("a", "one"), ("b", "six")),
        (("a", "two"), ("b", "five")),
        (("a", "three"), ("b", "seven")),
        (("b", "four"),),
    }


def test_differing_outcomes_come_first_when_there_is_no_room(tmp_path: Path) -> None:
    def rows(*outcomes: str) -> list[dict[str, Any]]:
        return [
            row(step, [f"{outcome} {step}" + "." * 300], problem_id=str(i), outcome=outcome)
            for step in range(3)
            for i, outcome in enumerate(outcomes)
        ]

    write_sampled_campaign(
        tmp_path / "c",
        {
            "a_s1": rows("correct", "wrong", "wrong"),
            "b_s1": rows("correct", "wrong", "correct"),
            "a_s2": rows("correct", "wrong", "wrong"),
        },
    )
    campaign = record(tmp_path / "c")
    choice = choose(campaign, budget=5_000)
    # Both ends of training before its middle; of each step what differs; the first seed first.
    assert [(g.seed, g.step, g.place) for g in choice.groups[:3]] == [
        (1, 2, 2),
        (1, 0, 2),
        (1, 1, 2),
    ]
    assert sum(len(json.dumps(document)) for document in choice.documents) <= 5_000
    assert not choice.whole
    everything = choose(campaign)
    assert everything.whole
    assert len(everything.groups) == 3 * 3 * 2
    section = completions_section(campaign)
    assert section is not None
    # In the data groups stand by time, and the reader begins at the first choice.
    assert [tuple(group[:2]) for group in section.data["groups"]] == [
        (seed, step) for seed in (1, 2) for step in (0, 1, 2) for _ in range(3)
    ]
    first = section.data["groups"][section.data["first"]]
    assert (first[0], first[1], first[2]) == (1, 2, "2")


def test_only_the_seeds_that_are_shown_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{label}_s{seed}" for seed in range(12) for label in "ab"]
    write_sampled_campaign(tmp_path / "c", {name: [row(0), row(9)] for name in names})
    (tmp_path / "c" / "runs" / "a_s0" / "emergence" / "generations.jsonl").unlink()
    (tmp_path / "c" / "runs" / "b_s0" / "emergence" / "generations.jsonl").unlink()
    read: set[str] = set()

    def reading(path: Path, step: int) -> list[dict[str, Any]]:
        read.add(path.parent.parent.name)
        return rows_of_step(path, step)

    monkeypatch.setattr(side_by_side, "rows_of_step", reading)
    choice = choose(record(tmp_path / "c"))
    # Seed 0 has logged nothing.
    assert read == {f"{label}_s{seed}" for seed in range(1, 9) for label in "ab"}
    assert {group.seed for group in choice.groups} == set(range(1, 9))


def test_what_models_write_stays_text(tmp_path: Path) -> None:
    attacked = row(
        *(3, [ATTACK]),
        problem_id=ATTACK,
        outcome=ATTACK,
        domain=ATTACK,
        answer=ATTACK,
        prompt=[{"role": ATTACK, "content": ATTACK}],
    )
    write_sampled_campaign(tmp_path / "c", {"a_s1": [attacked], "b_s1": [attacked]})
    section = completions_section(record(tmp_path / "c"))
    assert section is not None
    text = Fragment(section).text
    seen = "</script><script>steal()</script><img src=x onerror=steal()>␛[31m�"
    assert text.count(seen) == 8  # Problem, role and prompt, answer, two outcomes, two texts.
    assert not re.search("[\x1b\u202e]", json.dumps(section.data, ensure_ascii=False))
    assert section.data["groups"][0][7][1][5] == seen


def test_prompts_that_differ_are_said_to(tmp_path: Path) -> None:
    rows = {"a_s1": [row(0, prompt="Be brief. 1+1?")], "b_s1": [row(0, prompt="1+1?")]}
    write_sampled_campaign(tmp_path / "c", rows)
    [document] = choose(record(tmp_path / "c")).documents
    assert document[6] == "Be brief. 1+1?\n[… a; other conditions were prompted otherwise …]"


def test_without_completions_there_is_no_section(tmp_path: Path) -> None:
    assert completions_section(planned_campaign(tmp_path / "c", {"a": [0.5], "b": [0.6]})) is None


def test_the_baseline_is_the_first_column_and_keeps_its_colour(tmp_path: Path) -> None:
    campaign = planned_campaign(tmp_path / "c", {"a": [0.5], "b": [0.6]}, report={"baseline": "b"})
    for run in campaign.runs:
        write_rows(run.folder, [row(0, [run.condition])])
    section = completions_section(campaign)
    assert section is not None
    assert [entry[5] for entry in section.data["groups"][0][7]] == ["b", "a"]
    places = re.findall(r'data-swatch="(\d)"', section.html)
    assert places[:2] == ["1", "0"]


@given(
    text=st.text(st.sampled_from("abc"), min_size=1, max_size=400),
    ends=st.lists(st.integers(0, 400), min_size=2, max_size=8, unique=True),
)
def test_spans_move_with_a_shortened_text(text: str, ends: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(side_by_side, "HEAD", 60)
        patched.setattr(side_by_side, "TAIL", 30)
        at = sorted(min(end, len(text)) for end in ends)
        spans = [(a, b) for a, b in zip(at[::2], at[1::2], strict=False) if a < b]
        shown, kept = side_by_side._shortened(text, spans)
    if len(text) <= 90:
        assert (shown, kept) == (text, spans)
        return
    assert shown.startswith(text[:60])
    assert shown.endswith(text[-30:])
    marked = "".join(shown[a:b] for a, b in kept)
    inside = [i for a, b in spans for i in range(a, b) if i < 60 or i >= len(text) - 30]
    assert marked == "".join(text[i] for i in inside)


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 60), st.sampled_from(["", "junk\n", "[1]\n"])),
        max_size=40,
    )
)
def test_bisection_finds_the_rows_of_a_step(tmp_path_factory: Any, given_: Any) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    step, rows, lines = 0, [], ""
    for i, (ahead, size, damage) in enumerate(given_):
        step += ahead
        # Some writers put other keys first.
        made = {"step": step, "x": "y" * size} if i % 5 else {"x": "y" * size, "step": step}
        rows.append(made)
        lines += json.dumps(made) + "\n" + damage
    path.write_text(lines + f'{{"step": {step + 1}, "half')
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(side_by_side, "WINDOW", 40)
        for wanted in range(step + 2):
            assert rows_of_step(path, wanted) == [r for r in rows if r["step"] == wanted]


def test_no_file_has_no_rows(tmp_path: Path) -> None:
    assert rows_of_step(tmp_path / "none.jsonl", 0) == []


@given(st.integers(0, 5_000), st.integers(2, 20))
def test_steps_are_spread_over_training(newest: int, count: int) -> None:
    order = spread(newest, count)
    assert order[0] == newest
    assert len(order) == len(set(order)) == min(count, newest + 1)
    assert newest == 0 or order[1] == 0
    gaps = [b - a for a, b in zip(sorted(order), sorted(order)[1:], strict=False)]
    assert not gaps or max(gaps) - min(gaps) <= 1


# Provenance


def test_config_differences_baseline_first(tmp_path: Path) -> None:
    campaign = planned_campaign(
        tmp_path / "c", {"a": [0.5, 0.5], "b": [0.6, 0.6]}, report={"baseline": "b"}
    )
    edit_config(campaign, "a", "lora_rank = 8", "lora_rank = 16")
    for run in campaign.runs:  # Seeds differ in every campaign and are no difference.
        run.config.write_text(f"{run.config.read_text()}\n[training2]\nseed = {run.seed}\n")
    section = provenance_section(campaign)
    table = section.html.split("</table>")[0]
    assert re.findall(r'<span class="name">.*?</i>(.)</span>', table) == ["b", "a"]
    rows = re.findall(r"<code>([^<]*)</code></th><td>([^<]*)</td><td>([^<]*)</td>", table)
    assert rows == [("model.lora_rank", "8", "16")]
    shared = section.html.split("</details>")[0].split("<details>")[1]
    assert "<code>training.batch_size</code></th><td>8</td>" in shared
    assert "lora_rank" not in shared
    assert "logging.log_dir" not in shared  # A place on this machine, which changes no number.
    assert "recorded before the first run" in section.html
    Fragment(section)


def test_what_was_not_planned_at_first_is_said(tmp_path: Path) -> None:
    campaign = planned_campaign(tmp_path / "c", {"a": [0.5, 0.5, 0.5], "b": [0.6, "failed", 0.6]})
    config = campaign.of("b")[1].config
    config.write_text(config.read_text().replace("lr = 0.002", "lr = 0.01"))
    runs = [dict(run) for run in campaign.manifest["runs"]]
    runs[2]["added"] = "2026-02-03T10:00:00+00:00"
    campaign = edit_manifest(
        campaign, runs=runs, overrides={"campaign.seeds": [1, 2, 3], "data.source": "it's; rm"}
    )
    text = Fragment(provenance_section(campaign)).text
    assert "1 run added later, when others could be seen already (2026-02-03): a_s3." in text
    assert "Not all runs of b have the same config (training.lr)." in text
    assert "0.002 / 0.01" in text
    assert """campaign.toml --seeds 1,2,3 --set 'data.source=it'"'"'s; rm'""" in text
    assert "No [report] settings were recorded" in text


def test_provenance_of_a_campaign_that_has_not_begun(tmp_path: Path) -> None:
    write_campaign(
        tmp_path / "c", [Planned("a", 1, {"folder": False}), Planned("b", 1, {"folder": False})]
    )
    campaign = record(tmp_path / "c")
    assert "No run has left its config yet" in Fragment(provenance_section(campaign)).text
    assert "0 of 2 runs finished" in paper_section(campaign, compare(campaign)).html


# Paper

BETTER = [0.645, 0.612, 0.661, 0.633, 0.678, 0.620, 0.655, 0.624]
BASE = [0.60] * 8
NOISE = [0.631, 0.572, 0.644, 0.561, 0.610, 0.578, 0.635, 0.570]


def test_methods_say_what_was_done(tmp_path: Path) -> None:
    campaign = planned_campaign(
        tmp_path / "c", {"base": BASE, "up": BETTER, "noisy": NOISE}, report={"margin": 0.03}
    )
    edit_config(campaign, "up", "lr = 0.002", "lr = 0.004")
    text = methods(campaign)
    for sentence in (
        "3 conditions (base, up and noisy) under 8 seeds: 24 training runs of 2 steps.",
        "LoRA adapter (Hu et al., 2022) of rank 8 and alpha 16 on the tiny model that ships with "
        "retrain for the task arithmetic with the reward match.",
        "at most 64 tokens a completion, temperature 1) and made 1 update.",
        "8 problems, 16 completions of each, at most 64 tokens a completion",
        "Conditions differed in training.lr.",
        "16 held-out problems, with 1 sampled completion each at temperature 1.",
        "We planned 2 comparisons: each condition against base. Outcome, comparisons, margin and "
        "level were recorded before the first run.",
        "exact two-sided sign-flip test (Fisher, 1935)",
        "step-down maxT procedure with common sign flips (Westfall and Young, 1993)",
        "by Holm's procedure (Holm, 1979), put the difference within 3 points of zero",
        "95 % paired t intervals (Student, 1908)",
        "Each comparison rests on 8 seeds.",
        "All runs finished.",
    ):
        assert sentence in text
    assert "learning rate" not in text  # It is not the same for all.
    one, other = (c.judgement.paired.detectable for c in compare(campaign).contrasts)
    assert one
    assert other
    assert one < other
    assert f"difference of {100 * one:.1f} to {100 * other:.1f} points." in text
    assert "random flips" not in text


def test_methods_of_losses_and_other_settings(tmp_path: Path) -> None:
    values: dict[str, list[Any]] = {
        "base": [*BASE[:6], "failed", 0.6],
        "up": [*BETTER[:5], "diverged", 0.6, 0.6],
    }
    campaign = planned_campaign(tmp_path / "c", {**values, "noisy": NOISE}, report={"floor": 0.25})
    text = methods(campaign)
    assert "22 of 24 runs finished." in text
    assert "scored 25.0 % (intention to treat): up 1." in text
    assert "left out together with the other run of their pair: base 1." in text
    assert "Each comparison rests on 7 seeds." in text
    changed = methods(campaign, metric="greedy_accuracy", floor=0.25, alpha=0.1)
    assert "We made 2 comparisons" in changed
    assert "not those recorded before the first run (metric accuracy -> greedy_accuracy" in changed
    assert "16 held-out problems, decoded greedily." in changed
    assert "90 % paired t intervals" in changed
    by_reward = methods(campaign, metric="reward", window=1)
    assert "held-out" not in by_reward


def test_methods_of_a_condition_that_was_stopped(tmp_path: Path) -> None:
    values: dict[str, list[Any]] = {"a": BASE, "b": [0.5, 0.51, 0.49, *["dropped"] * 4, "failed"]}
    campaign = planned_campaign(tmp_path / "c", values)
    text = methods(campaign)
    assert "11 of 16 runs finished." in text
    assert "stopped for futility" in text
    assert "runs that this ended: b 4." in text
    assert "left out together with the other run of their pair: b 1." in text
    assert "not finished when this was written" not in text


def test_methods_name_the_correction_that_was_made(tmp_path: Path) -> None:
    single = methods(planned_campaign(tmp_path / "one", {"a": BASE, "b": BETTER}))
    assert "We made 1 comparison: each condition against a. Outcome, comparisons, margin and level "
    assert "were not recorded before the first run" in single
    assert "corrected" not in single
    assert "Holm" not in single
    uneven: dict[str, list[Any]] = {"a": BASE, "b": BETTER, "c": [*NOISE[:7], "failed"]}
    holm = methods(planned_campaign(tmp_path / "two", uneven))
    assert "by Holm's procedure (Holm, 1979), since they do not all rest on the same seeds" in holm
    assert "Comparisons rest on 7 to 8 seeds." in holm
    few = methods(planned_campaign(tmp_path / "few", {"a": BASE[:3], "b": BETTER[:3]}))
    assert "cannot give a p value below 0.25: no condition could be called better or worse." in few
    alone = methods(planned_campaign(tmp_path / "alone", {"a": BASE}))
    assert "No comparison was planned." in alone


def test_methods_tell_the_kinds_of_grpo_apart(tmp_path: Path) -> None:
    campaign = planned_campaign(tmp_path / "c", {"a": [0.5], "b": [0.6]})
    grpo = '\n[algorithm]\nadvantage_mode = "grpo"\ntransform_mode = "none"\n'
    for condition, scale in (("a", ""), ("b", 'advantage_params = { scale = "std" }\n')):
        path = campaign.of(condition)[0].config
        path.write_text(path.read_text() + grpo + scale)
    text = methods(campaign)
    assert "Liu et al., 2025) and grpo (rewards standardised within their group; Shao" in text
    assert "Conditions differed in algorithm.advantage_params.scale." in text


def test_every_citation_has_its_reference(tmp_path: Path) -> None:
    many = {"a": [0.6] * 18, "b": [0.6 + 0.001 * i for i in range(18)], "c": [0.61] * 18}
    text = methods(planned_campaign(tmp_path / "c", many))
    assert "65,536 random flips (Phipson and Smyth, 2010)" in text
    body, _, references = text.partition("\n\nReferences\n")
    assert references.split("\n") == [REFERENCES[name] for name in REFERENCES if name in body]
    cited = re.findall(r"\(([A-Z][\w .]+, (?:19|20)\d\d)", body)
    assert set(cited) == set(REFERENCES) & set(cited) != set()


def test_latex_table_has_every_number(tmp_path: Path) -> None:
    campaign = planned_campaign(
        tmp_path / "c_1%",
        {"a_b": BASE, "up": BETTER, "noisy": NOISE},
        report={"contrasts": ["up vs a_b", "noisy vs up"]},
    )
    comparison = compare(campaign)
    table = latex_table(comparison, campaign.name)
    lines = [line.strip() for line in table.splitlines()]
    rows = [line.removesuffix(" \\\\").split(" & ") for line in lines if line.endswith("\\\\")]
    assert {len(cells) for cells in rows} == {7}
    by_name = {cells[0]: cells[1:] for cells in rows}
    assert by_name["a\\_b"] == ["8/8", "60.0 (0.0)", "", "", "", "baseline"]
    assert by_name["up"] == [
        *("8/8", "64.1 (2.3)", "$+4.1$ {[}$+2.2$, $+6.0${]}"),
        *("0.0078", "8/8", "better"),
    ]
    # A comparison with another condition than the baseline has a row of its own.
    assert by_name["noisy"] == ["8/8", "60.0 (3.4)", "", "", "", ""]
    assert by_name["noisy vs.\\ up"][0] == ""
    assert by_name["noisy vs.\\ up"][-1] == comparison.contrasts[1].judgement.verdict.kind
    assert "\\label{tab:c-1}" in lines
    assert table.count("{") - table.count("\\{") == table.count("}") - table.count("\\}")
    for name in ("table", "tabular"):
        assert table.count(f"\\begin{{{name}}}") == table.count(f"\\end{{{name}}}") == 1


@given(st.text(st.characters(codec="utf-8"), max_size=30) | st.text("\\{}_%&#~^$[]*-\"<>|`'\n"))
def test_latex_reads_escaped_text_as_text(text: str) -> None:
    escaped = latex_escape(text)
    assert escaped.isascii()
    assert "\n" not in escaped
    plain = re.sub(r"\\(?:[{}_%&#$]|text[a-z]+\{\})|\{[][*]\}|-\{\}", "", escaped)
    assert not re.search(r'[\\{}_%&#$~^<>|"\[\]*]', plain)
    assert "--" not in escaped


def test_latex_escapes_by_hand() -> None:
    assert latex_escape("50%_a&b#1") == r"50\%\_a\&b\#1"
    assert latex_escape("\\{~^$}") == (r"\textbackslash{}\{\textasciitilde{}\textasciicircum{}\$\}")
    assert latex_escape("[a]*--b") == "{[}a{]}{*}-{}-b"
    assert latex_escape("中\x1b") == "U+4E2DU+241B"


def test_csv_keeps_every_digit(tmp_path: Path) -> None:
    values: dict[str, list[Any]] = {
        "a": [*BASE[:7], "failed"],
        'q"uo,te': BETTER,
        "=b": [0.6, *NOISE[1:]],
    }
    comparison = compare(planned_campaign(tmp_path / "c", values))
    text = verdict_csv(comparison)
    assert text.endswith("\r\n")
    assert text.count("\r\n") == text.count("\n") == 3
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert tuple(rows[0]) == CSV_COLUMNS
    for made, contrast in zip(rows, comparison.contrasts, strict=True):
        paired = contrast.judgement.paired
        # A spreadsheet would run what begins with "=".
        assert made["treatment"] == contrast.treatment.replace("=b", "'=b")
        assert float(made["mean_difference"]) == paired.contrast.mean_difference
        assert float(made["p_corrected"]) == contrast.judgement.p
        assert float(made["ci_low"]) == paired.contrast.low
        assert made["text"].removeprefix("'") == contrast.judgement.verdict.text
        assert (made["seeds"], made["seeds_missing"]) == ("7", "1")
    assert '"q""uo,te"' in text


def test_csv_leaves_empty_what_is_not_known(tmp_path: Path) -> None:
    comparison = compare(planned_campaign(tmp_path / "c", {"a": [0.5], "b": ["failed"]}))
    [made] = csv.DictReader(io.StringIO(verdict_csv(comparison), newline=""))
    assert (made["verdict"], made["mean_difference"], made["p_corrected"]) == ("undecided", "", "")
    assert "None" not in made.values()


def test_the_paper_section_can_be_copied(tmp_path: Path) -> None:
    campaign = planned_campaign(tmp_path / "c", {"a": BASE, "b&<b>": BETTER})
    comparison: Comparison = compare(campaign)
    section = paper_section(campaign, comparison)
    page = Fragment(section)
    assert set(re.findall('data-copy="(.*?)"', section.html)) == set(page.ids)
    for text in (
        methods_text(campaign, comparison),
        latex_table(comparison, campaign.name),
        verdict_csv(comparison).replace("\r\n", "\n"),
    ):
        assert text in page.text.replace("\r", "")
