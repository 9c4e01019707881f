"""Transform modes: numbers worked by hand, and plugins in their place."""

from dataclasses import replace

import numpy as np
import pytest

from retrain.advantages.transforms import (
    ALGORITHM_MODES,
    TRANSFORM_MODES,
    TransformContext,
    gtpo,
    gtpo_hicra,
    gtpo_sepa,
    none,
    transform_spec,
)
from retrain.plugins import PluginError

# One row of four tokens with mean uncertainty 2, one of a single token, one empty.
CONTEXT = TransformContext(
    rewards=np.array([1.0, 0.0, 0.0]),
    group_index=np.zeros(3, dtype=np.int64),
    advantages=np.array([2.0, -1.0, 5.0]),
    logprobs=np.zeros((3, 4)),
    uncertainties=np.array([[1.0, 3.0, 4.0, 0.0], [7.0, 0, 0, 0], [0, 0, 0, 0]]),
    planning=np.array([[True, False, False, False], [True, False, False, False], [False] * 4]),
    mask=np.array([[True] * 4, [True, False, False, False], [False] * 4]),
    gtpo_beta=0.5,
    hicra_alpha=0.2,
    sepa_lambda=0.5,
)
EMPTY = [0, 0, 0, 0]


def test_none():
    assert none(CONTEXT).tolist() == [[2, 2, 2, 2], [-1, 0, 0, 0], EMPTY]


def test_gtpo():
    # w = 1 + 0.5 (h / 2 - 1) = 0.75, 1.25, 1.5, 0.5; a single token is its own mean.
    assert gtpo(CONTEXT).tolist() == [[1.5, 2.5, 3.0, 1.0], [-1, 0, 0, 0], EMPTY]


def test_gtpo_clamps():
    # beta 2: w = 0, 2, 3, and 1 - 2 = -1, which becomes 0.
    assert gtpo(replace(CONTEXT, gtpo_beta=2.0))[0].tolist() == [0, 4, 6, 0]


def test_gtpo_hicra():
    # 1.5 + 0.2 * 1.5 for the planning token; -1 + 0.2 * 1 softens the blame.
    expected = [[1.8, 2.5, 3.0, 1.0], [-0.8, 0, 0, 0], EMPTY]
    assert gtpo_hicra(CONTEXT) == pytest.approx(np.array(expected))


def test_gtpo_sepa():
    # Execution tokens 3, 4, 0 have mean 7/3; half-way: 8/3, 19/6, 7/6. w = 1/2 + h / 4.
    expected = np.array([0.75, 0.5 + 8 / 12, 0.5 + 19 / 24, 0.5 + 7 / 24]) * 2
    assert gtpo_sepa(CONTEXT)[0] == pytest.approx(expected)
    assert gtpo_sepa(CONTEXT)[1:].tolist() == [[-1, 0, 0, 0], EMPTY]


def test_an_empty_batch():
    empty = TransformContext(
        rewards=np.zeros(0),
        group_index=np.zeros(0, dtype=np.int64),
        advantages=np.zeros(0),
        logprobs=np.zeros((0, 0)),
        uncertainties=np.zeros((0, 0)),
        planning=np.zeros((0, 0), dtype=bool),
        mask=np.zeros((0, 0), dtype=bool),
    )
    for spec in TRANSFORM_MODES.values():
        assert spec(empty).shape == (0, 0)


def test_what_the_modes_need():
    assert {name: spec.needs_planning for name, spec in TRANSFORM_MODES.items()} == {
        "none": False,
        "gtpo": False,
        "gtpo_hicra": True,
        "gtpo_sepa": True,
    }
    assert [name for name, spec in TRANSFORM_MODES.items() if spec.uses_sepa] == ["gtpo_sepa"]
    assert TRANSFORM_MODES.describe()["none"].startswith("Every token gets")


IMPORTS = """
import numpy as np
from dataclasses import replace
from retrain.advantages.transforms import TransformContext, TransformSpec, gtpo, none
"""
DOUBLE = "lambda c: 2 * none(c)"


@pytest.fixture
def plugin(tmp_path):
    def make(body, name="f", params=None, **options):
        (tmp_path / "transform_plugin.py").write_text(IMPORTS + body)
        return transform_spec(f"transform_plugin.{name}", params or {}, [tmp_path], **options)

    return make


