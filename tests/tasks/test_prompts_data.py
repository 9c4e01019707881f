"""System prompt, instruction and the length of prompts, for every kind of source."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrain.config.data import DataConfig
from retrain.config.load import read_mapping
from retrain.config.schema import RunConfig
from retrain.errors import ConfigError, InputError
from retrain.models.codec import ChatCodec
from retrain.models.folder import inspect_model
from retrain.models.tiny import EMBEDDED_PATH
from retrain.preflight import check_reading
from retrain.tasks.arithmetic import ArithmeticTask
from retrain.tasks.problems import ProblemListTask, Wanted
from retrain.tasks.prompts import addressed, counting, fitting
from retrain.tasks.registry import build_task, task_of
from retrain.types import Message, Problem

texts = st.text(max_size=8)
roles = st.sampled_from(["system", "user", "assistant"])
messages = st.builds(lambda r, c: {"role": r, "content": c}, roles, texts)
prompts = st.one_of(texts, st.lists(messages, min_size=1, max_size=4).map(tuple))


@given(prompts, texts, texts)
def test_a_problem_is_addressed(
    prompt: str | tuple[Message, ...], system: str, instruction: str
) -> None:
    problem = Problem("p", prompt, "1", "d", {"k": 1})
    users = [i for i, m in enumerate(problem.messages) if m["role"] == "user"]
    if instruction and not users:
        with pytest.raises(InputError, match="problem p has no message of the user"):
            addressed(problem, system, instruction)
        return
    made = addressed(problem, system, instruction)
    expected = problem.messages
    if instruction:
        last = expected[users[-1]]
        expected[users[-1]] = {"role": "user", "content": f"{last['content']}\n\n{instruction}"}
    if system:
        own = expected[0]["role"] == "system"
        expected = [{"role": "system", "content": system}, *expected[1 if own else 0 :]]
    assert made.messages == expected
    assert (made.id, made.answer, made.domain, made.metadata) == ("p", "1", "d", {"k": 1})
    if isinstance(prompt, str) and not system:
        assert isinstance(made.prompt, str)


def test_arithmetic_is_as_it_was_unless_asked() -> None:
    assert isinstance(build_task(DataConfig()), ArithmeticTask)
    data = DataConfig(system_prompt="Be brief.", instruction="Box it.")
    task, plain = build_task(data), ArithmeticTask()
    assert task.name == "arithmetic"
    for drawn, bare in (
        (task.train_batch(7, 3, 2), plain.train_batch(7, 3, 2)),
        (task.held_out(2), plain.held_out(2)),
    ):
        assert [p.id for p in drawn] == [p.id for p in bare]
        assert drawn[0].messages == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": f"{bare[0].prompt}\n\nBox it."},
        ]


def write(folder: Path, count: int = 40, **long: str) -> Path:
    """Prompts `p0`, `p1`, …, but those in `long`."""
    path = folder / "problems.jsonl"
    rows = [
        {"id": f"p{i}", "prompt": long.get(f"p{i}", f"p{i}"), "answer": "1"} for i in range(count)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def characters(problems: Sequence[Problem]) -> list[int]:
    return [len(str(problem.prompt)) for problem in problems]


def test_long_prompts_are_left_out_of_both_splits(tmp_path: Path) -> None:
    path = write(tmp_path)
    whole = build_task(DataConfig(source="jsonl", path=str(path)))
    assert isinstance(whole, ProblemListTask)
    one, other = whole.train[5].id, whole.all_held_out[0].id
    write(tmp_path, **{one: "x" * 11, other: "y" * 12})
    data = DataConfig(source="jsonl", path=str(path), max_prompt_tokens=10)
    task = build_task(data, (), characters, context=100)
    assert isinstance(task, ProblemListTask)
    assert {p.id for p in whole.train} - {p.id for p in task.train} == {one}
    assert {p.id for p in whole.all_held_out} - {p.id for p in task.all_held_out} == {other}
    assert [p.id for p in task.train] == [p.id for p in whole.train if p.id != one]
    (note,) = task.notes
    assert note[0] == "data.max_prompt_tokens"
    counts = f"1 of {len(whole.train)} training problems and 1 of {len(whole.all_held_out)}"
    assert counts in note[1]
    assert len(task.prompt_tokens or ()) == 38


def test_the_instruction_is_measured_too(tmp_path: Path) -> None:
    path = write(tmp_path)
    data = DataConfig(source="jsonl", path=str(path), instruction="z" * 10, max_prompt_tokens=10)
    with pytest.raises(InputError, match=r"no training problem of problems .* at most 10 tokens; "):
        build_task(data, (), characters)


def test_max_examples_counts_what_stays(tmp_path: Path) -> None:
    path = write(tmp_path, p0="x" * 20, p1="x" * 20)
    data = DataConfig(source="jsonl", path=str(path), max_prompt_tokens=9, max_examples=12)
    task = build_task(data, (), characters)
    assert isinstance(task, ProblemListTask)
    assert len(task.train) == 12
    assert not {"p0", "p1"} & {p.id for p in task.train}


def test_max_examples_reads_no_more_than_it_needs(tmp_path: Path) -> None:
    path = write(tmp_path, count=900, **{f"p{i}": "x" * 20 for i in range(60)})
    keys = {"source": "jsonl", "path": str(path), "max_prompt_tokens": 9}
    whole = build_task(DataConfig(**keys), (), characters)
    with path.open("a") as file:
        file.write("\n{this is not read")
    wanted = Wanted(train=12, held_out=3)
    task = build_task(DataConfig(**keys, max_examples=12), (), characters, None, wanted)
    assert isinstance(task, ProblemListTask)
    assert isinstance(whole, ProblemListTask)
    assert not task.whole
    assert task.train == whole.train[:12]
    assert task.held_out(3) == whole.held_out(3)
    with pytest.raises(InputError, match="line 901: not JSON"):
        build_task(DataConfig(**keys, max_examples=900), (), characters, None, Wanted(900, 3))


def test_only_what_is_used_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    row = {"prompt": "a", "answer": "1", "metadata": {"level": 3}}
    path.write_text(json.dumps(row) + "\n" + json.dumps({"prompt": "b", "answer": "1"}))
    data = {"source": "jsonl", "path": str(path)}

    def levels(**tables: object) -> list[object]:
        run = RunConfig.model_validate({"data": data, **tables})
        task = task_of(run)
        assert isinstance(task, ProblemListTask)
        return [p.metadata.get("level") for p in (*task.train, *task.all_held_out) if p.metadata]

    assert levels() == []
    assert levels(reward={"type": "custom", "custom_module": "m", "custom_function": "f"}) == [3]
    assert levels(algorithm={"advantage_mode": "mine.advantage"}) == [3]


def test_a_prompt_that_fills_the_context_is_refused_however_late_it_comes(tmp_path: Path) -> None:
    data = DataConfig(source="jsonl", path=str(write(tmp_path, p39="x" * 50)))
    assert build_task(data, (), characters, context=51)
    with pytest.raises(
        InputError, match=r"1 prompt of .* context of 50 tokens, e\.g\. problem p39"
    ):
        build_task(data, (), characters, context=50)
    longer = data.model_copy(update={"max_prompt_tokens": 60})
    with pytest.raises(InputError, match="would fill the model's context"):
        build_task(longer, (), characters, context=50)
    assert build_task(data.model_copy(update={"max_prompt_tokens": 40}), (), characters, 50)


def test_unknown_lengths_leave_nothing_out(tmp_path: Path) -> None:
    data = DataConfig(source="jsonl", path=str(write(tmp_path)), max_prompt_tokens=1)
    task = build_task(data, (), lambda problems: None, context=1)
    assert isinstance(task, ProblemListTask)
    assert len(task.train) + len(task.all_held_out) == 40


@given(st.lists(st.integers(1, 30), min_size=1, max_size=30), st.integers(1, 30))
def test_what_stays_is_what_fits(lengths: list[int], most: int) -> None:
    problems = [Problem(f"p{i}", "x" * n, "1") for i, n in enumerate(lengths)]
    task = ProblemListTask("t", problems, problems[::2])
    data = DataConfig(max_prompt_tokens=most)
    fits = [p.id for p, n in zip(problems, lengths, strict=True) if n <= most]
    if not fits:
        with pytest.raises(InputError, match="no training problem"):
            fitting(task, data, characters, None)
        return
    left = fitting(task, data, characters, None)
    assert [p.id for p in left.train] == fits
    assert [p.id for p in left.all_held_out] == [p.id for p in problems[::2] if p.id in fits]
    assert bool(left.notes) == (len(fits) < len(problems))


def test_a_task_of_its_own_cannot_be_cut(tmp_path: Path) -> None:
    (tmp_path / "endless_task.py").write_text(
        "from retrain.types import Problem\n"
        "class Endless:\n"
        "    name = 'endless'\n"
        "    def train_batch(self, seed, step, size):\n"
        "        return [Problem(f'{step}-{i}', 'q', 'a') for i in range(size)]\n"
        "    def held_out(self, count):\n"
        "        return [Problem(f'h{i}', 'q', 'a') for i in range(count)]\n"
    )
    data = DataConfig(source="endless_task.Endless", instruction="Box it.")
    task = build_task(data, [tmp_path], characters, 10)
    assert task.train_batch(0, 0, 1)[0].prompt == "q\n\nBox it."
    with pytest.raises(InputError, match=r"data\.max_prompt_tokens: endless_task\.Endless is a"):
        build_task(data.model_copy(update={"max_prompt_tokens": 5}), [tmp_path], characters)


def test_the_folder_and_the_codec_count_alike() -> None:
    from transformers import AutoTokenizer

    model = inspect_model("embedded", Path.cwd())
    codec = ChatCodec(AutoTokenizer.from_pretrained(EMBEDDED_PATH), (0,))
    problems = [
        *ArithmeticTask().held_out(5),
        addressed(Problem("a", "What is é + ∑?", "1"), "Be brief.", "Box\nit."),
    ]
    assert model.prompt_tokens_batch(problems) == counting(codec)(problems)
    assert model.prompt_tokens_batch([]) == []


def preflight(folder: Path, training: dict[str, int] | None = None, **data: object) -> list[str]:
    tables = {
        "data": {"source": "jsonl", "path": str(folder / "problems.jsonl"), **data},
        "training": training or {"max_tokens": 64, "batch_size": 4},
        "evaluation": {"num_problems": 1},
        "campaign": {
            "seeds": [1],
            "conditions": [{"name": "a"}, {"name": "b", "training": {"lr": 1e-4}}],
        },
    }
    return check_reading(read_mapping(tables, base_dir=folder))[1]


def test_the_preflight_says_once_what_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, count=100, p90="x" * 150)
    (warning,) = [w for w in preflight(tmp_path, max_prompt_tokens=100) if "problems:" in w]
    assert re.fullmatch(
        r"data\.max_prompt_tokens: problems: 1 of \d+ (training|held-out) problems left out: their "
        "prompts are longer than 100 tokens",
        warning,
    )


def test_the_preflight_tells_of_references_that_are_solutions(tmp_path: Path) -> None:
    answers = ["3 * 4 = 12\n#### 12", "We add them, so the sum of both is 3.", r"\boxed{2}", "7"]
    rows = [{"prompt": f"p{i}", "answer": answers[i % 4]} for i in range(100)]
    (tmp_path / "problems.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (warning,) = [w for w in preflight(tmp_path) if w.startswith("data.answer_pattern")]
    assert "50 references of 100 are whole solutions without a box" in warning


def test_the_preflight_refuses_what_no_step_could_sample(tmp_path: Path) -> None:
    write(tmp_path, count=100, p90="x" * 400)
    with pytest.raises(ConfigError) as caught:
        preflight(tmp_path)
    (issue,) = caught.value.issues
    assert issue.key == "data.max_prompt_tokens"
    assert "problem p90" in issue.message


def test_the_preflight_warns_of_prompts_that_leave_little_room(tmp_path: Path) -> None:
    write(tmp_path, count=200, p190="x" * 190)
    (warning,) = [w for w in preflight(tmp_path) if w.startswith("training.max_tokens")]
    assert "1 prompt of 200 leave less room than 64 tokens" in warning


@pytest.mark.parametrize(
    ("length", "said"),
    [
        (60, "at most 193 are left, and 64 are enough"),
        (190, "at most 63 are left"),
        (252, "at most 1 are left"),
    ],
)
def test_what_does_not_fit_is_told_without_advice_that_does_not_fit_either(
    tmp_path: Path, length: int, said: str
) -> None:
    write(tmp_path, count=100, **{f"p{i}": f"{i:x>{length}}" for i in range(100)})
    with pytest.raises(ConfigError) as caught:
        preflight(tmp_path, training={"max_tokens": 200, "batch_size": 4})
    (issue,) = caught.value.issues
    assert issue.key == "training.max_tokens"
    assert issue.message.endswith(said)


def test_where_all_prompts_are_long_none_is_to_be_left_out(tmp_path: Path) -> None:
    write(tmp_path, count=100, **{f"p{i}": f"{i:x>190}" for i in range(100)})
    loaded = preflight(tmp_path, training={"max_tokens": 63, "batch_size": 4})
    assert not [warning for warning in loaded if warning.startswith("training.max_tokens")]
    write(tmp_path, count=100, **{f"p{i}": f"{i:x>300}" for i in range(100)})
    with pytest.raises(ConfigError, match="take a model with a longer one"):
        preflight(tmp_path)
