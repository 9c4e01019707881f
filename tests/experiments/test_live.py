"""What the terminal shows: a view that fits it, and plain lines elsewhere."""

from __future__ import annotations

import io

import pytest
from campaigns import plain_console
from rich.console import Console
from rich.text import Text

from retrain.experiments.executors.executor import (
    Event,
    Failed,
    Finished,
    Interrupted,
    Row,
    Started,
    Warned,
)
from retrain.experiments.live import RunsView

RESULT = {"accuracy_before": 0.25, "accuracy_after": 0.75}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def terminal(width: int = 80, height: int = 24) -> Console:
    return Console(file=io.StringIO(), width=width, height=height, force_terminal=True, record=True)


def screen(view: RunsView, console: Console) -> list[str]:
    """The lines of one frame."""
    with console.capture() as capture:
        console.print(view._render())
    return capture.get().splitlines()


def unstyled(lines: list[str]) -> str:
    console = Console(file=io.StringIO(), width=500)
    for line in lines:
        console.print(Text.from_ansi(line))
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue()


def test_two_runs() -> None:
    clock, console = Clock(), terminal()
    view = RunsView(
        console, [("grpo+none_s1", 10), ("maxrl+gtpo_s1", 10)], title="campaign_x", clock=clock
    )
    view.handle(Started("grpo+none_s1", 1))
    clock.now = 8.0
    view.handle(Row("grpo+none_s1", 3, mean_reward=0.5, correct_rate=0.45, held_out_accuracy=0.4))
    text = unstyled(screen(view, console))
    assert "campaign_x  0 of 2 runs done, 1 running, 1 waiting" in text
    assert "20.0%, 8 s, about 32 s left" in text
    row = next(line for line in text.splitlines() if line.startswith("grpo+none_s1"))
    assert row.split() == ["grpo+none_s1", "4/10", "0.5", "45.0%", "40.0%", "12", "s"]

    clock.now = 20.0
    view.handle(Finished("grpo+none_s1", "done", "", RESULT))
    view.handle(Started("maxrl+gtpo_s1", 1))
    text = unstyled(screen(view, console))
    assert "1 of 2 runs done, 1 running" in text
    assert "50.0%" in text


@pytest.mark.parametrize(("runs", "running", "failed"), [(2, 2, 0), (45, 1, 4), (400, 60, 9)])
def test_any_number_of_runs_fits_the_terminal(runs: int, running: int, failed: int) -> None:
    console = terminal()
    names = [f"maxrl+gtpo_sepa~training.lr=0.0001_s{seed}" for seed in range(runs)]
    view = RunsView(console, [(name, 500) for name in names], workers=running, title="campaign_x")
    for name in names[: failed + running]:
        view.handle(Started(name, 1))
        view.handle(Row(name, 122, 0.123456, 0.5, 0.25, 1.0))
    for name in names[:failed]:
        view.handle(Failed(name, "ValueError", "ValueError: " + "long " * 100))
    lines = screen(view, console)
    assert len(lines) <= 23
    text = unstyled(lines)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert f"{running} running" in text
    shown = text.count("123/500")
    assert shown == running if running < 10 else 10 <= shown < running
    if shown < running:
        assert "more running" in text
    if failed:
        assert f"{failed} failed" in text
        assert "failed maxrl+gtpo_sepa" in text


def test_the_live_view_draws_and_cleans_up() -> None:
    console = terminal()
    with RunsView(console, [("a_s1", 2), ("b_s1", 2)], title="campaign_x") as view:
        view.handle(Started("a_s1", 1))
        view.handle(Warned("a_s1", "a_s1, step 3: no group was [informative]"))
        view.handle(Failed("a_s1", "ValueError", "[campaign] broke"))
    text = console.export_text()
    assert "warning: a_s1: step 3: no group was [informative]" in text
    assert "[1/2] a_s1 failed: [campaign] broke" in text


def feed(view: RunsView, clock: Clock, *events: Event) -> None:
    for event in events:
        clock.now += 1.0
        view.handle(event)


def test_plain_lines_tell_the_story() -> None:
    console, output = plain_console()
    clock = Clock()
    runs = [(f"c{number}_s1", 2) for number in range(4)]
    with RunsView(console, runs, workers=2, title="campaign_x", clock=clock) as view:
        feed(view, clock, Started("c0_s1", 1), Row("c0_s1", 0, 0.5, 0.4), Row("c0_s1", 1, 0.75))
        feed(view, clock, Finished("c0_s1", "done", "", RESULT))
        feed(view, clock, Started("c1_s1", 1), Failed("c1_s1", "E", "it [broke] " + "x" * 100))
        feed(view, clock, Started("c2_s1", 1), Finished("c2_s1", "diverged", "at step 0", {}))
        feed(view, clock, Started("c3_s1", 1), Interrupted("c3_s1"))
    assert output.getvalue().splitlines() == [
        "campaign_x: 4 runs, 8 steps, 2 workers",
        " 12.5% c0_s1 step 1/2, reward 0.5, correct 40.0%, about 3.5 s left",
        " 25.0% c0_s1 step 2/2, reward 0.75, about 3 s left",
        "[1/4] c0_s1 done: held-out accuracy 25.0% -> 75.0% in 3 s",
        "[2/4] c1_s1 failed: it [broke] " + "x" * 100,
        "[3/4] c2_s1 diverged: at step 0",
    ]


def test_plain_lines_do_not_grow_with_the_steps() -> None:
    console, output = plain_console()
    names = [f"c_s{seed}" for seed in range(40)]
    with RunsView(console, [(name, 500) for name in names], title="campaign_x") as view:
        for name in names:
            view.handle(Started(name, 1))
            for step in range(500):
                view.handle(Row(name, step, 0.5))
            view.handle(Finished(name, "done", "", RESULT))
    assert len(output.getvalue().splitlines()) <= 1 + 40 + 20


def test_a_warning_that_all_runs_share_is_told_once() -> None:
    console, output = plain_console()
    names = [f"c_s{seed}" for seed in range(5)]
    with RunsView(console, [(name, 2) for name in names]) as view:
        for name in names:
            view.handle(Warned(name, f"{name}: the schedule cannot finish"))
    assert output.getvalue().count("the schedule cannot finish") == 1
