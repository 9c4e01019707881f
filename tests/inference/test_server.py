"""The test server answers as vLLM would, and what it computes is what the local policy computes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from retrain.types import Completion, IntArray, Problem, SamplingParams
from tests.inference.server import InferenceServer, LogprobsMode, Remote

MAX_TOKENS = 6
KEYS = [3, 2**63 - 1, 2**63, 2**64 - 5]


@pytest.fixture(scope="module")
def running() -> Iterator[InferenceServer]:
    with InferenceServer() as server:
        yield server


@pytest.fixture
def server(running: InferenceServer) -> InferenceServer:
    running.reset()
    return running


@pytest.fixture(scope="module")
def policy() -> Any:
    """A local policy whose adapter changes every output."""
    import torch

    from retrain.config.schema import BackendConfig, ModelConfig
    from retrain.models.lora import LoraSpec
    from retrain.policies.local.base import load_base
    from retrain.policies.local.policy import LocalPolicy

    base = load_base(ModelConfig(model="embedded"), BackendConfig(device="cpu"))
    policy = LocalPolicy(base, LoraSpec(4, 8.0), seed=1)
    noise = np.random.default_rng(2).normal(0, 0.1, policy.adapter.params.shape)
    policy.adapter.params.add_(torch.from_numpy(noise).float())
    return policy


@pytest.fixture(scope="module")
def folder(policy: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The policy's adapter, exported."""
    folder = tmp_path_factory.mktemp("adapter")
    policy.export(folder)
    return folder


@pytest.fixture(scope="module")
def prompts(policy: Any) -> list[IntArray]:
    problems = [Problem(id=str(i), prompt=f"{i} + {2 * i} =", answer="") for i in (3, 14)]
    return [policy.codec.encode(problem) for problem in problems]


