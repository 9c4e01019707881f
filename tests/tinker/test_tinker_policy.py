"""The policy on the service, against a stand-in that trains for real."""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import tinker
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrain import seeding
from retrain.causes import SERVICE, cause_of
from retrain.config.schema import LossConfig, RunConfig
from retrain.errors import InputError
from retrain.models.lora import LoraSpec
from retrain.policies.local.base import load_base
from retrain.policies.local.policy import LocalPolicy
from retrain.policies.policy import NonFiniteUpdateError, OptimizerStep
from retrain.policies.throttle import Throttle
from retrain.policies.tinker import download
from retrain.policies.tinker.access import access_problem
from retrain.policies.tinker.datum import data_of, loss_of
from retrain.policies.tinker.download import DownloadError, fetch
from retrain.policies.tinker.paths import SavedState, ServicePath
from retrain.policies.tinker.policy import TinkerPolicy, open_policy
from retrain.policies.tinker.retry import (
    Failure,
    Patience,
    RefusedError,
    ServiceLostError,
    failure_of,
    words,
)
from retrain.policies.tinker.service import Service
from retrain.training.rollout import sample_groups, token_weights
from retrain.types import Completion, Problem, SamplingParams, TrainBatch, pad_mask, pad_rows
from tests.rewards.judge_server import fake_server
from tests.test_loops import fail_when_given_up
from tests.tinker.standin import StandIn

QUICK = Patience(attempts=3, first_pause_s=0.01, look_s=1.0, away_s=10.0, answer_s=60.0)
HASTY = replace(QUICK, look_s=0.2, away_s=0.8)
PROBLEMS = [Problem(f"p{n}", f"Compute {n}+{n}.", str(2 * n)) for n in (3, 41)]
STAY = OptimizerStep(lr=0.0, betas=(0.9, 0.99), weight_decay=0.0, grad_clip=0.0)
STEP = OptimizerStep(lr=2e-3, betas=(0.9, 0.99), weight_decay=0.01, grad_clip=0.05)
LOSSES = [
    LossConfig(),
    LossConfig(type="ppo"),
    LossConfig(type="ppo", eps_low=0.1, eps_high=0.4),
    LossConfig(type="cispo", ratio_max=1.3),
]


@pytest.fixture(scope="module")
def standin() -> Iterator[StandIn]:
    with StandIn(poll_seconds=2.0) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_wrong(standin: StandIn) -> Iterator[None]:
    yield
    standin.faults.clear()
    standin.back()


def settings(standin: StandIn, **tables: dict[str, Any]) -> RunConfig:
    base: dict[str, dict[str, Any]] = {
        "model": {"lora_rank": 4, "base_url": standin.url},
        "training": {"seed": 3},
        "backend": {"backend": "tinker"},
    }
    for table, values in tables.items():
        base[table] = {**base.get(table, {}), **values}
    return RunConfig.model_validate(base)


@contextmanager
def opened(
    standin: StandIn, patience: Patience = QUICK, **tables: dict[str, Any]
) -> Iterator[TinkerPolicy]:
    config = settings(standin, **tables)
    with open_policy(config, config.backend, patience) as policy:
        yield policy


def local() -> LocalPolicy:
    config = RunConfig()
    base = load_base(config.model, config.backend)
    return LocalPolicy(base, LoraSpec(4, 8.0), seed=3)


def keys(count: int, seed: int = 0) -> NDArray[np.uint64]:
    """(problems, count)"""
    return np.array(
        [[seeding.key(seed, "test", i, j) for j in range(count)] for i in range(len(PROBLEMS))],
        dtype=np.uint64,
    )


def flat(groups: Sequence[Sequence[Completion | None]]) -> list[Completion]:
    """All completions in order; none may be lost."""
    rows = [completion for group in groups for completion in group]
    found = [completion for completion in rows if completion is not None]
    assert len(found) == len(rows)
    return found


