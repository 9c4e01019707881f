import os

import pytest
from log_tree import BEGAN, Planned, standard_campaign, write_campaign, write_run

from retrain.analysis.capacity import (
    effective_parallelism,
    estimated_wall_time,
    measured_step_time,
    total_campaign_steps,
)
from retrain.analysis.progress import campaign_progress, run_seconds_left
from retrain.analysis.records import read_campaign, read_run
from retrain.config.schema import ModelConfig, RunConfig, TrainingConfig

CONFIG = RunConfig(
    model=ModelConfig(lora_rank=8), training=TrainingConfig(max_tokens=64, batch_size=8)
)


def test_formulas_of_the_capacity_page():
    assert total_campaign_steps(5, 8, 500) == 20_000
    assert estimated_wall_time(20_000, 3.0, 4) == 15_000.0


@pytest.mark.parametrize(
    ("parallel", "max_workers", "available", "expected"),
    [
        (False, 12, None, 1),
        (True, 12, None, 12),
        (True, 100, None, 40),
        (True, 0, None, 40),
        (True, 0, 2, 2),
        (True, 3, 2, 3),
    ],
)
def test_parallelism(parallel, max_workers, available, expected):
    found = effective_parallelism(
        40, parallel=parallel, max_workers=max_workers, available=available
    )
    assert found == expected


def test_no_earlier_runs(tmp_path):
    assert measured_step_time(tmp_path / "absent") is None
    assert measured_step_time(tmp_path) is None


def test_step_time_is_the_median_over_runs(tmp_path):
    for seed, seconds in enumerate((1.0, 2.0, 9.0)):
        write_run(tmp_path / f"r{seed}", seed=seed, step_time=seconds, row_at=BEGAN + seed)
    measured = measured_step_time(tmp_path)
    assert (measured.seconds, measured.runs, measured.same_shape) == (2.0, 3, False)
    assert measured.newest.timestamp() == BEGAN + 2


def test_runs_of_the_same_shape_are_preferred(tmp_path):
    standard_campaign(tmp_path / "campaign_1", conditions=2, step_time=0.25)
    write_run(tmp_path / "larger", batch_size=64, step_time=8.0)
    measured = measured_step_time(tmp_path, CONFIG)
    assert (measured.seconds, measured.runs, measured.same_shape) == (0.25, 4, True)
    other = CONFIG.model_copy(update={"training": TrainingConfig(max_tokens=512)})
    fallback = measured_step_time(tmp_path, other)
    assert (fallback.runs, fallback.same_shape) == (5, False)


def test_damaged_runs_are_left_out(tmp_path):
    write_run(tmp_path / "good", step_time=1.5)
    bad = write_run(tmp_path / "bad", step_time=7.0)
    (bad / "metrics.jsonl").write_text('{"step": 0, "step_t')
    odd = write_run(tmp_path / "odd", step_time=4.0)
    (odd / "config.toml").write_text("not = = toml")
    assert measured_step_time(tmp_path, CONFIG).seconds == 1.5


def test_time_left_plays_the_campaign_through(tmp_path):
    running = {"status": "running", "steps": 10, "step_time": 2.0}
    folder = write_campaign(
        tmp_path / "c",
        [
            Planned("a", 1, {"step_time": 2.0}),
            Planned("a", 2, running),
            Planned("b", 1, {**running, "steps": 16, "step_time": 3.0}),
            Planned("b", 2, {"folder": False}),
        ],
        status="running",
        max_workers=2,
    )
    campaign = read_campaign(folder, now=BEGAN + 1)
    progress = campaign_progress(campaign)
    assert (progress.steps_done, progress.steps_total) == (46, 80)
    assert progress.step_time_s == 2.0
    assert progress.row_age_s == pytest.approx(1.0)
    # b/1 has 4 steps of 3 s left and then makes room for b/2: 20 steps of 3 s.
    assert progress.seconds_left == pytest.approx(12.0 + 60.0)


def test_time_left_of_what_is_over_or_unmeasured(tmp_path):
    done = read_campaign(standard_campaign(tmp_path / "c"), now=BEGAN)
    assert campaign_progress(done).seconds_left is None
    folder = write_campaign(tmp_path / "d", [Planned("a", 1, {"folder": False})], status="running")
    os.utime(folder / "manifest.json", (BEGAN, BEGAN))
    assert campaign_progress(read_campaign(folder, now=BEGAN)).seconds_left is None
    assert run_seconds_left(read_run(write_run(tmp_path / "r"), now=BEGAN)) is None
    going = write_run(tmp_path / "s", status="running", steps=5, step_time=2.0)
    assert run_seconds_left(read_run(going, now=BEGAN)) == 30.0
