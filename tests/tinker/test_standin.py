"""The stand-in, asked by the SDK as it is; what it computes, held against the local policy."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tinker
from tinker import types
from tinker.types.request_error_category import RequestErrorCategory

from retrain import seeding
from retrain.config.schema import BackendConfig, LossConfig, ModelConfig
from retrain.models.lora import LoraAdapter, LoraSpec
from retrain.policies.local.base import BaseModel, load_base
from retrain.policies.local.policy import LocalPolicy
from retrain.policies.policy import OptimizerStep
from retrain.types import Completion, SamplingParams, TrainBatch, pad_mask, pad_rows
from tests.tinker.standin import Remote, StandIn
from tests.tinker.waits import shorten

RANK, ALPHA, SEED = 4, 8.0, 3
PROMPTS = [np.arange(10, 16), np.arange(40, 43)]
KEYS = np.array([[seeding.key(0, "row", i, j) for j in range(3)] for i in range(2)], np.uint64)
ADAM = types.AdamParams(learning_rate=1e-2, beta2=0.99, eps=1e-8, weight_decay=0.01)
STEP = OptimizerStep(lr=1e-2, betas=(0.9, 0.99), weight_decay=0.01, grad_clip=0.0)
KEY = "tml-standin"


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_TELEMETRY", "0")
    shorten(monkeypatch)


@pytest.fixture(scope="module")
def shared() -> Iterator[StandIn]:
    with StandIn() as standin:
        yield standin


@pytest.fixture
def standin(shared: StandIn) -> Iterator[StandIn]:
    yield shared
    shared.faults.clear()


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return load_base(ModelConfig(), BackendConfig(device="cpu"))


def connect(standin: StandIn | Remote) -> tinker.ServiceClient:
    return tinker.ServiceClient(base_url=standin.url, api_key=KEY)


@pytest.fixture(scope="module")
def client(shared: StandIn) -> Iterator[tinker.ServiceClient]:
    with connect(shared) as client:
        yield client


@pytest.fixture(scope="module")
def rest(shared: StandIn) -> Iterator[tinker.RestClient]:
    rest = tinker.RestClient(base_url=shared.url, api_key=KEY)
    yield rest
    # Left to the end of the process, it would complain that its loop is gone.
    rest.holder.close()


@pytest.fixture
def training(client: tinker.ServiceClient) -> Any:
    return make_model(client)


def make_model(client: tinker.ServiceClient) -> Any:
    return client.create_lora_training_client("embedded", RANK, SEED).result()


def local_policy(base: BaseModel) -> LocalPolicy:
    return LocalPolicy(base, LoraSpec(RANK, ALPHA), SEED)


def sample_all(sampler: Any, max_tokens: int = 8) -> list[list[Completion]]:
    """`KEYS` completions of `PROMPTS`, all requests at once."""
    futures = [
        [
            sampler.sample(
                types.ModelInput.from_ints(prompt.tolist()),
                1,
                types.SamplingParams(max_tokens=max_tokens, seed=int(key)),
            )
            for key in row
        ]
        for prompt, row in zip(PROMPTS, KEYS, strict=True)
    ]
    return [[completion(future.result().sequences[0]) for future in row] for row in futures]


def completion(sequence: Any) -> Completion:
    tokens, logprobs = np.array(sequence.tokens), np.array(sequence.logprobs, dtype=np.float64)
    return Completion(tokens, logprobs, "", sequence.stop_reason)


def flat(rows: Sequence[Sequence[Any]]) -> list[Any]:
    return [item for row in rows for item in row]


def make_batch(rows: Sequence[Completion], noise: float = 0.0) -> TrainBatch:
    """Credit at random, and denominators; noise: standard deviation of what is added to the
    sampler's log-probabilities, so that ratios are not 1."""
    draws = np.random.default_rng(5)
    mask = pad_mask([row.num_tokens for row in rows])
    logprobs = pad_rows([row.logprobs for row in rows])
    return TrainBatch(
        prompts=PROMPTS,
        prompt_index=np.repeat(np.arange(2), 3),
        token_ids=pad_rows([row.token_ids for row in rows], np.int64),
        mask=mask,
        logprobs=(logprobs + noise * draws.normal(size=mask.shape)) * mask,
        credit=draws.normal(size=mask.shape) * mask,
        weight=mask / mask.sum(),
        temperature=1.0,
    )