def random_batch(policy: LocalPolicy | TinkerPolicy, aggregation: str) -> TrainBatch:
    """Completions of random tokens that a sampler somewhat unlike the policy would give, some rows
    and tokens without credit."""
    draws = np.random.default_rng(5)
    lengths = np.array([9, 1, 17, 4, 12, 6])
    mask = pad_mask(lengths)
    credit = draws.normal(size=mask.shape) * mask
    credit[3] = 0
    credit[0, 2:4] = 0
    return TrainBatch(
        prompts=[policy.codec.encode(problem) for problem in PROBLEMS],
        prompt_index=np.array([0, 0, 0, 1, 1, 1]),
        token_ids=pad_rows([draws.integers(4, 60, n) for n in lengths], np.int64),
        mask=mask,
        logprobs=draws.normal(-3, 2, size=mask.shape) * mask,
        credit=credit,
        weight=token_weights(mask, aggregation, 20),
        temperature=1.0,
    )


def near_policy(batch: TrainBatch, policy: LocalPolicy) -> TrainBatch:
    """The batch with sampler log-probabilities about the policy's own, so that clips bind here and
    not there."""
    found = {}
    for row in range(batch.num_rows):
        alone = batch.rows(np.array([row]))
        length = int(alone.mask.sum())
        ((logprobs, _),) = policy.logprobs(alone.cut(length))
        found[row] = logprobs[0].double().numpy()
    moved = pad_rows([found[row] for row in range(batch.num_rows)])
    moved = moved + np.random.default_rng(1).normal(0, 0.3, moved.shape)
    return replace(batch, logprobs=moved * batch.mask)


@given(st.integers(1, 9), st.lists(st.integers(1, 12), min_size=1, max_size=5))
def test_data_are_shifted_by_one_and_credit_no_prompt(prompt: int, lengths: list[int]) -> None:
    draws = np.random.default_rng(0)
    mask = pad_mask(lengths)
    batch = TrainBatch(
        prompts=[draws.integers(0, 99, prompt)],
        prompt_index=np.zeros(len(lengths), dtype=np.int64),
        token_ids=pad_rows([draws.integers(0, 99, n) for n in lengths], np.int64),
        mask=mask,
        logprobs=-draws.random(mask.shape) * mask,
        credit=draws.normal(size=mask.shape) * mask,
        weight=token_weights(mask, "token_mean", 12),
        temperature=1.0,
    )
    for row, datum in enumerate(data_of(batch)):
        length = lengths[row]
        whole = [*batch.prompts[0], *batch.token_ids[row, :length]]
        inputs = {name: value.to_numpy() for name, value in datum.loss_fn_inputs.items()}
        assert datum.model_input.to_ints() == whole[:-1]
        assert inputs["target_tokens"].tolist() == whole[1:]
        # The place from which the first completion token is predicted is the prompt's last.
        first = prompt - 1
        assert not inputs["advantages"][:first].any()
        assert not inputs["logprobs"][:first].any()
        given_credit = batch.credit[row, :length] / sum(lengths)
        np.testing.assert_allclose(inputs["advantages"][first:], given_credit, rtol=1e-6)
        np.testing.assert_allclose(
            inputs["logprobs"][first:], batch.logprobs[row, :length], rtol=1e-6
        )


def test_the_clips_are_bounds_of_the_ratio() -> None:
    assert loss_of(LossConfig()) == ("importance_sampling", {})
    ppo = loss_of(LossConfig(type="ppo", eps_high=0.28))
    assert ppo == ("ppo", {"clip_low_threshold": 0.8, "clip_high_threshold": 1.28})
    cispo = loss_of(LossConfig(type="cispo"))
    assert cispo == ("cispo", {"clip_low_threshold": 0.0, "clip_high_threshold": 5.0})


def test_the_service_finds_the_local_gradient(standin: StandIn) -> None:
    """From our data the stand-in, which has its own idea of the service's losses, computes loss
    and gradient with autograd; they are those of the local policy on the same batch."""
    here = local()
    with opened(standin) as there:
        # Away from the start, where half of the gradient is zero.
        for policy in (here, there):
            policy.update(random_batch(here, "token_mean"), LossConfig(), STEP)
        here.adapter.params.copy_(torch.from_numpy(standin.parameters()).float())
        for loss in LOSSES:
            for aggregation in ("token_mean", "sequence_mean", "constant", "sum"):
                batch = near_policy(random_batch(here, aggregation), here)
                expected = here.update(batch, loss, STAY)
                found = there.update(batch, loss, STAY)
                gradient = here.adapter.grads.double().numpy()
                scale = np.abs(gradient).max()
                difference = np.abs(standin.gradient() - gradient).max()
                assert difference < 1e-4 * scale, (loss.type, aggregation)
                for name in ("loss", "grad_norm", "ratio_mean", "ratio_max", "log_ratio_mean"):
                    assert getattr(found, name) == pytest.approx(
                        getattr(expected, name), rel=1e-4, abs=1e-6
                    ), (loss.type, aggregation, name)
                assert found.kl_to_sampler == pytest.approx(expected.kl_to_sampler, rel=1e-4)
                assert found.clip_fraction == expected.clip_fraction
                if loss.type != "importance_sampling":
                    assert found.clip_fraction
    asked = [call["asked"] for call in standin.calls if call["kind"] == "forward_backward"]
    # Rows without credit are not sent.
    assert {call["datums"] for call in asked} == {5}


