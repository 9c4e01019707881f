"""Two pictures of an analysis: what each rank keeps, and which modules need how much."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrain.analysis.charts import GRID, HEIGHT, INK, PALETTE, WIDTH, styled, write_chart
from retrain.squeeze.analysis import SqueezeAnalysis, positions

if TYPE_CHECKING:
    import altair as alt

RETENTION, RANKS = "squeeze_retention", "squeeze_ranks"
PICTURES = tuple(f"{stem}{suffix}" for stem in (RETENTION, RANKS) for suffix in (".svg", ".png"))
"""The files that `pictures` writes."""

_BLUE, _ORANGE = PALETTE[0], PALETTE[1]
_GREY = "#777777"
_MEAN, _POOLED = "mean of modules", "pooled"
_NO_LAYER = "–"
_LARGEST_CELL, _SMALLEST_NUMBERED = 44, 26
_LONGEST_TITLE = 60


def pictures(analysis: SqueezeAnalysis, folder: str | Path) -> tuple[Path, Path]:
    """Write the retention curves and the heat map, each as PNG and SVG; the paths of the PNGs."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    for stem, chart in ((RETENTION, retention_chart(analysis)), (RANKS, rank_chart(analysis))):
        write_chart(chart, target / stem)
    return target / f"{RETENTION}.png", target / f"{RANKS}.png"


def retention_chart(analysis: SqueezeAnalysis) -> dict[str, Any]:
    """A Vega-Lite chart of retention by rank: mean and pooled lines, the band of all modules."""
    import altair as alt

    recommended = analysis.recommended_rank
    threshold = analysis.min_variance_retention
    last = max(2, analysis.source_rank)
    ticks = [1 << i for i in range(last.bit_length()) if 1 << i <= last]
    x = alt.X(
        "rank:Q",
        title="rank (logarithmic)",
        scale=alt.Scale(type="log", base=2, domain=[1, last], nice=False),
        axis=alt.Axis(values=ticks, grid=False, format="d"),
    )
    y = alt.Y(
        "kept:Q",
        title="variance kept",
        scale=alt.Scale(domain=[0, 1]),
        axis=alt.Axis(format=".0%", tickCount=6),
    )
    band = _chart(
        {"rank": rank, "kept": low, "high": analysis.max_variance[rank]}
        for rank, low in analysis.min_variance.items()
    ).mark_area(color=_BLUE, opacity=0.15)
    curves = {_MEAN: analysis.mean_variance, _POOLED: analysis.pooled_variance}
    lines = (
        _chart(
            {"rank": rank, "kept": kept, "curve": name}
            for name, curve in curves.items()
            for rank, kept in curve.items()
        )
        .mark_line()
        .encode(
            x=x,
            y=y,
            color=alt.Color(
                "curve:N",
                scale=alt.Scale(domain=list(curves), range=[_BLUE, _ORANGE]),
                # Beside the picture: inside, it would hide the label or the curves.
                legend=alt.Legend(title=None, symbolStrokeWidth=3, symbolSize=350),
            ),
            strokeWidth=alt.StrokeWidth(
                "curve:N", scale=alt.Scale(domain=list(curves), range=[3, 1.8]), legend=None
            ),
        )
    )
    level = _chart([{"kept": threshold}]).mark_rule(color=_GREY, strokeDash=[5, 4]).encode(y=y)
    mark = _chart([{"rank": recommended, "kept": analysis.mean_variance[recommended]}])
    drop = mark.mark_rule(color=_GREY, strokeDash=[5, 4]).encode(x=x)
    point = mark.mark_point(size=110, filled=True, color=_BLUE, opacity=1).encode(x=x, y=y)
    # On the side of the picture where there is room, clear of the curve above it.
    left = recommended**2 > last
    label = (
        _chart([{"rank": recommended, "kept": 0.06, "text": f"recommended rank {recommended}"}])
        .mark_text(align="right" if left else "left", dx=-8 if left else 8, fontSize=14, color=INK)
        .encode(x=x, y=y, text="text:N")
    )
    layers = [
        band.encode(x=x, y=y, y2="high:Q"),
        level,
        drop,
        lines,
        point,
        label,
    ]
    modules = f"{analysis.num_layers} module{'s' * (analysis.num_layers > 1)}"
    return styled(
        alt.layer(*layers).properties(width=WIDTH, height=HEIGHT),
        title=f"Rank {recommended} of {analysis.source_rank} keeps "
        f"{_percent(analysis.mean_variance[recommended])} of the variance",
        subtitle=[
            _short(analysis.adapter),
            f"band: lowest to highest of {modules}; dashed: {_percent(threshold)} wanted",
        ],
    )


