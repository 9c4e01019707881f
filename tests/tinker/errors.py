"""How the stand-in says no."""

from __future__ import annotations

from collections.abc import Mapping


class ApiError(Exception):
    """A request is answered by another status than 200."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers or {}


class UserError(Exception):
    """A request that was taken on cannot be carried out, and asking again would not help."""
