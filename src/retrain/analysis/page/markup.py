"""Pieces of the page: tables, pictures with their words, tags. All arguments that are markup are
escaped by whoever makes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from retrain.analysis.statistics import Contrast
from retrain.analysis.webpage import safe
from retrain.analysis.words import Unit

COLORS = 7
"""Colours of conditions in the style; the script adds dashes and marks."""
MISSING = "–"


def swatch(condition: int) -> str:
    """The colour of a condition; the script puts its mark there."""
    return f'<i class="swatch c{condition % COLORS}" data-swatch="{condition}"></i>'


def name(label: str, condition: int) -> str:
    return f'<span class="name">{swatch(condition)}{safe(label)}</span>'


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    caption: str = "",
    kind: str = "",
    text: frozenset[int] = frozenset(),
) -> str:
    """A table that scrolls in a box of its own. The first column and those in `text` are words,
    the others numbers."""

    def css(index: int) -> str:
        return "" if index == 0 or index in text else ' class="number"'

    top = "".join(f'<th scope="col"{css(i)}>{cell}</th>' for i, cell in enumerate(head))
    body = "\n".join(
        "<tr>"
        + "".join(
            f'<th scope="row">{cell}</th>' if i == 0 else f"<td{css(i)}>{cell}</td>"
            for i, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    title = f"<caption>{caption}</caption>" if caption else ""
    classes = f' class="{kind}"' if kind else ""
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{caption or "table"}">'
        f"<table{classes}>{title}<thead><tr>{top}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def chart(place: str, finding: str, *, kind: str = "") -> str:
    """A place for a picture that the script draws; `finding` says what is seen there."""
    classes = f"chart {kind}".rstrip()
    return (
        f'<div class="{classes}" id="{place}" role="img" aria-label="{safe(finding)}">'
        '<p class="needs-script">This picture is drawn by a script; its numbers are in the table.'
        "</p></div>"
    )


def folded(title: str, html: str, *, opened: bool = False) -> str:
    return f"<details{' open' if opened else ''}><summary>{escape(title)}</summary>{html}</details>"


def interval(contrast: Contrast | None, unit: Unit) -> str:
    """`+4.1 [+1.9, +6.3]`, with what an interval is missing for."""
    if contrast is None or contrast.mean_difference is None:
        return MISSING
    center = f"<b>{minus(unit.signed(contrast.mean_difference))}</b>"
    if contrast.all_equal:
        return f"{center} <small>all pairs equal</small>"
    if contrast.low is None or contrast.high is None:
        return f"{center} <small>one pair</small>"
    low, high = minus(unit.signed(contrast.low)), minus(unit.signed(contrast.high))
    return f"{center} <small>[{low}, {high}]</small>"


def p_value(p: float | None) -> str:
    if p is None:
        return MISSING
    return "&lt; 0.001" if p < 0.001 else f"{p:.2g}"


def listed(notes: Iterable[str]) -> str:
    """Notes, plain text, as a list; nothing of none."""
    items = "".join(f"<li>{safe(note)}</li>" for note in notes)
    return f'<ul class="notes">{items}</ul>' if items else ""


def minus(number: str) -> str:
    """With the sign that is as wide as a plus."""
    return number.replace("-", "\u2212")
