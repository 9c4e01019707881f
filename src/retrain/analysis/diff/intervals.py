"""Differences as lines of text: values, interval, and a picture of the interval around zero."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from retrain.analysis.diff.curves import SHARES
from retrain.analysis.statistics import Contrast
from retrain.analysis.words import Unit

INDENT = "  "
GAP = "  "
LEAST_PLOT, MOST_PLOT = 9, 31
WIDEST = 100
DIFFERENCE = 3
"""The column of the difference, which is written from the left so that signs stand together."""
HIGHER, LOWER = "blue", "yellow"
"""Of intervals that lie on one side of zero; the sign says it too."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line: a place, the values of both sides there, and their difference."""

    place: str
    a: float
    b: float
    contrast: Contrast


@dataclass(frozen=True, slots=True)
class Block:
    """Rows that share a heading, a unit and the scale of their pictures."""

    title: str
    rows: Sequence[Row]
    unit: Unit


@dataclass(frozen=True, slots=True)
class Signs:
    """What pictures are drawn with."""

    zero: str
    line: str
    point: str


FINE = Signs("│", "─", "●")
PLAIN = Signs("|", "-", "o")


def unit_of(metric: str, values: Sequence[float]) -> tuple[Unit, str]:
    """How a metric is written, and what is put behind its name: `, %`, ` x 1e-5`, or nothing.

    Shares are in percent and their differences in points; of anything else the largest value has
    three significant digits.
    """
    if metric in SHARES:
        return Unit(), ", %"
    largest = max((abs(value) for value in values), default=0.0)
    digits = 2 - math.floor(math.log10(largest)) if largest else 0
    if digits <= 4:
        return Unit(1.0, "", max(0, digits)), ""
    return Unit(10.0 ** (digits - 2), "", 2), f" x 1e-{digits - 2}"


def interval_lines(blocks: Sequence[Block], console: Console, places: str = "step") -> list[Text]:
    """The blocks below one heading; `places` is what the first column is called.

    All columns stand in the same places, and every block has a scale of its own for its pictures.
    How many pairs a line rests on is written where that is not the same for all. Where the console
    is too narrow there are no pictures.
    """
    rows = [row for block in blocks for row in block.rows]
    paired = any(row.contrast.n > 1 for row in rows)
    counted = paired and len({row.contrast.n for row in rows}) > 1
    heads = [places, "A", "B", "B - A [95 % CI]" if paired else "B - A"]
    heads += ["pairs"] if counted else []
    cells = [[_cells(row, block.unit, counted) for row in block.rows] for block in blocks]
    every = [heads, *(line for lines in cells for line in lines)]
    widths = [max(len(line[i]) for line in every) for i in range(len(heads))]
    used = len(INDENT) + sum(widths) + len(GAP) * len(widths)
    room = min(console.width, WIDEST) - used
    width = min(MOST_PLOT, room) if room >= LEAST_PLOT else 0
    width -= width % 2 == 0
    signs = FINE if console.encoding.lower().startswith("utf") else PLAIN
    lines = [Text(_aligned(heads, widths).rstrip(), style="dim")]
    for block, block_cells in zip(blocks, cells, strict=True):
        extent = max((_extent(row.contrast) for row in block.rows), default=0.0)
        if float(block.unit.signed(extent)) == 0:
            # What is written as no difference is not drawn as one.
            extent = 0.0
        lines.append(_heading(block, extent, used, width))
        for row, line_cells in zip(block.rows, block_cells, strict=True):
            line = Text(_aligned(line_cells, widths))
            if width > 0:
                line.append(GAP).append_text(_picture(row.contrast, extent, width, signs))
            line.rstrip()
            lines.append(line)
    return lines


def difference_text(contrast: Contrast, unit: Unit) -> str:
    """`+4.1 [-1.9, +10.1]`; without an interval where there is none."""
    if contrast.mean_difference is None:
        return "-"
    center = unit.signed(contrast.mean_difference)
    if contrast.low is None or contrast.high is None:
        return center
    if contrast.all_equal:
        return f"{center} (all equal)"
    return f"{center} [{unit.signed(contrast.low)}, {unit.signed(contrast.high)}]"


def _cells(row: Row, unit: Unit, counted: bool) -> list[str]:
    cells = [row.place, unit.plain(row.a), unit.plain(row.b), difference_text(row.contrast, unit)]
    return [*cells, str(row.contrast.n)] if counted else cells


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Words to the left, numbers to the right."""
    aligned = [
        cell.ljust(width)
        if column == DIFFERENCE or (column == 0 and not cell[:1].isdigit())
        else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return INDENT + GAP.join(aligned)


def _heading(block: Block, extent: float, used: int, width: int) -> Text:
    line = Text(f"{INDENT}{block.title}", style="bold")
    ends = [block.unit.signed(-extent), block.unit.signed(extent)]
    space = width - sum(map(len, ends)) - 1
    if width > 0 and extent > 0 and space >= 2 and line.cell_len + len(GAP) <= used:
        left = width // 2 - len(ends[0])
        axis = ends[0] + " " * left + "0" + " " * (width // 2 - len(ends[1])) + ends[1]
        line.append(" " * (used - line.cell_len))
        line.append(axis, style="not bold dim")
    return line


def _extent(contrast: Contrast) -> float:
    ends = (contrast.mean_difference, contrast.low, contrast.high)
    return max((abs(end) for end in ends if end is not None), default=0.0)


def _picture(contrast: Contrast, extent: float, width: int, signs: Signs) -> Text:
    """The interval on an axis from -extent to extent; a lone difference is a line from zero."""
    mean = contrast.mean_difference
    if mean is None:
        return Text()
    known = contrast.low is not None and contrast.high is not None
    low, high = contrast.low, contrast.high
    if low is None or high is None:
        low, high = min(mean, 0.0), max(mean, 0.0)

    def place(value: float) -> int:
        share = value / extent if extent else 0.0
        return round((width - 1) * (share + 1) / 2)

    drawn = [" "] * width
    drawn[place(low) : place(high) + 1] = signs.line * (place(high) - place(low) + 1)
    drawn[width // 2] = signs.zero
    drawn[place(mean)] = signs.point
    clear = known and not contrast.all_equal
    style = HIGHER if clear and low > 0 else LOWER if clear and high < 0 else ""
    return Text("".join(drawn), style=style)