def tensors(**values: Any) -> dict[str, Any]:
    return {
        name: types.TensorData.from_numpy(np.array(v, np.int64 if name in INTS else np.float32))
        for name, v in values.items()
    }


INTS = {"target_tokens"}


def make_data(batch: TrainBatch, loss: str) -> list[types.Datum]:
    """By hand: inputs are all tokens but the last, targets all but the first; the prompt's own
    targets, of which there is one less than tokens, carry nothing."""
    data = []
    for row, which in enumerate(batch.prompt_index):
        prompt = batch.prompts[which].tolist()
        length = int(batch.mask[row].sum())
        whole = prompt + batch.token_ids[row, :length].tolist()
        before = [0.0] * (len(prompt) - 1)
        credit = before + (batch.credit * batch.weight)[row, :length].tolist()
        inputs = {"target_tokens": whole[1:]}
        if loss == "cross_entropy":
            inputs["weights"] = credit
        else:
            inputs["advantages"] = credit
            inputs["logprobs"] = before + batch.logprobs[row, :length].tolist()
        data.append(types.Datum(types.ModelInput.from_ints(whole[:-1]), tensors(**inputs)))
    return data


def train(training: Any, data: list[types.Datum], adam: types.AdamParams = ADAM) -> Any:
    """One step; the outcome of its forward_backward."""
    outcome, step = (
        training.forward_backward(data, "importance_sampling"),
        training.optim_step(adam),
    )
    step.result()
    return outcome.result()


@pytest.fixture(scope="module")
def data(client: tinker.ServiceClient) -> list[types.Datum]:
    sampler = client.create_sampling_client(base_model="embedded").result()
    return make_data(make_batch(flat(sample_all(sampler))), "importance_sampling")


def kinds(standin: StandIn, since: int = 0) -> list[tuple[str, str | None]]:
    return [(call["kind"], call["outcome"]) for call in standin.calls[since:]]


# What it computes.


def test_completions_are_the_local_policys(
    standin: StandIn, training: Any, base: BaseModel
) -> None:
    sampler = training.save_weights_and_get_sampling_client().result()
    found = flat(sample_all(sampler))
    wanted = flat(local_policy(base).sample(PROMPTS, KEYS, SamplingParams(8)))
    for one, other in zip(found, wanted, strict=True):
        assert one.token_ids.tolist() == other.token_ids.tolist()
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
        assert one.stop_reason == other.stop_reason


@pytest.mark.parametrize("loss", ["importance_sampling", "ppo", "cispo"])
def test_step_is_the_local_policys(
    loss: str, standin: StandIn, training: Any, base: BaseModel
) -> None:
    policy = local_policy(base)
    config: dict[str, Any] = {"type": loss}
    if loss == "cispo":
        config["ratio_max"] = 1.3
    limits = {
        "importance_sampling": None,
        "ppo": {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2},
        "cispo": {"clip_low_threshold": 0.0, "clip_high_threshold": 1.3},
    }[loss]
    for step in range(2):
        # B is zero at first, which leaves half of the gradient zero: two steps.
        rows = flat(policy.sample(PROMPTS, KEYS + np.uint64(step), SamplingParams(8)))
        batch = make_batch(rows, noise=0.3)
        forward = training.forward_backward(make_data(batch, loss), loss, limits)
        optim = training.optim_step(ADAM)
        stats = policy.update(batch, LossConfig(**config), STEP)
        gradient = policy.adapter.grads.double().numpy()
        assert forward.result().metrics["loss:sum"] == pytest.approx(stats.loss, abs=1e-5)
        norm = optim.result().metrics["unclipped_grad_l2:mean"]
        assert norm == pytest.approx(stats.grad_norm, rel=1e-4)
        found = standin.gradient(training.model_id)
        assert np.abs(found - gradient).max() < 1e-5 * np.abs(gradient).max()
        # Adam turns the sign of the smallest gradients into a whole step: so by the norm.
        missed = standin.parameters(training.model_id) - policy.adapter.params.double().numpy()
        assert np.linalg.norm(missed) < 1e-3 * STEP.lr * np.sqrt(len(missed))


