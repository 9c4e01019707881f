"""The generated documents, and the configs that ship."""

from __future__ import annotations

import inspect
import json
import re
import tomllib
from pathlib import Path

import jsonschema
import pytest

from retrain import templates
from retrain.config import reference
from retrain.config.messages import TABLES, describe, key_schema
from retrain.config.schema import ConditionConfig
from retrain.errors import InputError
from retrain.preflight import load_checked

ROOT = Path(__file__).parents[2]
SHIPPED = [*sorted(ROOT.glob("campaigns/*.toml")), *sorted(templates.FOLDER.glob("*.toml"))]


def test_the_documents_are_as_the_schema_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert reference.main(["--check"]) == 0, "run: python -m retrain.config.reference"


def test_stale_documents_are_found_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path)
    assert reference.main(["--check"]) == 1
    assert reference.main([]) == 0
    assert reference.main(["--check"]) == 0
    assert reference.main(["--chek"]) == 2


@pytest.mark.parametrize("table", [*TABLES, "campaign.conditions"])
def test_every_key_is_described(table: str) -> None:
    model = TABLES.get(table, ConditionConfig)
    assert inspect.getdoc(model)
    for key, field in model.model_fields.items():
        if key != "conditions":
            assert field.description, f"{table}.{key} has no docstring"
            assert "something else" not in describe(key_schema(table, key))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_shipped_configs_are_valid_and_without_warnings(path: Path) -> None:
    _, warnings = load_checked(path)
    assert warnings == []
    schema = json.loads((ROOT / reference.SCHEMA).read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.validate(tomllib.loads(path.read_text()), schema)


@pytest.mark.parametrize(
    "values",
    [
        {"training": {"lrr": 1}},
        {"training": {"lr": "1"}},
        {"training": {"lr": 0}},
        {"loss": {"type": "x"}},
        {"campaign": {"conditions": [{"training": {"batch": 1}}]}},
        {"lr": 1},
    ],
)
def test_the_json_schema_refuses_what_retrain_refuses(values: dict[str, object]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, reference.schema())


def test_the_quickstart_template_is_the_quickstart_campaign() -> None:
    campaign = (ROOT / "campaigns" / "quickstart.toml").read_text()
    assert templates.read("quickstart") == campaign, "copy one over the other"


def test_every_template_is_listed() -> None:
    assert {file.stem for file in templates.FOLDER.glob("*.toml")} == set(templates.NAMES)
    assert all(templates.summaries().values())


@pytest.mark.parametrize("name", templates.NAMES)
def test_the_commented_lines_of_a_template_are_keys(name: str) -> None:
    """Lines that are commented out to show another way name keys that exist."""
    table = ""
    for line in templates.read(name).splitlines():
        if heading := re.match(r"\[+([\w.]+)\]+", line):
            table = heading[1].removeprefix("campaign.conditions.")
        elif commented := re.match(r"# (\w+) = ", line):
            model = ConditionConfig if table == "campaign.conditions" else TABLES[table]
            assert commented[1] in model.model_fields, line


def test_the_label_that_the_campaign_template_promises(tmp_path: Path) -> None:
    text = templates.read("campaign")
    promised = re.search(r"# without a name: (\S+)", text)
    assert promised is not None
    path = tmp_path / "x.toml"
    path.write_text(re.sub(r"^name = .*$", "", text, flags=re.MULTILINE))
    assert promised[1] in [c.label for c in load_checked(path)[0].conditions]


def test_templates_are_never_written_over_a_file(tmp_path: Path) -> None:
    path = tmp_path / "retrain.toml"
    path.write_text("mine")
    with pytest.raises(InputError, match="exists and is left as it is"):
        templates.write("experiment", path)
    assert path.read_text() == "mine"
    with pytest.raises(InputError, match="did you mean experiment"):
        templates.write("experimnt", tmp_path / "other.toml")
    with pytest.raises(InputError, match="is a folder"):
        templates.write("experiment", tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        templates.write("experiment", tmp_path / "missing" / "x.toml")
