"""MATH and other data sets: from local copies through the `datasets` library, and from a hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retrain.config.data import DataConfig
from retrain.config.load import read_mapping
from retrain.errors import InputError
from retrain.tasks.hendrycks import INSTRUCTION
from retrain.tasks.problems import ProblemListTask, Wanted
from retrain.tasks.registry import build_task
from tests.tasks.data_sets import MATH_SUBJECTS, guru_rows, write_math, write_parquet
from tests.tasks.hub_server import COMMIT, serving


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def built(**keys: Any) -> ProblemListTask:
    task = build_task(DataConfig(**keys))
    assert isinstance(task, ProblemListTask)
    return task


def math_of(folder: Path, **keys: Any) -> ProblemListTask:
    return built(source="math", path=str(folder), subjects=[*MATH_SUBJECTS], **keys)


@pytest.mark.parametrize("card", [True, False])
def test_math_from_a_local_copy(tmp_path: Path, card: bool) -> None:
    task = math_of(write_math(tmp_path / "hendrycks_math", card=card))
    # Of 12 training problems of a subject one has no box, and one is a test problem.
    assert len(task.train) == 3 * 10
    assert len(task.held_out(99)) == 3 * 8
    assert {p.domain for p in task.train} == {p.domain for p in task.all_held_out}
    problem = next(p for p in task.train if str(p.prompt).startswith("geometry train 5"))
    assert problem.prompt == f"geometry train 5: what is $5$?\n\n{INSTRUCTION}"
    assert (problem.answer, problem.domain) == (r"\frac{5}{7}", "geometry")
    assert problem.metadata == {"level": "Level 1"}
    assert problem.id.startswith("math:")
    assert [note for _, note in task.notes] == [
        "MATH train: 3 problems left out: the solution has no \\boxed{} answer",
        "math: 3 training problems left out: the same prompt is among the held-out ones",
    ]


def test_any_first_part_of_math_mixes_the_subjects(tmp_path: Path) -> None:
    folder = write_math(tmp_path / "m", train=40, test=40)
    task = math_of(folder, max_examples=30)
    for part in (task.train, task.held_out(30)):
        counts = [sum(p.domain == subject for p in part) for subject in MATH_SUBJECTS]
        assert len(part) == 30
        assert min(counts) >= 4
    # The order is the problems' own: it does not change when some are left out.
    fewer = built(source="math", path=str(folder), subjects=["algebra"], instruction="")
    order = [p.id for p in task.all_held_out if p.domain == "algebra"]
    assert [p.id for p in fewer.all_held_out] == order
    assert "\n" not in str(fewer.train[0].prompt)


def test_a_folder_that_is_no_copy_of_math(tmp_path: Path) -> None:
    write_math(tmp_path / "m")
    with pytest.raises(InputError, match=r"data\.subset: .* has no subset \"prealgebra\""):
        built(source="math", path=str(tmp_path / "m"), subjects=["prealgebra"])
    with pytest.raises(InputError, match=r"data\.path: there is no folder \S+nowhere"):
        math_of(tmp_path / "nowhere")


def test_a_local_copy_of_any_data_set(tmp_path: Path) -> None:
    write_parquet(tmp_path / "guru" / "data" / "train-00000-of-00001.parquet", guru_rows(30))
    tests = [{**row, "prompt": row["prompt"]} for row in guru_rows(35)[28:]]
    write_parquet(tmp_path / "guru" / "data" / "test-00000-of-00001.parquet", tests)
    keys = {
        "source": "hub",
        "path": str(tmp_path / "guru"),
        "answer_key": "reward_model.ground_truth",
        "domain_key": "ability",
    }
    task = built(**keys, held_out_split="test")
    assert [p.answer for p in task.held_out(99)] == [str(2 * i) for i in range(28, 35)]
    assert {p.answer for p in task.train} == {str(2 * i) for i in range(28)}
    assert len(built(**keys, split="train[:7]", held_out_split="test").train) == 7
    assert built(**keys).all_held_out
    few = build_task(DataConfig(**keys, max_examples=3), wanted=Wanted(3, 1, metadata=False))
    assert isinstance(few, ProblemListTask)
    assert (len(few.train), few.whole, few.train[0].metadata) == (3, False, {})
    assert few.train == tuple(replace(p, metadata={}) for p in built(**keys).train[:3])
    with pytest.raises(InputError, match=r'data\.held_out_split: .* no split "tets"; it has train'):
        built(**keys, held_out_split="tets")
    with pytest.raises(InputError, match=r"data\.split: \"train\[oops\]\""):
        built(**keys, split="train[oops]")
    with pytest.raises(InputError, match=r"data\.revision: .* is a folder, which has no revisions"):
        built(**keys, revision="main")
    with pytest.raises(InputError, match=r"data\.prompt_key: .* train, row 1: no field 'q' there"):
        built(**{**keys, "prompt_key": "q"})


@pytest.mark.parametrize("path", ["gsm8k", "a/b/c", "openai/", "json"])
def test_what_is_no_id(path: str) -> None:
    with pytest.raises(InputError, match="is neither a folder nor the id of a data set"):
        built(source="hub", path=path)


def test_an_id_stays_an_id_and_a_folder_becomes_absolute(tmp_path: Path) -> None:
    def path_of(path: str) -> str:
        reading = read_mapping({"data": {"source": "hub", "path": path}}, base_dir=tmp_path)
        loaded = reading.require()
        again = loaded.run_config(loaded.conditions[0], 0)
        return again.data.path

    assert path_of("openai/gsm8k") == "openai/gsm8k"
    assert path_of("./gsm8k") == str(tmp_path / "gsm8k")
    (tmp_path / "openai" / "gsm8k").mkdir(parents=True)
    assert path_of("openai/gsm8k") == str(tmp_path / "openai" / "gsm8k")


def python(code: str, cwd: Path, **environment: str) -> Any:
    """What the code prints last, as JSON, in a process of its own: the hub's address is read when
    its library is imported."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "HF_HOME": str(cwd / "hf"), "HF_HUB_ETAG_TIMEOUT": "1", **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


