"""Models with several chat templates, and templates that ask for the date."""

from __future__ import annotations

import json
import shutil
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from retrain.config.load import read_mapping
from retrain.config.schema import ModelConfig, RunConfig
from retrain.errors import ConfigError, InputError
from retrain.experiments.plan import plan_runs
from retrain.models import folder
from retrain.models.codec import ChatCodec
from retrain.models.folder import inspect
from retrain.models.tiny import EMBEDDED_PATH
from retrain.preflight import check_reading
from retrain.types import Problem

PROBLEM = Problem("p", "Compute 1+1.", "2")
PLAIN = "{{ messages[0].content }}"
LOUD = "{{ messages[0].content }} Compute!"
DATED = "{{ strftime_now('%d %b %Y') }}: {{ messages[0].content }}"


def model_folder(path: Path, listed: dict[str, str], files: dict[str, str]) -> Path:
    """The embedded model with other chat templates: listed in the tokenizer's config, or in files
    of their own."""
    shutil.copytree(EMBEDDED_PATH, path)
    (path / "chat_template.jinja").unlink()
    settings = json.loads((path / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    if listed:
        entries = [{"name": name, "template": text} for name, text in listed.items()]
        settings["chat_template"] = entries
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    for name, text in files.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(text)
    return path


def prompt(path: Path, **keys: Any) -> str:
    model = ModelConfig(model=str(path), **keys)
    codec = ChatCodec.of(AutoTokenizer.from_pretrained(path), [0], model)
    ids = codec.encode(PROBLEM)
    assert inspect(model, path).prompt_tokens(PROBLEM) == len(ids)
    return codec.decode(ids)


@pytest.mark.parametrize(
    ("listed", "files"),
    [
        ({"default": PLAIN, "loud": LOUD}, {}),
        ({}, {"chat_template.jinja": PLAIN, "additional_chat_templates/loud.jinja": LOUD}),
    ],
)
def test_one_of_several_templates(
    tmp_path: Path, listed: dict[str, str], files: dict[str, str]
) -> None:
    path = model_folder(tmp_path / "m", listed, files)
    assert inspect(ModelConfig(model=str(path)), tmp_path).problems == ()
    assert prompt(path) == "Compute 1+1."
    assert prompt(path, chat_template="loud") == "Compute 1+1. Compute!"
    with pytest.raises(InputError, match=r"model\.chat_template: the tokenizer has no 'rag'"):
        prompt(path, chat_template="rag")


def reading(path: Path, **keys: Any) -> Any:
    tables = {
        "model": {"model": str(path), **keys},
        "training": {"max_tokens": 32, "max_steps": 2},
        "sepa": {"steps": 1},
        "campaign": {"seeds": [1, 2], "conditions": [{"name": "a"}]},
    }
    return read_mapping(tables, base_dir=path.parent)


def test_a_name_that_no_template_has_is_told_before_anything_starts(tmp_path: Path) -> None:
    path = model_folder(tmp_path / "m", {}, {"additional_chat_templates/loud.jinja": LOUD})
    with pytest.raises(ConfigError) as caught:
        check_reading(reading(path))
    (issue,) = caught.value.issues
    assert issue.key == "model.chat_template"
    assert issue.message == (
        f"{path} has no 'default' but loud; write chat_template = \"loud\" or another of them in "
        "[model]"
    )
    check_reading(reading(path, chat_template="loud"))


class Later(date):
    @classmethod
    def today(cls) -> Later:
        return cls(2031, 2, 3)


def test_the_date_is_that_of_the_campaigns_first_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = model_folder(tmp_path / "m", {}, {"chat_template.jinja": DATED})
    monkeypatch.setattr(folder, "date", Later)
    loaded = reading(path).require()
    days = {run.config.model.chat_template_date for run in plan_runs(loaded)}
    assert days == {"2031-02-03"}
    # Runs that are added, and runs that are resumed, keep the day of the others.
    again = plan_runs(loaded, "2030-12-31")
    assert {run.config.model.chat_template_date for run in again} == {"2030-12-31"}
    written = reading(path, chat_template_date="2029-01-01").require()
    assert {run.config.model.chat_template_date for run in plan_runs(written)} == {"2029-01-01"}


def test_the_template_hears_the_date_that_is_written(tmp_path: Path) -> None:
    template = "{{ strftime_now('%Y%m%d') }} {{ messages[0].content }}"
    path = model_folder(tmp_path / "m", {}, {"chat_template.jinja": template})
    assert prompt(path, chat_template_date=date(2026, 7, 4)) == "20260704 Compute 1+1."
    plain = model_folder(tmp_path / "plain", {}, {"chat_template.jinja": PLAIN})
    runs = plan_runs(reading(plain).require())
    assert {run.config.model.chat_template_date for run in runs} == {""}


def test_a_date_is_a_date() -> None:
    with pytest.raises(ValueError, match="must be a date like 2026-01-31"):
        RunConfig.model_validate({"model": {"chat_template_date": "tomorrow"}})
