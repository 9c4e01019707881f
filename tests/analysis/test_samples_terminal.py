"""Completions in the terminal: colours, folding, and text that must not do anything."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from sample_rows import row

from retrain.analysis.samples import look
from retrain.analysis.samples.sample import Sample, read_sample
from retrain.analysis.samples.terminal import show
from retrain.output import visible

SGR = re.compile(r"\x1b\[[\d;]*m")
CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
NASTY = st.text(st.sampled_from("a[/] \t\n\r\x00\x07\x08\x1b\x7f\x9b\x9d\u202e\u2067é漢😀\\"))


def sample(**changes: Any) -> Sample:
    made = read_sample(row(**changes), run="grpo_s1", condition="grpo", seed=1, place=0)
    assert made is not None
    return made


def printed(*samples: Sample, color: bool = True, width: int = 80, **options: Any) -> str:
    console = Console(
        file=io.StringIO(),
        force_terminal=color,
        color_system="truecolor" if color else None,
        width=width,
        highlight=False,
        _environ={},
    )
    pattern = options.pop("grep", None)
    options["pattern"] = re.compile(pattern) if pattern else None
    show(samples, console, **options)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def style_of(output: str, text: str) -> str:
    """The codes in force where `text` begins."""
    found = re.search(r"\x1b\[([\d;]*)m" + re.escape(text), output)
    return found[1] if found and found[1] != "0" else ""


@given(NASTY, NASTY, st.booleans())
def test_nothing_a_model_writes_reaches_the_terminal(text: str, other: str, color: bool) -> None:
    nasty = sample(
        pieces=(text, other),
        prompt=other,
        problem_id=text,
        domain=other,
        answer=text,
        outcome=other,
        parts={text: 1.0},
        planning_spans=[[0, 3]],
    )
    output = printed(nasty, color=color, grep="a")
    assert not CONTROL.search(SGR.sub("", output) if color else output)


@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_visible_keeps_every_other_character_in_its_place(text: str) -> None:
    shown = visible(text)
    assert len(shown) == len(text)
    for before, after in zip(text, shown, strict=True):
        control = CONTROL.match(before) and before != "\t"
        assert after != before if control else after == before or before in "\u2028\u2029"


def test_colours_follow_the_advantage() -> None:
    colored = printed(sample(pieces=("up", "down", "none", ""), token_advantages=[2, -2, 0, 0]))
    assert "48;2;0;118;190" in style_of(colored, "up")
    assert "48;2;204;85;0" in style_of(colored, "down")
    assert style_of(colored, "none") == ""
    assert "advantage of a token" in colored
    by_doubt = printed(
        sample(pieces=("up", "down", ""), token_uncertainties=[0, 2, 0]), by="uncertainty"
    )
    assert style_of(by_doubt, "up") == ""
    assert "48;2;0;140;102" in style_of(by_doubt, "down")
    plain = printed(sample(), by="none")
    assert "48;2" not in plain
    assert "of a token" not in plain


def test_one_extreme_token_does_not_pale_the_others() -> None:
    many = sample(pieces=["x"] * 100, token_advantages=[1.0] * 99 + [1000.0])
    assert look.advantage_scale([many]) == 1.0


def test_a_light_terminal_gets_dark_ink(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLORFGBG", "0;15")
    assert "38;2;0;0;0" in style_of(printed(sample(pieces=("up", ""))), "up")


def test_the_end_token_is_shown_with_its_credit() -> None:
    ended = printed(sample(pieces=("So 4", ""), token_advantages=[0, -1]))
    assert "48;2;204;85;0" in style_of(ended, "end")
    assert "end" not in SGR.sub("", printed(sample(pieces=("So", ""), stop_reason="length")))


def test_planning_spans_without_a_terminal_stand_in_brackets() -> None:
    made = sample(pieces=("So ", "wait, let me", " see", ""), planning_spans=[[3, 15]])
    assert "So ⟦wait, let me⟧ see" in printed(made, color=False)
    assert "in ⟦ ⟧: planning" in printed(made, color=False)
    colored = printed(made)
    assert "4" in style_of(colored, "wait, let me").split(";")
    assert "⟦" not in colored


def test_no_color_keeps_what_is_no_colour() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, _environ={"NO_COLOR": "1"})
    made = sample(pieces=("wait let me", " see", ""), planning_spans=[[0, 11]])
    show([made], console, pattern=re.compile("see"))
    assert isinstance(console.file, io.StringIO)
    output = console.file.getvalue()
    assert set(re.findall(r"\d+", "".join(SGR.findall(output)))) <= {*"012347"}
    assert style_of(output, "wait") == "4"
    assert style_of(output, "see") == "1;7"


def test_long_texts_are_folded_but_not_what_was_searched_for() -> None:
    lines = [f"line {i}" for i in range(200)]
    made = sample(pieces=("\n".join(lines), ""))
    folded = printed(made, color=False)
    assert "… 180 lines more (--full)" in folded
    assert "line 13\n" in folded
    assert "line 14\n" not in folded
    assert "line 199\n" in folded
    found = printed(made, grep="line 77")
    plain = SGR.sub("", found)
    assert "line 76\n  line 77\n  line 78\n" in plain
    assert "48;2;255;217;74" in style_of(found, "line 77")
    whole = printed(made, color=False, full=True)
    assert all(f"  {line}\n" in whole for line in lines)
    assert "more" not in whole


def test_the_header_says_all_of_it() -> None:
    made = sample(
        parts={"match": 1.0, "length": -0.25},
        reward=0.75,
        advantage=-1.23456,
        stop_reason="length",
        prompt=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}],
    )
    output = printed(made, color=False, width=120)
    for part in (
        *(
            "step 0 · sum-1 · sample 0",
            "grpo_s1",
            "✓ correct",
            "reward 0.75 (match 1, length -0.25)",
        ),
        *("advantage -1.235", "3 tokens, cut off", "answer 4", "sums"),
        *("system: Be brief.", "user: 2+2?"),
    ):
        assert part in output
    assert max(map(len, printed(made, color=False, width=40).splitlines())) <= 40


def test_an_empty_completion_says_so() -> None:
    assert "(empty)" in printed(sample(pieces=("",)), color=False)
    assert "(blank)" in printed(sample(pieces=(" \n ", "")), color=False)


def test_an_output_without_unicode() -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    made = sample(pieces=("é漢 let me check", ""), planning_spans=[[3, 15]], domain="漢")
    show([made], Console(file=file, width=80))
    file.flush()
    assert b"?? [[let me check]]" in raw.getvalue()
