"""What a run is made of, by its content: what is noticed and what is the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retrain.config.schema import RunConfig
from retrain.errors import ConfigError
from retrain.files import RunRecord
from retrain.models.tiny import EMBEDDED_PATH
from retrain.training import contents as module
from retrain.training.contents import Contents, planned_contents
from tests.training.runs import config, start

REWARD = "from helping.words import boxed\n\ndef score(response, reference):\n    return boxed(1)\n"
Edit = Callable[[Path], Any]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a data file, a reward that imports a package beside it, and a model."""
    folder = tmp_path / "project"
    (folder / "helping").mkdir(parents=True)
    (folder / "helping" / "__init__.py").write_text("")
    (folder / "helping" / "words.py").write_text("from .deep import boxed\n")
    (folder / "helping" / "deep.py").write_text("def boxed(text):\n    return 1.0\n")
    (folder / "idle.py").write_text("")
    (folder / "judging.py").write_text(REWARD)
    write_rows(folder, "What is {} + 1?")
    shutil.copytree(EMBEDDED_PATH, folder / "model")
    shutil.copytree(EMBEDDED_PATH, folder / "adapter")
    return folder


def write_rows(folder: Path, prompt: str) -> None:
    rows = [{"prompt": prompt.format(i), "answer": str(i + 1)} for i in range(20)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def settings(folder: Path, **tables: dict[str, Any]) -> RunConfig:
    return config(
        data={"source": "jsonl", "path": str(folder / "rows.jsonl")},
        reward={"type": "custom", "custom_module": "judging", "custom_function": "score"},
        plugins={"search_paths": [str(folder)]},
        model={"model": str(folder / "model"), "init_adapter": str(folder / "adapter")},
        **tables,
    )


def contents(folder: Path) -> Contents:
    (found,) = planned_contents([settings(folder)])
    return found


def edited(folder: Path, name: str, old: str, new: str) -> None:
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))


def test_what_was_edited_is_another_and_what_was_moved_is_the_same(project: Path) -> None:
    before = contents(project)
    assert list(before) == ["data", "reward", "model", "init_adapter"]
    edits: list[tuple[str, Edit]] = [
        ("data", lambda folder: write_rows(folder, "Compute {} + 1.")),
        ("reward", lambda folder: edited(folder, "helping/deep.py", "1.0", "0.0")),
        ("model", lambda folder: edited(folder, "model/chat_template.jinja", "user", "human")),
        ("init_adapter", lambda folder: (folder / "adapter/model.safetensors").write_bytes(b"")),
        # Neither how a file is written, nor a module that nothing imports.
        ("", lambda folder: edited(folder, "rows.jsonl", ", ", " ,  ")),
        ("", lambda folder: (folder / "idle.py").write_text("x = 1\n")),
    ]
    for number, (name, edit) in enumerate(edits):
        folder = Path(shutil.copytree(project, project.with_name(f"copy{number}")))
        edit(folder)
        now = contents(folder)
        assert [key for key in before if now[key] != before[key]] == [name] * bool(name), number


def test_what_is_built_in_or_not_here_has_no_content(tmp_path: Path) -> None:
    (embedded,) = planned_contents([config()])
    assert list(embedded) == ["data", "model"]
    absent = config(
        model={"model": "nobody/nothing"},
        reward={"type": "custom", "custom_module": "no_such", "custom_function": "f"},
    )
    assert planned_contents([absent]) == [{"data": embedded["data"]}]


def test_of_a_large_file_blocks_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WHOLE_BYTES", 1 << 20)
    monkeypatch.setattr(module, "HEAD_BYTES", 1 << 10)
    monkeypatch.setattr(module, "SAMPLE_BYTES", 1 << 10)
    path, data = tmp_path / "model.safetensors", bytearray(2 << 20)

    def digest() -> str:
        path.write_bytes(data)
        return module._file.__wrapped__(path, len(data), 0)

    found = [digest()]
    # The head, and in the last 1 KiB; all of a tensor of 64 KiB meets a block of 1 KiB in 32.
    for start_of, end in ((5, 6), (len(data) - 3, len(data) - 2), (1 << 20, (1 << 20) + (1 << 16))):
        data[start_of:end] = b"\x01" * (end - start_of)
        found.append(digest())
    assert len(set(found)) == 4


def test_a_run_goes_on_only_as_what_it_was(project: Path) -> None:
    """Other problems are refused with nothing changed, allowed by name, and then kept."""
    plain = {"init_adapter": "", "model": "embedded"}
    before = settings(project).model_copy(update={"model": config(model=plain).model})
    run = project.with_name("run")
    with pytest.raises(KeyboardInterrupt):
        start(before, run, stop=lambda: True)
    kept = RunRecord.read(run).contents
    write_rows(project, "Compute {} + 1.")
    (now,) = planned_contents([before])
    record = (run / "run.json").read_bytes()
    with pytest.raises(ConfigError) as caught:
        start(before, run)
    assert str(caught.value).startswith(
        f"data: the problems changed since c_s7 began (content {kept['data']} then, {now['data']} "
    )
    assert str(caught.value).endswith("from here on: --allow-change data")
    assert (run / "run.json").read_bytes() == record
    with pytest.raises(KeyboardInterrupt):
        start(before, run, stop=lambda: True, allow_changes=["data"])
    # Allowed once, it is the run's own from then on, also at another place.
    moved = Path(shutil.move(project / "rows.jsonl", project / "moved.jsonl"))
    data = before.data.model_copy(update={"path": str(moved)})
    assert start(before.model_copy(update={"data": data}), run).status == "done"
    (change,) = RunRecord.read(run).data["changes"]
    assert change == {"step": 1, "key": "data", "before": kept["data"], "now": now["data"]}


def test_a_run_that_is_older_than_hashes_goes_on_with_a_note(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("retrain.training.run.contents_of", lambda config, task: {})
        with pytest.raises(KeyboardInterrupt):
            start(config(), tmp_path, stop=lambda: True)
    assert start(config(), tmp_path).status == "done"
    assert "kept no hashes of contents" in caplog.text
    assert set(RunRecord.read(tmp_path).contents) == {"data", "model"}