TRY = """
import json, sys, time
from retrain.config.data import DataConfig
from retrain.errors import InputError
from retrain.tasks.download import describe, fetch_missing, missing
from retrain.tasks.registry import build_task

def tried(**keys):
    data, said, begun = DataConfig(**keys), [], time.monotonic()
    result = {}
    try:
        result["missing"] = describe(missing(data)) if missing(data) else ""
        result["fetched"] = fetch_missing([data], said.append)
        task = build_task(data)
        result["train"], result["held_out"] = len(task.train), len(task.all_held_out)
        result["first"] = task.all_held_out[0].id
    except InputError as error:
        result["error"] = str(error)
    return {**result, "said": said, "seconds": time.monotonic() - begun}

MATH = {"source": "math", "subjects": ["algebra", "geometry"]}
"""


FLOW = """
import io, json, sys
from rich.console import Console
from retrain.config.explain import explain
from retrain.config.load import read_mapping
from retrain.errors import ConfigError
from retrain.experiments.data import fetch_data
from retrain.preflight import check_reading

def loaded(batch_size):
    tables = {
        "data": {"source": "math", "subjects": ["algebra", "number_theory"]},
        "reward": {"type": "math"},
        "training": {"batch_size": batch_size, "max_tokens": 64},
        "evaluation": {"num_problems": 12},
        "campaign": {
            "seeds": [1],
            "conditions": [{"name": "a"}, {"name": "b", "gtpo": {"beta": 0.2}}],
        },
    }
    config, warnings = check_reading(read_mapping(tables))
    return config, [w for w in warnings if w.startswith(("data.", "training."))]

def fetched(config):
    page = io.StringIO()
    try:
        fetch_data(config, Console(file=page, width=500))
    except ConfigError as error:
        page.write(str(error))
    return page.getvalue().splitlines()

def notes(config):
    return [note for note in explain(config)["notes"] if "download" in note]

config, warnings = loaded(21)
result = {"before": notes(config), "warnings": warnings, "fetched": fetched(config)}
result["again"] = fetched(config)
try:
    result["large"] = loaded(21)[1]
except ConfigError as error:
    result["large"] = str(error)
config, warnings = loaded(20)
result |= {"after": notes(config), "later": warnings, "torch": "torch" in sys.modules}
print(json.dumps(result))
"""


def test_the_download_is_said_then_done_then_what_came_is_checked(tmp_path: Path) -> None:
    write_math(tmp_path / "root" / "EleutherAI" / "hendrycks_math")
    with serving(tmp_path / "root") as (address, _):
        result = python(FLOW, tmp_path, HF_ENDPOINT=address)
    named = "EleutherAI/hendrycks_math (algebra, number_theory), default branch, about 2 MB"
    assert result["before"] == [f"before training the data set will be downloaded: {named}"]
    assert result["warnings"] == []
    too_many = "training.batch_size: 21 problems a step, but math has only 20 training problems"
    assert result["fetched"] == [f"downloading the data set {named}", too_many]
    assert result["large"] == too_many
    assert (result["again"], result["after"], result["torch"]) == ([], [], False)
    assert result["later"] == [
        "data.source: MATH train: 2 problems left out: the solution has no \\boxed{} answer",
        "data.source: math: 2 training problems left out: the same prompt is among the held-out "
        "ones",
    ]


