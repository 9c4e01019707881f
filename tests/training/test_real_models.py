"""Models from folders of their own, of several architectures, trained on a file of problems."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from retrain.errors import InputError
from retrain.files import read_jsonl
from retrain.models.tiny import EMBEDDED_PATH
from retrain.policies.local.base import load_base
from retrain.training.run import BaseModels
from tests.training.runs import assert_same, config, start

KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 8}),
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM, {"head_dim": 8, "sliding_window": 16}),
}


def make_folder(folder: Path, kind: str, template: str | None = None) -> Path:
    """A model with random weights and the embedded model's tokenizer, as from the hub."""
    config_of, model_of, more = KINDS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = model_of(
            config_of(
                vocab_size=320,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=256,
                initializer_range=0.2,
                **more,
            )
        )
    module.generation_config.eos_token_id = 1
    module.save_pretrained(folder)
    for file in EMBEDDED_PATH.iterdir():
        if "token" in file.name or file.name == "chat_template.jinja":
            shutil.copy(file, folder)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    """The answer is how many tokens a random model happens to write; what counts is the way."""
    path = tmp_path / "problems.jsonl"
    lines = [
        {"question": f"What is {i} + {i}?", "target": {"value": 2 * i}, "topic": f"t{i % 2}"}
        for i in range(24)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "my_length.py").write_text(
        "def score(response, reference):\n    return float(len(response) % 2)\n"
    )
    return path


def settings(folder: Path, problems: Path, **tables: dict[str, Any]) -> Any:
    wanted: dict[str, dict[str, Any]] = {
        "data": {
            "source": "jsonl",
            "path": str(problems),
            "prompt_key": "question",
            "answer_key": "target.value",
            "domain_key": "topic",
            "system_prompt": "Be brief.",
            "instruction": "Answer with a number.",
        },
        "reward": {
            "type": "custom",
            "custom_module": "my_length",
            "custom_function": "score",
        },
        "plugins": {"search_paths": [str(problems.parent)]},
        "training": {"max_tokens": 12},
        "evaluation": {"num_problems": 2},
    }
    wanted["model"] = {"model": str(folder), **tables.pop("model", {})}
    for table, values in tables.items():
        wanted[table] = {**wanted.get(table, {}), **values}
    return config(**wanted)


@pytest.mark.parametrize(
    ("kind", "dtype", "engine"),
    [
        ("qwen3", "float32", "fused"),
        ("qwen3", "bfloat16", "factored"),
        ("llama", "bfloat16", "factored"),
        ("gemma2", "float32", "modules"),
    ],
)
def test_a_folder_is_trained_and_its_adapter_loads_with_peft(
    kind: str, dtype: str, engine: str, problems: Path, tmp_path: Path
) -> None:
    folder = make_folder(tmp_path / kind, kind)
    wanted = settings(
        folder,
        problems,
        model={"dtype": dtype},
        training={"decode_rows": 5, "gradient_checkpointing": True, "micro_batch_tokens": 300},
    )
    assert load_base(wanted.model, wanted.backend).engine.kind == engine
    result = start(wanted, tmp_path / "run")
    assert (result.status, result.steps) == ("done", 4)
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    learnt = [row for row in rows if row["num_updates"]]
    assert learnt
    off = 1e-4 if dtype == "float32" else 0.02
    assert all(abs(row["ratio_mean"] - 1) < off for row in learnt)
    assert all(row["grad_norm"] > 0 for row in learnt)
    shown = read_jsonl(tmp_path / "run" / "emergence" / "generations.jsonl")[0]
    assert json.dumps(shown["prompt"]).count("Answer with a number.") == 1
    module = AutoModelForCausalLM.from_pretrained(folder)
    peft = PeftModel.from_pretrained(module, tmp_path / "run" / "final")
    factors = [v for k, v in peft.named_parameters() if "lora_B" in k]
    assert any(v.abs().max() > 0 for v in factors)


def test_sizes_have_no_say_in_what_is_trained(problems: Path, tmp_path: Path) -> None:
    """Decoded in waves, learnt in small parts: the same run, but for rounding."""
    folder = make_folder(tmp_path / "llama", "llama")
    found = []
    for name, training in {
        "whole": {"decode_rows": 12, "micro_batch_tokens": 9999, "gradient_checkpointing": False},
        "parts": {"decode_rows": 5, "micro_batch_tokens": 1, "gradient_checkpointing": True},
    }.items():
        # In float32, where a draw hangs on rounding only once in a million.
        start(settings(folder, problems, training=training), tmp_path / name)
        found.append(read_jsonl(tmp_path / name / "metrics.jsonl"))
    for one, other in zip(*found, strict=True):
        assert (one["mean_reward"], one["tokens"]) == (other["mean_reward"], other["tokens"])
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)


def test_a_large_engine_resumes_bit_for_bit(problems: Path, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "llama", "llama")
    wanted = settings(folder, problems, model={"dtype": "bfloat16"}, training={"decode_rows": 5})
    start(wanted, tmp_path / "whole")
    steps = iter([False, False, True])
    with pytest.raises(KeyboardInterrupt):
        start(wanted, tmp_path / "cut", stop=lambda: next(steps))
    start(wanted, tmp_path / "cut")
    assert_same(tmp_path / "whole", tmp_path / "cut")


def test_template_arguments_make_another_base(tmp_path: Path) -> None:
    template = "{{ messages[0].content }}{% if thinking %}!{% endif %}"
    folder = make_folder(tmp_path / "qwen3", "qwen3", template)
    bases = BaseModels()
    one = config(model={"model": str(folder)})
    other = config(model={"model": str(folder), "chat_template_args": {"thinking": True}})
    first = bases.get(one.model, one.backend)
    assert (
        bases.get(config(model={"model": str(folder), "lora_rank": 8}).model, one.backend) is first
    )
    assert bases.get(other.model, other.backend) is not first


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("model.safetensors", "cannot be loaded"),
        ("tokenizer.json", "cannot be loaded|no chat template"),
        ("chat_template.jinja", "has no chat template"),
    ],
)
def test_what_a_folder_lacks_is_told(broken: str, message: str, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "qwen3", "qwen3")
    (folder / broken).unlink()
    for name in ("tokenizer_config.json",):
        text = json.loads((folder / name).read_text())
        text.pop("chat_template", None)
        (folder / name).write_text(json.dumps(text))
    wanted = config(model={"model": str(folder)})
    with pytest.raises(InputError, match=message) as caught:
        load_base(wanted.model, wanted.backend)
    assert "model.model" in str(caught.value)
