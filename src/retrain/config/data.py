"""`[data]`: the task."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from retrain.config.table import Count, Names, Table


def _pattern(text: str) -> str:
    if text in ("", "gsm8k", "boxed"):
        return text
    try:
        groups = re.compile(text).groups
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from None
    if groups != 1:
        raise ValueError(
            f"has {groups} groups in parentheses; exactly one is wanted, around the answer, e.g. "
            "'#### (.+)' (write (?:…) for the others)"
        )
    return text


class DataConfig(Table):
    """`[data]`: the task."""

    source: Annotated[str, Field(min_length=1)] = "arithmetic"
    """`arithmetic` (made here, endless), `math` (hendrycks MATH from the hub), `jsonl` or `parquet`
    (files), `hub` (any data set of the Hugging Face hub), or a dotted path to a function that
    returns a task. `auto`, and unless written: `arithmetic` for the embedded model, `math` for any
    other."""
    path: str = ""
    """For `jsonl` and `parquet`: a file, a folder of files, or several by a glob, e.g.
    `"data/*.jsonl"`. For `hub`: the data set's id, e.g. `"openai/gsm8k"`, or a folder with a copy;
    for `math` such a folder."""
    held_out_path: str = ""
    """For `jsonl` and `parquet`: the file or files with the held-out problems; empty holds out what
    `path` marks, or a tenth."""
    subset: str = ""
    """For `hub`: the data set's configuration, where it has several."""
    split: str = "train"
    """For `hub`: the split to train on."""
    held_out_split: str = ""
    """For `hub`: the split that is held out; empty holds out a tenth of `split`."""
    revision: str = ""
    """For `hub` and `math`: branch, tag or commit of the data set; empty takes the default
    branch."""
    subjects: Names = [
        "intermediate_algebra",
        "precalculus",
        "number_theory",
        "counting_and_probability",
        "geometry",
    ]
    """For `math`: the subjects to train on and to evaluate; the data set also has `algebra` and
    `prealgebra`."""
    prompt_key: Annotated[str, Field(min_length=1)] = "prompt"
    """Field of a row with the prompt: text, or a list of chat messages (or that as JSON text)."""
    answer_key: Annotated[str, Field(min_length=1)] = "answer"
    """Field of a row with the reference answer. Dots go into nested fields:
    `"reward_model.ground_truth"`."""
    answer_pattern: Annotated[str, AfterValidator(_pattern)] = ""
    """What of that field is the answer: a regular expression with one group, e.g. `'#### (.+)'`,
    which counts where it fits last; `"boxed"` for what is in the last `\\boxed{}`, `"gsm8k"` for
    the number after `####`, without commas. Empty: all of it."""
    bad_rows: Literal["error", "skip"] = "error"
    """Rows that cannot be used (no prompt, no answer, one that contradicts another, …): `error`
    names them before anything starts, `skip` leaves them out and says how many."""
    domain_key: str = "domain"
    """Field of a row with its domain; rows without it are of the domain `default`."""
    split_key: str = "split"
    """For `jsonl` and `parquet`: field of a row that is `"train"` or `"held_out"`, or not there;
    `""` takes no heed of a column of that name."""
    system_prompt: str = ""
    """System message put before every prompt, in place of one that it has; empty for none."""
    instruction: str | None = None
    """Text put below every prompt, e.g. how to write the answer. Unless written: none, and for
    `math` to reason step by step and to put the answer into `\\boxed{}`."""
    max_prompt_tokens: Count = 0
    """Leave out problems whose prompt is longer, and say how many; 0 refuses to start when one
    does not fit into the model's context."""
    max_examples: Count = 0
    """Use only the first so many training problems, and read no more; 0 uses all."""
    shuffle: bool = True
    """Visit the problems of a file or data set in a new order every epoch (the same for every
    condition)."""
