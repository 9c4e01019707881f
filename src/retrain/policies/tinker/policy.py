"""A LoRA adapter that lives at the service: samples, learns and is saved there."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tinker
import torch
from numpy.typing import NDArray
from tinker.lib.retry_handler import RetryConfig

from retrain.config.messages import did_you_mean
from retrain.config.schema import BackendConfig, LossConfig, RunConfig
from retrain.errors import InputError, RetrainError
from retrain.models.codec import ChatCodec
from retrain.policies.backends import BACKENDS
from retrain.policies.local.loss import LossRows, policy_loss, update_stats
from retrain.policies.policy import NonFiniteUpdateError, OptimizerStep, UpdateStats
from retrain.policies.throttle import Throttle
from retrain.policies.tinker.codec import load_codec
from retrain.policies.tinker.datum import completion_logprobs, data_of, loss_of
from retrain.policies.tinker.download import fetch, save_external
from retrain.policies.tinker.paths import SavedState, ServicePath, is_service_path
from retrain.policies.tinker.retry import Patience
from retrain.policies.tinker.sampling import sample_rows
from retrain.policies.tinker.service import Service
from retrain.types import Completion, IntArray, OnDone, SamplingParams, TrainBatch

_log = logging.getLogger("retrain")

FINAL_NAME = "final"
# A thread that waits costs little; what the service cannot take at once it queues.
_IN_FLIGHT = 256
# Tokens of context where the service does not tell.
_ENDLESS = 2**20
# As the local policy's optimizer.
_EPSILON = 1e-8


@contextmanager
def open_policy(
    config: RunConfig, place: BackendConfig, patience: Patience | None = None
) -> Iterator[TinkerPolicy]:
    """The policy of a run, in a session of its own that ends with the block."""
    folder = Path(place.throttle_dir) if place.throttle_dir else None
    throttle = Throttle(folder, place.max_concurrent)
    with Service(config.model.base_url, throttle, patience, config.training.seed) as service:
        in_flight = place.max_concurrent if folder else _IN_FLIGHT
        yield TinkerPolicy(service, config, in_flight)


class TinkerPolicy:
    """One training client of the service, and samplers made of its weights.

    A training client whose request has failed cannot go on: the fate of the request is unknown,
    and the service takes requests in the order of their numbers. Then the run does, from what was
    saved last.
    """

    capabilities = BACKENDS["tinker"]
    device = "tinker"

    def __init__(self, service: Service, config: RunConfig, in_flight: int) -> None:
        self._service = service
        self._model = config.model
        self._seed = config.training.seed
        self._in_flight = in_flight
        self._client: tinker.TrainingClient | None = None
        self._sampler: tinker.SamplingClient | None = None
        self._codec: ChatCodec | None = None
        self._updates = 0
        self.context = self._context()

    def _context(self) -> int:
        """Tokens that the model holds. Raises InputError for one that the service does not have."""
        name = self._model.model
        answer = self._service.safely(
            "a list of models", self._service.rest.get_server_capabilities
        )
        models = {model.model_name: model for model in answer.supported_models if model.model_name}
        if not models:
            return _ENDLESS
        if name not in models:
            hint = did_you_mean(name, list(models)) or f"; it has {', '.join(sorted(models))}"
            raise InputError(f"model.model: the service has no {name!r}{hint}")
        if models[name].trainable is False:
            raise InputError(f"model.model: the service does not train {name!r}")
        return models[name].max_context_length or _ENDLESS

    @property
    def measured(self) -> Mapping[str, float]:
        return {}

    @property
    def codec(self) -> ChatCodec:
        if self._codec is None:
            self._codec = load_codec(
                self._model, self._training().get_info().model_data.tokenizer_id
            )
        return self._codec

    def _training(self) -> tinker.TrainingClient:
        if self._client is None:
            model = self._model
            self._client = self._service.training_client(
                lambda: self._service.client.create_lora_training_client(
                    model.model, rank=model.lora_rank, seed=self._seed, train_unembed=False
                )
            )
        return self._client

    def sample(
        self,
        prompts: Sequence[IntArray],
        keys: NDArray[np.uint64],
        sampling: SamplingParams,
        on_done: OnDone | None = None,
    ) -> list[list[Completion | None]]:
        return sample_rows(
            *(self._service, self._current(), self.codec, prompts, keys, sampling),
            self.context,
            self._in_flight,
            on_done,
        )

    def _current(self) -> tinker.SamplingClient:
        """A sampler of the weights as they are."""
        if self._sampler is None:
            client = self._training()
            # `Service` repeats what is worth it, and ends it.
            once = RetryConfig(enable_retry_logic=False)
            self._sampler = self._service.once(
                "weights to sample from",
                lambda: client.save_weights_and_get_sampling_client(retry_config=once),
            )
        return self._sampler

    def update(self, batch: TrainBatch, loss: LossConfig, optimizer: OptimizerStep) -> UpdateStats:
        """As `Policy.update`, but that the service has taken the step already when it is its answer
        that is not finite. What goes to it is looked at before."""
        chosen = np.flatnonzero((batch.credit != 0).any(axis=1))
        if len(chosen) == 0:
            return UpdateStats(0.0, 0.0, False, None, None, None, None, None, None)
        rows = batch.rows(chosen)
        for what, values in (("credit", rows.credit * rows.weight), ("logprobs", rows.logprobs)):
            if not np.isfinite(values).all():
                raise NonFiniteUpdateError(f"the {what} of the batch is not finite")
        output, metrics = self._step(rows, loss, optimizer)
        _check_logprobs(output)
        logprobs = completion_logprobs(output.loss_fn_outputs, rows)
        part = policy_loss(
            LossRows(
                logprobs=torch.from_numpy(logprobs),
                old_logprobs=torch.from_numpy(rows.logprobs),
                credit=torch.from_numpy(rows.credit),
                mask=torch.from_numpy(rows.mask),
                weight=torch.from_numpy(rows.weight),
            ),
            loss,
        )
        total, grad_norm = float(part.loss), _grad_norm(metrics)
        for what, value in (("loss", total), ("gradient's norm", grad_norm)):
            if value is not None and not np.isfinite(value):
                raise NonFiniteUpdateError(f"the {what} is {value}")
        return update_stats([part], total, grad_norm, with_base=False)

    def _step(
        self, rows: TrainBatch, loss: LossConfig, optimizer: OptimizerStep
    ) -> tuple[tinker.ForwardBackwardOutput, dict[str, float]]:
        """Gradient and step. The step is submitted as soon as the gradient is, so that the service
        does both in one go; each takes a slot of its own."""
        client, data, (name, settings) = self._training(), data_of(rows), loss_of(loss)
        parameters = tinker.AdamParams(
            learning_rate=optimizer.lr,
            beta1=optimizer.betas[0],
            beta2=optimizer.betas[1],
            eps=_EPSILON,
            weight_decay=optimizer.weight_decay,
            grad_clip_norm=optimizer.grad_clip,
        )
        self._sampler = None
        self._updates += 1
        submitted = threading.Event()
        begun: list[tinker.APIFuture[tinker.ForwardBackwardOutput]] = []

        def gradient() -> tinker.APIFuture[tinker.ForwardBackwardOutput]:
            begun.append(client.forward_backward(data, name, settings or None))
            submitted.set()
            return begun[0]

        def first() -> tinker.ForwardBackwardOutput:
            try:
                return self._service.once("a gradient", gradient)
            except BaseException:
                # A step on it is not worth waiting for.
                self._service.abandon()
                raise
            finally:
                submitted.set()

        def step() -> tinker.APIFuture[tinker.OptimStepResponse]:
            done = begun[0].future()
            # With a slot to wait for, a gradient that is no good may be known already.
            if done.done():
                _check_logprobs(done.result())
            return client.optim_step(parameters)

        with ThreadPoolExecutor(max_workers=1) as pool:
            coming = pool.submit(first)
            try:
                submitted.wait()
                if not begun:
                    coming.result()
                try:
                    answer = self._service.once("an optimizer step", step)
                except Exception:
                    # The gradient's own failure is the reason, if it has one.
                    coming.result()
                    raise
                return coming.result(), answer.metrics or {}
            except BaseException:
                self._service.abandon()
                raise

    def save(self, folder: Path) -> None:
        """Weights and optimizer are kept by the service; the folder holds the name of the state."""
        self._save(f"update_{self._updates:06d}").write(folder)

    def _save(self, name: str) -> SavedState:
        client = self._training()
        saved = self._service.once(
            "the state to be kept", lambda: client.save_state(name, overwrite=True)
        )
        return SavedState(saved.path, self._model.model, self._model.lora_rank, self._updates)

    def load(self, folder: Path) -> None:
        state = SavedState.read(folder)
        self._client = self._service.training_client(
            lambda: self._service.client.create_training_client_from_state_with_optimizer(
                state.path
            ),
            state.path,
        )
        self._updates = state.updates

    def start_from(self, path: str) -> None:
        """Take the weights at `path`, of the service, as the starting point; the optimizer is
        fresh."""
        if not is_service_path(path):
            raise InputError(f"model.init_adapter: {path} is no adapter of the service, tinker://…")
        ServicePath.parse(path)
        self._client = self._service.training_client(
            lambda: self._service.client.create_training_client_from_state(path), path
        )

    def export(self, folder: Path) -> None:
        """Write the name of the weights at the service, and the adapter itself in PEFT format when
        it can be downloaded."""
        state = self._save(FINAL_NAME)
        state.write(folder)
        try:
            path = save_external(self._service, self._training(), FINAL_NAME)
            fetch(self._service, ServicePath.parse(path), folder)
        except RetrainError as error:
            _log.warning(
                "the adapter was not downloaded (%s); it is at the service as %s", error, state.path
            )


def _check_logprobs(output: tinker.ForwardBackwardOutput) -> None:
    for values in output.loss_fn_outputs:
        if not np.isfinite(values["logprobs"].to_numpy()).all():
            raise NonFiniteUpdateError("a log-probability of the policy is not finite")


def _grad_norm(metrics: Mapping[str, float]) -> float | None:
    """The gradient's norm before clipping, when the service tells it."""
    for name, value in metrics.items():
        if name.partition(":")[0] in ("unclipped_grad_l2", "grad_norm"):
            return float(value)
    return None
