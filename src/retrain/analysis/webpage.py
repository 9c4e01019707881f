"""What makes a page whole in itself and inert, whatever text it shows.

A content security policy allows the page's own style and script by their hashes and nothing else:
what a model wrote, or somebody named a condition, cannot run, load or send anything, even were it
not escaped.
"""

from __future__ import annotations

import base64
import hashlib
import json
from html import escape
from typing import Any

from retrain.analysis.samples.look import one_line


def policy(style: str, script: str, *, pictures: bool = False) -> str:
    """The page's content security policy; `pictures`: that stand in the page as `data:` URLs."""
    images = "img-src data:; " if pictures else ""
    return (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        f"{images}base-uri 'none'; form-action 'none'"
    )


def safe(value: str) -> str:
    """A name or a message, on one line, as escaped HTML."""
    return escape(one_line(value))


def json_element(name: str, value: Any) -> str:
    """Data for the page's script, as an element with the id `name`.

    Nothing in it can end the element: `<` is written as an escape. NaN and infinity, which JSON
    lacks, raise ValueError.
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    text = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return f'<script type="application/json" id="{escape(name)}">{text}</script>'


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
