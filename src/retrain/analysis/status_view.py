"""The terminal view of `retrain status`."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from retrain.analysis.progress import ACTIVE, Progress, campaign_progress, run_seconds_left
from retrain.analysis.records import CampaignRecord, Found, RunView
from retrain.analysis.words import age, duration, percent, plural
from retrain.causes import INFRASTRUCTURE

FULL_CAMPAIGNS = 3
ACTIVE_CAMPAIGNS = 8
EARLIER_CAMPAIGNS = 12
SHOWN_RUNS = 20
SHOWN_TROUBLES = 6
TROUBLES = ("failed", "diverged", "lost", "stalled", "stopped")


@dataclass(frozen=True, slots=True)
class Look:
    """How a state looks; the word says it too, for those who do not see the colour."""

    sign: str
    plain: str
    style: str


LOOKS = {
    "done": Look("✓", "+", "green"),
    "running": Look("▸", ">", "cyan"),
    "pending": Look("·", ".", "dim"),
    "stalled": Look("…", "~", "yellow"),
    "lost": Look("?", "?", "red"),
    "failed": Look("✗", "x", "red"),
    "diverged": Look("!", "!", "magenta"),
    "stopped": Look("‖", "=", "yellow"),
    "dropped": Look("⊘", "/", "blue"),
}
UNKNOWN = Look("?", "?", "yellow")


def render(found: Found, console: Console) -> RenderableType:
    """Everything found, newest first: campaigns in full or in one line, then single runs."""
    blocks: list[RenderableType] = []
    for manifest in found.damaged:
        blocks += [Text(damaged_words(manifest), style="red"), Text()]
    full, earlier = _choose(found.campaigns)
    for campaign in full:
        blocks += [_campaign(campaign, console), Text()]
    if earlier:
        blocks += [_earlier(earlier), Text()]
    if found.runs:
        blocks += [_runs_table(found.runs), Text()]
    return Group(*blocks[:-1])


def damaged_words(manifest: Path) -> str:
    """What to say of a campaign whose manifest cannot be read."""
    return (
        f"{manifest} is damaged: its campaign cannot be shown as one. Bring it back from a copy; "
        "each of its runs can go on by itself: retrain resume RUN"
    )


def _choose(
    campaigns: Sequence[CampaignRecord],
) -> tuple[list[CampaignRecord], list[CampaignRecord]]:
    active = [campaign for campaign in campaigns if not campaign.finished][:ACTIVE_CAMPAIGNS]
    ended = [campaign for campaign in campaigns if campaign.finished]
    full = {id(c) for c in [*active, *ended[: max(0, FULL_CAMPAIGNS - len(active))]]}
    return (
        [campaign for campaign in campaigns if id(campaign) in full],
        [campaign for campaign in campaigns if id(campaign) not in full],
    )


def _campaign(campaign: CampaignRecord, console: Console) -> RenderableType:
    progress = campaign_progress(campaign)
    matrix = _matrix(campaign, console) or _summary(campaign)
    parts: list[RenderableType] = [
        _title(campaign),
        Padding(matrix, (0, 0, 0, 2), expand=False),
        *_flow(_legend({run.state for run in campaign.runs}, console), "   ", console),
        *_flow(_progress(campaign, progress), " · ", console),
    ]
    active = [run for run in campaign.runs if run.state in ACTIVE]
    if active:
        table = _runs_table(active, title=False)
        parts.append(Padding(table, (0, 0, 0, 2), expand=False))
    parts += _troubles(campaign.runs)
    waits = any(run.state == "failed" and run.cause in INFRASTRUCTURE for run in campaign.runs)
    if campaign.state in {"pending", "stopped", "lost"} or (campaign.finished and waits):
        parts.append(Text(f"  retrain resume {shlex.quote(str(campaign.folder))}", style="dim"))
    return Group(*parts)


def _title(campaign: CampaignRecord) -> Text:
    look = LOOKS.get(campaign.state, UNKNOWN)
    title = Text.assemble((campaign.name, "bold"), "  ", (campaign.state, look.style), "  ")
    shape = (
        f"{plural(len(campaign.conditions), 'condition')} x {plural(len(campaign.seeds), 'seed')}"
    )
    steps = f", {campaign.max_steps} steps each" if campaign.max_steps else ""
    return title.append(shape + steps, style="dim")


def _matrix(campaign: CampaignRecord, console: Console) -> Table | None:
    """Conditions x seeds, a cell a run; None when it is wider than the terminal."""
    rows = []
    for label in campaign.conditions:
        by_seed = {run.seed: run for run in campaign.of(label)}
        rows.append([_cell(by_seed.get(seed), console) for seed in campaign.seeds])
    # A running cell may break between its step and its accuracy, and only there.
    widths = [
        max(len(f"s{seed}"), *(len(part) for row in rows for part in row[i].plain.split()), 1)
        for i, seed in enumerate(campaign.seeds)
    ]
    room = console.width - 3 - max(len(label) for label in campaign.conditions)
    if sum(widths) + len(widths) > room:
        return None
    gap = 2 if sum(widths) + 2 * len(widths) <= room else 1
    table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False)
    table.add_column("", no_wrap=True)
    for seed, width in zip(campaign.seeds, widths, strict=True):
        table.add_column(f"s{seed}", min_width=width, header_style="dim")
    for label, cells in zip(campaign.conditions, rows, strict=True):
        table.add_row(Text(label), *cells)
    return table


def _cell(run: RunView | None, console: Console) -> Text:
    if run is None:
        return Text()
    sign, style = _sign(run.state, console)
    if run.state == "done":
        return Text(f"{sign}{percent(run.accuracy)}", style=style)
    if run.state == "pending" or (run.state == "dropped" and not run.step):
        return Text(sign, style=style)
    accuracy = f" {percent(run.accuracy)}" if run.accuracy is not None else ""
    return Text(f"{sign}{run.step}{accuracy}", style=style)


def _summary(campaign: CampaignRecord) -> Table:
    """A line a condition, for more seeds than the terminal has room for."""
    states = [state for state in LOOKS if campaign.counts()[state]]
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("", no_wrap=True)
    for state in states:
        table.add_column(state, justify="right", header_style="dim", style=LOOKS[state].style)
    table.add_column("mean accuracy", justify="right", header_style="dim")
    for label in campaign.conditions:
        runs = campaign.of(label)
        known = [run.accuracy for run in runs if run.state == "done" and run.accuracy is not None]
        counts = [sum(run.state == state for run in runs) for state in states]
        mean = sum(known) / len(known) if known else None
        table.add_row(Text(label), *(str(count or "") for count in counts), percent(mean))
    return table


def _legend(states: Iterable[str], console: Console) -> list[Text]:
    present = set(states)
    legend = []
    for state, look in LOOKS.items():
        if state in present:
            step = " (step)" if state in {"running", "stalled"} else ""
            sign = (_sign(state, console)[0], look.style)
            legend.append(Text.assemble(sign, (f" {state}{step}", "dim")))
    return [*legend, Text("%: held-out accuracy", style="dim")]


def _progress(campaign: CampaignRecord, progress: Progress) -> list[Text]:
    parts = [f"{campaign.counts()['done']} of {plural(len(campaign.runs), 'run')} done"]
    if progress.steps_total and not campaign.finished:
        parts.append(f"step {progress.steps_done:,} of {progress.steps_total:,}")
    if progress.step_time_s is not None:
        parts.append(f"{duration(progress.step_time_s)} a step (median)")
    if progress.row_age_s is not None:
        parts.append(f"last row {age(progress.row_age_s)} ago")
    if progress.seconds_left is not None:
        parts.append(f"about {duration(progress.seconds_left)} left")
    return [Text(part) for part in parts]


def _flow(pieces: Sequence[Text], gap: str, console: Console) -> list[Text]:
    """Pieces side by side, broken into lines only between them."""
    lines = [Text("  ")]
    for piece in pieces:
        line = lines[-1]
        if line.plain.strip():
            if line.cell_len + len(gap) + piece.cell_len > console.width:
                lines.append(line := Text("  "))
            else:
                line.append(gap, style="dim")
        line.append_text(piece)
    return lines


def _troubles(runs: Sequence[RunView]) -> list[RenderableType]:
    troubled = [run for state in TROUBLES for run in runs if run.state == state]
    lines: list[RenderableType] = []
    for run in troubled[:SHOWN_TROUBLES]:
        what = f"{run.state} at step {run.step}"
        reason = next(iter(run.message.strip().splitlines()), "").removeprefix(f"{what}: ")
        state = f"{run.state} ({run.cause})" if run.cause else run.state
        line = Text.assemble((f"{run.name} {state} at step {run.step}", LOOKS[run.state].style))
        line.append(f": {reason}" if reason else "")
        if run.log.exists() and run.state not in {"stalled", "stopped"}:
            line.append(f"\n{run.log}", style="dim")
        line.overflow = "fold"
        lines.append(Padding(line, (0, 0, 0, 2)))
    if len(troubled) > SHOWN_TROUBLES:
        rest = plural(len(troubled) - SHOWN_TROUBLES, "other run")
        lines.append(Text(f"  and {rest} without a result (--json lists them)", style="dim"))
    return lines


def _earlier(campaigns: Sequence[CampaignRecord]) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in ("earlier campaigns", "state", "runs", "done", "without a result", "ended"):
        table.add_column(name, header_style="dim", justify="right" if name == "done" else "left")
    now = time.time()
    for campaign in campaigns[:EARLIER_CAMPAIGNS]:
        counts = campaign.counts()
        bad = [f"{counts[state]} {state}" for state in TROUBLES if counts[state]]
        table.add_row(
            Text(campaign.name),
            campaign.state,
            f"{len(campaign.conditions)} x {len(campaign.seeds)}",
            str(counts["done"]),
            Text(", ".join(bad), style="red"),
            f"{age(max(0.0, now - campaign.updated_at))} ago",
        )
    rest = len(campaigns) - EARLIER_CAMPAIGNS
    if rest <= 0:
        return table
    return Group(table, Text(f"and {plural(rest, 'older campaign')}", style="dim"))


def _runs_table(runs: Sequence[RunView], title: bool = True) -> RenderableType:
    shown = sorted(runs, key=lambda run: run.state not in ACTIVE)[:SHOWN_RUNS]
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("single runs" if title else "", header_style="bold", overflow="fold")
    table.add_column("state", header_style="dim")
    left = [run_seconds_left(run) for run in shown]
    columns = ["step", "accuracy", "row age", "s/step"]
    for name in [*columns, "left"] if any(left) else columns:
        table.add_column(name, justify="right", header_style="dim")
    for run, seconds in zip(shown, left, strict=True):
        cells: list[RenderableType] = [
            Text(run.folder.name),
            Text(run.state, style=LOOKS.get(run.state, UNKNOWN).style),
            f"{run.step}/{run.max_steps}" if run.max_steps else str(run.step),
            percent(run.accuracy),
            "" if run.row_age_s is None else age(run.row_age_s),
            "" if run.step_time_s is None else f"{run.step_time_s:.3g}",
        ]
        if any(left):
            cells.append("" if seconds is None else duration(seconds))
        table.add_row(*cells)
    parts: list[RenderableType] = [table]
    if len(runs) > len(shown):
        parts.append(Text(f"and {plural(len(runs) - len(shown), 'older run')}", style="dim"))
    if title:
        parts += _troubles(shown)
    return Group(*parts)


def _sign(state: str, console: Console) -> tuple[str, str]:
    look = LOOKS.get(state, UNKNOWN)
    plain = not console.encoding.lower().startswith("utf")
    return (look.plain if plain else look.sign), look.style
