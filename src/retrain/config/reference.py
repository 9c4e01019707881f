"""`docs/configuration.md` and `docs/retrain.schema.json`, made from the schema.

python -m retrain.config.reference            write both
python -m retrain.config.reference --check    exit with 1 when they are stale
"""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from typing import Any

from retrain.config.messages import LISTED, NESTED, TABLES, describe, key_schema, show
from retrain.config.schema import RetrainConfig
from retrain.config.table import Table

DOCS = Path("docs")
PAGE = DOCS / "configuration.md"
SCHEMA = DOCS / "retrain.schema.json"

INTRODUCTION = """\
# Configuration

<!-- Made by `python -m retrain.config.reference` from the tables in src/retrain/config. -->

One TOML file describes a run, with a `[campaign]` table a whole campaign, or with a `[squeeze]`
table and no campaign what to do with a trained adapter. Every table and every key may be left out
and then takes its default. An unknown key, a wrong type, a value out of range or a combination
that cannot work is an error before anything starts; all errors are told together. `retrain explain
X.toml` shows the value of every key and where it came from.

## Where values come from

The command line wins over the file, and the file over the defaults. `retrain X.toml --lr 1e-4`,
or for any key `--set table.key=value`, changes the base config, of single runs and campaigns
alike; `--seeds 1,2,3` gives a campaign its seeds. Three rules avoid surprises:

- A key that a condition sets itself cannot be overridden: that is an error which names the
  condition. Below the condition the option would do nothing; above it, conditions that were
  written to differ in that key would no longer differ.
- `[campaign].max_steps`, when it is written, wins over `[training].max_steps`. `--max-steps` means
  both.
- A campaign takes its seeds from `[campaign].seeds` and a single run from `[training].seed`, so
  `--seed` with a campaign and `--seeds` with a single run are errors.

Relative paths of inputs (`[data].path`, a model folder, `[squeeze].adapter_path`,
`[plugins].search_paths`) are taken from the TOML file's folder, and modules beside the file can be
named as plugins. `[logging].log_dir` and `[squeeze].output_path` are taken from the folder where
`retrain` is started.

## Conditions

A condition is a set of changes to the base config. It has an `advantage_mode` and a
`transform_mode` (what it leaves out comes from `[algorithm]`), may have a `name`, and may repeat
any table to change keys in it:

```toml
[[campaign.conditions]]
advantage_mode = "grpo"
transform_mode = "none"

[[campaign.conditions]]
advantage_mode = "grpo"
transform_mode = "none"

[campaign.conditions.training]
lr = 1e-4
```

The first condition is the baseline that the others are compared with. A condition's label names
its folders, tags and table rows: its `name`, else `grpo+none`. Conditions that would share a label
get their changes appended, here `grpo+none` and `grpo+none~lr=0.0001`; only keys that several
tables have keep the table's name (`~loss.type=ppo`). Labels have at most 64 letters, digits and
`. _ + = ~ , -`, and differ by more than upper and lower case. Without conditions the five standard
ones are trained: `grpo+none`, `maxrl+none`, `maxrl+gtpo`, `maxrl+gtpo_hicra`, `maxrl+gtpo_sepa`.
Messages count conditions from 1: `campaign.conditions[2].training.lr`.

## Completion in editors

Editors that know TOML schemas (Taplo, Even Better TOML) complete and check keys when the file's
first line names the schema:

```toml
#:schema ./docs/retrain.schema.json
```
"""


def page() -> str:
    """The text of `docs/configuration.md`."""
    parts = [INTRODUCTION]
    for name, model in TABLES.items():
        parts.append(_table(f"[{name}]", name, model))
        parts += [
            _table(f"[{nested}]", nested, below)
            for nested, below in NESTED.items()
            if nested.partition(".")[0] == name
        ]
        parts += [
            _table(f"[[{listed}]]", listed, below)
            for listed, below in LISTED.items()
            if listed.partition(".")[0] == name
        ]
    return "\n".join(parts)


def _table(heading: str, name: str, model: type[Table]) -> str:
    summary = inspect.getdoc(model) or ""
    first, _, rest = summary.partition("\n")
    text = first.partition(": ")[2]
    text = text[:1].upper() + text[1:]
    lines = [f"## `{heading}`", "", "\n".join([text, rest]).strip(), ""]
    lines += ["| key | value | default | meaning |", "|---|---|---|---|"]
    for key, field in sorted(model.model_fields.items(), key=lambda item: item[0] != "type"):
        if f"{name}.{key}" in LISTED | NESTED:
            continue
        default = "" if field.is_required() else field.get_default(call_default_factory=True)
        shown = "" if default is None or field.is_required() else f"`{show(default)}`"
        meaning = " ".join((field.description or "").split())
        cells = (f"`{key}`", describe(key_schema(name, key)), shown, meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def schema() -> dict[str, Any]:
    """The JSON schema of a TOML file."""
    made = RetrainConfig.model_json_schema()
    # A TOML file has no null: a key is there or it is not.
    for table in ("campaign", "squeeze"):
        options = made["properties"][table]["anyOf"]
        made["properties"][table] = next(option for option in options if "$ref" in option)
    definitions = made["$defs"]
    condition = definitions["ConditionConfig"]["properties"]
    for table in set(condition) & set(TABLES):
        condition[table] = {
            "$ref": f"#/$defs/{TABLES[table].__name__}",
            "description": condition[table]["description"],
        }
    for definition in (made, *definitions.values()):
        definition.pop("title", None)
        for node in definition["properties"].values():
            node.pop("title", None)
            options = [o for o in node.get("anyOf", ()) if o.get("type") != "null"]
            if options:
                del node["anyOf"]
                node.update(options[0] if len(options) == 1 else {"anyOf": options})
            if node.get("default", "") is None:
                del node["default"]
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "retrain",
        **made,
    }


def schema_text() -> str:
    """The text of `docs/retrain.schema.json`."""
    # Editors that know only draft 7 resolve references under any name, so $defs stays.
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> int:
    """Write the files, or with --check say whether they are as the schema has them."""
    texts = {PAGE: page(), SCHEMA: schema_text()}
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    stale = [path for path, text in texts.items() if not _holds(path, text)]
    for path in stale:
        if arguments:
            print(f"{path} is stale; run: python -m retrain.config.reference", file=sys.stderr)
        else:
            path.write_text(texts[path], encoding="utf-8")
            print(f"wrote {path}")
    return 1 if arguments and stale else 0


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
