"""From scored groups to token advantages, and the algorithm that a config describes."""

import math
import time

import numpy as np
import pytest
from credit_helpers import completion, group, no_pieces, plain_group

from retrain.advantages.algorithm import AlgorithmError, build_algorithm
from retrain.advantages.credit import assign_credit, probe_algorithm
from retrain.advantages.episode import RewardError
from retrain.advantages.uncertainty import NonFiniteError
from retrain.plugins import PluginError
from retrain.types import Group

PLANNING_PIECES = ["so", " wait", " let", " me", " go"]


def planning_step():
    """Two groups of different sizes; the first completion plans with its tokens 1 to 3."""
    first = group(
        "p0",
        [
            completion(PLANNING_PIECES, [-1.0, -2.0, -3.0, -4.0, -5.0]),
            completion(["no"], [-1.0]),
            completion([], []),
        ],
        [1.0, 0.0, 0.0],
    )
    return [first, plain_group("p1", [1.0, 1.0], tokens=2)]


def planning_pieces(token_ids):
    return [PLANNING_PIECES[int(i)] for i in token_ids]


def credit_of(groups, pieces=no_pieces, step=0, sepa_lambda=0.0, **settings):
    algorithm = build_algorithm(**settings)
    return assign_credit(groups, algorithm, step, sepa_lambda, pieces, run="a-run")


def test_a_whole_step():
    credit = credit_of(
        planning_step(),
        planning_pieces,
        advantage_mode="grpo",
        transform_mode="gtpo_sepa",
        sepa_lambda=1.0,
        gtpo_beta=0.3,
    )
    assert credit.advantages == pytest.approx([2 / 3, -1 / 3, -1 / 3, 0, 0])
    assert credit.mask.sum(axis=1).tolist() == [5, 1, 0, 2, 2]
    assert credit.planning.sum(axis=1).tolist() == [3, 0, 0, 0, 0]
    # h = 1 … 5 with mean 3; execution tokens 1 and 5 pool to 3, so their weight is 1.
    weights = np.array([1, 1 + 0.3 * (2 / 3 - 1), 1, 1 + 0.3 * (4 / 3 - 1), 1])
    assert credit.token_advantages[0] == pytest.approx(2 / 3 * weights)
    assert credit.token_advantages[1].tolist() == pytest.approx([-1 / 3, 0, 0, 0, 0])
    assert credit.causes == ("informative", "all_correct")
    assert credit.informative_groups == 1
    # Execution: 1 and 5, then 1, then 1 1 1 1 of the second group; the empty row has none.
    assert credit.execution_variances.tolist() == [4.0, 0.0, 0.0, 0.0]
    execution = np.array([1, 5, 1, 1, 1, 1, 1])
    assert credit.stats == pytest.approx(
        {
            "exec_uncertainty_mean": execution.mean(),
            "exec_uncertainty_var": execution.var(),
            "plan_uncertainty_mean": 3.0,
            "plan_uncertainty_var": 2 / 3,
            "planning_fraction": 0.3,
        }
    )


def test_what_does_not_exist_is_none():
    credit = credit_of([plain_group("p", [1.0, 0.0])])
    assert credit.stats["plan_uncertainty_mean"] is None
    assert credit.stats["plan_uncertainty_var"] is None
    assert credit.stats["planning_fraction"] == 0
    nothing = credit_of([])
    assert set(nothing.stats.values()) == {None}
    assert nothing.token_advantages.shape == (0, 0)


def test_a_step_without_an_informative_group():
    credit = credit_of([plain_group("p", [0.0, 0.0]), plain_group("q", [1.0, 1.0, 1.0])])
    assert not credit.token_advantages.any()
    assert credit.causes == ("all_wrong", "all_correct")


def test_pieces_are_asked_for_only_where_a_gram_is():
    asked = []

    def pieces(token_ids):
        asked.append(len(token_ids))
        return planning_pieces(token_ids)

    credit_of(planning_step(), pieces)
    assert asked == [5]


def test_grams_of_the_config():
    credit = credit_of(planning_step(), planning_pieces, strategic_grams="so wait, go")
    assert credit.planning[0].tolist() == [True, True, False, False, True]


def with_value(name, value):
    bad = completion(["x", "y"], [-1.0, -1.0], [1.0, 1.0])
    getattr(bad, name)[1] = value
    return [plain_group("fine", [1.0, 0.0]), group("broken", [bad, bad], [1.0, 0.0])]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_logprob_that_is_none_stops_the_step(value):
    where = f"run a-run, step 7, problem broken: a log-probability of {value} at token 1"
    with pytest.raises(NonFiniteError, match=where):
        credit_of(with_value("logprobs", value), step=7)


def test_entropies_are_checked_when_they_are_read():
    groups = with_value("entropies", math.nan)[1:]
    credit_of(groups)
    with pytest.raises(NonFiniteError, match=r"problem broken: a token entropy of nan"):
        credit_of(groups, uncertainty_kind="shannon_entropy")


