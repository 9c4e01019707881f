"""Section of the report: text, a LaTeX table and a CSV file to paste into a paper."""

from __future__ import annotations

import csv
import io
import re
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from html import escape

from retrain.analysis.page.methods import methods_text
from retrain.analysis.page.section import Section
from retrain.analysis.records import CampaignRecord
from retrain.analysis.summary import Comparison, ConditionSummary, PlannedContrast
from retrain.analysis.tables import harmless
from retrain.analysis.words import Unit
from retrain.output import visible

__all__ = ["latex_escape", "latex_table", "methods_text", "paper_section", "verdict_csv"]

CSV_COLUMNS = (
    "treatment",
    "baseline",
    "verdict",
    "mean_difference",
    "ci_low",
    "ci_high",
    "confidence",
    "p_corrected",
    "correction",
    "p_sign_flip",
    "p_equivalence",
    "margin",
    "alpha",
    "metric",
    "summary",
    "seeds",
    "seeds_missing",
    "seeds_higher",
    "seeds_lower",
    "seeds_equal",
    "sd_of_differences",
    "correlation",
    "detectable_difference",
    "more_seeds_needed",
    "complete_seeds",
    "complete_mean_difference",
    "complete_ci_low",
    "complete_ci_high",
    "text",
)
"""Differences are in the unit of the metric: accuracies are shares, not points."""

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "_": r"\_",
    "%": r"\%",
    "&": r"\&",
    "#": r"\#",
    "$": r"\$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    # After the \\ that ends a row, these would be read as its arguments.
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    "\n": " ",
    "\t": " ",
}


def paper_section(campaign: CampaignRecord, comparison: Comparison) -> Section:
    """Methods, LaTeX and CSV, each with a button that copies it."""
    pieces = [
        ("paper-methods", "Methods", methods_text(campaign, comparison)),
        ("paper-latex", "Table in LaTeX", latex_table(comparison, campaign.name)),
        # A page has plain line ends, whatever it is given.
        ("paper-csv", "Verdicts as CSV", verdict_csv(comparison).replace("\r\n", "\n")),
    ]
    html = "\n".join(
        f'<h3>{title}</h3>\n<div class="paste"><button type="button" class="copy" '
        f'data-copy="{name}">copy</button>'
        # A line end right after <pre> is not shown.
        f'<pre id="{name}" tabindex="0" aria-label="{title}">\n{escape(visible(text))}</pre></div>'
        for name, title, text in pieces
    )
    note = "<p>Read it before you use it: what it does not know, such as why, is yours to add.</p>"
    return Section("paper", "For a paper", f"{note}\n{html}")


def latex_table(comparison: Comparison, name: str = "") -> str:
    """The conditions and their planned comparisons as a `table` in LaTeX; needs `booktabs`.

    A row a condition, with its comparison to the baseline; below them a row for each comparison
    with another condition. `name`: of the campaign, for the label.
    """
    settings, unit = comparison.settings, comparison.settings.unit
    to_baseline = {c.treatment: c for c in comparison.contrasts if _to_baseline(c, comparison)}
    rows = [
        [*_condition_cells(c, unit), *_contrast_cells(to_baseline.get(c.label), c, comparison)]
        for c in comparison.conditions
    ]
    further = [
        [_versus(c), "", "", *_contrast_cells(c, None, comparison)]
        for c in comparison.contrasts
        if not _to_baseline(c, comparison)
    ]
    body = [_row(row) for row in rows]
    body += ["\\midrule", *(_row(row) for row in further)] if further else []
    measured = " in \\%" if unit.name else ""
    level = f"{100 * comparison.confidence:g}"
    method = comparison.contrasts[0].judgement.method if comparison.contrasts else "none"
    corrected = {
        "none": "",
        "maxT": ", corrected by step-down maxT",
        "Holm": ", corrected by Holm's procedure",
    }[method]
    label = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-") or "verdicts"
    caption = (
        f"{_sentence(latex_escape(settings.words))}{measured}: mean (standard deviation) over "
        f"finished runs. Differences are paired by seed, with {level}\\,\\% t intervals; $p$ is "
        f"that of the sign-flip test{corrected}. Margin: "
        f"{latex_escape(unit.size(settings.margin))}."
    )
    wrapped = textwrap.wrap(
        f"\\caption{{{caption}}}",
        96,
        initial_indent="  ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            "\\begin{table}",
            "  \\centering",
            *wrapped,
            f"  \\label{{tab:{label}}}",
            "  \\begin{tabular}{lrrrrrl}",
            "    \\toprule",
            "    "
            + _row(["Condition", "Runs", "Mean (SD)", "Difference", "$p$", "Seeds", "Verdict"]),
            "    \\midrule",
            *(f"    {line}" for line in body),
            "    \\bottomrule",
            "  \\end{tabular}",
            "\\end{table}",
            "",
        ]
    )


