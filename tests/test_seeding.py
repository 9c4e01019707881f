"""Keyed streams: a name decides a draw, and nothing else does."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrain import seeding

names = st.tuples(
    st.integers(0, 2**31),
    st.text(max_size=5),
    st.lists(st.one_of(st.integers(0, 99), st.text(max_size=3)), max_size=3),
)


def key(name):
    seed, purpose, indices = name
    return seeding.key(seed, purpose, *indices)


def splitmix64(state, count):
    """The generator as published, one number after another, in plain integers."""
    limit = 2**64
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % limit
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % limit
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % limit
        yield z ^ (z >> 31)


def test_splitmix64_reference_values():
    # The published test vector for seed 1234567.
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert list(splitmix64(1234567, 5)) == expected
    keys = np.full(5, 1234567, dtype=np.uint64)
    drawn = seeding.uniforms(keys, np.arange(5))
    assert drawn.tolist() == [(value >> 11) * 2.0**-53 for value in expected]


@given(st.integers(0, 2**64 - 1), st.integers(0, 40))
def test_uniforms_are_splitmix64_at_any_position(state, position):
    *_, value = splitmix64(state, position + 1)
    drawn = seeding.uniforms(np.array([state], dtype=np.uint64), position)
    assert drawn[0] == (value >> 11) * 2.0**-53
    assert 0 <= drawn[0] < 1


@given(
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=8),
    st.integers(0, 10_000),
    st.data(),
)
def test_a_row_draws_the_same_in_any_batch(keys, position, data):
    rows = np.array(keys, dtype=np.uint64)
    order = np.array(data.draw(st.permutations(range(len(keys)))))
    together = seeding.uniforms(rows, position)
    assert np.array_equal(seeding.uniforms(rows[order], position), together[order])
    alone = [seeding.uniforms(rows[i : i + 1], position)[0] for i in range(len(keys))]
    assert alone == together.tolist()


@given(names, names)
def test_different_names_have_different_keys(one, other):
    assert (key(one) == key(other)) == (one == other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((1, "a", [1, 2]), (1, "a", [12])),
        ((1, "a", [1]), (1, "a", ["1"])),
        ((1, "a", [0]), (1, "a", [])),
        ((12, "a", []), (1, "2a", [])),
        ((1, "a", ["b", "c"]), (1, "a", ["bc"])),
        ((1, "sample", [0, 1]), (1, "sample", [1, 0])),
    ],
)
def test_names_that_look_alike_are_different(one, other):
    assert key(one) != key(other)


def test_a_generator_is_its_name_and_not_its_history():
    first = seeding.generator(7, "data", 3)
    first.random(100)
    np.random.seed(0)
    assert seeding.generator(7, "data", 3).random() == seeding.generator(7, "data", 3).random()
    assert seeding.generator(7, "data", 3).random() != seeding.generator(7, "data", 4).random()


def test_keys_are_the_same_in_another_process():
    code = "from retrain import seeding; print(seeding.key(42, 'sample', 1, 'x'))"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert int(answer.stdout) == seeding.key(42, "sample", 1, "x")


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.text(max_size=5))
def test_draws_are_uniform_and_uncorrelated(seed, purpose):
    rows, positions = 64, 256
    keys = np.array([seeding.key(seed, purpose, i) for i in range(rows)], dtype=np.uint64)
    draws = np.stack([seeding.uniforms(keys, p) for p in range(positions)], axis=1)
    count = draws.size
    # Five standard errors of each moment of a uniform number.
    assert draws.mean() == pytest.approx(0.5, abs=5 * (1 / 12 / count) ** 0.5)
    assert draws.var() == pytest.approx(1 / 12, abs=5 * (1 / 180 / count) ** 0.5)
    centred = (draws - 0.5) * 12**0.5
    for one, next_to_it in ((centred[:, :-1], centred[:, 1:]), (centred[:-1], centred[1:])):
        assert abs((one * next_to_it).mean()) < 5 / one.size**0.5
    counts, _ = np.histogram(draws, bins=16, range=(0, 1))
    chi_square = ((counts - count / 16) ** 2 / (count / 16)).sum()
    assert chi_square < 60  # 15 degrees of freedom: beyond it once in 10 million