def test_returned_logprobs_are_the_samplers(standin: StandIn, training: Any) -> None:
    sampler = training.save_weights_and_get_sampling_client().result()
    rows = flat(sample_all(sampler))
    data = make_data(make_batch(rows), "importance_sampling")
    before = standin.parameters(training.model_id)
    outcome = training.forward(data, "importance_sampling").result()
    for row, output, which in zip(rows, outcome.loss_fn_outputs, [0] * 3 + [1] * 3, strict=True):
        found = output["logprobs"].to_numpy()[len(PROMPTS[which]) - 1 :]
        assert found == pytest.approx(row.logprobs, abs=1e-5)
    # Only a forward pass: there is no gradient to step with.
    assert training.optim_step(ADAM).result().metrics == {}
    assert (standin.parameters(training.model_id) == before).all()


def test_cross_entropy_is_the_weighted_sum(
    standin: StandIn, client: tinker.ServiceClient, training: Any
) -> None:
    sampler = training.save_weights_and_get_sampling_client().result()
    rows = flat(sample_all(sampler))
    batch = make_batch(rows)
    outcome = training.forward_backward(make_data(batch, "cross_entropy"), "cross_entropy")
    wanted = -(batch.weight * batch.credit * batch.logprobs).sum()
    assert outcome.result().metrics["loss:sum"] == pytest.approx(wanted, abs=1e-5)
    training.optim_step(ADAM).result()
    # With a ratio of 1 importance sampling has the same gradient.
    other = make_model(client)
    train(other, make_data(batch, "importance_sampling"))
    wanted = standin.gradient(other.model_id)
    found = standin.gradient(training.model_id)
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()


def test_gradients_of_chunks_add_up(data: list[types.Datum], monkeypatch: Any) -> None:
    config = {"fwdbwd_max_chunk_len": 2, "proto_compress_fwdbwd": True}
    gradients, losses = [], []
    for flags in ({}, config):
        with StandIn(client_config=flags) as standin, connect(standin) as client:
            training = make_model(client)
            outcome = train(training, data)
            gradients.append(standin.gradient())
            losses.append(outcome.metrics["loss:sum"])
            assert len(outcome.loss_fn_outputs) == len(data)
            asked = [c["asked"] for c in standin.calls if c["kind"] == "forward_backward"]
    # The first chunk is sent last, and its number is the first.
    assert sorted((a["seq_id"], a["datums"]) for a in asked) == [(1, 2), (2, 2), (3, 2)]
    assert asked[-1]["seq_id"] == 1
    assert np.abs(gradients[0] - gradients[1]).max() < 1e-5 * np.abs(gradients[0]).max()
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_gradient_is_clipped_on_request(standin: StandIn, training: Any, data: Any) -> None:
    before = standin.parameters(training.model_id)
    # One step with plain averages: the sign of the gradient times the rate, whatever the clip.
    train(training, data, types.AdamParams(learning_rate=1e-3, eps=1e3, grad_clip_norm=0.5))
    gradient = standin.gradient(training.model_id)
    clipped = gradient * min(1.0, 0.5 / np.linalg.norm(gradient))
    moved = standin.parameters(training.model_id) - before
    assert np.linalg.norm(moved) == pytest.approx(1e-6 * np.linalg.norm(clipped), rel=0.2)


def test_it_learns(client: tinker.ServiceClient) -> None:
    """REINFORCE on how many of its tokens are even."""
    training, rates = make_model(client), []
    for step in range(5):
        sampler = training.save_weights_and_get_sampling_client().result()
        prompt = types.ModelInput.from_ints(PROMPTS[0].tolist())
        params = types.SamplingParams(max_tokens=6, seed=step, stop=[])
        rows = [completion(s) for s in sampler.sample(prompt, 24, params).result().sequences]
        rewards = np.array([(row.token_ids % 2 == 0).mean() for row in rows])
        rates.append(rewards.mean())
        credit = (rewards - rewards.mean()) / 24
        data = [
            types.Datum(
                types.ModelInput.from_ints([*PROMPTS[0].tolist(), *row.token_ids.tolist()[:-1]]),
                tensors(
                    target_tokens=[*PROMPTS[0].tolist()[1:], *row.token_ids.tolist()],
                    logprobs=[0.0] * 5 + row.logprobs.tolist(),
                    advantages=[0.0] * 5 + [value] * 6,
                ),
            )
            for row, value in zip(rows, credit, strict=True)
        ]
        train(training, data, types.AdamParams(learning_rate=2e-2))
    assert rates[-1] > rates[0] + 0.2


# Sampling.