def test_entropies_reach_the_algorithm():
    rows = [completion(["x", "y"], [-1.0, -1.0], [0.5, 1.5]) for _ in range(2)]
    groups = [group("p", rows, [1.0, 0.0])]
    credit = credit_of(groups, uncertainty_kind="shannon_entropy")
    assert credit.uncertainties.tolist() == [[0.5, 1.5], [0.5, 1.5]]
    with pytest.raises(ValueError, match="needs the sampler's token entropies"):
        credit_of([plain_group("p", [1.0, 0.0])], uncertainty_kind="shannon_entropy")


def test_rewards_that_are_refused():
    with pytest.raises(NonFiniteError, match=r"run a-run, step 0, problem p: a reward of nan"):
        credit_of([plain_group("p", [1.0, math.nan])])
    expected = r"run a-run, step 0, problem p: maxrl .* has reward -1"
    with pytest.raises(RewardError, match=expected):
        credit_of([plain_group("p", [1.0, -1.0])], advantage_mode="maxrl")


def test_groups_that_do_not_fit():
    scored = plain_group("p", [1.0, 0.0])
    unscored = Group(scored.problem, scored.prompt_ids, scored.completions)
    with pytest.raises(ValueError, match="problem p: 2 completions but 0 scores"):
        credit_of([unscored])
    short = group("p", [completion(["x"], [-1.0], [1.0, 2.0])], [1.0])
    with pytest.raises(ValueError, match="problem p: 1 tokens but 2 entropies"):
        credit_of([short])
    with pytest.raises(ValueError, match="5 tokens but 1 pieces"):
        credit_of(planning_step(), lambda _: ["x"])


IMPORTS = """
import numpy as np
from retrain.advantages.transforms import TransformSpec, none
"""


@pytest.fixture
def plugin(tmp_path):
    """Write a module `credit_plugin`; gives build_algorithm's search_paths."""

    def make(body):
        (tmp_path / "credit_plugin.py").write_text(IMPORTS + body)
        return {"search_paths": [tmp_path]}

    return make


def test_plugins_for_every_part(plugin):
    where = plugin(
        "def advantage(rewards, params): return rewards * params['k']\n"
        "def make_transform(params):\n"
        "    return TransformSpec('t', lambda c: none(c) + c.params['k'] * c.step)\n"
        "def uncertainty(logprobs, mask): return logprobs ** 2\n"
    )
    credit = credit_of(
        [plain_group("p", [1.0, 2.0])],
        step=3,
        advantage_mode="credit_plugin.advantage",
        transform_mode="credit_plugin.make_transform",
        uncertainty_kind="credit_plugin.uncertainty",
        params={"k": 2},
        transform_params={"k": 10},
        **where,
    )
    assert credit.advantages.tolist() == [2, 4]
    assert credit.token_advantages.tolist() == [[32] * 3, [34] * 3]
    assert (credit.uncertainties == 1).all()


def test_algorithm_mode_replaces_both(plugin):
    where = plugin(
        "def whole(c):\n"
        "    assert not c.advantages.any()\n"
        "    return (c.rewards * c.params['k'])[:, None] * np.arange(c.mask.shape[1])\n"
    )
    algorithm = build_algorithm(algorithm_mode="credit_plugin.whole", params={"k": 2.0}, **where)
    assert algorithm.advantage is None
    assert probe_algorithm(algorithm) == ()
    credit = assign_credit([plain_group("p", [1.0, -3.0])], algorithm, 0, 0.0, no_pieces)
    assert credit.token_advantages.tolist() == [[0, 2, 4], [0, -6, -12]]
    assert credit.advantages.tolist() == [2, -6]


@pytest.mark.parametrize("advantage_mode", ["grpo", "maxrl"])
@pytest.mark.parametrize("transform_mode", ["none", "gtpo", "gtpo_hicra", "gtpo_sepa"])
@pytest.mark.parametrize("kind", ["surprisal", "predictive_variance", "shannon_entropy"])
def test_every_built_in_algorithm_passes_its_probe(advantage_mode, transform_mode, kind):
    algorithm = build_algorithm(
        advantage_mode=advantage_mode, transform_mode=transform_mode, uncertainty_kind=kind
    )
    assert probe_algorithm(algorithm) == ()
    assert algorithm.needs_entropies == (kind == "shannon_entropy")
    assert algorithm.uses_sepa == (transform_mode == "gtpo_sepa")