def ask(server: Any, route: str, body: dict[str, Any], **options: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/{route}", json=body, **{"timeout": 20.0, **options})


def load(server: Any, name: str, folder: Path, **fields: Any) -> httpx.Response:
    body = {"lora_name": name, "lora_path": str(folder), **fields}
    return ask(server, "load_lora_adapter", body)


def signed(key: int) -> int:
    return key if key < 2**63 else key - 2**64


def wish(prompt: Any, key: int, **fields: Any) -> dict[str, Any]:
    return {
        **{"model": "embedded", "prompt": prompt, "max_tokens": MAX_TOKENS, "temperature": 1.0},
        **{"seed": signed(key), "logprobs": 0, "return_token_ids": True},
        **{"return_tokens_as_token_ids": True, **fields},
    }


def choices(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    return list(response.json()["choices"])


def one(server: Any, prompt: IntArray, key: int, **fields: Any) -> dict[str, Any]:
    (choice,) = choices(ask(server, "completions", wish(prompt.tolist(), key, **fields)))
    return choice


def agree(choice: dict[str, Any], completion: Completion) -> None:
    assert choice["token_ids"] == completion.token_ids.tolist()
    tokens = [f"token_id:{index}" for index in completion.token_ids]
    assert choice["logprobs"]["tokens"] == tokens
    assert choice["logprobs"]["token_logprobs"] == pytest.approx(completion.logprobs, abs=2e-5)
    assert choice["finish_reason"] == completion.stop_reason
    assert choice["text"] == completion.text


def error_of(response: httpx.Response) -> tuple[int, str]:
    error = response.json()["error"]
    assert error["code"] == response.status_code
    return response.status_code, error["message"]


def test_completions_are_those_of_the_local_policy_under_the_same_keys(
    server: InferenceServer, policy: Any, folder: Path, prompts: list[IntArray]
) -> None:
    keys = np.array([KEYS, KEYS[::-1]], dtype=np.uint64)
    wanted = policy.sample(prompts, keys, SamplingParams(MAX_TOKENS))
    assert load(server, "run-1", folder).text == (
        "Success: LoRA adapter 'run-1' added successfully."
    )
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(
            lambda at: one(server, prompts[at[0]], int(keys[at]), model="run-1"),
            np.ndindex(2, len(KEYS)),
        )
        for choice, completion in zip(found, chain.from_iterable(wanted), strict=True):
            agree(choice, completion)
    base = one(server, prompts[0], KEYS[0])["logprobs"]["token_logprobs"][0]
    assert abs(base - wanted[0][0].logprobs[0]) > 1e-3


def test_several_prompts_and_several_completions_of_each(
    server: InferenceServer, policy: Any, folder: Path, prompts: list[IntArray]
) -> None:
    load(server, "a", folder)
    keys = np.array([[7, 8], [7, 8]], dtype=np.uint64)
    wanted = policy.sample(prompts, keys, SamplingParams(MAX_TOKENS))
    rows = [prompt.tolist() for prompt in prompts]
    response = ask(server, "completions", wish(rows, 7, model="a", n=2))
    for choice, completion in zip(choices(response), chain.from_iterable(wanted), strict=True):
        agree(choice, completion)
    assert [choice["index"] for choice in choices(response)] == [0, 1, 2, 3]
    assert [choice["prompt_token_ids"] for choice in choices(response)] == [
        rows[i] for i in (0, 0, 1, 1)
    ]
    usage = response.json()["usage"]
    assert usage["completion_tokens"] == sum(c.num_tokens for row in wanted for c in row)
    assert usage["prompt_tokens"] == 2 * sum(map(len, rows))


def test_ends(server: InferenceServer, policy: Any, prompts: list[IntArray]) -> None:
    drawn = one(server, prompts[0], 3, max_tokens=3)["token_ids"]
    stop = next(i for i in drawn if i not in policy.codec.eos_ids)
    upto = drawn[: drawn.index(stop) + 1]
    stopped = one(server, prompts[0], 3, max_tokens=3, stop_token_ids=[stop])
    assert (stopped["token_ids"], stopped["finish_reason"]) == (upto, "stop")
    assert stopped["stop_reason"] == stop
    assert stopped["text"] == policy.codec.decode(np.array(upto[:-1], dtype=np.int64))
    ends = {"stop_token_ids": [stop], "include_stop_str_in_output": True}
    shown = one(server, prompts[0], 3, max_tokens=3, **ends)
    assert shown["text"] == policy.codec.decode(np.array(upto))
    greedy = one(server, prompts[0], 3, temperature=0.0, max_tokens=40)
    assert greedy["finish_reason"] == "stop"
    assert greedy["token_ids"][-1] in policy.codec.eos_ids
    assert greedy["stop_reason"] is None
    bare = {"prompt": prompts[0].tolist(), "temperature": 0.0}
    (short,) = choices(ask(server, "completions", bare))
    assert short["logprobs"] is short["token_ids"] is None
    assert greedy["text"].startswith(short["text"])


@pytest.mark.parametrize("mode", ["raw_logprobs", "processed_logprobs"])
def test_log_probabilities_are_raw_unless_it_is_told_otherwise(
    server: InferenceServer,
    policy: Any,
    folder: Path,
    prompts: list[IntArray],
    mode: LogprobsMode,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "logprobs_mode", mode)
    load(server, "a", folder)
    keys = np.array([[11]], dtype=np.uint64)
    wanted = policy.sample(prompts[:1], keys, SamplingParams(MAX_TOKENS, 0.7, 0.9))[0][0]
    found = one(server, prompts[0], 11, model="a", temperature=0.7, top_p=0.9)
    assert found["token_ids"] == wanted.token_ids.tolist()
    told = np.array(found["logprobs"]["token_logprobs"])
    if mode == "processed_logprobs":
        assert told == pytest.approx(wanted.logprobs, abs=2e-5)
        return
    # At temperature 1 and with nothing truncated, the same tokens are told the same numbers.
    batch = plain_batch(prompts[0], wanted)
    ((scored, _),) = list(policy.logprobs(batch))
    assert told == pytest.approx(scored[0].double().numpy(), abs=2e-5)
    assert np.abs(told - wanted.logprobs).max() > 0.01


def plain_batch(prompt: IntArray, completion: Completion) -> Any:
    from retrain.types import TrainBatch

    ones = np.ones((1, completion.num_tokens))
    return TrainBatch(
        prompts=[prompt],
        prompt_index=np.zeros(1, dtype=np.int64),
        token_ids=completion.token_ids[None],
        mask=ones.astype(bool),
        logprobs=completion.logprobs[None],
        credit=ones,
        weight=ones,
        temperature=1.0,
    )


def test_adapters_come_and_go_by_name(
    server: InferenceServer, folder: Path, prompts: list[IntArray], tmp_path: Path
) -> None:
    assert load(server, "a", folder).status_code == 200
    assert error_of(load(server, "a", folder)) == (
        400,
        "The lora adapter 'a' has already been loaded.",
    )
    assert load(server, "a", folder, load_inplace=True).status_code == 200
    missing = tmp_path / "missing"
    assert error_of(load(server, "b", missing)) == (
        404,
        f"Loading lora b failed: No adapter found for {missing}",
    )
    assert error_of(ask(server, "load_lora_adapter", {"lora_name": "b"}))[0] == 400
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    weights = damaged / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert error_of(load(server, "b", damaged))[0] == 400

    listed = httpx.get(f"{server.url}/v1/models").json()["data"]
    assert [(c["id"], c["parent"]) for c in listed] == [("embedded", None), ("a", "embedded")]
    assert listed[0]["max_model_len"] > 0
    assert listed[1]["root"] == str(folder)

    gone = ask(server, "unload_lora_adapter", {"lora_name": "a"})
    assert gone.text == "Success: LoRA adapter 'a' removed successfully."
    assert error_of(ask(server, "unload_lora_adapter", {"lora_name": "a"})) == (
        404,
        "The lora adapter 'a' cannot be found.",
    )
    refused = ask(server, "completions", wish(prompts[0].tolist(), 1, model="a"))
    assert error_of(refused) == (404, "The model `a` does not exist.")


def test_limits_of_the_server(
    server: InferenceServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "max_lora_rank", 2)
    status, message = error_of(load(server, "a", folder))
    assert (status, "greater than max_lora_rank 2" in message) == (400, True)
    monkeypatch.setattr(server, "runtime_lora", False)
    assert load(server, "a", folder).status_code == 404
    monkeypatch.setattr(server, "api_key", "secret")
    assert httpx.get(f"{server.url}/v1/models").status_code == 401
    key = {"Authorization": "Bearer secret"}
    assert httpx.get(f"{server.url}/v1/models", headers=key).status_code == 200
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert "version" in httpx.get(f"{server.url}/version").json()
    assert httpx.get(f"{server.url}/v1/nothing").status_code == 404
    assert httpx.post(f"{server.url}/health").status_code == 405
    assert httpx.post(f"{server.url}/v1/completions", content=b"[1").status_code == 400


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"seed": 2**63}, "seed"),
        ({"logprobs": 21}, "logprobs"),
        ({"top_k": 5}, "top_k"),
        ({"tempreature": 1.0}, "tempreature"),
        ({"max_tokens": 100_000}, "maximum context length"),
        ({"prompt": "a text"}, "token ids"),
        ({"prompt": [10**9]}, "out of vocabulary"),
        ({"top_p": 0.0}, "out of its range"),
    ],
)
def test_what_cannot_be_served_is_refused(
    server: InferenceServer, fields: dict[str, Any], word: str
) -> None:
    status, message = error_of(ask(server, "completions", {**wish([1, 2], 1), **fields}))
    assert status == 400
    assert word in message


