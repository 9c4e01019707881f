"""The picture of `places.py`: reward by step, a panel a seed, and the mean over all seeds.

Lines that coincide are seen as such because each is thinner than the one below it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retrain.analysis.charts import PNG_SCALE, styled
from retrain.analysis.curves import moving_average
from retrain.analysis.words import plural
from retrain.files import atomic_write_bytes, atomic_write_text
from retrain.types import FloatArray

WINDOW = 5
"""Steps that a curve is averaged over."""
SEEDS = 5
"""Panels of single seeds at most; the mean is over all."""
PANEL_WIDTH, PANEL_HEIGHT = 145, 165
# From below to above; Okabe and Ito's colours.
STROKES = (("#56B4E9", 8.5), ("#F0E442", 4.5), ("#000000", 1.2), ("#D55E00", 2.0))

Curves = Mapping[str, Mapping[tuple[str, int], FloatArray]]
"""By place, then by condition and seed: (steps,) mean reward."""


def write_picture(curves: Curves, titles: Mapping[str, str], path: Path) -> None:
    """Write `path`, an .svg or .png."""
    import vl_convert

    svg = vl_convert.vegalite_to_svg(picture(curves, titles))
    if path.suffix == ".svg":
        atomic_write_text(path, svg)
    else:
        atomic_write_bytes(path, vl_convert.svg_to_png(svg, scale=PNG_SCALE))


def picture(curves: Curves, titles: Mapping[str, str]) -> dict[str, Any]:
    """The Vega-Lite document."""
    import altair as alt

    runs = set.intersection(*(set(by_run) for by_run in curves.values()))
    conditions = sorted({condition for condition, _ in runs})
    # Means have to be of the same seeds everywhere.
    seeds = sorted({seed for _, seed in runs if all((label, seed) in runs for label in conditions)})
    panels = [*(f"seed {seed}" for seed in seeds[:SEEDS]), f"mean of {plural(len(seeds), 'seed')}"]
    rows = [
        row | {"place": titles[place], "condition": condition}
        for place, by_run in curves.items()
        for condition in conditions
        for row in _rows(np.array([by_run[condition, seed] for seed in seeds]), panels)
    ]
    domain = [titles[place] for place in curves]
    legend = alt.Legend(title=None, orient="top", symbolSize=900, columnPadding=24)
    header = alt.Header(labelFontSize=14)
    colors, widths = zip(*STROKES[: len(domain)], strict=True)
    x = alt.X("step:Q", title="training step", axis=alt.Axis(tickCount=4, grid=False))
    y = alt.Y(
        "reward:Q", title="mean reward", scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5)
    )
    spread = (
        alt.Chart()
        .transform_filter(alt.datum.place == domain[0])
        .mark_area(color="#dddddd")
        .encode(x=x, y=alt.Y("low:Q"), y2="high:Q")
    )
    lines = (
        alt.Chart()
        .mark_line(strokeCap="butt", strokeJoin="round")
        .encode(
            x=x,
            y=y,
            color=alt.Color(
                "place:N", sort=None, scale=alt.Scale(domain=domain, range=colors), legend=legend
            ),
            strokeWidth=alt.StrokeWidth(
                "place:N",
                sort=None,
                scale=alt.Scale(type="ordinal", domain=domain, range=widths),
                legend=legend,
            ),
        )
    )
    chart = (
        alt.layer(spread, lines, data=alt.NamedData(name="rows"))
        .properties(width=PANEL_WIDTH, height=PANEL_HEIGHT)
        .facet(
            column=alt.Column("panel:N", sort=panels, title=None, header=header),
            row=alt.Row("condition:N", sort=conditions, title=None, header=header),
            spacing=14,
        )
    )
    document = styled(
        chart,
        "The same seeds, trained in different places",
        f"Moving average over {WINDOW} steps. Lines that coincide lie inside each other. Grey: one "
        "standard deviation between seeds, here.",
    )
    document["datasets"] = {"rows": rows}
    return document


def _rows(reward_SN: FloatArray, panels: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The points of one place and condition: first seeds, then the mean with its spread."""
    *single, mean = panels
    smooth_SN = np.array([moving_average(reward_N.tolist(), WINDOW) for reward_N in reward_SN])
    for panel, smooth_N in zip(single, smooth_SN, strict=False):
        for step, value in enumerate(smooth_N):
            yield {"panel": panel, "step": step, "reward": round(value, 4)}
    spread_N = smooth_SN.std(axis=0, ddof=1) if len(smooth_SN) > 1 else smooth_SN[0] * 0
    for step, (value, spread) in enumerate(zip(smooth_SN.mean(axis=0), spread_N, strict=True)):
        ends = {"low": round(value - spread, 4), "high": round(value + spread, 4)}
        yield {"panel": mean, "step": step, "reward": round(value, 4), **ends}
