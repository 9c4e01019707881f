"""Whole runs with rewards that take a while: judged beside decoding, masked, gone on with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retrain.config.schema import RunConfig
from retrain.files import read_json
from retrain.rewards import judge_server as client
from retrain.rewards.reward import RewardFailedError
from tests.rewards.judge_server import FakeServer, Reply, failed, fake_server, verdict
from tests.training.runs import assert_same, config, rows, start


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setattr(client, "FIRST_PAUSE_S", 0.01)
    with fake_server() as fake:
        fake.answer = fair
        yield fake


def fair(body: dict[str, Any]) -> Reply:
    """A verdict that depends on the question alone."""
    digest = hashlib.sha256(body["messages"][-1]["content"].encode()).digest()
    return verdict(digest[0] / 255)


def judged(server: FakeServer, cache: Path, **changes: Any) -> RunConfig:
    reward = {
        "type": "judge",
        "base_url": server.url,
        "model": "judge-1",
        "retries": 1,
        "cache_dir": str(cache),
    }
    evaluation = {"num_problems": 2}
    return config(reward={**reward, **changes}, evaluation=evaluation)


def test_a_stopped_run_with_a_judge_goes_on_as_if_it_had_not_been(
    server: FakeServer, tmp_path: Path
) -> None:
    settings = judged(server, tmp_path / "cache", prompt="{problem} {response} SCORE:")
    start(settings, tmp_path / "whole")
    asked = len(server.asked)

    def stop() -> bool:
        return len(rows(tmp_path / "parts")) == 2

    with pytest.raises(KeyboardInterrupt):
        start(settings, tmp_path / "parts", stop=stop)
    start(settings, tmp_path / "parts")
    assert_same(tmp_path / "whole", tmp_path / "parts")
    assert len(server.asked) == asked, "the second run found every verdict in the cache"
    assert len({row["mean_reward"] for row in rows(tmp_path / "whole")}) == 4


def test_steps_with_masked_completions_are_trained_on_the_rest(
    server: FakeServer, tmp_path: Path
) -> None:
    """In step 1 a third is masked, in step 2 everything; every step has its row."""
    settings = judged(server, tmp_path / "cache", on_failure="mask", retries=0)
    state = {"share": 0}

    def answer(body: dict[str, Any]) -> Reply:
        digest = hashlib.sha256(body["messages"][-1]["content"].encode()).digest()
        return failed(500) if digest[1] % 3 < state["share"] else fair(body)

    server.answer = answer

    def follow(row: Any) -> None:
        state["share"] = {0: 1, 1: 3}.get(row["step"], 0)

    result = start(settings, tmp_path / "run", on_row=follow)
    assert result.status == "done"
    found = rows(tmp_path / "run")
    masked = [row["masked_completions"] for row in found]
    assert masked[0] == masked[3] == 0
    assert 0 < masked[1] < 12
    assert masked[2] == 12
    assert found[2]["mean_reward"] is None
    assert found[2]["num_datums"] == found[2]["num_updates"] == 0
    assert found[1]["num_datums"] == 12 - masked[1]
    assert found[3]["mean_reward"] > 0


def test_an_evaluation_that_judged_nothing_is_no_accuracy(
    server: FakeServer, tmp_path: Path
) -> None:
    server.replies(failed(503))
    settings = judged(server, tmp_path / "cache", on_failure="mask", retries=0)
    with pytest.raises(RewardFailedError, match="no completion of the held-out problems"):
        start(settings, tmp_path / "run")
    record = read_json(tmp_path / "run" / "run.json")
    assert (record["status"], record["cause"]) == ("failed", "lost service")


def test_an_evaluation_leaves_out_what_could_not_be_judged(
    server: FakeServer, tmp_path: Path
) -> None:
    first: list[str] = []

    def answer(body: dict[str, Any]) -> Reply:
        problem = body["messages"][-1]["content"].partition("</problem>")[0]
        first.append(problem)
        return failed(500) if problem == first[0] else verdict(1)

    server.answer = answer
    settings = judged(server, tmp_path / "cache", on_failure="mask", retries=0, concurrency=1)
    start(
        settings.model_copy(
            update={"training": settings.training.model_copy(update={"max_steps": 1})}
        ),
        tmp_path / "run",
    )
    found = read_json(tmp_path / "run" / "evaluation" / "step_000000.json")
    assert found["accuracy"] == found["greedy_accuracy"] == 1.0
    assert found["masked_completions"] == 2
    assert [row["correct"] for row in found["problems"]] == [[], [1]]
    assert [row["greedy"] for row in found["problems"]] == [None, 1]


def test_a_run_with_a_composite_reward(tmp_path: Path) -> None:
    (tmp_path / "brevity_part.py").write_text(
        "async def brevity(response, reference):\n    return 1 / (1 + len(response))\n"
    )
    components = [
        {"type": "math", "weight": 1.0, "name": "right", "timeout": 2.0},
        {
            "type": "custom",
            "weight": 0.5,
            "custom_module": "brevity_part",
            "custom_function": "brevity",
        },
    ]
    settings = config(
        reward={"type": "composite", "components": components, "correct_threshold": 1.0},
        plugins={"search_paths": [str(tmp_path)]},
        training={"max_steps": 2},
        evaluation={"num_problems": 0},
    )
    start(settings, tmp_path / "run")
    for row in rows(tmp_path / "run"):
        right = row["reward_components/right/mean"]
        assert row["correct_rate"] == right
        assert row["mean_reward"] == pytest.approx(
            right + 0.5 * row["reward_components/custom/mean"]
        )
        assert row["reward_components/total_reward/mean"] == row["mean_reward"]
        assert 0 < row["reward_components/custom/min"] < row["reward_components/custom/max"] <= 1
    text = (tmp_path / "run" / "config.toml").read_text()
    assert "[[reward.components]]" in text
    start(settings, tmp_path / "run")
    json.dumps(read_json(tmp_path / "run" / "run.json"))
