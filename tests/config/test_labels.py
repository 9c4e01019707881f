"""Labels: unique, stable, and safe wherever they are written."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from retrain.config.labels import MAX_LENGTH, check_name, fit, make_labels, safe, suffix
from retrain.config.load import config_from_mapping

SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=~,-]*")

keys = st.sampled_from(
    [("training", "lr"), ("training", "temperature"), ("loss", "type"), ("sepa", "steps")]
)
values = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(),
    st.booleans(),
    st.text(max_size=30),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=8), st.integers(), max_size=3),
)
changes = st.dictionaries(keys, values, max_size=4)


def nested(flat: dict[tuple[str, str], Any]) -> dict[str, dict[str, Any]]:
    tables: dict[str, dict[str, Any]] = {}
    for (table, key), value in flat.items():
        tables.setdefault(table, {})[key] = value
    return tables


@given(changes)
def test_labels_do_not_depend_on_the_order_of_keys(flat: dict[tuple[str, str], Any]) -> None:
    backwards = dict(reversed(flat.items()))
    assert suffix(nested(flat)) == suffix(nested(backwards))


@given(st.lists(changes, min_size=1, max_size=5))
def test_labels_are_safe_and_short(several: list[dict[tuple[str, str], Any]]) -> None:
    for label in make_labels([("", "grpo+none", nested(flat)) for flat in several]):
        assert SAFE.fullmatch(label)
        assert len(label) <= MAX_LENGTH
        assert check_name(label) == ""


@given(st.lists(st.floats(1e-9, 1.0), min_size=2, max_size=6, unique=True))
def test_different_values_give_different_labels(rates: list[float]) -> None:
    made = make_labels([("", "grpo+none", {"training": {"lr": rate}}) for rate in rates])
    assert len({label.lower() for label in made}) == len(rates)


@given(st.lists(st.text(min_size=1, max_size=80), min_size=2, max_size=6, unique=True))
def test_different_texts_give_different_labels(paths: list[str]) -> None:
    made = make_labels([("", "grpo+none", {"data": {"path": path}}) for path in paths])
    assert len(set(made)) == len(paths)


@given(st.text(max_size=100))
def test_suggested_names_are_accepted(name: str) -> None:
    assert check_name(fit(safe(name))) == ""


def test_only_collisions_get_their_changes() -> None:
    conditions = [
        ("", "grpo+none", {}),
        ("", "grpo+none", {"training": {"lr": 1e-4, "temperature": 0.7}}),
        ("", "maxrl+none", {"training": {"lr": 1e-4}}),
        ("mine", "grpo+none", {"training": {"lr": 1e-4}}),
    ]
    assert make_labels(conditions) == [
        "grpo+none",
        "grpo+none~lr=0.0001~training.temperature=0.7",
        "maxrl+none",
        "mine",
    ]


def test_a_number_is_the_same_however_it_is_written() -> None:
    def label(rate: object) -> str:
        conditions = [{}, {"training": {"weight_decay": rate}}]
        return config_from_mapping({"campaign": {"conditions": conditions}}).conditions[1].label

    assert label(1) == label(1.0) == "maxrl+gtpo_sepa~weight_decay=1.0"


def test_parameters_are_written_out() -> None:
    made = suffix({"algorithm": {"advantage_params": {"scale": "std"}}})
    assert made == "~advantage_params.scale=std"
