"""What is wrong with a value, in words: pydantic's errors become `ConfigIssue`s.

The words for what a key wants come from the schema, so a new key or a changed range needs no
change here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from retrain.config.reward import RewardComponentConfig
from retrain.config.schema import CampaignConfig, ConditionConfig, RetrainConfig, SqueezeConfig
from retrain.config.stopping import StoppingConfig
from retrain.config.table import Table

TABLES: dict[str, type[Table]] = {
    name: type(table)
    for name, table in RetrainConfig(squeeze=SqueezeConfig(), campaign=CampaignConfig())
}
"""Every table of a TOML file, by its name."""

LISTED: dict[str, type[Table]] = {
    "campaign.conditions": ConditionConfig,
    "reward.components": RewardComponentConfig,
}
"""Tables that may stand many times, with two brackets."""

NESTED: dict[str, type[Table]] = {"campaign.stopping": StoppingConfig}
"""Tables inside others; without them what they set up is off."""

_TABLE_SYNONYMS = {
    "optimizer": "training",
    "optim": "training",
    "trainer": "training",
    "train": "training",
    "sampling": "training",
    "lora": "model",
    "dataset": "data",
    "task": "data",
    "eval": "evaluation",
    "log": "logging",
    "plugin": "plugins",
    "advantage": "algorithm",
    "conditions": "campaign.conditions",
    "components": "reward.components",
    "stopping": "campaign.stopping",
    "early_stopping": "campaign.stopping",
}

_KEY_SYNONYMS = {
    "learning_rate": "lr",
    "num_generations": "group_size",
    "num_samples": "group_size",
    "rollouts": "group_size",
    "steps": "max_steps",
    "num_steps": "max_steps",
    "max_new_tokens": "max_tokens",
    "max_completion_length": "max_tokens",
    "max_grad_norm": "grad_clip",
    "model_name": "model",
    "model_path": "model",
    "base_model": "model",
    "rank": "lora_rank",
    "alpha": "lora_alpha",
    "target_modules": "lora_targets",
    "advantage": "advantage_mode",
    "transform": "transform_mode",
    "kl_beta": "kl_coef",
    "workers": "max_workers",
    "threshold": "correct_threshold",
    "scheduler": "lr_schedule",
    "dataset": "source",
    "output_dir": "log_dir",
    "resume": "from",
    "resume_from": "from",
    "resume_from_checkpoint": "from",
}


@cache
def _table_schema(table: str) -> dict[str, Any]:
    return (LISTED.get(table) or NESTED.get(table) or TABLES[table]).model_json_schema()


def key_schema(table: str, key: str) -> dict[str, Any]:
    """The JSON schema of one key."""
    properties: dict[str, dict[str, Any]] = _table_schema(table)["properties"]
    return properties[key]


def near(word: str, known: Iterable[str], count: int = 1) -> list[str]:
    """Known words that look like `word`."""
    folded = {name.lower(): name for name in known}
    return [folded[match] for match in get_close_matches(word.lower(), folded, n=count, cutoff=0.6)]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean x?`, or nothing."""
    matches = near(word, known)
    return f"; did you mean {matches[0]}?" if matches else ""


def no_such(kind: str, path: Path, name: str, names: Sequence[str]) -> str:
    """That a file or folder is not there, and which of `names` could be meant."""
    return f"no such {kind}: {path}{did_you_mean(name, names)}"


def show(value: object) -> str:
    """A value as TOML writes it, short enough for a message."""
    match value:
        case bool():
            text = "true" if value else "false"
        case str():
            text = f'"{value}"'
        case list() | tuple():
            text = "[" + ", ".join(show(item) for item in value) + "]"
        case Mapping():
            text = "{" + ", ".join(f"{key} = {show(item)}" for key, item in value.items()) + "}"
        case _:
            text = str(value)
    return text if len(text) <= 100 else text[:97] + "..."


def describe(schema: Mapping[str, Any]) -> str:
    """What a key wants: `a whole number of 1 or more`."""
    if "anyOf" in schema:
        options = [option for option in schema["anyOf"] if option.get("type") != "null"]
        return ", or ".join(describe(option) for option in options)
    if "$ref" in schema:
        return "a table"
    if "const" in schema:
        return show(schema["const"])
    if "enum" in schema:
        return "one of " + ", ".join(show(option) for option in schema["enum"])
    match schema.get("type"):
        case "integer":
            return "a whole number" + _range(schema)
        case "number":
            return "a number" + _range(schema)
        case "boolean":
            return "true or false"
        case "array":
            empty = not schema.get("minItems") or schema.get("maxItems")
            return ("a list" if empty else "a non-empty list") + _items(schema)
        case "string":
            return "text that is not empty" if schema.get("minLength") else "text"
        case "object":
            return "a table"
        case _:
            return "something else"


def _range(schema: Mapping[str, Any]) -> str:
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f" from {low:g} to {high:g}"
    parts = []
    if low is not None:
        parts.append(f"of {low:g} or more")
    if above is not None:
        parts.append(f"above {above:g}")
    if high is not None:
        parts.append(f"at most {high:g}")
    if below is not None and below < 2**53:
        parts.append(f"below {below:g}")
    return " " + " and ".join(parts) if parts else ""


