"""The local policy, with completions from a server that loads its adapter."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrain import answers, seeding
from retrain.config.schema import LossConfig, RunConfig
from retrain.errors import InputError
from retrain.models.codec import ChatCodec
from retrain.policies.backends import capabilities_of
from retrain.policies.inference.adapters import Adapters
from retrain.policies.inference.dialect import Dialect, dialect_of
from retrain.policies.inference.endpoint import Endpoint
from retrain.policies.inference.sampling import Sampler
from retrain.policies.inference.server import InferenceServer, Patience
from retrain.policies.local.policy import LocalPolicy
from retrain.policies.lost import GoneError
from retrain.policies.policy import OptimizerStep, UpdateStats
from retrain.types import (
    Completion,
    FloatArray,
    IntArray,
    OnDone,
    SamplingParams,
    TrainBatch,
    pad_mask,
    pad_rows,
)

_log = logging.getLogger("retrain")

ADAPTERS_FOLDER = "adapters"
_PROBES = 4
_PROBE_TOKENS = 64
_NEGLIGIBLE = 1e-3
"""Nats a token, in which a temperature cannot be told from rounding."""


@contextmanager
def opened(
    local: LocalPolicy,
    config: RunConfig,
    name: str,
    run_dir: Path,
    endpoint: Endpoint | None = None,
    patience: Patience | None = None,
) -> Iterator[InferencePolicy]:
    """The policy of the run `name`; its adapters are unloaded when the block ends.

    endpoint: the server, if not the one that the config names.
    """
    inference = config.inference
    endpoint = endpoint or Endpoint.of(inference)
    folder = Path(inference.adapter_dir) if inference.adapter_dir else run_dir / ADAPTERS_FOLDER
    with InferenceServer(endpoint, inference, patience) as server:
        models = _models(server)
        dialect = dialect_of(models)
        adapters = Adapters(server, dialect, folder, name, run_dir)
        adapters.clear([str(model.get("id")) for model in models])
        lengths = [model.get("max_model_len") for model in models]
        known = [length - dialect.reserved for length in lengths if isinstance(length, int)]
        context = min([local.context, *known])
        policy = InferencePolicy(local, server, dialect, adapters, config, context)
        try:
            yield policy
        finally:
            adapters.close()


def _models(server: InferenceServer) -> list[dict[str, Any]]:
    """The server's list of its models. Raises InputError for what is no such server."""
    problem = f"inference.url: {server.url} is no server with the OpenAI API"
    try:
        response = server.wait(server.ask("a list of models", "/v1/models"))
        return [dict(entry) for entry in answers.parsed(response)["data"]]
    except GoneError as error:
        raise InputError(f"{problem}: {error}") from error
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(f"{problem}: its list of models cannot be read") from error


