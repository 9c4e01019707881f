"""What `retrain explain` says of memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from retrain.config.explain_memory import memory_rows
from retrain.config.load import read_mapping
from retrain.config.schema import RunConfig
from retrain.experiments import memory
from retrain.preflight import check_reading

GIB = 2**30


@pytest.fixture
def qwen3_4b(tmp_path: Path) -> str:
    """Its config alone: the weights' sizes follow from it."""
    config = {
        **{"model_type": "qwen3", "num_hidden_layers": 36, "hidden_size": 2560, "head_dim": 128},
        **{"num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 9728},
        **{"vocab_size": 151936, "tie_word_embeddings": True, "max_position_embeddings": 40960},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    return str(tmp_path)


def of(
    folder: str, gpu: float | None, inference: dict[str, Any] | None = None, **training: Any
) -> dict[str, Any]:
    run = RunConfig.model_validate(
        {
            "model": {"model": folder},
            "training": {"max_tokens": 2048, **training},
            "backend": {"device": "cuda"},
            "inference": inference or {},
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "gpu_memory", lambda: None if gpu is None else int(gpu * GIB))
        found = memory.run_memory(run, Path.cwd())
    assert found is not None
    return json.loads(json.dumps(found))


def test_a_4b_model_on_a_large_and_a_small_gpu(qwen3_4b: str) -> None:
    large, small = of(qwen3_4b, 80), of(qwen3_4b, 24)
    assert large["peak"]["weights"] == pytest.approx(8.0e9, rel=0.02)
    assert large["adapter_parameters"] == 66_060_288
    assert (large["engine"], large["decode_rows"]) == ("factored", 128)
    assert large["micro_batch_tokens"] >= 8192
    assert small["decode_rows"] < 64
    assert small["gradient_checkpointing"]
    for found, gpu in ((large, 80), (small, 24)):
        assert found["peak"]["total"] <= gpu * GIB
        assert found["peak"]["total"] == sum(
            found["peak"][part] for part in ("weights", "adapter", "optimizer")
        ) + max(found["peak"]["cache"], found["peak"]["update"])


def test_a_server_on_the_same_gpu_takes_its_share(qwen3_4b: str) -> None:
    alone = of(qwen3_4b, 80)
    shared = of(qwen3_4b, 80, inference={"engine": "vllm", "gpu_memory": 0.75})
    assert shared["device_memory"] == 20 * GIB
    assert shared["peak"]["total"] <= 20 * GIB < alone["peak"]["total"]
    assert (shared["decode_rows"], shared["peak"]["cache"]) == (0, 0)
    text = dict(memory_rows(shared))
    assert text["memory"].endswith("20.0 GiB left by the server, which takes 60.0 GiB")
    elsewhere = {"engine": "vllm", "gpu_memory": 0.75, "gpus": "1"}
    assert of(qwen3_4b, 80, inference=elsewhere)["device_memory"] == alone["device_memory"]


def test_what_the_config_says_is_taken_and_one_row_is_the_least(qwen3_4b: str) -> None:
    given = {"decode_rows": 40, "micro_batch_tokens": 100, "gradient_checkpointing": True}
    found = of(qwen3_4b, 80, **given)
    assert (found["decode_rows"], found["gradient_checkpointing"]) == (40, True)
    assert found["micro_batch_tokens"] == 2048 + memory.ASSUMED_PROMPT


def test_more_than_there_is_is_said(qwen3_4b: str) -> None:
    text = dict(memory_rows(of(qwen3_4b, 6)))
    assert text["memory"].endswith("at a worker's peak; the GPU has 6.0 GiB")
    assert "more than there is" in text[""]
    text = dict(memory_rows(of(qwen3_4b, None)))
    assert text["memory"].endswith("at a worker's peak")
    assert "weights 7.5 GiB" in text["  always"]


def test_the_problems_are_counted_as_they_are_read(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}" + "x" * 100, "answer": "1"} for i in range(8000)]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tables: dict[str, Any] = {
        "data": {"source": "jsonl", "path": "x.jsonl"},
        "training": {"max_tokens": 32},
    }
    loaded, _ = check_reading(read_mapping(tables, base_dir=tmp_path))
    # A problem, its id, prompt, answer and empty metadata, and what finds it again.
    assert 8000 * 700 < loaded.data_bytes < 8000 * 1100
    run = loaded.run_config(loaded.conditions[0], 1)
    with_data, without = (memory.run_memory(run, tmp_path, size) for size in (2**23, 0))
    assert with_data is not None
    assert without is not None
    assert with_data["peak"]["total"] - without["peak"]["total"] == 2**23
    assert dict(memory_rows(with_data))["  and"] == "problems 8 MiB of main memory"


def test_a_model_that_is_not_here_is_not_guessed() -> None:
    run = RunConfig.model_validate({"model": {"model": "nobody/nothing"}})
    assert memory.run_memory(run, Path.cwd()) is None
