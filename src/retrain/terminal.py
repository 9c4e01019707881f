"""The terminal, as everything here writes on it."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from retrain.output import visible


def say(console: Console, text: str, style: str = "") -> None:
    """One line that the terminal wraps, so that paths in it can be copied whole; no markup."""
    console.print(Text(text, style=style), soft_wrap=True)


class Terminal(Console):
    """A console that shows the control characters of a text instead of obeying them."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Every text that is printed comes through here, also those inside of tables."""
        if isinstance(renderable, str):
            renderable = visible(renderable)
        elif isinstance(renderable, Text) and (shown := visible(renderable.plain)) != str(
            renderable
        ):
            renderable = renderable.copy()
            renderable.plain = shown
        return super().render(renderable, options)
