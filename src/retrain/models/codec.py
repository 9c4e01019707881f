"""Text <-> tokens, through the tokenizer and chat template of a Hugging Face model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from retrain.config.schema import ModelConfig
from retrain.errors import InputError
from retrain.models.folder import check_ids, on_day, unknown_template
from retrain.types import IntArray, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from retrain.models.tiny.codec import TinyTokenizer


# Tokens whose shares of the text are found together, and their neighbours on each side.
_BLOCK, _MARGIN = 64, 8


class ChatCodec:
    """Encodes problems as chat prompts and decodes completions.

    eos_ids: every token id that ends a completion, from the tokenizer and the model's
    generation config.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | TinyTokenizer,
        eos_ids: tuple[int, ...],
        template_args: Mapping[str, Any] | None = None,
        vocabulary: int | None = None,
        template: str = "default",
        day: str = "",
    ) -> None:
        """
        template_args: further variables of the chat template, e.g. `enable_thinking`.
        vocabulary:    how many tokens the model has embeddings of; None when that is not known.
        template:      its name, where the tokenizer has several.
        day:           the date that a template which asks is told (ISO); empty for today.
        """
        eos_ids = tuple(end for end in eos_ids if vocabulary is None or end < vocabulary)
        if not eos_ids:
            raise InputError(
                "model.model: neither the tokenizer nor generation_config.json names an end "
                "token (eos_token_id), so completions could never stop; add one"
            )
        text: Any = getattr(tokenizer, "chat_template", None)
        if isinstance(text, dict):
            if template not in text:
                raise InputError(unknown_template("the tokenizer", template, text))
            text = text[template]
        if text is None:
            raise InputError(
                "model.model: the tokenizer has no chat template; add chat_template.jinja to the "
                "model folder, or use the model's instruction-tuned version"
            )
        self.tokenizer = tokenizer
        self.eos_ids = eos_ids
        self._template_args = {"chat_template": on_day(text, day), **(template_args or {})}
        self._vocabulary = vocabulary
        self._special = frozenset(tokenizer.all_special_ids)
        self._piece_cache: dict[int, str] = {}

    @classmethod
    def of(
        cls,
        tokenizer: PreTrainedTokenizerBase | TinyTokenizer,
        ends: Iterable[int],
        model: ModelConfig,
        vocabulary: int | None = None,
    ) -> ChatCodec:
        """As `[model]` says."""
        args, name = model.chat_template_args, model.chat_template
        day = model.chat_template_date
        return cls(tokenizer, tuple(sorted(ends)), args, vocabulary, name, day)

    def encode(self, problem: Problem) -> IntArray:
        """The prompt's token ids (tokens,), ending where the assistant begins. Raises InputError
        when the template refuses the messages, as some do with a system message."""
        messages: Any = problem.messages
        try:
            encoded: Any = self.tokenizer.apply_chat_template(
                messages,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                **self._template_args,
            )
        except Exception as error:
            # A template is a program: it may fail in any way.
            roles = ", ".join(message["role"] for message in messages)
            raise InputError(
                f"the model's chat template refuses the prompt of problem {problem.id} (messages "
                f"of {roles}): {error}; change [data].system_prompt or the data"
            ) from error
        ids = encoded["input_ids"]
        check_ids(ids, self._vocabulary, lambda token: str(self.tokenizer.decode([token])))
        return np.asarray(ids, dtype=np.int64)

    @cached_property
    def opens_thinking(self) -> bool:
        """Whether prompts end in `<think>`, so that completions begin with thinking."""
        try:
            prompt = self.encode(Problem("probe", "?", ""))
        except InputError:
            return False
        end = str(self.tokenizer.decode(prompt[-16:].tolist(), skip_special_tokens=False))
        return end.rstrip().endswith("<think>")

    def decode(self, token_ids: IntArray) -> str:
        """Text without special tokens."""
        return str(
            self.tokenizer.decode(
                token_ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    def decode_batch(self, rows: list[IntArray]) -> list[str]:
        """`decode` of many rows at once."""
        if not rows:
            # Of nothing, tokenizers make one empty text.
            return []
        decoded: list[str] = self.tokenizer.batch_decode(
            [row.tolist() for row in rows],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        return decoded

    def pieces(self, token_ids: IntArray) -> list[str]:
        """Each token's share of `decode(token_ids)`; joined, they are that text.

        Tokens decoded alone usually add up. Where they do not (a character split over several
        byte tokens, a tokenizer that trims leading spaces), shares are the growth of the decoded
        prefix, and a token that completes a character gets all of it. That is done a few tokens at
        a time, with neighbours on both sides that settle what is split or trimmed at the edges:
        over a whole completion it would take time that grows with the square of its length.
        """
        pieces = [self._piece(token) for token in token_ids.tolist()]
        text = self.decode(token_ids)
        if "".join(pieces) == text:
            return pieces
        shares: list[str] = []
        for start in range(0, len(token_ids), _BLOCK):
            first, end = max(0, start - _MARGIN), min(start + _BLOCK, len(token_ids))
            found = self._growth(token_ids[first : end + _MARGIN])
            shares += found[start - first : end - first]
        return shares if "".join(shares) == text else self._growth(token_ids)

    def _growth(self, token_ids: IntArray) -> list[str]:
        """How much each token adds to the text of those before it."""
        shares: list[str] = []
        known, text = "", self.decode(token_ids)
        for end in range(1, len(token_ids) + 1):
            prefix = self.decode(token_ids[:end])
            stable = prefix.rstrip("\ufffd") if end < len(token_ids) else text
            if not stable.startswith(known):
                stable = known
            shares.append(stable[len(known) :])
            known = stable
        return shares

    def _piece(self, token: int) -> str:
        piece = self._piece_cache.get(token)
        if piece is None:
            piece = "" if token in self._special else str(self.tokenizer.decode([token]))
            self._piece_cache[token] = piece
        return piece
