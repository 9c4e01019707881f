"""Completions from an inference server: a request a row, since each row has a seed of its own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import as_completed
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from retrain import answers
from retrain.errors import InputError
from retrain.policies.inference.adapters import Adapters
from retrain.policies.inference.dialect import Dialect
from retrain.policies.inference.server import InferenceServer
from retrain.policies.lost import CallLostError, GoneError, RefusedError, ServiceLostError
from retrain.policies.policy import Codec
from retrain.types import Completion, IntArray, OnDone, SamplingParams

_log = logging.getLogger("retrain")

_COMPLETIONS = "/v1/completions"
# Servers that are started anew while one completion is decoded.
_LOADS = 3
_ENDS = frozenset({"stop", "length"})
_TOKEN_PREFIX = "token_id:"


class Sampler:
    """Asks the server for completions of the adapter that was pushed last."""

    def __init__(
        self,
        server: InferenceServer,
        dialect: Dialect,
        adapters: Adapters,
        codec: Codec,
        context: int,
    ) -> None:
        self._server = server
        self._dialect = dialect
        self._adapters = adapters
        self._codec = codec
        self._context = context

    def sample(
        self,
        prompts: Sequence[IntArray],
        keys: NDArray[np.uint64],
        sampling: SamplingParams,
        on_done: OnDone | None = None,
    ) -> list[list[Completion | None]]:
        """As `Policy.sample`; raises ServiceLostError when no completion was to be had."""
        longest = max(len(prompt) for prompt in prompts)
        if longest >= self._context:
            raise InputError(
                f"a prompt has {longest} tokens, and the context holds {self._context}; "
                "leave out longer problems or take a longer context"
            )
        # Decoded here, in one thread: not every tokenizer may be used by several.
        rows = {
            self._server.submit(self._one(prompts[prompt], int(key), sampling)): (prompt, row)
            for (prompt, row), key in np.ndenumerate(keys)
        }
        found: list[list[Completion | None]] = [[None] * keys.shape[1] for _ in prompts]
        lost: list[CallLostError] = []
        try:
            for future in as_completed(rows):
                prompt, row = rows[future]
                try:
                    completion = completion_of(future.result(), self._codec, self._dialect)
                except CallLostError as error:
                    lost.append(error)
                    continue
                found[prompt][row] = completion
                if on_done is not None:
                    on_done(prompt, row, completion)
        except BaseException:
            for future in rows:
                future.cancel()
            raise
        if len(lost) == keys.size:
            raise ServiceLostError(f"all {len(lost)} completions were lost: {lost[0]}")
        if lost:
            _log.warning("%d of %d completions were lost: %s", len(lost), keys.size, lost[0])
        return found

    async def _one(self, prompt: IntArray, key: int, sampling: SamplingParams) -> httpx.Response:
        for _ in range(_LOADS):
            name, loads = self._adapters.current
            body = self._body(prompt, key, sampling) | self._dialect.addressed(name)
            try:
                return await self._server.ask("a completion", _COMPLETIONS, body, key)
            except (GoneError, RefusedError) as error:
                if not self._dialect.has_forgotten(error):
                    raise
                gone = error
                await self._adapters.load_again(loads)
        raise CallLostError(f"the server forgot the adapter {_LOADS} times: {gone}")

    def _body(self, prompt: IntArray, key: int, sampling: SamplingParams) -> dict[str, Any]:
        return {
            "prompt": prompt.tolist(),
            "max_tokens": min(sampling.max_tokens, self._context - len(prompt)),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            # A model's own generation settings must not come in.
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "seed": int(np.uint64(key).astype(np.int64)),
            "n": 1,
            "logprobs": 1,
            "return_token_ids": True,
            "stop_token_ids": list(self._codec.eos_ids),
            "skip_special_tokens": False,
        }


def completion_of(response: httpx.Response, codec: Codec, dialect: Dialect) -> Completion:
    """The completion in the server's answer. Raises RefusedError for an answer that lacks token
    ids, log-probabilities or the end token, CallLostError for one that was broken off."""
    try:
        (choice,) = answers.parsed(response)["choices"]
        logprobs = np.array(choice["logprobs"]["token_logprobs"], dtype=np.float64)
        token_ids = np.array(_token_ids(choice), dtype=np.int64)
        finish = str(choice["finish_reason"])
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise RefusedError(
            "inference.engine: the server gave a completion without the ids and log-probabilities "
            f"of its tokens ({type(error).__name__}: {error}); {dialect.tells_ids}"
        ) from error
    if finish not in _ENDS:
        raise CallLostError(f"the server broke a completion off ({finish})")
    if len(token_ids) != len(logprobs) or not len(token_ids) or not np.isfinite(logprobs).all():
        raise RefusedError(
            f"inference.engine: the server gave {len(token_ids)} tokens with {len(logprobs)} "
            "log-probabilities, or some that are not finite"
        )
    stopped = int(token_ids[-1]) in codec.eos_ids
    if finish == "stop" and not stopped:
        raise RefusedError(
            "inference.engine: the server ended a completion, but the end token is not in it; it "
            "must know the field stop_token_ids and leave the token in token_ids"
        )
    return Completion(
        token_ids=token_ids,
        # What is nearly certain may come out above 0 by its rounding.
        logprobs=np.minimum(logprobs, 0.0),
        text=codec.decode(token_ids),
        stop_reason="stop" if stopped else "length",
    )


def _token_ids(choice: dict[str, Any]) -> list[int]:
    ids = choice.get("token_ids")
    if ids is not None:
        return list(ids)
    return [int(token.removeprefix(_TOKEN_PREFIX)) for token in choice["logprobs"]["tokens"]]