@pytest.mark.parametrize(
    ("settings", "body", "message"),
    [
        (
            {"transform_mode": "credit_plugin.f"},
            "def f(c): return c.advantages",
            r"on a made-up group: credit_plugin.f returned shape \(7,\); expected shape \(7, 8\)",
        ),
        (
            {"transform_mode": "credit_plugin.f"},
            "def f(c):\n  c.advantages[:] = 0\n  return none(c)",
            "assignment destination is read-only",
        ),
        (
            {"algorithm_mode": "credit_plugin.f"},
            "def f(c): return c.logprobs * np.nan",
            "credit_plugin.f returned nan",
        ),
        (
            {"advantage_mode": "credit_plugin.f"},
            "def f(rewards):\n  rewards -= rewards.mean()\n  return rewards",
            "read-only",
        ),
        (
            {"advantage_mode": "credit_plugin.f"},
            "def f(rewards): return np.ones(4)",
            r"returned shape \(4,\); expected shape \(3,\)",
        ),
        (
            {"uncertainty_kind": "credit_plugin.f"},
            "def f(logprobs, mask): return logprobs",
            "an uncertainty is finite and not negative",
        ),
    ],
)
def test_a_probe_finds_what_is_wrong(plugin, settings, body, message):
    where = plugin(body)
    with pytest.raises(PluginError, match=message):
        probe_algorithm(build_algorithm(**settings, **where))
    (warning,) = probe_algorithm(build_algorithm(**settings, **where, strict=False))
    assert warning.startswith("on a made-up group: credit_plugin.f")


def test_a_probe_has_planning_tokens_of_any_gram(plugin):
    where = plugin(
        "def f(c):\n  assert c.planning.any() and not c.planning.all()\n  return none(c)"
    )
    for grams in (None, ["hmm"], ["it’s a very long gram with a lot of words"]):
        probe_algorithm(
            build_algorithm(transform_mode="credit_plugin.f", strategic_grams=grams, **where)
        )


def problems_of(**settings):
    with pytest.raises(AlgorithmError) as caught:
        build_algorithm(**settings)
    return dict(caught.value.problems)


def test_all_problems_are_reported_together():
    found = problems_of(
        advantage_mode="grop",
        transform_mode="no_such_module.f",
        uncertainty_kind="surprise",
        gtpo_beta=-1,
        hicra_alpha=1.0,
        strategic_grams=["!"],
    )
    assert list(found) == [
        "gtpo.beta",
        "hicra.alpha",
        "algorithm.advantage_mode",
        "algorithm.transform_mode",
        "algorithm.uncertainty_kind",
        "logging.strategic_grams",
    ]
    assert "did you mean grpo?" in found["algorithm.advantage_mode"]
    assert "did you mean surprisal?" in found["algorithm.uncertainty_kind"]


@pytest.mark.parametrize(
    ("settings", "key", "message"),
    [
        ({"advantage_params": {"scal": 1}}, "algorithm.advantage_params", "did you mean scale?"),
        ({"advantage_params": {"scal": 1}}, "algorithm.advantage_params", "(it has: scale)"),
        (
            {"advantage_params": {"scale": "sd"}},
            "algorithm.advantage_params",
            "scale = 'sd'; grpo takes 'none' or 'std'",
        ),
        ({"params": {"scale": 1}}, "algorithm.params", "scale = 1; grpo takes"),
        ({"params": {"beta": 1}}, "algorithm.params", "grpo has no parameter 'beta'"),
        (
            {"transform_params": {"beta": 1}},
            "algorithm.transform_params",
            "beta is a key of [gtpo]",
        ),
        (
            {"advantage_mode": "maxrl", "advantage_params": {"scale": "std"}},
            "algorithm.advantage_params",
            "maxrl has no parameter 'scale' (it has none)",
        ),
        ({"gtpo_beta": math.nan}, "gtpo.beta", "nan"),
        ({"hicra_alpha": -0.1}, "hicra.alpha", "-0.1 is not in [0, 1)"),
        (
            {"transform_mode": "gtpo_hicra", "strategic_grams": []},
            "logging.strategic_grams",
            "needs",
        ),
        (
            {"algorithm_mode": "math.sqrt", "advantage_params": {"scale": "std"}},
            "algorithm.advantage_params",
            "nothing reads them",
        ),
        ({"algorithm_mode": "mine"}, "algorithm.algorithm_mode", "unknown algorithm_mode 'mine'"),
        (
            {"search_paths": ["/nowhere"], "transform_mode": "a.b"},
            "algorithm.transform_mode",
            "no folder",
        ),
    ],
)
def test_settings_that_make_no_algorithm(settings, key, message):
    found = problems_of(**{"advantage_mode": "grpo", **settings})
    assert list(found) == [key]
    assert message in found[key]


def test_shared_params_may_be_for_either(plugin):
    where = plugin("def f(c): return none(c)")
    algorithm = build_algorithm(
        advantage_mode="grpo",
        transform_mode="credit_plugin.f",
        params={"tau": 1, "scale": "std"},
        advantage_params={"scale": "none"},
        **where,
    )
    assert algorithm.advantage_params["scale"] == "none"
    assert algorithm.transform_params == {"tau": 1, "scale": "std"}


def test_a_large_step_is_cheap():
    rows = [completion(["x"] * 2000, [-1.0] * 2000) for _ in range(64)]
    groups = [group(f"p{i}", rows[:8], [1.0] + [0.0] * 7) for i in range(8)]
    algorithm = build_algorithm()
    start = time.process_time()
    assign_credit(groups, algorithm, 0, 0.5, no_pieces)
    assert time.process_time() - start < 1