def test_sampling_options(client: tinker.ServiceClient, base: BaseModel) -> None:
    sampler = client.create_sampling_client(base_model="embedded").result()
    prompt = types.ModelInput.from_ints(PROMPTS[1].tolist())

    def sample(times: int = 1, **params: Any) -> list[Completion]:
        given = types.SamplingParams(**{"max_tokens": 12, "seed": 4, **params})
        return [completion(s) for s in sampler.sample(prompt, times, given).result().sequences]

    first = sample()[0]
    assert sample()[0].token_ids.tolist() == first.token_ids.tolist()
    three = sample(3)
    assert three[0].token_ids.tolist() == first.token_ids.tolist()
    assert len({tuple(row.token_ids) for row in three}) > 1
    assert sample(seed=None)[0].token_ids.tolist() != sample(seed=None)[0].token_ids.tolist()
    greedy = sample(temperature=0.0)[0]
    assert greedy.token_ids.tolist() == sample(temperature=0.0, seed=9)[0].token_ids.tolist()
    endless = sample(stop=[])[0]
    assert endless.num_tokens == 12
    assert endless.stop_reason == "length"
    third = int(endless.token_ids[2])
    at_token = sample(stop=[third])[0]
    assert at_token.token_ids.tolist() == endless.token_ids.tolist()[: at_token.num_tokens]
    assert at_token.token_ids[-1] == third
    assert at_token.stop_reason == "stop"
    piece = base.codec.decode(endless.token_ids[:4])
    at_text = sample(stop=[piece])[0]
    assert at_text.token_ids.tolist() == endless.token_ids.tolist()[:4]
    narrow = sample(8, top_p=0.01, stop=[])
    assert len({tuple(row.token_ids) for row in narrow}) == 1
    assert narrow[0].logprobs == pytest.approx(0, abs=1e-6)


def test_prompt_logprobs_are_those_of_sampling(client: tinker.ServiceClient) -> None:
    sampler = client.create_sampling_client(base_model="embedded").result()
    row = sample_all(sampler)[0][0]
    whole = types.ModelInput.from_ints([*PROMPTS[0].tolist(), *row.token_ids.tolist()])
    found = sampler.compute_logprobs(whole).result()
    assert found[0] is None
    assert found[len(PROMPTS[0]) :] == pytest.approx(row.logprobs, abs=1e-5)
    last = sampler.compute_logprobs(whole, prompt_logprobs_last_n=2).result()
    assert last[:-2] == [None] * (len(found) - 2)
    assert last[-2:] == pytest.approx(found[-2:], abs=1e-6)


def test_requests_are_decoded_together_or_alone() -> None:
    """Alone, a row's log-probabilities do not hang on what else is asked for."""
    with StandIn(exact=True) as standin, connect(standin) as client:
        sampler = client.create_sampling_client(base_model="embedded").result()
        one, other = flat(sample_all(sampler)), flat(sample_all(sampler))
    for a, b in zip(one, other, strict=True):
        assert (a.logprobs == b.logprobs).all()


def test_samplers_keep_the_weights_they_were_made_of(training: Any, data: Any) -> None:
    path = training.save_weights_for_sampler("first").result().path
    early = training.save_weights_and_get_sampling_client().result()
    before = flat(sample_all(early))
    train(training, data, types.AdamParams(learning_rate=0.1))
    late = flat(sample_all(training.save_weights_and_get_sampling_client().result()))
    named = training.create_sampling_client(path).result()
    assert [r.token_ids.tolist() for r in late] != [r.token_ids.tolist() for r in before]
    for again in (flat(sample_all(early)), flat(sample_all(named))):
        assert [r.token_ids.tolist() for r in again] == [r.token_ids.tolist() for r in before]


# What is saved.


