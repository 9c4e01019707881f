"""The embedded model is loaded without transformers: the same values, and nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from retrain.config.schema import BackendConfig, ModelConfig
from retrain.errors import InputError
from retrain.models.codec import ChatCodec
from retrain.models.llama import LlamaWeights, supports
from retrain.models.lora import target_modules
from retrain.models.shape import ModelShape
from retrain.models.tiny import EMBEDDED_PATH
from retrain.models.tiny.codec import TinyTokenizer
from retrain.models.tiny.model import load_tiny
from retrain.policies.local.base import load_base
from retrain.types import Problem

THEIRS = AutoTokenizer.from_pretrained(EMBEDDED_PATH)
OURS = TinyTokenizer()
CODECS = [ChatCodec(tokenizer, (1,)) for tokenizer in (OURS, THEIRS)]
HEAVY = ("transformers", "torch._dynamo", "torch._inductor", "sympy", "scipy", "pandas", "altair")

TRAIN = """
import sys
from pathlib import Path
from retrain.config.schema import RunConfig
from retrain.training.run import train_run
sizes = {"batch_size": 4, "group_size": 4, "max_tokens": 48, "max_steps": 1}
config = RunConfig(training=sizes, evaluation={"num_problems": 1})
train_run(config, Path(sys.argv[1]), name="a", condition="a")
print(*sys.modules)
"""


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16])
def both(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """Our module and that of transformers."""
    theirs = AutoModelForCausalLM.from_pretrained(EMBEDDED_PATH, dtype=request.param)
    return load_tiny(request.param), theirs


def test_parameters_are_those_of_transformers_in_its_order(both: tuple[Any, Any]) -> None:
    ours, theirs = (dict(module.named_parameters()) for module in both)
    assert list(ours) == list(theirs)
    for name, weight in ours.items():
        assert weight.dtype == theirs[name].dtype
        assert torch.equal(weight, theirs[name]), name
    assert both[0].dtype == both[1].dtype
    assert both[0].lm_head.weight is both[0].model.embed_tokens.weight
    linear = [list(target_modules(module, "all-linear")) for module in both]
    assert linear[0] == linear[1]
    assert len(linear[0]) == 14


def test_the_engines_read_the_same_from_it(both: tuple[Any, Any]) -> None:
    assert supports(both[0])
    shapes = [
        ModelShape.of(m.config.to_dict(), {n: p.shape for n, p in m.named_parameters()})
        for m in both
    ]
    assert shapes[0] == shapes[1]
    weights = [LlamaWeights(module) for module in both]
    for name in ("heads", "kv_heads", "head_dim", "eps", "dtype"):
        assert getattr(weights[0], name) == getattr(weights[1], name), name
    for ours, theirs in zip(*(w.rotary_table(300) for w in weights), strict=True):
        assert torch.equal(ours, theirs)


@given(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text()), min_size=1))
def test_prompts_are_encoded_as_by_transformers(messages: list[tuple[str, str]]) -> None:
    prompt: Any = tuple({"role": role, "content": content} for role, content in messages)
    ours, theirs = (codec.encode(Problem("a", prompt, "")) for codec in CODECS)
    assert ours.tolist() == theirs.tolist()


@given(st.lists(st.lists(st.integers(0, 319))))
def test_tokens_are_decoded_as_by_transformers(rows: list[list[int]]) -> None:
    tokens = [np.array(row, dtype=np.int64) for row in rows]
    ours, theirs = (codec.decode_batch(tokens) for codec in CODECS)
    assert ours == theirs == [CODECS[0].decode(row) for row in tokens]
    ours, theirs = ([codec.pieces(row) for row in tokens] for codec in CODECS)
    assert ours == theirs


def test_special_tokens_and_the_end_are_those_of_transformers() -> None:
    assert set(OURS.all_special_ids) == set(THEIRS.all_special_ids)
    generation = json.loads((EMBEDDED_PATH / "generation_config.json").read_text())
    assert OURS.eos_token_id == THEIRS.eos_token_id == generation["eos_token_id"]
    base = load_base(ModelConfig(), BackendConfig(device="cpu"))
    assert (base.codec.eos_ids, base.name, base.context) == ((1,), "embedded", 256)
    assert not any(p.requires_grad for p in base.module.parameters())


def test_the_template_refuses_a_role_that_it_does_not_know() -> None:
    prompt: Any = ({"role": "tool", "content": "4"},)
    with pytest.raises(InputError, match="unknown role: tool"):
        CODECS[0].encode(Problem("a", prompt, ""))


def test_training_it_imports_neither_transformers_nor_the_compiler(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", TRAIN, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=True,
    )
    (row,) = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert row["grad_norm"] > 0, "nothing was learnt, so nothing is shown about learning"
    loaded = result.stdout.splitlines()[-1].split()
    assert "torch" in loaded
    assert [name for name in HEAVY if name in loaded] == []
