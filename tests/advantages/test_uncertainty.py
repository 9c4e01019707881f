"""Uncertainty kinds: worked numbers, and plugins in their place."""

import math

import numpy as np
import pytest

from retrain.advantages.uncertainty import (
    UNCERTAINTY_KINDS,
    NonFiniteError,
    check_entropies,
    check_logprobs,
    find_uncertainty_kind,
)
from retrain.plugins import PluginError

MASK = np.array([[True, True, True], [True, False, False]])
LOGPROBS = np.array([[0.0, -1.0, -60.0], [math.log(0.5), 0.0, 0.0]])


@pytest.fixture
def plugin(tmp_path):
    def make(body):
        (tmp_path / "uncertainty_plugin.py").write_text("import numpy as np\n" + body)
        return find_uncertainty_kind("uncertainty_plugin.f", [tmp_path])

    return make


def test_worked_numbers():
    measure = {name: kind(LOGPROBS, MASK * 2.0, MASK) for name, kind in UNCERTAINTY_KINDS.items()}
    assert measure["surprisal"] == pytest.approx(np.array([[0, 1, 50], [math.log(2), 0, 0]]))
    e = math.exp(-1)
    assert measure["predictive_variance"] == pytest.approx(
        np.array([[0, e * (1 - e), 0], [0.25, 0, 0]])
    )
    assert np.array_equal(measure["shannon_entropy"], MASK * 2.0)


def test_shannon_entropy_needs_entropies():
    kind = UNCERTAINTY_KINDS["shannon_entropy"]
    assert kind.needs_entropies
    with pytest.raises(ValueError, match="'shannon_entropy' needs the sampler's token entropies"):
        kind(LOGPROBS, None, MASK)


def test_a_plugin_is_measured_on_tokens_only(plugin):
    kind = plugin("def f(logprobs, mask): return np.where(mask, 1 - logprobs, np.nan)")
    assert not kind.needs_entropies
    assert kind(LOGPROBS, None, MASK)[0].tolist() == [1.0, 2.0, 61.0]
    assert not kind(LOGPROBS, None, MASK)[~MASK].any()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def f(logprobs): return logprobs", r"is fn\(logprobs, mask\); this takes \(logprobs\)"),
        ("def f(a, b, c): return a", r"this takes \(a, b, c\)"),
        ("def f(logprobs, mask): return logprobs", "returned -1.0 for a token"),
        ("def f(logprobs, mask): return logprobs * np.nan", "returned nan for a token"),
        ("def f(logprobs, mask): return -logprobs[mask]", r"shape \(4,\); expected shape \(2, 3\)"),
        ("def f(logprobs, mask): return logprobs.foo", "raised AttributeError"),
    ],
)
def test_plugins_that_are_wrong(plugin, body, message):
    with pytest.raises(PluginError, match=message):
        plugin(body)(LOGPROBS, None, MASK)


def test_unknown_kind():
    with pytest.raises(PluginError, match=r"unknown uncertainty_kind 'entropy'"):
        find_uncertainty_kind("entropy")


def test_errors_name_run_step_problem_and_value():
    where = {"run": "grpo+none_s42", "step": 17, "problems": ["a", "b"]}
    bad = LOGPROBS.copy()
    bad[1, 0] = np.nan
    expected = r"run grpo\+none_s42, step 17, problem b: a log-probability of nan at token 0"
    with pytest.raises(NonFiniteError, match=expected):
        check_logprobs(bad, MASK, **where)
    with pytest.raises(NonFiniteError, match=r"problem b: a token entropy of nan"):
        check_entropies(bad, MASK, **where)
    # What rounding does to a certain token is no mistake.
    check_logprobs(np.full(MASK.shape, 1e-6), MASK, **where)