def _items(schema: Mapping[str, Any]) -> str:
    least, most = schema.get("minItems"), schema.get("maxItems")
    count = f" of {least}" if least and least == most else ""
    items: Mapping[str, Any] = schema.get("items", {})
    if "enum" in items:
        return f"{count or ' of'} {', '.join(show(option) for option in items['enum'])}"
    words = {
        "integer": "whole numbers" + _range(items),
        "number": "numbers" + _range(items),
        "string": "texts",
    }.get(str(items.get("type")), "tables")
    return f"{count or ' of'} {words}"


_KINDS: tuple[tuple[type | tuple[type, ...], str, frozenset[str]], ...] = (
    (bool, "true or false", frozenset({"boolean"})),
    (int, "a whole number", frozenset({"integer", "number"})),
    (float, "a number with a decimal point", frozenset({"number"})),
    (str, "text", frozenset({"string"})),
    ((list, tuple), "a list", frozenset({"array"})),
    (Mapping, "a table", frozenset({"object"})),
)


def explain_value(value: object, schema: Mapping[str, Any]) -> str:
    """Why `value` is not what `schema` asks for, and what to write instead."""
    wanted = describe(schema)
    options = schema.get("anyOf", [schema])
    types = {str(option.get("type")) for option in options}
    name, fits = next(
        ((name, fits) for kind, name, fits in _KINDS if isinstance(value, kind)),
        ("a date or time", frozenset[str]()),
    )
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is not a finite number; {wanted} is wanted"
    if isinstance(value, str) and (not fits & types or _without_quotes(value, types)):
        return f"{show(value)} is text; {wanted} is wanted{_without_quotes(value, types)}"
    if not fits & types:
        return f"{show(value)} is {name}; {wanted} is wanted{_conversion(value, types)}"
    choices = [str(c) for o in options for c in o.get("enum", [o["const"]] if "const" in o else [])]
    if isinstance(value, str) and choices:
        hint = did_you_mean(value, choices) or (
            f": write [{show(value)}]" if "array" in types else ""
        )
        return f"{show(value)} is not known; {wanted} is wanted{hint}"
    if isinstance(value, str):
        return f"{wanted} is wanted"
    items = [str(c) for o in options for c in o.get("items", {}).get("enum", [])]
    if isinstance(value, list) and items and (odd := [item for item in value if item not in items]):
        hint = did_you_mean(odd[0], items) if isinstance(odd[0], str) else ""
        return f"{show(odd[0])} is not known; {wanted} is wanted{hint}"
    return f"{show(value)} does not fit; {wanted} is wanted"


def _without_quotes(value: object, types: set[str]) -> str:
    if not isinstance(value, str) or not types & {"integer", "number", "boolean"}:
        return ""
    if "boolean" in types:
        return ", without quotes" if value.lower() in ("true", "false") else ""
    try:
        float(value.replace("_", ""))
    except ValueError:
        return ""
    return ", without quotes"


def _conversion(value: object, types: set[str]) -> str:
    if isinstance(value, float) and value.is_integer() and "integer" in types:
        return f": write {int(value)}"
    if not isinstance(value, (list, Mapping)) and types == {"array"}:
        return f": write [{show(value)}]"
    if not isinstance(value, (str, list, Mapping, bool)) and "string" in types:
        return f': write "{show(value)}"'
    return ""


def unknown_key(table: str, key: str) -> str:
    """The message for a key that `[table]` does not have."""
    tables = TABLES | NESTED
    known = tables[table].model_fields
    synonym = _KEY_SYNONYMS.get(key, "")
    homes = [name for name, model in tables.items() if key in model.model_fields]
    if synonym in known:
        return f"unknown key in [{table}]; did you mean {synonym}?"
    own = near(key, known)
    if homes and not any(name.endswith(f"_{key}") for name in own):
        places = " or ".join(f"[{name}]" for name in homes)
        return f"unknown key in [{table}]; it belongs in {places}"
    if own:
        return f"unknown key in [{table}]; did you mean {own[0]}?"
    if key == "conditions":
        return f"unknown key in [{table}]; conditions are written as [[campaign.conditions]]"
    elsewhere = [
        f"[{name}] {match}"
        for name, model in tables.items()
        for match in [*near(key, model.model_fields), *({synonym} & set(model.model_fields))]
    ]
    if elsewhere:
        return f"unknown key in [{table}]; did you mean {elsewhere[0]}?"
    return f"unknown key in [{table}]; it knows {', '.join(known)}"