def latex_escape(text: str) -> str:
    """Text that LaTeX prints as it stands, in any engine; other letters than ASCII as `U+4E2D`."""
    escaped = "".join(
        _LATEX.get(c, c if " " <= c <= "\u007e" else f"U+{ord(c):04X}") for c in visible(text)
    )
    return re.sub("-(?=-)", "-{}", escaped)  # Two hyphens would become a dash.


def verdict_csv(comparison: Comparison) -> str:
    """The planned comparisons by RFC 4180 (lines end in CR LF), numbers in full precision.

    The columns are `CSV_COLUMNS`; what is not known is empty.
    """
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\r\n")
    writer.writerow(CSV_COLUMNS)
    for contrast in comparison.contrasts:
        values = _csv_values(contrast, comparison)
        cells = (values[key] for key in CSV_COLUMNS)
        writer.writerow([harmless(cell) if isinstance(cell, str) else cell for cell in cells])
    return file.getvalue()


def _csv_values(
    contrast: PlannedContrast, comparison: Comparison
) -> Mapping[str, str | float | None]:
    judgement, complete, settings = contrast.judgement, contrast.complete, comparison.settings
    paired, verdict = judgement.paired, judgement.verdict
    return {
        "treatment": contrast.treatment,
        "baseline": contrast.baseline,
        "verdict": verdict.kind,
        "mean_difference": paired.contrast.mean_difference,
        "ci_low": paired.contrast.low,
        "ci_high": paired.contrast.high,
        "confidence": paired.contrast.confidence,
        "p_corrected": judgement.p,
        "correction": judgement.method,
        "p_sign_flip": paired.p_sign_flip,
        "p_equivalence": judgement.p_equivalence,
        "margin": settings.margin,
        "alpha": settings.alpha,
        "metric": settings.metric,
        "summary": settings.summary,
        "seeds": paired.contrast.n,
        "seeds_missing": paired.contrast.dropped,
        "seeds_higher": paired.wins,
        "seeds_lower": paired.losses,
        "seeds_equal": paired.ties,
        "sd_of_differences": paired.sd,
        "correlation": paired.correlation,
        "detectable_difference": paired.detectable,
        "more_seeds_needed": verdict.more_seeds,
        "complete_seeds": complete.n,
        "complete_mean_difference": complete.mean_difference,
        "complete_ci_low": complete.low,
        "complete_ci_high": complete.high,
        "text": verdict.text,
    }


def _to_baseline(contrast: PlannedContrast, comparison: Comparison) -> bool:
    return contrast.baseline == comparison.baseline


def _condition_cells(condition: ConditionSummary, unit: Unit) -> list[str]:
    values = [value for value in condition.values.values() if value is not None]
    spread = f" ({unit.plain(statistics.stdev(values))})" if len(values) > 1 else ""
    mean = unit.plain(condition.value, "--")
    return [latex_escape(condition.label), f"{condition.done}/{condition.planned}", mean + spread]


def _contrast_cells(
    contrast: PlannedContrast | None, condition: ConditionSummary | None, comparison: Comparison
) -> list[str]:
    """Difference, p, seeds that agree with it, verdict."""
    if contrast is None:
        is_baseline = condition is not None and condition.label == comparison.baseline
        return ["", "", "", "baseline" if is_baseline else ""]
    judgement, unit = contrast.judgement, comparison.settings.unit
    paired = judgement.paired
    found = paired.contrast
    if found.mean_difference is None:
        return ["--", "--", "--", latex_escape(judgement.verdict.kind)]
    difference = f"${unit.signed(found.mean_difference)}$"
    if found.low is not None and found.high is not None and not found.all_equal:
        difference += f" {{[}}${unit.signed(found.low)}$, ${unit.signed(found.high)}${{]}}"
    agree = paired.losses if found.mean_difference < 0 else paired.wins
    p = "--" if judgement.p is None else "$<0.001$" if judgement.p < 0.001 else f"{judgement.p:.2g}"
    return [difference, p, f"{agree}/{found.n}", latex_escape(judgement.verdict.kind)]


def _versus(contrast: PlannedContrast) -> str:
    return f"{latex_escape(contrast.treatment)} vs.\\ {latex_escape(contrast.baseline)}"


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + " \\\\"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
