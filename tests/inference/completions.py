"""POST /v1/completions: what can be asked, and how it is answered, as vLLM does."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import numpy as np

from retrain import seeding
from retrain.types import Completion, IntArray
from tests.inference.decoding import Settings
from tests.loopback.server import Answer

if TYPE_CHECKING:
    from retrain.policies.local.base import BaseModel

MAX_LOGPROBS = 20
"""vLLM's `--max-logprobs`."""

SERVED = frozenset(
    {
        *("model", "prompt", "max_tokens", "temperature", "top_p", "seed", "n", "logprobs"),
        *("return_token_ids", "return_tokens_as_token_ids", "stop_token_ids", "user"),
        *("include_stop_str_in_output", "skip_special_tokens", "request_id"),
    }
)
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "stream": (False,),
    "echo": (False,),
    "stop": ([],),
    "top_k": (0, -1),
    "min_p": (0.0,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "repetition_penalty": (1.0,),
    "presence_penalty": (0.0,),
    "frequency_penalty": (0.0,),
    "add_special_tokens": (True, False),
    "spaces_between_special_tokens": (True, False),
}
"""What else vLLM knows, with the values at which it changes nothing here."""


class Refused(Exception):  # noqa: N818
    """A request is answered with an error."""

    def __init__(self, status: int, message: str, kind: str = "", param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind or HTTPStatus(status).phrase.replace(" ", "") + "Error"
        self.param = param

    def answer(self, headers: Mapping[str, str] | None = None) -> Answer:
        error = {"message": str(self), "type": self.kind, "param": self.param, "code": self.status}
        return Answer.json({"error": error}, self.status, headers)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that can be carried out: `prompts` and `keys` have an entry a completion."""

    prompts: list[IntArray]
    keys: list[int]
    settings: Settings
    with_logprobs: bool
    with_ids: bool
    tokens_as_ids: bool

    @classmethod
    def of(cls, body: Mapping[str, Any], base: BaseModel, raw: bool, seed: int) -> Asked:
        """raw: see `Settings`; seed: where the request names none. Raises Refused."""
        for name, value in body.items():
            idle = name in NEUTRAL and (value is None or value in NEUTRAL[name])
            if name not in SERVED and not idle:
                raise Refused(400, f"{name} = {value!r} is not served by this test server")
        seed = seed if body.get("seed") is None else body["seed"]
        if not -(2**63) <= seed < 2**63:
            raise Refused(400, f"seed = {seed} is not a signed 64-bit integer", param="seed")
        logprobs = body.get("logprobs")
        if logprobs is not None and not 0 <= logprobs <= MAX_LOGPROBS:
            raise Refused(400, f"logprobs = {logprobs} is not in 0..{MAX_LOGPROBS}", "", "logprobs")
        ends = [*base.codec.eos_ids, *_or(body.get("stop_token_ids"), [])]
        settings = Settings(
            max_tokens=_or(body.get("max_tokens"), 16),
            temperature=float(_or(body.get("temperature"), 1.0)),
            top_p=float(_or(body.get("top_p"), 1.0)),
            end_ids=tuple(dict.fromkeys(ends)),
            raw=raw,
            with_special=not _or(body.get("skip_special_tokens"), True),
            with_end=bool(body.get("include_stop_str_in_output")),
        )
        if settings.max_tokens < 1 or settings.temperature < 0 or not 0 < settings.top_p <= 1:
            raise Refused(400, "max_tokens, temperature or top_p is out of its range")
        prompts = _prompts(body.get("prompt"), base, settings.max_tokens)
        times = _or(body.get("n"), 1)
        return cls(
            prompts=[prompt for prompt in prompts for _ in range(times)],
            # A further completion of a prompt has the next seed; another prompt has the same ones.
            keys=[(seed + i) % 2**64 for _ in prompts for i in range(times)],
            settings=settings,
            with_logprobs=logprobs is not None,
            with_ids=bool(body.get("return_token_ids")),
            tokens_as_ids=bool(body.get("return_tokens_as_token_ids")),
        )

    def answer(
        self, model: str, completions: Sequence[Completion], eos_id: int, pieces: Any
    ) -> dict[str, Any]:
        """pieces: the tokens' texts, of (tokens,) ids."""
        used = [sum(map(len, self.prompts)), sum(c.num_tokens for c in completions)]
        return {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": 0,
            "model": model,
            "choices": [
                self._choice(index, completion, eos_id, pieces)
                for index, completion in enumerate(completions)
            ],
            "usage": {
                "prompt_tokens": used[0],
                "completion_tokens": used[1],
                "total_tokens": sum(used),
            },
        }

    def _choice(self, index: int, completion: Completion, eos_id: int, pieces: Any) -> Any:
        ids = completion.token_ids.tolist()
        stopped = completion.stop_reason == "stop"
        logprobs = None
        if self.with_logprobs:
            tokens = [f"token_id:{i}" for i in ids] if self.tokens_as_ids else pieces(ids)
            values = completion.logprobs.tolist()
            starts = np.cumsum([0, *map(len, tokens[:-1])]).tolist()
            logprobs = {
                "text_offset": starts[: len(tokens)],
                "token_logprobs": values,
                "tokens": tokens,
                "top_logprobs": [{t: v} for t, v in zip(tokens, values, strict=True)],
            }
        return {
            "index": index,
            "text": completion.text,
            "logprobs": logprobs,
            "finish_reason": completion.stop_reason,
            "stop_reason": ids[-1] if stopped and ids[-1] != eos_id else None,
            "token_ids": ids if self.with_ids else None,
            "prompt_logprobs": None,
            "prompt_token_ids": self.prompts[index].tolist() if self.with_ids else None,
        }


def noisy(completions: Sequence[Completion], keys: Sequence[int], deviation: float) -> Any:
    """The completions with normal noise on their log-probabilities."""
    return [
        replace(
            completion,
            logprobs=completion.logprobs
            + seeding.generator(key, "noise").normal(0, deviation, completion.num_tokens),
        )
        for completion, key in zip(completions, keys, strict=True)
    ]


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _prompts(prompt: Any, base: BaseModel, max_tokens: int) -> list[IntArray]:
    several = isinstance(prompt, list) and prompt and isinstance(prompt[0], list)
    rows = prompt if several else [prompt]
    found = []
    vocabulary = int(base.module.config.get_text_config().vocab_size)
    for row in rows:
        if not isinstance(row, list) or not row or not all(type(i) is int for i in row):
            raise Refused(400, "this test server takes prompts of token ids alone", "", "prompt")
        if not all(0 <= index < vocabulary for index in row):
            raise Refused(400, f"Token id {max(row)} is out of vocabulary", param="prompt")
        if len(row) + max_tokens > base.context:
            message = (
                f"This model's maximum context length is {base.context} tokens. However, you "
                f"requested {max_tokens} output tokens and your prompt contains {len(row)} input "
                "tokens. Please reduce the length of the input prompt or the number of requested "
                "output tokens."
            )
            raise Refused(400, message)
        found.append(np.array(row, dtype=np.int64))
    return found