def rank_chart(analysis: SqueezeAnalysis) -> dict[str, Any]:
    """A Vega-Lite heat map: the rank that keeps the threshold of each module, layers by types.

    Several modules in one place (experts) are shown by their mean. Zero modules are grey.
    """
    import altair as alt

    cells: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    names = [*(module.name for module in analysis.modules), *analysis.zero_modules]
    places = positions(names)
    ranks = {module.name: module.effective_rank for module in analysis.modules}
    for name in names:
        number, kind = places[name]
        cells[_NO_LAYER if number is None else str(number), kind].append(ranks.get(name, 0))
    means = {place: sum(found) / len(found) for place, found in cells.items()}
    layers = sorted({layer for layer, _ in means}, key=lambda x: (x == _NO_LAYER, x.zfill(9)))
    kinds = list(dict.fromkeys(places[name][1] for name in sorted(names, key=_natural)))
    width = min(_LARGEST_CELL, WIDTH / len(layers))
    height = min(_LARGEST_CELL, max(16, HEIGHT / len(kinds)))
    highest = max(means.values())
    x = alt.X(
        "layer:N",
        sort=layers,
        title="layer",
        axis=alt.Axis(
            labelAngle=0, labelOverlap="parity", labelSeparation=5, ticks=False, domain=False
        ),
    )
    y = alt.Y("kind:N", sort=kinds, title=None, axis=alt.Axis(ticks=False, domain=False))
    chart = _chart(
        {"layer": layer, "kind": kind, "rank": mean, "text": f"{mean:.0f}" if mean else "zero"}
        for (layer, kind), mean in means.items()
    )
    filled = (
        chart.transform_filter("datum.rank > 0")
        .mark_rect(stroke="white", strokeWidth=1)
        .encode(
            x=x,
            y=y,
            color=alt.Color(
                "rank:Q",
                scale=alt.Scale(scheme="blues", domain=[0, highest]),
                legend=alt.Legend(
                    title="rank",
                    gradientLength=min(180, height * len(kinds)),
                    tickMinStep=1,
                    tickCount=5,
                ),
            ),
        )
    )
    empty = (
        chart.transform_filter("datum.rank == 0")
        .mark_rect(stroke="white", strokeWidth=1, color=GRID)
        .encode(x=x, y=y)
    )
    drawn: list[alt.Chart] = [filled, empty]
    if width >= _SMALLEST_NUMBERED:
        ink = alt.when(f"datum.rank > {0.55 * highest}").then(alt.value("white"))
        drawn.append(
            chart.mark_text(fontSize=12).encode(
                x=x, y=y, text="text:N", color=ink.otherwise(alt.value(INK))
            )
        )
    zero = f"; grey: {len(analysis.zero_modules)} zero" if analysis.zero_modules else ""
    wanted = _percent(analysis.min_variance_retention)
    return styled(
        alt.layer(*drawn).properties(width=width * len(layers), height=height * len(kinds)),
        title=f"Rank that keeps {wanted} of each module",
        subtitle=[_short(analysis.adapter), f"source rank {analysis.source_rank}{zero}"],
    )


def _chart(rows: Any) -> alt.Chart:
    import altair as alt

    return alt.Chart(alt.InlineData(values=list(rows)))


def _percent(share: float) -> str:
    """As in the words of the report: `95 %`, `99.5 %`; never rounded up to 100."""
    return f"{int(1000 * share + 1e-9) / 10:g} %"


def _short(adapter: str) -> str:
    """The end of a long path, which is what tells adapters apart."""
    return adapter if len(adapter) <= _LONGEST_TITLE else "…" + adapter[1 - _LONGEST_TITLE :]


def _natural(name: str) -> list[tuple[int, str]]:
    """Layer 10 after layer 2."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]
