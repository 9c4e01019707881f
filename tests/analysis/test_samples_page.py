"""The page of `retrain samples --html`: whole in itself, and inert whatever a model wrote."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_rows import old_row, row, write_rows, write_sampled_campaign

from retrain import cli
from retrain.analysis.samples.page import page
from retrain.analysis.samples.sample import Sample, read_sample
from retrain.analysis.samples.selection import Seen
from retrain.output import visible

ATTACKS = (
    *("</script><script>steal()</script>", "<img src=x onerror=steal()>", "<!--", "]]>"),
    *('"><svg onload=steal()>', "</div></details></main><h1>", "&lt;b&gt;&amp;", "</style>"),
    *("<iframe src=//evil>", "\x1b[31m", "\u202e", "{{}}", "javascript:steal()"),
)
TEXTS = st.lists(
    st.sampled_from(ATTACKS) | st.text(st.characters(codec="utf-8"), max_size=9), max_size=5
).map("".join)
OWN_TAGS = {
    *("html", "head", "meta", "title", "style", "body", "header", "h1", "p", "noscript", "div"),
    *("input", "select", "option", "label", "button", "span", "main", "i", "u", "footer"),
    *("details", "summary", "b", "canvas", "script"),
}


class Page(HTMLParser):
    """What a browser would make of the page: elements, and the text of each class of them."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[tuple[str, int]] = []
        self.feed(document)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in {"meta", "input"}:
            self._open.append((tag, len(self.texts)))
            self.texts.append((dict(attrs).get("class") or tag, ""))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            _, at = self._open[-1]
            name, text = self.texts[at]
            self.texts[at] = (name, text + data)

    def of(self, name: str) -> list[str]:
        return [text for found, text in self.texts if found == name]

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.elements if found == tag]


def sample(**changes: Any) -> Sample:
    made = read_sample(row(**changes), run="grpo_s1", condition="grpo", seed=1, place=0)
    assert made is not None
    return made


def document(*samples: Sample, title: str = "runs", color: str = "advantage") -> str:
    return page(samples, Seen(total=len(samples), matching=len(samples)), title, color)


def program(folder: Path, *options: str) -> None:
    with pytest.raises(SystemExit) as leave:
        cli.main(["samples", str(folder), *options])
    assert leave.value.code == 0


@given(TEXTS, TEXTS)
def test_texts_come_out_as_they_went_in_and_nothing_else_does(text: str, other: str) -> None:
    made = sample(
        pieces=(text, other, ""),
        prompt=[{"role": other, "content": text}, {"role": text, "content": other}],
        problem_id=text,
        domain=other,
        answer=text,
        outcome=other,
        parts={text: 1.0},
    )
    found = Page(document(made, title=other))
    assert {tag for tag, _ in found.elements} <= OWN_TAGS
    assert found.of("completion text") == [visible(text + other)]
    assert found.of("text") == [visible(text), visible(other)]
    (card,) = found.all("details")
    assert card["data-problem"] == " ".join(visible(text).split())
    assert [attributes.get("type") for attributes in found.all("script")] == [
        *("application/json", None)
    ]
    for _, attributes in found.elements:
        assert not any(name.startswith("on") or name in {"src", "href"} for name in attributes)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", document(made))


def test_the_policy_allows_this_style_and_script_alone() -> None:
    text = document(sample())
    found = Page(text)
    policy = next(
        meta["content"] or ""
        for meta in found.all("meta")
        if meta.get("http-equiv") == "Content-Security-Policy"
    )
    assert text.index("Content-Security-Policy") < text.index("<style>")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert "unsafe" not in policy
    for rule, content in (
        ("style-src", found.of("style")[0]),
        ("script-src", found.of("script")[-1]),
    ):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    # Nothing is loaded from anywhere.
    assert not re.search(r"https?://|@import|url\(|\bfetch\b|XMLHttp|innerHTML|eval\(", text)


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=4), max_size=8))
def test_token_numbers_belong_to_the_text_beside_them(pieces: list[str]) -> None:
    values = [round(0.37 * i - 1, 5) for i in range(len(pieces))]
    made = sample(pieces=pieces, token_advantages=values, planning_spans=[[0, 2]])
    found = Page(document(made))
    data = json.loads(found.of("script")[0])
    (text,) = found.of("completion text")
    assert data["n"] == [len(piece) for piece in pieces]
    shown, at = [], 0
    for size in data["n"]:
        shown.append(text[at : at + size])
        at += size
    assert shown == [visible(piece) for piece in pieces]
    if len(set(values)) > 1:
        assert data["a"] == values
    elif values:
        assert data["a"] == values[0]
    assert data["p"] == ([[0, min(2, len(text))]] if text else [])


def test_filters_offer_what_there_is() -> None:
    outcomes = ("wrong", "correct", "odd <one>")
    several = [sample(outcome=outcome, domain="d", step=i) for i, outcome in enumerate(outcomes)]
    found = Page(document(*several))
    assert [select["id"] for select in found.all("select")] == ["outcome", "sort", "color"]
    options = [option["value"] for option in found.all("option")][:4]
    assert options == ["", "=correct", "=wrong", "=odd <one>"]
    assert [card["data-step"] for card in found.all("details")] == ["0", "1", "2"]
    assert "steps 0 to 2; grpo_s1" in document(*several)
    chosen = [o["value"] for o in Page(document(color="none")).all("option") if "selected" in o]
    assert chosen[-1] == "none"


def test_the_page_of_a_campaign(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("a_s1", "b_s1")
    rows = {name: [row(step, outcome="wrong") for step in range(4)] for name in names}
    folder = write_sampled_campaign(tmp_path / "campaign_1", rows)
    target = tmp_path / "out.html"
    program(folder, "--html", str(target), "--step", "1:")
    assert f"wrote {target}" in capsys.readouterr().out
    found = Page(target.read_text(encoding="utf-8"))
    assert len(found.all("details")) == 6
    # The first few are open, the others are there when they are asked for.
    assert sum("open" in card for card in found.all("details")) == 3
    assert "run" in [select["id"] for select in found.all("select")]
    assert found.of("h1") == ["campaign_1"]
    # The same page twice is the same bytes, and an old one is replaced.
    before = target.read_bytes()
    program(folder, "--html", str(target), "--step", "1:")
    assert target.read_bytes() == before


def test_old_rows_make_a_page_without_colours(tmp_path: Path) -> None:
    write_rows(tmp_path / "r", [old_row(planning_spans=[[0, 2]])])
    program(tmp_path / "r", "--html", str(tmp_path / "x.html"))
    text = (tmp_path / "x.html").read_text()
    found = Page(text)
    assert json.loads(found.of("script")[0]) == {"n": [], "a": [], "u": [], "p": [[0, 2]]}
    assert not found.all("canvas")
    assert "tokens were not logged" in text


def test_no_completion_at_all(tmp_path: Path) -> None:
    write_rows(tmp_path / "r", [row()])
    program(tmp_path / "r", "--html", str(tmp_path / "x.html"), "--step", "7")
    found = Page((tmp_path / "x.html").read_text())
    assert not found.all("details")


def test_lone_surrogates_can_be_written(tmp_path: Path) -> None:
    write_rows(tmp_path / "r", [row(pieces=("\ud800x", ""), answer="\udfff")])
    program(tmp_path / "r", "--html", str(tmp_path / "x.html"))
    found = Page((tmp_path / "x.html").read_text(encoding="utf-8"))
    assert found.of("completion text") == ["�x"]
