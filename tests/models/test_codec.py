from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from retrain.errors import InputError
from retrain.models.codec import ChatCodec
from retrain.models.tiny import EMBEDDED_PATH
from retrain.types import Problem

TOKENIZER = AutoTokenizer.from_pretrained(EMBEDDED_PATH)
CODEC = ChatCodec(TOKENIZER, (TOKENIZER.eos_token_id,))


def test_prompt_ends_where_the_assistant_begins() -> None:
    ids = CODEC.encode(Problem("p", "Compute 7*8-19+35.", "72"))
    text = TOKENIZER.decode(ids)
    assert "Compute 7*8-19+35." in text
    expected = TOKENIZER.apply_chat_template(
        [{"role": "user", "content": "Compute 7*8-19+35."}],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert text == expected


def test_chat_messages_are_kept_apart() -> None:
    problem = Problem(
        "p",
        ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Compute 1+1."}),
        "2",
    )
    text = TOKENIZER.decode(CODEC.encode(problem))
    assert text.index("Be brief.") < text.index("Compute 1+1.")


def with_template(template: str, **arguments: object) -> ChatCodec:
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_PATH)
    tokenizer.chat_template = template
    return ChatCodec(tokenizer, (0,), arguments)


def test_arguments_reach_the_template() -> None:
    template = "{{ messages[0].content }}{% if enable_thinking %}think{% endif %}"
    problem = Problem("p", "Compute 1+1.", "2")
    for thinking, expected in ((True, "Compute 1+1.think"), (False, "Compute 1+1.")):
        codec = with_template(template, enable_thinking=thinking)
        assert codec.decode(codec.encode(problem)) == expected


def test_a_template_may_begin_the_thinking() -> None:
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}\n"
    assert with_template(template + "<think>\n").opens_thinking
    assert not with_template(template).opens_thinking
    assert not with_template(template + "<think>\n\n</think>\n\n").opens_thinking


def test_a_template_that_refuses_the_messages_is_told() -> None:
    template = "{{ raise_exception('System role not supported') }}"
    messages = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"})
    with pytest.raises(InputError, match=r"problem p7.*system, user.*System role not supported"):
        with_template(template).encode(Problem("p7", messages, "2"))


def test_nothing_decodes_to_nothing() -> None:
    assert CODEC.decode_batch([]) == []


@given(st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=30))
def test_pieces_add_up_to_the_text(ids: list[int]) -> None:
    """Any tokens at all: special ones, halves of characters, invalid bytes."""
    tokens = np.array(ids, dtype=np.int64)
    pieces = CODEC.pieces(tokens)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == CODEC.decode(tokens)


@given(st.lists(st.integers(0, len(TOKENIZER) - 1), min_size=100, max_size=300))
def test_pieces_of_long_completions_are_found_in_parts(ids: list[int]) -> None:
    tokens = np.array(ids, dtype=np.int64)
    pieces = CODEC.pieces(tokens)
    assert "".join(pieces) == CODEC.decode(tokens)
    if "\ufffd" not in CODEC.decode(tokens):
        assert pieces == CODEC._growth(tokens)


@given(st.text(max_size=20))
def test_pieces_of_any_text(text: str) -> None:
    tokens = np.array(TOKENIZER.encode(text, add_special_tokens=False), dtype=np.int64)
    assert "".join(CODEC.pieces(tokens)) == CODEC.decode(tokens)


def test_a_character_of_several_tokens_belongs_to_the_last() -> None:
    tokens = np.array(TOKENIZER.encode("aé", add_special_tokens=False), dtype=np.int64)
    if len(tokens) == 3:
        assert CODEC.pieces(tokens) == ["a", "", "é"]


def test_special_tokens_have_no_text() -> None:
    tokens = np.array([*TOKENIZER.encode("12", add_special_tokens=False), TOKENIZER.eos_token_id])
    assert CODEC.pieces(tokens)[-1] == ""
    assert CODEC.decode(tokens) == "12"


def test_a_tokenizer_that_trims_leading_spaces() -> None:
    """SentencePiece-like: a token decoded alone loses the space that it has inside a text."""
    vocabulary = {"<unk>": 0, "▁so": 1, "▁wait": 2, "s": 3, "</s>": 4}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="</s>", unk_token="<unk>", chat_template="x"
    )
    codec = ChatCodec(tokenizer, (4,))
    tokens = np.array([1, 2, 3, 4])
    assert codec.decode(tokens) == "so waits"
    assert codec.pieces(tokens) == ["so", " wait", "s", ""]
    # Also where a completion is taken in parts, each of which loses its first space.
    many = codec.pieces(np.tile(tokens[:3], 70))
    assert many == ["so", *[" wait", "s", " so"] * 69, " wait", "s"]


def test_what_is_missing_is_said() -> None:
    with pytest.raises(InputError, match="end token"):
        ChatCodec(TOKENIZER, ())
    bare = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    )
    with pytest.raises(InputError, match="chat template"):
        ChatCodec(bare, (0,))


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append({}) }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{{ 1 / 0 }}",
    ],
)
def test_a_template_can_do_no_harm(template: str) -> None:
    with pytest.raises(InputError, match="chat template refuses the prompt of problem p7"):
        with_template(template).encode(Problem("p7", "1+1?", "2"))