def test_an_old_version_knows_ids_only_as_tokens(
    server: InferenceServer, prompts: list[IntArray], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = one(server, prompts[0], 5)["token_ids"]
    monkeypatch.setattr(server, "token_ids", False)
    found = one(server, prompts[0], 5)
    assert "token_ids" not in found
    assert found["logprobs"]["tokens"] == [f"token_id:{index}" for index in wanted]


def test_requests_that_are_answered_by_a_status(
    server: InferenceServer, prompts: list[IntArray]
) -> None:
    header = {"Retry-After": "2"}
    server.faults.add("status", route="completions", status=429, headers=header, times=2, skip=1)
    body = wish(prompts[0].tolist(), 1)
    answers = [ask(server, "completions", body) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 429, 429, 200]
    assert answers[1].headers["Retry-After"] == "2"
    assert error_of(answers[2])[1] == "injected"
    assert [call["outcome"] for call in server.calls] == ["200", "429", "429", "200"]
    assert server.calls[0]["asked"]["seed"] == 1


@pytest.mark.parametrize("on", ["submit", "retrieve"])
@pytest.mark.parametrize("kind", ["drop", "timeout"])
def test_connections_that_break_or_hang(server: InferenceServer, kind: Any, on: Any) -> None:
    server.faults.add(kind, on=on, seconds=0.05)
    with pytest.raises(httpx.RemoteProtocolError):
        ask(server, "completions", wish([1, 2], 1))
    assert ask(server, "completions", wish([1, 2], 1)).status_code == 200
    server.faults.add("timeout", seconds=0.6)
    with pytest.raises(httpx.ReadTimeout):
        ask(server, "completions", wish([1, 2], 1), timeout=0.05)


def test_a_load_that_is_carried_out_and_not_told(server: InferenceServer, folder: Path) -> None:
    server.faults.add("status", route="load*", status=502, carried_out=True)
    assert load(server, "a", folder).status_code == 502
    assert error_of(load(server, "a", folder))[0] == 400
    assert list(server.adapters) == ["a"]


def test_slow_requests_are_in_flight_together(server: InferenceServer) -> None:
    server.faults.add("slow", route="completions", seconds=0.3, times=None)
    with ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(lambda i: ask(server, "completions", wish([1], i)), range(5)))
    assert {answer.status_code for answer in answers} == {200}
    assert server.in_flight_max["completions"] == 5
    assert server.ledger.summary()["in_flight"] == {}