@pytest.mark.parametrize(
    "body",
    [
        "def f(context): return 2 * none(context)",
        "def f(context: TransformContext): return 2 * none(context)",
        "def f(context: 'TransformContext'): return 2 * none(context)",
        "def f(params): return 2 * none(params)",
        "def f(c): return none(replace(c, advantages=2 * c.advantages))",
        "def f(c): return none(replace(c, advantages=np.array([4.0, -2.0, 10.0])))",
        "def f(c, k=2): return k * none(c)",
        "def f(*args): return 2 * none(args[0])",
        "f = " + DOUBLE,
        "class T:\n  def __call__(self, c): return 2 * none(c)\nf = T()",
        f"def f(): return TransformSpec('x', {DOUBLE})",
        f"def f(params): return TransformSpec('x', {DOUBLE})",
        f"def f(params=None): return TransformSpec('x', {DOUBLE})",
        f"def f(p) -> TransformSpec: return TransformSpec('x', {DOUBLE})",
        f"def f(p) -> 'TransformSpec': return TransformSpec('x', {DOUBLE})",
        "def f(c): return 2 * c.advantages[:, None] + 0 * c.logprobs",  # padding filled
    ],
)
def test_functions_and_factories(plugin, body):
    spec = plugin(body)
    assert spec.name == "transform_plugin.f"
    assert np.array_equal(spec(CONTEXT), 2 * none(CONTEXT))


def test_a_factory_states_needs_and_gets_params(plugin):
    spec = plugin(
        "def make_transform_spec(params):\n"
        "    k = params['k']\n"
        "    return TransformSpec('x', lambda c: k * none(c), needs_planning=True,\n"
        "                         needs_entropies=True, uses_sepa=True)",
        name="make_transform_spec",
        params={"k": 3},
    )
    assert np.array_equal(spec(CONTEXT), 3 * none(CONTEXT))
    assert spec.needs_planning
    assert spec.needs_entropies
    assert spec.uses_sepa


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def f(a, b): return a", r"a factory of a TransformSpec .* this takes \(a, b\)"),
        ("def f(): return 3", "called as a factory, it returned int; expected a TransformSpec"),
        ("def f() -> TransformSpec: return None", "it returned NoneType"),
        ("def f(p) -> TransformSpec: return p['k']", "raised KeyError: 'k'"),
    ],
)
def test_what_is_no_transform(plugin, body, message):
    with pytest.raises(PluginError, match=message):
        plugin(body)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "def f(c): return c.advantages",
            r"shape \(3,\); expected shape \(3, 4\), \(rows, tokens\)",
        ),
        (
            "def f(c): return none(c) * np.nan",
            "returned nan for token 0 of row 0, whose reward is 1",
        ),
        ("def f(c): return none(c) / c.uncertainties", "returned inf for token 3 of row 0"),
        ("def f(c): return [1, [2]]", "returned list, not an array of numbers"),
        ("def f(c): c.mask", r"returned None; expected shape \(3, 4\)"),
        ("def f(c): c.foo", "raised .*'TransformContext' object has no attribute 'foo'"),
        (
            "def f(params): return TransformSpec('x', params['fn'])",
            r"not subscriptable \(and as a factory, given the params, KeyError: 'fn'\)",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.filterwarnings("ignore:invalid value")
def test_transforms_that_are_wrong(plugin, body, message):
    spec = plugin(body)
    with pytest.raises(PluginError, match=message):
        spec(CONTEXT)


def test_a_broken_make_function_is_a_broken_factory(plugin):
    with pytest.raises(PluginError, match="make_it raised KeyError: 'k'"):
        plugin("def make_it(p): return p['k']", name="make_it")


def test_unknown_modes():
    with pytest.raises(
        PluginError, match=r"unknown transform_mode 'gtpo_sep'; did you mean gtpo_sepa"
    ):
        transform_spec("gtpo_sep", {})
    with pytest.raises(PluginError, match=r"unknown algorithm_mode 'gtpo' \(nothing is built in"):
        transform_spec("gtpo", {}, registry=ALGORITHM_MODES)
