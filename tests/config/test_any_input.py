"""Whatever is written: a config, or errors in words. Never a traceback."""

from __future__ import annotations

import contextlib
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from retrain.config.load import Override, parse_set, read_mapping
from retrain.config.messages import TABLES
from retrain.config.schema import ConditionConfig, RetrainConfig
from retrain.errors import InputError
from retrain.preflight import check_reading

scalars = st.one_of(
    st.booleans(),
    st.integers(-3, 600),
    st.floats(),
    st.text(max_size=6),
    st.sampled_from(
        ["grpo", "none", "ppo", "auto", "a.b", "embedded", "jsonl", "custom", "os.sep"]
    ),
    st.dates(),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=2)
    ),
    max_leaves=4,
)


def table(keys: list[str]) -> st.SearchStrategy[Any]:
    known = st.dictionaries(st.sampled_from(keys), values, max_size=4)
    return st.one_of(known, known, known, st.dictionaries(st.text(max_size=6), values, max_size=2))


tables = {name: table(list(model.model_fields)) for name, model in TABLES.items()}
conditions = st.fixed_dictionaries(
    {},
    optional={
        key: tables.get(key, scalars) if key in TABLES else scalars
        for key in ConditionConfig.model_fields
    },
)
campaigns = st.fixed_dictionaries(
    {},
    optional={
        "seeds": st.lists(st.integers(0, 3), max_size=3),
        "max_steps": st.integers(1, 9),
        "conditions": st.one_of(values, st.lists(st.one_of(conditions, scalars), max_size=3)),
    },
)
files = st.fixed_dictionaries(
    {},
    optional={
        **tables,
        "campaign": st.one_of(campaigns, campaigns, tables["campaign"], values),
        "model": st.one_of(tables["model"], values),
        "other": values,
    },
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(
    files,
    st.lists(st.tuples(st.sampled_from(list(TABLES)), st.text(max_size=5), values), max_size=2),
)
@example({}, [("squeeze", "\n", [])])
def test_reading_gives_a_config_and_issues(
    file: dict[str, Any], given: list[tuple[str, str, Any]]
) -> None:
    reading = read_mapping(file, [Override(*parts) for parts in given])
    for issue in reading.issues:
        assert issue.message
        assert "\n" not in str(issue.key)
    loaded = reading.loaded
    assert isinstance(loaded.config, RetrainConfig)
    if not reading.issues:
        labels = [condition.label.lower() for condition in loaded.conditions]
        assert len(set(labels)) == len(labels)
        for condition in loaded.conditions:
            run = loaded.run_config(condition, loaded.seeds[0])
            again = read_mapping(run.model_dump(exclude_none=True))
            assert again.issues == ()


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(files)
def test_trying_the_parts_ends_in_words_too(file: dict[str, Any]) -> None:
    reading = read_mapping(file)
    # Sizes that are legal and take long, and names that would be looked up on the hub.
    if reading.loaded.config.model.model != "embedded":
        return
    with contextlib.suppress(InputError):
        check_reading(reading)


@given(st.text(max_size=30))
def test_set_gives_an_override_or_words(text: str) -> None:
    try:
        override = parse_set(text)
    except InputError:
        return
    assert override.table
    assert override.key
