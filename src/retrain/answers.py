"""What servers say over HTTP, as much and as long as one is listened to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

MOST_BYTES = 64 << 20
"""Of one answer: more than the log-probabilities of 100,000 tokens take."""
HIDDEN = "[key]"
_SHOWN = 300


async def ask(
    client: httpx.AsyncClient, path: str, body: object = None, *, seconds: float, key: str = ""
) -> httpx.Response:
    """The whole answer to a request: POST with a body, else GET.

    seconds: for the request as a whole. httpx limits each read, and a server that sends a byte now
             and then would be listened to for ever.
    key:     what the request was signed with; hidden wherever the server repeats it.
    Raises httpx.TransportError, also for answers that are late, compressed or too long.
    """
    import httpx

    content = None if body is None else json.dumps(body).encode("ascii")
    # What is compressed may grow a thousandfold in one piece.
    headers = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
    method, parts, size = "GET" if content is None else "POST", [], 0
    try:
        async with (
            asyncio.timeout(seconds),
            client.stream(method, path, content=content, headers=headers) as response,
        ):
            coding = response.headers.pop("content-encoding", "identity")
            if coding != "identity":
                message = f"the answer is compressed ({coding}), and nobody asked for that"
                raise httpx.RemoteProtocolError(message)
            async for part in response.aiter_raw():
                parts.append(part)
                size += len(part)
                if size > MOST_BYTES:
                    message = f"the answer is longer than {MOST_BYTES >> 20} MiB"
                    raise httpx.RemoteProtocolError(message)
    except TimeoutError:
        raise httpx.ReadTimeout(f"no whole answer within {seconds:g} s") from None
    said, reason = b"".join(parts), response.reason_phrase.encode("ascii", "replace")
    if key:
        said, reason = (text.replace(key.encode(), HIDDEN.encode()) for text in (said, reason))
    return httpx.Response(
        response.status_code,
        headers=response.headers,
        content=said,
        extensions={"reason_phrase": reason},
        request=response.request,
    )


def parsed(response: httpx.Response) -> Any:
    """The answer's JSON. Raises ValueError when it is none."""
    try:
        return response.json()
    except RecursionError:
        raise ValueError("JSON that is nested too deep") from None


def without_key(text: str, variable: str) -> str:
    """`text` without the key that this environment variable holds."""
    key = os.environ.get(variable, "").strip()
    return text.replace(key, HIDDEN) if key else text


def said(response: httpx.Response) -> str:
    """Status and the server's own words."""
    text = response.text.strip()
    with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError):
        body = parsed(response)
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
