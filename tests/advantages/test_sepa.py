"""The SEPA schedule: worked numbers and refusals."""

import pytest

from retrain.advantages.sepa import SepaController, SepaSchedule, full_pooling_step


def ungated(kind="linear", steps=10, delay_steps=5):
    return SepaSchedule(kind, steps, delay_steps, correct_rate_gate=0.0)


def test_linear_ramp():
    controller = SepaController(ungated())
    values = [controller.lambda_for(step) for step in (0, 5, 6, 10, 15, 99)]
    assert values == pytest.approx([0, 0, 0.1, 0.5, 1, 1])
    assert SepaController(ungated(steps=0)).lambda_for(99) == 0


def test_the_gate_acts_from_the_next_step_and_stays_open():
    controller = SepaController(SepaSchedule("linear", 10, 0, correct_rate_gate=0.1))
    controller.observe(0.09, [])
    assert not controller.gate_open
    assert controller.lambda_for(1) == 0
    controller.observe(None, [])
    assert controller.lambda_for(2) == 0
    controller.observe(0.1, [])
    assert controller.lambda_for(3) == pytest.approx(0.3)
    controller.observe(0.0, [])
    assert controller.gate_open
    assert controller.lambda_for(4) == pytest.approx(0.4)


def test_a_checkpoint_keeps_the_gate():
    schedule = SepaSchedule("linear", 10, 0, correct_rate_gate=0.1)
    controller, restored = SepaController(schedule), SepaController(schedule)
    controller.observe(1.0, [])
    restored.load_state_dict(controller.state_dict())
    assert restored.gate_open
    assert restored.lambda_for(5) == 0.5


def test_auto_starts_after_50_sequences_and_follows_the_variance():
    controller = SepaController(ungated("auto", steps=1000, delay_steps=1000))
    controller.observe(1.0, [2.0] * 49)
    assert controller.state_dict()["var_0"] is None
    controller.observe(1.0, [2.0])
    assert controller.state_dict()["var_0"] == pytest.approx(2.0)
    assert controller.lambda_for(2) == 0
    # 300 sequences without variance: ema / var_0 = 0.99^300 = 0.0490, over 0.2 is 0.2452.
    controller.observe(1.0, [0.0] * 300)
    assert controller.lambda_for(3) == pytest.approx(1 - 0.99**300 / 0.2)
    assert 0.75 < controller.lambda_for(3) < 0.76


def test_auto_of_a_policy_that_never_varied_is_linear():
    controller = SepaController(ungated("auto", steps=10, delay_steps=0))
    controller.observe(1.0, [0.0] * 80)
    assert controller.lambda_for(3) == pytest.approx(0.3)


@pytest.mark.parametrize("variance", [float("nan"), float("inf"), -1.0])
def test_a_variance_that_is_none(variance):
    with pytest.raises(ValueError, match="variance of a sequence"):
        SepaController(ungated()).observe(1.0, [variance])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "cosine"}, "neither 'linear' nor 'auto'"),
        ({"steps": -1}, "must not be negative"),
        ({"delay_steps": -1}, "must not be negative"),
        ({"correct_rate_gate": 1.1}, "not between 0 and 1"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        SepaSchedule(**settings)


def test_full_pooling_step():
    assert full_pooling_step(ungated(), 16) == 15
    assert full_pooling_step(ungated(), 15) is None
    assert full_pooling_step(ungated(steps=0), 100) is None
    # The defaults need 551 steps; a standard campaign has 500.
    assert full_pooling_step(SepaSchedule(), 500) is None
