"""The table of an analysis, as plain text for a terminal, a log and a report."""

from __future__ import annotations

from retrain.squeeze.analysis import SqueezeAnalysis

_HEADINGS = ("Rank", "Mean Var%", "Min Var%", "Max Var%", "Pooled Var%")
_WIDTHS = (6, 11, 10, 10, 13)


def render_table(analysis: SqueezeAnalysis) -> str:
    """Retentions by rank, `<--` at the recommended one; lines without a newline at the end."""
    lines = [
        f"Source rank: {analysis.source_rank}",
        f"Layers analyzed: {analysis.num_layers}",
    ]
    if analysis.zero_modules:
        lines.append(f"Zero modules: {_zero(analysis)}")
    lines += ["", _row(_HEADINGS), "-" * (sum(_WIDTHS) + 4)]
    for rank in analysis.ranks:
        curves = (
            analysis.mean_variance,
            analysis.min_variance,
            analysis.max_variance,
            analysis.pooled_variance,
        )
        row = _row((str(rank), *(f"{100 * curve[rank]:.2f}%" for curve in curves)))
        lines.append(row + (" <--" if rank == analysis.recommended_rank else ""))
    threshold = f"{100 * analysis.min_variance_retention:g}"
    lines += [
        "",
        f"Recommended rank: {analysis.recommended_rank} (>= {threshold}% variance retained)",
    ]
    return "\n".join(lines)


def _zero(analysis: SqueezeAnalysis) -> str:
    names = analysis.zero_modules
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)}, left out ({', '.join(names[:3])}{more})"


def _row(cells: tuple[str, ...]) -> str:
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=True))
