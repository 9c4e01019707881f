"""One section of a report page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page that stands under a heading of its own."""

    id: str
    """Its anchor, unique in the page."""
    title: str
    """Plain text."""
    html: str
    """Escaped and complete; without inline styles and `on*` attributes, which the page forbids."""
    data: Any = None
    """JSON for the script, found in `<script type="application/json" id="data-ID">`."""