def test_a_stale_adapter_is_said_to_be_loaded(
    server: InferenceServer, policy: Any, folder: Path, prompts: list[IntArray]
) -> None:
    server.faults.add("stale")
    base = one(server, prompts[0], 4)
    assert load(server, "old", folder).status_code == 200
    assert one(server, prompts[0], 4, model="old") == base
    assert load(server, "new", folder).status_code == 200
    keys = np.array([[4]], dtype=np.uint64)
    wanted = policy.sample(prompts[:1], keys, SamplingParams(MAX_TOKENS))[0][0]
    agree(one(server, prompts[0], 4, model="new"), wanted)


def test_a_wrong_temperature_and_wrong_log_probabilities(
    server: InferenceServer, prompts: list[IntArray]
) -> None:
    right = one(server, prompts[0], 4)
    server.faults.add("temperature", amount=0.0)
    greedy = one(server, prompts[0], 4)
    assert greedy["token_ids"] == one(server, prompts[0], 4, temperature=0.0)["token_ids"]
    server.faults.add("temperature", amount=3.0)
    hot = one(server, prompts[0], 4)
    server.faults.add("noise", amount=0.5)
    noisy = one(server, prompts[0], 4)
    assert noisy["token_ids"] == right["token_ids"]
    told = np.array(noisy["logprobs"]["token_logprobs"]) - right["logprobs"]["token_logprobs"]
    assert 0.05 < np.abs(told).mean() < 1.5
    assert hot["logprobs"]["token_logprobs"] != right["logprobs"]["token_logprobs"]
    assert one(server, prompts[0], 4) == right


def test_away_and_back(server: InferenceServer, folder: Path) -> None:
    load(server, "a", folder)
    server.away()
    with pytest.raises(httpx.ConnectError):
        ask(server, "completions", wish([1], 1, model="a"))
    server.back()
    assert ask(server, "completions", wish([1], 1, model="a")).status_code == 200
    server.forget()
    assert ask(server, "completions", wish([1], 1, model="a")).status_code == 404


def test_as_a_process(server: InferenceServer, prompts: list[IntArray], tmp_path: Path) -> None:
    with Remote(tmp_path, "--model", "small", "--max-lora-rank", "8") as remote:
        body = wish(prompts[0].tolist(), KEYS[2])
        there = choices(ask(remote, "completions", {**body, "model": "small"}))
        assert there == choices(ask(server, "completions", body))
        remote.add_fault("status", status=503)
        assert httpx.get(f"{remote.url}/health").status_code == 503
        kinds = [(call["kind"], call["outcome"]) for call in remote.calls]
    assert kinds == [("completions", "200"), ("health", "503")]
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["event"] for line in log] == ["begin", "end", "begin", "end"]