def unknown_top_level(name: str, value: object) -> str:
    """The message for a table, or a key above all tables, that does not exist."""
    synonym = _TABLE_SYNONYMS.get(name)
    if isinstance(value, Mapping) or (value and isinstance(value, list)):
        if synonym:
            brackets = "[[{}]]" if synonym in LISTED else "[{}]"
            return f"unknown table; did you mean {brackets.format(synonym)}?"
        matches = near(name, TABLES)
        if matches:
            return f"unknown table; did you mean [{matches[0]}]?"
        return f"unknown table; the tables are {', '.join(f'[{table}]' for table in TABLES)}"
    tables = TABLES | NESTED
    key = name if any(name in model.model_fields for model in tables.values()) else None
    key = key or _KEY_SYNONYMS.get(name, name)
    homes = [table for table, model in tables.items() if key in model.model_fields]
    if homes:
        places = " or ".join(f"[{table}]" for table in homes)
        rename = "" if key == name else f" as {key}"
        return f"stands above all tables; it belongs in {places}{rename}"
    return "stands above all tables, and no table knows it"


def unknown_condition_key(key: str, value: object) -> str:
    """The message for a key that `[[campaign.conditions]]` does not have."""
    if key in TABLES:
        return f"[{key}] is the same for all conditions; change it outside the conditions"
    if isinstance(value, Mapping):
        tables = [name for name in ConditionConfig.model_fields if name in TABLES]
        synonym = _TABLE_SYNONYMS.get(key)
        hint = f"; did you mean {synonym}?" if synonym in tables else did_you_mean(key, tables)
        return f"unknown table in a condition{hint or '; it may repeat ' + ', '.join(tables)}"
    name = key if any(key in model.model_fields for model in TABLES.values()) else None
    name = name or _KEY_SYNONYMS.get(key, key)
    homes = [
        table
        for table, model in TABLES.items()
        if name in model.model_fields and table in ConditionConfig.model_fields
    ]
    if homes:
        places = " or ".join(f"[campaign.conditions.{table}]" for table in homes)
        return f"belongs in {places}" + ("" if name == key else f" as {name}")
    plain = [name for name in ConditionConfig.model_fields if name not in TABLES]
    return f"unknown key in [[campaign.conditions]]{did_you_mean(key, plain)}"


def unknown_component_key(key: str) -> str:
    """The message for a key that `[[reward.components]]` does not have."""
    known = RewardComponentConfig.model_fields
    if key in TABLES["reward"].model_fields:
        return "belongs in [reward], above the components"
    if (synonym := _KEY_SYNONYMS.get(key)) in known:
        return f"unknown key in [[reward.components]]; did you mean {synonym}?"
    return f"unknown key in [[reward.components]]{did_you_mean(key, known)}"


def bare(key: str) -> str:
    """A key as TOML writes it: with quotes when it has other than word characters."""
    return key if re.fullmatch(r"[\w-]+", key) else json.dumps(key)


def issue_at(location: Sequence[str | int], kind: str, value: object) -> tuple[str, str]:
    """(key, message) of one pydantic error; `value` is what was written at the key's place."""
    table, *rest = location
    table = str(table)
    if table not in TABLES:
        return bare(table), unknown_top_level(table, value)
    if not rest:
        return table, f"{show(value)} is no table; write [{table}] with its keys below"
    inner = ".".join(map(str, location[:2]))
    if inner in LISTED:
        return _listed_issue(location, kind, value)
    if inner in NESTED:
        return _nested_issue(inner, list(location[2:]), kind, value)
    key = str(rest[0])
    if kind == "extra_forbidden" and len(rest) == 1:
        return f"{table}.{bare(key)}", unknown_key(table, key)
    return f"{table}.{key}", explain_value(value, key_schema(table, key))


def _nested_issue(
    table: str, rest: Sequence[str | int], kind: str, value: object
) -> tuple[str, str]:
    """The same inside `[campaign.stopping]`."""
    if not rest:
        return table, f"{show(value)} is no table; write [{table}] with its keys below"
    key = str(rest[0])
    if kind == "extra_forbidden":
        return f"{table}.{bare(key)}", unknown_key(table, key)
    schema = key_schema(table, key)
    if kind == "missing":
        return f"{table}.{key}", f"is missing; {describe(schema)} is wanted"
    return f"{table}.{key}", explain_value(value, schema)


def _listed_issue(location: Sequence[str | int], kind: str, value: object) -> tuple[str, str]:
    """The same inside `[[campaign.conditions]]` and `[[reward.components]]`."""
    table, many = f"{location[0]}.{location[1]}", str(location[1])
    if len(location) == 2 or not isinstance(location[2], int):
        remedy = f"write [[{table}]], with two brackets, above each {many.removesuffix('s')}"
        return table, f"{many} are a list of tables: {remedy}"
    where = f"{table}[{location[2] + 1}]"
    if len(location) == 3:
        return where, f"{show(value)} is no table; write [[{table}]] with keys below"
    key = str(location[3])
    if kind == "extra_forbidden":
        unknown = (
            unknown_condition_key(key, value)
            if table == "campaign.conditions"
            else unknown_component_key(key)
        )
        return f"{where}.{bare(key)}", unknown
    schema = key_schema(table, key)
    if kind == "missing":
        return f"{where}.{key}", f"is missing; {describe(schema)} is wanted"
    return f"{where}.{key}", explain_value(value, schema)
