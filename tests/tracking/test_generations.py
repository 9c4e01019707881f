"""What `generations.jsonl` keeps of a completion's tokens."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from retrain.advantages.credit import Credit
from retrain.advantages.planning import PlanningMatcher
from retrain.files import read_jsonl
from retrain.models.codec import ChatCodec
from retrain.models.tiny import EMBEDDED_PATH
from retrain.tracking.generations import generation_rows, rounded, token_lengths
from retrain.types import Completion, Group, IntArray, Problem, Score, pad_mask, pad_rows
from tests.training.runs import config, start

DOCS = Path(__file__).parents[2] / "docs" / "files.md"
TOKENIZER = AutoTokenizer.from_pretrained(EMBEDDED_PATH)
CODEC = ChatCodec(TOKENIZER, (TOKENIZER.eos_token_id,))
SAID = st.sampled_from(["Let me check: ", "12+3=15. ", "é", "→ ", "😀", "日本", "\n", " "])


def completion(ids: list[int] | IntArray, text: str) -> Completion:
    tokens = np.asarray(ids, dtype=np.int64)
    return Completion(tokens, np.zeros(len(tokens)), text, "stop")


def shares(lengths: list[int], text: str) -> list[str]:
    ends = list(accumulate(lengths))
    return [text[end - size : end] for end, size in zip(ends, lengths, strict=True)]


@given(st.lists(SAID, max_size=60).map("".join))
def test_lengths_and_the_end_token_reconstruct_the_text(text: str) -> None:
    """Also where a character is split over tokens, at the edge of what is decoded at once."""
    ids = [*TOKENIZER.encode(text, add_special_tokens=False), TOKENIZER.eos_token_id]
    made = completion(ids, CODEC.decode(np.array(ids)))
    lengths = token_lengths(made, CODEC.pieces)
    assert lengths is not None
    assert (len(lengths), lengths[-1], sum(lengths)) == (len(ids), 0, len(made.text))
    assert shares(lengths, made.text) == CODEC.pieces(made.token_ids)


@given(st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=128))
def test_any_tokens_add_up_or_are_not_claimed_to(ids: list[int]) -> None:
    made = completion(ids, CODEC.decode(np.array(ids, dtype=np.int64)))
    lengths = token_lengths(made, CODEC.pieces)
    assert lengths is None or (len(lengths), sum(lengths)) == (len(ids), len(made.text))


def test_pieces_that_are_wrong_cost_the_colours_and_nothing_else() -> None:
    made = completion([1, 2], "ab")
    assert token_lengths(made, lambda ids: ["a", "c"]) is None
    assert token_lengths(made, lambda ids: ["ab"]) is None
    assert token_lengths(completion([], ""), lambda ids: []) == []


def test_rounding() -> None:
    assert rounded(np.array([1.2345678, -0.000123456, 0.0]), 5) == [1.2346, -0.00012346, 0.0]
    assert rounded(np.array([1 / 3, 1 / 3 + 1e-9]), 5) == 0.33333
    assert rounded(np.array([]), 5) == []


def scored(group: Problem, lengths: list[int]) -> Group:
    """Completions of so many one-letter tokens; the reward is the length."""
    made = [completion(list(range(n)), "x" * n) for n in lengths]
    return Group(
        group,
        np.arange(2),
        tuple(made),
        tuple(Score(float(n), "wrong", {"length": float(n)}) for n in lengths),
    )


@pytest.mark.parametrize("count", [0, 1, 3, 5, 99])
def test_rows_keep_their_credit_in_groups_of_any_size(count: int) -> None:
    problems = [Problem(f"p{i}", "?", "4", domain="d") for i in range(3)]
    groups = [scored(problems[0], [3, 1]), scored(problems[1], []), scored(problems[2], [2, 5, 4])]
    lengths = [3, 1, 2, 5, 4]
    mask = pad_mask(lengths)
    values = pad_rows([np.arange(n) + 10.0 * n for n in lengths])
    credit = Credit(
        advantages=np.array(lengths) / 2,
        token_advantages=values,
        uncertainties=values / 100,
        planning=np.zeros_like(mask),
        mask=mask,
        causes=("informative", "other", "informative"),
        execution_variances=np.zeros(5),
        stats={},
    )
    rows = generation_rows(
        3, groups, credit, PlanningMatcher([]), lambda ids: ["x"] * len(ids), count
    )
    assert len(rows) == min(count, 5)
    assert len({(row["problem_id"], row["sample"]) for row in rows}) == len(rows)
    for row in rows:
        n = row["num_tokens"]
        group = groups[int(row["problem_id"][1:])]
        assert len(group.completions[row["sample"]].text) == n
        assert (row["step"], row["domain"], row["answer"]) == (3, "d", "4")
        assert (row["stop_reason"], row["parts"]) == ("stop", {"length": n})
        assert (row["reward"], row["advantage"]) == (n, n / 2)
        expected = [10.0 * n + i for i in range(n)]
        assert row["token_advantages"] == (expected if n > 1 else expected[0])
        assert row["token_lengths"] == [1] * n


def test_a_run_logs_the_credit_that_it_learns_from(tmp_path: Path) -> None:
    tables: dict[str, dict[str, Any]] = {
        "evaluation": {"num_problems": 0},
        "training": {"max_steps": 1, "group_size": 8},
        "logging": {"log_generations": 24},
    }
    logged = {}
    for transform in ("none", "gtpo_hicra"):
        algorithm = {"advantage_mode": "grpo", "transform_mode": transform}
        start(config(algorithm=algorithm, **tables), tmp_path / transform)
        logged[transform] = read_jsonl(tmp_path / transform / "emergence" / "generations.jsonl")
        for row in logged[transform]:
            assert sum(row["token_lengths"]) == len(row["completion"])
            assert len(row["token_lengths"]) == row["num_tokens"]
            assert len(row["token_uncertainties"]) == row["num_tokens"]
            # The end token is no part of the text.
            assert (row["token_lengths"][-1] == 0) == (row["stop_reason"] == "stop")
            assert row["answer"]
    documented = DOCS.read_text().split("### `emergence/generations.jsonl`")[1].split("###")[0]
    assert [key for key in logged["none"][0] if f"`{key}`" not in documented] == []
    for plain, weighted in zip(logged["none"], logged["gtpo_hicra"], strict=True):
        assert plain["token_advantages"] == pytest.approx(plain["advantage"], rel=1e-4)
        if plain["advantage"]:
            assert len(weighted["token_advantages"]) == weighted["num_tokens"]