def test_saved_state_is_exact_and_outlives_the_service(tmp_path: Path, data: Any) -> None:
    with StandIn(state=tmp_path) as standin, connect(standin) as client:
        training = make_model(client)
        train(training, data)
        path = training.save_state("one").result().path
        train(training, data)
        wanted = standin.parameters(training.model_id)
        with pytest.raises(tinker.RequestFailedError, match="exists"):
            training.save_state("one").result()
        training.save_state("one", overwrite=True).result()
        training.save_state("two").result()
        assert path == f"tinker://{training.model_id}/weights/one"
    assert KEY not in (tmp_path / "log.jsonl").read_text()
    with StandIn(state=tmp_path) as standin, connect(standin) as client:
        path = path.replace("/one", "/two")
        for optimizer in (True, False):
            load = (
                client.create_training_client_from_state_with_optimizer
                if optimizer
                else client.create_training_client_from_state
            )
            training = load(path).result()
            assert (standin.parameters(training.model_id) == wanted).all()
            train(training, data)
            moved = standin.parameters(training.model_id)
            if optimizer:
                third = moved
        assert np.abs(third - moved).max() > 1e-4
    # Three steps in one go.
    with StandIn() as standin, connect(standin) as client:
        training = make_model(client)
        for _ in range(3):
            train(training, data)
        assert (standin.parameters() == third).all()


def test_rest_routes_know_runs_and_checkpoints(rest: Any, training: Any) -> None:
    path = training.save_state("state").result().path
    training.save_weights_for_sampler("sampler").result()
    info = rest.get_weights_info_by_tinker_path(path).result()
    assert (info.base_model, info.lora_rank, info.is_lora) == ("embedded", RANK, True)
    found = rest.list_checkpoints(training.model_id).result().checkpoints
    assert [c.checkpoint_id for c in found] == ["weights/state", "sampler_weights/sampler"]
    assert [c.checkpoint_type for c in found] == ["training", "sampler"]
    run = rest.get_training_run(training.model_id).result()
    assert run.last_checkpoint is not None
    assert run.last_checkpoint.tinker_path == path
    assert training.model_id in [
        run.training_run_id for run in rest.list_training_runs().result().training_runs
    ]
    assert path in [c.tinker_path for c in rest.list_user_checkpoints().result().checkpoints]
    models = rest.get_server_capabilities().result().supported_models
    assert [(m.model_name, m.max_context_length, m.trainable) for m in models] == [
        ("embedded", 256, True)
    ]
    rest.delete_checkpoint_from_tinker_path(path).result()
    with pytest.raises(tinker.NotFoundError):
        rest.get_weights_info_by_tinker_path(path).result()


def test_external_weights_are_a_peft_folder(
    standin: StandIn, rest: Any, training: Any, data: Any, base: BaseModel, tmp_path: Path
) -> None:
    train(training, data)
    path = training.save_weights_external("final").result().path
    urls = rest.get_external_weights_urls(path).result().urls
    assert sorted(urls) == ["adapter_config.json", "adapter_model.safetensors"]
    for name, url in urls.items():
        (tmp_path / name).write_bytes(httpx.get(url).content)
    spec = LoraSpec(RANK, ALPHA)
    adapter = LoraAdapter(spec, base.adapter_shapes(spec), 0, base.device, [], "embedded")
    adapter.load(tmp_path)
    assert (adapter.params.double().numpy() == standin.parameters(training.model_id)).all()
    assert httpx.get(f"{standin.url}/download/nothing/adapter_config.json").status_code == 403


# The routes.


def test_start_up_and_info(standin: StandIn, client: tinker.ServiceClient, training: Any) -> None:
    info = training.get_info()
    assert info.lora_rank == RANK
    assert info.model_data.model_name == "embedded"
    assert (Path(info.model_data.tokenizer_id) / "tokenizer.json").is_file()
    sampler = client.create_sampling_client(base_model="embedded").result()
    assert sampler.get_base_model() == "embedded"
    with connect(standin) as other:
        assert make_model(other).model_id != training.model_id


def test_training_requests_run_in_the_order_of_their_numbers(
    standin: StandIn, training: Any, data: Any
) -> None:
    """The later one arrives first, and waits."""
    run = standin.service.runs[training.model_id]
    first = run.next_seq
    adam = {"learning_rate": 0.1, "beta1": 0.9, "beta2": 0.9, "eps": 1e-8}
    adam |= {"weight_decay": 0.0, "grad_clip_norm": 0.0}
    step = {"model_id": run.id, "seq_id": first + 1, "adam_params": adam}
    future = post(standin, "optim_step", step)
    again = post(standin, "optim_step", step)
    assert future == again
    assert not standin.service.futures[future["request_id"]].done.wait(0.05)
    training.forward_backward(data, "importance_sampling").result()
    retrieved = post(standin, "retrieve_future", {"request_id": future["request_id"]})
    assert retrieved["metrics"]["unclipped_grad_l2:mean"] > 0


