"""A row's prompt as text or as chat messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retrain.tasks.reading import BadRowError, load_json
from retrain.types import Message

TOO_LONG = 1_000_000
"""Characters of a prompt that no model's context holds; counting the tokens of text takes about 150
bytes a character."""


class TooLongError(BadRowError):
    """A prompt of more than `TOO_LONG` characters."""

    kind = f"has a prompt of more than {TOO_LONG:,} characters"

    def __init__(self, text: str) -> None:
        super().__init__(self.kind, text)


def read_prompt(value: Any, name: str) -> tuple[str | tuple[Message, ...], str | None]:
    """(the prompt, what the assistant answers to it where the conversation goes that far).

    value: text, a list of messages, or such a list as JSON text. name: its field, for messages.
    Raises BadRowError for what is none of these.
    """
    if value is None or value == [] or (isinstance(value, str) and not value.strip()):
        raise BadRowError("has no prompt", f"{_wanted(name)}, not {short(value)}")
    if isinstance(value, str):
        value = _from_json(value)
    if isinstance(value, str):
        _check_length(len(value), name)
        return value, None
    if not isinstance(value, list):
        raise BadRowError("has a prompt of another type", f"{_wanted(name)}, not {short(value)}")
    messages = [_message(message, name) for message in value]
    _check_length(sum(len(message["content"]) for message in messages), name)
    answer = messages[-1]["content"] if messages[-1]["role"] == "assistant" else None
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages:
        text = f"`{name}` holds nothing but messages of the assistant, which the model is to write"
        raise BadRowError("has no prompt", text)
    return tuple(messages), answer


def short(value: Any) -> str:
    """What a message shows of a value."""
    text = repr(value[:100] if isinstance(value, str) else value)
    return text if len(text) <= 100 else text[:97] + "..."


def _wanted(name: str) -> str:
    return f"`{name}` must be text or a list of chat messages"


def _check_length(count: int, name: str) -> None:
    if count > TOO_LONG:
        raise TooLongError(f"`{name}` is {count:,} characters long; {TOO_LONG:,} are the most")


def _from_json(text: str) -> Any:
    """The messages that `text` is JSON of; else the text."""
    if not text.lstrip().startswith("["):
        return text
    try:
        value = load_json(text)
    except BadRowError as bad:
        if bad.kind == "is no JSON":
            return text
        raise
    is_chat = isinstance(value, list) and value and all(map(_is_message, value))
    return value if is_chat else text


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and {"role", "content"} <= value.keys()


def _message(message: Any, name: str) -> Message:
    if isinstance(message, Mapping):
        # A column of structs has every field in every message.
        message = {key: value for key, value in message.items() if value is not None}
    if (
        not isinstance(message, Mapping)
        or set(message) != {"role", "content"}
        or not all(isinstance(value, str) for value in message.values())
    ):
        raise BadRowError(
            "has a message that cannot be used",
            f'a message of `{name}` must be {{"role": "…", "content": "…"}}, not {short(message)}',
        )
    return {"role": message["role"], "content": message["content"]}
