"""What is odd about `[data]`."""

from __future__ import annotations

from collections.abc import Iterator, Set

from retrain.config.data import DataConfig
from retrain.config.findings import Finding, idle
from retrain.config.messages import did_you_mean, show
from retrain.config.schema import RunConfig

SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
"""The subjects of `source = "math"`."""

BUILT_IN = ("arithmetic", "math", "jsonl", "parquet", "hub")

_FILES = ("jsonl", "parquet")
_ROWS = (*_FILES, "hub")
READERS = {
    "path": ("jsonl", "parquet", "hub", "math"),
    "held_out_path": _FILES,
    "subset": ("hub",),
    "split": ("hub",),
    "held_out_split": ("hub",),
    "revision": ("hub", "math"),
    "subjects": ("math",),
    "prompt_key": _ROWS,
    "answer_key": _ROWS,
    "answer_pattern": _ROWS,
    "bad_rows": _ROWS,
    "domain_key": _ROWS,
    "split_key": _FILES,
}
"""Keys of `[data]` and the built-in sources that read them; a function of yours may read any."""

_ENDLESS = ("max_prompt_tokens", "max_examples", "shuffle")
_EXAMPLES = {
    "jsonl": 'the file, e.g. path = "problems.jsonl"',
    "parquet": 'the file, e.g. path = "problems.parquet"',
    "hub": 'the data set, e.g. path = "openai/gsm8k"',
}


def check_data(run: RunConfig, written: Set[str]) -> Iterator[Finding]:
    """Keys of `[data]` that are missing, or that its source does not read."""
    data = run.data
    if data.source in _EXAMPLES and not data.path:
        message = f"is missing; source = {show(data.source)} needs {_EXAMPLES[data.source]}"
        yield Finding("data.path", message, ("data.source",))
    if data.source in BUILT_IN:
        yield from _idle_keys(data, written)
    if data.source == "math":
        yield from _math(run)


def _idle_keys(data: DataConfig, written: Set[str]) -> Iterator[Finding]:
    for key, sources in READERS.items():
        if data.source in sources or f"data.{key}" not in written:
            continue
        if key == "path" and not data.path:
            continue
        if key == "path":
            remedy = 'write source = "jsonl" to train on the file'
        else:
            remedy = f"it is for {', '.join(show(source) for source in sources)}"
        reason = f"source = {show(data.source)}; {remedy}"
        yield idle(f"data.{key}", reason, "data.source", is_error=True)
    if data.source == "arithmetic":
        for key in _ENDLESS:
            if f"data.{key}" in written:
                yield idle(f"data.{key}", "arithmetic draws its problems without end")


def _math(run: RunConfig) -> Iterator[Finding]:
    subjects = run.data.subjects
    for subject in subjects:
        if subject not in SUBJECTS:
            message = f"{show(subject)} is no subject of MATH; they are {', '.join(SUBJECTS)}"
            yield Finding("data.subjects", message + did_you_mean(subject, SUBJECTS))
            return
    if len(set(subjects)) != len(subjects):
        twice = next(subject for subject in subjects if subjects.count(subject) > 1)
        yield Finding("data.subjects", f"{show(twice)} stands twice; keep one")
    if run.reward.type == "match":
        message = (
            '"match" compares answers as text, and those of MATH are formulas, which can be '
            'written in many ways; type = "math" knows when they are the same'
        )
        yield Finding("reward.type", message, ("data.source",), is_error=False)
