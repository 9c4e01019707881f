"""What must be there before the service can be asked: the SDK and a key. Imports neither."""

from __future__ import annotations

import importlib.util
import os

from retrain.errors import InputError

KEY_VARIABLE = "TINKER_API_KEY"
_KEY_BEGINNING = "tml-"


def access_problem() -> str:
    """What is missing, and the remedy; empty when nothing is. Never shows the key."""
    if importlib.util.find_spec("tinker") is None:
        return (
            '"tinker" needs the package tinker, which is not installed; run: '
            'pip install "retrain[tinker]"'
        )
    key = os.environ.get(KEY_VARIABLE, "")
    if not key:
        return f'"tinker" needs a key: set the environment variable {KEY_VARIABLE}'
    if not key.startswith(_KEY_BEGINNING):
        return f"the environment variable {KEY_VARIABLE} holds no key: one begins with tml-"
    return ""


def require_access() -> None:
    """Raises InputError when the service cannot be asked."""
    if problem := access_problem():
        raise InputError(f"backend.backend: {problem}")