def test_a_config_without_hub_data_needs_no_data_library(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"prompt": "a", "answer": "1"}\n' * 1)
    code = (
        "import json, sys\n"
        "from retrain.config.load import read_mapping\n"
        "from retrain.config.explain import explain\n"
        "from retrain.preflight import check_reading\n"
        "import retrain.cli\n"
        "for data in ({}, {'source': 'jsonl', 'path': 'x.jsonl'}):\n"
        "    tables = {'training': {'max_tokens': 64, 'batch_size': 1}, 'data': data}\n"
        "    tables['evaluation'] = {'num_problems': 0}\n"
        "    explain(check_reading(read_mapping(tables))[0])\n"
        "print(json.dumps(sorted({'datasets', 'pyarrow', 'torch', 'pandas'} & set(sys.modules))))"
    )
    assert python(code, tmp_path) == []


def test_a_download_once_then_never_again_and_offline(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_math(root / "EleutherAI" / "hendrycks_math")
    write_parquet(root / "org" / "sums" / "train.parquet", guru_rows(30))
    sums = '{"source": "hub", "path": "org/sums", "answer_key": "reward_model.ground_truth"}'
    code = TRY + (
        "results = [tried(**MATH), tried(**MATH), tried(**MATH, revision='main'),"
        f" tried(**MATH, revision='{COMMIT}'), tried(**{sums}),"
        " tried(source='hub', path='org/nothing'), tried(**MATH, revision='old'),"
        f" tried(**{sums}, subset='tiny'), tried(source='hub', path='EleutherAI/hendrycks_math')]\n"
        "print(json.dumps(results))"
    )
    with serving(root) as (address, asked):
        first, second, branch, commit, others, nothing, old, tiny, several = python(
            code, tmp_path, HF_ENDPOINT=address
        )
        downloads = [path for path in asked if path.startswith("GET") and "parquet" in path]
    named = "EleutherAI/hendrycks_math (algebra, geometry), default branch, about 2 MB"
    assert first["missing"] == named
    assert first["said"] == [f"downloading the data set {named}"]
    assert (first["train"], first["held_out"]) == (20, 16)
    assert not any("number_theory" in path for path in downloads)
    assert len(downloads) == len(set(downloads))
    for again in (second, branch, commit):
        assert (again["missing"], again["fetched"], again["said"]) == ("", False, [])
        assert again["first"] == first["first"]
    assert others["missing"] == "org/sums, default branch, size unknown"
    assert others["train"] + others["held_out"] == 30
    assert "the hub has no data set org/nothing" in nothing["error"]
    assert old["error"] == 'data.revision: EleutherAI/hendrycks_math has no revision "old"'
    assert old["missing"].startswith("EleutherAI/hendrycks_math (algebra, geometry), revision old")
    assert 'data.subset: org/sums has no subset "tiny"' in tiny["error"]
    assert several["error"].startswith("data.subset: is missing; EleutherAI/hendrycks_math has sev")
    assert "algebra, geometry, number_theory" in several["error"]

    # The server is gone; what is cached is read without it, and the rest fails at once.
    code = TRY + (
        "print(json.dumps([tried(**MATH), tried(source='math', subjects=['precalculus']),"
        f" tried(**MATH, revision='{'b' * 40}')]))"
    )
    for environment in ({"HF_ENDPOINT": address}, {"HF_HUB_OFFLINE": "1"}):
        cached, other, older = python(code, tmp_path, **environment)
        assert (cached["train"], cached["missing"], cached["said"]) == (20, "", [])
        assert "run `python -m retrain.tasks.download X.toml`" in other["error"]
        reason = "HF_HUB_OFFLINE is set" if "HF_HUB_OFFLINE" in environment else "refused"
        assert reason in other["error"]
        assert "EleutherAI/hendrycks_math (precalculus) is not on this machine" in other["error"]
        assert "cannot be reached" in older["error"]
        assert other["seconds"] < 20


def test_a_hub_that_never_answers_is_given_up(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        code = TRY + "print(json.dumps(tried(**MATH)))"
        result = python(code, tmp_path, HF_ENDPOINT=address)
    assert "the hub cannot be reached (timed out)" in result["error"]
    assert result["seconds"] < 20


def test_a_folder_of_the_data_sets_name_is_not_taken_for_it(tmp_path: Path) -> None:
    (tmp_path / "EleutherAI" / "hendrycks_math").mkdir(parents=True)
    code = TRY + "print(json.dumps(tried(**MATH)))"
    assert "the current folder has one of that name" in python(code, tmp_path)["error"]
