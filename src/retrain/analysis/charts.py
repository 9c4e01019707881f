"""Pictures for the report: SVG and PNG without a browser.

altair and vl-convert are imported inside the functions, because they take longer to load than
most of what else retrain does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrain.analysis.curves import Curve, Points, mean_curve
from retrain.files import atomic_write_bytes, atomic_write_text

if TYPE_CHECKING:
    import altair as alt

# Okabe and Ito's colours, which stay apart in every common form of colour blindness; their
# yellow is left out because it is too pale for a line on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES: tuple[list[int], ...] = ([1, 0], [8, 4], [2, 3], [10, 3, 2, 3])
WIDTH, HEIGHT = 620, 350
PNG_SCALE = 1.5
INK, GRID = "#333333", "#e4e4e4"
MAX_LINES = 300
"""Thin lines that a picture shows at most: more are a grey area, and take seconds to draw."""


def line_chart(
    curves: Sequence[Curve],
    conditions: Sequence[str],
    *,
    title: str,
    subtitle: str,
    y_title: str,
    as_percent: bool = False,
    markers: bool = False,
) -> dict[str, Any]:
    """A Vega-Lite chart: a thin line a run, a thick one for each condition's mean.

    A condition keeps its colour in all pictures of a campaign, also where it has no curve. More
    conditions than colours get dashes as well. Of more than `MAX_LINES` runs only the first of
    each condition are drawn, which the subtitle then says; the means are of all.
    """
    import altair as alt

    drawn = [label for label in conditions if any(c.condition == label for c in curves)]
    runs: list[dict[str, Any]] = []
    means: list[dict[str, Any]] = []
    lines = len(curves) if len(curves) <= MAX_LINES else max(1, MAX_LINES // len(drawn))
    if lines < len(curves):
        subtitle += f"; {lines} seeds of each condition are drawn"
    count = Counter[str]()
    for curve in curves:
        count[curve.condition] += 1
        if count[curve.condition] <= lines:
            runs += _values(curve.points, curve.condition, f"{curve.condition} {curve.seed}")
    for label in drawn:
        means += _values(
            mean_curve([curve for curve in curves if curve.condition == label]), label, label
        )
    number = {label: i for i, label in enumerate(conditions)}
    colors = [PALETTE[number[label] % len(PALETTE)] for label in drawn]
    dashes = [DASHES[number[label] // len(PALETTE) % len(DASHES)] for label in drawn]
    legend = alt.Legend(
        title=None,
        orient="right",
        symbolType="stroke",
        symbolStrokeWidth=4,
        symbolSize=500,
        symbolOpacity=1,
    )
    values = [row["value"] for row in [*runs, *means]]
    percent = ".0%" if max(values) - min(values) > 0.05 else ".1%"
    encoding: dict[str, Any] = {
        "x": alt.X(
            "step:Q",
            title="training step",
            scale=alt.Scale(nice=False),
            axis=alt.Axis(tickMinStep=1, tickCount=9, grid=False),
        ),
        "y": alt.Y(
            "value:Q",
            title=y_title,
            scale=alt.Scale(zero=False, nice=True),
            axis=alt.Axis(format=percent, tickCount=6) if as_percent else alt.Axis(tickCount=6),
        ),
        "color": alt.Color(
            "condition:N", scale=alt.Scale(domain=drawn, range=colors), sort=drawn, legend=legend
        ),
        "detail": alt.Detail("run:N"),
    }
    dash = alt.StrokeDash(
        "condition:N", scale=alt.Scale(domain=drawn, range=dashes), sort=drawn, legend=legend
    )
    chart = alt.layer(
        _layer(alt, "runs").mark_line(strokeWidth=1.1, strokeOpacity=0.35).encode(**encoding),
        _layer(alt, "means")
        .mark_line(
            strokeWidth=3, point=alt.OverlayMarkDef(size=55, filled=True) if markers else False
        )
        .encode(**encoding, strokeDash=dash),
    )
    document = styled(chart.properties(width=WIDTH, height=HEIGHT), title, subtitle)
    # Only now, because altair would copy and check every point.
    document["datasets"] = {"runs": runs, "means": means}
    return document


def styled(
    chart: alt.LayerChart | alt.FacetChart, title: str, subtitle: str | list[str]
) -> dict[str, Any]:
    """The Vega-Lite document of a chart, with a heading and the look that all pictures share."""
    import altair as alt

    heading = alt.TitleParams(title, subtitle=subtitle, anchor="start", limit=WIDTH + 150)
    document: dict[str, Any] = (
        chart.properties(background="white", padding=12, title=heading)
        .configure(font="Helvetica, Arial, sans-serif")
        .configure_title(
            fontSize=18, color=INK, subtitleFontSize=13, subtitleColor="#555555", offset=14
        )
        .configure_axis(
            labelFontSize=14,
            titleFontSize=14,
            titleFontWeight="normal",
            titlePadding=10,
            labelColor=INK,
            titleColor=INK,
            labelLimit=260,
            gridColor=GRID,
            domainColor="#999999",
            tickColor="#999999",
        )
        .configure_legend(
            labelFontSize=14,
            labelColor=INK,
            titleFontSize=14,
            titleFontWeight="normal",
            labelLimit=260,
            rowPadding=5,
            offset=16,
        )
        .configure_view(stroke=None)
        .to_dict()
    )
    return document


def write_chart(document: dict[str, Any], stem: Path) -> None:
    """Write a Vega-Lite chart as `<stem>.svg` and `<stem>.png`."""
    import vl_convert

    svg = vl_convert.vegalite_to_svg(document)
    atomic_write_text(stem.with_suffix(".svg"), svg)
    atomic_write_bytes(stem.with_suffix(".png"), vl_convert.svg_to_png(svg, scale=PNG_SCALE))


def _layer(alt_module: Any, data: str) -> alt.Chart:
    chart: alt.Chart = alt_module.Chart(alt_module.NamedData(name=data))
    return chart


def _values(points: Points, condition: str, run: str) -> list[dict[str, Any]]:
    return [
        {"step": step, "value": round(value, 6), "condition": condition, "run": run}
        for step, value in points
    ]
