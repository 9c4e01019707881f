"""The embedded model: what ships, how it reads, and that its recipe is reproducible."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from retrain import seeding
from retrain.models.tiny import EMBEDDED_PATH
from retrain.models.tiny.__main__ import make
from retrain.models.tiny.pretrain import MIXED, Recipe, batches, solution_loss
from retrain.models.tiny.text import solution
from retrain.models.tiny.tokenizer import ASSISTANT, END, USER, make_tokenizer
from retrain.tasks.arithmetic import ArithmeticTask, Expression, draw

SHIPPED = {
    "README.md",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}
SMALL = Recipe(steps=6, rows=4, pool=2, warmup=2, width=16, feed_forward=32, heads=2, kv_heads=1)

expressions = st.integers(0, 2**63 - 1).map(lambda seed: draw(seeding.generator(seed, "test")))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(EMBEDDED_PATH)


# What ships


def test_the_folder_holds_these_files_in_under_a_megabyte() -> None:
    assert {path.name for path in EMBEDDED_PATH.iterdir()} == SHIPPED
    assert sum(path.stat().st_size for path in EMBEDDED_PATH.iterdir()) < 1_000_000


def test_no_file_names_a_path_of_the_machine_that_made_it() -> None:
    for name in SHIPPED - {"model.safetensors"}:
        text = (EMBEDDED_PATH / name).read_text()
        assert not re.search(r"/(?:home|tmp|root|Users|work|var|mnt)/", text), name
        assert "_name_or_path" not in text
    with safe_open(EMBEDDED_PATH / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_it_is_a_plain_small_qwen3() -> None:
    config = json.loads((EMBEDDED_PATH / "config.json").read_text())
    assert config["model_type"] == "qwen3"
    assert config["max_position_embeddings"] == 256
    assert config["vocab_size"] == 320
    assert config["tie_word_embeddings"] is True
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED_PATH)
    assert model.dtype == torch.bfloat16
    assert sum(p.numel() for p in model.parameters()) == 434_944


def test_the_path_is_known_without_torch() -> None:
    program = "import sys, retrain.models.tiny as t; print(t.EMBEDDED_PATH, 'torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == [str(EMBEDDED_PATH), "False"]


def test_greedy_answers_are_careful_on_short_problems_and_guesses_on_long_ones(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    problems = ArithmeticTask().held_out(32)
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED_PATH, dtype=torch.float32)
    prompts = [
        tokenizer.apply_chat_template(p.messages, tokenize=False, add_generation_prompt=True)
        for p in problems
    ]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    output = model.generate(**inputs, do_sample=False, max_new_tokens=64)
    texts = tokenizer.batch_decode(output, skip_special_tokens=True)
    right: dict[bool, list[bool]] = {True: [], False: []}  # by whether the problem is short
    for text, p in zip(texts, problems, strict=True):
        right[len(re.findall(r"[-+*]", p.prompt)) == 2].append(
            text.endswith(f"\\boxed{{{p.answer}}}")
        )
    assert sum(right[True]) >= 0.9 * len(right[True]) > 0
    assert sum(right[False]) <= 0.3 * len(right[False])
    assert 0.45 <= sum(right[True] + right[False]) / len(problems) <= 0.8


# How it reads


def test_shipped_tokenizer_is_the_recipes(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.get_vocab() == make_tokenizer().get_vocab()
    assert tokenizer.chat_template == make_tokenizer().chat_template
    assert len(tokenizer) == 320


@given(st.text())
def test_every_text_round_trips(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    assert TOKENIZER.decode(ids) == text


@given(expressions, st.integers(0, 2**32))
def test_solutions_round_trip_and_need_no_bytes(expression: Expression, seed: int) -> None:
    text = solution(expression, MIXED, seeding.generator(seed, "test"))
    tokens = TOKENIZER.tokenize(text)
    assert TOKENIZER.decode(TOKENIZER.convert_tokens_to_ids(tokens)) == text
    assert not any(len(token) == 1 and token.isascii() and token.isalpha() for token in tokens)
    assert all(len(token) == 1 for token in tokens if any(c.isdigit() for c in token))


def test_pieces(tokenizer: PreTrainedTokenizerBase) -> None:
    tokens = tokenizer.tokenize("7*8=57. Wait, let me check: 7*8=56. 56-19=37. So \\boxed{37}")
    assert "|".join(tokens) == (
        "7|*|8|=|5|7|.|ĠWait|,|Ġlet|Ġme|Ġcheck|:Ġ|7|*|8|=|5|6|.Ġ|5|6|-|1|9|=|3|7|.|ĠSo|Ġ|"
        "\\boxed{|3|7|}"
    )


def test_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    messages = [
        {"role": "system", "content": "Be right."},
        {"role": "user", "content": "Compute 7*8-19+35."},
    ]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == ("<|system|>Be right.<|end|><|user|>Compute 7*8-19+35.<|end|><|assistant|>")
    messages.append({"role": "assistant", "content": "\\boxed{72}"})
    assert tokenizer.apply_chat_template(messages[1:], tokenize=False) == (
        "<|user|>Compute 7*8-19+35.<|end|><|assistant|>\\boxed{72}<|end|>"
    )
    with pytest.raises(Exception, match="unknown role: tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": ""}], tokenize=False)


# How it is made


@given(expressions, st.integers(0, 2**32))
def test_solutions_end_in_an_answer(expression: Expression, seed: int) -> None:
    text = solution(expression, MIXED, seeding.generator(seed, "test"))
    assert re.search(r"\\boxed\{\d{1,2}\}$", text)
    if text.startswith("Let me think"):
        assert text.endswith(f"{{{expression.answer}}}")
    elif text[0].isdigit():
        steps = re.findall(r"(\d+[-+*]\d+)=(\d+)", text)
        assert sum(eval(left) != int(result) for left, result in steps) == 1


@pytest.mark.parametrize(("operations", "careful", "guess"), [(2, 0.56, 0.16), (3, 0.24, 0.48)])
def test_a_third_operation_turns_care_into_guesses(
    operations: int, careful: float, guess: float
) -> None:
    stream = seeding.generator(0, "test/shares")
    drawn = (draw(stream) for _ in range(4000))
    chosen = [expression for expression in drawn if len(expression.operators) == operations]
    texts = [solution(expression, MIXED, stream) for expression in chosen]
    shares = [
        sum(text.startswith(opening) for text in texts) / len(texts) for opening in ("Let", "It")
    ]
    assert shares == pytest.approx([careful, guess], abs=0.04)


def test_most_solutions_fit_in_64_tokens() -> None:
    stream = seeding.generator(0, "test/lengths")
    lengths = sorted(
        len(TOKENIZER.encode(solution(draw(stream), MIXED, stream))) + 1 for _ in range(2000)
    )
    assert 24 <= sum(lengths) / len(lengths) <= 34
    assert lengths[int(0.95 * len(lengths))] <= 57


def test_batches_train_on_solutions_of_the_train_split_only() -> None:
    for ids, targets in batches(TOKENIZER, SMALL):
        for row, target in zip(ids, targets, strict=True):
            prompt = TOKENIZER.decode(row[: int((target == -100).int().argmin()) + 1])
            match = re.fullmatch(
                re.escape(USER) + r"Compute (.+)\." + re.escape(END + ASSISTANT), prompt
            )
            assert match is not None
            assert not Expression.parse(match[1]).is_held_out
            assert TOKENIZER.decode(target[target != -100]).endswith("}" + END)


def test_loss_of_a_row_does_not_depend_on_its_neighbours() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 7, generator=generator)
    targets = torch.tensor([[-100, 1, 2, 3, 4], [-100, 6, -100, -100, -100]])
    parts = [solution_loss(logits[i : i + 1], targets[i : i + 1]) for i in range(2)]
    assert solution_loss(logits, targets) == pytest.approx(float(sum(parts)) / 2)


def test_the_recipe_gives_the_same_bits(tmp_path: Path) -> None:
    for name, scramble in (("one", 1), ("two", 2)):
        torch.manual_seed(scramble)
        make(SMALL, tmp_path / name, report=lambda _: None)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


TOKENIZER = make_tokenizer()
