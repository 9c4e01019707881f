"""The embedded model's tokenizer: byte-level, a token a digit, a token a known word.

A byte-level BPE without merges: a piece of text that is in the vocabulary is one token, any
other is spelled in bytes. Nothing has to be learnt, every text round-trips, and a planning
phrase is a handful of whole words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, END, USER, ASSISTANT, SYSTEM = SPECIAL_TOKENS = (
    "<|pad|>",
    "<|end|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
)

CONTEXT = 256
"""Tokens of prompt and completion together."""

BOXED = r"\boxed{"

_WORDS = (
    "Compute Let Wait Notice It So The Is On "  # opening a text
    "~Let ~Wait ~Notice ~It ~So ~The ~Is ~On ~That's "  # opening a later sentence
    "~let ~me ~think ~check ~verify ~double ~second ~thought ~is ~this ~that ~that's ~not ~right "
    "~looks ~like ~the ~answer ~key ~another ~way ~to ~try ~approach ~start ~over ~go ~back ~and "
    "~or ~we ~what ~if ~could ~doesn't ~work ~insight ~it"
)
_PIECES = (BOXED, ". ", ": ", *(word.replace("~", " ") for word in _WORDS.split()))

# A step separator before a digit is one piece, a word takes its leading space along, and
# digits stay alone so that arithmetic is digit by digit.
_PIECE_PATTERN = r"\\boxed\{|[.:] (?=\d)| ?[A-Za-z']+|\d|\s|[^\sA-Za-z\d]"

CHAT_TEMPLATE = """\
{%- for message in messages -%}
    {%- if message.role not in ['system', 'user', 'assistant'] -%}
        {{- raise_exception('unknown role: ' + message.role) -}}
    {%- endif -%}
    {{- '<|' + message.role + '|>' + message.content + '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|assistant|>' -}}
{%- endif -%}
"""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, from nothing."""
    from transformers import PreTrainedTokenizerFast

    to_bytes = ByteLevel(add_prefix_space=False, use_regex=False)
    pieces = [to_bytes.pre_tokenize_str(piece)[0][0] for piece in _PIECES]
    vocabulary = [*SPECIAL_TOKENS, *sorted(ByteLevel.alphabet()), *pieces]
    tokenizer = Tokenizer(
        BPE(
            vocab={token: index for index, token in enumerate(vocabulary)},
            merges=[],
            ignore_merges=True,
        )
    )
    tokenizer.pre_tokenizer = Sequence([Split(Regex(_PIECE_PATTERN), "isolated"), to_bytes])
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=[USER, ASSISTANT, SYSTEM],
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
