"""Completions from the service: a request a row, since each row has a seed of its own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

import numpy as np
import tinker
from numpy.typing import NDArray

from retrain.errors import InputError
from retrain.policies.policy import Codec
from retrain.policies.tinker.retry import CallLostError, RefusedError, ServiceLostError
from retrain.policies.tinker.service import Service
from retrain.types import Completion, IntArray, OnDone, SamplingParams

_log = logging.getLogger("retrain")


def sample_rows(
    service: Service,
    sampler: tinker.SamplingClient,
    codec: Codec,
    prompts: Sequence[IntArray],
    keys: NDArray[np.uint64],
    sampling: SamplingParams,
    context: int,
    in_flight: int,
    on_done: OnDone | None,
) -> list[list[Completion | None]]:
    """As `Policy.sample`. in_flight: requests at once. None stands for a completion that the
    service failed to give; raises ServiceLostError when it gave none."""
    room = [context - len(prompt) for prompt in prompts]
    if min(room) < 1:
        longest = max(len(prompt) for prompt in prompts)
        raise InputError(
            f"a prompt has {longest} tokens, and the model's context holds {context}; "
            "leave out longer problems or take a model with a longer context"
        )
    inputs = [tinker.ModelInput.from_ints(prompt.tolist()) for prompt in prompts]

    def one(prompt: int, key: int) -> Completion:
        settings = tinker.SamplingParams(
            max_tokens=min(sampling.max_tokens, room[prompt]),
            seed=key,
            stop=list(codec.eos_ids),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
        )
        response = service.safely(
            "a completion", lambda: sampler.sample(inputs[prompt], 1, settings), key
        )
        return _completion(response.sequences[0], codec)

    found: list[list[Completion | None]] = [[None] * keys.shape[1] for _ in prompts]
    lost: list[CallLostError] = []
    pool = ThreadPoolExecutor(max_workers=min(in_flight, keys.size))
    try:
        rows = {
            pool.submit(one, prompt, int(key)): (prompt, completion)
            for (prompt, completion), key in np.ndenumerate(keys)
        }
        for row in as_completed(rows):
            prompt, completion = rows[row]
            try:
                result = row.result()
            except CallLostError as error:
                lost.append(error)
                continue
            found[prompt][completion] = result
            if on_done is not None:
                on_done(prompt, completion, result)
    except BaseException:
        service.abandon()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
    if len(lost) == keys.size:
        raise ServiceLostError(f"all {len(lost)} completions were lost: {lost[0]}")
    if lost:
        _log.warning("%d of %d completions were lost: %s", len(lost), keys.size, lost[0])
    return found


def _completion(sequence: tinker.SampledSequence, codec: Codec) -> Completion:
    if sequence.tokens_np is None or sequence.logprobs_np is None:
        raise RefusedError("the service gave a completion without tokens or log-probabilities")
    token_ids = sequence.tokens_np.astype(np.int64)
    return Completion(
        token_ids=token_ids,
        logprobs=sequence.logprobs_np.astype(np.float64),
        text=codec.decode(token_ids),
        stop_reason="stop" if sequence.stop_reason == "stop" else "length",
    )