def post(standin: StandIn, route: str, body: dict[str, Any]) -> Any:
    url = f"{standin.url}/api/v1/{route}"
    return httpx.post(url, json=body, headers={"X-API-Key": KEY}).raise_for_status().json()


def test_pending_results_are_polled_for(data: Any) -> None:
    """Short polls answered by "try again", as 200 and as 408; large results announced first."""
    for status in (200, 408):
        with (
            StandIn(poll_seconds=0.02, pending_status=status, metadata_above=100) as standin,
            connect(standin) as client,
        ):
            training = make_model(client)
            standin.faults.add("paused", route="forward_backward", seconds=0.1)
            assert len(train(training, data).loss_fn_outputs) == len(data)


def test_mistakes_are_told(standin: StandIn, client: Any, training: Any, data: Any) -> None:
    good = data[0]
    wrong = types.Datum(good.model_input, tensors(target_tokens=[1], weights=[1.0]))
    cases: list[tuple[list[types.Datum], str, Any, str]] = [
        ([wrong], "cross_entropy", None, "shape"),
        ([good], "cross_entropy", None, "takes"),
        ([good], "gspo", None, "unknown loss_fn"),
        ([good], "ppo", {"clip": 0.2}, "loss_fn_config"),
    ]
    for bad, loss, config, message in cases:
        with pytest.raises(tinker.RequestFailedError, match=message) as caught:
            training.forward_backward(bad, loss, config).result()
        assert caught.value.category is RequestErrorCategory.User
    with pytest.raises(tinker.BadRequestError, match="unknown base_model"):
        client.create_lora_training_client("another").result()
    with pytest.raises(tinker.NotFoundError):
        client.create_training_client_from_state(f"tinker://{training.model_id}/weights/x").result()
    with pytest.raises(tinker.BadRequestError, match="does not hold"):
        client.create_sampling_client(f"tinker://{training.model_id}/weights/x").result()
    for path in ("tinker://../weights/x", "tinker://a/b"):
        with pytest.raises(tinker.APIStatusError):
            client.create_sampling_client(path).result()
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{standin.url}/api/v1/healthz")


# What goes wrong.


def step_twice(training: Any, data: Any) -> None:
    train(training, data)
    train(training, data)


@pytest.fixture(scope="module")
def twice(shared: StandIn, client: tinker.ServiceClient, data: Any) -> Any:
    """The parameters after two steps, neither more nor less."""
    training = make_model(client)
    step_twice(training, data)
    return shared.parameters(training.model_id)


@pytest.mark.parametrize("carried_out", [False, True])
@pytest.mark.parametrize("status", [408, 429, 500, 502, 504])
def test_a_refused_training_request_is_sent_again(
    status: int, carried_out: bool, standin: StandIn, training: Any, data: Any, twice: Any
) -> None:
    """And is not applied twice if it was taken on after all."""
    plan = {"status": status, "carried_out": carried_out, "headers": {"retry-after-ms": "1"}}
    hits = [standin.faults.add("status", route=route, **plan) for route in ("forw*", "optim*")]
    step_twice(training, data)
    assert [fault.hits for fault in hits] == [1, 1]
    assert (standin.parameters(training.model_id) == twice).all()


@pytest.mark.parametrize("status", [429, 500, 502, 504, 400])
def test_a_refused_poll_is_repeated(
    status: int, standin: StandIn, training: Any, data: Any, twice: Any
) -> None:
    fault = standin.faults.add("status", route="forward*", on="retrieve", status=status, times=3)
    step_twice(training, data)
    assert fault.hits == 3
    assert (standin.parameters(training.model_id) == twice).all()


@pytest.mark.parametrize("on", ["submit", "retrieve"])
@pytest.mark.parametrize("kind", ["drop", "timeout", "slow"])
def test_a_connection_that_breaks_or_hangs(
    kind: Any, on: Any, standin: StandIn, training: Any, data: Any, twice: Any
) -> None:
    slow = kind == "slow"
    plan = {"on": on, "seconds": 0.05, "carried_out": not slow, "times": None if slow else 1}
    fault = standin.faults.add(kind, route="forward*", **plan)
    step_twice(training, data)
    # What is only slow is asked for once.
    assert fault.hits == (2 if slow else 1)
    assert (standin.parameters(training.model_id) == twice).all()


