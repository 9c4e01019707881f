"""The embedded model's tokenizer and chat template without transformers, as `ChatCodec` uses
them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from retrain.models.tiny import EMBEDDED_PATH
from retrain.types import Message


class TinyTokenizer:
    """What `AutoTokenizer` makes of a plain folder, as far as `ChatCodec` asks for it."""

    def __init__(self, folder: Path = EMBEDDED_PATH) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        added = self._tokenizer.get_added_tokens_decoder()
        self.all_special_ids = [index for index, token in added.items() if token.special]
        self.eos_token_id = self._tokenizer.token_to_id(config["eos_token"])
        self.chat_template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _raise_exception
        self._template = environment.from_string(self.chat_template)

    def apply_chat_template(
        self, messages: Sequence[Message], **arguments: Any
    ) -> dict[str, list[int]]:
        """`input_ids` of the messages; arguments: variables of the template, and what the method of
        transformers takes for its output, which here has one form only."""
        text = self._template.render(messages=messages, **arguments)
        return {"input_ids": self._tokenizer.encode(text, add_special_tokens=False).ids}

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False, **_: Any) -> str:
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text

    def batch_decode(
        self, rows: list[list[int]], *, skip_special_tokens: bool = False, **_: Any
    ) -> list[str]:
        return [self.decode(row, skip_special_tokens=skip_special_tokens) for row in rows]


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)