def test_a_batch_without_credit_takes_no_step(standin: StandIn) -> None:
    with opened(standin) as policy:
        batch = random_batch(policy, "token_mean")
        before = len(standin.calls)
        stats = policy.update(batch.rows(np.array([3])), LossConfig(), STEP)
        assert not stats.stepped
        assert len(standin.calls) == before


def test_completions_are_those_of_the_local_policy(standin: StandIn) -> None:
    """The same seeds name the same uniform numbers; each completion is told as it comes."""
    told: list[tuple[int, int, Completion]] = []
    threads = set()

    def on_done(prompt: int, completion: int, what: Completion) -> None:
        told.append((prompt, completion, what))
        threads.add(threading.get_ident())

    here = local()
    prompts = [here.codec.encode(problem) for problem in PROBLEMS]
    sampling = SamplingParams(24)
    expected = here.sample(prompts, keys(6), sampling)
    with opened(standin) as there:
        found = there.sample(prompts, keys(6), sampling, on_done)
        greedy = there.sample(prompts, keys(1), SamplingParams(8, temperature=0.0))
    assert threads == {threading.get_ident()}
    assert sorted(entry[:2] for entry in told) == [(i, j) for i in range(2) for j in range(6)]
    assert all(found[i][j] is what for i, j, what in told)
    assert standin.in_flight_max["asample"] == 12
    for mine, other in zip(flat(expected), flat(found), strict=True):
        assert other.token_ids.tolist() == mine.token_ids.tolist()
        assert (other.text, other.stop_reason) == (mine.text, mine.stop_reason)
        np.testing.assert_allclose(other.logprobs, mine.logprobs, atol=1e-5)
    likely = here.sample(prompts, keys(1), SamplingParams(8, temperature=0.0))
    for (mine,), (other,) in zip(likely, greedy, strict=True):
        assert other.token_ids.tolist() == mine.token_ids.tolist()


def test_a_saved_policy_goes_on_as_if_it_had_not_stopped(standin: StandIn, tmp_path: Path) -> None:
    with opened(standin) as policy:
        batch = random_batch(policy, "token_mean")
        policy.update(batch, LossConfig(), STEP)
        policy.save(tmp_path)
        policy.update(batch, LossConfig(), STEP)
        undisturbed = standin.parameters()
    state = SavedState.read(tmp_path)
    assert (state.updates, state.base_model, state.lora_rank) == (1, "embedded", 4)
    with opened(standin) as policy:
        policy.load(tmp_path)
        policy.update(batch, LossConfig(), STEP)
        assert standin.parameters().tolist() == undisturbed.tolist()


def test_another_run_starts_from_weights_at_the_service(standin: StandIn, tmp_path: Path) -> None:
    with opened(standin) as policy:
        policy.update(random_batch(policy, "token_mean"), LossConfig(), STEP)
        policy.export(tmp_path)
        trained = standin.parameters()
    path = SavedState.read(tmp_path).path
    with opened(standin) as policy:
        policy.start_from(path)
        policy.update(random_batch(policy, "token_mean"), LossConfig(), STAY)
        assert standin.parameters().tolist() == trained.tolist()
    for wrong in (path + "x", "tinker://a/b", str(tmp_path)):
        with opened(standin) as policy, pytest.raises(InputError, match="service"):
            policy.start_from(wrong)