class InferencePolicy:
    """Samples at the server, learns here. After an update, the adapter is pushed before the next
    completion is asked for, and the server's log-probabilities are compared with the trainer's."""

    def __init__(
        self,
        local: LocalPolicy,
        server: InferenceServer,
        dialect: Dialect,
        adapters: Adapters,
        config: RunConfig,
        context: int,
    ) -> None:
        self.capabilities = capabilities_of(config)
        self.context = context
        self._local = local
        self._adapters = adapters
        self._url = server.url
        self._dialect = dialect
        self._config = config
        self._sampler = Sampler(server, dialect, adapters, local.codec, context)
        self._pushed = False
        self._started = False
        self._warned = False
        self._mismatch: float | None = None

    @property
    def codec(self) -> ChatCodec:
        return self._local.codec

    @property
    def device(self) -> str:
        return self._local.device

    @property
    def measured(self) -> Mapping[str, float]:
        return {} if self._mismatch is None else {"sampler_mismatch": self._mismatch}

    def sample(
        self,
        prompts: Sequence[IntArray],
        keys: NDArray[np.uint64],
        sampling: SamplingParams,
        on_done: OnDone | None = None,
    ) -> list[list[Completion | None]]:
        if not self._pushed:
            self._adapters.publish(self._local.export, self._local.updates)
            self._pushed = True
            self._check(prompts)
        return self._sampler.sample(prompts, keys, sampling, on_done)

    def _check(self, prompts: Sequence[IntArray]) -> None:
        """Compare the server's log-probabilities with the trainer's. Raises InputError when they
        are too far apart to begin with."""
        limit = self._config.inference.max_mismatch
        probes = self._probes(prompts[:_PROBES])
        self._mismatch = found = mismatch(self._local, probes)
        if not self._started:
            self._require_temperature(probes, found)
        if found <= limit:
            self._started = True
            return
        far = (
            f"the log-probabilities of the server at {self._url} and of the trainer differ by "
            f"{found:.3g} nats a token in the mean, and [inference] max_mismatch is {limit:g}"
        )
        if self._started:
            if not self._warned:
                _log.warning("%s; the adapter that it samples from may be a stale one", far)
            self._warned = True
            return
        likely = "another temperature, model, chat template or dtype, or a stale adapter in place "
        likely += "of the one that was pushed"
        raise InputError(f"inference.max_mismatch: {far}; likely causes: {likely}")

    def _require_temperature(self, probes: TrainBatch, found: float) -> None:
        """Raise InputError when the log-probabilities are those of temperature 1, and others are
        wanted. found: the mismatch, which may be within the limit all the same."""
        if probes.temperature == 1.0 or found < _NEGLIGIBLE:
            return
        plain = mismatch(self._local, replace(probes, temperature=1.0))
        if 2 * plain < found:
            raise InputError(
                f"inference.engine: the log-probabilities of the server at {self._url} are those "
                f"of temperature 1, and [training] temperature is {probes.temperature:g} (they "
                f"differ from the trainer's by {plain:.2g} nats a token in the mean at 1, and by "
                f"{found:.2g}); {self._dialect.at_temperature}"
            )

    def _probes(self, prompts: Sequence[IntArray]) -> TrainBatch:
        """A few short completions, at the temperature of training."""
        training = self._config.training
        names = (training.seed, "sampler check", self._local.updates)
        keys = [[seeding.key(*names, index)] for index in range(len(prompts))]
        sampling = SamplingParams(
            min(training.max_tokens, _PROBE_TOKENS), temperature=training.temperature
        )
        sampled = self._sampler.sample(prompts, np.array(keys, dtype=np.uint64), sampling)
        rows = [(index, row) for index, (row,) in enumerate(sampled) if row is not None]
        mask = pad_mask([row.num_tokens for _, row in rows])
        nothing = np.zeros(mask.shape)
        return TrainBatch(
            prompts=prompts,
            prompt_index=np.array([index for index, _ in rows], dtype=np.int64),
            token_ids=pad_rows([row.token_ids for _, row in rows], np.int64),
            mask=mask,
            logprobs=pad_rows([row.logprobs for _, row in rows]),
            credit=nothing,
            weight=nothing,
            temperature=training.temperature,
        )

    def update(self, batch: TrainBatch, loss: LossConfig, optimizer: OptimizerStep) -> UpdateStats:
        stats = self._local.update(batch, loss, optimizer)
        self._pushed = self._pushed and not stats.stepped
        return stats

    def completion_logprobs(self, batch: TrainBatch) -> FloatArray:
        """As `ScoresTokens.completion_logprobs`."""
        return self._local.completion_logprobs(batch)

    def save(self, folder: Path) -> None:
        self._local.save(folder)

    def load(self, folder: Path) -> None:
        self._local.load(folder)
        self._pushed = False

    def export(self, folder: Path) -> None:
        self._local.export(folder)


def mismatch(trainer: LocalPolicy, batch: TrainBatch) -> float:
    """Mean |log sampler - log trainer| over the batch's tokens."""
    difference = np.abs(batch.logprobs - trainer.completion_logprobs(batch))
    return float(difference[batch.mask].mean())
