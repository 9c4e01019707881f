"""What a check of a config finds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from retrain.config.messages import near, show


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong with, or odd about, a combination of keys.

    also:    other keys it depends on; when one of those is in error itself, nothing is said.
    is_idle: the key is written and nothing reads it.
    """

    key: str
    message: str
    also: tuple[str, ...] = ()
    is_error: bool = True
    is_idle: bool = False


def written_key(key: str) -> str:
    """The key of a table in which `key` stands: `reward.components[2].weight` is written in
    `reward.components`."""
    return re.sub(r"\[\d+\].*", "", key)


def idle(key: str, reason: str, *also: str, is_error: bool = False) -> Finding:
    message = f"is written, but nothing reads it: {reason}"
    return Finding(key, message, also, is_error=is_error, is_idle=True)


def no_device(device: str) -> str:
    """What is wrong with the name of a device; empty when it is one."""
    if re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        return ""
    numbered = re.fullmatch(r"(?:cuda|gpu)?:?(\d+)", device)
    hint = [f"cuda:{numbered[1]}"] if numbered else ["cuda"] * (device == "gpu")
    hint = hint or near(device, ("auto", "cpu", "cuda"))
    remedy = f"; did you mean {hint[0]}?" if hint else ""
    return f'{show(device)} is no device; "auto", "cpu", "cuda", or "cuda:1" is wanted{remedy}'


def no_url(url: str) -> str:
    """What is wrong with the address of a service; empty when nothing is."""
    if not url:
        return ""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        good = False
    if not good:
        return f'{show(url)} is no address; it looks like "https://host/path"'
    if parts.username or parts.password:
        return "must not hold a name or a password: it is written into every run's config"
    return ""