def test_the_final_adapter_is_the_trained_one(standin: StandIn, tmp_path: Path) -> None:
    with opened(standin) as policy:
        policy.update(random_batch(policy, "token_mean"), LossConfig(), STEP)
        policy.export(tmp_path)
        trained = standin.parameters()
    here = local()
    here.start_from(tmp_path)
    np.testing.assert_allclose(here.adapter.params.numpy(), trained, atol=1e-7)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 8)


def test_an_adapter_that_cannot_be_downloaded_stays_at_the_service(
    standin: StandIn, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    standin.faults.add("status", route="save_weights_external", status=400)
    with opened(standin) as policy:
        policy.export(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tinker.json"]
    assert SavedState.read(tmp_path).path in caplog.text


def test_only_plain_files_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Answer:
        urls: dict[str, str]

    class Fake:
        rest = None

        def safely(self, what: str, submit: Callable[[], Any]) -> Answer:
            return answer

    answer, path = Answer(), ServicePath("run", "external_weights", "final")
    service: Any = Fake()
    for names in (["../x", "adapter_config.json"], ["/etc/x"], ["a/b"], [".x"], ["weights.bin"]):
        answer.urls = dict.fromkeys(names, "http://127.0.0.1:1/")
        with pytest.raises(DownloadError):
            fetch(service, path, tmp_path / "in")
    # Nobody listens: what had come is taken away again, and the address is not told.
    answer.urls = {"adapter_config.json": "http://127.0.0.1:1/?signature=secret"}
    with pytest.raises(DownloadError) as raised:
        fetch(service, path, tmp_path / "in")
    assert "secret" not in str(raised.value)
    assert not list((tmp_path / "in").iterdir())
    # More than there is room for, or for longer than anyone waits.
    with fake_server() as server:
        server.models = (200, {"data": "x" * 10_000})
        answer.urls = {"adapter_config.json": f"{server.url}/models"}
        monkeypatch.setattr(download, "_LONGEST_S", -1.0)
        with pytest.raises(DownloadError, match="is not here after"):
            fetch(service, path, tmp_path / "in")
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
        with pytest.raises(DownloadError, match="more than half"):
            fetch(service, path, tmp_path / "in")
    assert not list((tmp_path / "in").iterdir())


# What goes wrong.

SAMPLE_FAULTS: dict[str, dict[str, Any]] = {
    "429": {"kind": "status", "status": 429},
    "500": {"kind": "status", "status": 500},
    "502 on retrieve": {"kind": "status", "status": 502, "on": "retrieve"},
    "504 on retrieve": {"kind": "status", "status": 504, "on": "retrieve"},
    "dropped": {"kind": "drop"},
    "dropped in the answer": {"kind": "drop", "on": "retrieve"},
    "lost": {"kind": "lost"},
    "failed": {"kind": "failed"},
    "no capacity": {"kind": "paused", "seconds": 0.3},
}


def test_sampling_gets_over_faults(standin: StandIn) -> None:
    """All at once, each on a request of its own; what comes out is what would have."""
    with opened(standin) as policy:
        prompts = [policy.codec.encode(problem) for problem in PROBLEMS]
        expected = policy.sample(prompts, keys(6), SamplingParams(8))
        planned = [standin.faults.add(route="asample", **f) for f in SAMPLE_FAULTS.values()]
        found = policy.sample(prompts, keys(6), SamplingParams(8))
    assert [fault.hits for fault in planned] == [1] * len(planned)
    for mine, other in zip(flat(expected), flat(found), strict=True):
        assert other.token_ids.tolist() == mine.token_ids.tolist()


def test_a_lost_completion_makes_its_group_smaller(
    standin: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(standin, backend={"max_concurrent": 1}) as policy:
        policy._in_flight = 1
        standin.faults.add("failed", route="asample", skip=1, times=QUICK.attempts)
        with caplog.at_level(logging.WARNING, "retrain"):
            groups = sample_groups(policy, PROBLEMS, keys(3), SamplingParams(8))
    assert sorted(group.lost for group in groups) == [0, 1]
    assert sorted(len(group.completions) for group in groups) == [2, 3]
    assert "1 of 6 completions were lost" in caplog.text


def test_when_all_completions_are_lost_the_run_stops_as_resumable(
    standin: StandIn, tmp_path: Path
) -> None:
    with opened(standin) as policy:
        standin.faults.add("failed", route="asample", times=None)
        with pytest.raises(ServiceLostError, match="all 4 completions were lost") as raised:
            sample_groups(policy, PROBLEMS, keys(2), SamplingParams(8))
    assert cause_of(raised.value, tmp_path) == SERVICE


@pytest.mark.parametrize("route", ["forward_backward", "optim_step"])
@pytest.mark.parametrize("kind", ["lost", "failed"])
@pytest.mark.parametrize("carried_out", [False, True])
def test_an_update_whose_fate_is_unknown_is_not_made_twice(
    standin: StandIn, tmp_path: Path, route: str, kind: Any, carried_out: bool
) -> None:
    with opened(standin) as policy:
        batch = random_batch(policy, "token_mean")
        before = len([call for call in standin.calls if call["kind"] == route])
        standin.faults.add(kind, route=route, carried_out=carried_out)
        with pytest.raises(ServiceLostError) as raised:
            policy.update(batch, LossConfig(), STEP)
        made = len([call for call in standin.calls if call["kind"] == route]) - before
    assert made <= 1
    assert cause_of(raised.value, tmp_path) == SERVICE


def test_an_update_gets_over_what_the_sdk_repeats(standin: StandIn) -> None:
    """Requests that are sent again bear the same number, and the service does nothing twice."""
    with opened(standin) as policy:
        batch = random_batch(policy, "token_mean")
        policy.update(batch, LossConfig(), STEP)
        expected = standin.parameters()
    with opened(standin) as policy:
        standin.faults.add("drop", route="forward_backward", on="retrieve")
        standin.faults.add("status", route="optim_step", status=504, carried_out=True)
        policy.update(batch, LossConfig(), STEP)
        assert standin.parameters().tolist() == expected.tolist()


def test_a_service_that_comes_back_is_waited_for(standin: StandIn) -> None:
    with opened(standin) as policy:
        prompts = [policy.codec.encode(problem) for problem in PROBLEMS]
        expected = policy.sample(prompts, keys(2), SamplingParams(8))
        standin.away()
        threading.Timer(0.4, standin.back).start()
        found = policy.sample(prompts, keys(2), SamplingParams(8))
    for mine, other in zip(flat(expected), flat(found), strict=True):
        assert other.token_ids.tolist() == mine.token_ids.tolist()


def test_requests_that_are_given_up_end_in_silence(
    standin: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    with Service(standin.url, Throttle(None, 1)) as service:
        holder = service.rest.holder
        fail_when_given_up(
            lambda work: holder.run_coroutine_threadsafe(work).future(), "no such sampling session"
        )
        service.look()
    gc.collect()
    assert not [record for record in caplog.records if record.exc_info]


def test_a_service_that_stays_away_is_given_up(standin: StandIn, tmp_path: Path) -> None:
    with opened(standin) as policy:
        prompts = [policy.codec.encode(problem) for problem in PROBLEMS]
        policy.sample(prompts, keys(2), SamplingParams(8))
        policy._service.patience = HASTY
        standin.away()
        with pytest.raises(ServiceLostError, match="has not answered for") as raised:
            policy.sample(prompts, keys(2), SamplingParams(8))
    assert cause_of(raised.value, tmp_path) == SERVICE
    config = settings(standin)
    with pytest.raises(ServiceLostError), open_policy(config, config.backend, HASTY):
        pass


def test_a_completion_that_never_comes_is_lost_once(standin: StandIn) -> None:
    """A service that answers otherwise is not waited for as often as it is asked."""
    with opened(standin) as policy:
        policy._service.patience = replace(QUICK, look_s=0.5, answer_s=3.0)
        hit = standin.faults.add("paused", route="asample", seconds=30.0)
        groups = sample_groups(policy, PROBLEMS, keys(2), SamplingParams(8))
    assert hit.hits == 1
    assert sum(group.lost for group in groups) == 1


def test_what_a_service_has_forgotten_is_a_lost_service(standin: StandIn) -> None:
    with opened(standin) as policy:
        prompts = [policy.codec.encode(problem) for problem in PROBLEMS]
        policy.sample(prompts, keys(1), SamplingParams(4))
        standin.forget()
        with pytest.raises(ServiceLostError, match="no longer"):
            policy.sample(prompts, keys(1), SamplingParams(4))


def test_what_the_service_refuses_is_told_at_once(standin: StandIn) -> None:
    with opened(standin) as policy:
        prompts = [policy.codec.encode(problem) for problem in PROBLEMS]
        policy.sample(prompts, keys(1), SamplingParams(4))
        hit = standin.faults.add("status", route="asample", status=400, times=None)
        with pytest.raises(RefusedError, match=r"refuses a completion: .*400"):
            policy.sample(prompts[:1], keys(1)[:1], SamplingParams(4))
        assert hit.hits == 1


def test_numbers_that_are_not_finite_are_not_sent(standin: StandIn) -> None:
    with opened(standin) as policy:
        batch = random_batch(policy, "token_mean")
        before = len(standin.calls)
        for name in ("credit", "logprobs"):
            spoilt = getattr(batch, name).copy()
            spoilt[0, 0] = np.nan
            with pytest.raises(NonFiniteUpdateError, match=name):
                policy.update(replace(batch, **{name: spoilt}), LossConfig(), STEP)
        assert len(standin.calls) == before


def test_errors_of_the_sdk_by_kind() -> None:
    request = httpx.Request("POST", "http://127.0.0.1/")

    def status(code: int) -> Exception:
        return tinker.APIStatusError(
            "no", response=httpx.Response(code, request=request), body=None
        )

    kinds = {code: failure_of(status(code)) for code in (400, 401, 402, 403, 422)}
    assert set(kinds.values()) == {Failure.REFUSED}
    kinds = {code: failure_of(status(code)) for code in (408, 409, 429, 500, 502, 504)}
    assert set(kinds.values()) == {Failure.AGAIN}
    assert {failure_of(status(code)) for code in (404, 410)} == {Failure.GONE}
    assert failure_of(tinker.APIConnectionError(request=request)) is Failure.AGAIN
    wrapped = RuntimeError("poisoned")
    wrapped.__cause__ = status(404)
    assert failure_of(wrapped) is Failure.GONE
    assert failure_of(RuntimeError("a bug")) is Failure.REFUSED


def test_words_of_the_sdk_without_its_variables() -> None:
    text = "Request failed: no room for self.request_id='36f2' and expected type self.model_cls=int"
    assert words(RuntimeError(text)) == "Request failed: no room"
    assert words(RuntimeError("a\n b")) == "a b"
    assert len(words(RuntimeError("x" * 1000))) < 310
    assert words(RuntimeError(f"no key {os.environ['TINKER_API_KEY']}")) == "no key [key]"


def test_pauses_grow_and_depend_on_their_key_alone() -> None:
    patience = Patience(attempts=7)
    first, again, other = (list(patience.pauses(key)) for key in (1, 1, 2))
    assert first == again != other
    for attempt, pause in enumerate(first):
        usual = min(2.0 * 2**attempt, 30.0)
        assert 0.5 * usual <= pause <= 1.5 * usual


def test_a_model_that_the_service_has_not_is_named(standin: StandIn) -> None:
    with (
        pytest.raises(InputError, match=r"the service has no 'embeded'.*embedded"),
        opened(standin, model={"model": "embeded"}),
    ):
        pass


def test_without_a_key_nothing_begins(
    standin: StandIn, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    for wrong in ("", "sk-something"):
        monkeypatch.setenv("TINKER_API_KEY", wrong)
        with pytest.raises(InputError, match="TINKER_API_KEY") as raised:
            Service(standin.url, Throttle(None, 1))
        assert "something" not in str(raised.value)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert 'pip install "retrain[tinker]"' in access_problem()


@pytest.mark.parametrize(
    "text", ["tinker://a/weights/b/c", "tinker://a/other/b", "http://a/weights/b", "tinker://"]
)
def test_paths_that_name_no_weights(text: str) -> None:
    with pytest.raises(InputError, match="names no weights"):
        ServicePath.parse(text)


def test_sampler_weights_are_neither_trained_nor_downloaded() -> None:
    with pytest.raises(InputError, match="weights for sampling alone"):
        ServicePath.parse("tinker://a/sampler_weights/b")
    path = ServicePath.parse("tinker://a:train:0/weights/final")
    assert str(path) == "tinker://a:train:0/weights/final"