@pytest.mark.parametrize("status", [429, 500, 502, 504])
def test_a_refused_sample_is_asked_for_again(
    status: int, standin: StandIn, client: tinker.ServiceClient
) -> None:
    sampler = client.create_sampling_client(base_model="embedded").result()
    wanted = [row.token_ids.tolist() for row in flat(sample_all(sampler))]
    standin.faults.add("status", route="asample", status=status, times=2)
    standin.faults.add("status", route="asample", on="retrieve", status=500, times=2)
    assert [row.token_ids.tolist() for row in flat(sample_all(sampler))] == wanted


def test_a_lost_sample_is_asked_for_again_under_a_new_number(
    standin: StandIn, client: tinker.ServiceClient
) -> None:
    sampler = client.create_sampling_client(base_model="embedded").result()
    wanted = [row.token_ids.tolist() for row in flat(sample_all(sampler))]
    since = len(standin.calls)
    standin.faults.add("lost", route="asample")
    standin.faults.add("lost", route="asample", carried_out=True)
    assert [row.token_ids.tolist() for row in flat(sample_all(sampler))] == wanted
    assert Counter(kinds(standin, since)) == {("asample", "delivered"): 6, ("asample", "lost"): 2}


@pytest.mark.parametrize("category", ["server", "user", "unknown"])
def test_a_failed_request_is_told_with_its_category(
    category: str, standin: StandIn, client: tinker.ServiceClient
) -> None:
    sampler = client.create_sampling_client(base_model="embedded").result()
    standin.faults.add("failed", route="asample", category=category)
    with pytest.raises(tinker.RequestFailedError) as caught:
        sample_all(sampler)
    assert caught.value.category is RequestErrorCategory(category)


@pytest.mark.parametrize("carried_out", [False, True])
@pytest.mark.parametrize("kind", ["lost", "failed"])
def test_a_training_request_of_unknown_fate(
    kind: Any, carried_out: bool, standin: StandIn, training: Any, data: Any
) -> None:
    """The SDK hands the error on; whether the work was done only the stand-in knows."""
    before = standin.parameters(training.model_id)
    standin.faults.add(kind, route="forward_backward", carried_out=carried_out)
    forward = training.forward_backward(data, "importance_sampling")
    step = training.optim_step(ADAM)
    with pytest.raises(Exception, match=r"Promise expired|injected"):
        forward.result()
    assert bool(step.result().metrics) == carried_out
    assert (standin.parameters(training.model_id) != before).any() == carried_out


def test_an_unpaid_bill_is_waited_for(standin: StandIn, training: Any, data: Any) -> None:
    hits = [
        standin.faults.add("status", route="forward*", on=on, status=402, times=2)
        for on in ("submit", "retrieve")
    ]
    train(training, data)
    assert [fault.hits for fault in hits] == [2, 2]


def test_faults_strike_as_planned(standin: StandIn, training: Any) -> None:
    fault = standin.faults.add("failed", route="save*", skip=1, times=2)
    outcomes = []
    for i in range(5):
        try:
            training.save_state(f"s{i}").result()
            outcomes.append(True)
        except tinker.RequestFailedError:
            outcomes.append(False)
    assert outcomes == [True, False, False, True, True]
    assert fault.hits == 2
    some = standin.faults.add("status", route="nothing", share=0.3, times=None)
    struck = [standin.faults.hit("nothing", "submit") is not None for _ in range(400)]
    assert 80 < sum(struck) < 160
    assert some.hits == sum(struck)


def test_a_service_that_goes_away_and_comes_back(
    standin: StandIn, training: Any, data: Any, twice: Any
) -> None:
    train(training, data)
    standin.away()
    timer = threading.Timer(0.3, standin.back)
    timer.start()
    train(training, data)
    timer.join()
    assert (standin.parameters(training.model_id) == twice).all()


def test_a_service_that_forgets(data: Any) -> None:
    with StandIn() as standin, connect(standin) as client:
        training = make_model(client)
        sampler = training.save_weights_and_get_sampling_client().result()
        standin.forget()
        with pytest.raises(tinker.NotFoundError):
            training.forward_backward(data, "importance_sampling").result()
        with pytest.raises(tinker.NotFoundError):
            sample_all(sampler)


# How many calls are in flight.


