"""What servers say over HTTP."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx

_SHOWN = 300


def said(response: httpx.Response) -> str:
    """Status and the server's own words."""
    text = response.text.strip()
    with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError):
        body = response.json()
        told = body.get("error", body)
        text = str(told["message"] if "message" in told else told["error_message"])
    phrase = f"{response.status_code} {response.reason_phrase}".strip()
    shown = text if len(text) <= _SHOWN else text[:_SHOWN] + " …"
    return f"{phrase}: {shown}" if shown else phrase


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The header of this name: seconds, or a date."""
    text = headers.get("retry-after", "").strip()
    if not text:
        return None
    with contextlib.suppress(ValueError):
        return max(0.0, float(text))
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    return None
