"""The upper part of what the terminal shows: what is compared, and what both have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from retrain.analysis.diff.configs import ConfigDifferences, Difference
from retrain.analysis.diff.identical import Parting, Sameness
from retrain.analysis.diff.sides import Match, Side
from retrain.analysis.samples.look import one_line
from retrain.analysis.words import plural
from retrain.config.messages import show

SHOWN_KEYS = 6
SHOWN_SEEDS = 12
SHOWN_CHANGES = 4

WHERE = {
    "evaluation": "in the held-out evaluation alone",
    "rollout": "in the rollout: the completions are others, though all before agrees",
    "update": "in the update: the completions agree, what was computed from them does not",
}


def sides_view(match: Match) -> RenderableType:
    lines = [_side("A", match.a, match.kind), _side("B", match.b, match.kind)]
    if match.kind == "conditions":
        seeds = _listed([str(pair.seed) for pair in match.pairs])
        text = f"   {plural(len(match.pairs), 'pair')} by seed{': ' if seeds else ''}{seeds}"
        for name, alone in (("A", match.only_a), ("B", match.only_b)):
            if alone:
                text += f"; only {name} has {_listed([str(seed) for seed in alone])}"
        lines.append(Text(text, style="dim"))
    return Group(*lines)


def configs_view(configs: ConfigDifferences) -> RenderableType:
    """Keys, versions and machines that differ, and that nothing does."""
    parts: list[RenderableType] = []
    if configs.decisive:
        parts += [Text("Config", style="bold"), _table(configs.decisive, configs.pairs)]
    elif configs.same:
        parts.append(Text.assemble(("Config", "bold"), ": the same"))
    else:
        parts.append(Text.assemble(("Config", "bold"), ": unknown"))
    if configs.bookkeeping:
        keys = ", ".join(one_line(difference.key) for difference in configs.bookkeeping)
        parts.append(Text(f"{'  ' if configs.decisive else ''}without effect: {keys}", style="dim"))
    if configs.environment:
        parts += [
            Text("Versions and machine", style="bold"),
            _table(configs.environment, configs.pairs),
        ]
    for change in configs.resumed[:SHOWN_CHANGES]:
        values = f"{_value(change.before)} -> {_value(change.now)}"
        text = (
            f"{change.side}: {change.run} was resumed at step {change.step} with another "
            f"{change.key}: {values}"
        )
        parts.append(Text(one_line(text)))
    if len(configs.resumed) > SHOWN_CHANGES:
        rest = len(configs.resumed) - SHOWN_CHANGES
        parts.append(Text(f"and {plural(rest, 'more change')} at a resume", style="dim"))
    return Group(*parts)


def warnings_view(warnings: Iterable[str]) -> list[RenderableType]:
    return [
        Text.assemble(("! ", "bold yellow"), one_line(warning), overflow="fold")
        for warning in warnings
    ]


def identical_view(sameness: Sequence[Sameness]) -> RenderableType | None:
    """Whether runs that should agree do, and the first place where they do not."""
    compared = [each for each in sameness if each.steps or each.parting]
    if not compared:
        return None
    parted = [(each, each.parting) for each in compared if each.parting is not None]
    steps = {each.steps for each in compared}
    over = f"{min(steps)}" if len(steps) == 1 else f"{min(steps)} to {max(steps)}"
    title = Text("Bit for bit", style="bold")
    many = len(compared) > 1
    if not parted:
        pairs = f"all {len(compared)} pairs, " if many else ""
        same = f": the same ({pairs}{over} steps, times aside), and so are all curves"
        return title.append(same, style="not bold")
    # None, the evaluation before training, comes before every step.
    first, parting = min(parted, key=lambda each: -1 if each[1].step is None else each[1].step)
    count = (
        f"{len(parted)} of {len(compared)} pairs differ; the first is {first.pair}: "
        if many
        else ""
    )
    title.append(f": no; {count}{_where(parting, first.steps)}", style="not bold")
    return Group(title, _values(parting))


def grid(*headers: str, numbers: bool = False) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for i, header in enumerate(headers):
        table.add_column(
            header,
            header_style="dim",
            overflow="fold",
            justify="right" if numbers and i else "left",
        )
    return table


def indented(table: Table) -> Padding:
    return Padding(table, (0, 0, 0, 2), expand=False)


def _side(letter: str, side: Side, kind: str) -> Text:
    line = Text.assemble((f"{letter}  ", "bold"), one_line(side.name), overflow="fold")
    gap = "\n   " if kind == "runs" else "  "
    if kind == "runs":
        run = side.runs[0]
        total = f" of {run.max_steps}" if run.max_steps else ""
        state = f"{run.state}, {run.step}{total} steps, seed {run.seed}"
    else:
        states = Counter(run.state for run in side.runs)
        state = ", ".join(f"{count} {name}" for name, count in states.items()) or "no run"
    return line.append(f"{gap}{one_line(state)}", style="dim")


def _table(differences: Sequence[Difference], pairs: int) -> RenderableType:
    table = grid("", "A", "B")
    for difference in differences:
        values = _value(difference.a), _value(difference.b)
        some = f" ({difference.pairs} of {pairs} pairs)" if difference.pairs < pairs else ""
        table.add_row(*(Text(one_line(cell)) for cell in (difference.key + some, *values)))
    return indented(table)


def _where(parting: Parting, steps: int) -> str:
    if parting.step is None:
        return "the evaluation before training differs: the untrained policies answer otherwise"
    return f"they part at step {parting.step} of {steps}, {WHERE[parting.stage]}"


def _values(parting: Parting) -> RenderableType:
    table = grid("", "A", "B")
    for value in parting.values[:SHOWN_KEYS]:
        table.add_row(*(Text(one_line(x)) for x in (value.key, _exact(value.a), _exact(value.b))))
    rest = [one_line(value.key) for value in parting.values[SHOWN_KEYS:]]
    more = [Text(f"  and {plural(len(rest), 'more key')} (--json lists them)", style="dim")]
    return Group(indented(table), *(more if rest else []))


def _listed(names: Sequence[str]) -> str:
    return ", ".join([*names[:SHOWN_SEEDS], *(["…"] if len(names) > SHOWN_SEEDS else [])])


def _value(value: Any) -> str:
    return "(unset)" if value is None else show(value)


def _exact(value: Any) -> str:
    """All digits: two numbers that differ in the last bit must look different."""
    if isinstance(value, float):
        return repr(value)
    return "null" if value is None else show(value)
