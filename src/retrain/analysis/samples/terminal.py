"""Completions in the terminal: one block each, tokens on a colour scale."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

from retrain.analysis.samples.look import (
    advantage_scale,
    marks,
    one_line,
    place_on_scale,
    shown_number,
    uncertainty_scale,
)
from retrain.analysis.samples.sample import Sample, Token
from retrain.analysis.words import plural
from retrain.output import visible

HEAD_LINES, TAIL_LINES, SHORT_LINES = 14, 6, 26
"""A text of more than SHORT_LINES lines is folded to its beginning and its end."""
PROMPT_LINES = 8
LEVELS = 12
INDENT = "  "

MATCH = Style(bold=True, color=Color.from_rgb(0, 0, 0), bgcolor=Color.from_rgb(255, 217, 74))
MATCH_UNCOLORED = Style(bold=True, reverse=True)
PLANNING = Style(underline=True)
OUTCOMES = {"correct": ("✓", "+", "green"), "wrong": ("✗", "x", "red")}

Rgb = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Palette:
    """A scale's ends: where it begins (no colour), negative, positive, uncertain; and the ink.

    Orange and blue (Okabe and Ito's) stay apart in every common form of colour blindness.
    """

    zero: Rgb
    negative: Rgb
    positive: Rgb
    uncertain: Rgb
    ink: Rgb


DARK = Palette((40, 40, 44), (204, 85, 0), (0, 118, 190), (0, 140, 102), (255, 255, 255))
LIGHT = Palette((255, 255, 255), (240, 138, 62), (86, 180, 233), (72, 200, 160), (0, 0, 0))


@dataclass(frozen=True, slots=True)
class Colors:
    """How tokens are coloured: by what, and the value that gets full colour."""

    by: str
    scale: float
    palette: Palette

    @classmethod
    def of(cls, samples: Sequence[Sample], by: str) -> Colors:
        scales: dict[str, Callable[[Sequence[Sample]], float]] = {
            "advantage": advantage_scale,
            "uncertainty": uncertainty_scale,
        }
        scale = scales[by](samples) if by in scales else 0.0
        return cls(by, scale, LIGHT if _light_terminal() else DARK)

    def of_token(self, token: Token) -> Style | None:
        value = token.uncertainty if self.by == "uncertainty" else token.advantage
        return self.at(place_on_scale(value, self.scale))

    def at(self, place: float) -> Style | None:
        """The style at a place between -1 and 1; None where there is next to nothing."""
        level = round(abs(place) * LEVELS)
        if level == 0:
            return None
        palette = self.palette
        far = palette.positive if place > 0 else palette.negative
        if self.by == "uncertainty":
            far = palette.uncertain
        share = level / LEVELS
        mixed = [round(a + (b - a) * share) for a, b in zip(palette.zero, far, strict=True)]
        return Style(color=Color.from_rgb(*palette.ink), bgcolor=Color.from_rgb(*mixed))


def show(
    samples: Sequence[Sample],
    console: Console,
    *,
    by: str = "advantage",
    pattern: re.Pattern[str] | None = None,
    full: bool = False,
) -> None:
    """Print completions and the legend.

    by:      advantage, uncertainty or none; colour appears on a terminal only, and not under
             NO_COLOR. Where nothing can be underlined, planning spans stand in brackets.
    pattern: whose matches are highlighted, and never folded away.
    full:    fold nothing.
    """
    view = _View(console, Colors.of(samples, by), pattern, full)
    for sample in samples:
        for line in view.block(sample):
            console.print(line, soft_wrap=True)
        console.print()
    if (legend := view.legend(samples)).plain:
        console.print(legend)


class _View:
    def __init__(
        self, console: Console, colors: Colors, pattern: re.Pattern[str] | None, full: bool
    ) -> None:
        self._console, self._colors, self._pattern, self._full = console, colors, pattern, full
        self._width = max(20, console.width)
        self._utf = console.encoding.lower().startswith("utf")
        self._styled = console.is_terminal and not console.is_dumb_terminal
        self._colored = self._styled and not console.no_color and colors.scale > 0
        self._match = MATCH_UNCOLORED if console.no_color else MATCH

    def block(self, sample: Sample) -> list[Text]:
        """The lines of one completion."""
        lines = [self._rule(sample), *self._facts(sample)]
        for message in sample.prompt:
            role = f"{one_line(message.role)}: " if message.role else ""
            prompt = Text(self._fit(role + visible(message.content)), style="dim")
            lines += self._wrapped(prompt, PROMPT_LINES)
        return [*lines, Text(), *self._wrapped(self._completion(sample), SHORT_LINES)]

    def legend(self, samples: Sequence[Sample]) -> Text:
        """What colours and marks mean; empty where there are none."""
        legend = Text()
        colors = self._colors
        if self._colored:
            limit = f"{colors.scale:.3g}"
            ends = [-1.0, 1.0] if colors.by == "advantage" else [0.0, 1.0]
            legend.append(f"{colors.by} of a token  ", style="dim")
            legend.append(f"{f'-{limit}' if ends[0] else '0'} ")
            for step in range(13):
                place = ends[0] + (ends[1] - ends[0]) * step / 12
                legend.append("  " if colors.at(place) else "· ", style=colors.at(place) or "dim")
            legend.append(f" {'+' if ends[0] else ''}{limit} and beyond")
        elif colors.by != "none" and samples and not any(sample.tokens for sample in samples):
            legend.append("tokens were not logged: these runs are of an older version", style="dim")
        if marks(samples):
            opening, closing = self._brackets()
            legend.append("   " if legend.plain else "")
            if self._styled:
                legend.append("underlined", style=PLANNING).append(": planning")
            else:
                legend.append(f"in {opening} {closing}: planning")
        return legend

    def _rule(self, sample: Sample) -> Text:
        parts = [f"step {sample.step}", one_line(sample.problem_id)]
        if sample.number is not None:
            parts.append(f"sample {sample.number}")
        title = Text(self._fit(f"── {' · '.join(filter(None, parts))} "), style="bold")
        title.append(self._fit(f"· {one_line(sample.run)} "), style="cyan")
        dash = "─" if self._utf else "-"
        return title.append(dash * max(0, self._width - title.cell_len), style="dim")

    def _facts(self, sample: Sample) -> list[Text]:
        sign, plain, style = OUTCOMES.get(sample.outcome, ("?", "?", "yellow"))
        outcome = one_line(sample.outcome) or "not judged"
        parts = ", ".join(f"{one_line(k)} {shown_number(v)}" for k, v in sample.parts.items())
        tokens = "" if sample.num_tokens is None else plural(sample.num_tokens, "token")
        cut = "cut off" if sample.stop_reason == "length" else one_line(sample.stop_reason)
        facts = [
            ("", f"reward {shown_number(sample.reward)}" + (f" ({parts})" if parts else "")),
            ("", f"advantage {shown_number(sample.advantage, sign=True)}"),
            ("yellow" if cut == "cut off" else "", ", ".join(filter(None, (tokens, cut)))),
            ("", f"answer {one_line(sample.answer)}" if sample.answer else ""),
            ("dim", one_line(sample.domain)),
        ]
        lines = [Text(self._fit(f"{sign if self._utf else plain} {outcome}"), style=style)]
        for look, fact in facts:
            if fact:
                piece = Text(self._fit(f"   {fact}"), style=look)
                if lines[-1].cell_len + piece.cell_len > self._width:
                    lines.append(Text())
                    piece = Text(self._fit(f"  {fact}"), style=look)
                lines[-1] = Text.assemble(lines[-1], piece)
        return lines

    def _completion(self, sample: Sample) -> Text:
        text = Text(self._fit(visible(sample.completion)))
        if not sample.completion.strip():
            text.append("(empty)" if not sample.completion else "(blank)", style="dim italic")
        if self._colored:
            for token in sample.tokens:
                style = self._colors.of_token(token)
                if style is not None and token.start < token.end:
                    text.stylize(style, token.start, token.end)
        for start, end in sample.planning:
            text.stylize(PLANNING, start, end)
        if self._pattern is not None:
            for match in self._pattern.finditer(sample.completion):
                text.stylize(self._match, *match.span())
        if self._colored and sample.stopped is not None:
            style = self._colors.of_token(sample.stopped) or Style.null()
            text.append(" ").append("end", style=style + Style(italic=True))
        return text if self._styled else self._bracketed(text, sample)

    def _bracketed(self, text: Text, sample: Sample) -> Text:
        opening, closing = self._brackets()
        pieces, at = [], 0
        for start, end in sample.planning:
            pieces += [text[at:start], Text(opening), text[start:end], Text(closing)]
            at = end
        return Text.assemble(*pieces, text[at:]) if pieces else text

    def _wrapped(self, text: Text, most: int) -> list[Text]:
        """Lines that fit, indented; without the middle when there are many."""
        room = self._width - len(INDENT)
        lines = list(text.wrap(self._console, room, tab_size=4, overflow="fold"))
        if not self._full and len(lines) > most:
            lines = self._folded(lines, most)
        return [Text(INDENT).append_text(line) for line in lines]

    def _folded(self, lines: Sequence[Text], most: int) -> list[Text]:
        head = min(HEAD_LINES, most - 2)
        tail = min(TAIL_LINES, most - head - 1)
        kept = {*range(head), *range(len(lines) - tail, len(lines))}
        for i, line in enumerate(lines):
            if any(span.style == self._match for span in line.spans):
                kept |= {at for at in (i - 1, i, i + 1) if 0 <= at < len(lines)}
        folded: list[Text] = []
        for i, line in enumerate(lines):
            if i in kept:
                gap = i - 1 - max((at for at in kept if at < i), default=-1)
                if gap:
                    dots = "…" if self._utf else "..."
                    folded.append(
                        Text(f"{dots} {plural(gap, 'line')} more (--full)", style="dim italic")
                    )
                folded.append(line)
        return folded

    def _brackets(self) -> tuple[str, str]:
        return ("⟦", "⟧") if self._utf else ("[[", "]]")

    def _fit(self, value: str) -> str:
        """What this output can show, at the same length."""
        if self._utf:
            return value
        return value.encode(self._console.encoding, "replace").decode(self._console.encoding)


def _light_terminal() -> bool:
    """Whether the terminal says that its background is light (`COLORFGBG=0;15`)."""
    return os.environ.get("COLORFGBG", "").rpartition(";")[2] in {"7", "15"}
