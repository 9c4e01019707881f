"""The pictures of `report.md`, drawn by a process of their own.

What draws them holds a JavaScript engine, which takes more memory than all the rest of a report
and never gives it back; and the page can be written meanwhile.

python -m retrain.analysis.pictures reads what to draw from its standard input.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from retrain.analysis.curves import Curve
from retrain.causes import ended_words, last_line
from retrain.processes import module_command


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of learning curves; the words are those of `charts.line_chart`."""

    stem: str
    """Its path without the ending; `.svg` and `.png` are written."""
    curves: tuple[Curve, ...]
    conditions: tuple[str, ...]
    title: str
    subtitle: str
    y_title: str
    as_percent: bool = False
    markers: bool = False


class Drawing:
    """Pictures that are being drawn. `finish` has to be called."""

    def __init__(self, pictures: Sequence[Picture]) -> None:
        self._problem = ""
        try:
            self._process = subprocess.Popen(
                module_command(__name__),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        except OSError as error:
            self._problem = str(error)
            return
        asked = json.dumps([_plain(picture) for picture in pictures]).encode()
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(asked)
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # `finish` says why
        self._process.stdin = None

    def finish(self) -> str:
        """Why they could not be drawn; empty when they are."""
        if self._problem:
            return self._problem
        _, words = self._process.communicate()
        code = self._process.returncode
        if code < 0:
            return f"the process that draws {ended_words(code)}"
        return (last_line(words.decode(errors="replace")) or ended_words(code)) if code else ""


def _plain(one: Picture | Curve) -> dict[str, Any]:
    """As `asdict`, which copies every point."""
    found = {field.name: getattr(one, field.name) for field in fields(one)}
    if isinstance(one, Picture):
        found["curves"] = [_plain(curve) for curve in one.curves]
    return found


def draw(asked: Sequence[dict[str, Any]]) -> None:
    from retrain.analysis.charts import line_chart, write_chart

    for picture in asked:
        stem, conditions = Path(picture.pop("stem")), picture.pop("conditions")
        curves = [Curve(**curve) for curve in picture.pop("curves")]
        write_chart(line_chart(curves, conditions, **picture), stem)


if __name__ == "__main__":
    draw(json.load(sys.stdin))