def test_calls_in_flight_are_counted(standin: StandIn) -> None:
    with StandIn() as fresh, connect(fresh) as client:
        sampler = client.create_sampling_client(base_model="embedded").result()
        assert fresh.in_flight_max == {}
        fresh.faults.add("slow", route="asample", seconds=0.2, times=6)
        sample_all(sampler)
        assert fresh.in_flight_max == {"asample": 6, "*": 6}
        for prompt in PROMPTS:
            given = types.SamplingParams(max_tokens=2)
            sampler.sample(types.ModelInput.from_ints(prompt.tolist()), 1, given).result()
        assert fresh.in_flight_max == {"asample": 6, "*": 6}
        assert fresh.ledger.summary()["in_flight"] == {}
        events = [json.loads(line) for line in (fresh.state / "log.jsonl").open()]
        assert max(event.get("in_flight", 0) for event in events) == 6
        assert [event["event"] for event in events].count("begin") == 8


def test_a_killed_client_is_not_in_flight_any_more() -> None:
    """It has one connection, over which it asks for a sample, and dies in the middle of a poll
    that is held for longer than it takes to count again."""
    with StandIn() as standin, connect(standin) as client:
        sampler = client.create_sampling_client(base_model="embedded").result()
        doomed = socket.create_connection(("127.0.0.1", standin.port))
        session = ask(doomed, "create_session", {})["session_id"]
        chosen = {"session_id": session, "sampling_session_seq_id": 0, "base_model": "embedded"}
        sampling = ask(doomed, "create_sampling_session", chosen)["sampling_session_id"]
        params = {"max_tokens": 2, "temperature": 1.0, "top_k": -1, "top_p": 1.0}
        prompt = {"chunks": [{"type": "encoded_text", "tokens": [5, 6]}]}
        body = {"sampling_params": params, "prompt": prompt, "num_samples": 1, "seq_id": 0}
        pending = ask(doomed, "asample", {"sampling_session_id": sampling, **body})
        held = standin.faults.add("slow", route="asample", on="retrieve", seconds=1.0)
        doomed.sendall(request("retrieve_future", {"request_id": pending["request_id"]}))
        while held.hits == 0:
            time.sleep(0.001)
        assert standin.ledger.summary()["in_flight"] == {"asample": 1, "*": 1}
        doomed.close()
        sample_one(sampler)
        assert standin.in_flight_max == {"asample": 1, "*": 1}
        assert kinds(standin) == [("asample", "abandoned"), ("asample", "delivered")]


def ask(connection: socket.socket, route: str, body: dict[str, Any]) -> Any:
    connection.sendall(request(route, body))
    return json.loads(connection.recv(4096).split(b"\r\n\r\n", 1)[1])


def request(route: str, body: dict[str, Any]) -> bytes:
    text = json.dumps(body)
    head = f"POST /api/v1/{route} HTTP/1.1\r\nX-API-Key: {KEY}\r\nContent-Length: {len(text)}"
    return f"{head}\r\n\r\n{text}".encode()


def sample_one(sampler: Any) -> Completion:
    given = types.SamplingParams(max_tokens=4, seed=1)
    prompt = types.ModelInput.from_ints(PROMPTS[0].tolist())
    return completion(sampler.sample(prompt, 1, given).result().sequences[0])


def test_several_clients_at_once(standin: StandIn, data: Any) -> None:
    found: list[Any] = []

    def work() -> None:
        with connect(standin) as client:
            training = make_model(client)
            for _ in range(2):
                sample_all(training.save_weights_and_get_sampling_client().result())
                train(training, data)
            found.append(standin.parameters(training.model_id))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all((other == found[0]).all() for other in found)


def test_as_a_process_of_its_own(tmp_path: Path) -> None:
    """What was saved is there after it was killed."""
    with Remote(tmp_path) as remote:
        with connect(remote) as client:
            training = make_model(client)
            remote.add_fault("failed", route="save_weights")
            with pytest.raises(tinker.RequestFailedError):
                training.save_state("kept").result()
            remote.clear_faults()
            assert remote.in_flight_max == {"create_model": 1, "save_weights": 1, "*": 1}
            assert [call["outcome"] for call in remote.calls] == ["delivered", "failed"]
            remote.away(0.2)
            path = training.save_state("kept").result().path
        url = remote.url
        remote.kill()
        remote.start()
        assert remote.url == url
        rest = tinker.RestClient(base_url=url, api_key=KEY)
        assert rest.get_weights_info_by_tinker_path(path).result().lora_rank == RANK
        rest.holder.close()
