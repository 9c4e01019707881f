"""The invariants of the SEPA schedule and its controller."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrain.advantages.sepa import SepaController, SepaSchedule, full_pooling_step

schedules = st.builds(
    SepaSchedule,
    kind=st.sampled_from(["linear", "auto"]),
    steps=st.integers(0, 40),
    delay_steps=st.integers(0, 20),
    correct_rate_gate=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)
variance = st.one_of(st.just(0.0), st.floats(1e-6, 10))
observation = st.tuples(st.one_of(st.none(), st.floats(0, 1)), st.lists(variance, max_size=20))
histories = st.lists(observation, max_size=12)


def follow(schedule, history):
    controller, lambdas = SepaController(schedule), []
    for step, seen in enumerate(history):
        lambdas.append(controller.lambda_for(step))
        controller.observe(*seen)
    return controller, lambdas


def slow_lambda(schedule, history):
    """Lambda for the step after the history, from its beginning."""
    step = len(history)
    gate = schedule.correct_rate_gate
    if gate > 0 and not any(rate is not None and rate >= gate for rate, _ in history):
        return 0.0
    linear = 0.0
    if schedule.steps:
        linear = min(max((step - schedule.delay_steps) / schedule.steps, 0.0), 1.0)
    values = [value for _, variances in history for value in variances]
    emas = values[:1]
    for value in values[1:]:
        emas.append(0.99 * emas[-1] + 0.01 * value)
    if schedule.kind == "linear" or len(values) < 50 or emas[49] < 1e-12:
        return linear
    return max(linear, 1 - min(emas[-1] / emas[49] / 0.2, 1))


@given(schedule=schedules, history=histories)
def test_lambda_follows_its_definition(schedule, history):
    _, lambdas = follow(schedule, history)
    for step, value in enumerate(lambdas):
        assert value == pytest.approx(slow_lambda(schedule, history[:step]), abs=1e-12)
        assert 0 <= value <= 1


@given(schedule=schedules, history=histories, at=st.integers(0, 12))
def test_a_restored_controller_continues_exactly(schedule, history, at):
    at = min(at, len(history))
    _, undisturbed = follow(schedule, history)
    before, _ = follow(schedule, history[:at])
    after = SepaController(schedule)
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    resumed = []
    for step, seen in list(enumerate(history))[at:]:
        resumed.append(after.lambda_for(step))
        after.observe(*seen)
    assert resumed == undisturbed[at:]


@given(schedule=schedules, history=histories)
def test_asking_changes_nothing(schedule, history):
    controller, _ = follow(schedule, history)
    state = controller.state_dict()
    assert controller.lambda_for(7) == controller.lambda_for(7)
    assert controller.state_dict() == state


@given(schedule=schedules, history=histories)
def test_an_open_gate_stays_open_and_a_closed_one_holds_lambda_at_0(schedule, history):
    controller = SepaController(schedule)
    was_open = schedule.correct_rate_gate == 0
    for step, seen in enumerate(history):
        assert controller.gate_open == was_open
        if not was_open:
            assert controller.lambda_for(10_000 + step) == 0
        controller.observe(*seen)
        was_open = was_open or (seen[0] is not None and seen[0] >= schedule.correct_rate_gate)


@given(schedule=schedules, history=histories)
def test_auto_is_never_below_linear(schedule, history):
    kinds = {"delay_steps": schedule.delay_steps, "steps": schedule.steps}
    gate = schedule.correct_rate_gate
    _, linear = follow(SepaSchedule("linear", **kinds, correct_rate_gate=gate), history)
    _, auto = follow(SepaSchedule("auto", **kinds, correct_rate_gate=gate), history)
    assert all(a >= b for a, b in zip(auto, linear, strict=True))


@given(schedule=schedules)
def test_linear_never_falls(schedule):
    values = [schedule.linear(step) for step in range(80)]
    assert values == sorted(values)


@given(schedule=schedules, max_steps=st.integers(0, 80))
def test_full_pooling_step_is_the_first_with_lambda_1(schedule, max_steps):
    steps = [step for step in range(max_steps) if schedule.linear(step) == 1.0]
    assert full_pooling_step(schedule, max_steps) == (steps[0] if steps else None)
